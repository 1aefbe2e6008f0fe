"""Repetition penalty over word n-grams (https://arxiv.org/abs/2502.03373, appendix C.2)."""

from __future__ import annotations


def repetition_penalty(text: str, n: int) -> float:
    """Return -(1 - distinct / total) over the n-grams of words, in [-1, 0]; 0 below n words.

    Long n-grams leave clean reasoning at 0, which repeats short phrases all the time.

    Example: repetition_penalty("a b a b a", 2) == -0.5  (ab ba ab ba: 2 distinct of 4)
    """
    words = text.casefold().split()
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(words[start : start + n]) for start in range(total)})
    return distinct / total - 1.0
