"""The learner's side of a publish: vLLM's weight-transfer API, driven from every rank.

Every rank takes part, because gathering ZeRO-3 partitions is a collective; rank 0 sends. vLLM is
imported when the engines are met, not with this module: the driver imports it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

Metadata = Callable[[], list[tuple[str, torch.dtype, tuple[int, ...]]]]
Weights = Callable[[], Iterator[tuple[str, torch.Tensor]]]


class EngineClient:
    """vLLM's weight-sync calls to every rollout worker, each with a deadline."""

    def __init__(self, workers: Sequence[Any], deadline_s: float) -> None:
        self._workers = workers
        self._deadline_s = deadline_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        # The version travels with rollout.worker.RolloutWorker.resume, after the last step.
        self._call("finish_weight_update")

    def _call(self, method: str, *arguments: Any) -> None:
        answers = [getattr(worker, method).remote(*arguments) for worker in self._workers]
        _, pending = ray.wait(answers, num_returns=len(answers), timeout=self._deadline_s)
        if pending:
            late = [place for place, answer in enumerate(answers) if answer in pending]
            raise TimeoutError(
                f"publish: rollout workers {late} did not answer {method} within "
                f"{self._deadline_s:g} s (sync.deadline_s)"
            )
        ray.get(answers)


@dataclass(frozen=True)
class Rendezvous:
    """Where rank 0 and the vLLM processes meet for NCCL."""

    address: str
    port: int
    world_size: int
    """One sender and every vLLM process."""


class WeightSender:
    """One rank's part in every publish; made on all ranks together."""

    def __init__(
        self,
        transport: str,
        rank: int,
        metadata: Metadata,
        weights: Weights,
        client: EngineClient,
        at: Rendezvous,
    ) -> None:
        """Meet the engines; returns when they are ready to receive."""
        from policy.trainer_engines import DigestedSource, open_trainer_engine

        self.source = DigestedSource(metadata, weights, is_sender=rank == 0)
        self._tells_parts = transport == "host"
        self._engine = open_trainer_engine(transport, rank, self.source, client, at)

    def send(self) -> dict[str, float]:
        """Send every tensor; returns seconds by part, as far as the transport tells them apart."""
        started = time.monotonic()
        self._engine.send_weights()
        if self._tells_parts:
            return self._engine.seconds
        # vLLM's own engines gather, send and load chunk by chunk, all three at the same time.
        return {"transfer": time.monotonic() - started}
