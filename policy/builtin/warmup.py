"""Teaches a built-in tiny policy to answer in both modes, to a set held-out accuracy.

GRPO strengthens reasoning that exists but does not build it, so the policy first imitates worked
examples. The examples slip on purpose: what is left for GRPO is to tell good answers from bad ones.
How fast the chain forms differs between seeds, so a held-out accuracy ends the warm-up and not a
number of steps.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from rl.data.tasks.chain_sum import ChainSumQuestion, Slips, question, worked_example

IGNORED = -100
MAX_RESPONSE_TOKENS = {False: 6, True: 70}


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
class WarmupRecipe(ImitationRecipe):
    """Everything that decides the warmed weights besides the seed and the model's sizes."""

    min_steps: int = 800
    max_steps: int = 1200
    learning_rate: float = 6e-3
    short_share: float = 0.2
    enough_short: float = 0.3
    enough_long: float = 0.45
    addition_slips: float = 0.15
    answer_slips: float = 0.2
    """How often worked examples err (rl/data/tasks/chain_sum.py)."""


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out questions answered right, each sampled once at temperature 1."""

    short: float
    long: float


@dataclass(frozen=True)
class WarmupReport:
    seed: int
    steps: int
    seconds: float
    heldout: Accuracy
    is_ready: bool
    """Whether the accuracies asked for were reached before `max_steps`."""


def warm_up(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: WarmupRecipe,
    on_step: Callable[[int, float], None],
) -> WarmupReport:
    """Train `model` in place until it is ready or out of steps; `on_step` hears step and loss."""
    slips = Slips(np.random.default_rng(seed), recipe.addition_slips, recipe.answer_slips)

    def loss_of(first: int) -> torch.Tensor:
        asked = [question(seed, first + i, False) for i in range(recipe.examples_per_step)]
        return _mean_loss(model, tokenizer, asked, recipe.short_share, slips)

    def measure() -> Accuracy:
        return heldout_accuracy(model, tokenizer, recipe.heldout_questions)

    return imitate(model, seed, recipe, loss_of, measure, on_step)


def imitate(
    model: PreTrainedModel,
    seed: int,
    recipe: ImitationRecipe,
    loss_of: Callable[[int], torch.Tensor],
    measure: Callable[[], Accuracy],
    on_step: Callable[[int, float], None],
) -> WarmupReport:
    """Train `model` in place until it is ready or out of steps; `on_step` hears step and loss.

    loss_of: the loss of a step's examples, given the number of the first. measure: the held-out
    accuracy, asked for at `min_steps` and then after every round.
    """
    started = time.monotonic()

    def is_enough(accuracy: Accuracy) -> bool:
        return accuracy.short >= recipe.enough_short and accuracy.long >= recipe.enough_long

    steps, accuracy = train_in_rounds(model, recipe, loss_of, measure, is_enough, on_step)
    seconds = round(time.monotonic() - started, 1)
    return WarmupReport(seed, steps, seconds, accuracy, is_enough(accuracy))


class Rounds(Protocol):
    """How long to train, and how fast; see ImitationRecipe for what each says."""

    @property
    def min_steps(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def round_steps(self) -> int: ...
    @property
    def examples_per_step(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def rise_steps(self) -> int: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...


Measured = TypeVar("Measured")


def train_in_rounds(
    model: PreTrainedModel,
    recipe: Rounds,
    loss_of: Callable[[int], torch.Tensor],
    measure: Callable[[], Measured],
    is_enough: Callable[[Measured], bool],
    on_step: Callable[[int, float], None],
) -> tuple[int, Measured]:
    """Train until what `measure` returns is enough or steps are out; return steps and the last one.

    See `imitate`.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    step = 0
    while True:
        for _ in range(recipe.round_steps if step else recipe.min_steps):
            loss = loss_of(step * recipe.examples_per_step)
            step += 1
            _descend(model, optimizer, loss, _learning_rate(recipe, step))
            on_step(step, loss.item())
        measured = measure()
        if is_enough(measured) or step >= recipe.max_steps:
            return step, measured


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and hold it to one thread, whose sums always run in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def save_warmed(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    report: Any,
) -> None:
    """Write weights, tokenizer and `warmup.json`, which is the report, a dataclass."""
    disable_progress_bar()
    if not torch.cuda.is_available():
        # Saving loads DeepSpeed, which warns about a missing GPU unless it is told of it.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(directory)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "warmup.json").write_text(json.dumps(asdict(report), indent=2) + "\n")


def _learning_rate(recipe: Rounds, step: int) -> float:
    rise = min(1.0, step / recipe.rise_steps)
    fall = max(0.1, 1 - 0.9 * step / recipe.min_steps)
    return recipe.learning_rate * rise * fall


def _descend(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _mean_loss(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[ChainSumQuestion],
    short_share: float,
    slips: Slips,
) -> torch.Tensor:
    """Return the mean over examples, each mode weighing its own tokens equally."""
    num_short = round(short_share * len(asked))
    loss = torch.zeros(())
    for thinking, part in ((False, asked[:num_short]), (True, asked[num_short:])):
        if not part:
            continue
        responses = [worked_example(one, thinking, slips) for one in part]
        tokens, targets = _examples(tokenizer, part, responses, thinking)
        logits = model(input_ids=tokens, use_cache=False).logits  # [B, T, V]
        nll = cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        loss = loss + nll * len(part) / len(asked)
    return loss


def _examples(
    tokenizer: PreTrainedTokenizerFast,
    asked: list[ChainSumQuestion],
    responses: list[str],
    thinking: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and targets, both [B, T]; padding stands right, where causality hides it."""
    prompts = tokenizer(_prompts(tokenizer, asked, thinking))["input_ids"]
    endings = tokenizer([response + tokenizer.eos_token for response in responses])["input_ids"]
    width = max(len(p) + len(e) for p, e in zip(prompts, endings, strict=True))
    tokens = torch.full((len(asked), width), tokenizer.pad_token_id)  # [B, T]
    targets = torch.full((len(asked), width), IGNORED)  # [B, T]
    for row, (prompt, ending) in enumerate(zip(prompts, endings, strict=True)):
        stop = len(prompt) + len(ending)
        tokens[row, :stop] = torch.tensor(prompt + ending)
        targets[row, len(prompt) : stop] = torch.tensor(ending)
    return tokens, targets


def _prompts(
    tokenizer: PreTrainedTokenizerFast, asked: list[ChainSumQuestion], thinking: bool
) -> list[str]:
    return tokenizer.apply_chat_template(
        [[{"role": "user", "content": one.text}] for one in asked],
        add_generation_prompt=True,
        enable_thinking=thinking,
        tokenize=False,
    )


@torch.no_grad()
def heldout_accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, num_questions: int
) -> Accuracy:
    """Ask `num_questions` held-out questions once in each mode."""
    asked = [question(0, index, True) for index in range(num_questions)]
    right = {False: 0, True: 0}
    for length in sorted({len(one.numbers) for one in asked}):
        alike = [one for one in asked if len(one.numbers) == length]
        for thinking in right:
            right[thinking] += _num_right(model, tokenizer, alike, thinking)
    return Accuracy(right[False] / num_questions, right[True] / num_questions)


def _num_right(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[ChainSumQuestion],
    thinking: bool,
) -> int:
    """Questions of one length make prompts of one length, so nothing is padded."""
    prompts = torch.tensor(tokenizer(_prompts(tokenizer, asked, thinking))["input_ids"])  # [B, T]
    sampled = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=MAX_RESPONSE_TOKENS[thinking],
        do_sample=True,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(sampled[:, prompts.shape[1] :], skip_special_tokens=True)
    answers = (text.rpartition("</think>")[2].strip() for text in texts)
    return sum(answer == one.answer for answer, one in zip(answers, asked, strict=True))
