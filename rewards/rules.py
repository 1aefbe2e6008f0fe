"""Rule verification: does an answer say the same as the reference?

One dict of routes. A route decides from the reference alone whether it applies; what it cannot
settle with plain string work it leaves to sympy, which runs in a killable worker
(rewards/workers.py). Loads without torch and without sympy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from rewards.answers import final_answers

MAX_EXPONENT = 300
"""Powers of ten beyond this are not written out; such a number is no plain number."""

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<fraction>\.\d+)?"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3}))?(?P<percent>\s*\\?%)?"
)
_RATIO = re.compile(r"([+-]?\d{1,40})\s*/\s*(\d{1,40})")
_HEDGE = re.compile(r"\b(or|either|maybe|perhaps|possibly|alternatively)\b|或", re.IGNORECASE)
_ANY_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_TO_THE_GRADER = re.compile(
    r"\b(grader|judge|reward|mark (this|it|me)|is correct|full (marks|credit|score)|"
    r"(ignore|disregard) (all|any|the|previous|prior))\b",
    re.IGNORECASE,
)
_EDGE = " \t\n.,;:!?。，；：！？\"'`“”‘’*$"


class NotScorable(ValueError):
    """The reference cannot be checked by rules."""


@dataclass(frozen=True)
class Route:
    """One way to verify."""

    version: int
    applies: Callable[[str], bool]
    """Whether a reference is of this kind."""
    quick: Callable[[str, str], float | None]
    """Reference and answer to 1.0 or 0.0; None if it takes sympy to tell."""


@dataclass(frozen=True)
class Verdict:
    accuracy: float | None
    """None leaves the decision to `symbolic`."""
    route: str
    """Which route decided, with its version, such as `number/1`."""
    answer: str
    """The final answer that was compared."""


def verify_quickly(reference: str, answer: str, task: str = "auto") -> Verdict:
    """Compare by string work alone; raises NotScorable for a reference that no route takes.

    task: a route's name, or `auto` to choose by the reference.
    """
    name = route_of(reference, task)
    label = f"{name}/{ROUTES[name].version}"
    found = final_answers(answer)
    if len(found) != 1 or _is_hedged(found[0], reference) or _TO_THE_GRADER.search(found[0]):
        return Verdict(0.0, label, found[0] if found else "")
    return Verdict(ROUTES[name].quick(reference, found[0]), label, found[0])


def route_of(reference: str, task: str = "auto") -> str:
    """The route a reference takes; raises NotScorable if there is none."""
    if not reference.strip():
        raise NotScorable("the reference is empty")
    if task != "auto":
        if task not in ROUTES:
            raise NotScorable(f"there is no reward for task {task!r}, only {', '.join(ROUTES)}")
        return task
    return next(name for name, route in ROUTES.items() if route.applies(reference))


def symbolic(reference: str, answer: str) -> float:
    """1.0 if math-verify finds the two equal. Slow and unbounded: only for killable workers."""
    from math_verify import parse, verify

    # The signal-based timeouts of math-verify work in main threads only; the worker is killed.
    gold = parse(_as_latex(reference), parsing_timeout=None)
    given = parse(_as_latex(answer), parsing_timeout=None)
    return float(bool(gold and given) and verify(gold, given, timeout_seconds=None))


def parse_number(text: str) -> Fraction | None:
    """The exact value of a plain number, a percentage or a ratio of integers; None for the rest.

    Example: parse_number("1,250.50") == Fraction(2501, 2); parse_number("50%") == Fraction(1, 2)
    """
    text = _plain(text)
    if ratio := _RATIO.fullmatch(text):
        denominator = int(ratio[2])
        return Fraction(int(ratio[1]), denominator) if denominator else None
    match = _NUMBER.fullmatch(text)
    if match is None or not (match["whole"] or match["fraction"]):
        return None
    if abs(int(match["exponent"] or 0)) > MAX_EXPONENT:
        return None
    digits = f"{match['sign']}{(match['whole'] or '0').replace(',', '')}{match['fraction'] or ''}"
    value = Fraction(Decimal(f"{digits}e{match['exponent'] or 0}"))
    return value / 100 if match["percent"] else value


def _plain(text: str) -> str:
    """Full-width forms folded, currency and closing punctuation dropped."""
    folded = unicodedata.normalize("NFKC", text).replace("−", "-")
    return folded.strip(_EDGE).removeprefix("\\(").removesuffix("\\)").strip(_EDGE)


def _number_quick(reference: str, answer: str) -> float | None:
    given = parse_number(answer)
    if given is None:
        # A sentence or an expression; without any digit it cannot be this number as we read it.
        return None if _ANY_NUMBER.search(answer) or "\\" in answer else 0.0
    return float(given == parse_number(reference))


def _text_quick(reference: str, answer: str) -> float:
    return float(_normal_text(reference) == _normal_text(answer))


def _expression_quick(reference: str, answer: str) -> float | None:
    return 1.0 if _plain(reference) == _plain(answer) else None


def _normal_text(text: str) -> str:
    """Case, white space, edge punctuation and a leading article do not matter."""
    words = unicodedata.normalize("NFKC", text).casefold().strip(_EDGE).split()
    return " ".join(words[1:] if words[:1] and words[0] in ("a", "an", "the") else words)


def _looks_like_maths(reference: str) -> bool:
    if "\\" in reference or "^" in reference:
        return True
    return bool(re.search(r"[\d)a-z]\s*[-+*/=<>]\s*[\d(a-z]", reference)) or bool(
        re.fullmatch(r"[\[({][^a-zA-Z]*\d[^a-zA-Z]*[\])}]", reference.strip())
    )


def _is_hedged(answer: str, reference: str) -> bool:
    """Whether an answer offers several values where the reference has one."""
    if _HEDGE.search(reference) or not _HEDGE.search(answer):
        return False
    numbers = {parse_number(number) for number in _ANY_NUMBER.findall(answer)}
    return len(numbers) != 1


def _as_latex(text: str) -> str:
    """math-verify finds expressions in prose by their delimiters; a bare one gets them."""
    bare = _plain(text)
    has_prose = re.search(r"(?<!\\)\b[a-zA-Z]{3,}\b", bare)
    return text if "$" in text or "\\boxed" in text or has_prose else f"${bare}$"


# The first route that applies takes the reference; `text` takes what is left.
ROUTES: dict[str, Route] = {
    "number": Route(1, lambda reference: parse_number(reference) is not None, _number_quick),
    "expression": Route(1, _looks_like_maths, _expression_quick),
    "text": Route(1, lambda reference: True, _text_quick),
}
