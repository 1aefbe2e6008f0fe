"""Writes procedural visual questions as a data set, with a page to look at them.

    python -m scripts.make_visual_data out=DIR tasks=charts,tables count=50

DIR gets `images/*.png`; `dataset.jsonl` with a row per example, which `data.kind=dataset` reads
with `data.columns` of `images=images`, `task=task` and `id=id`; and `index.html`, a contact sheet.
The examples are those of the training split, with each task's default settings; image paths are
absolute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from rl.data.tasks.pictures import TASKS, read_settings, render
from rl.data.tasks.pictures.drawing import VisualExample
from rl.run.command import Command, Keys
from rl.run.templates import templates
from rl.show.page import framed


class DataKeys(Keys):
    out: Path = Field(examples=["DIR"])
    """Directory to write; it must be new or empty."""
    tasks: tuple[str, ...] = Field(min_length=1, examples=["charts,tables"])
    """The visual tasks."""
    count: int = Field(ge=1, le=1_000_000, examples=["50"])
    """Examples of each task."""
    seed: int = Field(default=0, ge=0)
    """Chooses the examples."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        names = tuple(dict.fromkeys(value.split(","))) if isinstance(value, str) else value
        if unknown := [name for name in names if name not in TASKS]:
            raise ValueError(f"no such task {', '.join(unknown)}; there are {', '.join(TASKS)}")
        return names

    @field_validator("out")
    @classmethod
    def _empty(cls, path: Path) -> Path:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a directory")
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; name a new directory")
        return path.resolve()


def make(keys: DataKeys) -> None:
    images = keys.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for task in keys.tasks:
        settings = read_settings(task)
        for index in range(keys.count):
            example = render(task, settings, keys.seed, index, is_heldout=False)
            rows.append(_write(example, f"{task}/{index}", images))
    sheet = templates(Path(__file__).parent).get_template("make_visual_data.html.j2")
    title = ", ".join(keys.tasks)
    # The pictures are files beside the page: they may be too many to stand in it.
    page = framed(title, sheet.render(title=title, rows=rows), images="file: 'self'")
    (keys.out / "index.html").write_text(page, encoding="utf-8")
    # Last, so that rows never name pictures that are not there.
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (keys.out / "dataset.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(rows)} examples in {keys.out}; look at {keys.out / 'index.html'}")


def _write(example: VisualExample, name: str, images: Path) -> dict[str, Any]:
    """Write the pictures of an example and return its row."""
    paths = []
    for number, image in enumerate(example.images):
        path = images / f"{name.replace('/', '-')}-{number}.png"
        image.save(path)
        paths.append(str(path))
    return {
        "id": name,
        "question": example.question,
        "answer": example.answer,
        "task": example.task,
        "images": paths,
    }


main = Command("scripts.make_visual_data", __doc__, DataKeys, make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
