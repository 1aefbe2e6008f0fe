"""Lists, sets and tuples, compared member by member.

A tuple is ordered, a set is not and counts every member once; a list is ordered where the question
asks for an order (largest first, left to right) or for different things, and not where it asks for
all of something.
Round brackets make a tuple, braces a set; square ones, or commas alone, a list.
"""

from __future__ import annotations

import re

from rewards.rules.kinds.comparison import Ask, all_matched, split_outside_brackets
from rewards.rules.kinds.intervals import equal_intervals, is_inequality, is_interval
from rewards.rules.kinds.matrices import equal_matrices, read_matrix
from rewards.rules.kinds.members import equal_members
from rewards.rules.reading.notation import INNER_TEXT, plain, plain_words
from rewards.rules.reading.numbers import number_literal
from rewards.rules.reading.wording import any_of

MAX_ITEMS = 32
MAX_ITEM_WORDS = 8
MAX_LIST_CHARS = 600
MAX_DEPTH = 3

_SET_BRACES = re.compile(r"\\?\{(.*?)\\?\}", re.DOTALL)
_ANGLES = re.compile(r"(?:\\langle|<|⟨)(.*)(?:\\rangle|>|⟩)", re.DOTALL)
_EMPTY_SET = re.compile(
    r"\\emptyset|\\varnothing|\\?\{\s{0,3}\\?\}"
    r"|(?:(?:the )?(?:solution )?set is )?(?:the )?empty(?: set)?"
    r"|(?:there (?:is|are) |the \w{1,12} has )?no (?:real |such )?(?:solutions?|roots?"
    r"|values?|numbers?|x)(?: exists?)?|空集|无解|none",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:^|\n)[ \t]{0,3}(?:[-*•]|\(?[0-9]{1,2}[.)、])[ \t]{1,3}(?=\S)")
_AND = re.compile(
    r"\s?,?\s(?:and|then|followed by)\s|\s?[;；]\s?|\s?、\s?|\s?(?:→|->|\\to(?![a-z])"
    r"|\\rightarrow)\s?|\s?[和与及]\s?"
)
_COMMA = re.compile(r"[,;，；、\[\n→]|->|\\text\{ ?and ?\}|(?<=[0-9}$]) and (?=[0-9\\$])")
_EITHER = re.compile(r"\s?,?\s(?:or|and)\s|\s?(?:或者?|和)\s?")
_ARGUMENT = re.compile(r"([a-zA-Z](?:_\{?\w{1,3}\}?)?)\s?(?:=|\\in)\s?(.+)", re.DOTALL)
_NAMED_VALUE = re.compile(
    r"(?:the )?([a-z](?:[a-z ]{0,24}[a-z])?(?:_\{?\w{1,3}\}?)?)"
    r"(?:\s?[=:]\s?|\s(?:is|equals)\s)(.+)",
    re.IGNORECASE | re.DOTALL,
)
_NAMES = re.compile(r"\(([a-z][a-z_0-9 ]{0,24}(?:,\s?[a-z][a-z_0-9 ]{0,24}){1,8})\)")
_NAMED_TUPLE = re.compile(r"(\([^()=0-9]{1,30}\)|[A-Za-z]{1,2})\s?=\s?(\(.*\))", re.DOTALL)
_PLUS_MINUS = re.compile(r"(.*?)(?:\\pm|±|\+/-|\+-)\s?(.+)")
_CHAIN = re.compile(r"[^<>=,]{1,20}(?:\s?(?:<|\\lt)\s?[^<>=,]{1,20}){1,31}")
_ANY_ORDER, _ORDERED, _ALL_OF = (
    re.compile(any_of(name), re.IGNORECASE) for name in ("any_order", "ordered", "all_of")
)
_PLURAL = re.compile(r"\b(?:which|what|name|list)\b(?: \w+){0,3}? \w{2,}s\b", re.IGNORECASE)


def is_any_order(question: str) -> bool:
    """Whether the order of the items carries no meaning for a question."""
    question = question[:4000]
    if _ANY_ORDER.search(question):
        return True
    # "Which countries ..." wants a set; "the mean and the median" names an order.
    is_plural = _PLURAL.search(question) and " and " not in question
    return not _ORDERED.search(question) and bool(_ALL_OF.search(question) or is_plural)


def is_tuple(reference: str, question: str = "") -> bool:
    items = _tuple_items(reference)
    return items is not None and 1 < len(items) <= MAX_ITEMS


def is_set(reference: str, question: str = "") -> bool:
    return _EMPTY_SET.fullmatch(plain(reference)) is not None or _set_items(reference) is not None


def claims_set(reference: str, question: str) -> bool:
    """A word such as "none" is the empty set only to those who ask for values."""
    return is_set(reference) and plain(reference).casefold() != "none"


def is_list(reference: str, question: str = "") -> bool:
    """Several short items with commas or brackets; no sentence."""
    items = list_items(reference)
    if items is None or not 1 < len(items) <= MAX_ITEMS or number_literal(reference) is not None:
        return False
    # A reference needs a comma or brackets to be a list.
    # "rock and roll" is no list.
    if not _COMMA.search(plain(reference)) and not _COMMA.search(reference):
        return False
    return all(items) and all(len(item.split()) <= MAX_ITEM_WORDS for item in items)


def claims_unordered(reference: str, question: str) -> bool:
    return is_list(reference) and is_any_order(question)


def is_items(reference: str, question: str = "") -> bool:
    """Whether a reference can be read as a list once a task says that it is one."""
    items = list_items(reference)
    return items is not None and 0 < len(items) <= MAX_ITEMS and all(items)


def equal_tuples(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = _tuple_items(reference), _tuple_items(answer)
    if wanted is None:
        return False
    if given is None and (rows := read_matrix(answer)) and 1 in (len(rows), len(rows[0])):
        # A vector may be written as a column or as a row.
        column = r"\\".join(wanted)
        return equal_matrices(rf"\begin{{pmatrix}}{column}\end{{pmatrix}}", answer, ask)
    if given is None:
        given = _assigned_items(answer, len(wanted), ask.question)
    return given is not None and _nested(wanted, given, ask, ordered=True)


def equal_sets(reference: str, answer: str, ask: Ask) -> bool | None:
    is_empty = [_EMPTY_SET.fullmatch(plain(text)) is not None for text in (reference, answer)]
    if any(is_empty):
        return all(is_empty)
    wanted, given = _set_items(reference), _set_items(answer)
    if given is None:
        given = _listed_members(answer)
    if wanted is None or given is None:
        return False
    return _nested(_distinct(wanted), _distinct(given), ask, ordered=False)


def equal_lists(reference: str, answer: str, ask: Ask) -> bool | None:
    """As lists; as intervals where [1, 2] meets 1 <= x <= 2."""
    if is_interval(reference) and is_inequality(answer):
        return equal_intervals(reference, answer, ask)
    wanted, given = list_items(reference), _answer_items(reference, answer)
    if wanted is None or given is None:
        return False
    if any("=" in item for item in wanted):
        # "x = 2, y = 3" is ordered by its letters, however it is written.
        named = [_assigned_items(text, len(wanted), ask.question) for text in (reference, answer)]
        wanted, given = named[0] or wanted, named[1] or given
    return _nested(wanted, given, ask, ordered=True)


def equal_unordered(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = list_items(reference), _answer_items(reference, answer)
    if wanted is None:
        return False
    if given is None or len(given) != len(wanted):
        given = _set_items(answer) or _listed_members(answer) or given
    if given is None:
        return False
    return _nested(
        _without_signs(_unnamed(wanted)), _without_signs(_unnamed(given)), ask, ordered=False
    )


def list_items(text: str) -> list[str] | None:
    """The items of a list in any of its forms; None where brackets do not match."""
    if len(text) > MAX_LIST_CHARS:
        return None
    bullets = _BULLET.split(text.strip())
    if len(bullets) > 2 and not bullets[0].strip():
        return [plain(item) for item in bullets[1:]]
    if "\n" in text.strip() and "," not in text:
        return [plain(line) for line in text.strip().splitlines() if line.strip()]
    text = " ".join(INNER_TEXT.sub(r" \1 ", plain(text.strip().translate(_WIDE))).split())
    if len(text) > 1 and text[0] + text[-1] == "[]" and split_outside_brackets(text, ",") == [text]:
        text = text[1:-1]
    # "1 < 2 < 3" shows the sorted list that was asked for.
    if _CHAIN.fullmatch(text) and not re.search(r"[a-z]", text):
        text = re.sub(r"<|\\lt", ",", text)
    items = split_outside_brackets(_AND.sub(",", text).replace(",,", ","), ",")
    if items is None or not any(items):
        return items and []
    items = [re.sub("^and ", "", item.strip(), flags=re.IGNORECASE) for item in items]
    # Python writes its strings in quotes.
    return [re.sub(r"^(['\"])(.+)\1$", r"\2", item) for item in items]


_WIDE = str.maketrans({"，": ",", "、": ",", "；": ";"})


def _unnamed(items: list[str]) -> list[str]:
    """`n = 2`, 3, 4 as 2, 3, 4: the name in front stands for all of them."""
    named = [_ARGUMENT.fullmatch(item) for item in items]
    if len({match[1] for match in named if match}) != 1:
        return items
    return [match[2] if match else item for match, item in zip(named, items, strict=True)]


def _answer_items(reference: str, answer: str) -> list[str] | None:
    """An answer in brackets of another kind is another thing: [1, 2] is not (1, 2)."""
    given = plain(answer) if len(answer) <= MAX_LIST_CHARS else ""
    inner = _tuple_items(answer)
    # Brackets of another kind make it another thing.
    is_other = inner is not None or _SET_BRACES.fullmatch(given) is not None
    if is_other and plain(reference)[:1] == "[":
        return None
    return inner if is_other and inner else list_items(answer)


def _tuple_items(text: str) -> list[str] | None:
    text = plain(text) if len(text) <= MAX_LIST_CHARS else ""
    named = _ARGUMENT.fullmatch(text) or _NAMED_TUPLE.fullmatch(text)
    text = named[2].strip() if named else text
    if angles := _ANGLES.fullmatch(text):
        return split_outside_brackets(angles[1], ",")
    if not (text.startswith("(") and text.endswith(")")):
        return None
    if split_outside_brackets(text, ",") != [text]:
        return None
    items = split_outside_brackets(text[1:-1], ",")
    return items if items and len(items) > 1 and all(items) else None


def _assigned_items(text: str, count: int, question: str) -> list[str] | None:
    """`x = 1, y = 2` and `x is 1 and y is 2` as (1, 2); or bare values with commas.

    The order is that of the question, of the letters where it names none.
    """
    text = (
        re.sub(r"\s(?:and|or)\s", ",", INNER_TEXT.sub(r" \1 ", plain(text)))
        if " or " not in text
        else ""
    )
    items = split_outside_brackets(_AND.sub(",", text), ",")
    if items is None or len(items) != count:
        return None
    named = [_NAMED_VALUE.fullmatch(item) for item in items]
    if not any(named):
        return items if all(number_literal(item) is not None for item in items) else None
    values = {match[1].casefold(): match[2] for match in named if match}
    if len(values) != count:
        return None
    # Without an order in the question that of the alphabet holds, as in (x, y).
    letters = sorted(set(values) & set("abcmnpqrstuvwxyz"))
    asked = [
        [name.strip() for name in names.split(",")]
        for names in _NAMES.findall(plain(question[:4000]).casefold())
    ]
    order = next((names for names in asked if set(names) == set(values)), letters)
    return [values[name] for name in order] if len(order) == count else None


def _set_items(text: str) -> list[str] | None:
    """The members of `{...}`, of `±2`, or of `x = 1 or x = 2`."""
    text = INNER_TEXT.sub(r" \1 ", plain(text)) if len(text) <= MAX_LIST_CHARS else ""
    named = _ARGUMENT.fullmatch(text)
    inner = named[2].strip() if named else text
    # A union of finite sets is one set.
    if "\\cup" in inner and "{" in inner:
        parts = [_set_items(part) for part in inner.split("\\cup")]
        return [item for part in parts for item in part or []] if all(parts) else None
    if inner.startswith(("{", "\\{")) and (braces := _SET_BRACES.fullmatch(inner)):
        items = split_outside_brackets(braces[1].replace(r"\{", "{").replace(r"\}", "}"), ",;")
        if items is None or not all(items) or any("|" in item for item in items):
            return None
        return _without_signs(items)
    if _PLUS_MINUS.fullmatch(inner) and not re.search(r"[,=]|\b(?:or|and)\b", inner):
        return _without_signs([inner])
    return _solutions(text)


def _solutions(text: str) -> list[str] | None:
    """`x = 1 or x = 2`, `x = 1, 2`, `x_1 = 1, x_2 = 2`, `1 or 2`: several values of one letter."""
    parts = split_outside_brackets(_EITHER.sub(",", text).replace(",,", ","), ",")
    if parts is None or len(parts) < 2 or not all(parts):
        return None
    named = [_ARGUMENT.fullmatch(part) for part in parts]
    letters = {match[1][0] for match in named if match}
    if (
        not letters
        and _EITHER.search(text)
        and "," not in text
        and all(number_literal(part) for part in parts)
    ):
        return parts if re.search(r"\bor\b|或", text) else None
    # x_1 and x_2 are values of one letter; x and y are a point.
    if named[0] is None or len(letters) != 1:
        return None
    return _without_signs(
        [match[2] if match else part for match, part in zip(named, parts, strict=True)]
    )


def _listed_members(text: str) -> list[str] | None:
    """Members without braces: `1, 2 and 3`. No `or`: that would be a hedge."""
    items = list_items(text)
    if items is None or not items or not all(items) or _tuple_items(text) is not None:
        return None
    if plain(text)[:1] == "[" or any(_ARGUMENT.fullmatch(item) for item in items):
        return None
    return _without_signs(items)


def _without_signs(items: list[str]) -> list[str]:
    found: list[str] = []
    for item in items:
        match = _PLUS_MINUS.fullmatch(item.strip())
        if match and len(found) < MAX_ITEMS:
            base = match[1].strip()
            found += [f"{base}+{match[2]}" if base else match[2], f"{base}-{match[2]}"]
        else:
            found.append(item)
    return found


def _distinct(items: list[str]) -> list[str]:
    found: dict[object, str] = {}
    for item in items[: 2 * MAX_ITEMS]:
        literal = number_literal(item)
        # 0.5 and 1/2 are one member.
        found.setdefault(literal.value if literal else plain_words(item), item)
    return list(found.values())


def _nested(
    wanted: list[str], given: list[str], ask: Ask, ordered: bool, depth: int = 0
) -> bool | None:
    """Compare members, those that are tuples or sets themselves by their own rules."""

    def equal(reference: str, answer: str) -> bool | None:
        opening = plain(reference)[:1]
        # The depth is bounded, because a reference is data from anywhere.
        if depth < MAX_DEPTH and is_tuple(reference):
            items = _tuple_items(reference) or [], _tuple_items(answer) or []
            return _nested(*items, ask, ordered=True, depth=depth + 1)
        if depth < MAX_DEPTH and opening in ("[", "{"):
            if plain(answer)[:1] != opening:
                return False
            read = _set_items if opening == "{" else list_items
            items = read(reference) or [], read(answer) or []
            return bool(items[0]) and _nested(*items, ask, ordered=opening == "[", depth=depth + 1)
        return equal_members(reference, answer, ask)

    return all_matched(wanted, given, equal, ordered)
