"""Partial credit by the standard measures of text, documents, charts and pictures: a task each.

transcription  one minus the edit distance over the longer length, 0 below LEAST
anls           DocVQA, InfographicVQA: average normalised Levenshtein similarity, 0 where that is
               half or less (Biten et al. 2019, https://arxiv.org/abs/1905.13648, eq. 1)
relaxed        ChartQA: a number may be 5 % off, text must match
               (Masry et al. 2022, https://arxiv.org/abs/2203.10244, section 5.1)
vqa            TextVQA, VQA: min(matches / 3, 1) over the annotators, averaged over leaving out one
               (Antol et al. 2015, https://arxiv.org/abs/1505.00468, and its evaluation code)

A reference may list several accepted answers; anls and relaxed take the best of them. The whole
answer is scored, or what its last `<answer>` tag, `\\boxed{}` or "Answer:" holds.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain, groupby, islice
from unicodedata import combining

from rapidfuzz.distance import Levenshtein

from rewards.rules.reading.candidates import MAX_CHARACTERS, claimed, unfenced, without_reasoning
from rewards.rules.reading.notation import plain
from rewards.rules.reading.numbers import SMALL

MAX_REFERENCE_CHARACTERS = 4000
"""A longer reference is refused: comparing takes time by the product of the lengths, and a densely
printed page is shorter. To cut it would reward a policy for stopping early. An answer needs no
bound of its own: one that is much longer scores 0 by its length alone."""
LEAST = 0.6
"""Below this a transcription scores 0, so that noise is not paid. Measured on rendered pages, two
lines that have nothing to do with each other are 0.23 alike, and of 3,000 pairs 99 in 100 below
0.34; whole pages of one form that state different facts are 0.55 alike, 4 in 5 below 0.6."""
ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
VQA_ANNOTATORS = 3
"""So many of them have to agree for the full score."""
MAX_MARKS = 30
"""Combining marks in a row that are kept, as in Unicode's stream-safe format (UAX 15): to put
longer runs into order takes quadratic time."""

_ASKS_YEAR = re.compile(r"(?i)\b(?:which|what|in the) year|\bwhen\b")
# The normalisation of the VQA evaluation code: articles, number words, marks between words.
_VQA_ARTICLES = frozenset({"a", "an", "the"})
_VQA_NUMBERS = {word: str(number) for word, number in SMALL.items() if number <= 10}
_VQA_NUMBERS["none"] = "0"
_VQA_MARKS = re.compile(r"(?<!\d)[.](?!\d)|[;/\[\]\"{}()=+\\_><@`?!:*]|(?<!\d),|,(?!\d)")


def transcription_score(references: Sequence[str], answer: str, question: str = "") -> float:
    """How much of the reference an answer transcribes: 0, or LEAST to 1.

    Case and punctuation matter as every character does; Unicode forms (NFKC) and runs of white
    space do not. Takes milliseconds whatever the answer is, so it needs no killable worker.
    """
    if len(answer) > MAX_CHARACTERS:
        return 0.0
    text = without_reasoning(answer).strip()
    # A page may hold such marks itself, so the whole answer is scored beside what they enclose.
    readings = [text, unfenced(text)]
    for opening, closing in (("<answer>", "</answer>"), ("\\boxed{", "}")):
        _, mark, rest = text.rpartition(opening)
        enclosed, end, _ = rest.rpartition(closing)
        if mark and end:
            readings.append(enclosed)
            break
    return max(
        similarity(normalised(reference), normalised(reading), LEAST)
        for reference in references
        for reading in readings
    )


def anls_score(references: Sequence[str], answer: str, question: str = "") -> float:
    given = " ".join(_short(answer).casefold().split())
    return max(
        similarity(" ".join(reference.casefold().split()), given, ANLS_THRESHOLD, strictly=True)
        for reference in references
    )


def relaxed_score(references: Sequence[str], answer: str, question: str = "") -> float:
    given = _short(answer)
    return float(any(_is_near(reference, given, question) for reference in references))


def vqa_score(references: Sequence[str], answer: str, question: str = "") -> float:
    """A list of references holds what each annotator said, repetitions included."""
    given = _vqa_words(_short(answer))
    said = [_vqa_words(reference) for reference in references]
    if len(said) == 1:
        return float(said[0] == given)
    matches = said.count(given)
    # Leaving out one annotator at a time, as the evaluation code does: m of them matched.
    with_one_less = min(max(matches - 1, 0) / VQA_ANNOTATORS, 1.0)
    with_all = min(matches / VQA_ANNOTATORS, 1.0)
    return (matches * with_one_less + (len(said) - matches) * with_all) / len(said)


def is_gradable(reference: str, question: str = "") -> bool:
    """Whether a reference is short enough, and not blank."""
    # One character may stand for many: NFKC turns U+FDFA into eighteen.
    most = MAX_REFERENCE_CHARACTERS
    return len(reference) <= most and 0 < len(normalised(reference)) <= most


def normalised(text: str) -> str:
    """Return the text in Unicode's form NFKC, with single spaces for runs of white space."""
    if not text.isascii():
        runs = groupby(text, lambda sign: combining(unicodedata.normalize("NFKD", sign)[0]) > 0)
        kept = (islice(run, MAX_MARKS if is_mark else None) for is_mark, run in runs)
        text = "".join(chain.from_iterable(kept))
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


def similarity(left: str, right: str, least: float, strictly: bool = False) -> float:
    """One minus the edit distance over the longer length; 0 if that is below `least`, or if it is
    `least` and has to be above it."""
    longer = max(len(left), len(right))
    if not longer:
        return 1.0
    # The difference in length is the least that any edit takes.
    if min(len(left), len(right)) / longer < least:
        return 0.0
    alike = (longer - Levenshtein.distance(left, right)) / longer
    return alike if alike > least or (alike == least and not strictly) else 0.0


def _short(answer: str) -> str:
    """The answer that a text gives: all of it, without emphasis and a closing full stop."""
    if len(answer) > MAX_CHARACTERS:
        return ""
    # A marked answer stands alone; without a mark the whole text is what was answered.
    candidate = claimed(answer)
    text = candidate.text if candidate and candidate.is_marked else without_reasoning(answer)
    return plain(text.strip())


def _is_near(reference: str, answer: str, question: str) -> bool:
    wanted, given = _chart_number(reference), _chart_number(answer)
    if wanted is None or given is None:
        return plain(reference).casefold() == answer.casefold()
    # Years are labels of a chart: 5 % of one would be a century.
    if _ASKS_YEAR.search(question):
        return wanted == given
    return abs(given - wanted) <= RELAXED_TOLERANCE * abs(wanted)


def _chart_number(text: str) -> float | None:
    text = text.strip().replace(",", "").removeprefix("$")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _vqa_words(text: str) -> str:
    words = _VQA_MARKS.sub(" ", text.casefold()).replace(",", "").split()
    return " ".join(_VQA_NUMBERS.get(word, word) for word in words if word not in _VQA_ARTICLES)


GRADED: dict[str, Callable[[Sequence[str], str, str], float]] = {
    **{"transcription": transcription_score, "anls": anls_score},
    **{"relaxed": relaxed_score, "vqa": vqa_score},
}
