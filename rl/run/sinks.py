"""Where metrics go: always metrics.jsonl, then TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rl.config.run import LogConfig
from rl.loop.interfaces import MetricSink
from rl.run.directory import RunDirectory
from rl.run.files import write_text

_log = logging.getLogger(__name__)


class Sinks:
    """All sinks of a run. One that fails is reported once and dropped; training goes on."""

    def __init__(
        self,
        log: LogConfig,
        directory: RunDirectory,
        note: Callable[[str], None] = _log.warning,
        more: Sequence[MetricSink] = (),
    ) -> None:
        """Open what `log` asks for beside `more`; raises ValueError where it cannot be had.

        Steps after the last one in metrics.jsonl are taken as not yet made.
        """
        self._note = note
        self._sinks = [*open_sinks(log, directory), *more]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._each("no longer written", lambda sink: sink.write(step, metrics))

    def close(self) -> None:
        self._each("not closed", lambda sink: sink.close())
        self._sinks = []

    def _each(self, consequence: str, action: Callable[[MetricSink], None]) -> None:
        for sink in list(self._sinks):
            try:
                action(sink)
            # Sinks talk to disks and to other people's services; whatever goes wrong there must
            # not cost the run.
            except Exception as error:
                self._sinks.remove(sink)
                self._note(f"{type(sink).__name__} is {consequence}: {error!r}")


def open_sinks(log: LogConfig, directory: RunDirectory) -> list[MetricSink]:
    written = read_metrics(directory.metrics_path)
    next_step = max(written) + 1 if written else 0
    sinks: list[MetricSink] = [JsonlSink(directory.metrics_path)]
    if log.tensorboard:
        sinks.append(TensorBoardSink(directory.root / "tensorboard", next_step))
    if log.wandb_project is not None:
        sinks.append(WandbSink(log.wandb_project, directory))
    return sinks


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, ascending; lines of the same step are merged and nulls left out.

    A last line without its end is one that is being written, and is not read.
    """
    by_step: dict[int, dict[str, float]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                known = {key: value for key, value in json.loads(line).items() if value is not None}
                by_step.setdefault(known.pop("step"), {}).update(known)
    return dict(sorted(by_step.items()))


class JsonlSink:
    """A JSON object per line. JSON has no NaN and no infinity: both are written as null."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        # A full disk leaves a torn line, to which the next one must not be added.
        self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {key: _json_number(value) for key, value in metrics.items()}
        line = {"step": step} | values | {"step": step}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars through tensorboard's own writer, which needs neither torch nor tensorflow."""

    def __init__(self, directory: Path, next_step: int) -> None:
        """next_step: what an earlier, killed process logged from there on is hidden."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # protobuf makes these classes when it is imported, where no type checker sees them.
        events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._event = events.Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._writer = EventFileWriter(str(directory))
        start = events.SessionLog(status=events.SessionLog.START)
        self._writer.add_event(
            self._event(wall_time=time.time(), step=next_step, session_log=start)
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [
            self._summary.Value(tag=key, simple_value=float(value))
            for key, value in metrics.items()
            if key != "step"
        ]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases; a resumed run goes on in the same W&B run."""

    def __init__(self, project: str, directory: RunDirectory) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"log.wandb_project={project} needs the wandb package, which is not installed; "
                "install hybrid-rl[wandb], or leave log.wandb_project out"
            )
        wandb = importlib.import_module("wandb")
        identity = directory.root / "wandb_id.txt"
        if not identity.exists():
            write_text(identity, secrets.token_hex(8))
        self._run = wandb.init(
            project=project,
            name=directory.name,
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(directory.root),
            # Its capture of stdout would record every redraw of the live view.
            settings=wandb.Settings(console="off"),
        )
        # W&B's own step only grows and would drop the steps that a resume makes again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        self._run.finish()


def _json_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
