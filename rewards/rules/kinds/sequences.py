"""Lists, sets and tuples, compared element by element.

A tuple and a list are ordered, a set and an unordered list are not, and a set counts every element
once. Round brackets make a tuple, braces a set; square ones, or commas alone, a list.
"""

from __future__ import annotations

import re

from rewards.rules.kinds.elements import Equal, all_equal, all_matched, split_outside_brackets
from rewards.rules.reading.notation import plain, plain_words
from rewards.rules.reading.number_literals import number_literal

MAX_ITEMS = 32
MAX_ITEM_WORDS = 8
MAX_LIST_CHARS = 600
MAX_DEPTH = 3

_SET_BRACES = re.compile(r"\\?\{(.*?)\\?\}", re.DOTALL)
_ANGLES = re.compile(r"(?:\\langle|<|⟨)(.*)(?:\\rangle|>|⟩)", re.DOTALL)
_EMPTY_SET = re.compile(
    r"\\emptyset|\\varnothing|\\?\{\s{0,3}\\?\}|(?:the )?empty(?: set)?"
    r"|no (?:real )?solutions?(?: exists?)?|空集|无解",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:^|\n)[ \t]{0,3}(?:[-*•]|\(?[0-9]{1,2}[.)、])[ \t]{1,3}(?=\S)")
_AND = re.compile(
    r"\s?,?\s(?:and|then|followed by)\s|\s?[;；]\s?|\s?、\s?|\s?(?:→|->)\s?|\s?[和与及]\s?"
)
_COMMA = re.compile(r"[,;，；、\[\n→]|->")
_EITHER = re.compile(r"\s(?:or|and)\s|\s?(?:\\text\s?\{\s?(?:or|and)\s?\})\s?|\s?(?:或者?|和)\s?")
_ARGUMENT = re.compile(r"([a-zA-Z](?:_\{?\w{1,3}\}?)?)\s?(?:=|\\in)\s?(.+)", re.DOTALL)
_NAMED_VALUE = re.compile(
    r"(?:the )?([a-z](?:[a-z ]{0,24}[a-z])?(?:_\{?\w{1,3}\}?)?)"
    r"(?:\s?[=:]\s?|\s(?:is|equals)\s)(.+)",
    re.IGNORECASE | re.DOTALL,
)
_NAMES = re.compile(r"\(([a-z][a-z_0-9 ]{0,24}(?:,\s?[a-z][a-z_0-9 ]{0,24}){1,8})\)")
_NAMED_TUPLE = re.compile(r"(\([^()=0-9]{1,30}\))\s?=\s?(\(.*\))", re.DOTALL)
_PLUS_MINUS = re.compile(r"(.*?)(?:\\pm|±|\+/-|\+-)\s?(.+)")
_ANY_ORDER = re.compile(
    r"any order|regardless of (?:the )?order"
    r"|order (?:does not|doesn't|is not|isn't) (?:matter|important)"
    r"|in no particular order|unordered|顺序不限|任意顺序|不分(?:先后)?顺序|不计顺序|不考虑顺序"
    r"|\b(?:all|both)\b[^.?]{0,40}\b(?:solutions|roots|zeros|factors|divisors)\b"
    r"|\b(?:solutions|roots|zeros) of\b|select all|choose all|所有(?:的)?(?:解|根|因数|约数)",
    re.IGNORECASE,
)


def is_any_order(question: str) -> bool:
    """Whether a question says that the order of the items carries no meaning."""
    return bool(_ANY_ORDER.search(question[:4000]))


def is_tuple(reference: str) -> bool:
    items = _tuple_items(reference)
    return items is not None and 1 < len(items) <= MAX_ITEMS


def is_set(reference: str) -> bool:
    return _EMPTY_SET.fullmatch(plain(reference)) is not None or _set_items(reference) is not None


def is_list(reference: str) -> bool:
    """Several short items with commas or brackets; no sentence."""
    items = list_items(reference)
    if items is None or not 1 < len(items) <= MAX_ITEMS or number_literal(reference) is not None:
        return False
    # "rock and roll" is no list.
    if not _COMMA.search(reference):
        return False
    return all(items) and all(len(item.split()) <= MAX_ITEM_WORDS for item in items)


def is_items(reference: str) -> bool:
    """Whether a reference can be read as a list once a task says that it is one."""
    items = list_items(reference)
    return items is not None and 0 < len(items) <= MAX_ITEMS and all(items)


def compare_tuples(reference: str, answer: str, equal: Equal, question: str = "") -> bool | None:
    """`question`: in which order it wants what the answer names ("find (x, y)")."""
    wanted, given = _tuple_items(reference), _tuple_items(answer)
    if wanted is None:
        return False
    if given is None:
        given = _assigned_items(answer, len(wanted), question)
    if given is None:
        return False
    return all_equal(wanted, given, _nested(equal))


def compare_sets(reference: str, answer: str, equal: Equal) -> bool | None:
    is_empty = [_EMPTY_SET.fullmatch(plain(text)) is not None for text in (reference, answer)]
    if any(is_empty):
        return all(is_empty)
    wanted, given = _set_items(reference), _set_items(answer)
    if given is None:
        given = _listed_elements(answer)
    if wanted is None or given is None:
        return False
    return all_matched(_distinct(wanted), _distinct(given), _nested(equal))


def compare_lists(reference: str, answer: str, equal: Equal) -> bool | None:
    wanted, given = list_items(reference), _answer_items(reference, answer)
    if wanted is None or given is None:
        return False
    return all_equal(wanted, given, _nested(equal))


def compare_unordered(reference: str, answer: str, equal: Equal) -> bool | None:
    wanted, given = list_items(reference), _answer_items(reference, answer)
    if wanted is None:
        return False
    if given is None or len(given) != len(wanted):
        given = _set_items(answer) or _listed_elements(answer) or given
    if given is None:
        return False
    return all_matched(wanted, given, _nested(equal))


def list_items(text: str) -> list[str] | None:
    """The items of a list in any of its forms; None where brackets do not match."""
    if len(text) > MAX_LIST_CHARS:
        return None
    bullets = _BULLET.split(text.strip())
    if len(bullets) > 2 and not bullets[0].strip():
        return [plain(item) for item in bullets[1:]]
    if "\n" in text.strip() and "," not in text:
        return [plain(line) for line in text.strip().splitlines() if line.strip()]
    text = plain(text.strip().translate(_WIDE))
    if len(text) > 1 and text[0] + text[-1] == "[]" and split_outside_brackets(text, ",") == [text]:
        text = text[1:-1]
    items = split_outside_brackets(_AND.sub(",", text).replace(",,", ","), ",")
    if items is None:
        return None
    return [_unquoted(item) for item in items] if any(items) else []


_WIDE = str.maketrans({"，": ",", "、": ",", "；": ";"})


def _unquoted(item: str) -> str:
    item = item.strip()
    if item.casefold().startswith("and "):
        item = item[4:]
    return item[1:-1] if len(item) > 2 and item[0] == item[-1] and item[0] in "'\"" else item


def _answer_items(reference: str, answer: str) -> list[str] | None:
    """An answer in brackets of another kind is another thing: [1, 2] is not (1, 2)."""
    given = plain(answer) if len(answer) <= MAX_LIST_CHARS else ""
    is_other = _tuple_items(answer) is not None or _SET_BRACES.fullmatch(given) is not None
    if given and is_other and plain(reference)[:1] == "[":
        return None
    if given and is_other and (inner := _tuple_items(answer)):
        return inner
    return list_items(answer)


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
    items = split_outside_brackets(_AND.sub(",", plain(text)), ",")
    if items is None or len(items) != count:
        return None
    named = [_NAMED_VALUE.fullmatch(item) for item in items]
    if not any(named):
        return items if all(number_literal(item) is not None for item in items) else None
    values = {match[1].casefold(): match[2] for match in named if match}
    if len(values) != count:
        return None
    letters = sorted(set(values) & set("abcmnpqrstuvwxyz"))
    order = next((names for names in _asked_names(question) if set(names) == set(values)), letters)
    return [values[name] for name in order] if len(order) == count else None


def _asked_names(question: str) -> list[list[str]]:
    """The tuples of names in a question: "give (mean, variance)"."""
    tuples = _NAMES.findall(plain(question[:4000]).casefold())
    return [[name.strip() for name in names.split(",")] for names in tuples]


def _set_items(text: str) -> list[str] | None:
    """The elements of `{...}`, of `±2`, or of `x = 1 or x = 2`."""
    text = plain(text) if len(text) <= MAX_LIST_CHARS else ""
    named = _ARGUMENT.fullmatch(text)
    inner = named[2].strip() if named else text
    if inner.startswith(("{", "\\{")) and (braces := _SET_BRACES.fullmatch(inner)):
        items = split_outside_brackets(braces[1].replace(r"\{", "{").replace(r"\}", "}"), ",;")
        if items is None or not all(items) or any("|" in item for item in items):
            return None
        return _without_signs(items)
    if _PLUS_MINUS.fullmatch(inner) and not re.search(r"[,=]|\b(?:or|and)\b", inner):
        return _without_signs([inner])
    return _solutions(text)


def _solutions(text: str) -> list[str] | None:
    """`x = 1 or x = 2`, `x = 1, 2`, `x_1 = 1, x_2 = 2`: one letter, several values."""
    parts = split_outside_brackets(_EITHER.sub(",", text).replace(",,", ","), ",")
    if parts is None or len(parts) < 2 or not all(parts):
        return None
    named = [_ARGUMENT.fullmatch(part) for part in parts]
    letters = {match[1][0] for match in named if match}
    if named[0] is None or len(letters) != 1:
        return None
    return _without_signs(
        [match[2] if match else part for match, part in zip(named, parts, strict=True)]
    )


def _listed_elements(text: str) -> list[str] | None:
    """Elements without braces: `1, 2 and 3`. No `or`: that would be a hedge."""
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
        found.setdefault(literal.value if literal else plain_words(item), item)
    return list(found.values())


def _nested(equal: Equal, depth: int = 0) -> Equal:
    """Compare elements that are tuples or sets themselves by their own rules."""

    def compare(reference: str, answer: str) -> bool | None:
        if depth < MAX_DEPTH and is_tuple(reference):
            return all_equal(
                _tuple_items(reference) or [], _tuple_items(answer) or [], _nested(equal, depth + 1)
            )
        if depth < MAX_DEPTH and plain(reference)[:1] in ("[", "{"):
            if plain(answer)[:1] != plain(reference)[:1]:
                return False
            is_set_like = plain(reference)[:1] == "{"
            wanted, given = (
                (_set_items if is_set_like else list_items)(text) or []
                for text in (reference, answer)
            )
            match = all_matched if is_set_like else all_equal
            return match(wanted, given, _nested(equal, depth + 1)) if wanted else False
        return equal(reference, answer)

    return compare
