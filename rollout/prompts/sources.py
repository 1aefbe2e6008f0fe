"""Where prompts come from: procedural tasks in text or pictures, or a data set.

A source is two numbered rows of prompts, for training and held out, and never shows a held-out
question in training. It is a pure function of its arguments; order is stream.py's part.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from rl.config.data import PromptsConfig
from rl.data.media.names import shortened
from rl.loop.stages import Prompt
from rollout.prompts.dataset import DatasetSource, Quarantined
from rollout.prompts.procedural import ChainSumSource, ReasoningGymSource, VisualSource


class Source(Protocol):
    @property
    def train_count(self) -> int | None:
        """Training prompts; None where they never end."""
        ...

    @property
    def heldout_count(self) -> int | None: ...

    @property
    def quarantined(self) -> Sequence[Quarantined]:
        """Rows of both splits that are left out: they cannot be shown, asked or scored."""
        ...

    @property
    def shows_media(self) -> bool:
        """Whether some prompts have images or videos."""
        ...

    def train(self, index: int) -> Prompt: ...

    def heldout(self, index: int) -> Prompt: ...

    def rows_for(self, mode: str) -> Collection[int] | None:
        """Indices of training prompts that may be asked in `mode`; None where all may."""
        ...

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Quarantine prompts by id, each with its reason; raises ValueError if none are left."""
        ...


def open_source(
    config: PromptsConfig,
    seed: int,
    modes: Collection[str],
    unrewarded: Collection[str] = (),
    name: str = "",
) -> Source:
    """Return the source that `data` names; raises ValueError for data that cannot be used.

    modes: the names a row may be pinned to. unrewarded: tasks whose reward is turned off; their
    prompts are never asked, since nothing could score the answers. name: of the source in a
    mixture.
    """
    try:
        if config.kind == "chain_sum":
            return ChainSumSource(config, seed, unrewarded)
        if config.kind == "reasoning_gym":
            return ReasoningGymSource(config, seed)
        if config.kind == "visual":
            return VisualSource(config, seed, name)
        return DatasetSource(config, modes, unrewarded, name)
    except ValueError as error:
        # Cells and libraries say anything, and an error is read on a screen.
        where = f"data.mix.{name}: " if name else ""
        raise ValueError(shortened(f"{where}{error}")) from error
