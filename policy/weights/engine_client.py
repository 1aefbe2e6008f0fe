"""How the learner reaches the rollout workers for a publish: vLLM's calls, under deadlines."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from rl.system.actors import call, call_all


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
        calls = []
        for index, worker in enumerate(self._workers):
            info = dict(init_info)
            # vLLM numbers the processes of one engine; NCCL needs one numbering over all of them.
            if "rank_offset" in info:
                info["rank_offset"] += index * self._processes_per_worker
            who = f"rollout worker {index}"
            method = "init_weight_transfer_engine"
            calls.append(call(worker, method, info, deadline_s=self._deadline_s, who=who))

        async def meet() -> None:
            await asyncio.gather(*calls)

        asyncio.run(meet())

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        # The version travels with rollout.engines.worker.RolloutWorker.resume, after the last step.
        self._call("finish_weight_update")

    def load_adapter(self, matrices: bytes) -> None:
        """matrices: a safetensors file of a LoRA adapter, in the names of PEFT."""
        # Put once: as an argument of each call it would be copied for every worker.
        self._call("load_adapter", ray.put(matrices))

    def _call(self, method: str, *arguments: Any) -> None:
        # vLLM's trainer engines call this from threads of theirs, which have no event loop.
        asyncio.run(
            call_all(
                self._workers,
                method,
                *arguments,
                deadline_s=self._deadline_s,
                who="rollout worker",
                hint=" (sync.deadline_s)",
            )
        )
