"""MiniCPM-V 4.5 in vLLM, with packed video and without remote code.

vLLM's own class never gets the frames' times, so it cannot pack; ours adds them. vLLM finds
`register` through the `vllm.general_plugins` entry point, in every process. The class has an
architecture name of its own: what other MiniCPM-V checkpoints say keeps its meaning.

    model.py   the model with groups of frames, and what its processor makes of prompts with media
"""

import functools

from rl.data.media.minicpmv_config import register_config

ARCHITECTURE = "HybridMiniCPMV"


@functools.cache
def register() -> None:
    """Make the configuration and the model class known to vLLM in this process."""
    # Imported on use: the module is loaded wherever an engine is described, and vLLM takes long.
    from vllm import ModelRegistry

    register_config()
    ModelRegistry.register_model(ARCHITECTURE, "rollout.engines.minicpmv.model:PackedMiniCPMV")
