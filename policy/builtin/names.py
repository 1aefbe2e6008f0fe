"""The built-in models by name: `builtin:NAME` becomes a directory, made on first use.

The built-in models stand in for pretrained ones where none can be downloaded. They are a demo:
other packages import this file of the room and no other.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

# Environment variable: a whole number, the seed of every built-in model that is asked for by name.
# Without it each model has a seed of its own. The seed is part of what names a model in the cache,
# so that models of several seeds lie there beside each other.
SEED_VARIABLE = "HYBRID_RL_WARMUP_SEED"


class Size(NamedTuple):
    """What is known of a model before it is made, for estimates."""

    parameters: int
    vocabulary: int


RESAMPLED: Mapping[str, tuple[int, int]] = {
    f"tiny_minicpmv_{tokens}_tokens_{frames}_frames": (tokens, frames)
    for tokens, frames in ((1, 6), (2, 6), (3, 6), (6, 6), (1, 2), (3, 2))
}
"""Of a package of each policy: visual tokens, and the most frames of a video."""
POLICY_SIZES: Mapping[str, Size] = {
    "builtin:tiny": Size(90_000, 110),
    "builtin:tiny_auto": Size(90_000, 110),
    "builtin:tiny_qwen_vl": Size(560_000, 110),
    "builtin:tiny_minicpmv": Size(560_000, 110),
    **{f"builtin:{name}": Size(560_000, 110) for name in RESAMPLED},
}


def builtin_policy(name: str) -> str:
    """The directory of a built-in policy or labeller, made on first use; any other name as it is.

    Raises ValueError if SEED_VARIABLE holds no whole number.
    """
    # Imported on use: the makers load torch, and a dry run needs nothing of this file but sizes.
    from policy.builtin import labeller, text_policy
    from policy.builtin.sight import resampled, vision_policy

    vision, label = vision_policy.ensure_tiny_vision_policy, labeller.ensure_tiny_labeller
    makers = {
        "builtin:tiny": text_policy.ensure_tiny_policy,
        "builtin:tiny_auto": text_policy.ensure_tiny_choosing_policy,
        "builtin:tiny_qwen_vl": partial(vision, "tiny_qwen_vl"),
        "builtin:tiny_minicpmv": partial(vision, "tiny_minicpmv"),
        **{
            f"builtin:{name}": partial(resampled.ensure_resampled_policy, *packing)
            for name, packing in RESAMPLED.items()
        },
        "builtin:tiny_labeller": partial(label, "tiny_labeller"),
        "builtin:tiny_vision_labeller": partial(label, "tiny_vision_labeller"),
    }
    return _made(name, makers)


def builtin_reward_model(name: str) -> str:
    """The directory of a built-in reward model, with the same rules."""
    # Imported on use, as above.
    from policy.builtin import reward_model
    from policy.builtin.sight import vision_reward_model

    makers = {
        "builtin:tiny": reward_model.ensure_tiny_reward_model,
        "builtin:tiny_vision": vision_reward_model.ensure_tiny_vision_reward_model,
    }
    return _made(name, makers)


def _made(name: str, makers: Mapping[str, Callable[..., Path]]) -> str:
    # No error here: whoever looks for a directory or a Hugging Face name has a better one.
    if (maker := makers.get(name)) is None:
        return name
    chosen = os.environ.get(SEED_VARIABLE) or None
    try:
        seed = None if chosen is None else int(chosen)
    except ValueError as error:
        raise ValueError(
            f"{SEED_VARIABLE} must be a whole number, got {chosen!r}; unset it for the usual seeds"
        ) from error
    return str(maker(seed=seed))
