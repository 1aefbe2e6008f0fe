"""Refuses a model directory that cannot be used, before any process loads it.

Here a bad directory costs a second and one message; in the engines and ranks it would cost minutes
of loading and several tracebacks.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rl.data.media.families import FAMILIES, vision_family
from rl.data.media.minicpmv_config import register_config

# transformers has no class for this model type and would want the checkpoint's own code for it.
register_config()


def read_config(directory: Path) -> PretrainedConfig:
    """Return the model's configuration; raises ValueError where there is none to use."""
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"policy.model must be a Hugging Face model directory, got {directory} without a "
            "config.json; name the directory that holds config.json and the weights"
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"policy.model: {directory}/config.json cannot be used: {error}"
        ) from error


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
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"policy.model: {directory} has no *.safetensors weights; save the model with "
            "save_pretrained, which writes them"
        )
    for file in files:
        # Opening reads the header, which tells whether the file has as many bytes as it says.
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"policy.model: {file} is damaged or cut short: {error}") from error


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
