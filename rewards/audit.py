"""Judges rewards on a file: where do the verifier and your labels agree?

    python -m rewards.audit in=answers.jsonl
    python -m rewards.audit in=answers.jsonl out=judged.jsonl workers=4
    python -m rewards.audit in=answers.jsonl against=math_verify

Each line of the input is a JSON object with

    reference, response         an answer to be verified; also question, task. A reference may be a
                                number, or a list of accepted answers
    mode, text                  a sampled text, in mode short or long (which starts inside the think
                                block), to be judged for its form; with `reference`, its answer part
                                is verified too
    id, domain, correct         kept apart in the table; finish_reason is "stop" if not given

and each line of the output, in the same order, `id`, `parts`, `route`, `claimed` (the final answer
that was read), `how` (box, tag, marker or last claim), `why` (it is no full score), `failure` and
`seconds`. A line that is no such row is reported, has the failure `bad_row`, and the audit goes on.
Rows that say whether they are `correct` are counted in a table. `against=math_verify` asks bare
math-verify too, and lists the rows where the two differ.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    model_validator,
)
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from rewards.rules.bare import math_verify_verdict
from rewards.rules.verifier import UNVERIFIABLE, NotScorable, Verdict, route_of, verify_quickly
from rewards.text.format import format_reward
from rewards.text.repetition import repetition_penalty
from rewards.text.verification import verify_slowly
from rewards.text.workers import SampleFailed, WorkerPool
from rl.config.keys import problems
from rl.config.reward import RewardConfig
from rl.data.references import accepted_answers, reference_text
from rl.loop.stages import Failure, FinishReason, Trajectory, not_scorable, split_response
from rl.run.command import Command, Keys
from rl.run.files import atomic_write

THINKING = {"short": False, "long": True}
COUNTED = ("false accepts", "false rejects", UNVERIFIABLE, "failures")
MAX_ROWS_IN_FLIGHT = 256
"""Rows that may wait for a slow one before them: they are what is held in memory."""
MAX_DIFFERENCES_SHOWN = 100


class AuditKeys(Keys):
    source: Path = Field(alias="in", examples=["FILE.jsonl"])
    """The rows to judge."""
    out: Path | None = Field(default=None, examples=["FILE.jsonl"])
    """The verdicts; by default beside the input, as NAME.audit.jsonl."""
    against: Literal["math_verify"] | None = None
    """What to compare the rules with: the rows where the two differ are listed."""
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


# Taken as it is: a sampled text may hold what is no Unicode, such as half a surrogate pair.
Text = InstanceOf[str]


class Row(BaseModel):
    """One line of the input, checked."""

    model_config = ConfigDict(strict=True, frozen=True)

    id: Any
    reference: Annotated[Text, BeforeValidator(reference_text)] | None = None
    """None where there is no accuracy to be found."""
    response: Text = ""
    question: Text = ""
    task: Text = "auto"
    mode: Literal["short", "long"] | None = None
    text: Text | None = None
    """Of a sample whose form is to be judged."""
    finish_reason: FinishReason = "stop"
    domain: Text = "-"
    correct: bool | None = None
    """The label, if there is one."""
    problem: Text = ""
    """Why the line is no row; nothing else of it is known then."""

    @property
    def sampled(self) -> Trajectory | None:
        """The trajectory of a sampled text, taken apart as in training; it has no tokens."""
        if self.text is None or self.mode is None:
            return None
        reasoning, answer = split_response(self.text, THINKING[self.mode])
        return Trajectory(
            token_ids=np.zeros(0, np.int32),
            loss_mask=np.zeros(0, np.bool_),
            rollout_logprobs=np.zeros(0, np.float32),
            versions=(0, 0),
            finish_reason=self.finish_reason,
            text=self.text,
            reasoning=reasoning,
            answer=answer,
        )

    @property
    def verified(self) -> tuple[str, str, str, str]:
        """Reference, answer, task and question, as the rules take them."""
        answer = self.sampled.answer if self.sampled else self.response
        # An answer that did not end by itself is no answer, as in training.
        answer = (answer or "") if self.finish_reason == "stop" else ""
        return self.reference or "", answer, self.task, self.question


@dataclass(frozen=True)
class Finding:
    """What the output says of one row."""

    parts: Mapping[str, float] = field(default_factory=dict)
    route: str | None = None
    claimed: str | None = None
    how: str | None = None
    why: str | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    """Spent on this row, without waiting for a worker."""
    math_verify: float | None = None


def audit(keys: AuditKeys) -> int:
    """Write the verdicts and print the tables; after Ctrl-C, of the rows that are done."""
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    differences: list[tuple[Row, Finding]] = []
    code, num_bad = 0, 0
    with (
        keys.source.open("rb") as lines,
        atomic_write(keys.target) as partial_path,
        partial_path.open("w", encoding="utf-8") as output,
        closing(Judge(keys)) as judge,
    ):
        try:
            for row, finding in _in_order(_progressing(_rows(lines, keys.source), lines), judge):
                record = {"id": row.id, **vars(finding), "seconds": round(finding.seconds, 6)}
                record["failure"] = str(finding.failure) if finding.failure else None
                if not keys.against:
                    del record["math_verify"]
                output.write(f"{json.dumps(record)}\n")
                num_bad += bool(row.problem)
                if row.correct is not None and row.reference is not None:
                    tally[row.domain][_outcome(row, finding)] += 1
                ours = finding.parts.get("accuracy")
                if keys.against and row.reference and finding.math_verify != ours:
                    differences.append((row, finding))
        # The rows that are written are whole lines in order, so they are worth keeping.
        except KeyboardInterrupt:
            print("stopped; the rows that were done are kept", file=sys.stderr)
            code = 130
    if tally:
        Console().print(_table(tally))
    if keys.against:
        Console().print(_differences_table(differences))
    if num_bad:
        print(f"{num_bad} lines are no rows; the output says why", file=sys.stderr)
    print(f"written to {keys.target}", file=sys.stderr)
    return code


def _outcome(row: Row, finding: Finding) -> str:
    if finding.failure is not None:
        return "failures"
    accepted = finding.parts["accuracy"] == 1.0
    # A response that cannot be evaluated agrees with the label "wrong".
    if accepted == row.correct:
        return "agrees"
    if (finding.why or "").startswith(UNVERIFIABLE):
        return UNVERIFIABLE
    return "false accepts" if accepted else "false rejects"


def _table(tally: Mapping[str, Counter[str]]) -> Table:
    table = Table("domain", caption="accuracy: labels met, of all rows; failures meet none")
    for name in ("n", "accuracy", *COUNTED):
        table.add_column(name, justify="right")
    total = sum(tally.values(), Counter[str]())
    for domain, counts in [*sorted(tally.items()), ("all", total)]:
        if domain == "all":
            table.add_section()
        accuracy = f"{100 * counts['agrees'] / counts.total():.2f} %"
        numbers = [str(counts[name]) for name in COUNTED]
        table.add_row(domain, str(counts.total()), accuracy, *numbers)
    return table


def _differences_table(differences: Sequence[tuple[Row, Finding]]) -> Table:
    caption = f"rows where the rules and math-verify differ: {len(differences)}"
    if len(differences) > MAX_DIFFERENCES_SHOWN:
        caption += f", of which the first {MAX_DIFFERENCES_SHOWN} are shown"
    table = Table("id", "rules", "math-verify", "label", "reference", "claimed", caption=caption)
    for row, finding in differences[:MAX_DIFFERENCES_SHOWN]:
        ours, theirs = (
            "-" if score is None else f"{score:g}"
            for score in (finding.parts.get("accuracy"), finding.math_verify)
        )
        label = "-" if row.correct is None else "right" if row.correct else "wrong"
        texts = [escape(text or "")[:60] for text in (row.reference, finding.claimed)]
        table.add_row(str(row.id), ours, theirs, label, *texts)
    return table


class Judge:
    """Judges rows: at once where string work is enough, else in killable workers."""

    def __init__(self, keys: AuditKeys) -> None:
        self._against = keys.against
        # The workers start with the first row that needs one.
        self._pool = WorkerPool(keys.workers, keys.timeout_s, keys.memory_mib)
        # One thread a worker, and the worker is up before the first clock starts.
        self._threads = ThreadPoolExecutor(
            keys.workers, initializer=partial(self._pool.call, len, "")
        )

    def close(self) -> None:
        """Kill the workers; rows under way are lost."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def judge(self, row: Row) -> Future[Finding]:
        started = time.perf_counter()
        finding, verdict = Finding(), None
        # A bad row keeps its place, so that output and input stay side by side.
        if row.problem:
            finding = Finding(failure=Failure("bad_row", row.problem))
        if row.sampled and row.mode:
            form = RewardConfig().repetition
            text = row.sampled.text
            parts = {
                "format": format_reward(row.sampled, THINKING[row.mode]),
                "repetition": repetition_penalty(text, form.form, form.words, form.times),
            }
            finding = Finding(parts)
        if row.reference is not None:
            try:
                verdict = verify_quickly(*row.verified)
                read = (str(verdict.route), verdict.claimed, verdict.how)
                finding = _scored(Finding(finding.parts, *read), verdict)
            except NotScorable as error:
                # The route is known even of a reference in natural language, which has no score.
                with suppress(NotScorable):
                    name = route_of(row.reference, row.task, row.question)
                    finding = replace(finding, route=name)
                finding = replace(finding, failure=not_scorable(error))
        finding = replace(finding, seconds=time.perf_counter() - started)
        # Only these wait for a thread; the others are judged while the file is read.
        is_open = verdict is not None and verdict.accuracy is None
        if is_open or (self._against and row.reference is not None):
            return self._threads.submit(self._slowly, row, finding, verdict if is_open else None)
        done: Future[Finding] = Future()
        done.set_result(finding)
        return done

    def _slowly(self, row: Row, finding: Finding, verdict: Verdict | None) -> Finding:
        started = time.perf_counter() - finding.seconds
        if verdict is not None:
            try:
                finding = _scored(finding, verify_slowly(self._pool, verdict, *row.verified))
            except NotScorable as error:
                finding = replace(finding, failure=not_scorable(error))
            except SampleFailed as failed:
                finding = replace(finding, failure=failed.failure)
            finding = replace(finding, seconds=time.perf_counter() - started)
        if self._against:
            reference, answer, *_ = row.verified
            try:
                # Any accepted answer is enough, for math-verify as for the rules.
                theirs = max(
                    self._pool.call(math_verify_verdict, text, answer)
                    for text in accepted_answers(reference)
                )
            except SampleFailed:
                theirs = None
            finding = replace(finding, math_verify=theirs)
        return finding


def _scored(finding: Finding, verdict: Verdict) -> Finding:
    parts = {} if verdict.accuracy is None else {"accuracy": verdict.accuracy}
    return replace(finding, parts={**parts, **finding.parts}, why=verdict.why)


def _in_order(rows: Iterator[Row], judge: Judge) -> Iterator[tuple[Row, Finding]]:
    """Judge rows side by side and yield them in their order."""
    waiting: deque[tuple[Row, Future[Finding]]] = deque()
    for row in rows:
        waiting.append((row, judge.judge(row)))
        while waiting and (len(waiting) > MAX_ROWS_IN_FLIGHT or waiting[0][1].done()):
            first, finding = waiting.popleft()
            yield first, finding.result()
    # The file is read; what is left is waited for in its order.
    for row, finding in waiting:
        yield row, finding.result()


def _progressing(rows: Iterator[Row], lines: BinaryIO) -> Iterator[Row]:
    """Pass the rows on, with a bar of the bytes read where a person looks on."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("auditing", total=Path(lines.name).stat().st_size)
        for row in rows:
            progress.update(task, completed=lines.tell())
            yield row


def _rows(lines: BinaryIO, source: Path) -> Iterator[Row]:
    stated = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for number, (line_number, line) in enumerate(stated):
        try:
            yield _row(line, number)
        except ValueError as error:
            why = f"line {line_number}: {error}"
            print(f"{source}, {why}", file=sys.stderr)
            yield Row(id=number, problem=why)


def _row(line: bytes, number: int) -> Row:
    """Raises ValueError that says what is wrong with the line."""
    try:
        fields = json.loads(line.decode("utf-8"))
    # Deep nesting is an error of the line too.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"must be an object, got {json.dumps(fields)[:80]}")
    fields = {key: value for key, value in fields.items() if value is not None}
    is_sampled = {"mode", "text"} <= fields.keys()
    if not is_sampled and not {"reference", "response"} <= fields.keys():
        raise ValueError(
            "must have reference and response, or mode and text, got only "
            f"{', '.join(sorted(fields)) or 'an empty object'}"
        )
    # A column of another meaning may have the name of a key that the row does not need.
    others = {"problem"} if is_sampled else {"problem", "mode", "text"}
    fields = {key: value for key, value in fields.items() if key not in others}
    try:
        return Row.model_validate({"id": number} | fields)
    except ValidationError as error:
        raise ValueError("; ".join(problems(error, {}, Row))) from error


main = Command("rewards.audit", __doc__, AuditKeys, audit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
