"""Partial credit for text read off a picture: one minus the edit distance over the longer length.

The score is of the answer as a whole, or of what stands in its `<answer>` tag, `\\boxed{}` or code
fence if that is more alike: pages hold such marks, too. Case and punctuation matter as every
character does; Unicode forms (NFKC) and runs of white space do not.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby, islice

from rewards.rules.reading.answers import MAX_CHARACTERS

MAX_REFERENCE_CHARACTERS = 4000
"""A longer reference is refused: comparing takes time by the product of the lengths, 7 ms at this
one, and a densely printed page is shorter. To cut it would reward a policy for stopping early. An
answer needs no bound of its own: one that is much longer scores 0 by its length alone.
"""
LEAST = 0.6
"""Below this a score is 0, so that noise is not paid. Measured on rendered pages, two lines that
have nothing to do with each other are 0.23 alike, and of 3,000 pairs 99 in 100 below 0.34; whole
pages of one form that state different facts are 0.55 alike, 4 in 5 of them below 0.6."""
MAX_MARKS = 30
"""Combining marks in a row that are kept, as in Unicode's stream-safe format (UAX 15): to put
longer runs into order takes quadratic time."""

_FENCE = re.compile(r"```[a-zA-Z]{0,10}[ \t]{0,3}\n(.*?)\n?```", re.DOTALL)
_OPEN, _CLOSE, _BOX = "<answer>", "</answer>", "\\boxed{"
_THOUGHT_END = "</think>"


def transcription_score(reference: str, answer: str) -> float:
    """How much of the reference an answer transcribes: 0, or LEAST to 1.

    Takes milliseconds whatever the answer is, so it needs no killable worker.
    """
    if len(answer) > MAX_CHARACTERS:
        return 0.0
    wanted = normalised(reference)
    return max(similarity(wanted, normalised(text)) for text in _readings(answer))


def is_transcription(reference: str) -> bool:
    """Whether a reference is short enough, and not blank."""
    if len(reference) > MAX_REFERENCE_CHARACTERS:
        return False
    # One character may stand for many: NFKC turns U+FDFA into eighteen.
    return 0 < len(normalised(reference)) <= MAX_REFERENCE_CHARACTERS


def normalised(text: str) -> str:
    """Return the text in Unicode's form NFKC, with single spaces for runs of white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _stream_safe(text))
    return " ".join(text.split())


def similarity(left: str, right: str) -> float:
    """One minus the edit distance over the longer length; 0 if that is below LEAST.

    Example: similarity("Velden 1887", "Velden 1881") == 10 / 11
    """
    shorter, longer = sorted((left, right), key=len)
    if not longer:
        return 1.0
    # The difference in length is the least that any edit takes.
    if len(shorter) / len(longer) < LEAST:
        return 0.0
    alike = (len(longer) - edit_distance(left, right)) / len(longer)
    return alike if alike >= LEAST else 0.0


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn one into the other.

    A column of the table of distances is two integers, whose bits are its steps up and down, so a
    character of `right` takes a few operations on integers with a bit per character of `left`
    (Myers 1999, https://doi.org/10.1145/316542.316550, in Hyyrö's form for whole strings).
    """
    if not left or not right:
        return max(len(left), len(right))
    places: dict[str, int] = {}
    for place, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << place
    everywhere, last = (1 << len(left)) - 1, 1 << len(left) - 1
    up, down, distance = everywhere, 0, len(left)
    for character in right:
        same = places.get(character, 0)
        vertical = same | down
        diagonal = ((same & up) + up ^ up) | same
        right_up = down | ~(diagonal | up) & everywhere
        right_down = up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1 | 1) & everywhere
        right_down = right_down << 1 & everywhere
        up = right_down | ~(vertical | right_up) & everywhere
        down = right_up & vertical
    return distance


def _readings(answer: str) -> tuple[str, ...]:
    """The answer, and what its last tag, else its last box, else a fence around it holds."""
    text = answer[_after(answer, _THOUGHT_END) :].strip()
    if (opened := _after(text, _OPEN)) and (closed := text.find(_CLOSE, opened)) >= 0:
        return text, text[opened:closed]
    if (opened := _after(text, _BOX)) and (closed := text.rfind("}")) >= opened:
        return text, text[opened:closed]
    fenced = _FENCE.fullmatch(text)
    return (text, fenced[1]) if fenced else (text,)


def _after(text: str, mark: str) -> int:
    """Where the last `mark` ends; 0 if there is none."""
    place = text.rfind(mark)
    return 0 if place < 0 else place + len(mark)


def _stream_safe(text: str) -> str:
    """The text without what exceeds MAX_MARKS in a run of combining marks."""
    runs = groupby(text, key=_is_mark)
    return "".join("".join(islice(run, MAX_MARKS if is_mark else None)) for is_mark, run in runs)


def _is_mark(character: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) > 0
