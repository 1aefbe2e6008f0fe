"""vLLM's NCCL and CUDA IPC transfers on CPUs: their own code, over gloo and over shared memory.

Only what names a GPU is replaced, in each process that takes part: the ranks (`DoubledRank`) and
those of the engines (extension.py). Packing, chunk borders, numbers of processes,
receipts and deadlines are those of a run on GPUs.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from policy.learner.rank import LearnerRank

BUFFER_BYTES = 30_000
"""Of the packed buffer, so that a tiny model takes many chunks."""
TIMEOUT = timedelta(seconds=120)


class NoStream:
    def synchronize(self) -> None:
        pass


class Gloo:
    """In the place of vLLM's PyNcclCommunicator."""

    def __init__(
        self, master_address: str, master_port: int, rank: int, world_size: int, device: Any
    ) -> None:
        store = torch.distributed.TCPStore(
            master_address, master_port, world_size, rank == 0, TIMEOUT
        )
        self.rank, self.world_size, self.broadcasts = rank, world_size, 0
        self._group = torch.distributed.ProcessGroupGloo(store, rank, world_size, TIMEOUT)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()
        self.broadcasts += 1

    def destroy(self) -> None:
        pass


class WithoutCuda:
    """torch, whose tensors on `cuda` are in memory that all processes of this machine share."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*size: Any, device: Any = None, **settings: Any) -> torch.Tensor:
        if device == "cuda":
            return shared_tensor(new_file(), *size)
        return torch.empty(*size, device=device, **settings)


def new_file() -> str:
    return tempfile.NamedTemporaryFile(prefix="hybrid_rl_ipc_", dir="/dev/shm", delete=False).name


def shared_tensor(path: str, size: int) -> torch.Tensor:
    tensor = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    tensor.path = path  # type: ignore[attr-defined]
    return tensor


def replace_gpu_names() -> None:
    """In this process, from here on."""
    from vllm.distributed.weight_transfer import ipc_engine, nccl_common, packed_tensor

    nccl_common.stateless_init_process_group = Gloo
    packed_tensor._get_streams = lambda device, count: (NoStream(),) * count
    packed_tensor.torch = WithoutCuda()
    # The handle of a tensor is seven values, of which the last is the device.
    handle = lambda tensor: (None, (tensor.path, tensor.numel(), 0, 0, 0, 0, 0))  # noqa: E731
    packed_tensor.reduce_tensor = ipc_engine.reduce_tensor = handle
    torch.multiprocessing.reductions.rebuild_cuda_tensor = lambda path, size, *_: shared_tensor(
        path, size
    )
    torch.cuda.stream = lambda stream: nullcontext()
    torch.cuda.current_stream = lambda *_: NoStream()
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid="the only one")
    torch.cuda.ipc_collect = lambda: None
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.synchronize = lambda *_: None


class DoubledRank(LearnerRank):
    def connect_engines(self, *arguments: Any) -> None:
        replace_gpu_names()
        from policy.weights import sender

        info = sender.NCCLTrainerInitInfo
        sender.NCCLTrainerInitInfo = partial(info, packed_buffer_size_bytes=BUFFER_BYTES)
        sender.DEFAULT_PACKED_BUFFER_SIZE_BYTES = BUFFER_BYTES
        super().connect_engines(*arguments)

    def group(self) -> tuple[int, int, int]:
        """Of the NCCL group: this rank's number, how many processes are in it, its broadcasts."""
        group = self.sender._engine.model_update_group
        return group.rank, group.world_size, group.broadcasts
