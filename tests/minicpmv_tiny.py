"""Tiny random MiniCPM-V checkpoints: under two million parameters, every part of the real one."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig

QUERIES, SCALE, GRID = 8, 56, 7
END = "<|im_end|>"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    END,
    *("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"),
]
# Merges that would swallow the end of a marker, or join two tokens that a policy wrote apart.
MERGES = [("a", "b"), (")", "\n")]
CHAT_TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{%- endif -%}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, two merges, and the published special tokens."""
    characters = ["\n", *(c for c in string.printable if c.isprintable())]
    words = ["<unk>", *characters, *(left + right for left, right in MERGES)]
    vocabulary = {word: place for place, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocabulary, MERGES, unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    core.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(**changes: Any) -> MiniCPMVConfig:
    tokenizer = tiny_tokenizer()
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "query_num": QUERIES,
        "image_size": SCALE,
        "dtype": "float32",
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 14 * GRID,
            "patch_size": 14,
        },
    }
    return MiniCPMVConfig(**fields | changes)


def tiny_model(seed: int = 0, **changes: Any) -> MiniCPMV:
    """Weights large enough that every part shows in the logits, biases and norms included."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = MiniCPMV(tiny_config(**changes))
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                scale = 1.0 if "embed" in name else weight[0].numel() ** -0.5
                weight.copy_(scale * torch.randn_like(weight))
        return model.eval()


def save_tiny(directory: Path, seed: int = 0) -> MiniCPMV:
    """Write a model directory in the layout of the published one; returns the model."""
    model = tiny_model(seed)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    settings = {
        "scale_resolution": SCALE,
        "patch_size": 14,
        "max_slice_nums": 9,
        "image_feature_size": QUERIES,
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise_frames(1, width, height, seed)[0])


def noise_frames(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """[count, height, width, 3] smooth colours, so that every frame differs everywhere."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    frames = [
        Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in coarse
    ]
    return np.stack([np.asarray(frame) for frame in frames])
