"""Where metrics go: always metrics.jsonl, then TensorBoard and Weights & Biases if asked for."""

import importlib
import math
import secrets
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.config.run import LogConfig
from rl.loop.interfaces import MetricSink
from rl.run.directory import RunDirectory
from rl.run.files import write_text
from rl.run.jsonl import Journal, each_record


class Sinks:
    """All sinks of a run. One that fails is reported once and dropped; training goes on.

    Not so metrics.jsonl: a step that it lacked would be lost for good, so its error ends the run,
    which makes the step again.
    """

    def __init__(
        self,
        log: LogConfig,
        directory: RunDirectory,
        note: Callable[[str], None],
        more: Sequence[MetricSink] = (),
    ) -> None:
        """Open what `log` asks for beside `more`."""
        self._note = note
        self._jsonl = JsonlSink(directory.metrics_path)
        self._sinks: list[MetricSink] = []
        if log.tensorboard:
            # What comes after the last step of metrics.jsonl is taken as not yet made.
            next_step = max(read_metrics(directory.metrics_path), default=-1) + 1
            self._open(TensorBoardSink, directory.root / "tensorboard", next_step)
        if log.wandb_project is not None:
            self._open(WandbSink, log.wandb_project, directory)
        self._sinks += more

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._jsonl.write(step, metrics)
        self._each("no longer written", lambda sink: sink.write(step, metrics))

    def close(self) -> None:
        self._each("not closed", lambda sink: sink.close())
        self._sinks = []
        self._jsonl.close()

    def _open(self, kind: Callable[..., MetricSink], *arguments: Any) -> None:
        try:
            self._sinks.append(kind(*arguments))
        # As below. A learner that is lost opens them again, hours after the start.
        except Exception as error:
            self._note(f"{kind.__name__} cannot be opened and is left out: {error!r}")

    def _each(self, consequence: str, action: Callable[[MetricSink], None]) -> None:
        for sink in list(self._sinks):
            try:
                action(sink)
            # Sinks talk to disks and to other people's services; whatever goes wrong there must
            # not cost the run.
            except Exception as error:
                self._sinks.remove(sink)
                self._note(f"{type(sink).__name__} is {consequence}: {error!r}")


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, ascending; lines of the same step are merged and nulls left out."""
    by_step: dict[int, dict[str, float]] = {}
    for record in each_record(path):
        known = {key: value for key, value in record.items() if value is not None}
        by_step.setdefault(known.pop("step"), {}).update(known)
    return dict(sorted(by_step.items()))


def read_columns(path: Path) -> tuple[list[int], dict[str, Sequence[float]]]:
    """The same by metric: the steps, and of each metric a value a step, NaN where there is none.

    As bare doubles: a long run has millions of values, and as many objects would leave the memory
    of a process that reads them again and again in pieces.
    """
    rows: dict[int, int] = {}
    columns: dict[str, array] = {}
    for record in each_record(path):
        row = rows.setdefault(record.pop("step"), len(rows))
        for key, value in record.items():
            if value is not None:
                column = columns.setdefault(key, array("d"))
                column.extend([math.nan] * (row + 1 - len(column)))
                column[row] = value
    for column in columns.values():
        column.extend([math.nan] * (len(rows) - len(column)))
    return list(rows), dict(columns)


class JsonlSink:
    """A JSON object per line. JSON has no NaN and no infinity: both are written as null."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {
            # float() also turns numpy's and torch's scalars into what JSON can hold.
            key: value if isinstance(value, int) else float(value) if math.isfinite(value) else None
            for key, value in metrics.items()
        }
        # "step" first, where a person looks for it, and as the integer that it is.
        self._journal.add({"step": step} | values | {"step": step})

    def close(self) -> None:
        self._journal.close()


class TensorBoardSink:
    def __init__(self, directory: Path, next_step: int) -> None:
        """next_step: what an earlier, killed process logged from there on is hidden."""
        # It loads torch, which commands that only read metrics do not need.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=next_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            if key != "step":
                self._writer.add_scalar(key, float(value), step)
        # A step can take minutes, and a person watches; the writer itself flushes at every second.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases; a resumed run goes on in the same W&B run."""

    def __init__(self, project: str, directory: RunDirectory) -> None:
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
