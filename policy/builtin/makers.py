"""What makes each built-in model, by its name. Loads torch, which names.py does without."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from policy.builtin.labeller import ensure_tiny_labeller
from policy.builtin.names import RESAMPLED
from policy.builtin.reward_model import ensure_tiny_reward_model
from policy.builtin.sight.description_labeller import ensure_tiny_description_labeller
from policy.builtin.sight.resampled import ensure_resampled_policy
from policy.builtin.sight.vision_policy import ensure_tiny_vision_policy
from policy.builtin.sight.vision_reward_model import ensure_tiny_vision_reward_model
from policy.builtin.text_policy import ensure_tiny_choosing_policy, ensure_tiny_policy

Makers = Mapping[str, Callable[..., Path]]

POLICIES: Makers = {
    "builtin:tiny": ensure_tiny_policy,
    "builtin:tiny_auto": ensure_tiny_choosing_policy,
    "builtin:tiny_qwen_vl": partial(ensure_tiny_vision_policy, "tiny_qwen_vl"),
    "builtin:tiny_minicpmv": partial(ensure_tiny_vision_policy, "tiny_minicpmv"),
    "builtin:tiny_reconstructor": partial(ensure_tiny_vision_policy, "tiny_reconstructor"),
    "builtin:tiny_describer": partial(ensure_tiny_vision_policy, "tiny_describer"),
    **{name: partial(ensure_resampled_policy, *packing) for name, packing in RESAMPLED.items()},
    "builtin:tiny_labeller": partial(ensure_tiny_labeller, "tiny_labeller"),
    "builtin:tiny_vision_labeller": partial(ensure_tiny_labeller, "tiny_vision_labeller"),
    "builtin:tiny_description_labeller": ensure_tiny_description_labeller,
}
REWARD_MODELS: Makers = {
    "builtin:tiny": ensure_tiny_reward_model,
    "builtin:tiny_vision": ensure_tiny_vision_reward_model,
}
