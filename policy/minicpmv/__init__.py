"""MiniCPM-V 4.5 (https://arxiv.org/abs/2509.18154) as a policy, without remote code.

Importing this package teaches transformers' Auto classes the model type `minicpmv`.

    processing.py   chat text with images and videos -> tokens and views of one prompt
    video.py        which frames of a video are seen, and in which groups
    batching.py     views of several prompts -> one visual batch
    vision.py       patches -> features of each view
    resampler.py    features of a view, or of a group of frames -> visual tokens
    modeling.py     the policy: visual tokens in a Qwen3 decoder
"""

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from policy.minicpmv.batching import VisualBatch, collate
from policy.minicpmv.modeling import MiniCPMV, freeze
from policy.minicpmv.processing import MediaPrompt, MiniCPMVProcessor, engine_prompt
from policy.minicpmv.video import plan_frames
from rl.minicpmv_config import MiniCPMVConfig, register_config

__all__ = [
    "MediaPrompt",
    "MiniCPMV",
    "MiniCPMVConfig",
    "MiniCPMVProcessor",
    "VisualBatch",
    "collate",
    "engine_prompt",
    "freeze",
    "plan_frames",
]

register_config()
AutoModelForCausalLM.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
