"""Where prompts come from: the built-in task, reasoning-gym's procedural tasks, or a data set.

A source is two numbered rows of prompts, for training and held out, and never shows a held-out
question in training. It is a pure function of its arguments; order is rollout/prompts.py's part.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Protocol

from rl.chain_sum import question as chain_sum_question
from rl.config import SourceConfig
from rl.stages import Prompt

# The held-out prompts of a procedural task are the same whatever the run's seed, so that runs
# can be compared.
HELDOUT_SEED = 0


class Source(Protocol):
    @property
    def train_count(self) -> int | None:
        """Training prompts; None where they never end."""
        ...

    @property
    def heldout_count(self) -> int | None: ...

    def train(self, index: int) -> Prompt: ...

    def heldout(self, index: int) -> Prompt: ...

    def rows_for(self, mode: str) -> Collection[int] | None:
        """Indices of training prompts that may be asked in `mode`; None where all may."""
        ...


def open_source(config: SourceConfig, seed: int, modes: Collection[str]) -> Source:
    """Return the source that `data` names; raises ValueError for data that cannot be used.

    modes: the names a row may be pinned to.
    """
    if config.kind == "chain_sum":
        return ChainSumSource(config, seed)
    if config.kind == "reasoning_gym":
        return ReasoningGymSource(config, seed)
    from rollout.dataset_source import DatasetSource

    return DatasetSource(config, modes)


def conversation(question: str, system_prompt: str | None) -> tuple[Mapping[str, Any], ...]:
    """Return the chat messages of a question given as text."""
    asked = {"role": "user", "content": question}
    return (asked,) if system_prompt is None else (system_message(system_prompt), asked)


def system_message(text: str) -> Mapping[str, Any]:
    return {"role": "system", "content": text}


class _Procedural:
    """Any number of prompts, none of them pinned."""

    train_count = None
    heldout_count = None

    def rows_for(self, mode: str) -> None:
        return None


class ChainSumSource(_Procedural):
    """The built-in addition task (rl/chain_sum.py); `settings` takes `lengths`."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        if unknown := sorted(set(config.settings) - {"lengths"}):
            raise ValueError(f"data.settings of chain_sum takes only lengths, got {unknown}")
        self._settings = {key: tuple(value) for key, value in config.settings.items()}
        self._system_prompt = config.system_prompt
        self._seed = seed
        chain_sum_question(seed, 0, False, **self._settings)  # refuses lengths out of range

    def train(self, index: int) -> Prompt:
        return self._prompt(self._seed, index, heldout=False)

    def heldout(self, index: int) -> Prompt:
        return self._prompt(HELDOUT_SEED, index, heldout=True)

    def _prompt(self, seed: int, index: int, heldout: bool) -> Prompt:
        asked = chain_sum_question(seed, index, heldout, **self._settings)
        messages = conversation(asked.text, self._system_prompt)
        split = "heldout" if heldout else "train"
        return Prompt(f"chain_sum/{split}/{index}", messages, asked.answer)


class ReasoningGymSource(_Procedural):
    """A procedural task of the reasoning-gym library; `settings` are the task's own.

    The splits draw from one generator, and a hash of the question decides which of the two may
    ask it, so they cannot overlap even in a task with few questions.
    """

    HELDOUT_ONE_IN = 8
    MAX_TRIES = 1000
    """Draws for one prompt; a task that needs more has no question in the split."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        from reasoning_gym.factory import DATASETS, create_dataset

        self._name = config.path or ""
        if self._name not in DATASETS:
            near = difflib.get_close_matches(self._name, DATASETS, n=3) or sorted(DATASETS)[:10]
            raise ValueError(
                f"data.path must name one of reasoning-gym's {len(DATASETS)} tasks, got "
                f"{config.path!r}; such as {', '.join(near)}"
            )
        try:
            self._task = create_dataset(self._name, seed=0, **config.settings)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"data.settings do not suit reasoning-gym's {self._name}: {error}"
            ) from error
        self._system_prompt = config.system_prompt
        self._seed = seed

    def train(self, index: int) -> Prompt:
        return self._prompt("train", self._seed, index)

    def heldout(self, index: int) -> Prompt:
        return self._prompt("heldout", HELDOUT_SEED, index)

    def _prompt(self, split: str, seed: int, index: int) -> Prompt:
        for attempt in range(self.MAX_TRIES):
            # Some tasks seed numpy with the index, which takes no more than 32 bits.
            row = self._task[stable_hash(f"{split}/{seed}/{index}/{attempt}") >> 33]
            is_heldout = stable_hash(row["question"]) % self.HELDOUT_ONE_IN == 0
            if is_heldout == (split == "heldout"):
                messages = conversation(row["question"], self._system_prompt)
                return Prompt(f"{self._name}/{split}/{index}", messages, str(row["answer"]))
        raise ValueError(
            f"reasoning-gym's {self._name} has no {split} question in {self.MAX_TRIES} draws with "
            f"data.settings {self._settings_shown()}; widen the settings or take another task"
        )

    def _settings_shown(self) -> str:
        return str(vars(self._task.config))


def stable_hash(text: str) -> int:
    """64 bits that are the same in every process, unlike Python's own hash."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
