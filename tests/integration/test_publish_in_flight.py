"""A publish while an engine is busy: what becomes of keys and values, of the canary, of a death."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rl.loop.stages import Canary, Prompt, ReferenceRequest, RolloutRequest
from rollout.engines.worker import RolloutWorker
from tests.bpe_policy import make_policy
from tests.engine_parity import open_worker, publish

# Three whole blocks of the cache, which has 128 tokens to a block on CPU, and a piece of one.
PROMPT = tuple(int(token) for token in np.random.default_rng(0).integers(10, 300, 400))
SAMPLED = 600
# Measured: 2e-6 where keys and values are as they should be; the two policies differ by over 0.1.
TOLERANCE = 1e-4


@dataclasses.dataclass
class Busy:
    """An engine, and the two policies whose weights it is given."""

    worker: RolloutWorker
    runner: asyncio.Runner
    old: PreTrainedModel
    new: PreTrainedModel
    directory: Path

    def request(self, name: str, tokens: int, prompt: tuple[int, ...] = PROMPT) -> RolloutRequest:
        return RolloutRequest(name, Prompt(name, (), ""), "short", prompt, 1, tokens, 1.0, seed=3)

    async def publish(self, policy: PreTrainedModel, version: int) -> None:
        await publish(self.worker, policy.state_dict(), self.directory, version)

    async def publish_in_flight(self, version: int) -> np.ndarray:
        """Put new weights under a response of the old ones; returns all its tokens and logprobs."""
        await self.publish(self.old, version)
        asking = asyncio.create_task(self.worker.generate(self.request(f"{version}", SAMPLED)))
        # The engine says nothing before the response is whole; some hundred tokens take a second.
        await asyncio.sleep(0.7)
        await self.publish(self.new, version + 1)
        (trajectory,) = (await asking).trajectories
        assert trajectory.versions == (version, version + 1)
        return np.stack([trajectory.token_ids, trajectory.rollout_logprobs])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    directory = make_policy(tmp_path_factory.mktemp("policy"), 2048)
    old, new = (AutoModelForCausalLM.from_pretrained(directory) for _ in range(2))
    # No end before the budget, and keys and values that differ clearly between the two.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for model in (old, new):
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.1)
    with open_worker(directory, max_num_seqs=2) as (worker, runner):
        # The end of a response is never sampled here, so that its length is known.
        worker._never_sampled = {model_eos(old): -100.0}
        yield Busy(worker, runner, old, new, directory)


@pytest.fixture(params=[True, False], ids=["kept", "dropped"])
def busy(engine: Busy, request: pytest.FixtureRequest) -> Busy:
    """The engine with and without `rollout.keep_kv_cache`, which counts at a publish alone."""
    settings = engine.worker._settings
    engine.worker._settings = dataclasses.replace(settings, keep_kv_cache=request.param)
    return engine


def model_eos(model: PreTrainedModel) -> int:
    return int(model.config.eos_token_id)


@torch.no_grad()
def mixed_logprobs(
    first: PreTrainedModel,
    then: PreTrainedModel,
    ids: np.ndarray,
    boundary: int,
    is_sampled: bool = True,
) -> np.ndarray:
    """[T - 1] of every token but the first: `then` takes up the keys and values of `first`."""
    tokens = torch.tensor(ids[None], dtype=torch.int64)
    start = first(tokens[:, :boundary], use_cache=True)
    end = then(tokens[:, boundary:], past_key_values=start.past_key_values)
    logits = torch.cat([start.logits, end.logits], dim=1)[0, :-1]
    if is_sampled:
        logits[:, model_eos(first)] = -torch.inf
    table = torch.log_softmax(logits, dim=-1)
    return table.gather(1, tokens[0, 1:, None])[:, 0].numpy()


def boundary_of(busy: Busy, ids: np.ndarray, logprobs: np.ndarray) -> int:
    """How many tokens the old weights had read when the new ones came."""
    old = mixed_logprobs(busy.old, busy.old, ids, len(ids) - 1)
    differs = np.abs(old - logprobs[1:])[len(PROMPT) - 1 :] > TOLERANCE
    boundary = len(PROMPT) + int(differs.argmax()) - 1
    assert len(PROMPT) < boundary < len(ids) - 10, "the publish must fall into the response"
    return boundary


def test_a_response_in_flight_goes_on_over_its_keys_and_values_if_they_are_kept(busy: Busy):
    ids, logprobs = busy.runner.run(busy.publish_in_flight(10))
    ids = ids.astype(np.int32)
    boundary = boundary_of(busy, ids, logprobs)
    is_kept = busy.worker._settings.keep_kv_cache
    # Computed again, all keys and values are of the new weights, and so is every later token.
    expected = mixed_logprobs(busy.old if is_kept else busy.new, busy.new, ids, boundary)
    np.testing.assert_allclose(logprobs[boundary + 1 :], expected[boundary:], atol=TOLERANCE)


def test_no_new_request_begins_with_keys_and_values_of_old_weights(busy: Busy):
    async def ask() -> np.ndarray:
        await busy.publish_in_flight(20)
        # The same prompt as that of the response before, whose blocks are cached.
        group = await busy.worker.generate(busy.request("after", 20))
        return np.stack([group.trajectories[0].token_ids, group.trajectories[0].rollout_logprobs])

    ids, logprobs = busy.runner.run(ask())
    expected = mixed_logprobs(busy.new, busy.new, ids.astype(np.int32), len(PROMPT))
    np.testing.assert_allclose(logprobs[len(PROMPT) :], expected[len(PROMPT) - 1 :], atol=TOLERANCE)


def test_a_reference_is_scored_over_the_context_as_it_was_sampled(busy: Busy):
    reference = PROMPT[:5]
    # Whole blocks alone are cached: the response's own last piece of one is computed anew.
    context = PROMPT[: 3 * 128 + 1]

    async def ask() -> list[tuple[float, ...]]:
        await busy.publish_in_flight(30)
        request = ReferenceRequest("", Prompt("", (), ""), context, reference, 1.0, engine=0)
        asked = [dataclasses.replace(request, id=f"v{v}", version=v) for v in (30, None)]
        return [await busy.worker.reference_logprobs(one) for one in asked]

    sampled, current = busy.runner.run(ask())
    ids, first = np.array([*context, *reference], np.int32), 3 * 128
    is_kept = busy.worker._settings.keep_kv_cache
    sampler = busy.old if is_kept else busy.new
    of_sampled = mixed_logprobs(sampler, busy.new, ids, first, is_sampled=False)
    of_current = mixed_logprobs(busy.new, busy.new, ids, first, is_sampled=False)
    np.testing.assert_allclose(sampled, of_sampled[-5:], atol=TOLERANCE)
    np.testing.assert_allclose(current, of_current[-5:], atol=TOLERANCE)


def test_the_canary_waits_for_no_response_in_flight(engine: Busy):
    """Two responses fill the engine of max_num_seqs=2; a third waits behind them."""

    async def prove() -> None:
        await engine.publish(engine.old, 40)
        request = engine.request("canary", 8)
        canary = Canary(request, (await engine.worker.generate(request)).trajectories[0])
        requests = [engine.request(f"long {index}", SAMPLED) for index in range(3)]
        asking = [asyncio.create_task(engine.worker.generate(request)) for request in requests]
        await asyncio.sleep(0.3)
        (proof,) = await engine.worker.prove(canary)
        assert not any(task.done() for task in asking)
        await asyncio.gather(*asking)
        mask = canary.trajectory.loss_mask
        ids = canary.trajectory.token_ids
        expected = mixed_logprobs(engine.old, engine.old, ids, len(PROMPT), is_sampled=False)
        np.testing.assert_allclose(proof.canary_logprobs, expected[mask[1:]], atol=TOLERANCE)

    engine.runner.run(prove())


def test_a_vllm_engine_that_dies_is_noticed_within_seconds_and_named(engine: Busy):
    """Last, because nothing can be asked after it."""

    async def die() -> None:
        watching = asyncio.create_task(engine.worker.watch())
        await asyncio.sleep(1.5)
        assert not watching.done()
        (process,) = engine.worker._engine.engine_core.resources.engine_manager.processes
        process.kill()
        with pytest.raises(RuntimeError, match="worker: its vLLM engine died"):
            await asyncio.wait_for(watching, timeout=60)

    engine.runner.run(die())
