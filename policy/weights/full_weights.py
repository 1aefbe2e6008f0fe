"""The policy's weights as its checkpoint has them: whole, under their own names.

Checkpoints and exports get `FullWeights`, with LoRA adapters merged in. The engines of a LoRA run
get `AdapterWeights` instead, because merging in bfloat16 rounds small updates away.
"""

import copy
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file
from transformers import PreTrainedModel

from policy.models.family import model_family
from policy.models.loading import copy_companions

SHARD_BYTES = 5 * 2**30
PEFT_PREFIX = "base_model.model."
"""Before every name of a PEFT adapter file."""


@dataclass(frozen=True)
class _Unit:
    """A module whose weights are gathered together."""

    module: torch.nn.Module
    owner: torch.nn.Module
    """What holds the weights under their own names: the layer that a LoRA layer wraps."""
    names: dict[str, str]
    """Its own weights, such as `weight` and `bias`, and their checkpoint names."""

    def tensor(self, name: str) -> torch.Tensor:
        """The gathered weight; a LoRA layer's with its adapters merged in, in float32."""
        weight = self.owner.get_parameter(name).detach()
        # Adapters change the weight alone; a bias goes out as it is.
        if name != "weight" or not isinstance(self.module, LoraLinear):
            return weight
        # Rounded once, when the caller casts the sum: get_delta_weight would round before that.
        weight = weight.float()
        for adapter in self.module.active_adapters:
            a, b = (getattr(self.module, f"lora_{side}")[adapter].weight for side in "AB")
            delta = (b.detach().float() @ a.detach().float()) * self.module.scaling[adapter]
            weight = weight + (delta.T if self.module.fan_in_fan_out else delta)
        return weight


class FullWeights:
    """Full tensors by checkpoint name, in module order; tied ones appear once."""

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        dtype: torch.dtype,
        is_partitioned: bool,
        beside_adapter: bool = False,
    ) -> None:
        """is_partitioned: ZeRO-3 has partitioned the parameters, or will.

        beside_adapter: only what is trained and is no adapter, for engines that get the adapter by
        itself; that is nothing where LoRA trains the language model alone.
        """
        self.dtype = dtype
        self._is_partitioned = is_partitioned
        base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        self._units = [
            unit
            for unit in _units(base)
            if not beside_adapter
            or (
                not isinstance(unit.module, LoraLinear)
                and any(unit.owner.get_parameter(name).requires_grad for name in unit.names)
            )
        ]
        self.metadata = [
            (stored, dtype, _whole_shape(unit.owner.get_parameter(name)))
            for unit in self._units
            for name, stored in unit.names.items()
        ]
        """Checkpoint name, type and shape of each tensor."""
        self.sizes = {name: dtype.itemsize * math.prod(shape) for name, _, shape in self.metadata}
        """Bytes of each tensor, by checkpoint name."""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather a module at a time; every rank must iterate to the end, as gathers are shared."""
        for unit in self._units:
            # A LoRA layer's adapters are in modules below it.
            parameters = unit.module.parameters(recurse=isinstance(unit.module, LoraLinear))
            with torch.no_grad(), _gathered(list(parameters), self._is_partitioned):
                # A copy, because the gathered storage is freed at the end of this block.
                tensors = [
                    unit.tensor(name).to(self.dtype, copy=self._is_partitioned)
                    for name in unit.names
                ]
            yield from zip(unit.names.values(), tensors, strict=True)


class AdapterWeights:
    """The two matrices of every LoRA layer, under the names of a PEFT adapter file."""

    def __init__(self, policy: PeftModel, is_partitioned: bool) -> None:
        self._is_partitioned = is_partitioned
        base = policy.get_base_model()
        model_type = base.config.model_type
        stored_name = model_family(model_type).checkpoint_name
        self._layers = [
            # The names of the checkpoint and not of this model, as the engines know no others.
            (stored_name(model_type, f"{path}.weight").removesuffix(".weight"), path, module)
            for path, module in base.named_modules()
            if isinstance(module, LoraLinear)
        ]
        self._peft_config = policy.active_peft_config

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather a layer at a time; every rank must iterate to the end, as gathers are shared."""
        for path, _, layer in self._layers:
            (adapter,) = layer.active_adapters
            matrices = {
                f"{PEFT_PREFIX}{path}.lora_{side}.weight": weights[adapter].weight
                for side, weights in (("A", layer.lora_A), ("B", layer.lora_B))
            }
            with torch.no_grad(), _gathered(list(matrices.values()), self._is_partitioned):
                copies = [matrix.detach().clone() for matrix in matrices.values()]
            yield from zip(matrices, copies, strict=True)

    def write(self, source: Path, target: Path, is_writer: bool) -> None:
        """Write the directory of a PEFT adapter on the model of `source`; all ranks take part."""
        # PEFT looks for the names of the modules, which for some families are not the checkpoint's.
        own_names = {stored: path for stored, path, _ in self._layers}
        matrices = {}
        for name, matrix in self:
            stored, side = name.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)
            if is_writer:
                matrices[f"{PEFT_PREFIX}{own_names[stored]}.lora_{side}"] = matrix.cpu()
        if is_writer:
            settings = copy.copy(self._peft_config)
            settings.base_model_name_or_path = str(source)
            settings.save_pretrained(str(target))
            save_file(matrices, target / "adapter_model.safetensors", metadata={"format": "pt"})


def _whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The parameter's shape, also where ZeRO-3 has left an empty tensor of it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _gathered(
    parameters: Sequence[torch.nn.Parameter], is_partitioned: bool
) -> AbstractContextManager[Any]:
    """Within the block the parameters are whole, also where ZeRO-3 partitions them."""
    if not is_partitioned:
        return nullcontext()
    # Imported here: tests of shards and names need no DeepSpeed, which takes seconds.
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))


def _units(base: PreTrainedModel) -> Iterator[_Unit]:
    stored_name = model_family(base.config.model_type).checkpoint_name
    # By identity: a tied weight has several names and must be sent once, under the first.
    seen: set[int] = set()
    # Matches no path until a LoRA layer is met, whose inner modules its own unit covers.
    adapted = "\0"
    for path, module in base.named_modules():
        if path.startswith(adapted):
            continue
        owner = module
        if isinstance(module, LoraLinear):
            adapted = f"{path}."
            owner = module.get_base_layer()
        names = {}
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                names[name] = stored_name(base.config.model_type, f"{path}.{name}")
        if names:
            yield _Unit(module, owner, names)


def write_model_directory(
    weights: FullWeights, source: Path, target: Path, is_writer: bool
) -> None:
    """Write a Hugging Face model directory from the gathered weights; all ranks take part.

    source: the directory the policy was loaded from; its configuration and tokenizer go along.
    """
    # Planned from names and sizes before anything is gathered, so that a file is written and
    # forgotten as soon as its last tensor has come.
    plan = split_state_dict_into_shards_factory(
        weights.sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    if is_writer:
        target.mkdir()
        copy_companions(source, target)
        config = json.loads((target / "config.json").read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = str(weights.dtype).removeprefix("torch.")
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            text = json.dumps(index, indent=2) + "\n"
            (target / "model.safetensors.index.json").write_text(text)
    shards: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in weights:
        if is_writer:
            file = plan.tensor_to_filename[name]
            shards[file][name] = tensor.contiguous().cpu()
            if len(shards[file]) == len(plan.filename_to_tensors[file]):
                save_file(shards.pop(file), target / file, metadata={"format": "pt"})
