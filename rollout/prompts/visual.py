"""Prompts without end that show a picture: the procedural tasks of rl/data/tasks/pictures.

A prompt names its picture; whoever needs the pixels paints them (rl/data/media/store.py).
"""

from __future__ import annotations

from rl.config.run import SourceConfig
from rl.data.media.names import RenderedImage
from rl.data.tasks.pictures import TASKS, ask, read_settings
from rl.loop.stages import Prompt
from rollout.prompts.conversation import conversation
from rollout.prompts.procedural import HELDOUT_SEED, Procedural
from rollout.prompts.row_media import place_media


class VisualSource(Procedural):
    """One task of rl/data/tasks/pictures, named by `path`; `settings` are the task's own."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        if config.path is None:
            raise ValueError(f"data.path must name a visual task: {', '.join(TASKS)}")
        self._name = config.path
        self._settings = read_settings(self._name, config.settings)
        self._task = config.task
        self._system_prompt = config.system_prompt
        self._seed = seed

    def train(self, index: int) -> Prompt:
        return self._prompt("train", self._seed, index)

    def heldout(self, index: int) -> Prompt:
        return self._prompt("heldout", HELDOUT_SEED, index)

    def _prompt(self, split: str, seed: int, index: int) -> Prompt:
        is_heldout = split == "heldout"
        question, answer, task = ask(self._name, self._settings, seed, index, is_heldout)
        picture = RenderedImage(self._name, seed, index, is_heldout, place=0)
        messages, media = place_media(
            conversation(question, self._system_prompt), [picture], has_tags=False
        )
        # The task knows how its answers compare, unless the run says otherwise.
        task = task if self._task == "auto" else self._task
        return Prompt(f"{self._name}/{split}/{index}", messages, answer, task, media=media)
