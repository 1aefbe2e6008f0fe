"""Refuses a model that the learner cannot train, before any process loads it.

The engines could answer with most of these models, so that they may well label or be evaluated. The
configuration tells what they are, and what files say of the weights; no weight is read.
"""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from policy.models.checks import stored_tensors
from policy.models.family import model_family
from rl.config.keys import one_line
from rl.data.media.names import shortened

# Settings that change logits after the output layer, which logprobs.py applies alone.
_LOGIT_SETTINGS = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)
# How the configurations of mixtures of experts call the number of these.
_EXPERT_SETTINGS = (
    "moe_num_experts",
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "num_routed_experts",
)
_TRAINED_TYPES = ("F32", "BF16", "F16", "F64")
# Tools that quantised before config.json had a place for it left a file of their own.
_QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def refuse_untrainable(directory: Path, config: PretrainedConfig) -> None:
    """Raise ValueError for a quantised model, one of experts, and weights of another model."""
    text = config.get_text_config()
    settings = config.to_dict() | text.to_dict()
    places = ("quantization_config", "compression_config", "quantization")
    method = next((settings[place] for place in places if settings.get(place)), None)
    files = [name for name in _QUANTISATION_FILES if (directory / name).is_file()]
    if method or files:
        known = method if isinstance(method, dict) else {}
        name = known.get("quant_method") or known.get("quant_algo") or ", ".join(files) or "unknown"
        raise ValueError(
            f"policy.model: {directory} is quantised ({name}), and training needs the weights "
            "themselves; take the model that it was made from, in bfloat16 or float32"
        )
    values = {name: settings.get(name) for name in _LOGIT_SETTINGS}
    if changed := {name: value for name, value in values.items() if value not in (None, 1)}:
        raise ValueError(
            f"policy.model: {directory}, a {text.model_type}, changes its logits after the output "
            f"layer ({changed}), which the learner does not compute; take a model without these "
            "settings"
        )
    counts = {name: settings.get(name) for name in _EXPERT_SETTINGS}
    if experts := {name: count for name, count in counts.items() if count not in (None, 0, 1)}:
        raise ValueError(
            f"policy.model: {directory}, a {text.model_type}, is a mixture of experts ({experts}), "
            "which cannot be trained here; take a dense model"
        )
    _refuse_other_weights(directory, config)


def _refuse_other_weights(directory: Path, config: PretrainedConfig) -> None:
    """Raise ValueError if the model's parameters are not those of its checkpoint."""
    # transformers renames some weights when it loads them, and fills with random numbers what it
    # does not find. Engines are sent the learner's parameters by name, and read the files by name.
    family = model_family(config.model_type)
    # On the meta device a model has names and shapes alone, and is made in a moment.
    try:
        with torch.device("meta"):
            model = family.auto_class.from_config(config, trust_remote_code=False)
    # An architecture says by any of these that a setting is none of its own.
    except (
        ArithmeticError,
        LookupError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        why = shortened(one_line(repr(error)), 200)
        raise ValueError(
            f"policy.model: no {config.model_type} can be made by {directory}/config.json: {why}; "
            "take this file from where the model was published"
        ) from error
    stored = stored_tensors(directory)
    shapes = {
        family.checkpoint_name(config.model_type, name): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }
    missing = sorted(shapes.keys() - stored.keys())
    if not missing:
        for name, shape in shapes.items():
            if stored[name].dtype not in _TRAINED_TYPES:
                raise ValueError(
                    f"policy.model: {directory} stores {name} as {stored[name].dtype}, as "
                    "quantised weights are, and training needs one of "
                    f"{', '.join(_TRAINED_TYPES)}; take the model that it was made from"
                )
            if stored[name].shape != shape:
                raise ValueError(
                    f"policy.model: {directory} stores {name} with the shape {stored[name].shape}, "
                    f"and its config.json wants {shape}; take both from the same model"
                )
        return
    example = missing[0]
    prefixed = sorted(name for name in stored if name.endswith(f".{example}"))
    if prefixed:
        raise ValueError(
            f"policy.model: {directory} names its weights {prefixed[0]} where {config.model_type} "
            f"has {example}, as a wrapper does that is saved with the model inside; save the inner "
            "model (model.module.save_pretrained), or rename the tensors"
        )
    raise ValueError(
        f"policy.model: {config.model_type} has {len(missing)} parameters that the weights of "
        f"{directory} lack or name otherwise, such as {example}; the learner cannot send these to "
        "the engines. Save the model with save_pretrained, or take another"
    )
