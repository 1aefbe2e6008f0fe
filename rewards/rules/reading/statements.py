"""Reads one final answer as a person does: what a short sentence states, what it hedges, and
whether it talks to the grader instead of answering."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.rules.reading import phrases
from rewards.rules.reading.answers import SUPPOSED, sentences
from rewards.rules.reading.asked import (
    MAX_QUESTION_CHARS,
    PLACES,
    Asked,
    beside_chinese,
    beside_question,
)

MAX_STATEMENT_CHARS = 400
"""A longer final answer is only read as it stands."""
MAX_SUBJECT_WORDS = 16
MAX_VERBS = 4

_NOTHING = Asked.of("")


def hedges(answer: str, reference: str) -> bool:
    """Whether an answer leaves open which of several it gives; words of the reference do not."""
    known = reference.casefold()
    return any(found.casefold() not in known for found in phrases.HEDGE.findall(answer))


def talks_to_grader(text: str, question: str = "") -> bool:
    """Whether a text asks for its score, or points at the reference, instead of answering.

    To repeat what the question says is no such talk.
    """
    known = question[:MAX_QUESTION_CHARS].casefold()
    return any(found.group().casefold() not in known for found in phrases.GRADER.finditer(text))


def readings(final: str, question: str = "") -> list[tuple[str, ...]]:
    """Return what a final answer may state, its own wording first.

    Each reading is one or more values, all of which have to be right: "1/2 = 0.5" and
    "twelve (12)" state two. A short sentence is read for what it says after its verb ("The
    capital is Paris") or before it ("Paris is the capital"), or beside words of the question,
    unless it denies or compares.

    Example: ("Paris",) in readings("So the capital is Paris.")
    """
    found: dict[tuple[str, ...], None] = {(final,): None}
    if len(final) > MAX_STATEMENT_CHARS:
        return list(found)
    if (headed := phrases.HEADED.fullmatch(final)) and not phrases.DENIAL.search(headed[1]):
        found[(headed[2],)] = None
    stated = _last_statement(final)
    if stated is not None:
        last, others = stated
        asked = Asked.of(question)
        for value in (last, *_sentence_values(last, asked)):
            for values in _values(value, asked):
                found[values + others] = None
    return list(found)


def _last_statement(final: str) -> tuple[str, tuple[str, ...]] | None:
    """The sentence that states the answer, and the bare values that others beside it state.

    None where a later sentence takes the answer back.
    """
    text = phrases.DISPLAYED.sub(lambda shown: " ".join(shown.group().split()), final)
    pieces = [
        one for one in sentences(phrases.OPEN_LINE.sub(" ", text)) if not phrases.POLITE.search(one)
    ]
    if len(pieces) < 2:
        return (pieces[0] if pieces else final), ()
    rest = pieces[1:]
    is_first = bool(phrases.BARE_VALUE.fullmatch(pieces[0].strip()))
    if is_first and not any(_may_be_value(one) or phrases.DENIAL.search(one) for one in rest):
        return pieces[0], ()
    if phrases.HEDGE.match(pieces[-1]) or phrases.DENIAL.match(pieces[-1]):
        return None
    rivals = (one for one in _bare_values(pieces) if not _is_of_another(one, pieces[-1]))
    return pieces[-1], tuple(_sentence_values(one)[-1] for one in rivals)


def _bare_values(pieces: Sequence[str]) -> list[str]:
    """Those in front of the last sentence; none where they are the lines of a list or a table."""
    others = (one.strip() for one in pieces[:-1] if not one.startswith("|"))
    found = [one for one in others if _is_bare_value(one)]
    is_working = len(found) > 1 and len(pieces[-1].split()) > 1
    return [] if is_working else found


def _is_of_another(sentence: str, last: str) -> bool:
    """Whether both say of what they speak, and speak of different things."""
    subjects = [phrases.SUBJECT.match(one) for one in (sentence, last)]
    names = [subject[1].casefold() for subject in subjects if subject]
    return len(names) == 2 and names[0] != names[1]


def _may_be_value(sentence: str) -> bool:
    return len(sentence.split()) == 1 or bool(re.search(r"\d", sentence))


def _is_bare_value(sentence: str) -> bool:
    is_reply = sentence.casefold().strip(".!") in ("no", "yes")
    return (
        bool(phrases.BARE_VALUE.fullmatch(sentence))
        and not is_reply
        and not sentence.endswith(("?", ",", ":"))
    )


def _sentence_values(sentence: str, asked: Asked = _NOTHING) -> list[str]:
    """What a sentence may say its value is; itself at least."""
    if SUPPOSED.match(sentence) or phrases.ABOUT_ANSWER.search(sentence):
        return [sentence]
    clauses = _clauses(sentence)
    said = [sentence, *clauses, *_set_apart(sentence.strip())]
    clause = clauses[-1]
    begin = 0
    for copula in list(phrases.COPULA.finditer(clause))[:MAX_VERBS]:
        if begin and phrases.NEXT_CLAUSE.search(clause, begin, copula.start()):
            # "The car is red and the house is blue" has no one value.
            break
        begin = copula.end()
        subject = clause[: copula.start()]
        # "He died in Berlin" does not say where he was born.
        is_known = copula.group().strip() not in PLACES or asked.covers(subject)
        verb = phrases.VERB.match(copula.group())
        owned = phrases.OWNED.search(subject)
        is_known &= not verb or asked.covers(verb.group())
        is_known &= not owned or _is_asked(owned[1] or owned[2], asked)
        if clause[begin:].strip() and is_known and _is_plain_subject(subject):
            said.append(clause[begin:])
    for form in (phrases.ASSIGNED, phrases.APPOSED, phrases.AFTER_COLON):
        apart = form.fullmatch(clause)
        if apart and _is_plain_subject(apart[1]):
            said.append(apart[2])
    if not phrases.DENIAL.search(clause):
        first = phrases.VALUE_FIRST.fullmatch(clause)
        if first and asked.covers(first[2] or ""):
            said.append(first[1] or first[3])
        if holding := phrases.HOLD.fullmatch(phrases.END.sub("", clause)):
            said.append(holding[1])
    said += [beside_question(one, asked) for one in clauses]
    said.append(beside_chinese(clause, asked))
    return [one for one in dict.fromkeys(said) if one]


def _is_asked(noun: str, asked: Asked) -> bool:
    return asked.covers(noun) or noun.casefold() in phrases.GENERIC


def _clauses(sentence: str) -> list[str]:
    """The sentence without "so we get" in front and "because ..." behind, step by step."""
    text = sentence.strip().lstrip("= ")
    found = [text]
    for opening in (phrases.LEAD, phrases.WE_GET):
        if match := opening.match(text):
            text = text[match.end() :]
            found.append(text)
    for conclusion in list(phrases.SO.finditer(text))[-1:]:
        text = text[conclusion.end() :]
        text = text[match.end() :] if (match := phrases.WE_GET.match(text)) else text
        found.append(text)
    reason = phrases.REASON.search(text)
    if reason and text[: reason.start()].strip():
        found.append(text[: reason.start()])
    return found


def _set_apart(text: str) -> list[str]:
    """The one part of a sentence that is bold, and the one that is mathematics."""
    found: list[str] = []
    for form in (phrases.BOLD, phrases.MATHS):
        parts = form.findall(text)
        # "The inverse of $A$" is not $A$.
        is_related = phrases.RELATED.search(form.sub("**", text).partition("**")[0])
        if len(parts) == 1 and not is_related and not phrases.DENIAL.search(form.sub(" ", text)):
            found.append(parts[0])
    return found


def _is_plain_subject(subject: str) -> bool:
    return len(subject.split()) <= MAX_SUBJECT_WORDS and not phrases.DENIAL.search(subject)


def _values(value: str, asked: Asked = _NOTHING) -> list[tuple[str, ...]]:
    """One value, or the several that an equation or a parenthesis puts side by side."""
    text = value.strip().removesuffix(".").removesuffix("。")
    found: list[tuple[str, ...]] = [(value,)]
    parts = [text] if "=" not in text else [_part(part) for part in text.split("=")]
    parts[-1] = _without_place(parts[-1], asked)
    if 1 < len(parts) <= 6 and all(parts):
        found.append(tuple(parts))
        if phrases.NAME.fullmatch(parts[0]) or phrases.WORKING.fullmatch(parts[0]):
            # The working may stay undone on the way, but no other number may.
            others = (part for part in parts[:-1] if phrases.BARE_NUMBER.fullmatch(part))
            found.append((*others, parts[-1]))
    elif parts != [text]:
        found.append(tuple(parts))
    if both := phrases.PARENTHESIS.fullmatch(text):
        found.append((both[1], both[2]))
    return found


def _part(text: str) -> str:
    """A side of an equation, without half a pair of dollar signs; one before a digit is money."""
    text = text.strip(" *")
    if text.count("$") % 2 == 0:
        return text
    return text[:-1] if text.endswith("$") else re.sub(r"^\$(?![0-9])", "", text)


def _without_place(text: str, asked: Asked) -> str:
    """The number of "720 ways to arrange the books", unless the question is of something else."""
    placed = phrases.PLACED.fullmatch(text)
    if not placed or phrases.DENIAL.search(text):
        return text
    return placed[1] if asked.covers(placed[2] or "") else text
