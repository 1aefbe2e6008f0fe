"""The transports of GPUs through the whole path, learner to engines, with doubles for the GPUs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from policy.learner import learner
from rl.assembly import RunInputs, TrainingServices, gather_inputs, open_training
from rl.config.recipe import load
from rl.evaluate.evaluation import evaluate
from rl.loop.loop import train_request
from rl.loop.publish import CanaryCheck, UnprovenWeights, publish
from rl.loop.stages import RolloutGroup, RolloutRequest, TrainBatch, TrainSample
from tests.bpe_policy import make_policy
from tests.doubles.transports import DoubledRank
from tests.integration.test_system import mend, spoil

SAMPLES = 8
SETTINGS = [
    *("config=hybrid_50_50.yaml", "scale=cpu_tiny", "reward.preference=null", "steps=8"),
    *("rollout.group_size=2", "eval.prompts=1", f"eval.samples={SAMPLES}"),
    "rollout.engine.worker_extension_cls=tests.doubles.extension.DoubledExtension",
    "policy.optimizer.warmup_steps=0",
]


@dataclass(frozen=True)
class System:
    inputs: RunInputs
    services: TrainingServices
    runner: asyncio.Runner
    engines: int
    width: int

    def publish(self, version: int) -> dict[str, float]:
        services, canary = self.services, CanaryCheck.of(self.inputs.config)
        return self.runner.run(publish(services.learner, services.engine, version, canary))

    def train(self, step: int) -> None:
        config, encode = self.inputs.config, self.inputs.encode
        request = train_request(config, encode, f"{step}", self.inputs.heldout[0], "long")
        group = self.runner.run(self.services.engine.generate(request))
        samples = [TrainSample(t, (-1.0) ** n, 1.0) for n, t in enumerate(group.trajectories)]
        self.runner.run(self.services.learner.update(TrainBatch(step, tuple(samples))))


def open_system(root: Path, transport: str, *settings: str) -> Iterator[System]:
    policy = make_policy(root / "policy", 160)
    loaded = load([*SETTINGS, *settings, f"run={root / 'run'}", f"policy.model={policy}"]).config
    inputs = gather_inputs(loaded)
    # Set behind the configuration's back, which refuses a GPU's transport where there is none.
    sync = loaded.sync.model_copy(update={"transport": transport})
    inputs = dataclasses.replace(inputs, config=inputs.config.model_copy(update={"sync": sync}))
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(learner, "LearnerRank", DoubledRank)
        opened = open_training(inputs, print)
        services = runner.run(opened.__aenter__())
        rollout = loaded.rollout
        yield System(inputs, services, runner, rollout.workers, rollout.tensor_parallel)
        runner.run(opened.__aexit__(None, None, None))


RANKS = ["policy.ranks=2", "policy.zero_stage=3"]
TP = ["rollout.tensor_parallel=2", "rollout.engine.distributed_executor_backend=mp"]
KINDS = {
    # Two ranks under ZeRO-3, of which one sends, and both processes of an engine.
    "nccl_tp2": ("nccl", [*RANKS, *TP]),
    "ipc": ("ipc", []),
    "nccl": ("nccl", [*RANKS, "rollout.workers=2"]),
    "host_tp2": ("host", TP),
}
SLOW = ("nccl", "host_tp2")


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in KINDS],
)
def system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    transport, settings = KINDS[request.param]
    yield from open_system(tmp_path_factory.mktemp(request.param), transport, *settings)


def test_every_process_of_every_engine_proves_what_the_learner_has(system: System):
    before: Any = None
    for version in range(3):
        metrics = system.publish(version)
        assert metrics["sync/canary_max_abs_diff"] <= 1e-4
        proofs = system.runner.run(system.services.engine.prove(version))
        assert len(proofs) == system.engines * system.width
        assert len(proofs[0].digests) > 20
        assert all(proof.digests == proofs[0].digests for proof in proofs)
        assert proofs[0].digests != before
        before = proofs[0].digests
        system.train(version + 1)


def test_weights_travel_in_chunks_to_a_group_of_all_processes(system: System):
    if system.inputs.config.transport != "nccl":
        pytest.skip("only NCCL has a group")
    number, size, broadcasts = ray.get(system.services.learner.ranks[0].group.remote())
    assert (number, size) == (0, 1 + system.engines * system.width)
    # Of at least three publishes, 1.2 MB each.
    assert broadcasts > 3 * 10


TENSOR = "model.layers.1.mlp.down_proj.weight"


def stale(name: str, tensor: Any) -> Any:
    return tensor * 0.5 if name == TENSOR else tensor


def test_a_stale_tensor_stops_the_run_by_name(system: System):
    (actor, *_) = system.services.learner.ranks
    ray.get(actor.__ray_call__.remote(spoil, stale))
    try:
        with pytest.raises(UnprovenWeights, match=f"{TENSOR}: stale"):
            system.publish(10)
    finally:
        ray.get(actor.__ray_call__.remote(mend))
    system.publish(11)


@dataclass
class Recorded:
    """The engines, with every request of one sample and what it gave."""

    system: System
    groups: list[RolloutGroup]

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        group = await self.system.services.engine.generate(request)
        self.groups.append(group)
        return group


def test_samples_of_a_prompt_are_sampled_with_seeds_of_their_own(system: System):
    system.publish(20)
    recorded = Recorded(system, [])
    config, heldout = system.inputs.config, system.inputs.heldout
    scorer = system.services.scorer
    system.runner.run(evaluate(config, system.inputs.encode, recorded, scorer, heldout))
    of_mode = [group for group in recorded.groups if group.request.mode == "long"]
    assert len({group.request.seed for group in of_mode}) == len(of_mode) == SAMPLES
    assert {group.engine for group in of_mode} == set(range(system.engines))
    texts = [group.trajectories[0].token_ids.tobytes() for group in of_mode]
    assert len(set(texts)) == SAMPLES
    assert all(np.isfinite(group.trajectories[0].rollout_logprobs).all() for group in of_mode)
