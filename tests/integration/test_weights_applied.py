"""What an engine in bfloat16 did with the weights it was given, beside what it received."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from policy.learner.logprobs import LogprobModel
from rl.loop.publish import CanaryCheck, UnprovenWeights, check_proofs
from rl.loop.stages import Canary, Prompt, RolloutRequest, WeightProof
from rl.loop.weight_digest import tensor_digest
from rollout.engines.worker import RolloutWorker
from tests.bpe_policy import make_policy
from tests.engine_parity import open_worker
from tests.fakes import config

SKIPPED = "model.layers.1.self_attn.k_proj.weight"
KEPT = "model.layers.0.input_layernorm.weight"


def leave_out(worker: Any, name: str | None) -> None:
    """In vLLM's process: its loader of the model passes one tensor over; None mends it."""
    model = worker.model_runner.get_model()
    if name is None:
        model.__class__ = type(model).__mro__[1]
        return
    load_weights = type(model).load_weights

    def without(self: Any, weights: Any) -> Any:
        return load_weights(self, ((n, t) for n, t in weights if n != name))

    # Between the class and the receipt, which puts itself in front as an instance attribute.
    model.__class__ = type(type(model).__name__, (type(model),), {"load_weights": without})


def keep_a_copy(worker: Any, name: str) -> None:
    """In vLLM's process: what is loaded into one tensor is not what the model computes with."""
    engine = worker.weight_transfer_engine
    # The transport itself, whose weights the receipt looks at (rollout/engines/receivers.py).
    transport = type(engine).__mro__[2]
    finish_weight_update = transport.finish_weight_update
    old = engine.model.get_parameter(name).detach().clone()

    def put_back(self: Any) -> None:
        finish_weight_update(self)
        self.model.get_parameter(name).data.copy_(old)

    transport.finish_weight_update = put_back


@dataclass
class Published:
    worker: RolloutWorker
    runner: asyncio.Runner
    model: PreTrainedModel
    directory: Path
    canary: Canary
    check: CanaryCheck

    def call(self, function: Any, *arguments: Any) -> None:
        self.runner.run(self.worker._engine.collective_rpc(function, args=arguments))

    def publish(self, version: int) -> tuple[float, float]:
        """As the learner and the loop do; raises UnprovenWeights."""

        async def send() -> list[WeightProof]:
            tensors = {name: t.contiguous() for name, t in self.model.state_dict().items()}
            path = self.directory / "weights.safetensors"
            save_file(tensors, path)
            await self.worker.pause()
            await self.worker.start_weight_update()
            await self.worker.update_weights({"path": str(path), "names": list(tensors)})
            await self.worker.finish_weight_update()
            await self.worker.resume(version)
            return await self.worker.prove(self.canary)

        received = self.runner.run(send())
        trajectory = self.canary.trajectory
        with torch.no_grad():
            logprobs, _ = LogprobModel(self.model, 4096)(
                torch.tensor(trajectory.token_ids[None], dtype=torch.int64),
                torch.tensor(trajectory.loss_mask[None]),
                torch.ones(1),
            )
        digests = {name: tensor_digest(t) for name, t in self.model.state_dict().items()}
        sent = WeightProof(version, digests, tuple(logprobs.tolist()))
        return check_proofs(sent, received, self.check)

    def step(self, name: str | None = None) -> None:
        """What an update of a usual learning rate leaves in bfloat16: a few entries move a step."""
        with torch.no_grad():
            for own, parameter in self.model.named_parameters():
                if name in (None, own):
                    flat = parameter.view(-1)
                    flat[:3] += flat[:3].abs() * 2**-7


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = make_policy(tmp_path_factory.mktemp("policy"), 2048)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        # For the functions above, which no engine of a run is given.
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        with open_worker(directory, "bfloat16") as (worker, runner):
            prompt = tuple(range(10, 40))
            request = RolloutRequest("canary", Prompt("", (), ""), "short", prompt, 1, 64, 1.0, 5)
            group = runner.run(worker.generate(request))
            check = CanaryCheck.of(config(policy={"dtype": "bfloat16"}))
            runner.run(worker.init_weight_transfer_engine({}))
            canary = Canary(request, group.trajectories[0])
            yield Published(worker, runner, model, directory, canary, check)


def test_a_tensor_that_the_loader_leaves_out_is_named_at_the_first_publish(published: Published):
    """The engine has its values already, from the file, so no log-probability tells."""
    published.call(leave_out, SKIPPED)
    with pytest.raises(UnprovenWeights, match=SKIPPED):
        published.publish(0)
    published.call(leave_out, None)


def test_weights_that_are_applied_are_proven_step_by_step(published: Published):
    """An engine with a float32 head differs by no more than the body's rounding."""
    for version in range(1, 4):
        mean, largest = published.publish(version)
        assert 0 < mean < 0.02
        assert largest < 0.1
        published.step(None if version == 1 else KEPT)


def test_a_tensor_that_was_loaded_and_not_applied_is_named_though_the_canary_is_blind(
    published: Published,
):
    published.publish(4)
    published.call(keep_a_copy, KEPT)
    published.step()
    with pytest.raises(UnprovenWeights, match=f"{KEPT} and goes on computing with what it had"):
        published.publish(5)


def test_logits_are_computed_in_float32(published: Published):
    """In bfloat16 they would be multiples of 2^-8 or more times their size."""
    (head,) = published.runner.run(
        published.worker._engine.collective_rpc(
            lambda worker: str(worker.model_runner.get_model().logits_processor.head_dtype)
        )
    )
    assert head == "torch.float32"
    logprobs = published.canary.trajectory.rollout_logprobs
    assert not np.array_equal(logprobs, logprobs.astype(np.float16))
