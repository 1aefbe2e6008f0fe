"""How the learner reaches the rollout workers for a publish: their address, and deadlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray


class EngineClient:
    """vLLM's weight-sync calls to every rollout worker, each with a deadline."""

    def __init__(
        self, workers: Sequence[Any], deadline_s: float, processes_per_worker: int
    ) -> None:
        """processes_per_worker: vLLM processes of one engine, its tensor-parallel size."""
        self._workers = workers
        self._deadline_s = deadline_s
        self._processes_per_worker = processes_per_worker

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        # vLLM numbers the processes of one engine; NCCL needs one numbering over all of them.
        infos = [dict(init_info) for _ in self._workers]
        for place, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += place * self._processes_per_worker
        answers = [
            worker.init_weight_transfer_engine.remote(info)
            for worker, info in zip(self._workers, infos, strict=True)
        ]
        self._finish("init_weight_transfer_engine", answers)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        # The version travels with rollout.engines.worker.RolloutWorker.resume, after the last step.
        self._call("finish_weight_update")

    def _call(self, method: str, *arguments: Any) -> None:
        answers = [getattr(worker, method).remote(*arguments) for worker in self._workers]
        self._finish(method, answers)

    def _finish(self, method: str, answers: list[Any]) -> None:
        """Wait for all; raises TimeoutError naming the late ones, or the first one's own error."""
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
