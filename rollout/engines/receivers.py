"""What runs in the processes that hold vLLM's model: weights are received there, with a receipt.

vLLM's own `nccl` and `ipc` engines, and `host` for CPU, with one addition: every tensor is
digested between the wire and vLLM's loader, so the learner can compare what arrived with what it
holds; and the tensors that vLLM computes with are digested before and after, since one of them must
change if and only if something that it is made of has. Every matrix of a LoRA adapter is
digested too, which vLLM reads from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngine
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.lora.lora_model import LoRAModel
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.weight_checksum import zero_weights
from vllm.v1.sample.sampler import Sampler

from rl.loop.weight_digest import compare_changes, tensor_digest
from rollout.engines.forced_decoding import ForcedSampler


class Receipt:
    """Mixin for a vLLM worker engine: a receipt of what arrived, and of what it changed."""

    digests: Mapping[str, str] = MappingProxyType({})
    """Of each tensor that arrived in the last transfer, by checkpoint name."""
    unapplied: Sequence[str] = ()
    unexplained: Sequence[str] = ()
    # See WeightProof for both.

    _applied: Mapping[str, str] = MappingProxyType({})
    """`digests` without what was left out, which is new to the model when it comes again."""
    _held: Mapping[str, str] | None = None
    """Digests of the model's own tensors after the last transfer; None before the first."""
    _is_first = False
    _was_abandoned = False
    """Whether the transfer before this one was never finished."""

    def start_weight_update(self) -> None:
        self._arrived: dict[str, str] = {}
        self._zeros: set[str] = set()
        self._width = 8
        # After one that was abandoned the model is in pieces, which cannot be digested: what counts
        # is what it held before that one.
        if not self._was_abandoned:
            self._is_first = self._held is None
        if self._is_first:
            self._made_of: dict[str, AbstractSet[str] | None] = {}
        if self._is_first and not self._was_abandoned:
            # Beside an adapter only some weights are sent: the engine needs the others as it has
            # loaded them.
            if self.vllm_config.lora_config is None:
                # The first weights are often those that the engine has loaded from a file, so a
                # tensor that is left out now would only show steps later. From zeros every one must
                # change.
                zero_weights(self.model)
            self._held = _digests_of(self.model)
        super().start_weight_update()

    def receive_weights(self, update_info) -> None:
        load_weights = self.model.load_weights

        def digest_then_load(weights: Iterable[tuple[str, torch.Tensor]]):
            # As a list: digests and loader both read the tensors, and what arrives is a generator.
            arrived = list(weights)
            self._arrived.update((name, tensor_digest(tensor)) for name, tensor in arrived)
            self._width = min([self._width, *(t.element_size() for _, t in arrived)])
            if all(name in self._made_of for name, _ in arrived):
                return load_weights(arrived)
            # At first one at a time, so that vLLM's loader says what each of them is loaded into.
            for name, tensor in arrived:
                self._made_of[name] = load_weights([(name, tensor)])
                if self._is_first and not tensor.any():
                    self._zeros.add(name)
            return None

        # vLLM's engines load through this attribute, chunk by chunk; an instance attribute stands
        # in front of the class's method for the length of one transfer.
        self.model.load_weights = digest_then_load
        try:
            super().receive_weights(update_info)
        finally:
            del self.model.load_weights

    def abandon_weight_update(self) -> None:
        """Forget what has arrived of a transfer that nobody will finish."""
        self._was_abandoned = True
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            # A layer that waits for the rest of its tensors would take those of the next transfer
            # for them, and be done too early.
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        self._was_abandoned = False
        assert self._held is not None
        before, self._held = self._held, _digests_of(self.model)
        made_of = {n: names for n in self._arrived if (names := self._made_of[n]) is not None}
        is_told = len(made_of) == len(self._arrived) and self.vllm_config.lora_config is None
        new = {n for n, digest in self._arrived.items() if self._applied.get(n) != digest}
        # A quantised tensor has fewer bits than what it is made of, so a small change of that may
        # be lost in it.
        is_rounded = {n for n, p in self.model.named_parameters() if p.element_size() < self._width}
        self.unapplied, self.unexplained = compare_changes(
            # Where a model's loader does not tell what it has loaded, the canary alone proves it;
            # also beside an adapter, where weights may arrive that the engine has loaded before.
            made_of=made_of if is_told else {},
            new=new - self._zeros,
            changed={name for name, digest in self._held.items() if before.get(name) != digest},
            held=self._held.keys() - (is_rounded if not self._is_first else set()),
            was_zeroed=self._is_first,
        )
        self.digests = self._arrived
        # When it comes again, the loader is asked anew what it is loaded into.
        for name in self.unapplied:
            del self._made_of[name]
        self._applied = {n: d for n, d in self._arrived.items() if n in self._made_of}


def _digests_of(model: torch.nn.Module) -> dict[str, str]:
    """Digest of each tensor that a model computes with, by its name there."""
    # On CPU vLLM leaves an empty parameter where it holds a repacked copy; the canary covers those.
    return {
        name: tensor_digest(parameter)
        for name, parameter in model.named_parameters()
        if parameter.numel()
    }


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


class DigestedAdapter(LoRAModel):
    """vLLM's LoRA adapter, with a digest of each matrix that it was made from, by its name."""

    digests: Mapping[str, str]

    @classmethod
    def from_lora_tensors(cls, lora_model_id, tensors, *arguments, **settings) -> DigestedAdapter:
        # Before vLLM makes the adapter, because it scales the matrices where they lie.
        digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        adapter = super().from_lora_tensors(lora_model_id, tensors, *arguments, **settings)
        adapter.digests = digests
        return adapter


class WorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`); called by collective_rpc."""

    def weight_receipt(self) -> dict[str, Any]:
        """What the last transfer brought and changed, as fields of WeightProof.

        Raises RuntimeError if vLLM does not apply a matrix of the adapter that it holds.
        """
        engine = self.weight_transfer_engine
        digests = dict(engine.digests)
        if self.model_runner.lora_config is not None:
            manager = self.model_runner.lora_manager._adapter_manager
            # Of the adapter that vLLM holds now: if it has dropped it, there are no digests.
            for adapter in manager.list_adapters().values():
                # vLLM passes over layers that it does not know by these names.
                if unknown := sorted(adapter.loras.keys() - manager.modules.keys()):
                    raise RuntimeError(f"vLLM adapts no layer named {', '.join(unknown)}")
                digests |= adapter.digests
        return {
            "digests": digests,
            "unapplied": list(engine.unapplied),
            "unexplained": list(engine.unexplained),
        }

    def abandon_weight_update(self) -> None:
        """Let a new transfer begin where the last one was never finished."""
        if self._weight_update_active:
            self._weight_update_active = False
            self.weight_transfer_engine.abandon_weight_update()

    def digest_adapters(self) -> None:
        """Let adapters that are loaded from now on keep digests of their matrices."""
        # The manager makes adapters of this class, but no setting of vLLM names another one.
        self.model_runner.lora_manager._lora_model_cls = DigestedAdapter

    def force_tokens(self) -> None:
        """Let a V1 model runner take forced requests; the V2 runner can by itself."""
        sampler = self.model_runner.sampler
        # Other samplers, such as that of the V2 runner, take forced tokens by themselves.
        if isinstance(sampler, Sampler):
            self.model_runner.sampler = ForcedSampler(
                sampler.logprobs_mode, sampler.use_fp64_gumbel
            )
