"""Judges rewards on a file: where do the verifier and your labels agree?

    python -m rewards.audit in=answers.jsonl
    python -m rewards.audit in=answers.jsonl out=judged.jsonl workers=4

Each line of the input is a JSON object with

    reference, response         an answer to be verified; also question, task
    mode, text                  a sampled text, in mode short or long (which starts inside the think
                                block), to be judged for its form; with `reference`, its answer part
                                is verified too
    id, domain, correct         kept apart in the table; finish_reason is "stop" if not given

and each line of the output, in the same order, `id`, `parts`, `route`, `failure` and `seconds`.
Rows that say whether they are `correct` are counted in a table.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rewards.rules.verifier import NotScorable, score_reference, symbolic, verify_quickly
from rewards.text.format import CLOSE, format_reward
from rewards.text.repetition import repetition_penalty
from rewards.text.workers import SampleFailed, WorkerPool
from rl.config.run import RewardConfig
from rl.loop.stages import Trajectory
from rl.run.command import Command, Keys, run_command
from rl.run.files import atomic_write

THINKING = {"short": False, "long": True}
FINISH_REASONS = ("stop", "length", "abort")
DISAGREEMENTS = ("false accepts", "false rejects", "failures")
MAX_ROWS_IN_FLIGHT = 256
"""Rows that may wait for a slow one before them: they are what is held in memory."""


class AuditKeys(Keys):
    source: Path = Field(alias="in", examples=["FILE.jsonl"])
    """The rows to judge."""
    out: Path | None = Field(default=None, examples=["FILE.jsonl"])
    """The verdicts; by default beside the input, as NAME.audit.jsonl."""
    workers: int = Field(default=1, gt=0)
    """Processes that verify answers; each can be killed without the others noticing."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of one row."""
    memory_mib: int = Field(default=1024, gt=0)
    """Memory limit of one worker process."""

    @property
    def target(self) -> Path:
        """Where the verdicts go."""
        return self.out or self.source.with_suffix(".audit.jsonl")

    @property
    def config(self) -> RewardConfig:
        """The limits, as the workers take them."""
        return RewardConfig(
            workers=self.workers, timeout_s=self.timeout_s, memory_mib=self.memory_mib
        )

    @model_validator(mode="after")
    def _files_are_two(self) -> AuditKeys:
        source, target = self.source, self.target
        if not source.is_file():
            raise ValueError(f"in={source}: no such file")
        if target.resolve() == source.resolve():
            raise ValueError(f"out={target} is the input itself; name another file")
        if target.is_dir() or not target.resolve().parent.is_dir():
            raise ValueError(f"out={target}: is a directory or lies in none; name a file in one")
        return self


@dataclass(frozen=True)
class Row:
    """One line of the input, checked."""

    id: Any
    reference: str | None
    """None where there is no accuracy to be found."""
    answer: str
    question: str
    task: str
    sampled: Trajectory | None
    """None where there is no form to be judged."""
    thinking: bool
    domain: str
    correct: bool | None
    """The label, if there is one."""


@dataclass(frozen=True)
class Finding:
    """What the output says of one row."""

    parts: Mapping[str, float]
    route: str | None
    failure: str | None
    seconds: float
    """Spent on this row, without waiting for a worker."""


def write_verdicts(keys: AuditKeys) -> None:
    table = audit(keys)
    if table is not None:
        Console().print(table)
    print(f"written to {keys.target}", file=sys.stderr)


def audit(keys: AuditKeys) -> Table | None:
    """Write the output, complete or not at all; return the table where there are labels."""
    tally = Tally()
    with (
        keys.source.open("rb") as lines,
        atomic_write(keys.target) as partial_path,
        partial_path.open("w", encoding="utf-8") as output,
        _judge(keys.config) as judge,
    ):
        for row, finding in _in_order(_progressing(_rows(lines, keys.source), lines), judge):
            written = {"id": row.id, "parts": finding.parts, "route": finding.route}
            written |= {"failure": finding.failure, "seconds": round(finding.seconds, 6)}
            output.write(f"{json.dumps(written)}\n")
            tally.add(row, finding)
    return tally.table() if tally.counts else None


class Tally:
    """Counts of verdicts against labels, by domain."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, row: Row, finding: Finding) -> None:
        if row.correct is None or row.reference is None:
            return
        outcome = "failures"
        if finding.failure is None:
            accepted = finding.parts["accuracy"] == 1.0
            wrong = "false accepts" if accepted else "false rejects"
            outcome = "agrees" if accepted == row.correct else wrong
        self.counts[row.domain][outcome] += 1

    def table(self) -> Table:
        table = Table("domain", caption="accuracy: labels met, of all rows; failures meet none")
        for name in ("n", "accuracy", *DISAGREEMENTS):
            table.add_column(name, justify="right")
        for domain, counts in sorted(self.counts.items()):
            table.add_row(domain, *_shown_counts(counts))
        table.add_section()
        table.add_row("all", *_shown_counts(sum(self.counts.values(), Counter[str]())))
        return table


def _shown_counts(counts: Counter[str]) -> list[str]:
    accuracy = f"{100 * counts['agrees'] / counts.total():.2f} %"
    return [str(counts.total()), accuracy, *(str(counts[name]) for name in DISAGREEMENTS)]


class Judge:
    """Judges rows: at once where string work is enough, else in killable workers."""

    def __init__(self, config: RewardConfig, pool: WorkerPool, threads: ThreadPoolExecutor) -> None:
        self._repetition = config.repetition
        self._pool = pool
        self._threads = threads

    def judge(self, row: Row) -> Finding | Future[Finding]:
        started = time.perf_counter()
        parts = {} if row.sampled is None else self._form(row.sampled, row.thinking)
        if row.reference is None:
            return Finding(parts, None, None, time.perf_counter() - started)
        try:
            verdict = verify_quickly(row.reference, row.answer, row.task, row.question)
        except NotScorable as error:
            seconds = time.perf_counter() - started
            return Finding(parts, _route(row), f"not_scorable: {error}", seconds)
        seconds = time.perf_counter() - started
        if verdict.accuracy is None:
            return self._threads.submit(self._symbolic, row, parts, verdict.route, seconds)
        return Finding({"accuracy": verdict.accuracy} | parts, verdict.route, None, seconds)

    def _symbolic(
        self, row: Row, parts: Mapping[str, float], route: str, seconds: float
    ) -> Finding:
        started = time.perf_counter() - seconds
        arguments = (row.reference, row.answer, row.task, row.question)
        failure = None
        try:
            parts = {"accuracy": self._pool.call(symbolic, *arguments), **parts}
        except NotScorable as error:
            failure = f"not_scorable: {error}"
        except SampleFailed as error:
            failure = str(error)
        return Finding(parts, route, failure, time.perf_counter() - started)

    def _form(self, sampled: Trajectory, thinking: bool) -> dict[str, float]:
        form = self._repetition
        return {
            "format": format_reward(sampled, thinking),
            "repetition": repetition_penalty(sampled.text, form.form, form.words, form.times),
        }


def _route(row: Row) -> str | None:
    """The route of a reference, whether or not it can be scored here."""
    route = score_reference(row.reference or "", row.task, row.question)
    return None if route.startswith("not_scorable") else route


@contextmanager
def _judge(config: RewardConfig) -> Iterator[Judge]:
    """A judge with its workers, which are killed at the end."""
    pool = WorkerPool(config.workers, config.timeout_s, config.memory_mib)
    # One thread a worker, and the worker is up before the first clock starts.
    threads = ThreadPoolExecutor(config.workers, initializer=partial(pool.call, len, ""))
    try:
        yield Judge(config, pool, threads)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        pool.close()


def _in_order(rows: Iterator[Row], judge: Judge) -> Iterator[tuple[Row, Finding]]:
    """Judge rows side by side and yield them in their order."""
    waiting: deque[tuple[Row, Finding | Future[Finding]]] = deque()
    for row in rows:
        waiting.append((row, judge.judge(row)))
        while waiting and (len(waiting) > MAX_ROWS_IN_FLIGHT or _is_done(waiting[0][1])):
            yield _done(*waiting.popleft())
    while waiting:
        yield _done(*waiting.popleft())


def _is_done(finding: Finding | Future[Finding]) -> bool:
    return isinstance(finding, Finding) or finding.done()


def _done(row: Row, finding: Finding | Future[Finding]) -> tuple[Row, Finding]:
    return row, finding if isinstance(finding, Finding) else finding.result()


def _progressing(rows: Iterator[Row], lines: BinaryIO) -> Iterator[Row]:
    """Pass the rows on, with a bar of the bytes read where a person looks on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from rows
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("auditing", total=Path(lines.name).stat().st_size)
        for row in rows:
            progress.update(task, completed=lines.tell())
            yield row


def _rows(lines: BinaryIO, source: Path) -> Iterator[Row]:
    number = 0
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _row(json.loads(line.decode("utf-8")), number)
        # Deep nesting is an error of the line too.
        except (ValueError, RecursionError) as error:
            what = str(error) if isinstance(error, BadRow) else f"is not JSON: {error}"
            raise ValueError(f"{source}, line {place}: {what}") from error
        number += 1


class BadRow(ValueError):
    """A line that is JSON but no row; says why."""


def _row(fields: Any, number: int) -> Row:
    if not isinstance(fields, dict):
        raise BadRow(f"must be an object, got {_shown(fields)}")
    fields = {key: value for key, value in fields.items() if value is not None}
    is_sampled = {"mode", "text"} <= fields.keys()
    if not is_sampled and not {"reference", "response"} <= fields.keys():
        raise BadRow(
            "must have reference and response, or mode and text, got only "
            f"{', '.join(sorted(fields)) or 'an empty object'}"
        )
    thinking = THINKING[_choice(fields, "mode", tuple(THINKING))] if is_sampled else False
    correct = fields.get("correct")
    if correct is not None and not isinstance(correct, bool):
        raise BadRow(f"correct must be true or false, got {_shown(correct)}")
    sampled = _sampled(fields, thinking) if is_sampled else None
    answer = sampled.answer if sampled is not None else _text(fields, "response")
    # An answer that did not end by itself is no answer, as in training.
    is_finished = _choice(fields, "finish_reason", FINISH_REASONS, "stop") == "stop"
    return Row(
        id=fields.get("id", number),
        reference=_text(fields, "reference") if "reference" in fields else None,
        answer=(answer or "") if is_finished else "",
        question=_text(fields, "question", ""),
        task=_text(fields, "task", "auto"),
        sampled=sampled,
        thinking=thinking,
        domain=_text(fields, "domain", "-"),
        correct=correct,
    )


def _sampled(fields: Mapping[str, Any], thinking: bool) -> Trajectory:
    """The trajectory of a sampled text, taken apart as in training; it has no tokens."""
    text = _text(fields, "text")
    reasoning, closed, after = text.partition(CLOSE) if thinking else (None, CLOSE, text)
    return Trajectory(
        token_ids=np.zeros(0, np.int32),
        loss_mask=np.zeros(0, np.bool_),
        rollout_logprobs=np.zeros(0, np.float32),
        versions=(0, 0),
        finish_reason=_choice(fields, "finish_reason", FINISH_REASONS, "stop"),
        text=text,
        reasoning=reasoning,
        answer=after if closed else None,
    )


def _text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = fields.get(key, default)
    if not isinstance(value, str):
        raise BadRow(f"{key} must be text, got {_shown(value)}")
    return value


def _choice(
    fields: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str | None = None
) -> Any:
    value = _text(fields, key, default)
    if value not in choices:
        raise BadRow(f"{key} must be one of {', '.join(choices)}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


COMMAND = Command("rewards.audit", __doc__, AuditKeys, write_verdicts)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
