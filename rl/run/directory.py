"""The directory of a run: who owns it, which config it belongs to, and where things lie.

config.yaml     the resolved config            checkpoints/    rl/run/checkpoints.py
metrics.jsonl   one object a step              ledger/         rl/run/ledger.py
summary.json    before and after               tensorboard/    rl/run/sinks.py
curves.png      rl/launch/curves.py                   samples/        pages of rl/show
evaluations/    rl/evaluate                 .lock           held by the driver
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from rl.config.run import Config
from rl.run.checkpoints import Checkpoint, Checkpoints
from rl.run.directory_lock import DirectoryLock
from rl.run.files import write_text
from rl.run.setting_differences import setting_differences

MAY_DIFFER_ON_RESUME = (
    *("run", "resume", "steps", "log", "eval", "checkpoint", "resources", "sync", "align"),
    # How the engines run, not what they sample.
    *("rollout.workers", "rollout.tensor_parallel", "rollout.engine"),
    *("rollout.start_timeout_s", "rollout.group_timeout_s"),
    *("reward.workers", "reward.timeout_s", "reward.memory_mib"),
    *(f"reward.preference.{key}" for key in ("actors", "cpus", "gpus", "deadline_s", "engine")),
)

# Before the model is read its size is not known; this refuses a disk that is all but full.
NEEDED_BYTES = 256 * 2**20
# Per parameter: weights, AdamW's two moments in float32, master weights or none, the exported copy.
CHECKPOINT_BYTES = 16


class RunDirectory:
    """One run on disk. Reading needs no lock; `open` takes it and allows writing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = DirectoryLock(root)
        self._keep_last = 1
        self._checkpoints = Checkpoints(root / "checkpoints")

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def config_path(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def quarantine_path(self) -> Path:
        return self.root / "quarantine.jsonl"

    @property
    def ledger_path(self) -> Path:
        return self.root / "ledger"

    def open(self, config: Config, config_yaml: str, needed_bytes: int = 0) -> None:
        """Take the directory for this process and write config.yaml, or raise ValueError.

        Refused are: a path that cannot be written, a disk with less than `needed_bytes` free, a
        directory that another driver holds, a run that exists where `resume` is `never`, and a
        run of another config. The sections of MAY_DIFFER_ON_RESUME may change on a resume.
        What a killed driver left half-written in checkpoints/ is removed.
        """
        self._lock.acquire()
        try:
            self.check_room(needed_bytes)
            self.refuse_another(config)
            write_text(self.config_path, config_yaml)
            self._checkpoints.remove_partials()
        except BaseException:
            self.close()
            raise
        self._keep_last = config.checkpoint.keep_last

    def close(self) -> None:
        """Let another driver have the directory."""
        self._lock.release()

    def checkpoint_writer(
        self, step: int, progress: Mapping[str, Any]
    ) -> AbstractContextManager[Path]:
        """See Checkpoints.writer; `progress` comes back in the Checkpoint on resume."""
        assert self._lock.is_held, "open() the run directory before writing to it"
        return self._checkpoints.writer(step, progress, self._keep_last)

    def newest_checkpoint(self, note: Callable[[str], None]) -> Checkpoint | None:
        """See Checkpoints.newest."""
        return self._checkpoints.newest(note)

    def truncate_to(self, step: int) -> None:
        """Forget every step after `step`: they will be made again, and must not appear twice.

        Metric lines, ledger files and the summary go; later checkpoints, which can only be damaged
        ones, are set aside as `*.damaged`.
        """
        assert self._lock.is_held, "open() the run directory before writing to it"
        # It sums up steps that are made again.
        (self.root / "summary.json").unlink(missing_ok=True)
        if self.metrics_path.exists():
            lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.metrics_path, "".join(_lines_up_to(lines, step)))
        for path in self.ledger_path.glob("step_*.parquet"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        for partial in self.ledger_path.glob(".step_*"):
            partial.unlink()
        self._checkpoints.set_aside_after(step)

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

        The sections of MAY_DIFFER_ON_RESUME may differ.
        """
        if not self.config_path.exists() or not self._is_started():
            return
        if config.resume == "never":
            raise ValueError(
                f"{self.root} already holds a run and resume is never; name another with run=PATH, "
                "or continue it with resume=auto"
            )
        stored, asked = (one.model_dump(mode="json") for one in (self.stored_config(), config))
        if differences := setting_differences(stored, asked, MAY_DIFFER_ON_RESUME):
            raise ValueError(
                f"{self.root} holds a run of another config: {differences}. Start this "
                "one under another run=NAME, or give the old values to continue "
                f"(only {', '.join(MAY_DIFFER_ON_RESUME)} may change on a resume)"
            )

    def _is_started(self) -> bool:
        """Whether any step was made: before that, a mended command may differ in anything."""
        has_lines = self.metrics_path.exists() and self.metrics_path.stat().st_size > 0
        return has_lines or bool(self._checkpoints.steps())

    def stored_config(self) -> Config:
        """What config.yaml holds; raises ValueError if it is not of this version's form."""
        try:
            return Config.model_validate(OmegaConf.to_container(OmegaConf.load(self.config_path)))
        except (YAMLError, OmegaConfBaseException, ValidationError) as error:
            raise ValueError(
                f"{self.config_path} cannot be read as a config, so the run cannot be continued: "
                f"{error}; start under another run=NAME"
            ) from error


def _lines_up_to(lines: list[str], step: int) -> Iterator[str]:
    """The complete lines of metrics.jsonl up to `step`; a kill can leave the last one torn."""
    for line in lines:
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            yield line
