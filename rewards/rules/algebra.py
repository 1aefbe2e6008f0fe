"""What sympy and math-verify decide: whether expressions, equations and inequalities are the same.

Values decide before algebra does: two expressions that agree to MANY_DIGITS digits at several
points are the same, and exact rational numbers are never compared as floats. Loads sympy, which
takes seconds and may never end on a hostile text: only killable workers import this.
"""

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Eq, Expr, Rational
from sympy.core.relational import Relational

from rewards.rules.kinds.expressions import UnparsedReference
from rewards.rules.kinds.intervals import INFINITY, MINUS_INFINITY, Interval
from rewards.rules.reading.notation import INNER_TEXT, plain, plain_value

MANY_DIGITS = 40
FLOAT_TOLERANCE = 1e-6
"""Relative, of an answer written as a decimal to a reference that has no finite one."""

_SUBSCRIPT = re.compile(r"(\\[a-zA-Z]+|[A-Za-z])\s?_\s?(\{[^{}]{1,24}\}|\\[a-zA-Z]+|\w)")
_POWER_FIRST = re.compile(r"\^\s?(\{[^{}]{1,24}\}|\w)\s?_\s?(\{[^{}]{1,24}\}|\w)")
_PRIMED = re.compile(r"(?:_\s?\{?([^{}]{1,8}?)\}?|(?<=[A-Za-z]))\s?(?:'|\^\s?\{?\s?\\prime\s?\}?)")
_FIXES = (
    (r"\*\*", "^"),
    (r"(?<![A-Za-z])\\?sqrt\s?\(([^()]{1,80})\)", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z])\\?exp\s?\(([^()]{1,80})\)", r"e^{\1}"),
    (r"(?<![A-Za-z\\])(ln|log|sin|cos|tan|cot|sec|csc)(?![A-Za-z])", r"\\\1 "),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"\^\s?\(([^()]{1,40})\)", r"^{\1}"),
    (r"\+\s?-", "-"),
    (r"\\(?:prime|hbar)(?![a-zA-Z])", " h "),
)
_FACTORED = re.compile(r"(?i)\bfactor(?:i[sz]e)?\b|因式分解")
_EXPANDED = re.compile(r"(?i)\bexpand|\bmultiply out|展开")

# Fractions of large primes: a small number is likely to be a root of what is compared there.
_PRIMES = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
_POINTS = (
    tuple(Rational(prime, 29) for prime in _PRIMES),
    tuple(Rational(prime, 23) for prime in reversed(_PRIMES)),
    tuple(Rational(-prime, 19) for prime in _PRIMES),
)
"""Values for letters, the last point negative: x is not |x|."""


def equal_by_algebra(reference: str, answer: str, question: str) -> bool:
    """Raises UnparsedReference for a reference that sympy cannot read."""
    wanted = _parsed(plain_value(reference))
    if not wanted:
        raise UnparsedReference(f"no expression can be read from {reference[:80]!r}")
    given = _parsed(plain_value(answer))
    if not given:
        return False
    # The second element is the text that was read, which is no answer.
    left, right = wanted[0], given[0]
    if isinstance(left, Expr) and isinstance(right, Expr):
        # To expand a product undoes what "factor" asked for, though the value is the same.
        if _FACTORED.search(question) and left.is_Mul != right.is_Mul and not right.is_Pow:
            return False
        if _EXPANDED.search(question) and _has_product(right) and not _has_product(left):
            return False
        return _same_value(left, right)
    are_equations = "=" in reference and "=" in answer
    # Named values were compared above without their names; now as equations, each in any form.
    sides = [_parsed(plain(text))[:1] for text in (reference, answer)] if are_equations else [[]]
    if all(side and isinstance(side[0], Eq) for side in sides):
        return _same_equation(sides[0][0], sides[1][0])
    # math-verify's own timeouts are off: they rest on signal.alarm, which does nothing outside a
    # main thread, and the worker that runs this can be killed.
    is_known = isinstance(left, sympy.Basic) and isinstance(right, sympy.Basic)
    is_known = is_known and (not are_equations or isinstance(right, Eq | Expr))
    return is_known and bool(verify(left, right, timeout_seconds=None))


def _has_product(expression: Any) -> bool:
    """Whether a sum is multiplied, or raised to a whole power, anywhere."""
    factors = {factor for product in expression.atoms(sympy.Mul) for factor in product.args}
    powers = expression.atoms(sympy.Pow)
    factors |= {power.base for power in powers if power.exp.is_Integer and power.exp > 1}
    return any(factor.is_Add for factor in factors)


def _same_value(left: Any, right: Any) -> bool:
    """Exactly for numbers; at points drawn once for all for expressions with letters in them."""
    if left == right:
        return True
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if symbols and all(str(symbol) == "i" for symbol in symbols):
        # Where i is the only letter it is the imaginary unit.
        left, right = (side.subs(dict.fromkeys(symbols, sympy.I)) for side in (left, right))
        symbols = []
    # Floats cannot tell 1/2^98 from 1/2^99 beside 0; rationals can.
    if left.is_Rational and right.is_Rational:
        return left.doit() == right.doit()
    # A decimal answer to an irrational reference can only be near it.
    is_float = bool(left.atoms(sympy.Float) | right.atoms(sympy.Float))
    tolerance = FLOAT_TOLERANCE if is_float else 10.0 ** (5 - MANY_DIGITS)
    # Letters stand for counts, lengths and rates, so roots and logarithms need only agree where
    # they are real; without them the last point, which is negative, tells x from |x|.
    powers = left.atoms(sympy.Pow, sympy.log) | right.atoms(sympy.Pow, sympy.log)
    has_roots = any(not power.is_Pow or not power.exp.is_integer for power in powers)
    points = _POINTS[:1] if not symbols else _POINTS[:-1] if has_roots else _POINTS
    for point in points:
        one, other = _values_at(point, symbols, left, right)
        if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
            return False
        size = max(abs(one), abs(other))
        if size and abs(one - other) > tolerance * size:
            return False
    return True


def _values_at(point: tuple[Any, ...], symbols: list[Any], *sides: Any) -> list[Any]:
    """With more letters than a point has values, the sides stay without a number."""
    values = dict(zip(symbols, point, strict=False))
    return [side.subs(values).evalf(MANY_DIGITS) for side in sides]


def _same_equation(wanted: Any, given: Any) -> bool:
    """Whether one equation is the other times a number, which has the same solutions."""
    left, right = (equation.lhs - equation.rhs for equation in (wanted, given))
    # An equation in other letters is another line, and one without letters says nothing.
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return False
    symbols = sorted(left.free_symbols, key=str)
    ratios = []
    for point in _POINTS:
        above, below = _values_at(point, symbols, left, right)
        if not above.is_number or not below.is_number:
            return False
        # A point that solves both says nothing of the factor between them.
        if above or below:
            ratios.append(above / below if below else sympy.nan)
    near = 1e-20 * abs(ratios[0]) if len(ratios) > 1 else 0
    return bool(near) and all(abs(ratio - ratios[0]) <= near for ratio in ratios)


@lru_cache(maxsize=256)
def _parsed(text: str) -> list[Any]:
    """What math-verify reads: milliseconds, and kept, as a group of responses has one reference."""
    # It reads names of one letter with their index behind them, and drops what it cannot read.
    text = INNER_TEXT.sub(r"\1", text).removeprefix("+")
    text = _PRIMED.sub(r"_{\1prime}", _POWER_FIRST.sub(r"_\2^\1", text))
    for form, replacement in _FIXES:
        text = re.sub(form, replacement, text)
    text = _SUBSCRIPT.sub(_numbered, text)
    extraction = LatexExtractionConfig()
    # The ab of 5ab is no unit to be dropped.
    normal = replace(extraction.normalization_config, units=False)
    # One pair of delimiters around the whole: no part of it can be picked out.
    return parse(
        f"${text}$",
        [replace(extraction, normalization_config=normal)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  None is its documented "off"
    )


def _numbered(match: re.Match[str]) -> str:
    """An index in words becomes a number, the same one every time: k_{B} and k_\\mathrm{B}."""
    index = re.sub(r"[{}\s\\]", "", match[2])
    if match[1] in ("\\log", "\\sum", "\\int", "\\prod", "\\lim") or index.isdigit():
        return match[0]
    number = sum(ord(sign) * 7**place for place, sign in enumerate(index)) % 100_000
    return f"{match[1]}_{{{number}}}"


def solves(wanted: list[Interval], answer: str) -> bool:
    """Solve the answer's inequality and compare the sets."""
    given = _parsed(answer)
    if not given or not isinstance(given[0], Relational) or len(given[0].free_symbols) != 1:
        return False
    symbol = next(iter(given[0].free_symbols))
    # math-verify reads capital letters as small ones.
    if wanted[0].letter and wanted[0].letter.casefold() != str(symbol).casefold():
        return False
    infinite = {INFINITY: [sympy.oo], MINUS_INFINITY: [-sympy.oo]}
    ranges = []
    for piece in wanted:
        ends = [infinite.get(end) or _parsed(end) for end in (piece.low, piece.high)]
        if not all(ends):
            return False
        low, high = (sympy.sympify(end[0]) for end in ends)
        ranges.append(sympy.Interval(low, high, not piece.has_low, not piece.has_high))
    try:
        solution = sympy.solve_univariate_inequality(given[0], symbol, relational=False)
    except NotImplementedError:
        return False
    return solution == sympy.Union(*ranges)
