"""The built-in tiny policies that see: a Qwen2.5-VL and a MiniCPM-V, made once on this machine.

They stand in for pretrained models as text_policy.py does for text. Two read the digits of a
picture and add them, well enough in both modes for GRPO to have something to strengthen. Two more
Qwens say what stood in the cells of a form, and describe coloured shapes.

A Qwen imitates worked examples on clean pictures until it is right often enough on those of the
task, which are noisier and less orderly; the MiniCPM-V comes to that in stages (seeing.py).
Reasoning is then formed, and what is left for GRPO is mostly to see. A policy is shown its pictures
as the learner shows them, whatever its family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from tokenizers import AddedToken
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from policy.builtin.sight import describing_task
from policy.builtin.sight.form_task import ASKED, FormTask, one_form
from policy.builtin.sight.picture_task import (
    TASK,
    VIDEO,
    WAYS,
    PictureTask,
    all_ways,
    one_picture,
)
from policy.builtin.sight.seeing import SeeingRecipe, learn_to_see
from policy.builtin.sight.visual_task import VisualTask
from policy.builtin.tokenizer import CHARACTERS, CHAT_TEMPLATE, make_tokenizer, token_settings
from policy.builtin.warmup import (
    ImitationRecipe,
    imitate,
    reproducible,
    save_warmed,
    shown_warmup,
)
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig
from rl.config.data import SourceConfig
from rl.data.media.minicpmv import BRACKET_TOKENS
from rl.data.tasks.chain_sum import Slips

TinyVisionName = Literal["tiny_qwen_vl", "tiny_minicpmv", "tiny_reconstructor", "tiny_describer"]
Architecture = Literal["tiny_qwen_vl", "tiny_minicpmv", "tiny_describer"]
"""As models.yaml has them."""

MAX_LENGTH = 2048
DEFAULT_SEED = 0
_MODELS = yaml.safe_load(Path(__file__).parents[1].joinpath("models.yaml").read_text("utf-8"))

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


@dataclass(frozen=True)
class VisionWarmupRecipe(ImitationRecipe):
    """Everything that decides the warmed weights besides the seed, the task and the sizes."""

    min_steps: int = 750
    max_steps: int = 1050
    learning_rate: float = 3e-3
    short_share: float = 0.45
    enough_short: float = 0.25
    enough_long: float = 0.25
    misread: float = 0.12
    """How often an example reads some digit or other in the place of one; it reasons on from it."""
    answer_slips: float = 0.15
    """How often an answer without reasoning is off by one or two."""
    clean_jitter: float = 0.5
    clean_noise: tuple[float, float] = (0.0, 0.1)
    """Of the pictures that worked examples show, in place of the task's."""


# Stopped while it infers worse than it reads: what is left to be learned is the study's subject.
RECONSTRUCTION = VisionWarmupRecipe(
    min_steps=350, max_steps=650, enough_short=0.35, enough_long=0.35
)
# Nearer to the task's own pictures: what is missed in a description is more than what slips.
DESCRIBER = VisionWarmupRecipe(
    min_steps=700, max_steps=900, clean_jitter=0.6, clean_noise=(0.0, 0.2), heldout_questions=128
)


class Kind(NamedTuple):
    """What tells one policy that sees from the others, beside its seed."""

    architecture: Architecture
    task: type[VisualTask]
    shown: Callable[..., SourceConfig]
    """What it is warmed up on, given changes of the settings."""
    recipe: VisionWarmupRecipe | SeeingRecipe
    asked: Any
    """The settings that `shown` starts from, and the words, which decide the weights too."""
    words: tuple[str, ...] = ()
    """That are a token each, beside those of every tiny policy."""


KINDS: dict[TinyVisionName, Kind] = {
    "tiny_qwen_vl": Kind("tiny_qwen_vl", PictureTask, one_picture, VisionWarmupRecipe(), TASK),
    "tiny_minicpmv": Kind(
        "tiny_minicpmv", PictureTask, all_ways, SeeingRecipe(), [TASK, WAYS, VIDEO]
    ),
    "tiny_reconstructor": Kind("tiny_qwen_vl", FormTask, one_form, RECONSTRUCTION, ASKED),
    "tiny_describer": Kind(
        "tiny_describer",
        describing_task.DescribingTask,
        describing_task.all_ways,
        DESCRIBER,
        describing_task.ASKED,
        describing_task.WORDS,
    ),
}


def ensure_tiny_vision_policy(
    name: TinyVisionName,
    cache_dir: Path | None = None,
    seed: int | None = None,
    recipe: VisionWarmupRecipe | SeeingRecipe | None = None,
) -> Path:
    """Return a Hugging Face model directory with the policy, making it on first use.

    The first use takes two to five minutes on one core. `warmup.json` in it says how it ended.
    """
    seed, kind = DEFAULT_SEED if seed is None else seed, KINDS[name]
    recipe, is_qwen = recipe or kind.recipe, kind.architecture != "tiny_minicpmv"
    sizes, preprocessor = (_MODELS[kind.architecture][part] for part in ("sizes", "preprocessor"))
    template = QWEN_VL_CHAT_TEMPLATE if is_qwen else CHAT_TEMPLATE

    def write(directory: Path) -> None:
        tokens = _MODELS[kind.architecture].get("tokens", BRACKET_TOKENS)
        tokenizer = make_tokenizer(MAX_LENGTH, tokens, template)
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in kind.words])
        with reproducible(seed):
            model = _untrained(kind.architecture, tokenizer)
            # The warm-up shows pictures as the learner does, whose inputs read these files.
            model.config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            write_preprocessor(directory, kind.architecture)
            if isinstance(recipe, SeeingRecipe):
                report = learn_to_see(model, directory, tokenizer, seed, recipe)
            else:
                report = _imitate(kind, model, directory, tokenizer, seed, recipe)
        save_warmed(directory, model, tokenizer, report)

    decides = [asdict(recipe), sizes, preprocessor, CHARACTERS, template, kind.asked, seed]
    return made_once((cache_dir or default_cache_dir()) / f"{name}-{digest(decides)}", write)


def write_preprocessor(
    directory: Path, architecture: Architecture, changes: Mapping[str, Any] | None = None
) -> None:
    """Write how pictures are prepared. changes: of what models.yaml says of it."""
    settings = _MODELS[architecture]["preprocessor"] | (changes or {})
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "preprocessor_config.json").write_text(text)


def _imitate(
    kind: Kind,
    model: PreTrainedModel,
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: VisionWarmupRecipe,
) -> dict[str, Any]:
    """Train all of `model` at once, in place; return the report."""
    # Clearer and more orderly than the task's own pictures, so that seeing forms sooner.
    clean = kind.shown(jitter=recipe.clean_jitter, noise=recipe.clean_noise)
    slips = Slips(np.random.default_rng(seed), recipe.misread, recipe.answer_slips)
    examples = kind.task.open(directory, tokenizer, clean, seed, slips)
    heldout = kind.task.open(directory, tokenizer, kind.shown())
    with shown_warmup(recipe.min_steps) as show:
        return imitate(model, examples, heldout, seed, recipe, show)


def _untrained(name: Architecture, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    sizes, text = _MODELS[name]["sizes"], {**token_settings(tokenizer), "dtype": "float32"}
    if name == "tiny_minicpmv":
        return MiniCPMV(MiniCPMVConfig(**sizes, **text))
    start, end, _, image, video = tokenizer.convert_tokens_to_ids(_MODELS[name]["tokens"])
    config = Qwen2_5_VLConfig(
        text_config=sizes["text_config"] | text,
        vision_config=sizes["vision_config"],
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=False,
        dtype="float32",
    )
    return Qwen2_5_VLForConditionalGeneration(config)
