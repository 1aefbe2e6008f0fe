"""The configuration of MiniCPM-V 4.5 (https://arxiv.org/abs/2509.18154), for learner and engines.

Reads the published config.json without its remote code: the fields of the Qwen3 decoder stand flat
at the top, those of the vision tower under `vision_config`.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig, Qwen3Config, SiglipVisionConfig

MODEL_TYPE = "minicpmv"
RESAMPLER_HEAD_DIM = 128


@strict
class MiniCPMVConfig(Qwen3Config):
    """Defaults are the published 4.5 values where the file may leave a field out."""

    model_type = MODEL_TYPE
    sub_configs = {"vision_config": SiglipVisionConfig}  # noqa: RUF012

    version: float | str = 4.5
    vision_config: dict | PretrainedConfig | None = None
    query_num: int = 64
    """Visual tokens per view of an image, and per group of video frames."""
    image_size: int = 448
    patch_size: int = 14
    # The next two are read by nobody here, but belong to the published file and to copies of it.
    slice_mode: bool = True
    slice_config: dict | None = None
    drop_vision_last_layer: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PretrainedConfig):
            # The file says type `siglip`, which in transformers is both towers of SigLIP.
            fields = {k: v for k, v in (self.vision_config or {}).items() if k != "model_type"}
            self.vision_config = SiglipVisionConfig(**fields)
        super().__post_init__(**kwargs)


def position_grid(vision_config: Any) -> int:
    """Rows (and columns) of the tower's learned position table: 70 in the published model."""
    return vision_config.image_size // vision_config.patch_size


def refuse_unsupported(config: MiniCPMVConfig) -> None:
    """Raise ValueError for a relative of 4.5 that has the same model type but other parts."""
    if str(config.version) != "4.5":
        raise ValueError(
            f"MiniCPM-V {config.version} has other parts than 4.5, which alone is implemented; "
            "take a checkpoint with version 4.5"
        )
    if config.drop_vision_last_layer or config.tie_word_embeddings:
        raise ValueError(
            "drop_vision_last_layer and tie_word_embeddings must be false, as in the published "
            f"4.5, got {config.drop_vision_last_layer} and {config.tie_word_embeddings}"
        )
    if config.hidden_size % RESAMPLER_HEAD_DIM:
        raise ValueError(
            f"hidden_size must be a multiple of {RESAMPLER_HEAD_DIM}, the resampler's head "
            f"dimension, got {config.hidden_size}"
        )


def register_config() -> None:
    """Make `AutoConfig` read model type `minicpmv` with this class; may be called again."""
    AutoConfig.register(MODEL_TYPE, MiniCPMVConfig, exist_ok=True)
