"""The learner's side of a publish: vLLM trainer engines over a rank's weights.

`nccl` and `ipc` are vLLM's own, `host` is ours for CPU. A LoRA adapter needs none of them: it is
small, and goes to the rollout workers as the bytes of a file. Every rank takes part, because
gathering ZeRO-3 partitions is a collective; rank 0 sends. Importing this takes vLLM, so only ranks
do.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save, save_file
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
from policy.weights.full_weights import AdapterWeights, FullWeights
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
        adapter: AdapterWeights | None,
        workers: Sequence[Any],
        address: tuple[str, int],
    ) -> None:
        """Meet the engines; returns when they are ready to receive.

        weights: what is sent whole, which is nothing where an adapter alone is trained.
        address: where rank 0 and the vLLM processes gather for NCCL, with a port.
        """
        rollout = config.rollout
        # Rank 0 alone sends, so it is the only learner rank that joins the engines' group.
        world_size = 1 + len(workers) * rollout.tensor_parallel
        init_info = {
            "host": HostTrainerInitInfo(rank=rank),
            "nccl": NCCLTrainerInitInfo(*address, world_size, rank=rank),
            # Packed: one staging buffer instead of a second copy of the model. vLLM refuses a
            # tensor that is larger than the buffer, and the embedding of an 8B model is larger than
            # the default of 1 GiB.
            "ipc": IPCTrainerInitInfo(
                packed=True,
                # As a list, because an adapter alone leaves nothing to send whole.
                packed_buffer_size_bytes=max(
                    [DEFAULT_PACKED_BUFFER_SIZE_BYTES, *weights.sizes.values()]
                ),
                rank=rank,
            ),
        }[config.transport]
        self._client = EngineClient(workers, config.sync.deadline_s, rollout.tensor_parallel)
        self._is_sender = rank == 0
        self.adapter = None if adapter is None else DigestedSource(adapter, rank == 0)
        self.source = DigestedSource(weights, init_info.is_sender)
        self._engine = None
        if weights.metadata:
            self._engine = WeightTransferTrainerFactory.trainer_init(
                init_info, client=self._client, source=self.source
            )

    @property
    def digests(self) -> Mapping[str, str]:
        """Digest of each tensor of the last `send`, by name; none on other ranks than 0."""
        return self.source.digests | (self.adapter.digests if self.adapter else {})

    def send(self) -> dict[str, float]:
        """Send every tensor; returns seconds by part, as far as the transport tells them apart."""
        seconds: Counter[str] = Counter()
        started = time.monotonic()
        if self._engine is not None:
            self._engine.send_weights()
            if isinstance(self._engine, HostTrainerEngine):
                seconds.update(self._engine.seconds)
            else:
                # vLLM's own engines gather, send and load chunk by chunk, all at the same time.
                seconds["transfer"] += time.monotonic() - started
        # Last, because vLLM drops its adapters when weights have been replaced.
        if self.adapter is not None:
            started = time.monotonic()
            matrices = {name: tensor.contiguous().cpu() for name, tensor in self.adapter}
            seconds["gather"] += time.monotonic() - started
            if self._is_sender:
                started = time.monotonic()
                self._client.load_adapter(save(matrices))
                seconds["load"] += time.monotonic() - started
        return dict(seconds)


class DigestedSource(WeightSource):
    """Weights of the rank by name, digested as they are gathered."""

    def __init__(self, weights: FullWeights | AdapterWeights, is_sender: bool) -> None:
        self._weights = weights
        self._is_sender = is_sender
        self.digests: dict[str, str] = {}

    def metadata(self) -> list[ParamMeta]:
        # Asked by vLLM's trainer engines, which never see an adapter.
        assert isinstance(self._weights, FullWeights)
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
