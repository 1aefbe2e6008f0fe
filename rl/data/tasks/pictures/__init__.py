"""Visual questions without end: pictures rendered on the spot, with answers that rules can check.

    settings = read_settings("charts", {"kinds": ["bar", "line"]})
    example = render("charts", settings, seed=0, index=7, is_heldout=False)

One file per task; each draws a scene (what is shown and asked, without pixels) and paints it.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from rl.config.keys import problems
from rl.config.section import Section
from rl.data.fingerprint import stable_hash
from rl.data.media.names import MediumKind
from rl.data.tasks.pictures import (
    charts,
    descriptions,
    digits,
    figures,
    forms,
    pages,
    reconstruction,
    shapes,
    tables,
)
from rl.data.tasks.pictures.drawing import Draws, Scene, VisualExample

# The same share as of the built-in sums: enough for an evaluation, little lost to training.
HELDOUT_ONE_IN = 8
"""One scene in so many is held out."""
MAX_TRIES = 1000
"""Draws for one example; settings that need more have no scene in the split."""


class Asked(NamedTuple):
    """What a prompt needs of an example; its pixels are painted where they are looked at."""

    question: str
    answer: str
    task: str
    """The accuracy route."""
    media: tuple[MediumKind, ...]


class Task(NamedTuple):
    settings: type[Section]
    draw: Callable[[Any, Draws], Any]
    """Settings and draws to a scene; no pixels, so that drawing until one fits is cheap."""
    paint: Callable[[Any, Any, Draws], VisualExample]
    """Scene, settings and draws to the example."""


TASKS: dict[str, Task] = {
    "digits": Task(digits.DigitsSettings, digits.draw, digits.paint),
    "shapes": Task(shapes.ShapesSettings, shapes.draw, shapes.paint),
    "descriptions": Task(descriptions.DescriptionsSettings, descriptions.draw, descriptions.paint),
    "figures": Task(figures.FiguresSettings, figures.draw, figures.paint),
    "tables": Task(tables.TablesSettings, tables.draw, tables.paint),
    "charts": Task(charts.ChartsSettings, charts.draw, charts.paint),
    "documents": Task(pages.DocumentsSettings, pages.draw, pages.paint),
    "reconstruction": Task(
        reconstruction.ReconstructionSettings, reconstruction.draw, reconstruction.paint
    ),
    "forms": Task(forms.FormsSettings, forms.draw, forms.paint),
}


def read_settings(task: str, settings: Mapping[str, Any] | None = None) -> Section:
    """Return the settings of a task; raises ValueError for what does not suit it, or no task."""
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no visual task {task!r}; {advice}there are {', '.join(TASKS)}")
    kind, tree = TASKS[task].settings, dict(settings or {})
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        listed = "; ".join(problems(error, {}, kind))
        raise ValueError(f"settings of {task}: {listed}") from error


def render(task: str, settings: Section, seed: int, index: int, is_heldout: bool) -> VisualExample:
    """Return example `index` of a split: the same for the same arguments in every process.

    settings: as `read_settings` returns them. Whether a scene is held out depends on what it shows
    alone, so no choice of seeds, and no question, lets the splits overlap. Raises ValueError where
    the settings leave a split without scenes.
    """
    scene, rng = _drawn(task, settings, seed, index, is_heldout)
    return TASKS[task].paint(scene, settings, rng)


def draw_scene(task: str, settings: Section, seed: int, index: int, is_heldout: bool) -> Any:
    """Return what `render` paints, such as a DigitsScene with its digits, for worked examples."""
    return _drawn(task, settings, seed, index, is_heldout)[0]


def ask(task: str, settings: Section, seed: int, index: int, is_heldout: bool) -> Asked:
    """Return what is asked about what `render` paints."""
    asked, rng = _drawn(task, settings, seed, index, is_heldout)
    media = asked.media
    # Painting takes most of the time, and the prompt stream asks for questions by the thousand.
    if not asked.question:
        asked = TASKS[task].paint(asked, settings, rng)
    return Asked(asked.question, asked.answer, asked.task, media)


def is_held_out(scene: Scene) -> bool:
    """Whether a scene belongs to the held-out split."""
    return stable_hash(scene.identity) % HELDOUT_ONE_IN == 0


def _drawn(
    task: str, settings: Section, seed: int, index: int, is_heldout: bool
) -> tuple[Any, Draws]:
    """The scene, and the draws to paint it with."""
    kind = TASKS[task]
    # Without this, settings of another task would fail somewhere within the drawing.
    if not isinstance(settings, kind.settings):
        raise ValueError(
            f"{task} takes {kind.settings.__name__}, got {type(settings).__name__}; make them by "
            f"read_settings({task!r}, ...)"
        )
    # Draws of its own for every example: any of them can be drawn without the ones before.
    rng = Draws(stable_hash(task), seed, index, int(is_heldout))
    # The split is decided by what is shown, not by the index, so that the same scene cannot come up
    # in both: draw until one falls on the wanted side.
    for _ in range(MAX_TRIES):
        scene = kind.draw(settings, rng)
        if is_held_out(scene) == is_heldout:
            return scene, rng
    split = "held-out" if is_heldout else "training"
    raise ValueError(
        f"{task} has no {split} scene in {MAX_TRIES} draws with settings {settings!r}; widen them"
    )
