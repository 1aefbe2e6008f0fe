"""The section `data`: where prompts come from, and how their rows and media are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rl.config.presets import PRESETS
from rl.config.section import Section


class ColumnsConfig(Section):
    """Which column of a dataset holds what; `reward_model.ground_truth` is a field of a struct."""

    question: str = "question"
    """Column with the question, as text or as chat messages; ignored where `messages` is set."""
    messages: str | None = None
    """Column with chat messages (role and content, or from and value), in place of `question`."""
    reference: str | None = "answer"
    """Column with the reference answer, or with a list of accepted answers. null takes the
    assistant's last turn of the messages; so does the default where no column has its name."""
    task: str | None = None
    """Column that names the accuracy reward of each row; by default `data.task` holds for all."""
    mode: str | None = None
    """Column that pins a row to a mode; empty cells leave the row to the draw."""
    images: str | list[str] | None = None
    """Column or columns with images: a path, bytes, base64, or a list of them. `<image>` in the
    text marks where an image belongs, `<image 2>` where the second one does; without the mark,
    images stand in front of the text."""
    videos: str | list[str] | None = None
    """Column or columns with videos, read like `images`; `<video>` in the text marks where one
    belongs. A list of pictures is a video of these frames."""
    id: str | None = None
    """Column with a unique id; by default the row number."""

    @property
    def media(self) -> dict[str, Literal["image", "video"]]:
        """The columns with media in the order in which they are shown, and what each holds."""
        images, videos = (
            [named] if isinstance(named, str) else named or []
            for named in (self.images, self.videos)
        )
        kinds: dict[str, Literal["image", "video"]] = dict.fromkeys(images, "image")
        kinds.update(dict.fromkeys(videos, "video"))
        return kinds

    @model_validator(mode="before")
    @classmethod
    def _names_of_other_trainers(cls, given: Any) -> Any:
        meant = {
            "prompt": "question (or messages)",
            "conversations": "messages",
            "instruction": "question",
            "problem": "question",
            "input": "question",
            "query": "question",
            "answer": "reference",
            "solution": "reference",
            "label": "reference",
            "target": "reference",
            "output": "reference",
            "response": "reference",
            "ground_truth": "reference",
            "image": "images",
            "video": "videos",
        }
        for name in meant.keys() & (given if isinstance(given, dict) else ()):
            raise ValueError(
                f"columns.{name}={given[name]}: no such key; did you mean columns.{meant[name]}?"
            )
        return given


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


class PromptsConfig(Section):
    """One source of prompts."""

    # One class for all kinds, because a layer may set the path of a kind that another layer names.
    kind: Literal["chain_sum", "reasoning_gym", "visual", "dataset"] = "dataset"
    """`chain_sum` is the built-in addition task, `reasoning_gym` one of that library's procedural
    tasks, `visual` a task with drawn pictures (rl/data/tasks/pictures), and `dataset` files or a
    Hugging Face dataset."""
    preset: str | None = None
    """Name of a well-known dataset, which sets path, columns, task and template where they are not
    given: chartqa, dapo-17k, docvqa, geo3k, gsm8k, math, mmk12, rlaif-v, rlpr or virl39k."""
    path: str | list[str] | None = None
    """Of a `dataset`: a file (.json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, also with .gz
    or .zst), a list of files, a pattern such as rows/*.jsonl, a directory, or a dataset's name. Of
    `reasoning_gym` and `visual`: the task's name."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset, such as `main` of openai/gsm8k, by its name or as a
    directory."""
    split: str = "train"
    """Split of a directory or a Hugging Face dataset that training prompts are taken from."""
    heldout_path: str | list[str] | None = None
    """Of a `dataset`: the files or the dataset with held-out rows; by default a share of `path`."""
    heldout_split: str | None = None
    """Split of a directory or a Hugging Face dataset with the held-out rows."""
    # Which rows are held out depends on their content alone, so equal questions never fall apart.
    heldout_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the rows that are kept out of training where no held-out rows are named."""
    max_rows: int | None = Field(default=None, gt=0)
    """Only the first rows of `path`; by default all of them."""
    columns: ColumnsConfig = ColumnsConfig()
    media_dir: str | None = None
    """Where relative paths of images and videos start; by default the directory of the rows, else
    the working directory."""
    allow_outside: bool = False
    """Let rows name images and videos outside `media_dir`, the data set's own directory and the
    working directory; such rows are left out otherwise."""
    template: str | None = None
    """What a dataset's question becomes, in Jinja: `{{question}}` is the question, `{{NAME}}` the
    cell of another column, such as "{{question}} Put the final answer in \\boxed{}."."""
    # The task checks them itself: only it knows which it has.
    settings: dict[str, Any] = {}
    """Settings of a procedural task, which are passed to it as they are."""
    task: str = "auto"
    """Accuracy reward of every row that names none; `auto` chooses by the reference."""
    system_prompt: str | None = None
    """Put in front of every conversation that has no system message."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        name = given["preset"]
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        if given.get("kind", "dataset") != "dataset":
            raise ValueError(
                f"preset={name} is a dataset, got kind={given['kind']}; set data.kind=dataset too"
            )
        preset = dict(PRESETS[name])
        columns = {**preset.pop("columns"), **(given.get("columns") or {})}
        if given.get("path") is not None:
            # Subset and splits are those of the published dataset; a copy may have others.
            preset = {key: preset[key] for key in preset.keys() & {"task", "template"}}
        return {**preset, **given, "columns": columns}

    @property
    def shows_media(self) -> bool:
        """Whether its settings name images or videos; messages may hold some all the same."""
        return self.kind == "visual" or bool(self.columns.media)


class MixedConfig(PromptsConfig):
    """One source of a mixture."""

    weight: float = Field(default=1, ge=0)
    """How many training prompts it gives, in proportion to the weights of the other sources; with 0
    it is held out alone."""
    heldout_weight: float | None = Field(default=None, ge=0)
    """The same of the held-out prompts; by default as `weight`."""


class SourceConfig(PromptsConfig):
    """Where prompts come from. A layer that names `kind` replaces the layers before it here."""

    mix: dict[str, MixedConfig] = {}
    """Several sources by name, in place of one: each takes the keys above, and a weight."""
    video: VideoConfig = VideoConfig()
    too_long: Literal["leave_out", "refuse"] = "leave_out"
    """What becomes of a row whose prompt leaves no room for the answer: it is left out, counted and
    named, or the data are refused."""
    seed: int | None = None
    """Decides the order of the prompts; by default the run's seed. A sweep fixes it, so that all
    its arms ask the same prompts in the same order."""

    @property
    def sources(self) -> dict[str, PromptsConfig]:
        """The sources by their names in `mix`; one alone is called by an empty text."""
        return {**self.mix} or {"": self}

    @property
    def weights(self) -> list[float]:
        """Of the training prompts of each source."""
        return [source.weight for source in self.mix.values()] or [1.0]

    @property
    def heldout_weights(self) -> list[float]:
        """Of the held-out prompts of each source."""
        return [
            source.weight if source.heldout_weight is None else source.heldout_weight
            for source in self.mix.values()
        ] or [1.0]

    @property
    def shows_media(self) -> bool:
        if self.mix:
            return any(source.shows_media for source in self.mix.values())
        return super().shows_media

    @property
    def name(self) -> str:
        """What its held-out prompts are called: the file or dataset without its ending."""
        if self.mix:
            return "+".join(self.mix)
        path = self.heldout_path or self.path or self.kind
        return Path(path if isinstance(path, str) else path[0]).stem

    @model_validator(mode="after")
    def _some_source_has_weight(self) -> SourceConfig:
        for split, weights in (("training", self.weights), ("held-out", self.heldout_weights)):
            if not any(weights):
                raise ValueError(
                    f"mix gives no {split} prompts: each of its sources has a weight of 0 there, "
                    f"{', '.join(self.mix)}; give one of them another"
                )
        return self

    @model_validator(mode="after")
    def _one_or_many(self) -> SourceConfig:
        if self.mix and (self.path or self.kind != "dataset"):
            raise ValueError(
                f"mix names {', '.join(self.mix)}, and path={self.path} of kind={self.kind} is a "
                "source beside them; make it one of data.mix, and set data.kind=dataset"
            )
        return self
