"""How the tiny MiniCPM-V comes to see: in stages, as the published one is pre-trained.

Between a vision tower and a language model that know nothing, a resampler learns nothing for a long
time: its queries find no place to look at before there is something to be found. So each part first
learns alone (https://arxiv.org/abs/2509.18154, section 2.2.1), the tower and the language model on
tasks of their own that stand in for their pre-training.

    language   text alone: captions in the place of pictures, and the worked examples
    tower      to name digits, by a head that is then dropped
    resampler  to read pictures aloud for the language model; the other parts stay as they are
    frames     the same with several pictures and with the frames of videos
    eyes       both modes; tower and resampler
    policy     both modes, all parts; the examples slip, as in vision_policy.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policy.builtin.sight.picture_task import WAYS, PictureTask, all_ways
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
from rl.config.data import SourceConfig
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
    ways: tuple[str, ...] = tuple(WAYS)
    """In which the digits are shown."""


LANGUAGE = SeeingStage("language", ("llm",), 600, 1200, 3e-3, lesson="captions",
                       enough={"short": 0.85, "long": 0.85})  # fmt: skip
TOWER = SeeingStage("tower", ("vision",), 250, 600, 3e-3, lesson="digits", enough={"digits": 0.95})
# Without short answers: a sum is foretold a little by what the picture holds wherever it stands,
# and a resampler that has learned to give that leaves it only slowly.
RESAMPLER = SeeingStage("resampler", ("resampler",), 250, 450, 3e-3, short_share=0.0,
                        enough={"long": 0.6}, ways=("picture",), round_steps=100)  # fmt: skip
# The times of frames come last, to a resampler that finds its way about a picture.
FRAMES = SeeingStage("frames", ("resampler",), 300, 500, 3e-3, short_share=0.0,
                     enough={"long": 0.5}, round_steps=100)  # fmt: skip
EYES = SeeingStage("eyes", ("vision", "resampler"), 350, 650, 2e-3,
                   enough={"short": 0.45, "long": 0.45}, round_steps=100)  # fmt: skip
POLICY = SeeingStage("policy", ("llm", "vision", "resampler"), 200, 600, 1e-3, lesson="slips",
                     heldout_questions=256, enough={"short": 0.3, "long": 0.3},
                     round_steps=100)  # fmt: skip


@dataclass(frozen=True)
class SeeingRecipe:
    """Everything that decides the warmed weights besides the seed, the task and the sizes."""

    stages: tuple[SeeingStage, ...] = (LANGUAGE, TOWER, RESAMPLER, FRAMES, EYES, POLICY)
    misread: float = 0.12
    answer_slips: float = 0.15
    """How often the examples of the last stage err, as in VisionWarmupRecipe."""
    clean_jitter: float = 0.6
    clean_noise: tuple[float, float] = (0.0, 0.2)
    """Of the pictures that are shown, in place of the task's."""


class CaptionTask(PictureTask):
    """The same questions without the pictures: in the place of each stand its digits, as text."""

    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        placeholder = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        prompts = []
        for question, ids in zip(questions, super().prompts(questions, thinking), strict=True):
            caption = "".join(str(digit) for view in views_of(question) for digit in view)
            left = iter(self.tokenizer(caption)["input_ids"])
            prompts.append([next(left) if id == placeholder else id for id in ids])
        return prompts


@dataclass(frozen=True)
class Answering:
    """Answers in both modes, by imitation."""

    model: PreTrainedModel
    examples: PictureTask
    heldout: PictureTask

    def loss(self, stage: SeeingStage, first: int) -> Tensor:
        examples = self.examples.in_ways(stage.ways)
        questions = examples.questions(first, stage.examples_per_step, heldout=False)
        return imitation_loss(self.model, examples, questions, stage.short_share)

    def judge(self, stage: SeeingStage) -> tuple[dict[str, Any], bool]:
        heldout = self.heldout.in_ways(stage.ways)
        accuracy = heldout_accuracy(self.model, heldout, stage.heldout_questions)
        return judged(accuracy, stage.enough)


@dataclass(frozen=True)
class Naming:
    """Names digits from the tower's features: every patch says which digit its third of the picture
    shows and which third that is, so that a feature tells a resampler where it stands."""

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
        """Logits [S, N, names] of S views with N patches, and the right names [S, N]."""
        _, arguments = laid_out(self.task, questions, self.task.prompts(questions, False))
        visual: VisualBatch = arguments["visual"]
        # All views have one size.
        names = names_of(questions, *visual.sizes[0])
        return self.head(self.model.vpm(visual.patches, visual.sizes)), names


def names_of(questions: Sequence[Question], rows: int, columns: int) -> Tensor:
    """What the patches of the pictures of `questions` are to be called: [S, rows * columns]."""
    views = torch.tensor([view for question in questions for view in views_of(question)])
    names = views + 10 * torch.arange(NUM_DIGITS)  # [S, thirds]
    return names.repeat_interleave(columns // NUM_DIGITS, dim=1).repeat(1, rows)


def views_of(question: Question) -> list[tuple[int, ...]]:
    """What each third of a picture, or of a package of frames, is to say: as many digits as it has
    visual tokens (models.yaml). A picture with one digit, which may stand anywhere, says it thrice.
    """
    if len(question.media) == 1:
        return [question.addends]
    return [(digit,) * NUM_DIGITS for digit in question.addends]


def learn_to_see(
    model: MiniCPMV,
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: SeeingRecipe,
    ways: Callable[..., SourceConfig] = all_ways,
) -> dict[str, Any]:
    """Train `model` in place, stage by stage; return the report.

    directory: of the policy, all but its weights. ways: in which it is shown the digits. The policy
    is ready if the last stage was enough, whatever became of those before.
    """
    # Clearer and more orderly than the task's own pictures, so that seeing forms sooner.
    clean = ways(jitter=recipe.clean_jitter, noise=recipe.clean_noise)
    shown = PictureTask.open(directory, tokenizer, clean, seed)
    captions = replace(CaptionTask.open(directory, tokenizer, clean, seed), inputs=None)
    slips = Slips(np.random.default_rng(seed), recipe.misread, recipe.answer_slips)
    heldout = PictureTask.open(directory, tokenizer, ways())
    head = nn.Linear(model.config.vision_config.hidden_size, 10 * NUM_DIGITS)
    lessons: dict[Lesson, Answering | Naming] = {
        "captions": Answering(model, captions, captions),
        "digits": Naming(model, shown.in_ways(("picture", "pictures")), head),
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
