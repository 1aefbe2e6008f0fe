"""The learner's adapters: what training a model family needs besides transformers' own classes.

Everyone else asks the adapter of a model type, and never which family it is. A new family is an
entry in rl/data/media/families.py, one here, and one in rollout/engines/media.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from policy.models import minicpmv, qwen_vl
from policy.models.checks import read_config
from rl.config.data import SourceConfig
from rl.config.keys import one_line
from rl.config.policy import Part
from rl.data.media.families import family_name
from rl.data.media.families import unsampled_token_ids as unsampled_in
from rl.data.media.names import shortened
from rl.data.media.store import MediaStore
from rl.loop.interfaces import VisualInputs


@dataclass(frozen=True)
class ModelFamily:
    """The defaults are those of a language model that reads text only."""

    auto_class: type[Any] = AutoModelForCausalLM
    """Loads the model with its output layer."""
    inputs: Callable[[Path, MediaStore], VisualInputs] | None = None
    """Makes the layout of media from the model's directory; None where there are no media."""
    parts: Callable[[Any], dict[Part, list[nn.Module]]] = lambda model: {"llm": [model]}
    """The modules that `policy.train` chooses from."""
    backbone: Callable[[Any], nn.Module] = lambda model: model.base_model
    """The model without its output layer; it answers with `last_hidden_state`."""
    prepare: Callable[[PreTrainedModel], None] = lambda model: None
    """Called once on a model that is about to be trained."""
    checkpoint_name: Callable[[str, str], str] = lambda model_type, parameter: parameter
    """(model type, parameter) -> the parameter's name in published checkpoints."""


MODEL_FAMILIES: dict[str, ModelFamily] = {
    "minicpmv": ModelFamily(
        auto_class=AutoModelForImageTextToText,
        inputs=minicpmv.MiniCPMVInputs,
        parts=minicpmv.MiniCPMV.parts,
        backbone=minicpmv.MiniCPMV.backbone,
    ),
    "qwen_vl": ModelFamily(
        auto_class=AutoModelForImageTextToText,
        inputs=qwen_vl.QwenVLInputs,
        parts=qwen_vl.parts,
        prepare=qwen_vl.see_once,
        checkpoint_name=qwen_vl.checkpoint_name,
    ),
}
"""The adapters by the names of rl/data/media/families.py."""
TEXT_ONLY = ModelFamily()


def model_family(model_type: str) -> ModelFamily:
    """The adapter for a config.json's `model_type`."""
    # A model type that is no vision family is a text model; checks.py has refused what is neither.
    name = family_name(model_type)
    return TEXT_ONLY if name is None else MODEL_FAMILIES[name]


def open_visual_inputs(directory: Path, data: SourceConfig) -> VisualInputs | None:
    """Return the layout of media for the model of a directory; None if it reads text only.

    Raises ValueError for a directory that does not say how.
    """
    inputs = model_family(read_config(directory).model_type).inputs
    try:
        return None if inputs is None else inputs(directory, MediaStore(data))
    except OSError as error:
        why = shortened(one_line(error), 200)
        raise ValueError(
            f"policy.model: {directory} does not say how its model sees: {why}; copy "
            "preprocessor_config.json there, from the model that it was made from"
        ) from error


def unsampled_token_ids(directory: Path) -> tuple[int, ...]:
    """Token ids that engines never sample from the model of this directory."""
    model_type = read_config(directory).model_type
    if model_family(model_type) is TEXT_ONLY:
        # Without a tokenizer in the directory a text model can still be trained.
        return ()
    tokenizer = AutoTokenizer.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True
    )
    return unsampled_in(model_type, tokenizer.get_vocab())
