"""Rule verification: does an answer say the same as the reference?

One dict of routes, one route for each kind of reference. What plain string work cannot settle is
left to sympy and pint, which run in a killable worker (rewards/text/workers.py). Loads without
torch and without sympy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rewards.rules.kinds.cells import is_cell, quick_cell
from rewards.rules.kinds.choices import (
    chosen_text,
    contradicts_option,
    is_choice,
    is_letters,
    quick_choice,
)
from rewards.rules.kinds.dates import is_date, quick_date
from rewards.rules.kinds.elements import Equal, quick_element, slow_element
from rewards.rules.kinds.expressions import (
    UnparsedReference,
    is_expression,
    quick_expression,
    same_expression,
)
from rewards.rules.kinds.intervals import (
    asks_for_interval,
    compare_intervals,
    is_inequality,
    is_interval,
    is_surely_interval,
)
from rewards.rules.kinds.matrices import compare_matrices, is_matrix
from rewards.rules.kinds.quantities import (
    convert_quantity,
    is_percentage,
    is_quantity,
    quick_counted,
    quick_quantity,
)
from rewards.rules.kinds.sequences import (
    compare_lists,
    compare_sets,
    compare_tuples,
    compare_unordered,
    is_any_order,
    is_items,
    is_list,
    is_set,
    is_tuple,
)
from rewards.rules.kinds.transcription import is_transcription, transcription_score
from rewards.rules.kinds.yes_no import is_yes_no, quick_yes_no
from rewards.rules.reading.answers import MAX_CHARACTERS, final_answers
from rewards.rules.reading.notation import plain, plain_words, settle, value_name
from rewards.rules.reading.number_literals import number_literal, same_number
from rewards.rules.reading.statements import hedges, readings, talks_to_grader

NATURAL = "natural"
"""The route of references in natural language, which rules cannot decide."""
MAX_TEXT_WORDS = 8
MAX_TEXT_CHARACTERS = 80
CHARACTERS_PER_WORD = 2
"""Of Chinese, which does not part its words."""
MAX_RULE_CHARACTERS = 1000
"""A longer final answer is no short answer; a longer reference is natural language."""
MAX_READINGS = 12


class NotScorable(ValueError):
    """The reference cannot be checked by rules; says why."""


Quick = Callable[[str, str, str], bool | None]
"""Reference, one final answer and the question to a verdict, in microseconds; None if it takes a
worker."""


@dataclass(frozen=True)
class Route:
    """One way to verify."""

    version: int
    """Goes to the ledger with every score; raise it when a verdict may change."""
    reads: Callable[[str, str], bool]
    """Whether a reference to a question can be of this kind; never hangs."""
    quick: Quick
    slow: Callable[[str, str, str], bool] | None = None
    """Decides what `quick` leaves open; only in killable workers."""
    claims: Callable[[str, str], bool] | None = None
    """Whether to choose this route unasked; as `reads` if it is not given."""
    grade: Callable[[str, str], float] | None = None
    """Reference and whole answer to partial credit, in milliseconds; replaces `quick` and `slow`,
    and nothing is taken out of the reference or the answer before."""
    takes_or: bool = False
    """"x = 1 or x = 2" is one answer, not a hedge."""

    def applies(self, reference: str, question: str) -> bool:
        return (self.claims or self.reads)(reference, question)


@dataclass(frozen=True)
class Verdict:
    accuracy: float | None
    """None leaves the decision to `symbolic`."""
    route: str
    """Which route decided, with its version, such as `number/2`."""


def verify_quickly(reference: str, answer: str, task: str = "auto", question: str = "") -> Verdict:
    """Compare by string work alone: 1.0 only if every final answer stated is the reference, and
    less than that, but not 0, on a route that gives partial credit alone.

    task: a route's name, or `auto` to choose by the reference. question: read for options, units
    and whether order matters. Raises NotScorable for a reference that no route takes, and for one
    in natural language that the answer does not repeat.
    """
    name = route_of(reference, task, question)
    label = f"{name}/{ROUTES[name].version}"
    if grade := ROUTES[name].grade:
        return Verdict(grade(reference, answer), label)
    wanted = reference_answer(reference)
    if name == NATURAL:
        if _repeats(wanted, answer):
            return Verdict(1.0, label)
        raise NotScorable("natural language: needs the probability reward")
    finals = _honest_finals(wanted, answer, ROUTES[name], question)
    verdicts = [_verdict(ROUTES[name].quick, wanted, final, question) for final in finals]
    verdict = settle(verdicts) if verdicts else False
    return Verdict(None if verdict is None else float(verdict), label)


def symbolic(reference: str, answer: str, task: str = "auto", question: str = "") -> float:
    """Decide what `verify_quickly` left open. Slow and unbounded: only for killable workers.

    Raises NotScorable for a reference that sympy cannot read.
    """
    route = ROUTES[route_of(reference, task, question)]
    if route.grade:
        return route.grade(reference, answer)
    wanted = reference_answer(reference)
    decide = route.slow or route.quick
    finals = _honest_finals(wanted, answer, route, question)
    try:
        verdicts = [_verdict(decide, wanted, final, question) for final in finals]
    except UnparsedReference as error:
        raise NotScorable(str(error)) from error
    return float(bool(verdicts) and settle(verdicts) is True)


def route_of(reference: str, task: str = "auto", question: str = "") -> str:
    """The route a reference takes; raises NotScorable if there is none."""
    is_graded = task in ROUTES and ROUTES[task].grade is not None
    wanted = reference if is_graded else reference_answer(reference)
    if task == "auto":
        return next(name for name, route in ROUTES.items() if route.applies(wanted, question))
    if task not in ROUTES:
        raise NotScorable(f"there is no reward for task {task!r}, only auto, {', '.join(ROUTES)}")
    if not ROUTES[task].reads(wanted, question):
        raise NotScorable(f"the reference is not of task {task!r}: {wanted[:80]!r}")
    return task


def score_reference(reference: str, task: str = "auto", question: str = "") -> str:
    """Return the route that checks a reference, such as `number/2`, or `not_scorable: why`."""
    try:
        name = route_of(reference, task, question)
    except NotScorable as error:
        return f"not_scorable: {error}"
    return f"{name}/{ROUTES[name].version}"


def reference_answer(reference: str) -> str:
    """Return the answer a reference states, out of its `\\boxed{}` or the like.

    Raises NotScorable for a reference that states none, or several.
    """
    if len(reference) > MAX_CHARACTERS:
        raise NotScorable(f"the reference is {len(reference)} characters long, without an answer")
    # GSM8K writes its answers so.
    stated = reference.rpartition("####")[2].strip()
    finals = final_answers(stated)
    if len(finals) > 1:
        raise NotScorable(f"the reference states {len(finals)} different answers")
    # Without a marker the reference is the answer, all of it.
    wanted = finals[0] if finals and _MARKER.search(stated) else stated
    if not plain(wanted):
        raise NotScorable("the reference is empty")
    if _ALTERNATIVES.fullmatch(plain(wanted[:MAX_RULE_CHARACTERS])):
        raise NotScorable("the reference states 2 different answers")
    return wanted


_MARKER = re.compile(r"\\f?boxed|<answer>|answer|答案|\*\*", re.IGNORECASE)
_ALTERNATIVES = re.compile(r"-?[0-9][0-9.,]{0,20}\s?(?:or|或者?)\s?-?[0-9][0-9.,]{0,20}")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_OR = re.compile(r"\bor\b|或者?", re.IGNORECASE)


def _honest_finals(wanted: str, answer: str, route: Route, question: str) -> list[str]:
    """The final answers of a text; none where it hedges or talks to the grader."""
    finals = final_answers(answer)
    if (
        not finals
        or any(len(final) > MAX_RULE_CHARACTERS for final in finals)
        or talks_to_grader(answer, question)
    ):
        return []
    for final in finals:
        if hedges(_OR.sub(" ", final) if route.takes_or else final, wanted):
            return []
    return finals


def _verdict(
    decide: Callable[[str, str, str], bool | None], wanted: str, final: str, question: str
) -> bool | None:
    """True if one reading of the final answer is right, None if one may be."""
    if contradicts_option(final, question) or _names_differ(wanted, final):
        return False
    found: list[bool | None] = []
    for values in readings(final, question)[:MAX_READINGS]:
        verdict = settle([decide(wanted, value, question) for value in values])
        if verdict:
            return True
        found.append(verdict)
    return None if None in found else False


def _repeats(wanted: str, answer: str) -> bool:
    texts = [answer, *final_answers(answer)]
    bound = 2 * len(wanted) + MAX_TEXT_CHARACTERS
    return any(len(text) <= bound and plain_words(wanted) == plain_words(text) for text in texts)


def _quick_number(reference: str, answer: str, question: str) -> bool:
    wanted = number_literal(reference)
    option = chosen_text(answer, question)
    given = number_literal(answer if option is None else option)
    if wanted is None:
        return False
    if wanted.is_percent:
        return quick_quantity(reference, answer if option is None else option, question) is True
    if given is not None and same_number(wanted, given):
        return True
    return quick_counted(reference, answer, question)


def _names_differ(reference: str, answer: str) -> bool:
    names = value_name(reference), value_name(answer)
    return all(names) and names[0] != names[1]


def _quick_quantity(reference: str, answer: str, question: str) -> bool | None:
    return quick_quantity(reference, chosen_text(answer, question) or answer, question)


def _slow_quantity(reference: str, answer: str, question: str) -> bool:
    verdict = _quick_quantity(reference, answer, question)
    if verdict is None:
        return convert_quantity(reference, chosen_text(answer, question) or answer)
    return verdict


def _quick_expression(reference: str, answer: str, question: str) -> bool | None:
    return quick_expression(reference, chosen_text(answer, question) or answer)


def _slow_expression(reference: str, answer: str, question: str) -> bool:
    verdict = _quick_expression(reference, answer, question)
    if verdict is None:
        return same_expression(reference, chosen_text(answer, question) or answer)
    return verdict


def _is_short_text(reference: str, question: str) -> bool:
    if len(reference) > MAX_TEXT_CHARACTERS:
        return False
    words = plain(reference) if plain_words(reference) else ""
    num_words = len(words.split()) + len(_CHINESE.findall(words)) / CHARACTERS_PER_WORD
    return 0 < num_words <= MAX_TEXT_WORDS


def _is_text(reference: str, question: str) -> bool:
    return (
        bool(plain_words(reference[:MAX_RULE_CHARACTERS])) and len(reference) <= MAX_RULE_CHARACTERS
    )


def _quick_text(reference: str, answer: str, question: str) -> bool:
    if len(answer) > 2 * len(reference) + MAX_TEXT_CHARACTERS:
        return False
    wanted = plain_words(reference)
    option = chosen_text(answer, question)
    return wanted == plain_words(answer) or (option is not None and wanted == plain_words(option))


def _quick_natural(reference: str, answer: str, question: str) -> bool:
    return plain_words(reference) == plain_words(answer)


def _compared(
    compare: Callable[[str, str, Equal], bool | None],
) -> tuple[Quick, Callable[[str, str, str], bool]]:
    """The quick and the slow way of a comparison by elements."""
    return (
        lambda reference, answer, question: compare(reference, answer, quick_element),
        lambda reference, answer, question: bool(compare(reference, answer, slow_element)),
    )


def _quick_tuple(reference: str, answer: str, question: str) -> bool | None:
    return compare_tuples(reference, answer, quick_element, question)


def _slow_tuple(reference: str, answer: str, question: str) -> bool:
    return bool(compare_tuples(reference, answer, slow_element, question))


def _compare_lists(reference: str, answer: str, equal: Equal) -> bool | None:
    """As lists; as intervals where [1, 2] meets 1 <= x <= 2."""
    if is_interval(reference) and is_inequality(answer):
        return compare_intervals(reference, answer, equal)
    return compare_lists(reference, answer, equal)


def _claims_interval(reference: str, question: str) -> bool:
    return is_surely_interval(reference) or (is_interval(reference) and asks_for_interval(question))


def _reads(applies: Callable[[str], bool]) -> Callable[[str, str], bool]:
    """A kind that the reference alone decides."""
    return lambda reference, question: len(reference) <= MAX_RULE_CHARACTERS and applies(reference)


# The first route that claims the reference takes it; more kinds of reference are added here.
ROUTES: dict[str, Route] = {
    "yes_no": Route(1, _reads(is_yes_no), lambda r, a, question: quick_yes_no(r, a)),
    "choice": Route(1, lambda r, question: is_letters(r), quick_choice, claims=is_choice),
    "quantity": Route(
        1,
        _reads(is_quantity),
        _quick_quantity,
        _slow_quantity,
        claims=_reads(lambda r: is_quantity(r) and not is_percentage(r)),
    ),
    "number": Route(2, _reads(lambda r: number_literal(r) is not None), _quick_number),
    "date": Route(1, _reads(is_date), lambda r, a, question: quick_date(r, a)),
    "matrix": Route(1, _reads(is_matrix), *_compared(compare_matrices)),
    "interval": Route(
        1,
        _reads(is_interval),
        *_compared(compare_intervals),
        claims=_claims_interval,
        takes_or=True,
    ),
    "set": Route(1, _reads(is_set), *_compared(compare_sets), takes_or=True),
    "tuple": Route(1, _reads(is_tuple), _quick_tuple, _slow_tuple),
    "unordered_list": Route(
        1,
        _reads(is_items),
        *_compared(compare_unordered),
        claims=lambda r, question: _reads(is_list)(r, question) and is_any_order(question),
        takes_or=True,
    ),
    "list": Route(1, _reads(is_items), *_compared(_compare_lists), claims=_reads(is_list)),
    "expression": Route(2, _reads(is_expression), _quick_expression, _slow_expression),
    "cell": Route(1, _reads(is_cell), quick_cell, claims=lambda r, question: False),
    "transcription": Route(
        1,
        lambda r, question: is_transcription(r),
        lambda r, a, question: transcription_score(r, a) == 1.0,
        claims=lambda r, question: False,
        grade=transcription_score,
    ),
    "text": Route(2, _is_text, _quick_text, claims=_is_short_text),
    NATURAL: Route(1, lambda r, question: True, _quick_natural),
}
