"""What a checkpoint holds beside the learner's own state, written and read back in one place."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rl.launch.metrics import Progress
from rl.loop.interfaces import Learner, Scorer
from rl.loop.loop import TrainingLoop
from rl.run.curves import draw_curves
from rl.run.directory import RunDirectory
from rl.run.finished import FinishedGroups
from rl.run.threads import entered_in_thread, in_thread
from rl.system.resident import give_back_freed_memory


class StatefulScorer(Scorer, Protocol):
    @property
    def state(self) -> Mapping[str, Any]: ...

    def load(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class RunState:
    directory: RunDirectory
    loop: TrainingLoop
    learner: Learner
    scorer: StatefulScorer
    finished: FinishedGroups
    progress: Progress
    before: Mapping[str, Any]
    """Held-out figures from before the first step."""
    keep_last: int
    saved: int
    """Step of the newest checkpoint; 0 without any."""

    def load(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `save` wrote; `progress` and `before` were read before this was made."""
        self.scorer.load(stored["scorer"])
        self.loop.group_filter.load(stored["group_filter"])
        # Runs that older versions began have neither, and count from here.
        self.loop.choice_prices.load(stored.get("choice_prices", self.loop.choice_prices.state))
        self.loop.accounting.load(stored.get("accounting", self.loop.accounting.state))

    async def save(self, step: int) -> dict[str, Any]:
        """Write the checkpoint of `step`, which is the loop's version; returns the group counts.

        Raises RuntimeError, and writes nothing, where the groups do not add up.
        """
        counts = self.loop.accounting.check()
        await in_thread(draw_curves, self.directory)
        # A picture and a table of all steps have come and gone, a few tens of megabytes each time.
        await in_thread(give_back_freed_memory)
        # Before the checkpoint, which is then never without the groups that wait for it.
        await self.finished.start(step)
        state = {
            "progress": dataclasses.asdict(self.progress),
            "before": self.before,
            "scorer": self.scorer.state,
            "group_filter": self.loop.group_filter.state,
            "choice_prices": self.loop.choice_prices.state,
            "accounting": self.loop.accounting.state,
        }
        checkpoints = self.directory.checkpoints
        async with entered_in_thread(checkpoints.writer(step, state, self.keep_last)) as path:
            await self.learner.save(path)
        self.saved = step
        self.finished.prune(checkpoints.steps())
        return counts
