"""MiniCPM-V 4.5 (https://arxiv.org/abs/2509.18154) as a policy, without remote code.

Importing this package teaches transformers' Auto classes the model type `minicpmv`.

    visual_inputs.py  media -> tokens and views; trained sequences -> one visual batch
    vision.py         patches -> features of each view
    resampler.py      features of a view, or of a group of frames -> visual tokens
    modeling.py       the policy: visual tokens in a Qwen3 decoder
"""

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from policy.models.minicpmv.modeling import MiniCPMV
from policy.models.minicpmv.visual_inputs import MiniCPMVInputs, VisualBatch
from rl.data.media.minicpmv_config import MiniCPMVConfig, register_config

__all__ = ["MiniCPMV", "MiniCPMVConfig", "MiniCPMVInputs", "VisualBatch"]

register_config()
AutoModelForCausalLM.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
