"""Intervals, inequalities and unions of them: (-1, 2] is -1 < x <= 2.

Ends count as open or closed; infinite ends are open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.rules.kinds.elements import Equal, all_matched
from rewards.rules.reading.notation import plain, settle
from rewards.rules.reading.number_literals import number_literal

MAX_INTERVAL_CHARS = 200
MAX_PIECES = 6

_INFINITY, _MINUS_INFINITY = "\\infty", "-\\infty"
_INFINITE = re.compile(r"\\infty|\binf(?:inity)?\b|\boo\b|无穷大?", re.IGNORECASE)
_UNION = re.compile(
    r"\s?(?:\\cup|\\lor|\\vee|\bor\b|\\text\s?\{\s?or\s?\}|\bunion\b|\bU\b|或者?|并|∨)\s?"
)
_JOINED = re.compile(r"\s?(?:\\land|\\wedge|\band\b|\\text\s?\{\s?and\s?\}|且|,)\s?")
_BRACKETS = re.compile(r"([(\[])([^()\[\],]{1,60}),([^()\[\],]{1,60})([)\]])")
_RELATION = re.compile(
    r"\s?(\\(?:leqslant|geqslant|leq?|geq?|lt|gt|neq?)(?![a-zA-Z])|<=|>=|!=|=<|=>|<|>)\s?"
)
_LETTER = re.compile(r"[a-zA-Z]|\\(?:theta|alpha|lambda)")
_MEMBER = re.compile(r"[a-zA-Z]\s?\\in\s?")
_SET_BUILDER = re.compile(
    r"\\?\{\s?[a-zA-Z]\s?(?:\\in\s?(?:\\mathbb\s?\{?R\}?|R|ℝ)\s?)?(?:\||:|\\mid)\s?(.+?)\\?\}"
)
_ALL = re.compile(
    r"\\mathbb\s?\{?R\}?|ℝ|R|all real numbers|all reals|全体实数|所有实数|实数集?|一切实数", re.I
)
_ASKS = re.compile(
    r"\binterval|\binequalit|\bdomain\b|\brange of\b|区间|不等式|定义域|值域|取值范围"
    r"|[<>≤≥]|\\[lg]eq?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Interval:
    low: str
    high: str
    has_low: bool
    has_high: bool
    letter: str = ""
    """Of an inequality; an interval in brackets names none."""


def asks_for_interval(question: str) -> bool:
    """Whether a question makes (1, 2) an interval and not a pair."""
    return bool(_ASKS.search(question[:4000]))


def is_interval(reference: str) -> bool:
    return read_intervals(reference) is not None


def is_surely_interval(reference: str) -> bool:
    """Whether nothing else can be meant: not (1, 2), a pair, nor [1, 2], a list."""
    pieces = read_intervals(reference)
    if pieces is None:
        return False
    one = pieces[0]
    is_pair = len(pieces) == 1 and not one.letter and one.has_low == one.has_high
    return not is_pair or _MINUS_INFINITY in (one.low, one.high) or _INFINITY in (one.low, one.high)


def is_inequality(text: str) -> bool:
    """Whether the text is an interval written with a letter: 1 < x < 2."""
    pieces = read_intervals(text)
    return pieces is not None and all(piece.letter for piece in pieces)


def compare_intervals(reference: str, answer: str, equal: Equal) -> bool | None:
    wanted, given = read_intervals(reference), read_intervals(answer)
    if wanted is None or given is None:
        return False
    return all_matched(wanted, given, lambda one, other: _same_interval(one, other, equal))


def read_intervals(text: str) -> list[Interval] | None:
    """The pieces of an interval, an inequality or a union, or None for anything else."""
    text = plain(text) if len(text) <= MAX_INTERVAL_CHARS else ""
    if _ALL.fullmatch(text):
        return [Interval(_MINUS_INFINITY, _INFINITY, False, False)]
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[1]
    text = _MEMBER.sub("", text) if "(" in text or "[" in text else text
    if _ALL.fullmatch(text.strip()) or not text:
        return None
    found: list[Interval] = []
    parts = [part for part in _UNION.split(text) if part is not None]
    if not parts or len(parts) > MAX_PIECES:
        return None
    for part in parts:
        pieces = _bracketed(part.strip()) or _inequality(part.strip())
        if pieces is None:
            return None
        found += pieces
    return found


def _bracketed(text: str) -> list[Interval] | None:
    match = _BRACKETS.fullmatch(_balanced(text))
    if not match:
        return None
    low, high = _end(match[2]), _end(match[3])
    if low is None or high is None or low == _INFINITY or high == _MINUS_INFINITY:
        return None
    has_low, has_high = match[1] == "[", match[4] == "]"
    if (has_low and low == _MINUS_INFINITY) or (has_high and high == _INFINITY):
        return None
    bounds = [number_literal(end) for end in (low, high)]
    if bounds[0] and bounds[1] and bounds[0].value > bounds[1].value:
        return None
    return [Interval(low, high, has_low, has_high)]


def _balanced(text: str) -> str:
    """Round brackets inside the ends are no brackets of the interval: (-(1), 2)."""
    return (
        text
        if len(text) < 2
        else text[0] + text[1:-1].replace("(", "{").replace(")", "}") + text[-1]
    )


def _end(text: str) -> str | None:
    """An end without spacing; every spelling of infinity is one."""
    text = text.strip().replace("{", "(").replace("}", ")") if "\\" not in text else text.strip()
    squeezed = _INFINITE.sub(r"\\infty", text).replace(" ", "").removeprefix("+")
    if squeezed in (_INFINITY, _MINUS_INFINITY):
        return squeezed
    return (
        text
        if text and not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[a-z]+|pi|sqrt|log", "", text))
        else None
    )


def _inequality(text: str) -> list[Interval] | None:
    joined = [_chain(part) for part in _JOINED.split(text)]
    if len(joined) == 2 and joined[0] and joined[1]:
        one, other = joined[0][0], joined[1][0]
        if len(joined[0]) != 1 or len(joined[1]) != 1 or one.letter != other.letter:
            return None
        return _intersected(one, other)
    return joined[0] if len(joined) == 1 else None


def _intersected(one: Interval, other: Interval) -> list[Interval] | None:
    """x > 1 and x < 3: one bounds from below and one from above."""
    if one.low == _MINUS_INFINITY:
        one, other = other, one
    if one.high != _INFINITY or other.low != _MINUS_INFINITY or one.low == _MINUS_INFINITY:
        return None
    return [Interval(one.low, other.high, one.has_low, other.has_high, one.letter)]


def _chain(text: str) -> list[Interval] | None:
    """`a < x <= b`, `x > a`, `x != a` and their mirror images."""
    pieces = [piece.strip() for piece in _RELATION.split(text)]
    if len(pieces) == 3:
        left, sign, right = pieces[0], _sign(pieces[1]), pieces[2]
        if _LETTER.fullmatch(left):
            return _half_line(left, sign, _end(right))
        return _half_line(right, _MIRROR[sign], _end(left)) if _LETTER.fullmatch(right) else None
    return _between(pieces) if len(pieces) == 5 and _LETTER.fullmatch(pieces[2]) else None


def _between(pieces: list[str]) -> list[Interval] | None:
    """`a < x < b` in its five pieces."""
    letter, first, second = pieces[2], _sign(pieces[1]), _sign(pieces[3])
    low, high = _end(pieces[0]), _end(pieces[4])
    if first[0] == ">" and second[0] == ">":
        low, high, first, second = high, low, second, first
    elif not (first[0] == "<" and second[0] == "<"):
        return None
    if low is None or high is None:
        return None
    has_low = first == "<=" and low != _MINUS_INFINITY
    return [Interval(low, high, has_low, second == "<=" and high != _INFINITY, letter)]


_MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def _sign(text: str) -> str:
    if text in ("\\ne", "\\neq", "!="):
        return "!="
    side = "<" if "<" in text or "\\l" in text else ">"
    return side + ("=" if "=" in text or "e" in text else "")


def _half_line(letter: str, sign: str, end: str | None) -> list[Interval] | None:
    if end is None or _LETTER.fullmatch(end):
        return None
    if sign == "!=":
        return [
            Interval(_MINUS_INFINITY, end, False, False, letter),
            Interval(end, _INFINITY, False, False, letter),
        ]
    if sign[0] == "<":
        return [Interval(_MINUS_INFINITY, end, False, sign == "<=", letter)]
    return [Interval(end, _INFINITY, sign == ">=", False, letter)]


def _same_interval(wanted: Interval, given: Interval, equal: Equal) -> bool | None:
    if (wanted.has_low, wanted.has_high) != (given.has_low, given.has_high):
        return False
    if wanted.letter and given.letter and wanted.letter != given.letter:
        return False
    return settle(
        [_same_end(wanted.low, given.low, equal), _same_end(wanted.high, given.high, equal)]
    )


def _same_end(wanted: str, given: str, equal: Equal) -> bool | None:
    infinite = (_INFINITY, _MINUS_INFINITY)
    return wanted == given if wanted in infinite or given in infinite else equal(wanted, given)
