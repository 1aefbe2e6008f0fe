"""Expressions and equations, read by math-verify and compared by sympy in a worker."""

import re
from math import isqrt

from rewards.rules.kinds.comparison import Ask
from rewards.rules.reading.notation import INNER_TEXT, plain_value
from rewards.rules.reading.wording import words

MAX_EXPRESSION_CHARS = 400
MAX_EXPONENT_DIGITS = 5
"""Numbers with a longer exponent are not evaluated, nor towers of three powers."""

_ALLOWED = re.compile(r"[0-9A-Za-z\s\\^_*+\-/=(){}\[\].,|<>&'!]+")
_COMMAND = re.compile(r"\\(?:begin|end)\s?\{[a-z]{1,10}\*?\}|\\[a-zA-Z]+|_\{[^{}]{1,16}\}")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_FUNCTIONS = frozenset(words("functions"))
# Shorter runs of letters are products such as xy, unless they are one of these.
_SMALL_WORDS = frozenset(words("small_words"))
# Dates, ranges and section numbers would come out as differences: 2024-01-02 as 2021.
_DIGIT_PARTS = re.compile(r"[0-9]+(?:\s?[-/.:][0-9]+)+")
_OPERATOR = re.compile(
    r"[\\^*+/=<>]|[A-Za-z)]\s?-|-\s?[0-9.]*[A-Za-z(]|[0-9\\].{0,80},|[A-Za-z]\(|[0-9]!"
    r"|[0-9]\s?[abiknpqxyz](?![A-Za-z])|[0-9](?!(?:am|pm|pcs|pts)\b)[a-z]{2,3}(?![A-Za-z])"
)
# An answer that leaves these to the reader is the question again.
_UNDONE = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|log)(?![a-zA-Z])|[0-9]!")
_ARITHMETIC = re.compile(r"(?:[0-9\s.+\-*/()]|\\(?:times|cdot)(?![a-zA-Z]))+")
# Towers: a power in an exponent, twice; or an exponent of many digits.
_TOWER = re.compile(
    r"\^[\s{(\\left]{0,8}[0-9.]+\s?\^[\s{(\\left]{0,8}[0-9.]+\s?\^"
    rf"|\^\s?\{{?\s?[0-9]{{{MAX_EXPONENT_DIGITS + 1},}}|[0-9]{{{MAX_EXPONENT_DIGITS + 1},}}!"
)
_UNIT_BEHIND = re.compile(
    r"(?:\\[ ,;]|\s)*\\(?:text|mathrm)\s?\{\s?(?:square |cubic |sq\. ?)?(?:units?"
    r"|[a-z]{1,2}m|m|ft|in|[a-z]{3,10}s)\s?\}(?:\^\s?\{?[23]\}?)?\s*\$?$"
)
_SIMPLIFIED = re.compile(r"(?i)simplif|simplest|radical form|化简|最简")
_ROOT = re.compile(r"(?:\\sqrt|√)\s?[{(]?\s?([0-9]{1,9})")
_LOG = re.compile(r"\\?(?<![A-Za-z])log(?![A-Za-z])(?!\s?_)\s?")


class UnparsedReference(ValueError):
    """The reference looks like an expression, but math-verify cannot read it."""


def reads_as_expression(text: str) -> bool:
    """Whether the text, a final answer, can be one expression: no prose, no sentence, not long."""
    text = INNER_TEXT.sub(r" \1 ", plain_value(text))
    if not 0 < len(text) <= MAX_EXPRESSION_CHARS or not _ALLOWED.fullmatch(text):
        return False
    runs = {run.lower() for run in _LETTERS.findall(_COMMAND.sub(" ", text))}
    return all(len(run) <= 3 and run not in _SMALL_WORDS for run in runs - _FUNCTIONS)


def is_expression(reference: str, question: str = "") -> bool:
    """Whether a reference has to be compared as mathematics rather than as text."""
    text = plain_value(reference)
    # C++ is a name, not a sum.
    is_name = _DIGIT_PARTS.fullmatch(text) or text.rstrip("}")[-1:] in "+-*/^="
    return not is_name and bool(_OPERATOR.search(text)) and reads_as_expression(reference)


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
    roots = {int(root) for root in set(_ROOT.findall(given)) - set(_ROOT.findall(wanted))}
    refusals = (
        # A reference that is arithmetic asks for the form, not the value.
        _ARITHMETIC.fullmatch(wanted) or (_UNDONE.search(given) and not _UNDONE.search(wanted)),
        # One value is not several, and a chain a = b = c states two answers.
        given.count("=") > max(1, wanted.count("=")) or ("," in given and "," not in wanted),
        is_too_large(given),
        # A root that the question wants simplified.
        _SIMPLIFIED.search(ask.question)
        and any(
            root % size**2 == 0 for root in roots for size in range(2, min(999, isqrt(root)) + 1)
        ),
    )
    if any(refusals):
        return False
    if not ask.may_load:
        return None
    # Inside the function: sympy and math-verify take seconds to load, and only workers do.
    from rewards.rules.algebra import equal_by_algebra

    return equal_by_algebra(reference, answer, ask.question)


def _squeeze(text: str) -> str:
    return "".join(plain_value(text).split()).replace("{", "").replace("}", "")
