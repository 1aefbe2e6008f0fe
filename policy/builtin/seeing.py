"""How the tiny MiniCPM-V comes to see: in stages, as the published one is pre-trained.

Between a vision tower and a language model that know nothing, a resampler learns nothing for a long
time: its queries find no place to look at before there is something to be found. So each part first
learns alone (https://arxiv.org/abs/2509.18154, section 2.2.1), the tower and the language model on
tasks of their own that stand in for their pre-training.

    language   text alone: captions in the place of pictures, and the worked examples
    tower      to name digits, by a head that is then dropped
    resampler  to read pictures aloud for the language model; the other parts stay as they are
    eyes       both modes; tower and resampler
    policy     both modes, all parts; the examples slip, as in vision_policy.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.picture_task import TASK, PictureTask
from policy.builtin.warmup import (
    Question,
    heldout_accuracy,
    imitation_loss,
    judged,
    laid_out,
    shown_warmup,
)
from policy.models.minicpmv import MiniCPMV, VisualBatch
from policy.models.stages import Stage, train_stage
from rl.data.media.minicpmv import PLACEHOLDER
from rl.data.tasks.chain_sum import Slips

Lesson = Literal["captions", "digits", "pictures", "slips"]
NUM_DIGITS = 3
"""In each of the task's pictures."""


@dataclass(frozen=True)
class SeeingStage(Stage):
    """A stage of the warm-up, over once the held-out accuracy is enough."""

    lesson: Lesson = "pictures"
    """Captions, and pictures with slips in their examples or without, are answered in both modes;
    `digits` are named from the tower's features."""
    enough: Mapping[str, float] = field(default_factory=dict)
    """Accuracy by what is measured: `short` and `long`, or `digits`."""
    short_share: float = 0.45
    """Share of examples that answer at once."""
    heldout_questions: int = 128


LANGUAGE = SeeingStage("language", ("llm",), 600, 1200, 3e-3, lesson="captions",
                       enough={"short": 0.85, "long": 0.85})  # fmt: skip
TOWER = SeeingStage("tower", ("vision",), 250, 600, 3e-3, lesson="digits", enough={"digits": 0.95})
# Without short answers: a sum is foretold a little by what the picture holds wherever it stands,
# and a resampler that has learned to give that leaves it only slowly.
RESAMPLER = SeeingStage("resampler", ("resampler",), 200, 500, 3e-3, short_share=0.0,
                        enough={"long": 0.8})  # fmt: skip
EYES = SeeingStage("eyes", ("vision", "resampler"), 250, 600, 2e-3,
                   enough={"short": 0.65, "long": 0.65})  # fmt: skip
POLICY = SeeingStage("policy", ("llm", "vision", "resampler"), 200, 600, 1e-3, lesson="slips",
                     heldout_questions=256, enough={"short": 0.3, "long": 0.3})  # fmt: skip


@dataclass(frozen=True)
class SeeingRecipe:
    """Everything that decides the warmed weights besides the seed, the task and the sizes."""

    stages: tuple[SeeingStage, ...] = (LANGUAGE, TOWER, RESAMPLER, EYES, POLICY)
    misread: float = 0.12
    answer_slips: float = 0.15
    """How often the examples of the last stage err, as in VisionWarmupRecipe."""
    clean_jitter: float = 0.6
    clean_noise: tuple[float, float] = (0.0, 0.2)
    """Of the pictures that are shown, in place of the task's."""


class CaptionTask(PictureTask):
    """The same questions without the pictures: in the place of each stand its digits, as text."""

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        prompt = self.prompt_ids[thinking]
        placeholder = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        start, count = prompt.index(placeholder), prompt.count(placeholder)
        captions = ["".join(map(str, question.addends)) for question in questions]
        # As many digits as visual tokens (models.yaml).
        return [
            [*prompt[:start], *caption, *prompt[start + count :]]
            for caption in self.tokenizer(captions)["input_ids"]
        ]


@dataclass(frozen=True)
class Answering:
    """Answers in both modes, by imitation."""

    model: PreTrainedModel
    examples: PictureTask
    heldout: PictureTask

    def loss(self, stage: SeeingStage, first: int) -> Tensor:
        questions = self.examples.questions(first, stage.examples_per_step, heldout=False)
        return imitation_loss(self.model, self.examples, questions, stage.short_share)

    def judge(self, stage: SeeingStage) -> tuple[dict[str, Any], bool]:
        accuracy = heldout_accuracy(self.model, self.heldout, stage.heldout_questions)
        return judged(accuracy, stage.enough)


@dataclass(frozen=True)
class Naming:
    """Names digits from the tower's features: every patch says of which digit it is a part, and of
    which of the picture's, so that a feature tells a resampler where it stands."""

    model: MiniCPMV
    task: PictureTask
    head: nn.Linear

    def loss(self, stage: SeeingStage, first: int) -> Tensor:
        questions = self.task.questions(first, stage.examples_per_step, heldout=False)
        logits, names = self._named(questions)
        return cross_entropy(logits.flatten(0, 1), names.flatten())

    @torch.no_grad()
    def judge(self, stage: SeeingStage) -> tuple[dict[str, Any], bool]:
        questions = self.task.questions(0, stage.heldout_questions, heldout=True)
        logits, names = self._named(questions)
        right = (logits.argmax(-1) == names).double().mean().item()
        return judged({"digits": right}, stage.enough)

    def _named(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """Logits [S, N, names] of S pictures with N patches, and the right names [S, N]."""
        _, arguments = laid_out(self.task, questions, self.task.prompts(questions, False))
        visual: VisualBatch = arguments["visual"]
        # All pictures have one size, and their digits stand side by side.
        rows, columns = visual.sizes[0]
        names = torch.tensor([question.addends for question in questions])  # [S, digits]
        names = names + 10 * torch.arange(names.shape[1])
        names = names.repeat_interleave(columns // names.shape[1], dim=1).repeat(1, rows)  # [S, N]
        return self.head(self.model.vpm(visual.patches, visual.sizes)), names


def learn_to_see(
    model: MiniCPMV,
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: SeeingRecipe,
) -> dict[str, Any]:
    """Train `model` in place, stage by stage; return the report.

    directory: of the policy, all but its weights. The policy is ready if the last stage was enough,
    whatever became of those before.
    """
    # Clearer and more orderly than the task's own pictures, so that seeing forms sooner.
    clean = TASK | {"jitter": recipe.clean_jitter, "noise": recipe.clean_noise}
    shown = PictureTask.open(directory, tokenizer, clean, seed)
    captions = replace(CaptionTask.open(directory, tokenizer, clean, seed), inputs=None)
    slips = Slips(np.random.default_rng(seed), recipe.misread, recipe.answer_slips)
    heldout = PictureTask.open(directory, tokenizer, TASK)
    head = nn.Linear(model.config.vision_config.hidden_size, 10 * NUM_DIGITS)
    lessons: dict[Lesson, Answering | Naming] = {
        "captions": Answering(model, captions, captions),
        "digits": Naming(model, shown, head),
        "pictures": Answering(model, shown, shown),
        "slips": Answering(model, replace(shown, slips=slips), heldout),
    }
    reports: dict[str, Any] = {}
    for stage in recipe.stages:
        lesson = lessons[stage.lesson]
        loss_of, measure = partial(lesson.loss, stage), partial(lesson.judge, stage)
        own = head if stage.lesson == "digits" else None
        with shown_warmup(stage.min_steps, f"policy that sees: {stage.name}") as show:
            reports[stage.name] = train_stage(model, stage, loss_of, measure, show, own)
    return {
        "seed": seed,
        "stages": reports,
        "is_ready": reports[recipe.stages[-1].name]["is_ready"],
    }
