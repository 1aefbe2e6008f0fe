"""The learner's side of a publish: vLLM trainer engines over a rank's weights.

`nccl` and `ipc` are vLLM's own, `host` is ours for CPU. Every rank takes part, because gathering
ZeRO-3 partitions is a collective; rank 0 sends. Importing this takes vLLM, so only ranks do.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from policy.weights.engine_client import EngineClient
from policy.weights.full_weights import FullWeights
from rl.config.run import Config
from rl.loop.weight_digest import tensor_digest

SHARED_MEMORY = Path("/dev/shm")


class WeightSender:
    """One rank's part in every publish; made on all ranks together."""

    def __init__(
        self,
        config: Config,
        rank: int,
        weights: FullWeights,
        workers: Sequence[Any],
        address: tuple[str, int],
    ) -> None:
        """Meet the engines; returns when they are ready to receive.

        address: where rank 0 and the vLLM processes gather for NCCL, with a port.
        """
        rollout = config.rollout
        # Rank 0 alone sends, so it is the only learner rank that joins the engines' group.
        world_size = 1 + rollout.workers * rollout.tensor_parallel
        init_info = {
            "host": HostTrainerInitInfo(rank=rank),
            "nccl": NCCLTrainerInitInfo(*address, world_size, rank=rank),
            # Packed: one staging buffer instead of a second copy of the model. vLLM refuses a
            # tensor that is larger than the buffer, and the embedding of an 8B model is larger than
            # the default of 1 GiB.
            "ipc": IPCTrainerInitInfo(
                packed=True,
                packed_buffer_size_bytes=max(
                    DEFAULT_PACKED_BUFFER_SIZE_BYTES, weights.largest_bytes
                ),
                rank=rank,
            ),
        }[config.transport]
        self.source = DigestedSource(weights, init_info.is_sender)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            init_info,
            client=EngineClient(workers, config.sync.deadline_s, rollout.tensor_parallel),
            source=self.source,
        )

    def send(self) -> dict[str, float]:
        """Send every tensor; returns seconds by part, as far as the transport tells them apart."""
        started = time.monotonic()
        self._engine.send_weights()
        if isinstance(self._engine, HostTrainerEngine):
            return self._engine.seconds
        # vLLM's own engines gather, send and load chunk by chunk, all three at the same time.
        return {"transfer": time.monotonic() - started}


class DigestedSource(WeightSource):
    """The rank's full weights by checkpoint name, digested as they are gathered."""

    def __init__(self, weights: FullWeights, is_sender: bool) -> None:
        self._weights = weights
        self._is_sender = is_sender
        self.digests: dict[str, str] = {}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(*described) for described in self._weights.metadata]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests = {}
        # Every rank goes through all tensors, since gathering them is a collective; only the sender
        # spends time on digests.
        for name, tensor in self._weights:
            if self._is_sender:
                self.digests[name] = tensor_digest(tensor)
            yield name, tensor


@dataclass
class HostTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = "host"


class HostTrainerEngine(TrainerWeightTransferEngine[HostTrainerInitInfo]):
    """Sends all weights as one file in shared memory, which every engine of this host reads."""

    init_info_cls = HostTrainerInitInfo
    seconds: dict[str, float]

    @classmethod
    def trainer_init(
        cls, init_info: HostTrainerInitInfo, *, client: Any, source: WeightSource | None = None
    ) -> HostTrainerEngine:
        if init_info.is_sender:
            client.init_weight_transfer_engine({})
        return cls(client=client, source=source, is_sender=init_info.is_sender)

    def send_weights(self) -> None:
        assert self.source is not None
        self.seconds = {}
        started = time.monotonic()
        # Copied to the CPU one by one: a gathered tensor is freed when the next one is gathered.
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.source}
        gathered = time.monotonic()
        # Only the sender writes and tells the engines; the other ranks have done their part by
        # gathering.
        if not self.is_sender:
            return
        # In memory that all processes of this machine share, so nothing is written to a disk and
        # every engine maps the same pages.
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


WeightTransferTrainerFactory.register_engine(HostTrainerInitInfo.backend, HostTrainerEngine)
