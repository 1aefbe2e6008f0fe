"""The built-in tiny policies that see: a Qwen2.5-VL and a MiniCPM-V, made once on this machine.

They stand in for pretrained models as text_policy.py does for text. Each reads the digits of a
picture and adds them, well enough in both modes for GRPO to have something to strengthen.

A policy imitates worked examples on clean pictures until it is right often enough on those of the
task, which are noisier and less orderly. Reasoning is then formed, and what is left for GRPO is
mostly to see. A policy is shown its pictures as the learner shows them, whatever its family.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from policy.builtin.tokenizer import (
    CHARACTERS,
    CHAT_TEMPLATE,
    EOS,
    make_tokenizer,
    token_settings,
)
from policy.builtin.warmup import (
    ImitationRecipe,
    Question,
    Task,
    imitate,
    laid_out,
    reproducible,
    save_warmed,
    shown_warmup,
)
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.checks import read_config
from policy.models.family import open_visual_inputs
from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig
from rl.config.data import SourceConfig
from rl.config.section import Section
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.minicpmv import BRACKET_TOKENS
from rl.data.media.names import RenderedImage
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import draw_scene, read_settings

TinyVisionName = Literal["tiny_qwen_vl", "tiny_minicpmv"]

MAX_LENGTH = 2048
DEFAULT_SEED = 0
TASK_NAME = "digits"
# What a warmed policy is right on now and then, as a run's `data.settings`.
TASK: dict[str, Any] = {
    "wording": "terse",
    # A digit has 28 x 28 pixels of its own: one visual token of the Qwen policy.
    "width": 84,
    "height": 28,
    "jitter": 0.75,
    "noise": [0.1, 0.3],
}
# By thinking: longer than any worked example, so that only what is wrong anyway is cut.
MAX_RESPONSE_TOKENS = {False: 6, True: 30}
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
            slips = Slips(np.random.default_rng(seed), recipe.misread, recipe.answer_slips)
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


@dataclass(frozen=True, kw_only=True)
class PictureTask(Task):
    """Pictures of digits of one kind."""

    settings: Section
    prompt_ids: dict[bool, list[int]]
    """By thinking: token ids of every prompt, since all pictures have one size."""
    unsampled: list[int]
    """Token ids that no engine samples: those that stand for pictures."""

    @classmethod
    def open(
        cls,
        directory: Path,
        tokenizer: PreTrainedTokenizerFast,
        settings: dict[str, Any],
        seed: int = 0,
        slips: Slips | None = None,
    ) -> PictureTask:
        """directory: of the policy, all but its weights. slips: of the worked examples."""
        data = SourceConfig(kind="visual", path=TASK_NAME, settings=settings)
        inputs = open_visual_inputs(directory, data)
        model_type = read_config(directory).model_type
        family = vision_family(model_type)
        assert inputs is not None and family is not None
        checked, ids = read_settings(TASK_NAME, settings), {}
        question = draw_scene(TASK_NAME, checked, 0, 0, False).question
        first = RenderedImage(TASK_NAME, 0, 0, False, place=0)
        content: Any = [{"type": "image"}, {"type": "text", "text": question}]
        if not family.chat_takes_parts:
            content = f"{family.markers['image']}\n{question}"
        for thinking in (False, True):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                enable_thinking=thinking,
                tokenize=False,
            )
            ids[thinking] = list(inputs.expanded(tokenizer(text)["input_ids"], [first]))
        unsampled = list(unsampled_token_ids(model_type, tokenizer.get_vocab()))
        shared = tokenizer, inputs, seed, slips
        return cls(*shared, settings=checked, prompt_ids=ids, unsampled=unsampled)

    def questions(self, first: int, count: int, *, heldout: bool) -> list[Question]:
        questions, seed = [], 0 if heldout else self.seed
        for index in range(first, first + count):
            scene = draw_scene(TASK_NAME, self.settings, seed, index, heldout)
            picture = RenderedImage(TASK_NAME, seed, index, heldout, place=0)
            questions.append(Question(scene.question, scene.answer, scene.digits, picture))
        return questions

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.addends, thinking, self.slips)

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        return [self.prompt_ids[thinking]] * len(questions)

    def sampled(
        self, model: PreTrainedModel, questions: Sequence[Question], thinking: bool
    ) -> list[str]:
        prompt = self.prompt_ids[thinking]
        unwritten = [self.tokenizer.pad_token_id] * MAX_RESPONSE_TOKENS[thinking]
        token_ids, visual = laid_out(self, questions, [[*prompt, *unwritten]] * len(questions))
        # Written out, because `generate` of transformers knows nothing of our visual arguments.
        for position in range(len(prompt), token_ids.shape[1]):
            # What is not written yet stands on the right, where causality hides it.
            logits = model(input_ids=token_ids, use_cache=False, **visual).logits[:, position - 1]
            # As the engines sample: a visual token in an answer would read as a picture.
            logits[:, self.unsampled] = -torch.inf  # [B, V]
            token_ids[:, position] = torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]
        texts = self.tokenizer.batch_decode(token_ids[:, len(prompt) :])
        return [text.partition(EOS)[0] for text in texts]


def worked_example(digits: Sequence[int], thinking: bool, slips: Slips | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first line is what the picture shows, and each further line adds one digit
    to the sum so far, zero-padded so that the two stand side by side: for 3, 7 and 2
    `372\\n7+03=10\\n2+10=12\\n`, closed by `</think>`, a blank line and the answer.
    """
    if not thinking:
        total = sum(digits)
        if slips:
            total = slips.maybe(total, slips.answer, 2)
        return f"{total:02d}"
    if slips:
        # Reasoning goes on from what was read, right or wrong: the example errs in seeing alone.
        # Without such errors a policy would be sure of all that it sees.
        rng, rate = slips.rng, slips.reasoning
        digits = [int(rng.integers(10)) if rng.random() < rate else digit for digit in digits]
    lines, total = ["".join(map(str, digits))], digits[0]
    for digit in digits[1:]:
        lines.append(f"{digit}+{total:02d}={total + digit:02d}")
        total += digit
    return "\n".join([*lines, f"</think>\n\n{total:02d}"])
