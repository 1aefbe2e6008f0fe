"""A run of the real TrainingLoop against simulated engines and a simulated learner.

What is real: which groups are asked for and when, staleness, slots, credit, the order of a publish.
What is simulated: how long anything takes. Rewards take no time and never drop a group.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.run import Config
from rl.launch.simulate.clock import run_in_virtual_time
from rl.launch.simulate.engines import CANARY_LOGPROBS, SimulatedEngines
from rl.launch.simulate.hardware import EngineSpeed, LearnerSpeed
from rl.launch.simulate.lengths import Lengths
from rl.loop.loop import Parts, StepResult, TrainingLoop
from rl.loop.stages import (
    BatchUpdate,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Score,
    TrainBatch,
    WeightProof,
)

PROMPT_TOKENS = 256
"""Of every prompt, or a third of the room for it where that is less; no ledger tells."""
WARMUP_STEPS = 3
"""Steps that fill the pipeline, besides one for each version of staleness."""


@dataclass(frozen=True)
class Death:
    """An engine that is taken away."""

    engine: int
    at_s: float
    back_s: float
    """Seconds until another one stands in its place."""


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took, without its first steps."""

    step_s: float
    learner_waits: float
    """Share of the time in which the learner waits for groups."""
    updating: float
    """Share in which it updates the policy."""
    publishing: float
    """Share in which weights are on their way: learner and engines wait."""
    engines_idle: float
    """Share in which an engine computes nothing, mean over all engines."""
    tokens_per_second: float
    """Response tokens of all engines together."""
    total_s: float
    """Seconds of all steps, the first ones included."""
    lost_tokens: float = 0.0
    """What dead engines had sampled of groups that others began again."""


@dataclass
class _Learner:
    """Implements Learner."""

    speed: LearnerSpeed
    updating_s: float = 0.0
    publishing_s: float = 0.0

    async def update(self, batch: TrainBatch) -> BatchUpdate:
        lengths = [sample.trajectory.num_tokens for sample in batch.samples]
        seconds = self.speed.update_seconds(lengths)
        self.updating_s += seconds
        await asyncio.sleep(seconds)
        return BatchUpdate({}, (0.0,) * len(lengths))

    async def send_weights(self, version: int) -> WeightProof:
        self.publishing_s += self.speed.publish_s
        await asyncio.sleep(self.speed.publish_s)
        return WeightProof(version, {}, CANARY_LOGPROBS)

    async def save(self, directory: Path) -> None:
        raise NotImplementedError("a simulation saves nothing")


class _Prompts:
    """Implements Prompts: all the same, since nobody reads them."""

    def __init__(self, count: int) -> None:
        self._prompt, self._count = Prompt("simulated", (), ""), count

    def prompts(self, step: int) -> list[Prompt]:
        return [self._prompt] * self._count

    def replacement(self, step: int, place: int, attempt: int, mode: str) -> Prompt:
        return self._prompt


class _Scorer:
    """Implements Scorer: every second response is right, so no group is without a signal."""

    def __init__(self, group_size: int) -> None:
        self._scores = tuple(Score(float(i % 2), {"accuracy": 0.0}) for i in range(group_size))

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        return self._scores

    def learnt(self, request: RolloutRequest) -> Mapping[str, float]:
        return {}

    def recall(self, learnt: Mapping[str, float]) -> None:
        """No response of a simulation outlives its process."""


def simulate(
    config: Config,
    engine: EngineSpeed,
    learner: LearnerSpeed,
    lengths: Lengths,
    deaths: Sequence[Death] = (),
    on_step: Callable[[StepResult], Any] = lambda result: None,
) -> Outcome:
    """Run `config.steps` steps; raises ValueError if they are too few to be measured."""
    warmup = WARMUP_STEPS + config.rollout.max_staleness
    if config.steps <= warmup:
        raise ValueError(f"a simulation needs more than {warmup} steps, got {config.steps}")
    # A hundred thousand responses in flight are no garbage, and looking through them for cycles
    # takes more time than everything else.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return run_in_virtual_time(
            _simulate(config, engine, learner, lengths, deaths, on_step, warmup)
        )
    finally:
        if was_enabled:
            gc.enable()


async def _simulate(
    config: Config,
    engine: EngineSpeed,
    learner: LearnerSpeed,
    lengths: Lengths,
    deaths: Sequence[Death],
    on_step: Callable[[StepResult], Any],
    warmup: int,
) -> Outcome:
    clock, rollout = asyncio.get_running_loop(), config.rollout
    engines = SimulatedEngines(rollout.workers, engine, lengths, rollout.keep_kv_cache)
    room = rollout.max_model_length - max(mode.max_tokens for mode in config.modes.values())
    tokens = (0,) * max(1, min(PROMPT_TOKENS, room // 3))
    trainer = _Learner(learner)
    parts = Parts(
        _Prompts(rollout.prompts_per_step),
        lambda prompt, mode: tokens,
        engines,
        _Scorer(rollout.group_size),
        trainer,
    )
    for death in deaths:
        clock.call_at(death.at_s, engines.die, death.engine, death.back_s)
    before = now = (0.0,) * 5

    async def measure(result: StepResult) -> bool:
        nonlocal before, now
        on_step(result)
        if result.step in (warmup, config.steps):
            learner_s = trainer.updating_s, trainer.publishing_s
            before, now = now, (clock.time(), *engines.totals(), *learner_s)
        return result.step < config.steps

    # It never reaches its last steps, during which engines have nothing left to sample ahead.
    endless = config.model_copy(update={"steps": config.steps + rollout.max_staleness + 1})
    await TrainingLoop(endless, parts).run(measure)
    total, busy, sampled, updating, publishing = (
        after - first for first, after in zip(before, now, strict=True)
    )
    return Outcome(
        step_s=total / (config.steps - warmup),
        # The loop's own figures are of this machine's clock, by which it all takes no time.
        learner_waits=max(0.0, 1 - (updating + publishing) / total),
        updating=updating / total,
        publishing=publishing / total,
        engines_idle=1 - busy / (total * rollout.workers),
        tokens_per_second=sampled / total,
        total_s=now[0],
        lost_tokens=engines.lost_tokens,
    )
