"""MiniCPM-V 4.5 in vLLM, with packed video and without remote code.

vLLM's own class never gets the frames' times, so it cannot pack; ours adds them. vLLM finds
`register` through the `vllm.general_plugins` entry point, in every process. The class has an
architecture name of its own: what other MiniCPM-V checkpoints say keeps its meaning.

    processing.py   prompts with media -> the tokens and views the engine works on
    model.py        vLLM's MiniCPM-V 4.5 with groups of frames
"""

from __future__ import annotations

import functools
from typing import Any

from rl.minicpmv_config import register_config
from rl.minicpmv_media import placeholder_token_id

ARCHITECTURE = "HybridMiniCPMV"
_NEVER = -100.0
"""The lowest bias vLLM takes; e^-100 is no chance at all in float32."""


@functools.cache
def register() -> None:
    """Make the configuration and the model class known to vLLM in this process."""
    from vllm import ModelRegistry

    register_config()
    ModelRegistry.register_model(ARCHITECTURE, "rollout.minicpmv.model:PackedMiniCPMV")


def engine_arguments() -> dict[str, Any]:
    """What an engine of a MiniCPM-V 4.5 checkpoint needs besides its usual arguments."""
    return {"hf_overrides": {"architectures": [ARCHITECTURE]}}


def placeholder_bias(tokenizer: Any) -> dict[int, float]:
    """`SamplingParams.logit_bias` under which no placeholder is sampled.

    The sampler reports log-probabilities after it, so the learner must leave the same token out of
    its softmax: a policy that would write the token with probability p is else off by log(1 - p).
    """
    return {placeholder_token_id(tokenizer): _NEVER}
