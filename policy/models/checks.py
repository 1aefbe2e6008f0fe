"""Refuses a model directory that cannot be used, before any process loads it.

Here a bad directory costs a second and one message; in the engines and ranks it would cost minutes
of loading and several tracebacks.
"""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rl.config.keys import one_line
from rl.data.media.families import FAMILIES, vision_family
from rl.data.media.minicpmv_config import register_config
from rl.data.media.names import shortened
from rl.run.files import read_json

# transformers has no class for this model type and would want the checkpoint's own code for it.
register_config()

ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.gguf")


def read_config(directory: Path) -> PretrainedConfig:
    """Return the model's configuration; raises ValueError where there is none to use."""
    if not (directory / "config.json").is_file():
        # What a trainer saved, or the cache of the hub, has models further below.
        below = [*directory.glob("*/config.json"), *directory.glob("snapshots/*/config.json")]
        newest = sorted(below, key=lambda file: -file.stat().st_mtime)
        others = [str(file.parent) for file in newest]
        others += [file.name for kind in OTHER_WEIGHTS for file in sorted(directory.glob(kind))]
        found = f", but with {', '.join(others[:3])}" if others else ""
        raise ValueError(
            f"policy.model must be a Hugging Face model directory, got {directory} without a "
            f"config.json{found}; name the directory that holds config.json and the weights as "
            "*.safetensors"
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        # Where transformers has the model type itself, it never looks at the checkpoint's code.
        if "trust_remote_code" in str(error):
            code = read_json(directory / "config.json").get("auto_map")
            raise ValueError(
                f"policy.model: {directory} can only be loaded by code of its own ({code}), which "
                "is never run here; take a model whose type transformers has built in"
            ) from None
        why = shortened(one_line(error), 200)
        raise ValueError(f"policy.model: {directory}/config.json cannot be used: {why}") from error


def refuse_unusable_weights(directory: Path, config: PretrainedConfig) -> None:
    """Raise ValueError if this is no causal language model, or its weights cannot be read."""
    is_text_model = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not is_text_model and vision_family(config.model_type) is None:
        trainable = ", ".join(name for f in FAMILIES.values() for name in f.models.values())
        raise ValueError(
            f"policy.model: {directory} holds a model of type {config.model_type}, which is no "
            "causal language model that transformers knows, nor one of the vision-language models "
            f"that can be trained ({trainable})"
        )
    files = weight_files(directory)
    # transformers loads the base that an adapter names, and passes over the weights beside it.
    if files and (directory / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"policy.model: {directory} holds weights and an adapter ({ADAPTER_CONFIG}) beside "
            "them; move the adapter's files to a directory of their own, which policy.model then "
            "names to train with the adapter, or remove them"
        )
    if not files:
        others = sorted(f.name for kind in OTHER_WEIGHTS for f in directory.glob(kind))
        raise ValueError(
            f"policy.model: {directory} has no *.safetensors weights"
            + (f", but {', '.join(others[:3])}" if others else "")
            + "; save the model with save_pretrained, which writes them: "
            "AutoModelForCausalLM.from_pretrained(DIR, dtype='auto').save_pretrained(NEW_DIR). Of "
            "a Hugging Face name only these weights are downloaded"
        )
    present = {file.name for file in files}
    shards = read_json(directory / INDEX).get("weight_map")
    if shards is None and "model.safetensors" not in present:
        raise ValueError(
            f"policy.model: {directory} has weights in {', '.join(sorted(present)[:3])} and no "
            f"{INDEX} that says what is in which; download it too, or save the model anew with "
            "save_pretrained"
        )
    if missing := sorted(set((shards or {}).values()) - present):
        raise ValueError(
            f"policy.model: {directory} lacks {len(missing)} of the files that its {INDEX} names, "
            f"such as {missing[0]}; download it again, as a whole"
        )
    stored_tensors(directory)


def weight_files(directory: Path) -> list[Path]:
    """The files of a model's own weights, those of an adapter left out."""
    files = sorted(directory.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith("adapter_model")]


class StoredTensor(NamedTuple):
    """What the header of a file says of a tensor in it."""

    dtype: str
    """As safetensors calls it: BF16, U8."""
    shape: tuple[int, ...]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All stored tensors by name; raises ValueError for a file that is damaged."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        # Opening reads the header, which tells whether the file has as many bytes as it says.
        try:
            with safe_open(file, framework="pt") as opened:
                for name in [*opened.keys()]:
                    tensor = opened.get_slice(name)
                    tensors[name] = StoredTensor(tensor.get_dtype(), tuple(tensor.get_shape()))
        except SafetensorError as error:
            raise ValueError(
                f"policy.model: {file} is damaged or cut short: {error}; download it again (git "
                "lfs pull, where the directory was cloned)"
            ) from error
    return tensors


def refuse_longer_than_model(directory: Path, max_model_length: int) -> None:
    """Raise ValueError if the engine's length exceeds the positions the model was made for."""
    text = read_config(directory).get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if longest is None:
        return
    # Configurations of rotary scaling give the length before scaling, under one of two names.
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    original = scaling.get("original_max_position_embeddings")
    # Rotary scaling makes the model longer than it was made for by its factor.
    if original:
        longest = max(longest, int(original * scaling.get("factor", 1)))
    if max_model_length > longest:
        raise ValueError(
            f"rollout.max_model_length {max_model_length} exceeds the {longest} positions of "
            f"{directory}; lower it, and modes.*.max_tokens with it, or take a longer model"
        )
