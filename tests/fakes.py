"""Small stand-ins for the parts behind rl/loop/interfaces.py, for tests of our own logic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rl.config.run import Config
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import (
    BatchUpdate,
    Failure,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    TrainBatch,
    Trajectory,
    WeightProof,
)
from rollout.engines.statistics import EngineStatistics


def config(**changes: object) -> Config:
    """A small valid configuration; `changes` replace whole sections by dotted key."""
    tree: dict = {
        "run": "runs/test",
        "steps": 4,
        "modes": {
            "short": {"share": 0.5, "thinking": False, "max_tokens": 4},
            "long": {"share": 0.5, "thinking": True, "max_tokens": 16},
        },
        "data": {"kind": "chain_sum"},
        "rollout": {"prompts_per_step": 4, "group_size": 2, "max_model_length": 32},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return Config.model_validate(tree)


def trajectory(
    num_prompt: int = 3,
    num_response: int = 4,
    versions: tuple[int, int] = (0, 0),
    text: str = "12",
    reasoning: str | None = None,
    answer: str | None = "12",
    finish_reason: str = "stop",
    end_token: int | None = None,
) -> Trajectory:
    length = num_prompt + num_response
    mask = np.arange(length) >= num_prompt
    return Trajectory(
        token_ids=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        versions=versions,
        finish_reason=finish_reason,  # type: ignore[arg-type]
        text=text,
        reasoning=reasoning,
        answer=answer,
        end_token=end_token,
    )


class FakePrompts:
    """Prompt ids name their place; replacements name the attempt too."""

    def __init__(self, prompts_per_step: int, pins: Mapping[tuple[int, int], str] = {}) -> None:
        self._count = prompts_per_step
        self._pins = pins

    def prompts(self, step: int) -> list[Prompt]:
        return [
            Prompt(f"{step}/{p}", (), "12", mode=self._pins.get((step, p)))
            for p in range(self._count)
        ]

    def replacement(self, step: int, place: int, attempt: int, mode: str) -> Prompt:
        return Prompt(f"{step}/{place}/replacement{attempt}", (), "12")


class FakeEngine:
    """Answers after `delay(request)` seconds; records the order of requests and the pauses."""

    def __init__(
        self,
        delay: Callable[[RolloutRequest], float] = lambda request: 0.0,
        fails: Callable[[RolloutRequest], str | None] = lambda request: None,
    ) -> None:
        self.requests: list[RolloutRequest] = []
        self.finished: list[str] = []
        self.version = 0
        self.paused = self.asleep = False
        self.death = asyncio.Event()
        self.proofs: Callable[[int], list[WeightProof]] = lambda version: [proof(version)]
        self._delay = delay
        self._fails = fails

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        assert not self.paused
        self.requests.append(request)
        first = self.version
        await asyncio.sleep(self._delay(request))
        if reason := self._fails(request):
            raise GenerationFailed(reason)
        self.finished.append(request.group_id)
        versions = (first, self.version)
        return RolloutGroup(request, tuple(trajectory(versions=versions) for _ in range(request.n)))

    async def sleep(self) -> None:
        self.paused = self.asleep = True

    async def pause(self) -> None:
        self.paused = True

    async def pause_joining(self) -> int:
        return 0

    async def resume(self, version: int) -> None:
        self.paused = self.asleep = False
        self.version = version

    async def watch(self) -> None:
        await self.death.wait()
        raise RuntimeError("engine 0 died in watch")

    async def prove(self, version: int) -> list[WeightProof]:
        return self.proofs(version)

    async def statistics(self) -> dict[int, EngineStatistics]:
        return {}


class FakeScorer:
    """Rewards 1, 0, 1, 0, ... unless told otherwise."""

    state: Mapping[str, object] = {}

    def __init__(self, rewards: Callable[[RolloutGroup], list[float | None]] | None = None) -> None:
        self._rewards = rewards or (lambda g: [float(i % 2 == 0) for i in range(g.request.n)])

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        return tuple(
            Score(r, {"accuracy": r}, Route("number", 1))
            if r is not None
            else Score(None, failure=Failure("crash"))
            for r in self._rewards(group)
        )

    def learnt(self, request: RolloutRequest) -> Mapping[str, float]:
        return {}

    def recall(self, learnt: Mapping[str, float]) -> None:
        assert not learnt


class FakeLearner:
    """Keeps the batches it is given; an update takes `update_seconds`."""

    device: str | None = None

    def __init__(self, update_seconds: float = 0.0) -> None:
        self.batches: list[TrainBatch] = []
        self._update_seconds = update_seconds

    async def update(self, batch: TrainBatch) -> BatchUpdate:
        self.batches.append(batch)
        await asyncio.sleep(self._update_seconds)
        return BatchUpdate({"loss/policy": 0.0}, tuple(map(float, range(len(batch.samples)))))

    async def send_weights(self, version: int) -> WeightProof:
        return proof(version)

    async def save(self, directory: Path) -> None:
        (directory / "weights").write_text(str(len(self.batches)))


def proof(version: int, **changes: object) -> WeightProof:
    fields = {"digests": {"a.weight": "1", "b.weight": "2"}, "canary_logprobs": (-1.0, -2.0)}
    return WeightProof(version, **(fields | changes))  # type: ignore[arg-type]
