"""The built-in tiny policies that see: a Qwen2.5-VL and a MiniCPM-V, made once on this machine.

They stand in for pretrained models as text_policy.py does for text. Each reads digits in a picture
and adds them, well enough in both modes for GRPO to have something to strengthen.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from policy.builtin.tokenizer import CHARACTERS, CHAT_TEMPLATE, make_tokenizer, token_settings
from policy.builtin.vision_warmup import TASK, Misreading, PictureTask, VisionWarmupRecipe
from policy.builtin.warmup import imitate, reproducible, save_warmed, shown_warmup
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig
from rl.data.media.minicpmv import BRACKET_TOKENS

TinyVisionName = Literal["tiny_qwen_vl", "tiny_minicpmv"]

MAX_LENGTH = 2048
DEFAULT_SEED = 0
_MODELS = yaml.safe_load(Path(__file__).with_name("models.yaml").read_text("utf-8"))

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


def ensure_tiny_vision_policy(
    name: TinyVisionName,
    cache_dir: Path | None = None,
    seed: int | None = None,
    recipe: VisionWarmupRecipe | None = None,
) -> Path:
    """Return a Hugging Face model directory with the policy, making it on first use.

    The first use takes a minute or two on one core. `warmup.json` in it says how it ended.
    """
    recipe, seed = recipe or VisionWarmupRecipe(), DEFAULT_SEED if seed is None else seed
    sizes, preprocessor = _MODELS[name]["sizes"], _MODELS[name]["preprocessor"]
    template = QWEN_VL_CHAT_TEMPLATE if name == "tiny_qwen_vl" else CHAT_TEMPLATE

    def write(directory: Path) -> None:
        tokens = _MODELS[name].get("tokens", BRACKET_TOKENS)
        tokenizer = make_tokenizer(MAX_LENGTH, tokens, template)
        with reproducible(seed), shown_warmup(recipe.min_steps) as show:
            model = _untrained(name, tokenizer)
            # The warm-up shows pictures as the learner does, whose inputs read these files.
            model.config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            settings = json.dumps(preprocessor, indent=2)
            (directory / "preprocessor_config.json").write_text(settings + "\n")
            # Clearer and more orderly than the task's own pictures, so that seeing forms sooner.
            clean = TASK | {"jitter": recipe.clean_jitter, "noise": recipe.clean_noise}
            slips = Misreading(np.random.default_rng(seed), recipe.misread, recipe.answer_slips)
            examples = PictureTask.open(directory, tokenizer, clean, seed, slips)
            heldout = PictureTask.open(directory, tokenizer, TASK)
            report = imitate(model, examples, heldout, seed, recipe, show)
        save_warmed(directory, model, tokenizer, report)

    decides = [asdict(recipe), sizes, preprocessor, CHARACTERS, template, TASK, seed]
    return made_once((cache_dir or default_cache_dir()) / f"{name}-{digest(decides)}", write)


def _untrained(name: TinyVisionName, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    sizes, text = _MODELS[name]["sizes"], {**token_settings(tokenizer), "dtype": "float32"}
    if name == "tiny_minicpmv":
        return MiniCPMV(MiniCPMVConfig(**sizes, **text))
    start, end, _, image, video = tokenizer.convert_tokens_to_ids(_MODELS[name]["tokens"])
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=sizes["text_config"] | text,
            vision_config=sizes["vision_config"],
            vision_start_token_id=start,
            vision_end_token_id=end,
            image_token_id=image,
            video_token_id=video,
            tie_word_embeddings=False,
            dtype="float32",
        )
    )
