"""How requests are dealt to engines, with stand-ins for the actors."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest

from rl.config.run import Config
from rl.evaluate.evaluation import evaluate
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest
from rl.system.actors import ActorPlaces
from rollout.engines import pool
from rollout.engines.pool import EnginePool
from rollout.engines.worker import WorkerSettings
from tests.fakes import FakeScorer, config, trajectory

SAMPLES = 8


@dataclass
class SeededEngine:
    """Draws the seed of a request that has none from its own, as vLLM's model runner does."""

    seed: int
    seeds: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._numbers = np.random.RandomState(self.seed)

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        drawn = int(self._numbers.randint(2**31))
        self.seeds[request.prompt.id].append(drawn if request.seed is None else request.seed)
        await asyncio.sleep(0)
        return RolloutGroup(request, (trajectory(),))


def open_engines(monkeypatch: pytest.MonkeyPatch, cfg: Config) -> EnginePool:
    async def call(actor, method, request, **_):
        return await getattr(actor, method)(request)

    def start(places, kind, name, environment, arguments):
        return [SeededEngine(settings.seed) for _, settings, _ in arguments]

    monkeypatch.setattr(pool, "call", call)
    monkeypatch.setattr(ActorPlaces, "start", start)
    monkeypatch.setattr(pool, "PlacementGroupSchedulingStrategy", lambda group, bundle: bundle)
    settings = WorkerSettings("model", "float32", 32, 1, "host", {}, seed=cfg.seed)
    group, bundles = None, range(cfg.rollout.workers)
    return EnginePool.of_run(cfg, settings, group, bundles)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_engines", [1, 2, 4, 8])
@pytest.mark.parametrize("rollout", [{}, {"rollout__seed_requests": False}])
def test_samples_of_a_prompt_have_different_seeds_on_any_number_of_engines(
    monkeypatch: pytest.MonkeyPatch, num_engines: int, rollout: dict
) -> None:
    """Without seeds of their own, the k-th requests of engines of one seed would be copies."""
    cfg = config(eval={"samples": SAMPLES}, rollout__workers=num_engines, **rollout)
    engines = open_engines(monkeypatch, cfg)
    prompts = [Prompt(str(number), (), "12") for number in range(3)]
    scorer = FakeScorer(lambda group: [1.0])
    asyncio.run(evaluate(cfg, lambda prompt, mode: (1, 2, 3), engines, scorer, prompts))
    for prompt in prompts:
        seeds = [seed for engine in engines.actors for seed in engine.seeds[prompt.id]]
        assert len(set(seeds)) == len(seeds) == SAMPLES * len(cfg.modes)
