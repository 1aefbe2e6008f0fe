"""Repetition penalties over windows of words, in time linear in the text.

`ngram` grows with the share of the text that repeats (https://arxiv.org/abs/2502.03373, appendix
C.2); `window` is all or nothing, as in RLPR (https://arxiv.org/abs/2506.18254).
"""

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Scripts that write words without spaces count by the character: kana, ideographs, their marks.
_WIDE = r"\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
MAX_WORD_CHARACTERS = 40
PIECE_CHARACTERS = 8
FREE_ROWS = 30
"""So often may a window of a table occur: a matrix of zeros is no loop, thirty windows of it
are."""
_WORD = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+")
# Where a row of numbers begins is a part of what it says: the rows of an identity matrix differ.
_ROW_START = re.compile(r"\n\s*(?=[0-9\[(&|{-])")
_CELL = re.compile(
    r"\x01?(?:[|&]|\\\\|[\[({]*[-+]?[0-9][0-9.,%]*(?:/[0-9]+)?[\])};,|&\\]*|[\])};,|]+)"
)
# Odd, so that no bit of a word is shifted out of the fingerprint.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def repetition_penalty(
    text: str, form: Literal["ngram", "window"], words: int, times: int
) -> float:
    """Return a penalty in [-1, 0] for windows of `words` words that occur again; 0 below one.

    `ngram`: -(1 - distinct / total) over all windows; long ones leave clean reasoning at 0, which
    repeats short phrases all the time. `window`: -1 if some window occurs `times` times or more.
    A window whose words are half numbers and marks of a table counts as distinct FREE_ROWS times.

    Example: repetition_penalty("a b a b a", "ngram", 2, 10) == -0.5  (ab ba ab ba: 2 of 4)
    """
    counts, is_table = _window_counts(_words(text), words)
    if not len(counts):
        return 0.0
    # A window that is no table's counts once, however often it occurs.
    free = np.where(is_table, FREE_ROWS, 1)
    if form == "ngram":
        return int(np.minimum(counts, free).sum()) / int(counts.sum()) - 1.0
    return -1.0 if (counts - free + 1).max() >= times else 0.0


def _words(text: str) -> list[str]:
    """Words without their case. A "word" longer than any is cut up: loops need no spaces."""
    words: list[str] = []
    for word in _WORD.findall(_ROW_START.sub("\n\x01", text.casefold())):
        size = len(word) if len(word) <= MAX_WORD_CHARACTERS else PIECE_CHARACTERS
        words += [word[start : start + size] for start in range(0, len(word), size)]
    return words


def _window_counts(words: list[str], size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return how often each distinct window of `size` words occurs, and whether it is of a table.
    # [distinct windows], [distinct windows]

    Windows are compared by 64-bit fingerprints of random words: within a million windows the
    chance that any two different ones meet is below 1e-7.
    """
    total = len(words) - size + 1
    if total < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.bool_)
    numbers: dict[str, int] = {}
    index = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64)
    values = np.random.default_rng(0).integers(2**64, size=len(numbers), dtype=np.uint64)[index]
    prints = np.zeros(total, np.uint64)
    for offset in range(size):
        prints = prints * _BASE + values[offset : offset + total]  # wraps round at 2^64
    # Judged once for each distinct word: a text of a megabyte has few of them.
    is_cell = np.fromiter((_CELL.fullmatch(word) is not None for word in numbers), np.bool_)[index]
    num_cells = np.concatenate(([0], np.cumsum(is_cell)))
    _, first, counts = np.unique(prints, return_index=True, return_counts=True)
    return counts, 2 * (num_cells[first + size] - num_cells[first]) >= size
