"""Pictures of digits that a built-in vision policy learns to read and to add, in both modes.

The policy imitates worked examples on clean pictures until it is right often enough on those of the
task, which are noisier and less orderly. Reasoning is then formed, and what is left for GRPO is
mostly to see. A policy is shown its pictures as the learner shows them, whatever its family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.tokenizer import EOS
from policy.builtin.warmup import IGNORED, ImitationRecipe
from policy.models.checks import read_config
from policy.models.family import VisualInputs, open_visual_inputs
from rl.config.data import SourceConfig
from rl.config.section import Section
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.names import RenderedImage
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import draw_scene, read_settings
from rl.data.tasks.pictures.digits import DigitsScene
from rl.loop.batching import reference_sample
from rl.loop.stages import Prompt, ReferenceRequest

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
    """Errors of worked examples; without them a policy would be sure of all that it sees."""

    rng: np.random.Generator
    misread: float
    answer: float
    """Probabilities; see VisionWarmupRecipe."""


def worked_example(scene: DigitsScene, thinking: bool, slips: Misreading | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first line is what the picture shows, and each further line adds one digit
    to the sum so far, zero-padded so that the two stand side by side: for 3, 7 and 2
    `372\\n7+03=10\\n2+10=12\\n`, closed by `</think>`, a blank line and the answer.
    """
    if not thinking:
        answer = int(scene.answer)
        if slips:
            answer = Slips(slips.rng, 0.0, slips.answer).maybe(answer, slips.answer, furthest=2)
        return f"{answer:02d}"
    # Reasoning goes on from what was read, right or wrong: the example errs in seeing alone.
    digits = list(scene.digits)
    if slips:
        rng = slips.rng
        digits = [int(rng.integers(10)) if rng.random() < slips.misread else n for n in digits]
    lines, total = ["".join(map(str, digits))], digits[0]
    for digit in digits[1:]:
        lines.append(f"{digit}+{total:02d}={total + digit:02d}")
        total += digit
    return "\n".join([*lines, f"</think>\n\n{total:02d}"])


@dataclass(frozen=True)
class PictureTask:
    """Pictures of digits of one kind, as one policy is shown them; an ImitationTask (warmup.py)."""

    tokenizer: PreTrainedTokenizerFast
    inputs: VisualInputs
    settings: Section
    prompts: dict[bool, tuple[int, ...]]
    """By thinking: token ids up to where sampling starts, visual tokens in place."""
    unsampled: tuple[int, ...]
    """Token ids that no engine samples: those that stand for pictures."""
    seed: int
    """Of the training pictures."""
    slips: Misreading | None

    @classmethod
    def open(
        cls,
        directory: Path,
        tokenizer: PreTrainedTokenizerFast,
        settings: dict[str, Any],
        seed: int = 0,
        slips: Misreading | None = None,
    ) -> PictureTask:
        """directory: of the policy, all but its weights. slips: of the worked examples."""
        data = SourceConfig(kind="visual", path=TASK_NAME, settings=settings)
        inputs = open_visual_inputs(directory, data)
        model_type = read_config(directory).model_type
        family = vision_family(model_type)
        assert inputs is not None and family is not None
        task, first = read_settings(TASK_NAME, settings), digits_picture(0, 0, False)
        question = draw_scene(TASK_NAME, task, 0, 0, False).question
        content: Any = [{"type": "image"}, {"type": "text", "text": question}]
        if not family.chat_takes_parts:
            content = f"{family.markers['image']}\n{question}"
        prompts = {}
        for thinking in (False, True):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                enable_thinking=thinking,
                tokenize=False,
            )
            # All pictures have one size, so the first one's visual tokens are those of every one.
            prompts[thinking] = inputs.expanded(tokenizer(text)["input_ids"], [first])
        unsampled = unsampled_token_ids(model_type, tokenizer.get_vocab())
        return cls(tokenizer, inputs, task, prompts, unsampled, seed, slips)

    def scene(self, picture: RenderedImage) -> DigitsScene:
        return draw_scene(TASK_NAME, self.settings, picture.seed, picture.index, picture.is_heldout)

    def training(self, first: int, count: int) -> list[RenderedImage]:
        return [digits_picture(self.seed, first + index, False) for index in range(count)]

    def heldout(self, count: int) -> list[list[RenderedImage]]:
        return [[digits_picture(0, index, True) for index in range(count)]]

    def answer(self, asked: RenderedImage) -> str:
        return self.scene(asked).answer

    def worked_example(self, asked: RenderedImage, thinking: bool) -> str:
        return worked_example(self.scene(asked), thinking, self.slips)

    def rows(
        self, asked: Sequence[RenderedImage], responses: Sequence[Sequence[int]], thinking: bool
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        prompt = self.prompts[thinking]
        # All responses of a mode have one length, so nothing is padded.
        token_ids = torch.tensor([[*prompt, *response] for response in responses])  # [B, T]
        targets = token_ids.clone()
        targets[:, : len(prompt)] = IGNORED
        return token_ids, targets, self.visual_arguments(asked, token_ids.tolist(), token_ids)

    def visual_arguments(
        self, pictures: Sequence[RenderedImage], rows: Sequence[Sequence[int]], token_ids: Tensor
    ) -> dict[str, Any]:
        """What the backbone takes besides token_ids [B, T], which are the rows, padded."""
        # As samples of the learner, so that the warm-up lays pictures out as training will.
        samples = []
        for picture, row in zip(pictures, rows, strict=True):
            prompt = Prompt("picture", (), "", media=(picture,))
            samples.append(reference_sample(ReferenceRequest("", prompt, (), (), 1.0), row))
        visual = self.inputs(samples, token_ids)
        assert visual is not None
        return visual.arguments()

    def sampled(
        self, model: PreTrainedModel, asked: Sequence[RenderedImage], thinking: bool
    ) -> list[str]:
        start = len(self.prompts[thinking])
        unwritten = [self.tokenizer.pad_token_id] * MAX_RESPONSE_TOKENS[thinking]
        token_ids, _, visual = self.rows(asked, [unwritten] * len(asked), thinking)
        # Written out, because `generate` of transformers knows nothing of our visual arguments.
        for position in range(start, token_ids.shape[1]):
            # What is not written yet stands on the right, where causality hides it.
            logits = model(input_ids=token_ids, use_cache=False, **visual).logits[:, position - 1]
            # As the engines sample: a visual token in an answer would read as a picture.
            logits[:, list(self.unsampled)] = -torch.inf  # [B, V]
            token_ids[:, position] = torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]
        texts = self.tokenizer.batch_decode(token_ids[:, start:])
        return [text.partition(EOS)[0] for text in texts]


def digits_picture(seed: int, index: int, is_heldout: bool) -> RenderedImage:
    return RenderedImage(TASK_NAME, seed, index, is_heldout, place=0)
