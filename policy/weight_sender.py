"""The learner's side of a publish: vLLM trainer engines over the rank's weights.

`nccl` and `ipc` are vLLM's; `host` is ours, a safetensors file in shared memory. Every rank
takes part, because gathering ZeRO-3 partitions is a collective; rank 0 sends.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
from safetensors.torch import save_file
from vllm.distributed.weight_transfer import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import TrainerInitInfo

from rl.weight_digest import tensor_digest

SHARED_MEMORY = Path("/dev/shm")


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


class DigestedSource(WeightSource):
    """The rank's full weights by checkpoint name, digested as they are gathered."""

    def __init__(
        self,
        metadata: Callable[[], list[tuple[str, torch.dtype, tuple[int, ...]]]],
        weights: Callable[[], Iterator[tuple[str, torch.Tensor]]],
        is_sender: bool,
    ) -> None:
        self._metadata = metadata
        self._weights = weights
        self._is_sender = is_sender
        self.digests: dict[str, str] = {}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests = {}
        for name, tensor in self._weights():
            if self._is_sender:
                self.digests[name] = tensor_digest(tensor)
            yield name, tensor


@dataclass
class HostTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = "host"


class HostTrainerEngine(TrainerWeightTransferEngine[HostTrainerInitInfo]):
    """Sends all weights as one file in shared memory, which every engine of this host reads."""

    init_info_cls = HostTrainerInitInfo

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds: dict[str, float] = {}

    @classmethod
    def trainer_init(
        cls, init_info: HostTrainerInitInfo, *, client: Any, source: WeightSource | None = None
    ) -> HostTrainerEngine:
        if init_info.is_sender:
            client.init_weight_transfer_engine({})
        return cls(client=client, source=source, is_sender=init_info.is_sender)

    def send_weights(self) -> None:
        assert self.source is not None
        started = time.monotonic()
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.source}
        gathered = time.monotonic()
        if not self.is_sender:
            return
        descriptor, path = tempfile.mkstemp(".safetensors", "hybrid_rl_", SHARED_MEMORY)
        os.close(descriptor)
        try:
            save_file(tensors, path)
            written = time.monotonic()
            self.client.start_weight_update()
            self.client.update_weights({"path": path, "names": list(tensors)})
            self.client.finish_weight_update()
        finally:
            Path(path).unlink()
        self.seconds = {
            "gather": gathered - started,
            "transfer": written - gathered,
            "load": time.monotonic() - written,
        }


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
        source: DigestedSource,
        client: EngineClient,
        at: Rendezvous,
    ) -> None:
        """Meet the engines; returns when they are ready to receive."""
        self.source = source
        self._engine = _open_trainer_engine(transport, rank, source, client, at)

    def send(self) -> dict[str, float]:
        """Send every tensor; returns seconds by part, as far as the transport tells them apart."""
        started = time.monotonic()
        self._engine.send_weights()
        if isinstance(self._engine, HostTrainerEngine):
            return self._engine.seconds
        # vLLM gathers, sends and loads chunk by chunk, all three at the same time.
        return {"transfer": time.monotonic() - started}


def _open_trainer_engine(
    transport: str, rank: int, source: WeightSource, client: EngineClient, at: Rendezvous
) -> TrainerWeightTransferEngine:
    if transport == "host":
        return HostTrainerEngine.trainer_init(
            HostTrainerInitInfo(rank=rank), client=client, source=source
        )
    if transport == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        init_info: TrainerInitInfo = NCCLTrainerInitInfo(
            at.address, at.port, at.world_size, rank=rank
        )
    else:
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        # Packed: one staging buffer instead of a second copy of the model.
        init_info = IPCTrainerInitInfo(packed=True, rank=rank)
    return WeightTransferTrainerFactory.trainer_init(init_info, client=client, source=source)
