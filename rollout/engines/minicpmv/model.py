"""vLLM's MiniCPM-V 4.5 with the frames of a video in groups, and what is done to its prompts.

Prompts come as token ids with a marker where each medium goes. vLLM replaces the marker's tokens by
the medium's, and all other tokens stay as they are. The classes and methods are those that vLLM's
multi-modal processing calls; each does what rl/data/media/minicpmv.py says, so that the learner,
which starts from there too, sees the same tokens and pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.model_executor.models.minicpmv import MiniCPMV4_5
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import (
    ImageProcessorItems,
    MultiModalDataItems,
    MultiModalDataParser,
    ProcessorBatchItems,
)
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)
from vllm.multimodal.processing.processor import ResolvedPromptUpdate

from rl.data.media.minicpmv import (
    IMAGE_MARKER,
    STILL,
    VIDEO_MARKER,
    Groups,
    ImageSettings,
    MediaTokens,
    PackedVideo,
    View,
    as_rgb,
    frame_views,
    image_views,
)

MAX_PROFILED_GROUPS = 180
"""The groups of the longest video the published recipe makes."""


class PackedVideoItems(ProcessorBatchItems):
    """Videos as (frames, {"temporal_ids": groups}), all of which counts in a video's hash."""

    def packed(self, index: int) -> PackedVideo:
        """Raises ValueError for frames without groups, or groups that do not fit them."""
        item = self.get(index)
        if not (isinstance(item, tuple) and len(item) == 2 and "temporal_ids" in (item[1] or {})):
            raise ValueError(
                'a video must be given as (frames, {"temporal_ids": groups}); give '
                f"[[{STILL}]] * len(frames) to see every frame as a still"
            )
        frames, metadata = item
        groups = tuple(tuple(int(time) for time in group) for group in metadata["temporal_ids"])
        return PackedVideo(frames, groups)


class MediaParser(MultiModalDataParser):
    """Takes PIL images and packed videos; no precomputed embeddings."""

    def _parse_image_data(self, data: Any) -> ImageProcessorItems:
        images: list[Image.Image | None] = []
        for item in data if isinstance(data, list) else [data]:
            # vLLM's chat interface wraps an image together with its bytes.
            image = getattr(item, "media", item)
            if not (image is None or isinstance(image, Image.Image)):
                raise ValueError(f"an image must be a PIL image, got {type(image).__name__}")
            # None stands for an image that vLLM still holds under its hash.
            images.append(None if image is None else as_rgb(image))
        return ImageProcessorItems(images)

    def _parse_video_data(self, data: Any) -> PackedVideoItems:
        return PackedVideoItems(data if isinstance(data, list) else [data], "video")


class MediaInfo(BaseProcessingInfo):
    """What a checkpoint takes, and how much of it fits."""

    @cached_property
    def settings(self) -> ImageSettings:
        settings = ImageSettings.from_mapping(self.ctx.get_hf_image_processor_config())
        settings.require_tokens(self.get_hf_config().query_num)
        return settings

    @cached_property
    def tokens(self) -> MediaTokens:
        return MediaTokens(self.get_tokenizer(), self.settings)

    def get_data_parser(self) -> MediaParser:
        return MediaParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        tokens = self.settings.tokens_per_view
        return {
            "image": (self.settings.max_slices + 1) * tokens,
            "video": self.max_groups(seq_len, mm_counts) * tokens,
        }

    def max_groups(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Groups of the longest video that a step of `seq_len` tokens has room for.

        A video with more is refused as a request: raise `max_num_batched_tokens` for it.
        """
        videos = max(mm_counts.get("video", 0), 1)
        image_tokens = len(self.tokens.image(*self.largest_image(), place=0))
        left = seq_len - mm_counts.get("image", 0) * image_tokens
        # Two brackets and the line's end stand beside the tokens of a group.
        per_group = self.settings.tokens_per_view + 3
        return min(max(left // per_group // videos, 1), MAX_PROFILED_GROUPS)

    def largest_image(self) -> tuple[int, int]:
        """(width, height) of an image that is cut into as many slices as any."""
        # One column of slices, each of exactly the resolution's area.
        side = self.settings.scale_resolution
        return side, side * self.settings.max_slices


class DummyMedia(BaseDummyInputsBuilder[MediaInfo]):
    """The largest media, with which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        images, videos = mm_counts.get("image", 0), mm_counts.get("video", 0)
        return IMAGE_MARKER * images + VIDEO_MARKER * videos

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        side = self.info.settings.scale_resolution
        # A frame to a group: packing more into each would not lengthen the prompt.
        num_frames = self.info.max_groups(seq_len, mm_counts)
        frames = np.full((num_frames, side, side, 3), 255, dtype=np.uint8)
        video = (frames, {"temporal_ids": [[time] for time in range(num_frames)]})
        image = Image.new("RGB", self.info.largest_image(), "white")
        return {
            "image": [image] * mm_counts.get("image", 0),
            "video": [video] * mm_counts.get("video", 0),
        }


class MediaProcessor(BaseMultiModalProcessor[MediaInfo]):
    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """Views of all media, under the names that `PackedMiniCPMV` reads."""
        # Refused and not ignored: the learner would not know of a setting that a request brings.
        if hf_kwargs:
            raise ValueError(
                f"mm_processor_kwargs {dict(hf_kwargs)} have no effect on MiniCPM-V; the settings "
                "are those of the checkpoint's preprocessor_config.json"
            )
        seen: dict[str, list[tuple[list[View], Groups]]] = {}
        if "image" in mm_items:
            images = mm_items.get_items("image", ImageProcessorItems)
            views = [image_views(image, self.info.settings) for image in images]
            # Each view of an image is a group of its own, without a time.
            seen[""] = [(of_image, [(STILL,)] * len(of_image)) for of_image in views]
        if "video" in mm_items:
            items = mm_items.get_items("video", PackedVideoItems)
            videos = [items.packed(index) for index in range(len(items))]
            seen["video_"] = [(frame_views(v.frames, self.info.settings), v.groups) for v in videos]
        dtype = self.info.ctx.model_config.dtype
        fields: dict[str, list[Any]] = {}
        for kind, media in seen.items():
            fields[f"{kind}pixel_values"] = [
                [torch.from_numpy(view.patches).to(dtype) for view in views] for views, _ in media
            ]
            fields[f"{kind}tgt_sizes"] = [
                torch.tensor([v.size for v in views]) for views, _ in media
            ]
            fields[f"{kind}temporal_ids"] = [
                [torch.tensor(group) for group in groups] for _, groups in media
            ]
        return BatchFeature(fields)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        # Sizes and times stay on the CPU, because they are read as numbers to lay out the views.
        batched = MultiModalFieldConfig.batched
        return {
            "pixel_values": batched("image"),
            "tgt_sizes": batched("image", keep_on_cpu=True),
            "temporal_ids": batched("image", keep_on_cpu=True),
            "video_pixel_values": batched("video"),
            "video_tgt_sizes": batched("video", keep_on_cpu=True),
            "video_temporal_ids": batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: Any,
    ) -> list[PromptReplacement]:
        # Markers are given as token ids, so that no token around them is touched. As text they
        # would be replaced in a decoded prompt, which is then tokenised anew and may come out
        # otherwise.
        tokens = self.info.tokens

        def image(index: int) -> PromptUpdateDetails:
            size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
            return self._details(tokens.image(size.width, size.height, index))

        def video(index: int) -> PromptUpdateDetails:
            packed = mm_items.get_items("video", PackedVideoItems).packed(index)
            return self._details(tokens.video(len(packed.groups)))

        return [
            PromptReplacement("image", tokens.encode(IMAGE_MARKER), image),
            PromptReplacement("video", tokens.encode(VIDEO_MARKER), video),
        ]

    def _details(self, token_ids: list[int]) -> PromptUpdateDetails:
        # Features go to the placeholders alone; brackets and numbers keep their own embeddings.
        return PromptUpdateDetails.select_token_id(token_ids, self.info.tokens.placeholder)

    def _recompute_cached_prompt_update(
        self, cached_update: ResolvedPromptUpdate, new_item_idx: int
    ) -> ResolvedPromptUpdate:
        update = replace(cached_update, item_idx=new_item_idx)
        if update.modality != "image":
            return update
        # vLLM keeps what it made of an image, and the image may have had another number in an
        # earlier prompt.
        renumbered = self.info.tokens.renumbered(update.content.full, new_item_idx)
        return update.with_content(self._details(renumbered))


@MULTIMODAL_REGISTRY.register_processor(MediaProcessor, info=MediaInfo, dummy_inputs=DummyMedia)
class PackedMiniCPMV(MiniCPMV4_5):
    """vLLM's class, which knows how to read groups but is never told of any by its processor."""

    def embed_multimodal(self, **fields: Any) -> list[torch.Tensor]:
        """Visual tokens [tokens, D] of each medium: images, then videos.

        fields: per medium patches [3, P, P * N] and sizes [views, 2] of its views, ids by group.
        """
        embedded: list[torch.Tensor] = []
        for kind in ("", "video_"):
            if f"{kind}pixel_values" not in fields:
                continue
            groups = [[ids.tolist() for ids in own] for own in fields[f"{kind}temporal_ids"]]
            inputs = {
                "pixel_values": [view for own in fields[f"{kind}pixel_values"] for view in own],
                "tgt_sizes": torch.cat(list(fields[f"{kind}tgt_sizes"])),
                "temporal_ids": groups,
            }
            # All views together, so that the tower runs once for all images, or videos, of a step.
            tokens = self.get_vision_hidden_states(inputs)  # [groups, Q, D]
            embedded += [part.flatten(0, 1) for part in tokens.split([len(own) for own in groups])]
        return embedded
