"""The task of the built-in policy that reconstructs: to say what stood in a cell of a form."""

from __future__ import annotations

from typing import Any, ClassVar

from policy.builtin.sight.visual_task import VisualTask
from policy.builtin.warmup import Question
from rl.config.data import SourceConfig
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures.forms import UNKNOWN, WIDE, FormsScene, rows_like

TASK_NAME = "forms"
# What a warmed policy is right on now and then, as a run's `data.settings`.
TASK: dict[str, Any] = {
    # As many cells are masked as in any study, and more and fewer.
    "masked": [0.1, 0.8],
    "wording": "terse",
    "jitter": 0.75,
    "noise": [0.1, 0.3],
}
RULE_SIGNS = "+>="
"""How an example calls the rule of each row."""
GUESSES = 0.3
"""How often an example makes up a digit where nothing tells it, so that training may strengthen
either habit: of what a policy never does it cannot find out what it brings."""

ASKED = [TASK, RULE_SIGNS, GUESSES]
"""All that decides the weights of a policy here."""


def one_form(**changes: Any) -> SourceConfig:
    """The task in one picture. changes: of its settings."""
    return SourceConfig(kind="visual", path=TASK_NAME, settings=TASK | changes)


class FormTask(VisualTask):
    """Forms with masked cells."""

    task_name = TASK_NAME
    max_response_tokens: ClassVar = {False: 4, True: 22}

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.scene, thinking, self.slips)


def worked_example(scene: FormsScene, thinking: bool, slips: Slips | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first line is the row as it is seen, with the sign of its rule and the cell
    that is asked for in brackets, and the second is the row with all that follows from it:
    `+3[?]7\\n3[4]7\\n`, closed by `</think>`, a blank line and the answer. Without slips the answer
    is `?` where nothing tells.
    """
    number, asked = divmod(scene.place, WIDE)
    digits, places = list(scene.digits), range(WIDE * number, WIDE * number + WIDE)
    if slips and thinking:
        # Reasoning goes on from what was read, right or wrong.
        for place in places:
            if slips.rng.random() < slips.reasoning:
                digits[place] = int(slips.rng.integers(10))
    rows = rows_like(tuple(digits), scene.masked, number)
    if slips and not rows:
        # What was misread breaks the rule, and reasoning goes on somehow.
        rows = [tuple(slips.rng.integers(10, size=WIDE))]
    elif slips and slips.rng.random() < GUESSES:
        rows = [rows[slips.rng.integers(len(rows))]]
    possible = [{row[column] for row in rows} for column in range(WIDE)]
    seen = [UNKNOWN if place in scene.masked else str(digits[place]) for place in places]
    # A cell that is seen is as it is read, whatever its rule would have there.
    filled = [
        str(*values) if sign == UNKNOWN and len(values) == 1 else sign
        for sign, values in zip(seen, possible, strict=True)
    ]
    answer = filled[asked]
    if not thinking:
        if slips and answer != UNKNOWN:
            answer = str(min(9, slips.maybe(int(answer), slips.answer, 2)))
        return answer
    lines = []
    for row in (seen, filled):
        row[asked] = f"[{row[asked]}]"
        lines.append("".join(row))
    return f"{RULE_SIGNS[number]}{lines[0]}\n{lines[1]}\n</think>\n\n{answer}"
