"""The built-in tiny policies that see: a Qwen2.5-VL and a MiniCPM-V, made once on this machine.

They stand in for pretrained models as text_policy.py does for text. Each reads digits in a picture
and adds them, well enough in both modes for GRPO to have something to strengthen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from policy.builtin.tokenizer import CHARACTERS, CHAT_TEMPLATE, make_tokenizer
from policy.builtin.vision_warmup import TASK, VisionWarmupRecipe, warm_up
from policy.builtin.warmup import reproducible, save_warmed, shown_warmup
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig
from rl.data.media.minicpmv import BRACKET_TOKENS

TinyVisionName = Literal["tiny_qwen_vl", "tiny_minicpmv"]

MAX_LENGTH = 2048
DEFAULT_SEED = 0
# Small weights keep the towers from seeing anything for hundreds of steps.
INITIALIZER_RANGE = 0.08
PATCH_SIZE = 14

QWEN_VL_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# The text policy's template, with contents that may be parts: the marker of each medium stands
# between the tokens that frame it, as in the published template.
QWEN_VL_CHAT_TEMPLATE = (
    "{%- macro shown(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- else -%}{{ '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}" + CHAT_TEMPLATE.replace("message['content']", "shown(message['content'])")
)
QWEN_VL_SIZES: dict[str, Any] = {
    "text_config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 128,
        "max_position_embeddings": MAX_LENGTH,
        # The frequencies of a section turn ever more slowly, and digits lie side by side: with
        # fewer for the width, which is last, neighbours are hard to tell apart.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [1, 1, 14],
        },
        "initializer_range": INITIALIZER_RANGE,
    },
    "vision_config": {
        "hidden_size": 96,
        "depth": 2,
        "num_heads": 3,
        "intermediate_size": 192,
        "patch_size": PATCH_SIZE,
        "out_hidden_size": 64,
        # Every layer sees the whole picture. Windows save time in large pictures only.
        "fullatt_block_indexes": [0, 1],
        "initializer_range": INITIALIZER_RANGE,
    },
}
MINICPMV_SIZES: dict[str, Any] = {
    # A multiple of 128, the width of the resampler's heads.
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 192,
    "max_position_embeddings": MAX_LENGTH,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "initializer_range": INITIALIZER_RANGE,
    "query_num": 6,
    # The area of the task's pictures, which are then seen whole, as they are.
    "image_size": 49,
    "vision_config": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 192,
        "patch_size": PATCH_SIZE,
        # Six places to a side.
        "image_size": 6 * PATCH_SIZE,
    },
}


def ensure_tiny_vision_policy(
    name: TinyVisionName,
    cache_dir: Path | None = None,
    seed: int | None = None,
    recipe: VisionWarmupRecipe | None = None,
) -> Path:
    """Return a Hugging Face model directory with the policy, making it on first use.

    The first use takes a minute or two on one core. A process that finds another one at work waits
    for it. `warmup.json` in the directory says how the warm-up ended.
    """
    recipe = recipe or VisionWarmupRecipe()
    seed = DEFAULT_SEED if seed is None else seed
    made = _FAMILIES[name]
    parts = [asdict(recipe), made.sizes, made.preprocessor, CHARACTERS, made.template, TASK, seed]
    directory = (cache_dir or default_cache_dir()) / f"{name}-{digest(parts)}"
    return made_once(directory, lambda aside: _write_policy(made, aside, seed, recipe))


@dataclass(frozen=True)
class _Family:
    sizes: dict[str, Any]
    tokens: tuple[str, ...]
    template: str
    preprocessor: dict[str, Any]
    model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    """An untrained one."""


def _write_policy(family: _Family, directory: Path, seed: int, recipe: VisionWarmupRecipe) -> None:
    tokenizer = make_tokenizer(MAX_LENGTH, family.tokens, family.template)
    with reproducible(seed), shown_warmup(recipe.min_steps) as show:
        model = family.model(tokenizer)
        # The warm-up shows pictures as the learner does, and the learner's inputs read these files.
        model.config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        settings = json.dumps(family.preprocessor, indent=2)
        (directory / "preprocessor_config.json").write_text(settings + "\n")
        report = warm_up(model, directory, tokenizer, seed, recipe, show)
    save_warmed(directory, model, tokenizer, report)


def _qwen_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    start, end, _, image, video = tokenizer.convert_tokens_to_ids(list(QWEN_VL_TOKENS))
    text = QWEN_VL_SIZES["text_config"] | _vocabulary(tokenizer)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text,
            vision_config=QWEN_VL_SIZES["vision_config"],
            vision_start_token_id=start,
            vision_end_token_id=end,
            image_token_id=image,
            video_token_id=video,
            tie_word_embeddings=False,
            dtype="float32",
        )
    )


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


_FAMILIES: dict[TinyVisionName, _Family] = {
    "tiny_qwen_vl": _Family(
        QWEN_VL_SIZES,
        QWEN_VL_TOKENS,
        QWEN_VL_CHAT_TEMPLATE,
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "patch_size": PATCH_SIZE,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "min_pixels": (2 * PATCH_SIZE) ** 2,
            "max_pixels": 64 * (2 * PATCH_SIZE) ** 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        _qwen_vl,
    ),
    "tiny_minicpmv": _Family(
        MINICPMV_SIZES,
        BRACKET_TOKENS,
        CHAT_TEMPLATE,
        {
            "scale_resolution": MINICPMV_SIZES["image_size"],
            "patch_size": PATCH_SIZE,
            "max_slice_nums": 9,
            "image_feature_size": MINICPMV_SIZES["query_num"],
            "norm_mean": [0.5, 0.5, 0.5],
            "norm_std": [0.5, 0.5, 0.5],
        },
        lambda tokenizer: MiniCPMV(MiniCPMVConfig(**MINICPMV_SIZES, **_vocabulary(tokenizer))),
    ),
}
