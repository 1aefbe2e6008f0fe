"""Rule verification: does a response say the same as the reference?

Two steps: which answer does the text claim, and how was it found (reading/candidates.py); and is
that claim, in one of its readings (reading/claims.py), equal to the reference by the rules of the
reference's kind (routes.py)? What plain string work cannot settle is left to sympy (algebra.py) and
pint, which run in a killable worker (rewards/text/workers.py). Loads without torch and sympy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from rewards.rules.kinds.choices import contradicts_option
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

MAX_SHOWN_CHARACTERS = 200
MAX_READINGS = 40
UNVERIFIABLE = "unverifiable"
"""Begins the reason of a response that is wrong because it cannot be evaluated within the
limits."""

# Only a text with one of these is searched for an answer; any other reference is one, all of it.
_MARKER = re.compile(r"\\f?box|<answer>|answer|答案|\*\*|(?:^|\n)A:", re.IGNORECASE)
_OR = re.compile(r"\bor\b|或者?", re.IGNORECASE)


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
    """Compare by string work alone: 1.0 only if the claimed answer is the reference, and less than
    that, but not 0, on a route that gives partial credit alone.

    task: a route's name, or `auto` to choose by the reference. question: read for options, units
    and whether order matters. Raises NotScorable for a reference that no route takes, and for one
    in natural language that the answer does not repeat.
    """
    name = route_of(reference, task, question)
    # Read even where it decides nothing: people want to see what was read.
    candidate = claimed(answer)
    verdict = Verdict(0.0, Route(name, ROUTES[name].version))
    if candidate is not None:
        shown = candidate.text[:MAX_SHOWN_CHARACTERS]
        verdict = replace(verdict, claimed=shown, how=candidate.how)
    accuracy, why = _decide(reference, answer, candidate, task, Ask(question))
    return replace(verdict, accuracy=accuracy, why=why)


def symbolic(reference: str, answer: str, task: str = "auto", question: str = "") -> float:
    """Decide what `verify_quickly` left open. Slow and unbounded: only for killable workers.

    Raises NotScorable for a reference that sympy cannot read.
    """
    ask = Ask(question, may_load=True)
    return _decide(reference, answer, claimed(answer), task, ask)[0] or 0.0


def check_reference(reference: str, task: str = "auto", question: str = "") -> float:
    """Evaluate a reference alone, beside a number; if that ends, whatever did not end with a
    response is the response's fault. Only for killable workers."""
    ask = Ask(question, may_load=True)
    for text in accepted_answers(reference):
        name, wanted = _resolved(text, task, question)
        ROUTES[name].equal(wanted, "7.5", ask)
    return 1.0


def route_of(reference: str, task: str = "auto", question: str = "") -> str:
    """The route a reference takes, the first of its accepted answers if it has several; raises
    NotScorable if there is none."""
    return _resolved(accepted_answers(reference)[0], task, question)[0]


def reference_answer(reference: str) -> str:
    """Return the answer a reference states, out of its `\\boxed{}` or the like.

    Raises NotScorable for a reference that states none.
    """
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
    if task == "auto":
        name = next(name for name, kind in ROUTES.items() if kind.applies(wanted, question))
        return name, wanted
    if kind is None:
        raise NotScorable(f"there is no reward for task {task!r}, only auto, {', '.join(ROUTES)}")
    if not kind.reads(wanted, question):
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
    found: list[tuple[float | None, str]] = []
    for text in accepted:
        name, wanted = _resolved(text, task, ask.question)
        if name == NATURAL:
            texts = (answer, candidate.text if candidate else "")
            if not any(plain_words(wanted) == plain_words(said) for said in texts):
                raise NotScorable("natural language: needs the probability reward")
            return 1.0, ""
        if is_too_large(wanted):
            # A tower of powers is itself as it is written, and no number that can be written out.
            if candidate and "".join(candidate.text.split()) == "".join(wanted.split()):
                return 1.0, ""
            if candidate is None or number_literal(candidate.text) is None:
                raise NotScorable("the reference holds a number too large to evaluate")
            found.append((0.0, "differs"))
            continue
        # What makes a claim no answer is the same for all kinds.
        why = _refusal(ROUTES[name], wanted, candidate, ask.question)
        if candidate is None or why:
            found.append((0.0, why))
            continue
        try:
            verdict = _any_reading(ROUTES[name], wanted, candidate, ask)
        except UnparsedReference as error:
            raise NotScorable(str(error)) from error
        found.append(
            (None, "") if verdict is None else (float(verdict), "" if verdict else "differs")
        )
        if verdict:
            break
    # Any accepted answer is enough; an open one may still be right.
    return max(found, key=lambda decided: 0.5 if decided[0] is None else decided[0])


def _refusal(kind: Kind, wanted: str, candidate: Candidate | None, question: str) -> str:
    """Why a claim is no answer, whatever it says; nothing if it may be one."""
    if candidate is None or not candidate.text.strip():
        return "no answer is claimed"
    text = candidate.text
    stated = _OR.sub(" ", text) if kind.takes_or else text
    found = {
        "what is claimed is too long for an answer": len(text) > MAX_RULE_CHARACTERS,
        "talks to the grader": not candidate.is_marked and talks_to_grader(text),
        "leaves open which of several it means": hedges(stated, wanted),
        "letter and text name different options": contradicts_option(text, question),
        "names another letter": names_differ(wanted, text),
        f"{UNVERIFIABLE}: a number too large to evaluate": is_too_large(text),
    }
    return next((why for why, is_so in found.items() if is_so), "")


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
    is_open = False
    # Bounded, since each reading may take sympy some milliseconds.
    budget = MAX_READINGS
    for text in texts:
        for values in readings(text, ask.question):
            verdict = settle([kind.equal(wanted, value, ask) for value in values])
            if verdict:
                return True
            is_open |= verdict is None
            budget -= 1
            if not budget:
                break
    return None if is_open else False
