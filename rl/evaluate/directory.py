"""The directory of an evaluation: what was asked, every scored response, and what came out.

settings.json    what decides a response: policy, prompts, sampling, rewards
samples.jsonl    a line per response, appended as it comes (evaluation.py:Sample)
logprobs.jsonl   with a reference: a line per response and model (ResponseLogprob)
best_of.jsonl    with a reference: the chosen response of every prompt (best_of.py:Choice)
result.json      the figures by mode, with what they belong to
accuracy.png     rl/evaluate/picture.py

The same evaluation goes on where a killed one stopped; another one is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl.config.rollout import EvalConfig
from rl.evaluate.best_of import Choice
from rl.evaluate.evaluation import ResponseLogprob, Sample
from rl.run.directory import OwnedDirectory
from rl.run.files import write_text
from rl.run.jsonl import Journal, write_records


class EvaluationDirectory:
    """An open one; `open_evaluation` makes it. Appending is safe against a kill at any moment."""

    def __init__(self, root: Path, samples: list[Sample], journal: Journal) -> None:
        self.root = root
        self.samples = samples
        """What earlier commands were answered, and all that was added since."""
        self._journal = journal

    def add(self, sample: Sample) -> None:
        row = dataclasses.asdict(sample)
        # Only a best-of asks for the tokens; in other evaluations the key would be null in every
        # line.
        if sample.token_ids is None:
            del row["token_ids"]
        self._journal.add(row)
        self.samples.append(sample)

    def write_choices(self, choices: Iterable[Choice]) -> None:
        write_records(self.root / "best_of.jsonl", map(dataclasses.asdict, choices))

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_text(self.root / "result.json", json.dumps(dict(result), indent=1) + "\n")


class Logprobs:
    """How probable policy and reference find the responses of an open evaluation."""

    def __init__(self, journal: Journal) -> None:
        """Raises ValueError for a line that cannot be read."""
        self._journal = journal
        try:
            self.found = [ResponseLogprob(**record) for record in journal.records]
        except TypeError as error:
            raise ValueError(
                f"{journal.path} has a line that is no log-probability of this version ({error}); "
                "remove the file to have the responses scored again"
            ) from error

    def add(self, one: ResponseLogprob) -> None:
        self._journal.add(dataclasses.asdict(one))
        self.found.append(one)


@contextmanager
def open_logprobs(directory: EvaluationDirectory) -> Iterator[Logprobs]:
    """Those of an open evaluation, new or to go on with."""
    with Journal(directory.root / "logprobs.jsonl") as journal:
        yield Logprobs(journal)


@contextmanager
def open_evaluation(root: Path, settings: Mapping[str, Any]) -> Iterator[EvaluationDirectory]:
    """Own a directory for the block, new or of an evaluation with the same settings.

    Raises ValueError if it cannot be written, is in use, or has samples of other settings.
    """
    owned, stored = OwnedDirectory(root, "out=DIR"), root / "settings.json"
    # The lock first: another process may be in the middle of a line, which opening would cut off.
    with owned.hold(), Journal(root / "samples.jsonl") as journal:
        # A response that failed is asked for again: the server may have been mended since.
        samples = [sample for sample in _samples(journal) if sample.is_answered]
        if samples:
            if not stored.is_file():
                raise ValueError(
                    f"{root} has samples but no {stored.name}; name another directory with out=DIR"
                )
            owned.refuse_other_settings(
                json.loads(stored.read_text(encoding="utf-8")),
                # As they come back from JSON, where a tuple is a list.
                json.loads(json.dumps(settings)),
                content="has samples of other settings",
                advice="Name another directory with out=DIR, or remove this one",
            )
        write_text(stored, json.dumps(dict(settings), indent=1) + "\n")
        yield EvaluationDirectory(root, samples, journal)


def _samples(journal: Journal) -> Iterator[Sample]:
    for number, record in enumerate(journal.records, start=1):
        if "token_ids" in record:
            record["token_ids"] = tuple(record["token_ids"])
        try:
            yield Sample(**record)
        except TypeError as error:
            raise ValueError(
                f"{journal.path}, line {number} is no sample of this version ({error}); remove the "
                "line to have it asked again, or name another directory with out=DIR"
            ) from error


def label(
    policy: str, data: str | None, split: str, settings: EvalConfig, reference: str | None = None
) -> str:
    """The name of an evaluation's directory.

    data: what is asked in place of the run's own data. reference: what a best-of compares with.

    Example: label("step_000120", None, "heldout", EvalConfig(temperature=0))
             == "step_000120_heldout_greedy"
    """
    parts = [policy, *([data] if data else []), split]
    parts.append("greedy" if settings.temperature == 0 else f"t{settings.temperature:g}")
    parts += [f"p{settings.top_p:g}"] if settings.top_p < 1 else []
    parts += [f"k{settings.samples}"] if settings.samples > 1 else []
    parts += [f"against_{reference}"] if reference else []
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    """result.json of every finished evaluation in `directory`, by its name.

    Other tools write files of that name too; what is not an evaluation's is left out.
    """
    found = {}
    # `result.json` is a common name, so the other two files of an evaluation must lie beside it.
    for path in sorted(directory.glob("*/result.json")):
        if (path.parent / "settings.json").is_file() and (path.parent / "samples.jsonl").is_file():
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found
