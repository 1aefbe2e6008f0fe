"""The task of the built-in policies that see: to add the digits of a picture or a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from policy.builtin.sight.visual_task import VisualTask, mixed
from policy.builtin.warmup import Question
from rl.config.data import SourceConfig
from rl.data.media.names import RenderedMedium
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures.digits import DigitsScene

TASK_NAME = "digits"
# What a warmed policy is right on now and then, as a run's `data.settings`.
TASK: dict[str, Any] = {
    "wording": "terse",
    # A digit has 28 x 28 pixels of its own: one visual token of the Qwen policy.
    "width": 84,
    "height": 28,
    "jitter": 0.75,
    "noise": [0.1, 0.3],
}
# Ways to be shown the digits, as a run's `data.mix`: weights, and what differs from TASK.
WAYS: dict[str, dict[str, Any]] = {
    "picture": {"weight": 2},
    "pictures": {"weight": 1, "settings": {"shown": "apart"}},
    # Six frames at VIDEO's rate, two of each digit.
    "video": {"weight": 2, "settings": {"shown": "in_turn", "seconds_each": [0.667, 0.667]}},
    # Over before a second frame is taken. Held out alone: there is nothing to learn from it.
    "burst": {
        "weight": 0,
        "heldout_weight": 0.5,
        "settings": {"shown": "in_turn", "seconds_each": [0.15, 0.3]},
    },
}
VIDEO = {"fps": 3, "max_frames": 6, "frames_per_group": 6}
"""A run's `data.video`: one package of up to six frames."""


def one_picture(**changes: Any) -> SourceConfig:
    """The task in one picture. changes: of its settings."""
    return SourceConfig(kind="visual", path=TASK_NAME, settings=TASK | changes)


def all_ways(frames: int = 6, **changes: Any) -> SourceConfig:
    """The task in pictures and videos. frames: of a package. changes: of all ways' settings."""
    return mixed(TASK_NAME, TASK, WAYS, VIDEO | {"frames_per_group": frames}, changes)


class PictureTask(VisualTask):
    """Digits in pictures and videos."""

    task_name = TASK_NAME
    max_response_tokens: ClassVar = {False: 6, True: 30}

    def asked(self, scene: DigitsScene, media: tuple[RenderedMedium, ...]) -> Question:
        return Question(scene.question, scene.answer, scene.digits, media, scene)

    def worked_example(self, question: Question, thinking: bool) -> str:
        return worked_example(question.addends, thinking, self.slips)


def worked_example(digits: Sequence[int], thinking: bool, slips: Slips | None = None) -> str:
    """Return a response as the policy should write it, after its generation prompt.

    With thinking, the first line is what the picture shows, and each further line adds one digit
    to the sum so far, zero-padded so that the two stand side by side: for 3, 7 and 2
    `372\\n7+03=10\\n2+10=12\\n`, closed by `</think>`, a blank line and the answer.
    """
    if not thinking:
        total = sum(digits)
        if slips:
            total = slips.maybe(total, slips.answer, 2)
        return f"{total:02d}"
    if slips:
        # Reasoning goes on from what was read, right or wrong: the example errs in seeing alone.
        # Without such errors a policy would be sure of all that it sees.
        rng, rate = slips.rng, slips.reasoning
        digits = [int(rng.integers(10)) if rng.random() < rate else digit for digit in digits]
    lines, total = ["".join(map(str, digits))], digits[0]
    for digit in digits[1:]:
        lines.append(f"{digit}+{total:02d}={total + digit:02d}")
        total += digit
    return "\n".join([*lines, f"</think>\n\n{total:02d}"])
