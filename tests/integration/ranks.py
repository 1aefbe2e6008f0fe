"""Learner ranks as processes of their own, without Ray: for what they compute and what they save.

They are forked from a process that has loaded torch and DeepSpeed, which takes most of a start.
"""

from __future__ import annotations

import multiprocessing
import pickle
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from policy.learner.deepspeed_engine import LOOPBACK
from policy.learner.rank import LearnerRank, RankUpdate
from policy.models.loading import load_policy
from rl.config.policy import GuardConfig
from rl.config.run import Config
from rl.loop.stages import TrainBatch

DEADLINE_S = 300
"""For ranks that start while others have the cores; what hangs is ended all the same."""

ONE_MICRO_BATCH = 1000

FORKS = multiprocessing.get_context("forkserver")
# A process has one such server, which reward workers are forked from too.
FORKS.set_forkserver_preload([__name__, "deepspeed", "rewards.text.preload"])


class InspectedRank(LearnerRank):
    """A rank whose gradients and weights a test can read."""

    def gradients(self, batch: TrainBatch, micro_batch_tokens: int) -> dict[str, torch.Tensor]:
        """The full gradient of the batch by parameter name; the weights stay as they are."""
        from deepspeed.utils import safe_get_full_grad

        whole_config = self._config
        policy = whole_config.policy.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
        self._config = self._config.model_copy(update={"policy": policy})
        (update,) = self.plan(batch.samples)
        assert (len(update.micro_batches) == 1) == (micro_batch_tokens == ONE_MICRO_BATCH)
        self.accumulate(update, None)
        is_whole = policy.zero_stage == 0
        found = {
            name: (parameter.grad if is_whole else safe_get_full_grad(parameter)).clone()
            for name, parameter in self._engine.module.named_parameters()
        }
        for group in self._engine.optimizer.param_groups:
            group["lr"] = 0.0
        self._engine.step()
        self._config = whole_config
        return found

    def update_within(self, batch: TrainBatch, limits: dict[str, float]) -> RankUpdate:
        """An update under these limits of `guard`."""
        whole_config = self._config
        self._config = self._config.model_copy(update={"guard": GuardConfig(**limits)})
        updated = self.update(batch)
        self._config = whole_config
        return updated

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self._weights}

    def merged_by_peft(self) -> dict[str, torch.Tensor]:
        """What peft itself makes of the adapter, in a second copy of the policy."""
        import deepspeed

        policy = load_policy(self._source, self._config.policy)
        adapters = {
            name.removeprefix("backbone."): parameter
            for name, parameter in self._engine.module.named_parameters()
            if "lora_" in name
        }
        with torch.no_grad(), deepspeed.zero.GatheredParameters(list(adapters.values())):
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.copy_(adapters[name.removeprefix("base_model.model.model.")])
        return dict(policy.merge_and_unload().state_dict())


class Rank:
    """One rank, in a process that ends with this one."""

    def __init__(self, kind: type[LearnerRank], config: Config, model: Path, number: int) -> None:
        self._calls, theirs = FORKS.Pipe()
        arguments = (theirs, kind, config, model, number)
        self._process = FORKS.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: object) -> None:
        self._calls.send_bytes(pickle.dumps((method, arguments)))

    def answer(self) -> Any:
        """Of the call before; raises what it raised."""
        if not self._calls.poll(DEADLINE_S):
            raise TimeoutError(f"no answer within {DEADLINE_S} s")
        is_error, answer = pickle.loads(self._calls.recv_bytes())
        if is_error:
            raise answer
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.join(DEADLINE_S)


def serve(calls: Connection, kind: type[LearnerRank], *arguments: Any) -> None:
    """Answer calls in their order, as an actor does."""
    rank = kind(*arguments)
    while True:
        method, given = pickle.loads(calls.recv_bytes())
        try:
            answer = False, getattr(rank, method)(*given)
        except Exception as error:
            answer = True, error
        # As plain bytes: the pipe's own way would share a tensor's memory with this process.
        calls.send_bytes(pickle.dumps(answer))


def open_ranks(config: Config, model: Path, kind: type[LearnerRank] = InspectedRank) -> list[Rank]:
    """All ranks of a learner, which have loaded the model."""
    with pytest.MonkeyPatch.context() as patch:
        # Which the process that they are forked from reads as it loads.
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        ranks = [Rank(kind, config, model, number) for number in range(config.policy.ranks)]
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    ask(ranks, "start", LOOPBACK, port)
    return ranks


def ask(ranks: list[Rank], method: str, *arguments: object) -> list[Any]:
    """The answers of all ranks to a call, which they work on at the same time."""
    for rank in ranks:
        rank.call(method, *arguments)
    return [rank.answer() for rank in ranks]


def close(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.close()
