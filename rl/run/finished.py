"""Finished groups that wait for their update, on disk so that a crash does not lose them.

    finished/step_000050.jsonl      what a run that resumes from the checkpoint of step 50 may use:
                                    first all that was finished and not trained when it was saved,
                                    then, appended, what finished after it

Only what versions up to the checkpoint's sampled is written: weights of later versions are gone
after a crash, and what they sampled with them. So of the many steps between two checkpoints only
the first one or few write anything. A line counts once it is whole (rl/run/jsonl.py).

    skipped/step_000012.jsonl       the groups of a step whose update was not taken
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.loop.accounting import FinishedPlace
from rl.loop.stages import (
    Choice,
    Claimed,
    Failure,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    ScoredGroup,
    Trajectory,
)
from rl.run.files import sync_to_disk
from rl.run.jsonl import Journal, Record, write_records
from rl.run.threads import in_thread


class FinishedGroups:
    """Implements rl.loop.accounting.FinishedStore for one run."""

    def __init__(self, directory: Path, step: int) -> None:
        """directory: `finished/` of the run. step: of the checkpoint that it goes on from."""
        self._directory = directory
        self._lock = Lock()
        self._step = step
        self._journal = Journal(self._path(step))
        # By step and place. A place may stand twice in the file, once written when the checkpoint
        # was saved and once as it finished in the same moment; both lines say the same.
        self._restored = {(r["step"], r["place"]): r for r in self._journal.records}
        self._held: dict[tuple[int, int], FinishedPlace] = {}

    def take(
        self, step: int, place: int, request: Callable[[int], RolloutRequest]
    ) -> FinishedPlace | None:
        record = self._restored.pop((step, place), None)
        if record is None:
            return None
        asked = request(len(record["dropped"]))
        # A prompt is not stored but drawn again. Where the data have changed meanwhile it is
        # another one, to which the stored answers are none; where the number of steps has, what was
        # left to the policy may now be forced, or the other way round (of which older records know
        # nothing).
        drawn = (asked.prompt.id, list(asked.prompt_token_ids), asked.is_pair)
        if drawn != (record["prompt"], record["tokens"], record.get("is_pair", asked.is_pair)):
            return None
        finished = from_record(record, asked)
        self._held[step, place] = finished
        return finished

    async def add(self, finished: FinishedPlace) -> None:
        self._held[finished.step, finished.place] = finished
        if last_version(finished) <= self._step:
            await in_thread(self._write, self._journal, [finished])

    def release(self, step: int) -> None:
        for key in [key for key in self._held if key[0] == step]:
            del self._held[key]

    async def start(self, step: int) -> None:
        """Begin the file of the checkpoint of `step`, which is complete once this returns."""
        # Both at once and before anything is awaited: what finishes from now on goes to the new
        # file by itself, and what finished before is held.
        before, held = self._journal, list(self._held.values())
        path = self._path(step)
        if step != self._step:
            path.unlink(missing_ok=True)
            self._step, self._journal = step, Journal(path)
            await in_thread(self._write, self._journal, held)
            await in_thread(sync_to_disk, path)
            with self._lock:
                before.close()

    def prune(self, steps: Iterable[int]) -> None:
        """Delete the files of checkpoints that are gone. steps: those that are there."""
        kept = {self._path(step).name for step in [*steps, self._step]}
        for path in self._directory.glob("step_*.jsonl"):
            if path.name not in kept:
                path.unlink()

    def close(self) -> None:
        with self._lock:
            self._journal.close()

    def _path(self, step: int) -> Path:
        return self._directory / f"step_{step:06d}.jsonl"

    def _write(self, journal: Journal, places: Iterable[FinishedPlace]) -> None:
        # Encoded outside the lock, which only keeps the lines of two threads apart.
        records = [to_record(finished) for finished in places]
        with self._lock:
            # A group that finished while a checkpoint was begun may come too late for the file of
            # the one before, which nothing needs any more.
            if not journal.is_closed:
                for record in records:
                    journal.add(record)


def write_skipped(
    directory: Path,
    step: int,
    why: str,
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
) -> Path:
    """Keep the samples of a step (1-based) that was skipped, for a person to look into.

    A line a group: what FinishedGroups writes, with `why`, `advantages` and the prompt's
    `messages`.
    """
    path = directory / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for place, (scored, of_group) in enumerate(zip(groups, advantages, strict=True)):
        messages = json.loads(json.dumps(scored.group.request.prompt.messages, default=dict))
        record = {"why": why, "advantages": list(of_group), "messages": messages}
        records.append(record | to_record(FinishedPlace(step - 1, place, scored)))
    write_records(path, records)
    return path


def forget_groups(directory: Path, step: int | None) -> None:
    """Delete the files of steps after `step`, or all of them where it is None."""
    for path in directory.glob("step_*.jsonl"):
        match = re.fullmatch(r"step_(\d{6,})\.jsonl", path.name)
        if match and (step is None or int(match[1]) > step):
            path.unlink()


def last_version(finished: FinishedPlace) -> int:
    """The newest version that sampled any token of the group."""
    return max(t.versions[1] for t in finished.scored.group.trajectories)


# One line of a file. Arrays are base64 of little-endian bytes: nothing in it is code, as it could
# be in a pickle.


def to_record(finished: FinishedPlace) -> Record:
    group, scores = finished.scored.group, finished.scored.scores
    return {
        "step": finished.step,
        "place": finished.place,
        "prompt": group.request.prompt.id,
        "tokens": list(group.request.prompt_token_ids),
        "is_pair": group.request.is_pair,
        "dropped": list(finished.dropped),
        "spreads": list(finished.spreads),
        "learnt": dict(finished.learnt),
        "engine": group.engine,
        "media_digests": list(group.media_digests),
        "trajectories": [_trajectory_record(trajectory) for trajectory in group.trajectories],
        "scores": [_score_record(score) for score in scores],
    }


def from_record(record: Record, request: RolloutRequest) -> FinishedPlace:
    """What `to_record` was given; request: of the group, which is drawn again."""
    group = RolloutGroup(
        request,
        tuple(_trajectory(stored) for stored in record["trajectories"]),
        record["engine"],
        tuple(record["media_digests"]),
    )
    scored = ScoredGroup(group, tuple(_score(stored) for stored in record["scores"]))
    dropped, spreads = tuple(record["dropped"]), tuple(record["spreads"])
    # Files that older versions began have no "learnt".
    learnt = record.get("learnt", {})
    return FinishedPlace(record["step"], record["place"], scored, dropped, spreads, learnt)


def _trajectory_record(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "token_ids": _packed(trajectory.token_ids, "<i4"),
        "loss_mask": _packed(np.packbits(trajectory.loss_mask), "u1"),
        "rollout_logprobs": _packed(trajectory.rollout_logprobs, "<f4"),
        "versions": list(trajectory.versions),
        "finish_reason": trajectory.finish_reason,
        "text": trajectory.text,
        "reasoning": trajectory.reasoning,
        "answer": trajectory.answer,
        "end_token": trajectory.end_token,
        "choice": None if trajectory.choice is None else vars(trajectory.choice),
    }


def _trajectory(record: Record) -> Trajectory:
    token_ids = _unpacked(record["token_ids"], "<i4")
    bits = np.unpackbits(_unpacked(record["loss_mask"], "u1"), count=len(token_ids))
    first, last = record["versions"]
    return Trajectory(
        token_ids=token_ids,
        loss_mask=bits.astype(np.bool_),
        rollout_logprobs=_unpacked(record["rollout_logprobs"], "<f4"),
        versions=(first, last),
        finish_reason=record["finish_reason"],
        text=record["text"],
        reasoning=record["reasoning"],
        answer=record["answer"],
        end_token=record["end_token"],
        # Older versions had no mode that chooses.
        choice=Choice(**record["choice"]) if record.get("choice") else None,
    )


def _score_record(score: Score) -> dict[str, Any]:
    return {
        "reward": score.reward,
        "parts": dict(score.parts),
        "route": None if score.route is None else str(score.route),
        "failure": None if score.failure is None else vars(score.failure),
        "preference_answer": score.preference_answer,
        "claimed": None if score.claimed is None else vars(score.claimed),
    }


def _score(record: Record) -> Score:
    return Score(
        record["reward"],
        record["parts"],
        None if record["route"] is None else Route.parse(record["route"]),
        None if record["failure"] is None else Failure(**record["failure"]),
        record["preference_answer"],
        None if record["claimed"] is None else Claimed(**record["claimed"]),
    )


def _packed(array: NDArray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def _unpacked(text: str, kind: str) -> NDArray:
    return np.frombuffer(base64.b64decode(text), kind)
