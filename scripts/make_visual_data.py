"""Writes procedural visual questions as a data set, with a page to look at them.

    python scripts/make_visual_data.py out=DIR tasks=charts,tables count=50 [seed=0]

DIR gets `images/*.png`; `dataset.jsonl` with a row per example, which `data.kind=dataset` reads
with `data.columns` of `images=images`, `task=task` and `id=id`; and `index.html`, a contact sheet.
The examples are those of the training split, with each task's default settings; image paths are
absolute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from rl.config.errors import problems
from rl.config.run import Section
from rl.data.tasks.pictures import TASKS, VisualExample, read_settings, render
from rl.run.templates import templates
from rl.show.page import framed


class Request(Section):
    out: Path
    """Directory to write; it must be new or empty."""
    tasks: tuple[str, ...] = Field(min_length=1)
    count: int = Field(ge=1, le=1_000_000)
    """Examples of each task."""
    seed: int = Field(default=0, ge=0)

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


def main(arguments: Sequence[str]) -> None:
    request = read_request(arguments)
    images = request.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for task in request.tasks:
        settings = read_settings(task)
        for index in range(request.count):
            example = render(task, settings, request.seed, index, is_heldout=False)
            rows.append(_write(example, f"{task}/{index}", images))
    sheet = templates(Path(__file__).parent).get_template("make_visual_data.html.j2")
    title = ", ".join(request.tasks)
    # The pictures are files beside the page: they may be too many to stand in it.
    page = framed(title, sheet.render(title=title, rows=rows), images="file: 'self'")
    (request.out / "index.html").write_text(page, encoding="utf-8")
    # Last, so that rows never name pictures that are not there.
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (request.out / "dataset.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(rows)} examples in {request.out}; look at {request.out / 'index.html'}")


def read_request(arguments: Sequence[str]) -> Request:
    """Read `key=value` pairs; raises ValueError, which lists every problem."""
    if bare := [argument for argument in arguments if "=" not in argument]:
        raise ValueError(f"arguments are key=value, got {', '.join(bare)}")
    tree = {key: value for key, _, value in (one.partition("=") for one in arguments)}
    required = [name for name, field in Request.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in tree]:
        raise ValueError(
            f"{', '.join(missing)} missing; give {' '.join(f'{n}=...' for n in required)}"
        )
    try:
        return Request.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(problems(error, tree, {}, Request))) from error


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


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"make_visual_data: {error}")
