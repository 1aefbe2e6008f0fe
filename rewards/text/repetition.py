"""Repetition penalties over windows of words, in time linear in the text.

`ngram` grows with the share of the text that repeats (https://arxiv.org/abs/2502.03373, appendix
C.2); `window` is all or nothing, as in RLPR (https://arxiv.org/abs/2506.18254).
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Scripts that write words without spaces count by the character: kana, ideographs, their marks.
_WIDE = r"\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
MAX_WORD_CHARACTERS = 40
PIECE_CHARACTERS = 8
_WORD = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+")
# Odd, so that no bit of a word is shifted out of the fingerprint.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def repetition_penalty(
    text: str, form: Literal["ngram", "window"], words: int, times: int
) -> float:
    """Return a penalty in [-1, 0] for windows of `words` words that occur again; 0 below one.

    `ngram`: -(1 - distinct / total) over all windows; long ones leave clean reasoning at 0, which
    repeats short phrases all the time. `window`: -1 if some window occurs `times` times or more.

    Example: repetition_penalty("a b a b a", "ngram", 2, 10) == -0.5  (ab ba ab ba: 2 of 4)
    """
    counts = _window_counts(_words(text), words)
    if not len(counts):
        return 0.0
    if form == "ngram":
        return len(counts) / int(counts.sum()) - 1.0
    return -1.0 if counts.max() >= times else 0.0


def _words(text: str) -> list[str]:
    """Words without their case. A "word" longer than any is cut up: loops need no spaces."""
    words: list[str] = []
    for word in _WORD.findall(text.casefold()):
        if len(word) <= MAX_WORD_CHARACTERS:
            words.append(word)
        else:
            words += [
                word[start : start + PIECE_CHARACTERS]
                for start in range(0, len(word), PIECE_CHARACTERS)
            ]
    return words


def _window_counts(words: list[str], size: int) -> NDArray[np.int64]:
    """Return how often each distinct window of `size` words occurs. # [distinct windows]

    Windows are compared by 64-bit fingerprints of random words: within a million windows the
    chance that any two different ones meet is below 1e-7.
    """
    total = len(words) - size + 1
    if total < 1:
        return np.zeros(0, np.int64)
    numbers: dict[str, int] = {}
    place = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64)
    values = np.random.default_rng(0).integers(2**64, size=len(numbers), dtype=np.uint64)[place]
    prints = np.zeros(total, np.uint64)
    for offset in range(size):
        prints = prints * _BASE + values[offset : offset + total]  # wraps round at 2^64
    return np.unique(prints, return_counts=True)[1]
