"""Trains a model in stages: some of its parts learn and the others stay as they are.

So MiniCPM-V comes to see (https://arxiv.org/abs/2509.18154, section 2.2.1): the resampler learns
between a language model and a vision tower that are frozen, then the tower with it, then all. How
long a stage takes differs between seeds, so what was learned ends it and not a number of steps.

    stage = Stage("resampler", ("resampler",), min_steps=100, max_steps=400, learning_rate=3e-3)
    report = train_stage(model, stage, loss_of, measure)
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from policy.models.family import model_family
from rl.config.policy import Part

OnStep = Callable[[int, float], None]
"""Hears each step, counted from 1, and its loss."""
Measure = Callable[[], tuple[dict[str, Any], bool]]
"""Figures for the report, and whether they are enough."""


class Schedule(Protocol):
    """How long something is trained, and how fast.

    Not a base class: the order of a recipe's fields is part of the name of what it made.
    """

    @property
    def min_steps(self) -> int: ...

    @property
    def max_steps(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def round_steps(self) -> int:
        """Steps between two measurements once `min_steps` are done."""
        ...

    @property
    def examples_per_step(self) -> int: ...

    @property
    def rise_steps(self) -> int:
        """Steps of linear rise; then linear fall to a tenth at `min_steps`, held from there."""
        ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def weight_decay(self) -> float: ...


@dataclass(frozen=True)
class Stage:
    """Which parts learn, how long and how fast: a Schedule."""

    name: str
    parts: tuple[Part, ...]
    """By the names of `policy.train`; the others stay as they are."""
    min_steps: int
    max_steps: int
    learning_rate: float
    round_steps: int = 50
    examples_per_step: int = 64
    rise_steps: int = 30
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01


def train_stage(
    model: PreTrainedModel,
    stage: Stage,
    loss_of: Callable[[int], Tensor],
    measure: Measure,
    on_step: OnStep = lambda step, loss: None,
    head: nn.Module | None = None,
) -> dict[str, Any]:
    """Train the stage's parts of `model` in place; return how it ended, as `train_in_rounds` does.

    loss_of: the loss of a step's examples, given the number of the first. head: trained with the
    parts, such as what a tower answers by while it learns alone. Raises ValueError for a part that
    the model does not have.
    """
    parts = model_family(model.config.model_type).parts(model)
    if missing := sorted(set(stage.parts) - set(parts)):
        raise ValueError(
            f"stage {stage.name} trains {', '.join(missing)}, and {model.config.model_type} has "
            f"only {', '.join(parts)}; name some of these"
        )
    let_learn(parts, stage.parts)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    weights += head.parameters() if head is not None else []
    return train_in_rounds(weights, stage, loss_of, measure, on_step)


def let_learn(parts: Mapping[Part, Sequence[nn.Module]], names: Sequence[Part]) -> None:
    """Make the named parts of a model trainable, and no other."""
    for name, modules in parts.items():
        for module in modules:
            module.requires_grad_(name in names)


def train_in_rounds(
    weights: Iterable[nn.Parameter],
    schedule: Schedule,
    loss_of: Callable[[int], Tensor],
    measure: Measure,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train until a measurement is enough or steps are out; return how it ended.

    loss_of: the loss of a step's examples, given the number of the first.
    """
    started = time.monotonic()
    weights = list(weights)
    optimizer = torch.optim.AdamW(weights, betas=schedule.betas, weight_decay=schedule.weight_decay)
    step = 0
    while True:
        # Nothing is measured before `min_steps`, because measuring takes as long as many steps.
        for _ in range(schedule.round_steps if step else schedule.min_steps):
            loss = loss_of(step * schedule.examples_per_step)
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # At learning rates this high an unlucky batch could undo much of what was learned.
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            on_step(step, loss.item())
        figures, is_ready = measure()
        if is_ready or step >= schedule.max_steps:
            seconds = round(time.monotonic() - started, 1)
            return {"steps": step, "seconds": seconds, **figures, "is_ready": is_ready}


def learning_rate(schedule: Schedule, step: int) -> float:
    """Rises linearly, then falls linearly to a tenth at `min_steps` and stays there."""
    rise = min(1.0, step / schedule.rise_steps)
    fall = max(0.1, 1 - 0.9 * step / schedule.min_steps)
    return schedule.learning_rate * rise * fall
