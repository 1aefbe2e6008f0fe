"""Rule verification: does an answer say the same as the reference?

One dict of routes. A route decides from the reference alone whether it applies; what it cannot
settle with plain string work it leaves to sympy, which runs in a killable worker
(rewards/workers.py). Loads without torch and without sympy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rewards.answers import final_answers
from rewards.expressions import (
    UnparsedReference,
    is_expression,
    quick_expression,
    same_expression,
)
from rewards.notation import plain_words
from rewards.number_literals import number_literal, same_number

MAX_TEXT_WORDS = 8
MAX_TEXT_CHARACTERS = 80


class NotScorable(ValueError):
    """The reference cannot be checked by rules; says why."""


@dataclass(frozen=True)
class Route:
    """One way to verify."""

    version: int
    """Goes to the ledger with every score; raise it when a verdict may change."""
    applies: Callable[[str], bool]
    """Whether a reference is of this kind; never hangs."""
    quick: Callable[[str, str], bool | None]
    """Reference and one final answer to a verdict, in microseconds; None if it takes sympy."""


@dataclass(frozen=True)
class Verdict:
    accuracy: float | None
    """None leaves the decision to `symbolic`."""
    route: str
    """Which route decided, with its version, such as `number/1`."""


def verify_quickly(reference: str, answer: str, task: str = "auto") -> Verdict:
    """Compare by string work alone: 1.0 only if every final answer stated is the reference.

    task: a route's name, or `auto` to choose by the reference. Raises NotScorable for a reference
    that no route takes.
    """
    name = route_of(reference, task)
    label = f"{name}/{ROUTES[name].version}"
    wanted = reference_answer(reference)
    finals = final_answers(answer)
    verdicts = [ROUTES[name].quick(wanted, final) for final in finals]
    if not finals or False in verdicts:
        return Verdict(0.0, label)
    return Verdict(None if None in verdicts else 1.0, label)


def symbolic(reference: str, answer: str) -> float:
    """Decide what `verify_quickly` left open. Slow and unbounded: only for killable workers.

    Raises NotScorable for a reference that sympy cannot read.
    """
    wanted = reference_answer(reference)
    try:
        return float(all(same_expression(wanted, final) for final in final_answers(answer)))
    except UnparsedReference as error:
        raise NotScorable(str(error)) from error


def route_of(reference: str, task: str = "auto") -> str:
    """The route a reference takes; raises NotScorable if there is none."""
    wanted = reference_answer(reference)
    if task == "auto":
        for name, route in ROUTES.items():
            if route.applies(wanted):
                return name
        raise NotScorable(
            f"the reference is longer than {MAX_TEXT_WORDS} words or {MAX_TEXT_CHARACTERS} "
            "characters"
        )
    if task not in ROUTES:
        raise NotScorable(f"there is no reward for task {task!r}, only auto, {', '.join(ROUTES)}")
    if not ROUTES[task].applies(wanted):
        raise NotScorable(f"the reference is not of task {task!r}: {wanted[:80]!r}")
    return task


def score_reference(reference: str, task: str = "auto") -> str:
    """Return the route that checks a reference, such as `number/1`, or `not_scorable: why`."""
    try:
        name = route_of(reference, task)
    except NotScorable as error:
        return f"not_scorable: {error}"
    return f"{name}/{ROUTES[name].version}"


def reference_answer(reference: str) -> str:
    """Return the answer a reference states, out of its `\\boxed{}` or the like.

    Raises NotScorable for a reference that states none, or several.
    """
    # GSM8K writes its answers so.
    finals = final_answers(reference.rpartition("####")[2])
    if len(finals) > 1:
        raise NotScorable(f"the reference states {len(finals)} different answers")
    if not finals and reference.strip():
        raise NotScorable(f"the reference is {len(reference)} characters long, without an answer")
    if not finals or not finals[0]:
        raise NotScorable("the reference is empty")
    return finals[0]


def _quick_number(reference: str, answer: str) -> bool:
    wanted, given = number_literal(reference), number_literal(answer)
    return wanted is not None and given is not None and same_number(wanted, given)


def _is_short_text(reference: str) -> bool:
    if len(reference) > MAX_TEXT_CHARACTERS:
        return False
    return 0 < len(plain_words(reference).split()) <= MAX_TEXT_WORDS


def _quick_text(reference: str, answer: str) -> bool:
    if len(answer) > 4 * MAX_TEXT_CHARACTERS:
        return False
    return plain_words(reference) == plain_words(answer)


# The first route that applies takes the reference; more kinds of reference are added here.
ROUTES: dict[str, Route] = {
    "number": Route(1, lambda reference: number_literal(reference) is not None, _quick_number),
    "expression": Route(1, is_expression, quick_expression),
    "text": Route(1, _is_short_text, _quick_text),
}
