"""Intervals, inequalities and unions of them: (-1, 2] is -1 < x <= 2.

Ends count as open or closed; infinite ends are open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.rules.kinds.comparison import Ask, all_matched
from rewards.rules.kinds.members import equal_members
from rewards.rules.reading.notation import INNER_TEXT, plain, settle
from rewards.rules.reading.numbers import number_literal

MAX_INTERVAL_CHARS = 200
MAX_PIECES = 6

INFINITY, MINUS_INFINITY = "\\infty", "-\\infty"
_INFINITE = re.compile(r"\\infty|\binf(?:inity)?\b|\boo\b|无穷大?", re.IGNORECASE)
_UNION = re.compile(r"\s?(?:\\cup|\\lor|\\vee|\bor\b|\bunion\b|\bU\b|或者?|并|∨)\s?")
_JOINED = re.compile(r"\s?(?:\\land|\\wedge|\band\b|且|,)\s?")
_BRACKETS = re.compile(r"([(\[])([^()\[\],]{1,60}),([^()\[\],]{1,60})([)\]])")
_RELATION = re.compile(
    r"\s?(\\(?:leqslant|geqslant|leq?|geq?|lt|gt|neq?)(?![a-zA-Z])|<=|>=|!=|=<|=>|<|>)\s?"
)
_LETTER = re.compile(r"[a-zA-Z](?:_\{?\w{1,3}\}?)?|\\(?:theta|alpha|lambda|mu)")
_ABSOLUTE = re.compile(r"(?:\\lvert|\|)\s?([a-zA-Z])\s?(?:\\rvert|\|)")
_MEMBER = re.compile(r"[a-zA-Z]\s?(?:\\in|=)\s?(?=[(\[])|[A-Za-z]\s?\\in\s?")
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
_MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


@dataclass(frozen=True)
class Interval:
    low: str
    high: str
    has_low: bool
    has_high: bool
    letter: str = ""
    """Of an inequality; an interval in brackets names none."""


def is_interval(reference: str, question: str = "") -> bool:
    return read_intervals(reference) is not None


def claims_interval(reference: str, question: str) -> bool:
    """Whether nothing else can be meant, such as (1, 2), a pair, or [1, 2], a list."""
    pieces = read_intervals(reference)
    if pieces is None:
        return False
    # (1, 2) may be a pair and [1, 2] a list; only half-open, infinite or several pieces are sure.
    first = pieces[0]
    is_pair = len(pieces) == 1 and not first.letter and first.has_low == first.has_high
    is_infinite = MINUS_INFINITY in (first.low, first.high) or INFINITY in (first.low, first.high)
    # x is a number, so it can only be a member of an interval.
    is_member = "\\in" in plain(reference) and "\\infty" not in reference
    return not is_pair or is_infinite or is_member or bool(_ASKS.search(question[:4000]))


def is_inequality(text: str) -> bool:
    """Whether the text is an interval written with a letter: 1 < x < 2."""
    pieces = read_intervals(text)
    return pieces is not None and all(piece.letter for piece in pieces)


def equal_intervals(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = read_intervals(reference), read_intervals(answer)
    if wanted is None:
        return False
    if given is None:
        # k^2 < 16 has to be solved first.
        if not _RELATION.search(answer) or len(answer) > MAX_INTERVAL_CHARS:
            return False
        if not ask.may_load:
            return None
        # Inside the function: sympy takes seconds to load, and only workers do.
        from rewards.rules.algebra import solves

        return solves(wanted, answer)
    return all_matched(wanted, given, lambda left, right: _same(left, right, ask), ordered=False)


def read_intervals(text: str) -> list[Interval] | None:
    """The pieces of an interval, an inequality or a union, or None for anything else."""
    text = INNER_TEXT.sub(r" \1 ", plain(text)) if len(text) <= MAX_INTERVAL_CHARS else ""
    # The whole line: it has no ends to be read.
    if _ALL.fullmatch(text):
        return [Interval(MINUS_INFINITY, INFINITY, False, False)]
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[1]
    text = _MEMBER.sub("", text) if "(" in text or "[" in text else text
    if _ALL.fullmatch(text.strip()) or not text:
        return None
    parts = _UNION.split(text)
    found: list[Interval] = []
    for part in parts if len(parts) <= MAX_PIECES else []:
        pieces = _bracketed(part.strip()) or _inequality(part.strip())
        if pieces is None:
            return None
        found += pieces
    return found or None


def _bracketed(text: str) -> list[Interval] | None:
    # Round brackets inside the ends are no brackets of the interval: (-(1), 2).
    inner = text[1:-1].replace("(", "{").replace(")", "}")
    match = _BRACKETS.fullmatch(text[:1] + inner + text[-1:]) if len(text) > 2 else None
    if not match:
        return None
    low, high = _end(match[2]), _end(match[3])
    if low is None or high is None or low == INFINITY or high == MINUS_INFINITY:
        return None
    has_low, has_high = match[1] == "[", match[4] == "]"
    # [∞ does not exist, so whoever wrote it made a mistake that counts.
    if (has_low and low == MINUS_INFINITY) or (has_high and high == INFINITY):
        return None
    bounds = [number_literal(end) for end in (low, high)]
    if bounds[0] and bounds[1] and bounds[0].value > bounds[1].value:
        return None
    return [Interval(low, high, has_low, has_high)]


def _end(text: str) -> str | None:
    """An end without spacing; every spelling of infinity is one."""
    text = text.strip().replace("{", "(").replace("}", ")") if "\\" not in text else text.strip()
    squeezed = _INFINITE.sub(r"\\infty", text).replace(" ", "").removeprefix("+")
    if squeezed in (INFINITY, MINUS_INFINITY):
        return squeezed
    # An end is an expression; three letters in a row are prose.
    words = re.search(r"[A-Za-z]{3,}", re.sub(r"\\[a-z]+|pi|sqrt|log", "", text))
    return text if text and not words else None


def _inequality(text: str) -> list[Interval] | None:
    joined = [_chain(part) for part in _JOINED.split(text)]
    if len(joined) == 1:
        return joined[0]
    if len(joined) != 2 or not joined[0] or not joined[1]:
        return None
    first, second = joined[0][0], joined[1][0]
    if len(joined[0]) != 1 or len(joined[1]) != 1 or first.letter != second.letter:
        return None
    # x > 1 and x < 3: one bounds from below and one from above.
    if first.low == MINUS_INFINITY:
        first, second = second, first
    if first.high != INFINITY or second.low != MINUS_INFINITY or first.low == MINUS_INFINITY:
        return None
    return [Interval(first.low, second.high, first.has_low, second.has_high, first.letter)]


def _chain(text: str) -> list[Interval] | None:
    """`a < x <= b`, `x > a`, `|x| < a`, `x != a` and their mirror images."""
    pieces = [piece.strip() for piece in _RELATION.split(text)]
    if len(pieces) == 3:
        return _one_sided(pieces[0], _sign(pieces[1]), pieces[2])
    if len(pieces) != 5 or not _LETTER.fullmatch(pieces[2]):
        return None
    low, first, second, high = _end(pieces[0]), _sign(pieces[1]), _sign(pieces[3]), _end(pieces[4])
    if first[0] == second[0] == ">":
        low, high, first, second = high, low, second, first
    if low is None or high is None or not (first[0] == second[0] == "<"):
        return None
    has_low = "=" in first and low != MINUS_INFINITY
    return [Interval(low, high, has_low, "=" in second and high != INFINITY, pieces[2])]


def _one_sided(left: str, sign: str, right: str) -> list[Interval] | None:
    if _LETTER.fullmatch(right) or _ABSOLUTE.fullmatch(right):
        left, sign, right = right, _MIRROR[sign], left
    end, absolute = _end(right), _ABSOLUTE.fullmatch(left)
    if absolute and end is not None and number_literal(end) is not None:
        letter, has_end = absolute[1], "=" in sign
        if sign[0] == "<":
            return [Interval(f"-{end}", end, has_end, has_end, letter)]
        below = _half_line(letter, "<=" if has_end else "<", f"-{end}")
        return below + _half_line(letter, sign, end)
    if not _LETTER.fullmatch(left) or end is None or _LETTER.fullmatch(end):
        return None
    return _half_line(left, sign, end)


def _sign(text: str) -> str:
    if text in ("\\ne", "\\neq", "!="):
        return "!="
    side = "<" if "<" in text or "\\l" in text else ">"
    return side + ("=" if "=" in text or "e" in text else "")


def _half_line(letter: str, sign: str, end: str) -> list[Interval]:
    below = Interval(MINUS_INFINITY, end, False, sign == "<=", letter)
    above = Interval(end, INFINITY, sign == ">=", False, letter)
    return [below, above] if sign == "!=" else [below if sign[0] == "<" else above]


def _same(wanted: Interval, given: Interval, ask: Ask) -> bool | None:
    # Whether an end belongs to it is most of what a task on intervals asks.
    if (wanted.has_low, wanted.has_high) != (given.has_low, given.has_high):
        return False
    if wanted.letter and given.letter and wanted.letter != given.letter:
        return False
    infinite = (INFINITY, MINUS_INFINITY)
    ends = ((wanted.low, given.low), (wanted.high, given.high))
    return settle(
        [
            left == right
            if left in infinite or right in infinite
            else equal_members(left, right, ask)
            for left, right in ends
        ]
    )
