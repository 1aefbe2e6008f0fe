"""Tiny random Qwen2.5-VL and Qwen3-VL checkpoints: under a million parameters, every part there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from rl.data.media.names import MediaFile, Medium, MediumKind, StillImage, Video
from rl.loop.stages import TrainSample, Trajectory
from tests import minicpmv_tiny

ModelType = Literal["qwen2_5_vl", "qwen3_vl"]
PATCH_SIZE: dict[ModelType, int] = {"qwen2_5_vl": 14, "qwen3_vl": 16}
MAX_IMAGE_TOKENS = 48
VISION_TOKENS = [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{%- endif -%}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character, two merges, and the special tokens of Qwen VL."""
    tokenizer = minicpmv_tiny.tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": VISION_TOKENS})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(model_type: ModelType) -> Qwen2_5_VLConfig | Qwen3VLConfig:
    """Heads of 32: vLLM has no attention of width 16 on CPU."""
    tokenizer = tiny_tokenizer()
    start, end, _, image, video = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": PATCH_SIZE[model_type],
        "out_hidden_size": 64,
    }
    common: dict[str, Any] = {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    if model_type == "qwen2_5_vl":
        # Windows of 2 x 2 merged patches, so that an image of this size has several.
        vision |= {"window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        text["rope_parameters"] = rope | {"mrope_section": [4, 6, 6]}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **common)
    vision |= {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    text["rope_parameters"] = rope | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text["head_dim"] = 32
    return Qwen3VLConfig(text_config=text, vision_config=vision, **common)


def tiny_model(model_type: ModelType, seed: int = 0) -> PreTrainedModel:
    """Weights large enough that every part shows in the logits, biases and norms included."""
    classes = {
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": Qwen3VLForConditionalGeneration,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = classes[model_type](tiny_config(model_type))
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                scale = 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5
                weight.copy_(scale * torch.randn_like(weight))
        return model.eval()


def save_tiny(directory: Path, model_type: ModelType, seed: int = 0) -> None:
    """Write a model directory in the layout of the published ones."""
    tiny_model(model_type, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    side = 2 * PATCH_SIZE[model_type]
    common = {
        "patch_size": PATCH_SIZE[model_type],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    smallest, largest = side**2, MAX_IMAGE_TOKENS * side**2
    if model_type == "qwen2_5_vl":
        images = common | {
            "min_pixels": smallest,
            "max_pixels": largest,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        }
    else:
        size = {"shortest_edge": smallest, "longest_edge": largest}
        images = common | {
            "size": size,
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
        }
        # The pixels of all frames together.
        videos = common | {
            "size": {"shortest_edge": smallest, "longest_edge": 4 * largest},
            "video_processor_type": "Qwen3VLVideoProcessor",
            "processor_class": "Qwen3VLProcessor",
        }
        (directory / "video_preprocessor_config.json").write_text(json.dumps(videos))
    (directory / "preprocessor_config.json").write_text(json.dumps(images))


def noise_still(width: int, height: int, seed: int = 0) -> StillImage:
    return StillImage(minicpmv_tiny.noise_image(width, height, seed), f"{width}x{height}/{seed}")


def noise_video(count: int, width: int, height: int, fps: float, seed: int = 0) -> Video:
    frames = minicpmv_tiny.noise_frames(count, width, height, seed)
    times = tuple(place / fps for place in range(count))
    return Video(frames, times, (), fps, f"{count}x{width}x{height}/{fps}/{seed}")


def prompt_token_ids(parts: Sequence[str | StillImage | Video]) -> list[int]:
    """Of one user message, with a marker for each medium."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": _kind(part)}
        for part in parts
    ]
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return tokenizer.encode(text, add_special_tokens=False)


def _kind(medium: StillImage | Video) -> MediumKind:
    return "image" if isinstance(medium, StillImage) else "video"


class Shelf:
    """A store of media that never were files."""

    def __init__(self) -> None:
        self._media: dict[Medium, StillImage | Video] = {}

    def put(self, parts: Sequence[str | StillImage | Video]) -> tuple[Medium, ...]:
        """The names of the media among the parts of a message."""
        media = [part for part in parts if not isinstance(part, str)]
        names = tuple(MediaFile(_kind(medium), medium.digest) for medium in media)
        self._media |= zip(names, media, strict=True)
        return names

    def read(self, medium: Medium) -> StillImage | Video:
        return self._media[medium]


def tiny_sample(
    name: str, prompt: Sequence[int], response: Sequence[int], media: tuple[Medium, ...] = ()
) -> TrainSample:
    length = len(prompt) + len(response)
    trajectory = Trajectory(
        token_ids=np.array([*prompt, *response], dtype=np.int32),
        loss_mask=np.arange(length) >= len(prompt),
        rollout_logprobs=np.zeros(length, dtype=np.float32),
        versions=(0, 0),
        finish_reason="stop",
        text="",
        reasoning="",
        answer="",
    )
    return TrainSample(trajectory, advantage=1.0, temperature=1.0, id=name, media=media)
