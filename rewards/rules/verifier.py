"""Rule verification: does a response say the same as the reference?

Which answer does the text claim (reading/candidates.py), and is that claim, in one of its readings
(reading/claims.py), equal to the reference by the rules of its kind (routes.py)? What string work
cannot settle is left to sympy and pint, in a killable worker. Loads without torch and sympy.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, zip_longest

from rewards.rules.kinds.choices import chosen_text, contradicts_option
from rewards.rules.kinds.comparison import Ask
from rewards.rules.kinds.expressions import UnparsedReference, is_too_large
from rewards.rules.kinds.members import names_differ
from rewards.rules.reading.candidates import MAX_CHARACTERS, Candidate, claimed
from rewards.rules.reading.claims import hedges, readings, talks_to_grader
from rewards.rules.reading.notation import plain, plain_words, settle
from rewards.rules.reading.numbers import number_literal
from rewards.rules.reading.units import read_unit
from rewards.rules.routes import MAX_RULE_CHARACTERS, NATURAL, ROUTES, Kind
from rl.data.references import accepted_answers
from rl.loop.stages import Route

MAX_QUESTION_CHARACTERS = 20_000
"""What is behind them is not read: a question may hold a whole document."""
MAX_SHOWN_CHARACTERS = 200
MAX_READINGS = 40
UNVERIFIABLE = "unverifiable"
"""Begins the reason of a response that is wrong because evaluating it breaks the limits."""

# Only a text with one of these is searched for an answer; any other reference is one, all of it.
_MARKER = re.compile(r"(?i)\\f?box|<answer>|answer|答案|\*\*|(?:^|\n)A:")
_OR = re.compile(r"(?i)\bor\b|或者?")
_EITHER = re.compile(
    r"(?i),?\s*(?:\\(?:text|mathrm|mbox)\s?\{\s*or\s*\}|\bor\b|或者?)(?:,?\s*equivalently\b,?)?\s*"
)
MAX_WAYS = 3
"""Ways to write one value that a claim may give."""
# "We get 12!" is a cry where it is prose: nobody means so large a factorial. 5! is one.
_CRY = re.compile(r"(?:(?<=[0-9]{3})|(?<=\s[0-9]{2}))!$")


class NotScorable(ValueError):
    """The reference cannot be checked by rules; says why."""


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one response, and why."""

    accuracy: float | None
    """None leaves the decision to `symbolic`."""
    route: Route
    """Which kind decided."""
    claimed: str = ""
    """The final answer that was read."""
    how: str = ""
    """How it was found: `box`, `tag`, `marker` or `last claim`; nothing where none was."""
    why: str = ""
    """Why it is no full score, in a few words."""


def verify_quickly(reference: str, answer: str, task: str = "auto", question: str = "") -> Verdict:
    """Compare by string work alone; accuracies between 0 and 1 come from the graded routes only.

    task: a route's name, or `auto` to choose by the reference. question: read for options, units
    and whether order matters. Raises NotScorable for a reference that no route takes, and for one
    in natural language that the answer does not repeat.
    """
    name = route_of(reference, task, question)
    # Read even where it decides nothing: people want to see what was read.
    candidate = claimed(answer)
    shown, how = (candidate.text[:MAX_SHOWN_CHARACTERS], candidate.how) if candidate else ("", "")
    ask = Ask(question[:MAX_QUESTION_CHARACTERS])
    accuracy, why = _decide(reference, answer, candidate, task, ask)
    return Verdict(accuracy, Route(name, ROUTES[name].version), shown, how, why)


def symbolic(reference: str, answer: str, task: str = "auto", question: str = "") -> float:
    """Decide what `verify_quickly` left open. Slow and unbounded: only for killable workers.

    Raises NotScorable for a reference that sympy cannot read.
    """
    ask = Ask(question[:MAX_QUESTION_CHARACTERS], may_load=True)
    return _decide(reference, answer, claimed(answer), task, ask)[0] or 0.0


def check_reference(reference: str, task: str = "auto", question: str = "") -> float:
    """Evaluate a reference beside a number: if that ends, what did not end is the response's fault.
    Only for killable workers."""
    ask = Ask(question[:MAX_QUESTION_CHARACTERS], may_load=True)
    for text in accepted_answers(reference):
        name, wanted = _resolved(text, task, ask.question)
        ROUTES[name].equal(wanted, "7.5", ask)
    return 1.0


def route_of(reference: str, task: str = "auto", question: str = "") -> str:
    """The route of a reference, by the first of its answers; raises NotScorable if it has none."""
    return _resolved(accepted_answers(reference)[0], task, question[:MAX_QUESTION_CHARACTERS])[0]


def reference_answer(reference: str) -> str:
    """The answer a reference states, out of its `\\boxed{}`; raises NotScorable if it has none."""
    # A reference that long is a document, and no answer.
    if len(reference) > MAX_CHARACTERS:
        raise NotScorable(f"the reference is {len(reference)} characters long, without an answer")
    # GSM8K writes its answers so.
    stated = reference.rpartition("####")[2].strip()
    candidate = claimed(stated) if _MARKER.search(stated) else None
    wanted = candidate.text if candidate and candidate.is_marked else stated
    if not plain(wanted):
        raise NotScorable("the reference is empty")
    return wanted


@lru_cache(maxsize=512)
def _resolved(text: str, task: str, question: str) -> tuple[str, str]:
    """Route and answer of one accepted answer; kept, as a group of responses shares them."""
    kind = ROUTES.get(task)
    # What is graded character by character is the reference as it stands.
    wanted = text if kind and kind.grade else reference_answer(text)
    # Bounded here for all kinds, whose patterns need not care how long a text is then.
    is_short = len(wanted) <= MAX_RULE_CHARACTERS
    if task == "auto":
        kinds = ROUTES.items() if is_short else ()
        fitting = (name for name, kind in kinds if (kind.claims or kind.reads)(wanted, question))
        return next(fitting, NATURAL), wanted
    if kind is None:
        raise NotScorable(f"there is no reward for task {task!r}, only auto, {', '.join(ROUTES)}")
    if not (is_short or kind.grade or task == NATURAL) or not kind.reads(wanted, question):
        raise NotScorable(f"the reference is not of task {task!r}: {wanted[:80]!r}")
    return task, wanted


def _decide(
    reference: str, answer: str, candidate: Candidate | None, task: str, ask: Ask
) -> tuple[float | None, str]:
    """Accuracy and reason by the best of the accepted answers; None where it takes a worker."""
    accepted = accepted_answers(reference)
    kind = ROUTES.get(task)
    if kind and kind.grade:
        score = kind.grade(accepted, answer, ask.question)
        return score, "" if score == 1 else f"{task} gives {score:.3g}"
    decided: list[tuple[float | None, str]] = []
    for text in accepted:
        decided.append(_compared(*_resolved(text, task, ask.question), answer, candidate, ask))
        if decided[-1][0] == 1:
            break
    # Any accepted answer is enough; an open one may still be right.
    return max(decided, key=lambda verdict: 0.5 if verdict[0] is None else verdict[0])


def _compared(
    name: str, wanted: str, answer: str, candidate: Candidate | None, ask: Ask
) -> tuple[float | None, str]:
    """Accuracy and reason by one accepted answer."""
    kind, text = ROUTES[name], candidate.text if candidate else ""
    unhedged = _OR.sub(" ", text) if kind.takes_or else text
    if name == NATURAL:
        if plain_words(wanted) not in (plain_words(answer), plain_words(text)):
            raise NotScorable("natural language: needs the probability reward")
        return 1.0, ""
    if is_too_large(wanted):
        # A tower of powers is itself as it is written, and no number that can be written out.
        if "".join(text.split()) == "".join(wanted.split()):
            return 1.0, ""
        if number_literal(text) is None:
            raise NotScorable("the reference holds a number too large to evaluate")
        return 0.0, "differs"
    if candidate is None or not text.strip():
        return 0.0, "no answer is claimed"
    is_open = hedges(unhedged, wanted)
    try:
        # What is left open may be no more than how to write what is right.
        is_right = (
            is_open and not is_too_large(text) and _all_are_right(kind, wanted, candidate, ask)
        )
        # What makes a claim no answer is the same for all kinds.
        refusals = {
            "what is claimed is too long for an answer": len(text) > MAX_RULE_CHARACTERS,
            "talks to the grader": not candidate.is_marked and talks_to_grader(text),
            "leaves open which of several it means": is_open and not is_right,
            "letter and text name different options": contradicts_option(text, ask.question),
            "names another letter": names_differ(wanted, text),
            f"{UNVERIFIABLE}: a number too large to evaluate": is_too_large(text),
        }
        if why := next((why for why, is_so in refusals.items() if is_so), ""):
            return 0.0, why
        verdict = is_right or _any_reading(kind, wanted, candidate, ask)
    except UnparsedReference as error:
        raise NotScorable(str(error)) from error
    return (None, "") if verdict is None else (float(verdict), "" if verdict else "differs")


def _all_are_right(kind: Kind, wanted: str, candidate: Candidate, ask: Ask) -> bool:
    """Whether a claim leaves only open how to write what is right: 3/2, or equivalently 1.5."""
    parts = [part.strip(" ,.;") for part in _EITHER.split(candidate.text)]
    # Each by itself has to be right, so nothing is gained by a guess.
    return 1 < len(parts) <= MAX_WAYS and all(
        part
        and not hedges(part, wanted)
        and _any_reading(kind, wanted, replace(candidate, text=part), ask)
        for part in parts
    )


def _any_reading(kind: Kind, wanted: str, candidate: Candidate, ask: Ask) -> bool | None:
    """True if one reading of the claim is right, None if one may be."""
    texts = [candidate.text]
    if kind.takes_or and candidate.members:
        # One box for each member.
        texts.append(", ".join(candidate.members))
    if candidate.is_marked:
        # The unit may stand right behind a box: $\boxed{28}$ metres.
        words = re.sub(r"^[$)\\\]\s,]{0,6}", "", candidate.after).split()[:3]
        phrases = (" ".join(words[:size]).strip(".,;$") for size in (3, 2, 1))
        units = [phrase for phrase in phrases if phrase and read_unit(plain(phrase))]
        texts += [f"{candidate.text} {unit}" for unit in units[:1]]
    if candidate.how != "box":
        texts.append(_CRY.sub("", candidate.text))
    is_open = False
    stated = (values for text in texts for values in readings(text, ask.question))
    # Bounded, since each reading may take sympy some milliseconds.
    for values in islice(stated, MAX_READINGS):
        options = [chosen_text(value, ask.question) for value in values if kind.takes_option]
        texts = [option or value for value, option in zip_longest(values, options)]
        verdict = settle([kind.equal(wanted, text, ask) for text in texts])
        if verdict:
            return True
        is_open |= verdict is None
    return None if is_open else False
