"""The learner's side: a Qwen3 decoder that sees the mean colour of a picture as one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from policy.models.family import ModelFamily
from rl.data.media.families import VisionFamily
from rl.data.media.names import Medium, StillImage
from rl.data.media.store import MediaStore
from rl.loop.stages import TrainSample

MARKER, PICTURE = "<picture>", "<colour>"
FACTS = VisionFamily(
    models={"colour_vl": "Colour-VL"},
    markers={"image": MARKER},
    unsampled=(MARKER, PICTURE),
    reserved=(PICTURE,),
    chat_takes_parts=False,
)


class ColourConfig(Qwen3Config):
    model_type = "colour_vl"


class Backbone(nn.Module):
    def __init__(self, llm: nn.Module, eye: nn.Linear) -> None:
        super().__init__()
        self.llm, self.eye = llm, eye

    def forward(
        self,
        input_ids: Tensor,
        use_cache: bool = False,
        colours: Tensor | None = None,
        places: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """colours: [pictures, 3]. places: [B, T], True where a picture's token stands."""
        embedded = self.llm.embed_tokens(input_ids)  # [B, T, D]
        if colours is not None and places is not None:
            embedded = embedded.masked_scatter(places[..., None], self.eye(colours))
        return self.llm(inputs_embeds=embedded, use_cache=use_cache)


class ColourModel(Qwen3ForCausalLM):
    config_class = ColourConfig

    def __init__(self, config: ColourConfig) -> None:
        super().__init__(config)
        self.eye = nn.Linear(3, config.hidden_size)
        self.post_init()


AutoConfig.register("colour_vl", ColourConfig, exist_ok=True)
AutoModelForImageTextToText.register(ColourConfig, ColourModel, exist_ok=True)


@dataclass(frozen=True)
class Colours:
    colours: Tensor
    places: Tensor

    def arguments(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        return {"colours": self.colours.to(device, dtype), "places": self.places.to(device)}


class ColourInputs:
    def __init__(self, directory: Path, store: MediaStore) -> None:
        vocabulary = AutoTokenizer.from_pretrained(directory).get_vocab()
        self._marker, self._picture = vocabulary[MARKER], vocabulary[PICTURE]
        self._store = store

    def __call__(self, samples: Sequence[TrainSample], token_ids: Tensor) -> Colours | None:
        read = [self._store.read(medium) for sample in samples for medium in sample.media]
        if not read:
            return None
        means = [np.asarray(m.pixels).mean((0, 1)) for m in read if isinstance(m, StillImage)]
        colours = torch.tensor(np.stack(means), dtype=torch.float32) / 255
        return Colours(colours, token_ids == self._picture)

    def expanded(self, token_ids: Sequence[int], media: Sequence[Medium]) -> tuple[int, ...]:
        return tuple(self._picture if token == self._marker else token for token in token_ids)


def mark_prepared(model: Any) -> None:
    model.is_prepared = True


ADAPTER = ModelFamily(
    auto_class=AutoModelForImageTextToText,
    inputs=ColourInputs,
    parts=lambda model: {"llm": [model.model, model.lm_head], "vision": [model.eye]},
    backbone=lambda model: Backbone(model.model, model.eye),
    prepare=mark_prepared,
    checkpoint_name=lambda model_type, name: name.replace("eye.", "published_eye."),
)
