"""What the driver itself costs: the real loop, pool, reward service, learner client and ledger.

Engines, text rewards and ranks are actors that do nothing: they answer with what they were given at
their start. So whatever time a step takes is that of the driver and of what goes through it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray

from policy.learner.learner import RayLearner
from policy.learner.rank import RankUpdate
from policy.learner.usage import RankUsage
from rewards.composition import Accuracy, TextParts
from rewards.service import RewardService
from rewards.text.actor import TextRewardClient
from rl.config.run import Config
from rl.launch.metrics import Progress, step_metrics
from rl.loop.loop import Parts, StepResult, TrainingLoop
from rl.loop.losses import MAX_KEY
from rl.loop.stages import Canary, Prompt, RolloutGroup, Route, Trajectory, WeightProof
from rl.run.ledger import ledger_rows, write_step
from rl.run.threads import in_thread, shorten_stalls
from rl.system.actors import ActorPlaces
from rl.system.supervision import Supervisor
from rollout.engines.pool import Deadline, Deadlines, EnginePool

GROUPS, GROUP_SIZE, STEPS = 2000, 8, 4
ENGINES, RANKS = 4, 2
PROMPT_TOKENS, CHARACTERS_PER_TOKEN = 200, 4
LENGTHS = {"short": 200, "long": 2000}
SUMS = (
    *("loss", "entropy", "clipped", "mismatch_kl", "rollout_weight", "truncated"),
    *("num_loss_tokens", MAX_KEY),
)
WARMUP_STEPS = 1
TICK_S = 0.01
DEADLINE = Deadline(600.0, "no setting")


def response(tokens: int) -> Trajectory:
    """A trajectory of so many response tokens, with the text that such a one has."""
    length = PROMPT_TOKENS + tokens
    mask = np.arange(length) >= PROMPT_TOKENS
    reasoning = "so we go on " * (tokens * CHARACTERS_PER_TOKEN // 12)
    return Trajectory(
        token_ids=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        versions=(0, 0),
        finish_reason="stop",
        text=f"{reasoning}</think>12",
        reasoning=reasoning,
        answer="12",
    )


class TrivialEngine:
    """Answers each request with the same responses."""

    def __init__(self, lengths: Mapping[str, int]) -> None:
        self._version = 0
        # Eight different objects: pickle writes an object that it has met before in a few bytes.
        self._responses = {
            mode: [response(tokens) for _ in range(GROUP_SIZE)] for mode, tokens in lengths.items()
        }

    async def generate(self, request: Any) -> RolloutGroup:
        versions = (self._version, self._version)
        responses = self._responses[request.mode]
        return RolloutGroup(
            request, tuple(dataclasses.replace(one, versions=versions) for one in responses)
        )

    async def pause(self) -> None: ...

    async def resume(self, version: int) -> None:
        self._version = version

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def prove(self, canary: Canary) -> list[WeightProof]:
        return [WeightProof(self._version, {}, (-1.0,))]

    def close(self) -> None: ...


class TrivialRewards:
    async def parts(self, group: RolloutGroup, by_rules: bool) -> list[TextParts]:
        return [
            TextParts({"format": 1.0}, Accuracy(float(i % 2), Route("number", 1)), None)
            for i in range(len(group.trajectories))
        ]

    def close(self) -> None: ...


class TrivialRank:
    """Reads its share of a batch."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def update(self, batch: Any) -> RankUpdate:
        own = [i for u in batch.of_rank(self._rank) for rows in u.micro_batches for i in rows]
        sums, usage = dict.fromkeys(SUMS, 0.0), RankUsage.now(0, False)
        return RankUpdate(
            sums=sums,
            mismatches=dict.fromkeys(own, 0.0),
            grad_norm=1.0,
            learning_rate=1e-6,
            num_updates=1,
            seconds=1.0,
            usage=usage,
            skipped=None,
        )

    def send_weights(self, version: int) -> WeightProof:
        return WeightProof(version, {}, (-1.0,))


class DriverLearner(RayLearner):
    """The learner's client over ranks that are there already."""

    def __init__(self, config: Config, ranks: list[Any], engine: EnginePool) -> None:
        self._config, self.ranks, self._lost = config, ranks, ""
        self._engines, self._connected = engine, engine.actors


class SamePrompts:
    def prompts(self, step: int) -> list[Prompt]:
        message = {"role": "user", "content": "How many legs have 3 cows and 2 hens?"}
        return [Prompt(f"bench/{step}/{i}", (message,), "16") for i in range(GROUPS)]

    def replacement(self, step: int, place: int, attempt: int, mode: str) -> Prompt:
        raise AssertionError("no group is dropped here")


async def longest_stall(stalls: list[float]) -> None:
    """Collect how much later than asked the event loop came back, for ever."""
    while True:
        started = time.monotonic()
        await asyncio.sleep(TICK_S)
        stalls.append(time.monotonic() - started - TICK_S)


async def bench_driver(config: Config) -> dict[str, float]:
    """Seconds of the driver's CPU a step, of a step, and the longest stall of the event loop."""
    rollout = {"prompts_per_step": GROUPS, "group_size": GROUP_SIZE, "max_staleness": 1}
    policy = config.policy.model_copy(update={"ranks": RANKS})
    rollout = config.rollout.model_copy(update=rollout)
    config = config.model_copy(update={"rollout": rollout, "policy": policy, "steps": STEPS})
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    single = {"OMP_NUM_THREADS": "1"}

    def start(kind: type, arguments: list[tuple]) -> list[Any]:
        places = ActorPlaces(0, strategies=("DEFAULT",) * len(arguments))
        return places.start(kind, "bench", single, arguments)

    engine = EnginePool(
        "engine",
        start(TrivialEngine, [(LENGTHS,)] * ENGINES),
        Deadlines(DEADLINE, DEADLINE, DEADLINE),
        Supervisor(config.recovery),
    )
    trajectory = response(8)
    encode_tokens = tuple(range(PROMPT_TOKENS))
    engine.canary = Canary(None, trajectory)  # type: ignore[arg-type]
    text = TextRewardClient(start(TrivialRewards, [()]))
    learner = DriverLearner(config, start_ranks(), engine)
    reward = config.reward.model_copy(update={"probability": None, "preference": None})
    parts = Parts(
        SamePrompts(),
        lambda prompt, mode: encode_tokens,
        engine,
        RewardService(reward, config.modes, text),
        learner,
    )
    stalls: list[float] = []
    marks: list[tuple[float, float]] = []
    progress = Progress()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        async def on_step(result: StepResult) -> bool:
            progress.add(result)
            await in_thread(step_metrics, result, config, progress)
            trained = result.groups, result.advantages, result.mismatches
            rows = await in_thread(ledger_rows, result.step, *trained)
            await in_thread(write_step, directory, result.step, rows)
            if result.step == WARMUP_STEPS:
                stalls.clear()
            marks.append((time.monotonic(), time.process_time()))
            return True

        shorten_stalls()
        watching = asyncio.create_task(longest_stall(stalls))
        await TrainingLoop(config, parts).run(on_step)
        watching.cancel()
    ray.shutdown()
    (wall, cpu), (last_wall, last_cpu) = marks[WARMUP_STEPS - 1], marks[-1]
    steps = STEPS - WARMUP_STEPS
    row = {
        "cpu_seconds_per_step": (last_cpu - cpu) / steps,
        "seconds_per_step": (last_wall - wall) / steps,
        "longest_stall": max(stalls),
        "stalls_over_half_a_second": float(sum(stall > 0.5 for stall in stalls)),
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(
        f"driver, {GROUPS} groups x {GROUP_SIZE} a step: {row['cpu_seconds_per_step']:.2f} s of "
        f"CPU a step of {row['seconds_per_step']:.2f} s; longest stall of its event loop "
        f"{row['longest_stall']:.2f} s; {row['peak_rss_gib']:.2f} GiB"
    )
    return row


def start_ranks() -> list[Any]:
    """One call at a time each, as real ranks."""
    return [ray.remote(TrivialRank).options(num_cpus=0).remote(rank) for rank in range(RANKS)]
