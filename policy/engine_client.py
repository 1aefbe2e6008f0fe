"""How the learner reaches the rollout workers for a publish: their address, and deadlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray


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
