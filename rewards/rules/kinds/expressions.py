"""Expressions compared by math-verify and sympy. May hang or eat memory: run it in a worker."""

from __future__ import annotations

import re
from dataclasses import replace

from rewards.rules.reading.notation import plain_value

MAX_EXPRESSION_CHARS = 400

_ALLOWED = re.compile(r"[0-9A-Za-z\s\\^_*+\-/=(){}\[\].,|<>&']+")
_COMMAND = re.compile(r"\\(?:begin|end)\s?\{[a-z]{1,10}\*?\}|\\[a-zA-Z]+")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_FUNCTIONS = frozenset(
    {"sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan"}
    | {"sinh", "cosh", "tanh", "log", "ln", "exp", "pi", "abs"}
)
# Shorter runs of letters are products such as xy, unless they are one of these.
_SMALL_WORDS = frozenset(
    {"am", "an", "and", "any", "are", "as", "at", "be", "but", "by", "can", "do", "few", "for"}
    | {"has", "he", "how", "if", "in", "is", "it", "its", "me", "my", "no", "nor", "not", "now"}
    | {"of", "off", "on", "one", "or", "out", "she", "so", "the", "to", "two", "up", "us", "was"}
    | {"we", "who", "why", "yes", "yet", "you"}
)
# Dates, ranges and section numbers would come out as differences: 2024-01-02 as 2021.
_DIGIT_PARTS = re.compile(r"[0-9]+(?:\s?[-/.][0-9]+)+")
_OPERATOR = re.compile(
    r"[\\^*+/=<>]|[A-Za-z)]\s?-|-\s?[0-9.]*[A-Za-z(]|[0-9\\].{0,80},|[A-Za-z]\("
    r"|[0-9]\s?[abiknpqxyz](?![A-Za-z])"
    r"|[0-9](?!(?:am|pm|pcs|pts)\b)[a-z]{2,3}(?![A-Za-z])"
)
# An answer that leaves these to the reader is the question again.
_UNDONE = re.compile(r"\\(?:int|iint|oint|sum|prod|lim)(?![a-zA-Z])")
_BARE_FUNCTION = re.compile(r"(?<![A-Za-z\\])(ln|log|sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_ROOT_OF = re.compile(r"(?<![A-Za-z])\\?sqrt\s?\(([^()]{1,80})\)")
_POWER_OF_E = re.compile(r"(?<![A-Za-z])\\?exp\s?\(([^()]{1,80})\)")
_ARITHMETIC = re.compile(r"(?:[0-9\s.+\-*/()]|\\(?:times|cdot)(?![a-zA-Z]))+")


class UnparsedReference(ValueError):
    """The reference looks like an expression, but math-verify cannot read it."""


def reads_as_expression(text: str) -> bool:
    """Whether the text, a final answer, can be one expression: no prose, no sentence, not long."""
    text = plain_value(text)
    if not 0 < len(text) <= MAX_EXPRESSION_CHARS or not _ALLOWED.fullmatch(text):
        return False
    runs = _LETTERS.findall(_COMMAND.sub(" ", text))
    return all(
        run.lower() in _FUNCTIONS or (len(run) <= 3 and run.lower() not in _SMALL_WORDS)
        for run in runs
    )


def is_expression(reference: str) -> bool:
    """Whether a reference has to be compared as mathematics rather than as text."""
    text = plain_value(reference)
    # C++ is a name, not a sum.
    if _DIGIT_PARTS.fullmatch(text) or not _OPERATOR.search(text) or text[-1:] in "+-*/^=":
        return False
    return reads_as_expression(reference)


def quick_expression(reference: str, answer: str) -> bool | None:
    """Return what can be said without sympy; None where it has to be asked."""
    if _squeeze(reference) == _squeeze(answer):
        return True
    if not reads_as_expression(answer):
        return False
    wanted, given = plain_value(reference), plain_value(answer)
    # A reference that is arithmetic asks for the form, not the value.
    if _ARITHMETIC.fullmatch(wanted) or (_UNDONE.search(given) and not _UNDONE.search(wanted)):
        return False
    # One value is not several, and a chain a = b = c states two answers.
    if given.count("=") > max(1, wanted.count("=")) or ("," in given and "," not in wanted):
        return False
    return None


def same_expression(reference: str, answer: str) -> bool:
    """Whether sympy holds both for equal; raises UnparsedReference for a reference it cannot read.

    math-verify's own timeouts are off: they rest on signal.alarm, which does nothing outside a
    main thread, and the worker that runs this can be killed.
    """
    from math_verify import verify

    wanted = _parse(reference)
    if not wanted:
        raise UnparsedReference(f"no expression can be read from {reference[:80]!r}")
    return bool(verify(wanted, _parse(answer), timeout_seconds=None))


def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    extraction = LatexExtractionConfig()
    # The ab of 5ab is no unit to be dropped.
    normal = replace(extraction.normalization_config, units=False)
    # One pair of delimiters around the whole: no part of it can be picked out.
    return parse(
        f"${_latex(plain_value(text))}$",
        [replace(extraction, normalization_config=normal)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  None is its documented "off"
    )


def _latex(text: str) -> str:
    text = _ROOT_OF.sub(r"\\sqrt{\1}", text.replace("**", "^"))
    text = _POWER_OF_E.sub(r"e^{\1}", text)
    text = _BARE_FUNCTION.sub(r"\\\1 ", text)
    return re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)


def _squeeze(text: str) -> str:
    return "".join(plain_value(text).split())
