"""Soft overlong punishment: length costs before the budget ends (https://arxiv.org/abs/2503.14476)."""

from __future__ import annotations


def overlong_penalty(num_tokens: int, max_tokens: int, window: int) -> float:
    """Return DAPO's length penalty (eq. 13) in [-1, 0], lengths in tokens.

    0 up to max_tokens - window, from there down a line to -1 at max_tokens, and -1 above. Raises
    ValueError for a window that is not between 1 and max_tokens.

    Example: overlong_penalty(90, max_tokens=100, window=20) == -0.5
    """
    if not 0 < window <= max_tokens:
        raise ValueError(
            f"the overlong window must be between 1 and max_tokens {max_tokens}, got {window}"
        )
    return min(0.0, max(-1.0, (max_tokens - window - num_tokens) / window))
