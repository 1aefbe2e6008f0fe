"""The task of the built-in policy that describes: coloured shapes in a picture or a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from policy.builtin.sight.visual_task import VisualTask, mixed
from policy.builtin.warmup import Question
from rl.config.data import SourceConfig
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures.descriptions import (
    NUM_PARTS,
    NUMBERS,
    Parts,
    any_shape,
    describe,
)
from rl.data.tasks.pictures.shapes import COLOURS, FORMS

Choice = TypeVar("Choice", str, int)

TASK_NAME = "descriptions"
# What a warmed policy is right on now and then, as a run's `data.settings`.
TASK: dict[str, Any] = {
    "wording": "terse",
    # A part has 28 x 28 pixels of its own: one visual token.
    "cell": 28,
    "jitter": 0.75,
    "noise": [0.1, 0.3],
}
# Ways to be shown the shapes, as a run's `data.mix`: weights, and what differs from TASK.
WAYS: dict[str, dict[str, Any]] = {
    "picture": {"weight": 1},
    # Eight frames at VIDEO's rate, two of each part, which make one visual token.
    "video": {"weight": 1, "settings": {"shown": "in_turn", "seconds_each": [0.667, 0.667]}},
}
VIDEO = {"fps": 3, "max_frames": 8, "frames_per_group": 1}
"""A run's `data.video`."""

NOTHING = "nothing"
# A token each, so that a description is short. Each word brings the space before it.
WORDS: tuple[str, ...] = (
    "There are",
    *(f" {number}" for number in NUMBERS.values()),
    " shapes",
    *(f" Part {place} shows a" for place in range(1, NUM_PARTS + 1)),
    *(f" {word}" for word in (*COLOURS, *FORMS, NOTHING)),
)

ASKED = [TASK, WAYS, VIDEO, WORDS]
"""All that decides the weights of a policy here."""


def all_ways(**changes: Any) -> SourceConfig:
    """The task in pictures and videos. changes: of the settings of all ways."""
    return mixed(TASK_NAME, TASK, WAYS, VIDEO, changes)


class DescribingTask(VisualTask):
    """Coloured shapes in pictures and videos."""

    task_name = TASK_NAME
    max_response_tokens: ClassVar = {False: 24, True: 56}

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.scene.parts, thinking, self.slips)


def worked_example(parts: Parts, thinking: bool, slips: Slips | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first lines are what each part shows and the last one counts the shapes, such
    as `1: red star\\n2: nothing\\n3: nothing\\n4: blue circle\\n= two\\n`, closed by `</think>`; a
    blank line and the description follow.
    """
    if slips:
        # The answer goes on from what was seen, right or wrong: the example errs in seeing alone.
        parts = misseen(parts, slips.rng, slips.reasoning if thinking else slips.answer)
    if not thinking:
        return describe(parts)
    lines = [
        f"{place}: {' '.join(shape) if shape else NOTHING}"
        for place, shape in enumerate(parts, start=1)
    ]
    number = NUMBERS[sum(shape is not None for shape in parts)]
    return "\n".join([*lines, f"= {number}", f"</think>\n\n{describe(parts)}"])


def misseen(parts: Parts, rng: np.random.Generator, rate: float) -> Parts:
    """What is shown with mistakes in it.

    rate: how often a shape has another colour or form than its own, and how often a shape is left
    out or invented.
    """
    seen = list(parts)
    for place, shape in enumerate(seen):
        if shape is None or rng.random() >= rate:
            continue
        if rng.random() < 0.5:
            seen[place] = shape._replace(colour=another(rng, tuple(COLOURS), shape.colour))
        else:
            seen[place] = shape._replace(form=another(rng, FORMS, shape.form))
    if rng.random() < rate:
        place = int(rng.integers(len(seen)))
        if seen[place] is None:
            seen[place] = any_shape(rng)
        # A description tells of as many shapes as there may be.
        elif sum(shape is not None for shape in seen) > min(NUMBERS):
            seen[place] = None
    return tuple(seen)


def another(rng: np.random.Generator, choices: Sequence[Choice], one: Choice) -> Choice:
    """Any of the choices but this one."""
    others = [choice for choice in choices if choice != one]
    return others[rng.integers(len(others))]
