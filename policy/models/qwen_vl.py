"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923) and Qwen3-VL as policies.

The models are transformers' own. This file adds what training them against an engine needs: a
sample's media as arguments of the backbone, with the positions that the engine counts, and exactly
one run of the vision tower in each forward, whatever a micro-batch shows. It also teaches
transformers' Auto classes these models with a score in place of the output layer, which
transformers has for language models alone. Shapes: B rows of T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoProcessor,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLPreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLPreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.video_utils import VideoMetadata

from policy.models.checks import read_config
from rl.config.policy import Part
from rl.data.media.names import Medium, MediumKind, StillImage
from rl.data.media.store import MediaStore
from rl.loop.stages import TrainSample

Grid = tuple[int, int, int]
"""Patches in time, height and width."""
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


@dataclass(frozen=True)
class SeenMedium:
    """An image or a video as the vision tower takes it."""

    kind: MediumKind
    pixels: Tensor
    """[patches, values of a patch]"""
    grid: Grid
    text: str
    """What the prompt holds in place of the marker."""
    seconds_per_step: float
    """Between one step of a video's grid and the next; 0 for an image."""


@dataclass(frozen=True)
class Block:
    """Visual tokens that follow each other, in a grid of (time, height, width) tokens."""

    start: int
    grid: Grid
    seconds_per_step: float = 0.0


def mrope_positions(
    length: int,
    blocks: Sequence[Block],
    steps_per_second: float,
    dtype: torch.dtype = torch.float32,
) -> NDArray:
    """Positions [3, length] in time, height and width of a row with these visual blocks.

    Text counts on from the largest position before it, in all three alike
    (https://arxiv.org/abs/2409.12191, section 2.1). transformers 5.19 counts on from the largest
    position in space alone, so after a long video it is behind the engine.
    """
    positions = np.empty((3, length), dtype=np.int64)
    # `done` counts tokens; `following` is the next position, which falls behind the tokens because
    # a block takes up only as many positions as its longest side.
    done = following = 0
    for block in blocks:
        positions[:, done : block.start] = following + np.arange(block.start - done)
        following += block.start - done
        inside = np.indices(block.grid).reshape(3, -1)  # [3, tokens of the block]
        if block.grid[0] > 1:
            # The engine rounds all it is told of a video to the model's type, times included.
            seconds = torch.tensor(block.seconds_per_step, dtype=torch.float32).to(dtype).item()
            # Truncated to whole numbers by the assignment, as the engine truncates them.
            inside[0] = inside[0] * (seconds * steps_per_second)
        done = block.start + inside.shape[1]
        positions[:, block.start : done] = following + inside
        following += inside.max() + 1
    positions[:, done:] = following + np.arange(length - done)
    return positions


@dataclass(frozen=True)
class QwenVLBatch:
    """The media of one micro-batch; implements rl.loop.interfaces.VisualArguments."""

    media: tuple[SeenMedium, ...]
    """Row by row."""
    blocks: tuple[tuple[Block, ...], ...]
    """[B]"""
    length: int
    """T"""
    steps_per_second: float

    def arguments(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """Pixels and grids by kind of medium, and position_ids [3, B, T].

        A medium that several rows show is there once; `repeats` then says which one each shows.
        """
        rows = [
            mrope_positions(self.length, blocks, self.steps_per_second, dtype)
            for blocks in self.blocks
        ]
        positions = torch.from_numpy(np.stack(rows, axis=1))  # [3, B, T]
        arguments: dict[str, Any] = {"position_ids": positions.to(device)}
        repeats: dict[MediumKind, list[int]] = {}
        for kind, pixels in _PIXELS.items():
            shown = [medium for medium in self.media if medium.kind == kind]
            if not shown:
                continue
            # By identity: the rows of a group share one SeenMedium, and comparing pixels is slow.
            distinct = {id(medium): medium for medium in shown}
            patches = torch.cat([medium.pixels for medium in distinct.values()])
            arguments[pixels] = patches.to(device, dtype)
            grids = torch.tensor([medium.grid for medium in distinct.values()])
            arguments[_GRIDS[kind]] = grids.to(device)
            if len(distinct) < len(shown):
                repeats[kind] = [list(distinct).index(id(medium)) for medium in shown]
        return arguments | ({"repeats": repeats} if repeats else {})


class QwenVLInputs:
    """Implements rl.loop.interfaces.VisualInputs."""

    def __init__(self, directory: Path, store: MediaStore) -> None:
        config = read_config(directory)
        # The very class that vLLM makes of this directory, so that pixels are the same.
        self._processor: Any = AutoProcessor.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        # Said, because Qwen2.5-VL's warns where it is not: its engine caps no frame either.
        if hasattr(self._processor.video_processor, "cap_pixels_per_frame"):
            self._processor.video_processor.cap_pixels_per_frame = False
        self._store = store
        self._merge = config.vision_config.spatial_merge_size
        self._kinds: dict[int, MediumKind] = {
            config.image_token_id: "image",
            config.video_token_id: "video",
        }
        # Qwen3-VL writes each frame's time into the text instead.
        self._times_are_text = config.model_type == "qwen3_vl"
        self._steps_per_second = getattr(config.vision_config, "tokens_per_second", 1.0)

    def __call__(self, samples: Sequence[TrainSample], token_ids: Tensor) -> QwenVLBatch | None:
        media, blocks = [], []
        # Read once for all samples that show them: the samples of a group show the same media.
        every = dict.fromkeys(medium for sample in samples for medium in sample.media)
        known = {medium: self._see(medium) for medium in every}
        for sample in samples:
            seen = [known[medium] for medium in sample.media]
            blocks.append(self._located(sample, seen))
            media += seen
        if not media:
            return None
        return QwenVLBatch(tuple(media), tuple(blocks), token_ids.shape[1], self._steps_per_second)

    def expanded(self, token_ids: Sequence[int], media: Sequence[Medium]) -> tuple[int, ...]:
        if (count := sum(token in self._kinds for token in token_ids)) != len(media):
            raise ValueError(
                f"a prompt has {count} markers for its {len(media)} media; it needs one for each"
            )
        shown = iter(media)
        ids: list[int] = []
        for token in token_ids:
            if token in self._kinds:
                text = self._see(next(shown)).text
                ids += self._processor.tokenizer.encode(text, add_special_tokens=False)
            else:
                ids.append(token)
        return tuple(ids)

    def _see(self, medium: Medium) -> SeenMedium:
        read, seconds = self._store.read(medium), 0.0
        if isinstance(read, StillImage):
            output = self._processor.image_processor(images=[read.pixels], return_tensors="pt")
            text = self._processor.replace_image_token(output, 0)
        else:
            read = read.in_pairs
            metadata = VideoMetadata(
                total_num_frames=len(read.frames),
                fps=read.fps,
                frames_indices=[time * read.fps for time in read.times_s],
            )
            output = self._processor.video_processor(
                # A copy, because torch warns of arrays that it may not write.
                videos=[read.frames.copy()],
                video_metadata=[metadata],
                do_sample_frames=False,
                return_metadata=True,
                return_tensors="pt",
            )
            text = self._processor.replace_video_token(output, 0)
            seconds = self._processor.video_processor.temporal_patch_size / read.fps
        (grid,) = output[_GRIDS[medium.kind]].tolist()
        return SeenMedium(medium.kind, output[_PIXELS[medium.kind]], tuple(grid), text, seconds)

    def _located(self, sample: TrainSample, seen: Sequence[SeenMedium]) -> tuple[Block, ...]:
        """Where the sample's visual tokens are.

        Raises ValueError if they are not as many, or not in the order, that its media give.
        """
        expected: list[tuple[SeenMedium, Grid]] = []
        for medium in seen:
            steps, height, width = medium.grid
            # In tokens: the merger makes one of each merge x merge patches.
            height, width = height // self._merge, width // self._merge
            if medium.kind == "video" and self._times_are_text:
                # Text parts the frames, so each is a block of its own.
                expected += [(medium, (1, height, width))] * steps
            else:
                expected.append((medium, (steps, height, width)))
        # Kind, start and count of each run of visual tokens in the sample's token ids.
        runs: list[tuple[MediumKind, int, int]] = []
        start = 0
        for token, group in groupby(sample.trajectory.token_ids.tolist()):
            count = sum(1 for _ in group)
            if token in self._kinds:
                runs.append((self._kinds[token], start, count))
            start += count
        counts = [(medium.kind, int(np.prod(grid))) for medium, grid in expected]
        if [(kind, count) for kind, _, count in runs] != counts:
            raise ValueError(
                f"sample {sample.id} has other visual tokens than its media give here: "
                f"{_summary([(kind, count) for kind, _, count in runs])} in its token ids, "
                f"{_summary(counts)} from its media; the engine read another file, or with other "
                "processor settings"
            )
        return tuple(
            Block(start, grid, medium.seconds_per_step)
            for (_, start, _), (medium, grid) in zip(runs, expected, strict=True)
        )


def _summary(counts: Sequence[tuple[MediumKind, int]]) -> str:
    return " + ".join(f"{count} ({kind})" for kind, count in counts) or "none"


def parts(model: PreTrainedModel) -> dict[Part, list[nn.Module]]:
    """The modules of each part; the mergers count as the resampler."""
    visual = model.base_model.visual
    mergers = [m for name, m in visual.named_children() if name.endswith(("merger", "merger_list"))]
    return {
        "llm": [model.base_model.language_model, model.get_output_embeddings()],
        "vision": [module for module in visual.children() if module not in mergers],
        "resampler": mergers,
    }


def checkpoint_name(model_type: str, parameter: str) -> str:
    """A parameter's name in the published checkpoints of its model type.

    vLLM and transformers load both this name and transformers' own.
    """
    # transformers has renamed the modules of Qwen2.5-VL since it was published. Exports keep the
    # published names, which other programs know.
    if model_type == "qwen2_5_vl":
        for ours, published in (("model.visual.", "visual."), ("model.language_model.", "model.")):
            if parameter.startswith(ours):
                return published + parameter.removeprefix(ours)
    return parameter


def see_once(model: PreTrainedModel) -> None:
    """Have the model's backbone run its vision tower exactly once in every forward.

    transformers runs it once for images and once for videos, and for text not at all. Sharded ranks
    must all gather the same weights in the same order, though only some have images.
    """
    model.base_model.register_forward_pre_hook(_see_first, with_kwargs=True)


def _see_first(backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give the backbone what its tower makes of the pixels instead of the pixels."""
    pixels = {kind: kwargs.pop(name) for kind, name in _PIXELS.items() if name in kwargs}
    grids = {kind: kwargs[_GRIDS[kind]] for kind in pixels}
    repeats = kwargs.pop("repeats", {})
    tokens = slice(None)
    if not pixels:
        # One black image of a single visual token, the least that the tower and the merger take.
        vision, like = backbone.config.vision_config, next(backbone.visual.parameters())
        side = vision.spatial_merge_size
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = {"image": like.new_zeros(side**2, values)}
        grids = {"image": torch.tensor([[1, side, side]], device=like.device)}
        # None of its tokens is kept, so the whole tower gets a gradient, which is zero. Without
        # one, ranks whose micro-batch is text alone would not take part in the reduction that the
        # others wait in.
        tokens = slice(0)
    # Images and videos go through the tower together; their grids say where each medium ends.
    patches, all_grids = torch.cat([*pixels.values()]), torch.cat([*grids.values()])
    seen = backbone.get_image_features(patches, all_grids, return_dict=True)
    outputs, done = {}, 0
    for kind, grid in grids.items():
        order = repeats.get(kind, range(len(grid)))
        outputs[kind] = _picked(seen, [done + index for index in order], tokens)
        done += len(grid)
    kwargs["mm_encoder_outputs"] = outputs
    return args, kwargs


def _picked(seen: Any, media: Sequence[int], tokens: slice) -> Any:
    """The tower's output for these media, in this order, and for these tokens of each."""

    def pick(by_medium: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(by_medium[index][tokens] for index in media)

    # Qwen3-VL also adds features of earlier layers of its tower to earlier layers of its decoder.
    picked: dict[str, Any] = {"pooler_output": pick(seen.pooler_output)}
    if "deepstack_features" in seen:
        picked["deepstack_features"] = [pick(depth) for depth in seen.deepstack_features]
    return type(seen)(**picked)


# A score for each output from the state of a row's last token, as transformers' own classifiers of
# language models have it. They take what QwenVLInputs lays out, repeated media too.


class Qwen2_5_VLForSequenceClassification(
    GenericForSequenceClassification, Qwen2_5_VLPreTrainedModel
):
    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__(config)
        see_once(self)


class Qwen3VLForSequenceClassification(GenericForSequenceClassification, Qwen3VLPreTrainedModel):
    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__(config)
        see_once(self)


AutoModelForSequenceClassification.register(
    Qwen2_5_VLConfig, Qwen2_5_VLForSequenceClassification, exist_ok=True
)
AutoModelForSequenceClassification.register(
    Qwen3VLConfig, Qwen3VLForSequenceClassification, exist_ok=True
)
# Under the published names, as the policies of this model type, and under transformers' own.
register_checkpoint_conversion_mapping(
    Qwen2_5_VLForSequenceClassification.__name__,
    get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__),
    overwrite=True,
)
