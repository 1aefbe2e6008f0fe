"""Teaches a built-in policy to answer in both modes, to a set held-out accuracy.

GRPO strengthens reasoning that exists but does not build it, so a policy first imitates worked
examples. The examples slip on purpose: a policy that is sure of its answers samples the same one
every time, and GRPO then has nothing to tell apart. How fast reasoning forms differs between seeds,
so a held-out accuracy ends the warm-up and not a number of steps. What is asked is a task's concern
(text_policy.py, sight/). The labellers are trained by the same rounds (labeller.py).
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from policy.builtin.tokenizer import EOS
from policy.models.stages import OnStep, train_in_rounds
from rl.data.media.names import RenderedMedium
from rl.data.tasks.chain_sum import Slips
from rl.loop.batching import reference_sample
from rl.loop.interfaces import VisualInputs
from rl.loop.stages import CLOSE_THINK, Prompt, ReferenceRequest

# The target of a token that is not learned: the one that cross_entropy leaves out by default.
IGNORED = -100


@dataclass(frozen=True)
class ImitationRecipe:
    """How a policy imitates worked examples, and when that is enough."""

    min_steps: int
    max_steps: int
    learning_rate: float
    short_share: float
    """Share of examples that answer at once."""
    enough_short: float
    """Warm-up ends once short answers, sampled, are right this often ..."""
    enough_long: float
    """... and long ones this often."""
    round_steps: int = 50
    """Steps between two measurements once `min_steps` are done."""
    examples_per_step: int = 64
    rise_steps: int = 30
    """Steps of linear rise; then linear fall to a tenth at `min_steps`, held from there."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    heldout_questions: int = 256


@dataclass(frozen=True)
class LabellerRecipe:
    """Everything that decides a labeller's weights besides the policy they start from."""

    shares: tuple[float, ...]
    """How often a wrong answer makes each of MISTAKES (labeller.py)."""
    min_steps: int
    max_steps: int
    learning_rate: float
    examples_per_step: int = 32
    """Questions, each with a right and a wrong answer."""
    enough: float = 0.97
    """Training ends once this share of held-out claims is labelled right."""
    foresight: float = 0.3
    """Weight of the loss on right answers within their question, beside that on verdicts."""
    naming: float = 1.0
    """Weight of the loss on what the pictures show."""
    round_steps: int = 100
    rise_steps: int = 30
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    seed: int = 1
    """Of questions, mistakes and new tokens."""
    heldout_questions: int = 400
    """Per mistake, for the report."""


@dataclass(frozen=True)
class Question:
    """Something that is asked of a built-in model, and what answers to it are made from."""

    text: str
    answer: str
    """Two digits, the sum of the addends, where there are any."""
    addends: tuple[int, ...]
    media: tuple[RenderedMedium, ...] = ()
    scene: Any = None
    """What the media show, as its task drew it (rl/data/tasks/pictures)."""


@dataclass(frozen=True)
class Task(ABC):
    """Questions of one kind, as one model is asked them."""

    tokenizer: PreTrainedTokenizerFast
    inputs: VisualInputs | None = None
    """Lays out the pictures; None for a model that takes text alone."""
    seed: int = 0
    """Of the training questions."""
    slips: Slips | None = None
    """Of the worked examples."""

    @abstractmethod
    def questions(self, first: int, count: int, *, heldout: bool) -> list[Question]:
        """Questions from number `first` on; the held-out ones are the same for every model."""

    @abstractmethod
    def worked_example(self, question: Question, thinking: bool) -> str:
        """A response as the policy should write it, slips and all."""

    @abstractmethod
    def prompts(self, questions: Sequence[Question], thinking: bool) -> list[list[int]]:
        """Token ids up to where sampling starts."""

    def num_taught(self, thinking: bool) -> int:
        """How many of a prompt's last tokens are imitated too."""
        return 0

    @abstractmethod
    def sampled(
        self, model: PreTrainedModel, questions: Sequence[Question], thinking: bool
    ) -> list[str]:
        """Responses sampled at temperature 1; all prompts have as many tokens."""


def laid_out(
    task: Task, questions: Sequence[Question], rows: Sequence[Sequence[int]]
) -> tuple[Tensor, dict[str, Any]]:
    """Token ids [B, T] of rows, padded on the right where causality hides it, and what else the
    backbone takes."""
    padded, padding = [torch.tensor(row) for row in rows], task.tokenizer.pad_token_id
    token_ids = pad_sequence(padded, batch_first=True, padding_value=padding)
    samples = []
    for question, row in zip(questions, rows, strict=True):
        # As samples of the learner, so that the warm-up lays pictures out as training will.
        prompt = Prompt("shown", (), "", media=question.media)
        request = ReferenceRequest("", prompt, (), (), 1.0)
        samples.append(reference_sample(request, row))
    visual = task.inputs(samples, token_ids) if task.inputs else None
    return token_ids, visual.arguments() if visual else {}


def imitate(
    model: PreTrainedModel,
    examples: Task,
    heldout: Task,
    seed: int,
    recipe: ImitationRecipe,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train `model` in place until it is ready or out of steps; return the report.

    examples: what is imitated. heldout: what accuracy is measured on, at `min_steps` and then after
    every round.
    """

    def loss_of(first: int) -> Tensor:
        questions = examples.questions(first, recipe.examples_per_step, heldout=False)
        return imitation_loss(model, examples, questions, recipe.short_share)

    def measure() -> tuple[dict[str, Any], bool]:
        accuracy = heldout_accuracy(model, heldout, recipe.heldout_questions)
        return judged(accuracy, {"short": recipe.enough_short, "long": recipe.enough_long})

    return {"seed": seed} | train_in_rounds(model.parameters(), recipe, loss_of, measure, on_step)


def judged(
    accuracy: Mapping[str, float], enough: Mapping[str, float]
) -> tuple[dict[str, Any], bool]:
    """What a report says of held-out accuracies, and whether each that must be is high enough."""
    return {"heldout": accuracy}, all(accuracy[name] >= least for name, least in enough.items())


def imitation_loss(
    model: PreTrainedModel, task: Task, questions: Sequence[Question], short_share: float
) -> Tensor:
    """Return the mean over examples, each mode weighing its own tokens equally."""
    # A forward for each mode: long rows are several times as long as short ones, which would be
    # mostly padding beside them.
    num_short = round(short_share * len(questions))
    loss = torch.zeros(())
    for thinking, part in ((False, questions[:num_short]), (True, questions[num_short:])):
        if not part:
            continue
        token_ids, targets, visual = example_rows(task, part, thinking)
        logits = model(input_ids=token_ids, use_cache=False, **visual).logits  # [B, T, V]
        nll = cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        loss = loss + nll * len(part) / len(questions)
    return loss


def example_rows(
    task: Task, questions: Sequence[Question], thinking: bool
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Token ids [B, T] of worked examples, targets [B, T] and what else the backbone takes."""
    texts = [task.worked_example(question, thinking) + EOS for question in questions]
    rows, targets = [], []
    responses = task.tokenizer(texts)["input_ids"]
    for prompt, response in zip(task.prompts(questions, thinking), responses, strict=True):
        rows.append([*prompt, *response])
        given = len(prompt) - task.num_taught(thinking)
        targets.append(torch.tensor([*[IGNORED] * given, *prompt[given:], *response]))
    token_ids, visual = laid_out(task, questions, rows)
    return token_ids, pad_sequence(targets, batch_first=True, padding_value=IGNORED), visual


@torch.no_grad()
def heldout_accuracy(model: PreTrainedModel, task: Task, num_questions: int) -> dict[str, float]:
    """Share of held-out questions answered right in each mode, sampled once at temperature 1."""
    right = {"short": 0, "long": 0}
    questions = task.questions(0, num_questions, heldout=True)
    # Those of one length together, whose prompts need no padding.
    lengths = [len(prompt) for prompt in task.prompts(questions, False)]
    for length in sorted(set(lengths)):
        alike = [q for q, own in zip(questions, lengths, strict=True) if own == length]
        for mode in right:
            texts = task.sampled(model, alike, mode == "long")
            # After the last tag; a text without one, in either mode, is all answer.
            answers = [text.rpartition(CLOSE_THINK)[2].strip() for text in texts]
            right[mode] += sum(map(eq, answers, (question.answer for question in alike)))
    return {mode: count / num_questions for mode, count in right.items()}


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and hold it to one thread, whose sums always run in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Forked, because a caller's own random numbers must not depend on what the cache held.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def shown_warmup(min_steps: int, what: str = "policy") -> Iterator[OnStep]:
    """A progress bar, on standard error; what it yields is told each step and its loss."""
    columns = (TextColumn("{task.description}"), BarColumn())
    steps = TextColumn("step {task.completed:.0f}  {task.fields[loss]}")
    with Progress(*columns, steps, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"making the tiny {what} (once)", total=min_steps, loss="")

        def show(step: int, loss: float) -> None:
            # A warm-up that is not enough at `min_steps` goes on beyond them.
            total = max(step, min_steps)
            progress.update(task, completed=step, total=total, loss=f"loss {loss:.3f}")

        yield show


def save_warmed(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    report: dict[str, Any],
) -> None:
    """Write weights, tokenizer and `warmup.json`, which is the report."""
    disable_progress_bar()
    if not torch.cuda.is_available():
        # Saving loads DeepSpeed, which warns about a missing GPU unless it is told of it.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(directory)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "warmup.json").write_text(json.dumps(report, indent=2) + "\n")
