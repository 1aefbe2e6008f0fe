"""Expressions and equations, read by math-verify and compared by sympy in a worker.

Values decide before algebra does: two expressions that agree to MANY_DIGITS digits at several
points
are the same, and exact rational numbers are never compared as floats.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from rewards.rules.kinds.comparison import Ask
from rewards.rules.reading.notation import INNER_TEXT, plain, plain_value

MAX_EXPRESSION_CHARS = 400
MANY_DIGITS = 40
MAX_EXPONENT_DIGITS = 5
"""Numbers with a longer exponent are not evaluated, nor towers of three powers."""
FLOAT_TOLERANCE = 1e-6
"""Relative, of an answer written as a decimal to a reference that has no finite one."""

_ALLOWED = re.compile(r"[0-9A-Za-z\s\\^_*+\-/=(){}\[\].,|<>&'!]+")
_COMMAND = re.compile(r"\\(?:begin|end)\s?\{[a-z]{1,10}\*?\}|\\[a-zA-Z]+|_\{[^{}]{1,16}\}")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_FUNCTIONS = frozenset(
    """sqrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp pi abs""".split()
)
# Shorter runs of letters are products such as xy, unless they are one of these.
_SMALL_WORDS = frozenset(
    """am an and any are as at be but by can do few for has he how if in is it its me my no nor
    not now of off on one or out she so the to two up us was we who why yes yet you""".split()
)
# Dates, ranges and section numbers would come out as differences: 2024-01-02 as 2021.
_DIGIT_PARTS = re.compile(r"[0-9]+(?:\s?[-/.:][0-9]+)+")
_OPERATOR = re.compile(
    r"[\\^*+/=<>]|[A-Za-z)]\s?-|-\s?[0-9.]*[A-Za-z(]|[0-9\\].{0,80},|[A-Za-z]\(|[0-9]!"
    r"|[0-9]\s?[abiknpqxyz](?![A-Za-z])"
    r"|[0-9](?!(?:am|pm|pcs|pts)\b)[a-z]{2,3}(?![A-Za-z])"
)
# An answer that leaves these to the reader is the question again.
_UNDONE = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|log)(?![a-zA-Z])|[0-9]!")
_ARITHMETIC = re.compile(r"(?:[0-9\s.+\-*/()]|\\(?:times|cdot)(?![a-zA-Z]))+")
# Towers: a power in an exponent, twice; or an exponent of many digits.
_TOWER = re.compile(
    r"\^[\s{(\\left]{0,8}[0-9.]+\s?\^[\s{(\\left]{0,8}[0-9.]+\s?\^"
    rf"|\^\s?\{{?\s?[0-9]{{{MAX_EXPONENT_DIGITS + 1},}}|[0-9]{{{MAX_EXPONENT_DIGITS + 1},}}!"
)
_SUBSCRIPT = re.compile(r"(\\[a-zA-Z]+|[A-Za-z])\s?_\s?(\{[^{}]{1,24}\}|\\[a-zA-Z]+|\w)")
_POWER_FIRST = re.compile(r"\^\s?(\{[^{}]{1,24}\}|\w)\s?_\s?(\{[^{}]{1,24}\}|\w)")
_PRIMED = re.compile(r"(?:_\s?\{?([^{}]{1,8}?)\}?|(?<=[A-Za-z]))\s?(?:'|\^\s?\{?\s?\\prime\s?\}?)")
_FIXES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(form), replacement)
    for form, replacement in (
        (r"\*\*", "^"),
        (r"(?<![A-Za-z])\\?sqrt\s?\(([^()]{1,80})\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z])\\?exp\s?\(([^()]{1,80})\)", r"e^{\1}"),
        (r"(?<![A-Za-z\\])(ln|log|sin|cos|tan|cot|sec|csc)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"\^\s?\(([^()]{1,40})\)", r"^{\1}"),
        (r"\+\s?-", "-"),
        (r"\\(?:prime|hbar)(?![a-zA-Z])", " h "),
    )
)
_UNIT_BEHIND = re.compile(
    r"(?:\\[ ,;]|\s)*\\(?:text|mathrm)\s?\{\s?(?:square |cubic |sq\. ?)?(?:units?"
    r"|[a-z]{1,2}m|m|ft|in|[a-z]{3,10}s)"
    r"\s?\}(?:\^\s?\{?[23]\}?)?\s*\$?$"
)
_FACTORED = re.compile(r"\bfactor(?:i[sz]e)?\b|因式分解", re.IGNORECASE)


_EXPANDED = re.compile(r"\bexpand|\bmultiply out|展开", re.IGNORECASE)
_SIMPLIFIED = re.compile(r"simplif|simplest|radical form|化简|最简", re.IGNORECASE)
_ROOT = re.compile(r"(?:\\sqrt|√)\s?[{(]?\s?([0-9]{1,9})")
_LOG = re.compile(r"\\?(?<![A-Za-z])log(?![A-Za-z])(?!\s?_)\s?")


class UnparsedReference(ValueError):
    """The reference looks like an expression, but math-verify cannot read it."""


def reads_as_expression(text: str) -> bool:
    """Whether the text, a final answer, can be one expression: no prose, no sentence, not long."""
    text = INNER_TEXT.sub(r" \1 ", plain_value(text))
    if not 0 < len(text) <= MAX_EXPRESSION_CHARS or not _ALLOWED.fullmatch(text):
        return False
    runs = _LETTERS.findall(_COMMAND.sub(" ", text))
    return all(
        run.lower() in _FUNCTIONS or (len(run) <= 3 and run.lower() not in _SMALL_WORDS)
        for run in runs
    )


def is_expression(reference: str, question: str = "") -> bool:
    """Whether a reference has to be compared as mathematics rather than as text."""
    text = plain_value(reference)
    # C++ is a name, not a sum.
    if (
        _DIGIT_PARTS.fullmatch(text)
        or not _OPERATOR.search(text)
        or text.rstrip("}")[-1:] in "+-*/^="
    ):
        return False
    return reads_as_expression(reference)


def is_too_large(text: str) -> bool:
    """Whether to evaluate a text could take for ever: a tower of powers, a huge exponent."""
    return len(text) <= MAX_EXPRESSION_CHARS and bool(_TOWER.search(text))


def equal_expressions(reference: str, answer: str, ask: Ask) -> bool | None:
    """Raises UnparsedReference for a reference that sympy cannot read."""
    # 12\pi \text{ cm}^2: the unit stays with the reader where the reference has none.
    if (unit := _UNIT_BEHIND.search(answer)) and not _UNIT_BEHIND.search(reference):
        answer = answer[: unit.start()]
    # Most right answers repeat the reference, and need no worker.
    if _squeeze(reference) == _squeeze(answer):
        return True
    if not reads_as_expression(answer):
        return False
    wanted, given = plain_value(reference), plain_value(answer)
    # Without a base, beside ln, the natural logarithm is meant.
    if "ln" in wanted:
        answer, given = (_LOG.sub(r"\\ln ", text) for text in (answer, given))
    # A reference that is arithmetic asks for the form, not the value.
    if _ARITHMETIC.fullmatch(wanted) or (_UNDONE.search(given) and not _UNDONE.search(wanted)):
        return False
    # One value is not several, and a chain a = b = c states two answers.
    if given.count("=") > max(1, wanted.count("=")) or ("," in given and "," not in wanted):
        return False
    if is_too_large(given) or _leaves_root(wanted, given, ask.question):
        return False
    return _same_by_sympy(reference, answer, ask.question) if ask.may_load else None


def _same_by_sympy(reference: str, answer: str, question: str) -> bool:
    # Inside the function: sympy and math-verify take seconds to load, and only workers do.
    from math_verify import verify
    from sympy import Basic, Eq, Expr

    wanted = parsed(plain_value(reference))
    if not wanted:
        raise UnparsedReference(f"no expression can be read from {reference[:80]!r}")
    given = parsed(plain_value(answer))
    if not given:
        return False
    # The second element is the text that was read, which is no answer.
    left, right = wanted[0], given[0]
    if isinstance(left, Expr) and isinstance(right, Expr):
        # To expand a product undoes what "factor" asked for, though the value is the same.
        is_undone = (
            _FACTORED.search(question) and left.is_Mul != right.is_Mul and not right.is_Pow
        ) or (_EXPANDED.search(question) and _has_product(right) and not _has_product(left))
        return not is_undone and _same_value(left, right)
    if "=" in reference and "=" in answer and not isinstance(right, Eq | Expr):
        return False
    # Named values were compared above without their names; now as equations, each in any form.
    if "=" in plain(reference) and "=" in plain(answer):
        sides = [parsed(plain(text))[:1] for text in (reference, answer)]
        if all(side and isinstance(side[0], Eq) for side in sides):
            return _same_equation(sides[0][0], sides[1][0])
    # math-verify's own timeouts are off: they rest on signal.alarm, which does nothing outside a
    # main thread, and the worker that runs this can be killed.
    is_known = isinstance(left, Basic) and isinstance(right, Basic)
    return is_known and bool(verify(left, right, timeout_seconds=None))


def _has_product(expression: Any) -> bool:
    """Whether a sum is multiplied, or raised to a whole power, anywhere."""
    from sympy import Mul, Pow  # as above

    return any(
        any(factor.is_Add for factor in node.args[: 1 if node.is_Pow else None])
        and (node.is_Mul or (node.exp.is_Integer and node.exp > 1))
        for node in expression.atoms(Mul, Pow)
    )


def _leaves_root(wanted: str, given: str, question: str) -> bool:
    """Whether a root has been left that the question wants simplified."""
    if not _SIMPLIFIED.search(question[:4000]):
        return False
    roots = [{int(root) for root in _ROOT.findall(text)} for text in (wanted, given)]
    return any(
        root % (factor * factor) == 0
        for root in roots[1] - roots[0]
        for factor in range(2, min(1000, root))
        if factor * factor <= root
    )


def _same_value(left: Any, right: Any) -> bool:
    """Exactly for numbers; at points drawn once for all for expressions with letters in them."""
    from sympy import Float, I, Pow, Rational, log  # as above

    if left == right:
        return True
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if symbols and all(str(symbol) == "i" for symbol in symbols):
        # Where i is the only letter it is the imaginary unit.
        left, right = (side.subs(dict.fromkeys(symbols, I)) for side in (left, right))
        symbols = []
    # Floats cannot tell 1/2^98 from 1/2^99 beside 0; rationals can.
    if left.is_Rational and right.is_Rational:
        return left.doit() == right.doit()
    # A decimal answer to an irrational reference can only be near it.
    is_float = bool(left.atoms(Float) | right.atoms(Float))
    tolerance = FLOAT_TOLERANCE if is_float else 10.0 ** (5 - MANY_DIGITS)
    # Letters stand for counts, lengths and rates, so roots and logarithms need only agree where
    # they are real; without them the last point, which is negative, tells x from |x|.
    powers = left.atoms(Pow, log) | right.atoms(Pow, log)
    has_roots = any(not power.is_Pow or not power.exp.is_integer for power in powers)
    points = _POINTS[:1] if not symbols else _POINTS[:-1] if has_roots else _POINTS
    for point in points:
        values = {
            symbol: Rational(ratio[0], ratio[1])
            for symbol, ratio in zip(symbols, point, strict=False)
        }
        if len(values) < len(symbols):
            return False
        one, other = (side.subs(values).evalf(MANY_DIGITS) for side in (left, right))
        if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
            return False
        size = max(abs(one), abs(other))
        if size and abs(one - other) > tolerance * size:
            return False
    return True


# Fractions of large primes: a small number is likely to be a root of what is compared there.
_PRIMES = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
_POINTS = (
    tuple((prime, 29) for prime in _PRIMES),
    tuple((prime, 23) for prime in reversed(_PRIMES)),
    tuple((-prime, 19) for prime in _PRIMES),
)
"""Values for letters, the last point negative: x is not |x|."""


def _same_equation(wanted: Any, given: Any) -> bool:
    """Whether one equation is the other times a number, which has the same solutions."""
    left, right = (equation.lhs - equation.rhs for equation in (wanted, given))
    # An equation in other letters is another line, and one without letters says nothing.
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return False
    from sympy import Rational  # as above

    symbols = sorted(left.free_symbols, key=str)
    ratios = []
    for point in _POINTS:
        values = {
            symbol: Rational(ratio[0], ratio[1])
            for symbol, ratio in zip(symbols, point, strict=False)
        }
        above, below = (side.subs(values).evalf(MANY_DIGITS) for side in (left, right))
        if len(values) < len(symbols) or not below or not above.is_number or not below.is_number:
            return False
        ratios.append(above / below)
    return all(abs(ratio - ratios[0]) <= 1e-20 * abs(ratios[0]) for ratio in ratios) and bool(
        ratios[0]
    )


@lru_cache(maxsize=256)
def parsed(text: str) -> list[Any]:
    """What math-verify reads: milliseconds, and kept, as a group of responses has one reference."""
    from math_verify import LatexExtractionConfig, parse  # as above

    # It reads names of one letter with their index behind them, and drops what it cannot read.
    text = INNER_TEXT.sub(r"\1", text).removeprefix("+")
    text = _PRIMED.sub(r"_{\1prime}", _POWER_FIRST.sub(r"_\2^\1", text))
    for form, replacement in _FIXES:
        text = form.sub(replacement, text)
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
    return (
        f"{match[1]}_{{{sum(ord(sign) * 7**place for place, sign in enumerate(index)) % 100_000}}}"
    )


def _squeeze(text: str) -> str:
    return "".join(plain_value(text).split()).replace("{", "").replace("}", "")
