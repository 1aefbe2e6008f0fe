"""MiniCPM-V 4.5 (https://arxiv.org/abs/2509.18154) as a policy, without remote code.

Importing this package teaches transformers' Auto classes the model type `minicpmv`.

    processing.py   chat text with images and videos -> tokens and views of one prompt
    batching.py     views of several prompts -> one visual batch
    vision.py       patches -> features of each view
    resampler.py    features of a view, or of a group of frames -> visual tokens
    visual_inputs.py  a trained sequence -> where its visual tokens are
    modeling.py     the policy: visual tokens in a Qwen3 decoder
"""

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from policy.models.minicpmv.batching import VisualBatch, collate
from policy.models.minicpmv.modeling import MiniCPMV, parts
from policy.models.minicpmv.processing import MediaPrompt, MiniCPMVProcessor
from policy.models.minicpmv.visual_inputs import MiniCPMVInputs
from rl.data.media.minicpmv_config import MiniCPMVConfig, register_config

__all__ = [
    "MediaPrompt",
    "MiniCPMV",
    "MiniCPMVConfig",
    "MiniCPMVInputs",
    "MiniCPMVProcessor",
    "VisualBatch",
    "collate",
    "parts",
]

register_config()
AutoModelForCausalLM.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
