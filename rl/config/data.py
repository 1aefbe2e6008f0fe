"""The section `data`: where prompts come from, and how their rows and media are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rl.config.section import Section


class ColumnsConfig(Section):
    """Which column of a dataset holds what."""

    question: str = "question"
    """Column with the question as text; ignored where `messages` is set."""
    messages: str | None = None
    """Column with chat messages (a list of role and content), in place of `question`."""
    reference: str = "answer"
    """Column with the reference answer."""
    task: str | None = None
    """Column that names the accuracy reward of each row; by default `data.task` holds for all."""
    mode: str | None = None
    """Column that pins a row to a mode; empty cells leave the row to the draw."""
    images: str | None = None
    """Column with images: a path or bytes, or a list of them. `<image>` in the text marks where an
    image belongs; without the mark, images stand in front of the text."""
    videos: str | None = None
    """Column with videos, read like `images`; `<video>` in the text marks where one belongs."""
    id: str | None = None
    """Column with a unique id; by default the row number."""


class VideoConfig(Section):
    """Which frames of a video the model sees, by default as MiniCPM-V 4.5 (arXiv 2509.18154)."""

    fps: float = Field(default=3, gt=0)
    """Frames that are taken per second of video."""
    # 180 groups of three frames, as in the model's own example.
    max_frames: int = Field(default=540, gt=0)
    """The most frames that are taken of one video; a longer one gives fewer per second."""
    frames_per_group: int = Field(default=3, ge=1, le=6)
    """The most frames that MiniCPM-V packs into one block of visual tokens; other models pack
    none and need 1."""
    max_frame_pixels: int = Field(default=2 * 448 * 448, ge=28 * 28)
    """A frame with more pixels is scaled down to this many as it is decoded; bounds memory."""

    @property
    def max_groups(self) -> int:
        return self.max_frames // self.frames_per_group

    @model_validator(mode="after")
    def _groups_are_whole(self) -> VideoConfig:
        # Frames are planned in whole groups (rl/data/media/video_frames.py): a rest would never be
        # taken, and max_frames would promise what no video gets.
        if self.max_frames % self.frames_per_group:
            raise ValueError(
                f"video.max_frames={self.max_frames} must be a multiple of "
                f"video.frames_per_group={self.frames_per_group}; change one, "
                "frames_per_group=1 for models that pack no frames"
            )
        return self


class SourceConfig(Section):
    """Where prompts come from. A layer that names `kind` replaces the layers before it here."""

    # One class for all kinds, because a layer may set the path of a kind that another layer names.
    kind: Literal["chain_sum", "reasoning_gym", "visual", "dataset"] = "dataset"
    """`chain_sum` is the built-in addition task, `reasoning_gym` one of that library's procedural
    tasks, `visual` a task with drawn pictures (rl/data/tasks/pictures), and `dataset` a file or a
    Hugging Face dataset."""
    path: str | None = None
    """Of a `dataset`: a .jsonl or .parquet file, a directory of them, or a dataset's name. Of
    `reasoning_gym` and `visual`: the task's name."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset, such as `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a Hugging Face dataset that training prompts are taken from."""
    heldout_path: str | None = None
    """Of a `dataset`: the file or dataset with held-out rows; by default a share of `path`."""
    heldout_split: str | None = None
    """Split of a Hugging Face dataset with the held-out rows."""
    # Which rows are held out depends on their content alone, so equal questions never fall apart.
    heldout_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the rows that are kept out of training where no held-out rows are named."""
    columns: ColumnsConfig = ColumnsConfig()
    video: VideoConfig = VideoConfig()
    # The task checks them itself: only it knows which it has.
    settings: dict[str, Any] = {}
    """Settings of a procedural task, which are passed to it as they are."""
    seed: int | None = None
    """Decides the order of the prompts; by default the run's seed. A sweep fixes it, so that all
    its arms ask the same prompts in the same order."""
    task: str = "auto"
    """Accuracy reward of every row that names none; `auto` chooses by the reference."""
    system_prompt: str | None = None
    """Put in front of every conversation that has no system message."""

    @property
    def shows_media(self) -> bool:
        """Whether its prompts can have images or videos."""
        return self.kind == "visual" or bool(self.columns.images or self.columns.videos)
