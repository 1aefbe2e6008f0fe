"""Intervals, inequalities and unions of them: (-1, 2] is -1 < x <= 2.

Ends count as open or closed; infinite ends are open.
"""

import re
from dataclasses import dataclass

from rewards.rules.kinds.comparison import Ask, all_matched
from rewards.rules.kinds.members import equal_members
from rewards.rules.reading.notation import opened, plain, settle
from rewards.rules.reading.numbers import number_literal
from rewards.rules.reading.wording import pattern_of

MAX_SOLVED_CHARS = 200
MAX_PIECES = 6

INFINITY, MINUS_INFINITY = "\\infty", "-\\infty"
_INFINITE = re.compile(r"(?i)\\infty|\binf(?:inity)?\b|\boo\b|无穷大?")
_UNION = re.compile(r"\s?(?:\\cup|\\lor|\\vee|\bor\b|\bunion\b|\bU\b|或者?|并|∨)\s?")
_JOINED = re.compile(r"\s?(?:\\land|\\wedge|\band\b|且|,)\s?")
_BRACKETS = re.compile(r"([(\[])([^()\[\],]{1,60}),([^()\[\],]{1,60})([)\]])")
_RELATION = re.compile(
    r"\s?(\\(?:leqslant|geqslant|leq?|geq?|lt|gt|neq?)(?![a-zA-Z])|<=|>=|!=|=<|=>|<|>)\s?"
)
_LETTER = re.compile(r"[a-zA-Z](?:_\{?\w{1,3}\}?)?|\\(?:theta|alpha|lambda|mu)")
_ABSOLUTE = re.compile(r"(?:\\lvert|\|)\s?([a-zA-Z])\s?(?:\\rvert|\|)")
_MEMBER = re.compile(r"[a-zA-Z]\s?(?:\\in|=)\s?(?=[(\[])|[A-Za-z]\s?\\in\s?")
_REALS = r"(?:\\mathbb\s?\{?R\}?|ℝ|R)"
_SET_BUILDER = re.compile(
    rf"\\?\{{\s?[a-zA-Z]\s?(?:\\in\s?{_REALS}\s?)?(?:\||:|\\mid)\s?(.+?)\\?\}}"
)
_ALL = re.compile(rf"(?i){_REALS}|all real numbers|all reals|全体实数|所有实数|实数集?|一切实数")
_ASKS = pattern_of("asks_interval")
_MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


@dataclass(frozen=True)
class Interval:
    low: str
    high: str
    has_low: bool
    has_high: bool
    letter: str = ""
    """Of an inequality; an interval in brackets names none."""


def claims_interval(reference: str, question: str) -> bool:
    """Whether nothing else can be meant, such as (1, 2), a pair, or [1, 2], a list."""
    pieces = read_intervals(reference)
    if pieces is None:
        return False
    first = pieces[0]
    is_pair = len(pieces) == 1 and not first.letter and first.has_low == first.has_high
    is_infinite = {first.low, first.high} & {INFINITY, MINUS_INFINITY}
    # x is a number, so it can only be a member of an interval.
    is_member = "\\in" in plain(reference) and "\\infty" not in reference
    return not is_pair or bool(is_infinite or is_member or _ASKS.search(question))


def equal_intervals(reference: str, answer: str, ask: Ask) -> bool | None:
    wanted, given = read_intervals(reference) or [], read_intervals(answer)
    if given is None:
        # k^2 < 16 has to be solved first.
        if not _RELATION.search(answer) or len(answer) > MAX_SOLVED_CHARS:
            return False
        if not ask.may_load:
            return None
        # Inside the function: sympy takes seconds to load, and only workers do.
        from rewards.rules.algebra import solves

        return solves(wanted, answer)
    return all_matched(wanted, given, lambda left, right: _same(left, right, ask), ordered=False)


def read_intervals(text: str) -> list[Interval] | None:
    """The pieces of an interval, an inequality or a union, or None for anything else."""
    text = opened(text)
    # The whole line: it has no ends to be read.
    if _ALL.fullmatch(text):
        return [Interval(MINUS_INFINITY, INFINITY, False, False)]
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[1]
    text = _MEMBER.sub("", text) if "(" in text or "[" in text else text
    if _ALL.fullmatch(text.strip()) or not text:
        return None
    parts = _UNION.split(text)
    pieces = [_bracketed(part.strip()) or _inequality(part.strip()) for part in parts[:MAX_PIECES]]
    is_read = all(pieces) and len(parts) == len(pieces)
    return [piece for part in pieces for piece in part or []] if is_read else None


def _bracketed(text: str) -> list[Interval] | None:
    # Round brackets inside the ends are no brackets of the interval: (-(1), 2).
    inner = text[1:-1].replace("(", "{").replace(")", "}")
    match = _BRACKETS.fullmatch(text[:1] + inner + text[-1:])
    low, high = (_end(match[2]), _end(match[3])) if match else (None, None)
    if not match or not low or not high or low == INFINITY or high == MINUS_INFINITY:
        return None
    has_low, has_high = match[1] == "[", match[4] == "]"
    # [∞ does not exist, so whoever wrote it made a mistake that counts.
    is_wrong = (has_low and low == MINUS_INFINITY) or (has_high and high == INFINITY)
    ends = number_literal(low), number_literal(high)
    is_reversed = ends[0] and ends[1] and ends[0].value > ends[1].value
    return None if is_wrong or is_reversed else [Interval(low, high, has_low, has_high)]


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
    """`a < x <= b`, `x > a and x < b`, `|x| < a`, `x != a` and their mirror images."""
    bounds: list[list[Interval]] = []
    for part in _JOINED.split(text):
        pieces = [piece.strip() for piece in _RELATION.split(part)]
        if len(pieces) == 3:
            bounds.append(_one_sided(pieces[0], _sign(pieces[1]), pieces[2]))
        elif len(pieces) == 5 and _LETTER.fullmatch(pieces[2]):
            low, first, letter, second, high = pieces
            for sign, end in ((_MIRROR[_sign(first)], _end(low)), (_sign(second), _end(high))):
                bounds.append(_half_line(letter, sign, end) if end else [])
        else:
            return None
    if len(bounds) == 1:
        return bounds[0] or None
    if len(bounds) != 2 or any(len(bound) != 1 for bound in bounds):
        return None
    # One bounds from below and one from above.
    above, below = sorted(
        (piece for (piece,) in bounds), key=lambda piece: piece.low == MINUS_INFINITY
    )
    is_between = below.low == MINUS_INFINITY and above.high == INFINITY
    if not is_between or above.letter != below.letter:
        return None
    return [Interval(above.low, below.high, above.has_low, below.has_high, above.letter)]


def _one_sided(left: str, sign: str, right: str) -> list[Interval]:
    """The half-lines of one relation; none if it says nothing of a letter."""
    if _LETTER.fullmatch(right) or _ABSOLUTE.fullmatch(right):
        left, sign, right = right, _MIRROR[sign], left
    end, absolute = _end(right), _ABSOLUTE.fullmatch(left)
    if absolute and end is not None and number_literal(end) is not None:
        letter, has_end = absolute[1], "=" in sign
        if sign[0] == "<":
            return [Interval(f"-{end}", end, has_end, has_end, letter)]
        below = _half_line(letter, "<=" if has_end else "<", f"-{end}")
        return below + _half_line(letter, sign, end)
    is_bound = _LETTER.fullmatch(left) and end is not None and not _LETTER.fullmatch(end)
    return _half_line(left, sign, end) if is_bound and end else []


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
    verdicts: list[bool | None] = []
    for left, right in ((wanted.low, given.low), (wanted.high, given.high)):
        is_infinite = {left, right} & {INFINITY, MINUS_INFINITY}
        verdicts.append(left == right if is_infinite else equal_members(left, right, ask))
    return settle(verdicts)
