"""Loads the policy from a directory, and chooses what of it is trained: parts, or LoRA adapters."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from policy.models.cache import default_cache_dir, digest, find_model, made_once
from policy.models.checks import (
    ADAPTER_CONFIG,
    read_config,
    refuse_unusable_weights,
    weight_files,
)
from policy.models.family import model_family
from policy.models.kernels import attention_implementation, fuse_layers
from policy.models.stages import let_learn
from policy.models.trainable import refuse_untrainable
from rl.config.keys import one_line
from rl.config.policy import Part, PolicyConfig
from rl.data.media.names import shortened
from rl.run.files import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Files that hold weights; a model directory's other files go along with any new weights."""

_log = logging.getLogger(__name__)


def resolve_model(name: str, untie: bool, is_trained: bool = False) -> Path:
    """Return the model directory that learner and engines load.

    name: a directory, or the name of a Hugging Face model. A LoRA adapter becomes a copy of its
    base model with the adapter merged into it. With `untie`, a model with tied embeddings is
    replaced by an untied copy: vLLM on CPU keeps an outdated output layer of a tied one after a
    weight update.

    Raises ValueError if there is no such model, or if it `is_trained` and cannot be.
    """
    # Checked before it is copied: merging and untying load the whole model.
    directory = find_model(name, "policy.model")
    if (directory / ADAPTER_CONFIG).is_file() and not weight_files(directory):
        directory = merged_copy(directory, default_cache_dir())
    config = read_config(directory)
    refuse_unusable_weights(directory, config)
    if is_trained:
        refuse_untrainable(directory, config)
    if config.tie_word_embeddings and untie:
        return untied_copy(directory, default_cache_dir())
    return directory


def load_policy(
    directory: Path, config: PolicyConfig, zero3: Mapping[str, Any] | None = None
) -> PreTrainedModel | PeftModel:
    """Load the model on CPU, ready to train: no dropout, only the adapter trainable under LoRA.

    In bfloat16 the weights are what the engines hold; DeepSpeed makes the float32 master weights.
    zero3: DeepSpeed's configuration, with which every module is divided over the ranks as it is
    made, and rank 0 alone reads its weights; all ranks must load together. Without it each holds
    the whole model, on its CPU.

    What cannot be trained was refused before (trainable.py); raises ValueError for a directory
    without a model, for a part of it that it does not have, and for kernels that are not installed.
    """
    model_config = read_config(directory)
    _without_dropout(model_config)
    disable_progress_bar()
    with nullcontext() if zero3 is None else _divided(zero3):
        model = auto_class(model_config).from_pretrained(
            directory,
            config=model_config,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention_implementation(config.attention),
            trust_remote_code=False,
            local_files_only=True,
        )
    if config.fused_layers:
        fuse_layers(model)
    return make_trainable(model, config)


def make_trainable(model: PreTrainedModel, config: PolicyConfig) -> PreTrainedModel | PeftModel:
    """Set up all of a model that its memory depends on; raises as `choose_trained`."""
    model_family(model.config.model_type).prepare(model)
    if config.checkpoint_every:
        checkpoint_layers(model, config.checkpoint_every)
    return choose_trained(model, config)


@contextmanager
def _divided(zero3: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a model that is loaded is divided over the ranks, module by module."""
    # Imported here: it takes seconds and reads DS_ACCELERATOR at once.
    import deepspeed

    # transformers looks for such an object when it loads a model, and forgets it when it is gone.
    partitioning = HfDeepSpeedConfig(dict(zero3))
    # transformers would open such a context itself, in which every tensor gets the type of the
    # weights: the frequencies of rotary positions too, which bfloat16 moves by radians after some
    # hundred tokens. In a context the one that it opens has no effect.
    with deepspeed.zero.Init(
        config_dict_or_path=dict(zero3),
        tensor_overrides=[deepspeed.zero.DeepSpeedTensorOverride.device],
    ):
        yield
    del partitioning


def checkpoint_layers(model: PreTrainedModel, every: int) -> None:
    """Recompute activations in the backward, in every n-th layer of each of the model's towers."""
    # The reentrant kind gives no gradient where no input of a block wants one, as under LoRA.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList):
            layers = [layer for layer in stack if isinstance(layer, GradientCheckpointingLayer)]
            for index, layer in enumerate(layers):
                layer.gradient_checkpointing = index % every == 0


def auto_class(config: PretrainedConfig) -> type[Any]:
    """What loads a model of this configuration with its output layer."""
    return model_family(config.model_type).auto_class


def _without_dropout(config: PretrainedConfig) -> None:
    """Turn every dropout off, because the learner must compute the engine's probabilities."""
    # Architectures name it differently (attention_dropout, resid_pdrop, ...), at any depth.
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            _without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def choose_trained(model: PreTrainedModel, config: PolicyConfig) -> PreTrainedModel | PeftModel:
    """Leave only `policy.train` trainable, with adapters on the language model under LoRA.

    Raises ValueError for a part that the model does not have.
    """
    parts = model_family(model.config.model_type).parts(model)
    trained: Sequence[Part] = config.train or (["llm"] if config.lora else list(parts))
    if missing := sorted(set(trained) - set(parts)):
        raise ValueError(
            f"policy.train names {', '.join(missing)}, and {model.config.model_type} has only "
            f"{', '.join(parts)}; leave policy.train out to train all of it"
        )
    if config.lora is not None and "llm" not in trained:
        raise ValueError(
            f"policy.lora adapts the language model, which policy.train={list(trained)} leaves as "
            "it is; add llm to policy.train or leave policy.lora out"
        )
    # The adapter first: PEFT freezes the whole model when it adds one.
    policy: PreTrainedModel | PeftModel = model
    if config.lora is not None:
        adapter = PeftLoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=_targets(model, parts["llm"], config.lora.targets),
        )
        # Adapter weights in the model's own type: DeepSpeed keeps the float32 copies.
        policy = get_peft_model(model, adapter, autocast_adapter_dtype=False)
        others = {
            path.split(".")[-1]
            for path, module in policy.named_modules()
            if isinstance(module, LoraLayer) and not isinstance(module, LoraLinear)
        }
        # An embedding's adapter has matrices of other names and shapes.
        if others:
            raise ValueError(
                f"policy.lora.targets name {', '.join(sorted(others))}, and only linear layers can "
                "be adapted; leave them out, or take all-linear"
            )
    # PEFT has frozen all but its adapters; without it everything is trainable until here.
    adapted = {"llm"} if config.lora is not None else set()
    let_learn({name: parts[name] for name in parts if name not in adapted}, trained)
    return policy


def _targets(
    model: PreTrainedModel, language_model: Sequence[nn.Module], wanted: str | list[str]
) -> str | list[str]:
    """What gets an adapter: what the configuration names, and only in the language model."""
    if language_model == [model]:
        return wanted
    # PEFT finds layers by the ends of their names, and those of vision towers end the same way
    # (q_proj, fc1), so it is given whole names. The output layer gets none, as with PEFT's own
    # all-linear.
    inside = {id(module) for part in language_model for module in part.modules()}
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and module is not head
    ]
    if wanted == "all-linear":
        return linear
    endings = [wanted] if isinstance(wanted, str) else wanted
    chosen = [name for name in linear if name.split(".")[-1] in endings]
    if not chosen:
        raise ValueError(
            f"policy.lora.targets {wanted} name no linear layer of the language model; there are "
            f"{', '.join(sorted({name.split('.')[-1] for name in linear}))}"
        )
    return chosen


def merged_copy(adapter: Path, cache_dir: Path) -> Path:
    """Return a copy of an adapter's base model with the adapter merged into it; made once.

    Raises ValueError if the base is not to be had, or cannot be merged with.
    """
    name = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"policy.model: {adapter} is an adapter that names no base model")
    if not any(adapter.glob("adapter_model.*")):
        raise ValueError(
            f"policy.model: the adapter {adapter} lacks adapter_model.safetensors; copy it there"
        )
    base = find_model(name, f"policy.model {adapter} is an adapter, and its base model")
    config = read_config(base)
    refuse_unusable_weights(base, config)
    # Merging rounds a quantised base, and the learner could not train it.
    refuse_untrainable(base, config)
    target = cache_dir / f"merged-{digest([*_stamps(base), *_stamps(adapter)])}"

    def write(aside: Path) -> None:
        _log.warning("merging the adapter %s into its base %s: %s", adapter, base, target)
        copy_companions(base, aside)
        # Over those of the base: a fine-tune may have its own tokenizer and chat template.
        copy_companions(adapter, aside)
        (aside / ADAPTER_CONFIG).unlink()
        model = auto_class(config).from_pretrained(
            base, dtype="auto", trust_remote_code=False, local_files_only=True
        )
        try:
            merged: Any = PeftModel.from_pretrained(model, adapter)
            merged.merge_and_unload().save_pretrained(aside)
        # PEFT says by any of these that the adapter does not fit, or is of a kind without weights
        # to merge, such as a tuned prompt.
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            why = shortened(one_line(error), 200)
            raise ValueError(
                f"policy.model: the adapter {adapter} cannot be merged into its base {base}: "
                f"{why}; merge it where it was trained, and name the result"
            ) from error

    return made_once(target, write)


def untied_copy(directory: Path, cache_dir: Path) -> Path:
    """Return a copy of a tied model whose output layer has weights of its own; made once."""
    target = cache_dir / f"untied-{digest(_stamps(directory))}"

    def write(aside: Path) -> None:
        _log.warning("untying the embeddings of %s for the CPU engines: %s", directory, target)
        copy_companions(directory, aside)
        model = auto_class(read_config(directory)).from_pretrained(
            directory, dtype="auto", trust_remote_code=False, local_files_only=True
        )
        # A new Parameter breaks the tie; without the clone both would still share their storage.
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
        model.save_pretrained(aside)

    return made_once(target, write)


def _stamps(directory: Path) -> list[tuple[str, Any]]:
    """What tells the model or adapter of a directory from any other."""
    # Times of change stand for the weights: hashing the bytes of a large model takes minutes.
    settings = [directory / name for name in ("config.json", ADAPTER_CONFIG)]
    texts = [file.read_text(encoding="utf-8") for file in settings if file.is_file()]
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("adapter_model.bin")])
    stamps: list[tuple[str, Any]] = [(str(directory.resolve()), text) for text in texts]
    return stamps + [(file.name, file.stat().st_mtime_ns) for file in files]


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a model besides its weights: configuration, tokenizer, templates."""
    # By what they are not: a processor, a template or a licence may have any name.
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES):
            shutil.copy(file, target / file.name)
