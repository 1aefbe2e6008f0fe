"""The policy's weights as its checkpoint has them: whole, merged, under their own names."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import PreTrainedModel

from policy.models.family import model_family
from policy.models.loading import copy_companions

SHARD_BYTES = 5 * 2**30


@dataclass(frozen=True)
class _Unit:
    """A module whose weights are gathered together."""

    module: torch.nn.Module
    owner: torch.nn.Module
    """What holds the weights under their own names: the layer that a LoRA layer wraps."""
    names: dict[str, str]
    """Its own weights, such as `weight` and `bias`, and their checkpoint names."""

    def tensor(self, name: str) -> torch.Tensor:
        """The gathered weight; a LoRA layer's with its adapters merged in."""
        weight = self.owner.get_parameter(name).detach()
        # Adapters change the weight alone; a bias goes out as it is.
        if name != "weight" or not isinstance(self.module, LoraLayer):
            return weight
        for adapter in self.module.active_adapters:
            weight = weight + self.module.get_delta_weight(adapter).detach()
        return weight


class FullWeights:
    """Full tensors by checkpoint name, in module order; tied ones appear once.

    Made before DeepSpeed partitions the model, while every shape is still visible.
    """

    def __init__(
        self, policy: PreTrainedModel | PeftModel, dtype: torch.dtype, is_partitioned: bool
    ) -> None:
        """is_partitioned: the parameters will be partitioned by ZeRO-3."""
        self.dtype = dtype
        self._is_partitioned = is_partitioned
        base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        self._units = list(_units(base))
        self.metadata = [
            (stored, dtype, tuple(unit.owner.get_parameter(name).shape))
            for unit in self._units
            for name, stored in unit.names.items()
        ]
        """Checkpoint name, type and shape of each tensor."""
        self.largest_bytes = max(dtype.itemsize * math.prod(shape) for *_, shape in self.metadata)
        """Size of the largest tensor."""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather a module at a time; every rank must iterate to the end, as gathers are shared."""
        # Imported here: tests of shards and names need no DeepSpeed, which takes seconds.
        import deepspeed

        for unit in self._units:
            # A LoRA layer's adapters are in modules below it.
            parameters = unit.module.parameters(recurse=isinstance(unit.module, LoraLayer))
            with (
                torch.no_grad(),
                deepspeed.zero.GatheredParameters(list(parameters), enabled=self._is_partitioned),
            ):
                # A copy, because the gathered storage is freed at the end of this block.
                tensors = [
                    unit.tensor(name).to(self.dtype, copy=self._is_partitioned)
                    for name in unit.names
                ]
            yield from zip(unit.names.values(), tensors, strict=True)


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
        if isinstance(module, LoraLayer):
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
    sizes = {name: dtype.itemsize * math.prod(shape) for name, dtype, shape in weights.metadata}
    # Planned from names and sizes before anything is gathered, so that a file is written and
    # forgotten as soon as its last tensor has come.
    plan = split_state_dict_into_shards_factory(
        sizes,
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
