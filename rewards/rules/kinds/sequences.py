"""Lists, sets and tuples, compared member by member.

A tuple is ordered, a set is not and counts every member once; a list is ordered where the question
asks for an order (largest first, left to right) or for different things, and not where it asks for
all of something.
Round brackets make a tuple, braces a set; square ones, or commas alone, a list.
"""

import re

from rewards.rules.kinds.comparison import Ask, all_matched, split_outside_brackets
from rewards.rules.kinds.intervals import equal_intervals, read_intervals
from rewards.rules.kinds.matrices import equal_matrices, read_matrix
from rewards.rules.kinds.members import equal_members
from rewards.rules.reading.notation import opened, plain, plain_words
from rewards.rules.reading.numbers import number_literal
from rewards.rules.reading.wording import any_of, pattern_of

MAX_ITEMS = 32
MAX_ITEM_WORDS = 8
MAX_DEPTH = 3

_SET_BRACES = re.compile(r"(?s)\\?\{(.*?)\\?\}")
_ANGLES = re.compile(r"(?s)(?:\\langle|<|⟨)(.*)(?:\\rangle|>|⟩)")
_EMPTY_SET = re.compile(
    rf"(?i)\\emptyset|\\varnothing|\\?\{{\s{{0,3}}\\?\}}|{any_of('no_members')}"
)
_WIDE = str.maketrans({"，": ",", "、": ",", "；": ";"})
_BULLET = re.compile(r"(?:^|\n)[ \t]{0,3}(?:[-*•]|\(?[0-9]{1,2}[.)、])[ \t]{1,3}(?=\S)")
_AND = re.compile(
    r"\s?,?\s(?:and|then|followed by)\s|\s?[;；]\s?|\s?、\s?|\s?(?:→|->|\\to(?![a-z])"
    r"|\\rightarrow)\s?|\s?[和与及]\s?"
)
_COMMA = re.compile(r"[,;，；、\[\n→]|->|\\text\{ ?and ?\}|(?<=[0-9}$]) and (?=[0-9\\$])")
_EITHER = re.compile(r"\s?,?\s(?:or|and)\s|\s?(?:或者?|和)\s?")
_ARGUMENT = re.compile(r"(?s)([a-zA-Z](?:_\{?\w{1,3}\}?)?)\s?(?:=|\\in)\s?(.+)")
_NAMED_VALUE = re.compile(
    r"(?is)(?:the )?([a-z](?:[a-z ]{0,24}[a-z])?(?:_\{?\w{1,3}\}?)?)"
    r"(?:\s?[=:]\s?|\s(?:is|equals)\s)(.+)"
)
_NAMES = re.compile(r"\(([a-z][a-z_0-9 ]{0,24}(?:,\s?[a-z][a-z_0-9 ]{0,24}){1,8})\)")
_NAMED_TUPLE = re.compile(r"(?s)(\([^()=0-9]{1,30}\)|[A-Za-z]{1,2})\s?=\s?(\(.*\))")
_PLUS_MINUS = re.compile(r"(.*?)(?:\\pm|±|\+/-|\+-)\s?(.+)")
_CHAIN = re.compile(r"[^<>=,]{1,20}(?:<[^<>=,]{1,20}){1,31}")
_ANY_ORDER, _ORDERED, _ALL_OF = map(pattern_of, ("any_order", "ordered", "all_of"))
_PLURAL = re.compile(r"(?i)\b(?:which|what|name|list)\b(?: \w+){0,3}? \w{2,}s\b")


def is_tuple(reference: str, question: str = "") -> bool:
    return 1 < len(_tuple_items(reference) or ()) <= MAX_ITEMS


def is_set(reference: str, question: str = "") -> bool:
    return bool(_EMPTY_SET.fullmatch(plain(reference))) or _set_items(reference) is not None


def claims_set(reference: str, question: str) -> bool:
    """A word such as "none" is the empty set only to those who ask for values."""
    return is_set(reference) and plain(reference).casefold() != "none"


def is_items(reference: str, question: str = "") -> bool:
    """Whether a reference can be read as a list once a task says that it is one."""
    items = list_items(reference) or []
    return 0 < len(items) <= MAX_ITEMS and all(items)


def is_list(reference: str, question: str = "") -> bool:
    """Several short items with commas or brackets; no sentence, and no "rock and roll"."""
    items = list_items(reference) if is_items(reference) else None
    has_comma = _COMMA.search(plain(reference)) or _COMMA.search(reference)
    if not items or len(items) < 2 or not has_comma or number_literal(reference) is not None:
        return False
    return all(len(item.split()) <= MAX_ITEM_WORDS for item in items)


def claims_unordered(reference: str, question: str) -> bool:
    """Whether a reference is a list, and the order of its items has no meaning for the question."""
    # "Which countries ..." wants a set; "the mean and the median" names an order.
    is_plural = _PLURAL.search(question) and " and " not in question
    is_free = not _ORDERED.search(question) and (_ALL_OF.search(question) or is_plural)
    return is_list(reference) and bool(_ANY_ORDER.search(question) or is_free)


def equal_tuples(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = _tuple_items(reference) or [], _tuple_items(answer)
    if given is None and (rows := read_matrix(answer)) and 1 in (len(rows), len(rows[0])):
        # A vector may be written as a column or as a row.
        column = r"\\".join(wanted)
        return equal_matrices(rf"\begin{{pmatrix}}{column}\end{{pmatrix}}", answer, ask)
    given = given or _assigned_items(answer, len(wanted), ask.question) or []
    return _nested(wanted, given, ask, ordered=True)


def equal_sets(reference: str, answer: str, ask: Ask) -> bool | None:
    is_empty = [_EMPTY_SET.fullmatch(plain(text)) is not None for text in (reference, answer)]
    if any(is_empty):
        return all(is_empty)
    given = _set_items(answer) or _listed_members(answer) or []
    return _nested(_distinct(_set_items(reference) or []), _distinct(given), ask, ordered=False)


def equal_lists(reference: str, answer: str, ask: Ask) -> bool | None:
    """As lists; as intervals where [1, 2] meets 1 <= x <= 2."""
    pieces = read_intervals(answer) or []
    if pieces and all(piece.letter for piece in pieces) and read_intervals(reference):
        return equal_intervals(reference, answer, ask)
    wanted, given = list_items(reference) or [], _answer_items(reference, answer)
    if any("=" in item for item in wanted):
        # "x = 2, y = 3" is ordered by its letters, however it is written.
        named = [_assigned_items(text, len(wanted), ask.question) for text in (reference, answer)]
        wanted, given = named[0] or wanted, named[1] or given
    return _nested(wanted, given, ask, ordered=True)


def equal_unordered(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = list_items(reference) or [], _answer_items(reference, answer)
    if len(given) != len(wanted):
        given = _set_items(answer) or _listed_members(answer) or given
    wanted, given = (_without_signs(_unnamed(items) or items) for items in (wanted, given))
    return _nested(wanted, given, ask, ordered=False)


def list_items(text: str) -> list[str] | None:
    """The items of a list in any of its forms; None where brackets do not match."""
    first, *bullets = _BULLET.split(text.strip())
    if len(bullets) > 1 and not first.strip():
        return [plain(item) for item in bullets]
    if "\n" in text.strip() and "," not in text:
        return [plain(line) for line in text.strip().splitlines() if line.strip()]
    text = " ".join(opened(text.translate(_WIDE)).split())
    if len(text) > 1 and text[0] + text[-1] == "[]" and split_outside_brackets(text, ",") == [text]:
        text = text[1:-1]
    # "1 < 2 < 3" shows the sorted list that was asked for.
    chain = re.sub(r"\\lt(?![a-z])", "<", text)
    if _CHAIN.fullmatch(chain) and not re.search(r"[a-z]", chain):
        text = chain.replace("<", ",")
    items = split_outside_brackets(_AND.sub(",", text).replace(",,", ","), ",")
    if items is None or not any(items):
        return items and []
    items = [re.sub("^and ", "", item.strip(), flags=re.IGNORECASE) for item in items]
    # Python writes its strings in quotes.
    return [re.sub(r"^(['\"])(.+)\1$", r"\2", item) for item in items]


def _unnamed(items: list[str]) -> list[str] | None:
    """`n = 2`, 3, 4 as 2, 3, 4: the letter in front stands for all of them. None for other items.

    x_1 and x_2 are values of one letter; x and y are a point.
    """
    named = [_ARGUMENT.fullmatch(item) for item in items]
    if len({match[1][0] for match in named if match}) != 1 or not named[0]:
        return None
    return [match[2] if match else item for match, item in zip(named, items, strict=True)]


def _answer_items(reference: str, answer: str) -> list[str]:
    """None of an answer in brackets of another kind, which is another thing: [1, 2], not (1, 2)."""
    inner = _tuple_items(answer)
    if plain(reference)[:1] == "[" and (inner or _SET_BRACES.fullmatch(plain(answer))):
        return []
    return inner or list_items(answer) or []


def _tuple_items(text: str) -> list[str] | None:
    text = plain(text)
    named = _ARGUMENT.fullmatch(text) or _NAMED_TUPLE.fullmatch(text)
    text = named[2].strip() if named else text
    if angles := _ANGLES.fullmatch(text):
        return split_outside_brackets(angles[1], ",")
    if text[:1] + text[-1:] != "()" or split_outside_brackets(text, ",") != [text]:
        return None
    items = split_outside_brackets(text[1:-1], ",")
    return items if items and len(items) > 1 and all(items) else None


def _assigned_items(text: str, count: int, question: str) -> list[str] | None:
    """`x = 1, y = 2` and `x is 1 and y is 2` as (1, 2); or bare values with commas.

    The order is that of the question, of the letters where it names none.
    """
    items = split_outside_brackets(_AND.sub(",", opened(text)), ",") if " or " not in text else None
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
    asked = (re.split(r",\s?", names) for names in _NAMES.findall(plain(question).casefold()))
    order = next((names for names in asked if set(names) == set(values)), letters)
    return [values[name] for name in order] if len(order) == count else None


def _set_items(text: str) -> list[str] | None:
    """The members of `{...}`, of `±2`, or of `x = 1 or x = 2`."""
    text = opened(text)
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
    # `x = 1 or x = 2`, `x = 1, 2`, `x_1 = 1, x_2 = 2`: several values of one letter.
    parts = split_outside_brackets(_EITHER.sub(",", text).replace(",,", ","), ",") or []
    if len(parts) > 1 and all(parts) and (unnamed := _unnamed(parts)):
        return _without_signs(unnamed)
    is_choice = re.search(r"\bor\b|或", text) and not re.search("[,=]", text)
    return parts if is_choice and all(number_literal(part) for part in parts) else None


def _listed_members(text: str) -> list[str] | None:
    """Members without braces: `1, 2 and 3`. No `or`: that would be a hedge."""
    items = list_items(text) or [""]
    is_bare = all(item and not _ARGUMENT.fullmatch(item) for item in items)
    is_other = _tuple_items(text) or plain(text)[:1] == "["
    return _without_signs(items) if is_bare and not is_other else None


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
        opening, is_pair = plain(reference)[:1], is_tuple(reference)
        # The depth is bounded, because a reference is data from anywhere.
        if depth == MAX_DEPTH or not (is_pair or opening in ("[", "{")):
            return equal_members(reference, answer, ask)
        read = _tuple_items if is_pair else _set_items if opening == "{" else list_items
        items = read(reference) or [], read(answer) or []
        is_alike = bool(items[0]) and (is_pair or plain(answer)[:1] == opening)
        return is_alike and _nested(*items, ask, ordered=opening != "{", depth=depth + 1)

    return all_matched(wanted, given, equal, ordered)
