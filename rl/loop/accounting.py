"""Which state every drawn group is in: trained, dropped for a stated reason, or in flight.

    drawn = trained + dropped + in flight

A group is drawn when it is asked for under its id (`step/place/attempt`) and is in flight until it
is dropped or its step is settled. A group that is asked for again after a crash has the same id and
is the same group, so a run that was interrupted counts what an uninterrupted one counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rl.loop.stages import RolloutRequest, ScoredGroup

SKIPPED = "skipped"
"""Why the groups of a step are dropped whose update was not taken (rl/loop/step_guard.py)."""


@dataclass(frozen=True)
class FinishedPlace:
    """What came of one place of a step: the group to train, and those that were dropped for it."""

    step: int
    """Steps done before the one that trains it, as in its group's id."""
    place: int
    scored: ScoredGroup
    dropped: tuple[str, ...] = ()
    """Reasons, in the order of the attempts."""
    spreads: tuple[float, ...] = ()
    """Of all attempts that have one, for the running mean of GroupFilter."""
    learnt: Mapping[str, float] = field(default_factory=dict)
    """What the scorer learnt from all attempts (Scorer.learnt)."""

    @property
    def group_ids(self) -> list[str]:
        """Of all attempts; the last one is the group to train."""
        return [f"{self.step}/{self.place}/{index}" for index in range(len(self.dropped) + 1)]


class FinishedStore(Protocol):
    """Keeps finished groups until they are trained, so that a crash does not lose them."""

    def take(
        self, step: int, place: int, request: Callable[[int], RolloutRequest]
    ) -> FinishedPlace | None:
        """What an earlier process finished at this place, or None; request: by attempt."""
        ...

    async def add(self, finished: FinishedPlace) -> None:
        """Return when a crash no longer loses it."""
        ...

    def release(self, step: int) -> None:
        """The step is trained, so its groups are no longer waited for."""
        ...


class Accounting:
    """The state of every group of a run. Whatever does not add up is a fault of ours."""

    def __init__(self) -> None:
        # Of steps that are settled, whose ids are no longer needed: a long run has millions.
        self._trained = 0
        self._dropped: Counter[str] = Counter()
        self._in_flight: defaultdict[int, set[str]] = defaultdict(set)
        self._dropped_of_step: defaultdict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
        self._drawn_of_step: Counter[int] = Counter()
        self._drawn = 0

    def draw(self, step: int, group_id: str) -> None:
        """A group is asked for; raises RuntimeError if it is in flight already."""
        if group_id in self._in_flight[step]:
            raise RuntimeError(f"group {group_id} was drawn twice while it was in flight")
        self._in_flight[step].add(group_id)
        self._drawn_of_step[step] += 1

    def drop(self, step: int, group_id: str, mode: str, reason: str) -> None:
        """A group is given up; raises RuntimeError if it was not in flight."""
        try:
            self._in_flight[step].remove(group_id)
        except KeyError:
            raise RuntimeError(f"group {group_id} was dropped and was not in flight") from None
        self._dropped_of_step[step][mode, reason] += 1

    def restore(self, finished: FinishedPlace) -> None:
        """Count a place that an earlier process finished as that process did."""
        mode = finished.scored.group.request.mode
        for group_id in finished.group_ids:
            self.draw(finished.step, group_id)
        for group_id, reason in zip(finished.group_ids, finished.dropped, strict=False):
            self.drop(finished.step, group_id, mode, reason)

    def settle(
        self, step: int, trained: Iterable[str], *, is_skipped: bool = False
    ) -> Counter[tuple[str, str]]:
        """End a step whose groups went into an update, or were all skipped with it.

        Returns what was dropped for it, by mode and reason. Raises RuntimeError unless `trained`
        are exactly the groups in flight of the step.
        """
        ids = list(trained)
        in_flight = self._in_flight.pop(step, set())
        if len(ids) != len(set(ids)) or set(ids) != in_flight:
            differing = sorted(set(ids) ^ in_flight) or ids
            raise RuntimeError(
                f"step {step + 1} trains other groups than it has in flight: {differing[:5]}"
            )
        dropped = self._dropped_of_step.pop(step, Counter())
        self._drawn += self._drawn_of_step.pop(step, 0)
        for (_, reason), count in dropped.items():
            self._dropped[reason] += count
        if is_skipped:
            self._dropped[SKIPPED] += len(ids)
        else:
            self._trained += len(ids)
        return dropped

    def forget(self, step: int) -> None:
        """A step that is not settled is begun anew: its groups will be drawn again."""
        for by_step in (self._in_flight, self._dropped_of_step, self._drawn_of_step):
            by_step.pop(step, None)

    def counts(self) -> dict[str, Any]:
        """`drawn`, `trained`, `dropped` by reason and `in_flight`, all steps together."""
        dropped = Counter(self._dropped)
        for of_step in self._dropped_of_step.values():
            for (_, reason), count in of_step.items():
                dropped[reason] += count
        return {
            "drawn": self._drawn + self._drawn_of_step.total(),
            "trained": self._trained,
            "dropped": dict(sorted(dropped.items())),
            "in_flight": sum(map(len, self._in_flight.values())),
        }

    def check(self) -> dict[str, Any]:
        """The counts; raises RuntimeError if a group is in no state or in two."""
        counts = self.counts()
        ended = counts["trained"] + sum(counts["dropped"].values())
        if counts["drawn"] != ended + counts["in_flight"]:
            raise RuntimeError(f"groups do not add up: {in_words(counts)}")
        return counts

    @property
    def state(self) -> dict[str, Any]:
        """The settled steps, for a checkpoint; a resumed run draws the groups of the others."""
        return {"drawn": self._drawn, "trained": self._trained, "dropped": dict(self._dropped)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._drawn, self._trained = state["drawn"], state["trained"]
        self._dropped = Counter(state["dropped"])


def in_words(counts: Mapping[str, Any]) -> str:
    """Such as `drawn 70 = trained 64 + dropped 4 (timeout 3, unscored 1) + in flight 2`."""
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items())
    total = sum(counts["dropped"].values())
    return (
        f"drawn {counts['drawn']:,} = trained {counts['trained']:,} + dropped {total:,}"
        f"{f' ({dropped})' if dropped else ''} + in flight {counts['in_flight']:,}"
    )
