"""Vision-language models: what prompts and samplers must know of each family, by its model type.

A family is the model types whose prompts are written alike. Everything else about it stands in one
adapter for the learner (policy/models/family.py) and one for the engines
(rollout/engines/media.py), under the same name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.data.media.minicpmv import BRACKET_TOKENS, IMAGE_MARKER, PLACEHOLDER, VIDEO_MARKER
from rl.data.media.names import MediumKind


@dataclass(frozen=True)
class VisionFamily:
    """Model types whose prompts are written alike."""

    models: Mapping[str, str]
    """`model_type` of config.json -> the name that people know the model by."""
    markers: Mapping[MediumKind, str]
    """Stands in a prompt's text where a medium goes; an engine puts the visual tokens there."""
    unsampled: tuple[str, ...]
    """Tokens that no policy may sample: read back, they would pass for a medium."""
    reserved: tuple[str, ...]
    """Tokens that a prompt's text must not write, besides the markers."""
    chat_takes_parts: bool
    """Whether the chat template writes the markers itself, from messages with parts."""

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Chat messages with parts, as the family's chat template takes them."""
        turns = [dict(message) for message in messages]
        for turn in turns:
            # One text for each message, and a line for each part of it, as in the published chat of
            # MiniCPM-V.
            if not self.chat_takes_parts and not isinstance(turn["content"], str):
                turn["content"] = "\n".join(
                    part["text"] if part["type"] == "text" else self.markers[part["type"]]
                    for part in turn["content"]
                )
        return turns

    def pieces(self, text: str) -> list[str]:
        """A text cut at its markers, which stand at the odd places.

        They are tokenised one by one, so that no marker's end is tokenised with the text that
        follows it: an engine looks for the marker's own tokens.
        """
        # Splitting at a pattern with one group keeps what it finds.
        return re.split(f"({'|'.join(map(re.escape, self.markers.values()))})", text)


FAMILIES: dict[str, VisionFamily] = {
    "minicpmv": VisionFamily(
        models={"minicpmv": "MiniCPM-V 4.5"},
        markers={"image": IMAGE_MARKER, "video": VIDEO_MARKER},
        unsampled=(PLACEHOLDER, *BRACKET_TOKENS),
        reserved=BRACKET_TOKENS,
        chat_takes_parts=False,
    ),
    "qwen_vl": VisionFamily(
        models={"qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"},
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
}
"""Every family that can be trained, by the name under which its two adapters are registered."""


def family_name(model_type: str) -> str | None:
    """The family of a config.json's `model_type`; None for a model that reads text only."""
    return next((name for name, family in FAMILIES.items() if model_type in family.models), None)


def vision_family(model_type: str) -> VisionFamily | None:
    """The family of a config.json's `model_type`; None for a model that reads text only."""
    name = family_name(model_type)
    return None if name is None else FAMILIES[name]


def unsampled_token_ids(model_type: str, vocabulary: Mapping[str, int]) -> tuple[int, ...]:
    """Token ids that engines never sample, and that the learner leaves out of its softmax."""
    family = vision_family(model_type)
    if family is None:
        return ()
    # Older tokenizers of a family lack some of its tokens, such as those of videos.
    return tuple(vocabulary[token] for token in family.unsampled if token in vocabulary)
