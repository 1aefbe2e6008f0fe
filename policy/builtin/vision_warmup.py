"""Teaches a built-in vision policy to read digits and to add them, in both modes.

It imitates worked examples on clean pictures until it is right often enough on those of the task,
which are noisier and less orderly. Reasoning is then formed, and what is left for GRPO is mostly
to see. The examples misread on purpose: a policy that is sure of what it sees samples the same
reading every time, and GRPO learns nothing from it. A policy is shown its pictures as the learner
shows them, whatever its family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.tokenizer import END_THINK, EOS
from policy.builtin.warmup import Accuracy, ImitationRecipe, WarmupReport, imitate
from policy.models.checks import read_config
from policy.models.family import VisualInputs, open_visual_inputs
from rl.config.run import Section, SourceConfig
from rl.data.media.families import VisionFamily, unsampled_token_ids, vision_family
from rl.data.media.names import RenderedImage
from rl.data.tasks.pictures import draw_scene, read_settings
from rl.data.tasks.pictures.digits import DigitsScene
from rl.loop.batching import reference_sample
from rl.loop.stages import Prompt, ReferenceRequest, TrainSample

TASK_NAME = "digits"
TASK: dict[str, Any] = {
    "wording": "terse",
    # A digit has 28 x 28 pixels of its own: one visual token of the Qwen policy.
    "width": 84,
    "height": 28,
    "jitter": 0.75,
    "noise": [0.1, 0.3],
}
"""What a warmed policy is right on now and then (`data.settings`)."""
MAX_RESPONSE_TOKENS = {False: 6, True: 30}


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


@dataclass(frozen=True)
class Misreading:
    """Errors of worked examples; without them a policy would be sure of all it sees."""

    rng: np.random.Generator
    misread: float
    answer: float
    """Probabilities; see VisionWarmupRecipe."""

    def read(self, digit: int) -> int:
        return int(self.rng.integers(10)) if self.rng.random() < self.misread else digit

    def total(self, value: int) -> int:
        if self.rng.random() >= self.answer:
            return value
        return max(0, value + int(self.rng.choice([-2, -1, 1, 2])))


def worked_example(scene: DigitsScene, thinking: bool, slips: Misreading | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first line is what the picture shows, and each further line adds one digit
    to the sum so far, zero-padded so that the two stand side by side: for 3, 7 and 2
    `372\\n7+03=10\\n2+10=12\\n`, closed by `</think>`, a blank line and the answer.
    """
    if not thinking:
        answer = int(scene.answer)
        return f"{slips.total(answer) if slips else answer:02d}"
    digits = [slips.read(digit) if slips else digit for digit in scene.digits]
    lines, total = ["".join(map(str, digits))], digits[0]
    for digit in digits[1:]:
        lines.append(f"{digit}+{total:02d}={total + digit:02d}")
        total += digit
    return "\n".join([*lines, f"</think>\n\n{total:02d}"])


def warm_up(
    model: PreTrainedModel,
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: VisionWarmupRecipe,
    on_step: Callable[[int, float], None],
) -> WarmupReport:
    """Train `model` in place until it is ready or out of steps; `on_step` hears step and loss.

    directory: the policy's own, complete but for its weights.
    """
    clean = TASK | {"jitter": recipe.clean_jitter, "noise": recipe.clean_noise}
    examples = PictureTask.open(directory, tokenizer, clean)
    heldout = PictureTask.open(directory, tokenizer, TASK)
    slips = Misreading(np.random.default_rng(seed), recipe.misread, recipe.answer_slips)

    def loss_of(first: int) -> Tensor:
        pictures = training_pictures(seed, first, recipe.examples_per_step)
        return imitation_loss(model, examples, pictures, recipe.short_share, slips)

    def measure() -> Accuracy:
        return heldout_accuracy(model, heldout, recipe.heldout_questions)

    return imitate(model, seed, recipe, loss_of, measure, on_step)


@dataclass(frozen=True)
class PictureTask:
    """Pictures of digits of one kind, as prompts and visual arguments of one policy."""

    tokenizer: PreTrainedTokenizerFast
    inputs: VisualInputs
    settings: Section
    prompts: dict[bool, tuple[int, ...]]
    """By thinking: token ids up to where sampling starts, visual tokens in place."""
    unsampled: tuple[int, ...]
    """Token ids that no engine samples: those that stand for pictures."""

    @classmethod
    def open(
        cls, directory: Path, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
    ) -> PictureTask:
        """directory: of the policy, all but its weights."""
        inputs = open_visual_inputs(
            directory, SourceConfig(kind="visual", path=TASK_NAME, settings=settings)
        )
        model_type = read_config(directory).model_type
        family = vision_family(model_type)
        assert inputs is not None
        assert family is not None
        task, first = read_settings(TASK_NAME, settings), _picture(0, 0, False)
        question = draw_scene(TASK_NAME, task, 0, 0, False).question
        prompts = {
            thinking: inputs.expanded(_prompt(tokenizer, family, question, thinking), [first])
            for thinking in (False, True)
        }
        unsampled = unsampled_token_ids(model_type, tokenizer.get_vocab())
        return cls(tokenizer, inputs, task, prompts, unsampled)

    def scene(self, picture: RenderedImage) -> DigitsScene:
        return draw_scene(TASK_NAME, self.settings, picture.seed, picture.index, picture.is_heldout)

    def rows(
        self, pictures: Sequence[RenderedImage], responses: Sequence[Sequence[int]], thinking: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """Token ids [B, T] of responses of one length, and the backbone's visual arguments."""
        prompt = self.prompts[thinking]
        token_ids = torch.tensor([[*prompt, *response] for response in responses])  # [B, T]
        samples = [
            picture_sample(picture, row, len(prompt))
            for picture, row in zip(pictures, token_ids.tolist(), strict=True)
        ]
        visual = self.inputs(samples, token_ids)
        assert visual is not None
        return token_ids, dict(visual.arguments)


def imitation_loss(
    model: PreTrainedModel,
    task: PictureTask,
    pictures: Sequence[RenderedImage],
    short_share: float,
    slips: Misreading | None = None,
) -> Tensor:
    """Return the mean over examples, each mode weighing its own tokens equally."""
    num_short = round(short_share * len(pictures))
    loss = torch.zeros(())
    for thinking, part in ((False, pictures[:num_short]), (True, pictures[num_short:])):
        if not part:
            continue
        texts = [worked_example(task.scene(one), thinking, slips) for one in part]
        responses = task.tokenizer([text + EOS for text in texts])["input_ids"]
        token_ids, visual = task.rows(part, responses, thinking)
        start = len(task.prompts[thinking])
        logits = model(input_ids=token_ids, use_cache=False, **visual).logits  # [B, T, V]
        # Every response of a mode has the same length, so nothing is padded.
        nll = cross_entropy(logits[:, start - 1 : -1].flatten(0, 1), token_ids[:, start:].flatten())
        loss = loss + nll * len(part) / len(pictures)
    return loss


@torch.no_grad()
def heldout_accuracy(model: PreTrainedModel, task: PictureTask, num_questions: int) -> Accuracy:
    """Show `num_questions` held-out pictures once in each mode."""
    pictures = heldout_pictures(num_questions)
    answers = [task.scene(picture).answer for picture in pictures]
    right = {}
    for thinking in (False, True):
        texts = _sampled(model, task, pictures, thinking)
        given = (text.rpartition(END_THINK)[2].strip() for text in texts)
        right[thinking] = sum(map(eq, given, answers)) / num_questions
    return Accuracy(right[False], right[True])


def _sampled(
    model: PreTrainedModel, task: PictureTask, pictures: Sequence[RenderedImage], thinking: bool
) -> list[str]:
    """Texts sampled at temperature 1, up to the end of sequence."""
    tokenizer, start = task.tokenizer, len(task.prompts[thinking])
    unwritten = [tokenizer.pad_token_id] * MAX_RESPONSE_TOKENS[thinking]
    token_ids, visual = task.rows(pictures, [unwritten] * len(pictures), thinking)
    for place in range(start, token_ids.shape[1]):
        # What is yet unwritten stands right, where causality hides it.
        logits = model(input_ids=token_ids, use_cache=False, **visual).logits[:, place - 1]
        logits[:, list(task.unsampled)] = -torch.inf  # [B, V]
        token_ids[:, place] = torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]
    texts = tokenizer.batch_decode(token_ids[:, start:])
    return [text.partition(EOS)[0] for text in texts]


def training_pictures(seed: int, first: int, count: int) -> list[RenderedImage]:
    return [_picture(seed, first + place, False) for place in range(count)]


def heldout_pictures(count: int) -> list[RenderedImage]:
    return [_picture(0, index, True) for index in range(count)]


def _picture(seed: int, index: int, is_heldout: bool) -> RenderedImage:
    return RenderedImage(TASK_NAME, seed, index, is_heldout, place=0)


def _prompt(
    tokenizer: PreTrainedTokenizerFast, family: VisionFamily, question: str, thinking: bool
) -> list[int]:
    """Token ids up to where sampling starts, with one marker for the picture."""
    content: Any = [{"type": "image"}, {"type": "text", "text": question}]
    if not family.chat_takes_parts:
        content = f"{family.markers['image']}\n{question}"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        enable_thinking=thinking,
        tokenize=False,
    )
    return tokenizer(text)["input_ids"]


def picture_sample(
    picture: RenderedImage, token_ids: Sequence[int], num_prompt: int
) -> TrainSample:
    """A row of tokens that shows a picture, as the learner takes it."""
    prompt = Prompt("picture", (), "", media=(picture,))
    context, response = tuple(token_ids[:num_prompt]), tuple(token_ids[num_prompt:])
    return reference_sample(ReferenceRequest("", prompt, context, response, 1.0), context)
