"""What runs in the processes that hold vLLM's model: weights are received there, with a receipt.

vLLM's own `nccl` and `ipc` engines, and `host` for CPU, with one addition: every tensor is
digested between the wire and vLLM's loader, so the learner can compare what arrived with what it
holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.v1.sample.sampler import Sampler

from rl.loop.weight_digest import tensor_digest
from rollout.engines.forced_decoding import ForcedSampler


class Receipt:
    """Mixin for a vLLM worker engine: digests each tensor that its loader is given."""

    def start_weight_update(self) -> None:
        self.digests: dict[str, str] = {}
        super().start_weight_update()

    def receive_weights(self, update_info) -> None:
        load_weights = self.model.load_weights

        def digest_then_load(weights: Iterable[tuple[str, torch.Tensor]]):
            # As a list: digests and loader both read the tensors, and what arrives is a generator.
            arrived = list(weights)
            self.digests.update((name, tensor_digest(tensor)) for name, tensor in arrived)
            return load_weights(arrived)

        # vLLM's engines load through this attribute, chunk by chunk; an instance attribute stands
        # in front of the class's method for the length of one transfer.
        self.model.load_weights = digest_then_load
        try:
            super().receive_weights(update_info)
        finally:
            del self.model.load_weights


@dataclass
class HostInitInfo(WeightTransferInitInfo):
    """The host transport needs no rendezvous."""


@dataclass
class HostUpdateInfo(WeightTransferUpdateInfo):
    """One safetensors file in shared memory, and the order in which to load it."""

    path: str
    names: list[str]


class HostEngine(WeightTransferEngine[HostInitInfo, HostUpdateInfo]):
    """Loads checkpoint tensors from a file on this host, with vLLM's layerwise reload.

    The reload lifecycle is what vLLM's `nccl` engine uses; on CPU it is required, because linear
    weights are repacked after loading and a plain `load_weights` would write into the repacked
    copies.
    """

    init_info_cls = HostInitInfo
    update_info_cls = HostUpdateInfo

    def init_transfer_engine(self, init_info: HostInitInfo) -> None:
        """Nothing to set up: each update names its file."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: HostUpdateInfo) -> None:
        with safe_open(update_info.path, framework="pt") as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in update_info.names)

    def update_weights(self, update_info: dict) -> None:
        # The base class synchronises an accelerator afterwards; there is none here.
        self.receive_weights(self.parse_update_info(update_info))

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class HostReceiver(Receipt, HostEngine):
    pass


class NcclReceiver(Receipt, NCCLWeightTransferEngine):
    pass


class IpcReceiver(Receipt, IPCWeightTransferEngine):
    pass


class WorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`); called by collective_rpc."""

    def weight_digests(self) -> dict[str, str]:
        """Digest of each tensor that arrived in the last transfer, by checkpoint name."""
        return dict(self.weight_transfer_engine.digests)

    def force_tokens(self) -> None:
        """Let a V1 model runner take forced requests; the V2 runner can by itself."""
        sampler = self.model_runner.sampler
        # Other samplers, such as that of the V2 runner, take forced tokens by themselves.
        if isinstance(sampler, Sampler):
            self.model_runner.sampler = ForcedSampler(
                sampler.logprobs_mode, sampler.use_fp64_gumbel
            )
