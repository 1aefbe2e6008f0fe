"""Directories that one process owns, and the one of a run with what lies in it.

config.yaml     the resolved config            checkpoints/    rl/run/checkpoints.py
metrics.jsonl   one object a step              ledger/         rl/run/ledger.py
summary.json    before and after               tensorboard/    rl/run/sinks.py
recipe.json     what the config came from      events.jsonl    faults and what became of them
curves.png      (choice.png) rl/run/curves.py  run.html        the page of rl/show
evaluations/    rl/evaluate                    samples/        its pages of steps
finished/       rl/run/finished.py             logs/           what the run's processes print
skipped/        rl/run/finished.py             .lock           held by the driver
"""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from rl.config.keys import RecipeError
from rl.config.recipe import dotted_leaves, dump, read_config, read_tree
from rl.config.run import Config
from rl.run.checkpoints import Checkpoints
from rl.run.files import write_text
from rl.run.finished import forget_groups
from rl.run.jsonl import read_records, write_records

MAY_DIFFER_ON_RESUME = (
    # How far the run goes, and what is kept and shown of it. When it is measured, but not how: the
    # accuracy before training was, and the gain would be the difference of two measures.
    *("run", "resume", "steps", "log", "eval.every", "checkpoint", "resources", "sync", "align"),
    # What ends a run, not what it computes until then.
    "guard",
    # What becomes of a fault.
    *("recovery", "rollout.min_workers", "rollout.max_workers"),
    # How many processes share the learner's work, not what it computes (policy/learner/reshard.py).
    *("policy.ranks", "policy.zero_stage"),
    # How the engines run, not what they sample.
    *("rollout.workers", "rollout.tensor_parallel", "rollout.engine", "rollout.sleep"),
    *("rollout.start_timeout_s", "rollout.group_timeout_s"),
    # How fast rewards are computed, not what they are.
    *("reward.workers", "reward.timeout_s", "reward.memory_mib"),
    *(f"reward.preference.{key}" for key in ("actors", "cpus", "gpus", "deadline_s", "engine")),
)
MAX_NAMED = 5
"""Settings that a refusal names; the others are counted."""

GLANCE_S = 0.3
"""Seconds for which a directory must be held by another before it counts as in use."""
# Before the model is read its size is not known; this refuses a disk that is all but full.
NEEDED_BYTES = 256 * 2**20


class OwnedDirectory:
    """A directory that one process at a time writes and that belongs to one set of settings.

    A run, an RLAIF-V pass, an evaluation and a sweep each have one. Reading needs no lock.
    """

    def __init__(self, root: Path, name_another: str) -> None:
        """name_another: what a person types to take another directory, such as `run=PATH`."""
        self.root = root
        self._name_another = name_another
        # The kernel frees a file lock when its process ends, by kill -9 too, so no crash leaves a
        # directory that must be unlocked by hand.
        self._lock = FileLock(root / ".lock")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Own the directory, made if need be, for the block; raises ValueError if it cannot be."""
        path = self.root / ".lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Who asks for the owner holds the lock for a moment, and is no reason to refuse.
            self._lock.acquire(timeout=GLANCE_S, poll_interval=GLANCE_S / 10)
        except OSError as error:
            why = f"cannot be written ({error.strerror}: {error.filename}); "
            if isinstance(error, Timeout):
                owner = path.read_text(encoding="utf-8").strip() or "another process"
                why = f"is in use by {owner}; wait for it to end, stop it, or "
            another = f"name another directory with {self._name_another}"
            raise ValueError(f"{self.root} {why}{another}") from error
        try:
            # Written into the lock's own file, not renamed over it: a new file would not be locked.
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
            yield
        finally:
            self._lock.release()

    def owner(self) -> str | None:
        """Who holds the directory now, such as `process 7 on node-1`; None if nobody does."""
        path = self.root / ".lock"
        try:
            with path.open("rb") as file:
                # Shared, and freed with the file: two who ask do not see each other.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return path.read_text(encoding="utf-8").strip() or "another process"
        return None

    def refuse_other_settings(
        self,
        stored: Mapping[str, Any],
        asked: Mapping[str, Any],
        may_differ: Sequence[str] = (),
        *,
        content: str,
        advice: str,
    ) -> None:
        """Raise ValueError if what lies here was made with other settings, and name what differs.

        Such as `a.b was 1, is 2; c was 3, is not set; and 4 more`. may_differ: keys that are left
        out, each with all beneath it. content: what lies here.
        """
        old, new = dotted_leaves(stored), dotted_leaves(asked)
        # A key set to None and a key that is absent differ, so get(key) alone does not tell.
        differences = [
            f"{key} was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
            for key in old | new
            if not any(f"{key}.".startswith(f"{free}.") for free in may_differ)
            and old.get(key, "not set") != new.get(key, "not set")
        ]
        if (more := len(differences) - MAX_NAMED) > 0:
            differences[MAX_NAMED:] = [f"and {more} more"]
        if differences:
            raise ValueError(f"{self.root} {content}: {'; '.join(differences)}. {advice}")


class RunDirectory(OwnedDirectory):
    """One run on disk. Reading needs no lock; `open` takes it and allows writing."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "run=PATH")
        self.name = root.resolve().name
        self.config_path = root / "config.yaml"
        self.metrics_path = root / "metrics.jsonl"
        self.ledger_path = root / "ledger"
        self.summary_path = root / "summary.json"
        self.recipe_path = root / "recipe.json"
        self.finished_path = root / "finished"
        self.skipped_path = root / "skipped"
        self.events_path = root / "events.jsonl"
        self.checkpoints = Checkpoints(root / "checkpoints")

    @contextmanager
    def open(self, config: Config) -> Iterator[Self]:
        """Own the directory for the block and write config.yaml, or raise ValueError.

        Refused are: a path that cannot be written, a disk that is all but full, a directory that
        another driver holds, a run that exists where `resume` is `never`, and a run of another
        config. What a killed driver left half-written in checkpoints/ is removed.
        """
        with self.hold():
            self.check_room(NEEDED_BYTES)
            self.refuse_another(config)
            # The newest settings are kept: the run goes on under them.
            write_text(self.config_path, dump(config))
            # Only now: without the lock, a partial checkpoint may be one that is being written.
            self.checkpoints.remove_partials()
            yield self

    def truncate_to(self, step: int) -> None:
        """Forget every step after `step`: they will be made again, and must not appear twice.

        Metric lines, ledger files, finished groups and the summary go; later checkpoints, which can
        only be damaged ones, are set aside as `*.damaged`. Only the process that owns the run may
        call this.
        """
        # Before a step has left anything, another configuration may go on here, whose groups would
        # be others.
        forget_groups(self.finished_path, step if self.has_begun() else None)
        forget_groups(self.skipped_path, step)
        # The summary counts steps that will run a second time, so it is wrong until the run ends
        # again.
        self.summary_path.unlink(missing_ok=True)
        if self.metrics_path.exists():
            lines = read_records(self.metrics_path)
            write_records(self.metrics_path, [line for line in lines if line["step"] <= step])
        for path in self.ledger_path.glob("*step_*"):
            # What starts with a dot was half-written when the driver was killed.
            if path.name[0] == "." or int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        self.checkpoints.set_aside_after(step)

    def check_room(self, needed_bytes: int) -> None:
        """Raise ValueError if the disk has less than `needed_bytes` free."""
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes:
            raise ValueError(
                f"the disk of {self.root} has {free / 2**30:.2f} GiB free and the run needs "
                f"{needed_bytes / 2**30:.2f} GiB; make room, lower checkpoint.keep_last, or name a "
                "directory on another disk with run=PATH"
            )

    def refuse_another(self, config: Config) -> None:
        """Raise ValueError if the directory holds a run that this configuration cannot go on with.

        The sections of MAY_DIFFER_ON_RESUME may differ, and everything before the first step: a
        command that was mended must not have to name another directory.
        """
        if not self.config_path.exists() or not self.has_begun():
            return
        if config.resume == "never":
            raise ValueError(
                f"{self.root} already holds a run and resume is never; name another with run=PATH, "
                "or continue it with resume=auto"
            )
        stored = self.stored_config()
        advice = (
            "Start this one under another run=NAME, or give the old values to continue "
            f"(only {', '.join(MAY_DIFFER_ON_RESUME)} may change on a resume)"
        )
        if config.eval != stored.eval:
            advice += (
                ". What was measured before training is compared with the end, so both have the "
                f"same eval; `python -m rl.evaluate run={self.root} eval.temperature=0`, say, "
                "measures a checkpoint otherwise"
            )
        self.refuse_other_settings(
            stored.model_dump(mode="json"),
            config.model_dump(mode="json"),
            MAY_DIFFER_ON_RESUME,
            content="holds a run of another config",
            advice=advice,
        )

    def has_begun(self) -> bool:
        """Whether a step has left its metrics or a checkpoint here."""
        has_metrics = self.metrics_path.exists() and self.metrics_path.stat().st_size > 0
        return has_metrics or bool(self.checkpoints.steps())

    def modes(self) -> list[str]:
        """The modes in the config's order, in which all pictures and pages colour them."""
        # Whoever needs more of a config than its colours refuses one that cannot be read.
        with suppress(RecipeError, FileNotFoundError):
            return [str(mode) for mode in read_tree(self.config_path).get("modes") or {}]
        return []

    def stored_config(self) -> Config:
        """What config.yaml holds; raises ValueError if it is not of this version's form."""
        try:
            return read_config(self.config_path)
        except RecipeError as error:
            raise ValueError(
                f"{self.config_path} cannot be read as a config, so the run cannot be continued: "
                f"{error}; start under another run=NAME"
            ) from error
