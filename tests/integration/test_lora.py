"""A LoRA run in bfloat16: engines compute with the learner's adapter, not with rounded sums."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.torch import load_file, save_file

from policy.learner.rank import LearnerRank
from rl.assembly import RunInputs, TrainingServices, gather_inputs, open_training
from rl.config.recipe import load
from rl.loop.loop import train_request
from rl.loop.publish import CanaryCheck, UnprovenWeights, publish
from rl.loop.stages import ReferenceRequest, TrainBatch, TrainSample
from tests.bpe_policy import make_policy

STEPS = 20
SETTINGS = [
    *("config=hybrid_50_50.yaml", "scale=cpu_tiny", "reward.preference=null"),
    *(f"steps={STEPS}", "eval.prompts=2", "rollout.group_size=2", "policy.dtype=bfloat16"),
    *("policy.optimizer.learning_rate=1e-5", "policy.optimizer.warmup_steps=0"),
    "policy.optimizer.schedule=constant",
]
ADAPTER = ["policy.lora.rank=64", "policy.lora.alpha=128"]

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "head_dim": 64,
    "initializer_range": 0.05,
}
WEIGHT = 0.0645
"""The size of every weight that is adapted. Just above a power of two a step of bfloat16 is largest
beside the weight, so that the updates of this test are below half of it."""


@dataclass(frozen=True)
class System:
    """A learner and an engine, and what they are asked."""

    inputs: RunInputs
    services: TrainingServices
    runner: asyncio.Runner

    def publish(self, version: int) -> None:
        services, canary = self.services, CanaryCheck.of(self.inputs.config)
        self.runner.run(publish(services.learner, services.engine, version, canary))

    def sample(self) -> list[TrainSample]:
        """Long responses to the held-out prompts; every second one is to become more likely."""

        async def groups() -> list:
            config, encode = self.inputs.config, self.inputs.encode
            requests = [
                train_request(config, encode, f"lora/{n}", prompt, "long")
                for n, prompt in enumerate(self.inputs.heldout)
            ]
            return await asyncio.gather(*map(self.services.engine.generate, requests))

        trajectories = [t for group in self.runner.run(groups()) for t in group.trajectories]
        return [
            TrainSample(trajectory, (-1.0) ** n, temperature=1.0)
            for n, trajectory in enumerate(trajectories)
        ]

    def train(self, samples: Sequence[TrainSample]) -> None:
        for step in range(1, STEPS + 1):
            self.runner.run(self.services.learner.update(TrainBatch(step, tuple(samples))))

    def logprobs(self, samples: Sequence[TrainSample]) -> tuple[np.ndarray, np.ndarray]:
        """[tokens] of all responses, by the learner and by the engine."""
        prompt = self.inputs.heldout[0]
        requests = []
        for n, sample in enumerate(samples):
            t = sample.trajectory
            context = tuple(t.token_ids[~t.loss_mask].tolist())
            response = tuple(t.response_token_ids.tolist())
            requests.append(ReferenceRequest(f"{n}", prompt, context, response, temperature=1.0))

        async def ask(scorer) -> list[tuple[float, ...]]:
            return await asyncio.gather(*map(scorer.reference_logprobs, requests))

        both = (self.services.learner, self.services.engine)
        learner, engine = (np.concatenate(self.runner.run(ask(scorer))) for scorer in both)
        return learner, engine


@contextmanager
def opened(root: Path, settings: Sequence[str]) -> Iterator[System]:
    policy = make_policy(root / "policy", 160, **WIDE)
    weights = load_file(policy / "model.safetensors")
    for name, tensor in weights.items():
        if "_proj." in name:
            weights[name] = WEIGHT * tensor.sign()
    save_file(weights, policy / "model.safetensors", metadata={"format": "pt"})
    places = [f"run={root / 'run'}", f"policy.model={policy}"]
    inputs = gather_inputs(load([*SETTINGS, *settings, *places]).config)
    with asyncio.Runner() as runner:
        services = open_training(inputs, print)
        yield System(inputs, runner.run(services.__aenter__()), runner)
        runner.run(services.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Iterator[System]:
    with opened(tmp_path_factory.mktemp("lora"), ADAPTER) as system:
        yield system


def rms(differences: np.ndarray) -> float:
    return float(np.sqrt(np.mean(differences**2)))


def learned_and_arrived(system: System) -> tuple[float, float, float]:
    """Of 20 small steps: the share of the learner's change that arrives in the engine, and what the
    two differ by before and after."""
    system.publish(0)
    samples = system.sample()
    before = system.logprobs(samples)
    system.train(samples)
    system.publish(1)
    after = system.logprobs(samples)
    learned, arrived = (now - then for now, then in zip(after, before, strict=True))
    share = float(learned @ arrived / (learned @ learned))
    noise, mismatch = (rms(learner - engine) for learner, engine in (before, after))
    print(
        f"{len(learned)} tokens, moved by {rms(learned):.4f}; {share:.2f} of it arrives; "
        f"mismatch {noise:.4f} before, {mismatch:.4f} after"
    )
    return share, noise, mismatch


# Before the tests that share one system: a process has one at a time.
@pytest.mark.slow
def test_an_adapter_arrives_as_well_as_whole_weights_do(tmp_path):
    mismatches = {}
    for name, settings in (("adapter", ADAPTER), ("whole weights", [])):
        (tmp_path / name).mkdir()
        with opened(tmp_path / name, settings) as system:
            _, _, mismatches[name] = learned_and_arrived(system)
    assert mismatches["adapter"] < 1.2 * mismatches["whole weights"]


def test_small_updates_reach_the_engine_whole(system: System):
    """A sum of base and update in bfloat16 would be the base: none of it would arrive."""
    share, noise, mismatch = learned_and_arrived(system)
    assert share > 0.8
    assert mismatch < 1.5 * noise


MATRIX = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


def spoil(rank: LearnerRank) -> None:
    """Halve one matrix between the learner's digest and the wire."""
    source = rank.sender.adapter
    original = type(source).__iter__

    class Spoiled(type(source)):
        def __iter__(self):
            for name, tensor in original(self):
                yield name, 0.5 * tensor if name == MATRIX else tensor

    source.__class__ = Spoiled


def mend(rank: LearnerRank) -> None:
    rank.sender.adapter.__class__ = type(rank.sender.adapter).__mro__[1]


def test_a_stale_matrix_stops_the_run_by_name(system: System):
    (rank,) = system.services.learner.ranks
    ray.get(rank.__ray_call__.remote(spoil))
    try:
        with pytest.raises(UnprovenWeights, match=f"{MATRIX}: stale"):
            system.publish(2)
    finally:
        ray.get(rank.__ray_call__.remote(mend))
