"""The learner's side of a publish: vLLM trainer engines over a rank's weights.

`nccl` and `ipc` are vLLM's own, `host` is ours for CPU. Every rank takes part, because gathering
ZeRO-3 partitions is a collective; rank 0 sends. Importing this takes vLLM, so only ranks do.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from vllm.distributed.weight_transfer import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import TrainerInitInfo

from policy.weights.engine_client import EngineClient, Rendezvous
from rl.loop.weight_digest import tensor_digest

SHARED_MEMORY = Path("/dev/shm")

Metadata = Callable[[], list[tuple[str, torch.dtype, tuple[int, ...]]]]
Weights = Callable[[], Iterator[tuple[str, torch.Tensor]]]


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
        self.source = DigestedSource(metadata, weights, is_sender=rank == 0)
        self._tells_parts = transport == "host"
        self._engine = _open_trainer_engine(transport, rank, self.source, client, at)

    def send(self) -> dict[str, float]:
        """Send every tensor; returns seconds by part, as far as the transport tells them apart."""
        started = time.monotonic()
        self._engine.send_weights()
        if self._tells_parts:
            return self._engine.seconds
        # vLLM's own engines gather, send and load chunk by chunk, all three at the same time.
        return {"transfer": time.monotonic() - started}


class DigestedSource(WeightSource):
    """The rank's full weights by checkpoint name, digested as they are gathered."""

    def __init__(self, metadata: Metadata, weights: Weights, is_sender: bool) -> None:
        self._metadata = metadata
        self._weights = weights
        self._is_sender = is_sender
        self.digests: dict[str, str] = {}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests = {}
        # Every rank goes through all tensors, since gathering them is a collective; only the sender
        # spends time on digests.
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
        # Copied to the CPU one by one: a gathered tensor is freed when the next one is gathered.
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.source}
        gathered = time.monotonic()
        if not self.is_sender:
            return
        # In memory that all processes of this machine share, so nothing is written to a disk and
        # every engine maps the same pages.
        descriptor, path = tempfile.mkstemp(".safetensors", "hybrid_rl_", SHARED_MEMORY)
        os.close(descriptor)
        try:
            # Only the sender writes and tells the engines; the other ranks have done their part by
            # gathering.
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


def _open_trainer_engine(
    transport: str, rank: int, source: WeightSource, client: EngineClient, at: Rendezvous
) -> TrainerWeightTransferEngine:
    """Meet the engines; called on every rank, returns when they are ready to receive."""
    if transport == "host":
        return HostTrainerEngine.trainer_init(
            HostTrainerInitInfo(rank=rank), client=client, source=source
        )
    if transport == "nccl":
        # Imported here, because both need CUDA libraries that a machine without a GPU lacks.
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        init_info: TrainerInitInfo = NCCLTrainerInitInfo(
            at.address, at.port, at.world_size, rank=rank
        )
    else:
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        # Packed: one staging buffer instead of a second copy of the model.
        init_info = IPCTrainerInitInfo(packed=True, rank=rank)
    return WeightTransferTrainerFactory.trainer_init(init_info, client=client, source=source)
