"""The built-in models by name: `builtin:NAME` becomes a directory, made on first use.

The built-in models stand in for pretrained ones where none can be downloaded. They are a demo:
other packages import this file of the room and no other.
"""

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

# Environment variable: a whole number, the seed of every built-in model that is asked for by name.
# Without it each model has a seed of its own. The seed is part of what names a model in the cache,
# so that models of several seeds lie there beside each other.
SEED_VARIABLE = "HYBRID_RL_WARMUP_SEED"


class Size(NamedTuple):
    """What is known of a model before it is made, for estimates."""

    parameters: int
    vocabulary: int


RESAMPLED: Mapping[str, tuple[int, int]] = {
    f"builtin:tiny_minicpmv_{tokens}_tokens_{frames}_frames": (tokens, frames)
    for tokens, frames in ((1, 6), (2, 6), (3, 6), (6, 6), (1, 2), (3, 2))
}
"""Of a package of each policy: visual tokens, and the most frames of a video."""
POLICY_SIZES: Mapping[str, Size] = {
    "builtin:tiny": Size(90_000, 110),
    "builtin:tiny_auto": Size(90_000, 110),
    "builtin:tiny_qwen_vl": Size(560_000, 110),
    "builtin:tiny_minicpmv": Size(560_000, 110),
    "builtin:tiny_reconstructor": Size(560_000, 110),
    **dict.fromkeys(RESAMPLED, Size(560_000, 110)),
    "builtin:tiny_describer": Size(560_000, 129),
}


def builtin_policy(name: str) -> str:
    """The directory of a built-in policy or labeller, made on first use; any other name as it is.

    Raises ValueError if SEED_VARIABLE holds no whole number.
    """
    return _made(name, "POLICIES")


def builtin_reward_model(name: str) -> str:
    """The directory of a built-in reward model, with the same rules."""
    return _made(name, "REWARD_MODELS")


def _made(name: str, kind: Literal["POLICIES", "REWARD_MODELS"]) -> str:
    if not name.startswith("builtin:"):
        return name
    # Imported on use: the makers load torch, and a dry run needs nothing of this room but sizes.
    from policy.builtin import makers

    # No error here: whoever looks for a directory or a Hugging Face name has a better one.
    if (maker := getattr(makers, kind).get(name)) is None:
        return name
    chosen = os.environ.get(SEED_VARIABLE) or None
    try:
        seed = None if chosen is None else int(chosen)
    except ValueError as error:
        raise ValueError(
            f"{SEED_VARIABLE} must be a whole number, got {chosen!r}; unset it for the usual seeds"
        ) from error
    return str(maker(seed=seed))
