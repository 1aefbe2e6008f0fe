"""Policies that see: what prompts and samplers must know of each family, by its model type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rl.data.media.minicpmv import BRACKET_TOKENS, IMAGE_MARKER, PLACEHOLDER, VIDEO_MARKER
from rl.data.media.names import MediumKind


@dataclass(frozen=True)
class VisionFamily:
    """Model types whose prompts are written alike."""

    name: Literal["minicpmv", "qwen_vl"]
    markers: Mapping[MediumKind, str]
    """Stands in a prompt's text where a medium goes; an engine puts the visual tokens there."""
    unsampled: tuple[str, ...]
    """Tokens that no policy may sample: read back, they would pass for a medium."""
    reserved: tuple[str, ...]
    """Tokens that a prompt's text must not write, besides the markers."""
    chat_takes_parts: bool
    """Whether the chat template writes the markers itself, from messages with parts."""


_FAMILIES = {
    "minicpmv": VisionFamily(
        name="minicpmv",
        markers={"image": IMAGE_MARKER, "video": VIDEO_MARKER},
        unsampled=(PLACEHOLDER, *BRACKET_TOKENS),
        reserved=BRACKET_TOKENS,
        chat_takes_parts=False,
    )
}
_FAMILIES |= dict.fromkeys(
    ("qwen2_5_vl", "qwen3_vl"),
    VisionFamily(
        name="qwen_vl",
        markers={"image": "<|image_pad|>", "video": "<|video_pad|>"},
        unsampled=(
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ),
        reserved=(),
        chat_takes_parts=True,
    ),
)


def vision_family(model_type: str) -> VisionFamily | None:
    """The family of a config.json's `model_type`; None for a policy of text alone."""
    return _FAMILIES.get(model_type)


def unsampled_token_ids(model_type: str, vocabulary: Mapping[str, int]) -> tuple[int, ...]:
    """Token ids that engines never sample, and the learner leaves out of its softmax."""
    family = vision_family(model_type)
    if family is None:
        return ()
    return tuple(vocabulary[token] for token in family.unsampled if token in vocabulary)
