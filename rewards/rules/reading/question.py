"""The words of a question, to tell what a sentence repeats of it from what it says of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rewards.rules.reading.numbers import words_to_number
from rewards.rules.reading.wording import words

_EMPTY = frozenset(words("empty"))
_VERDICTS = frozenset(words("verdicts"))
_SAME_STEM = dict(pair.split("=", 1) for pair in words("same_stem"))
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_OPTIONS = re.compile(r"(?:^|(?<=\s))[(（]?A\s?[.)）、．:：]\s")


@dataclass(frozen=True)
class Question:
    text: str
    """Without the options of a multiple choice."""
    stems: tuple[str, ...]
    numbers: frozenset[str]
    """In digits, words and digits alike."""

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, question: str) -> Question:
        text = _OPTIONS.split(question, maxsplit=1)[0]
        spelled = {str(words_to_number(word)) for word in _WORD.findall(text.casefold())}
        numbers = frozenset({*_NUMBER.findall(text), *spelled} - {"None"})
        return cls(text, tuple(stems(text)), numbers)

    def covers(self, words: str) -> bool:
        """Whether words add nothing to the question; without a question, always."""
        return not self.stems or {*stems(words)} <= _VERDICTS.union(self.stems)

    def echoes(self, word: str) -> bool:
        """Whether a word is of the question, or says nothing."""
        bare = re.sub(r"['’]s$", "", word.strip("'\"“”,:—-*")).casefold()
        if not bare or bare in _EMPTY:
            # "A" may be an option or a name, and an article that stays does no harm.
            return word.strip(",") != "A"
        # The question may say three where the sentence says 3.
        number = str(words_to_number(bare) or bare)
        return number in self.numbers or bool(_WORD.fullmatch(bare) and stem_of(bare) in self.stems)

    def in_order(self, words: Sequence[str]) -> bool:
        rest = iter(self.stems)
        return all(stem in rest for stem in stems(" ".join(words)))


def stems(text: str) -> list[str]:
    """The words of a text that say something, without their endings."""
    found = _WORD.findall(text.casefold())
    return [stem_of(word) for word in found if word not in _EMPTY]


def stem_of(word: str) -> str:
    word = _SAME_STEM.get(word, word)
    for ending in ("ing", "ers", "er", "ies", "es", "ed", "s", "e", "y"):
        if len(word) > len(ending) + 2 and word.endswith(ending):
            return word.removesuffix(ending)
    return word
