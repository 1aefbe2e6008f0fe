"""The directory of an evaluation: what was asked, every scored response, and what came out.

settings.json    what decides a response: policy, prompts, sampling, rewards
samples.jsonl    a line per response, appended as it comes (evaluation.py:Sample)
logprobs.jsonl   with a reference: a line per response and model (ResponseLogprob)
best_of.jsonl    with a reference: the chosen response of every prompt (best_of.py:Choice)
result.json      the figures by mode, with what they belong to
accuracy.png     rl/evaluate/picture.py

The same evaluation goes on where a killed one stopped; another one is refused.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from rl.config.run import Config
from rl.evaluate.evaluation import ResponseLogprob, Sample
from rl.run.directory import OwnedDirectory
from rl.run.files import write_text
from rl.run.jsonl import Journal

Row = TypeVar("Row", Sample, ResponseLogprob)


class EvaluationDirectory:
    """An open one; `open_evaluation` makes it. Appending is safe against a kill at any moment.

    samples, logprobs: what earlier commands were answered, and all that was added since.
    """

    def __init__(self, root: Path, samples: Journal, logprobs: Journal | None) -> None:
        """Raises ValueError for a line that is no row of this version."""
        self.root = root
        self._sample_journal, self._logprob_journal = samples, logprobs
        # A response that failed is asked for again: the server may have been mended since.
        self.samples = [sample for sample in _rows(samples, Sample) if sample.is_answered]
        self.logprobs = _rows(logprobs, ResponseLogprob) if logprobs else []

    def add(self, sample: Sample) -> None:
        # Only a best-of asks for the tokens, and only some modes leave a choice; elsewhere the key
        # would be null in every line.
        rare = ("token_ids", "reasons")
        row = {key: v for key, v in vars(sample).items() if key not in rare or v is not None}
        self._sample_journal.add(row)
        self.samples.append(sample)

    def add_logprob(self, logprob: ResponseLogprob) -> None:
        assert self._logprob_journal is not None, "only an evaluation with a reference scores"
        self._logprob_journal.add(vars(logprob))
        self.logprobs.append(logprob)

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_text(self.root / "result.json", json.dumps(dict(result), indent=1) + "\n")


def _rows(journal: Journal, kind: type[Row]) -> list[Row]:
    rows = []
    for number, record in enumerate(journal.records, start=1):
        if "token_ids" in record:
            record["token_ids"] = tuple(record["token_ids"])
        try:
            rows.append(kind(**record))
        except TypeError as error:
            raise ValueError(
                f"{journal.path}, line {number} is no {kind.__name__} of this version ({error}); "
                "remove the line to have it asked again, or name another directory with out=DIR"
            ) from error
    return rows


@contextmanager
def open_evaluation(
    root: Path, settings: Mapping[str, Any], has_reference: bool = False
) -> Iterator[EvaluationDirectory]:
    """Own a directory for the block, new or of an evaluation with the same settings.

    has_reference: whether responses are scored too. Raises ValueError if the directory cannot be
    written, is in use, has samples of other settings, or has a line that cannot be read.
    """
    owned, stored = OwnedDirectory(root, "out=DIR"), root / "settings.json"
    # The lock first: another process may be in the middle of a line, which opening would cut off.
    with (
        owned.hold(),
        Journal(root / "samples.jsonl") as samples,
        Journal(root / "logprobs.jsonl") if has_reference else nullcontext() as logprobs,
    ):
        directory = EvaluationDirectory(root, samples, logprobs)
        if directory.samples:
            owned.refuse_other_settings(
                # Samples whose settings were lost may be of any.
                json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {},
                # As they come back from JSON, where a tuple is a list.
                json.loads(json.dumps(settings)),
                content="has samples of other settings",
                advice="Name another directory with out=DIR, or remove this one",
            )
        write_text(stored, json.dumps(dict(settings), indent=1) + "\n")
        yield directory


def label(
    policy: str, config: Config, split: str, has_own_data: bool, reference: str | None
) -> str:
    """The name of an evaluation's directory.

    has_own_data: whether other data than the run's own are asked, whose name it then has.
    reference: what a best-of compares with.

    Example: step_000120_heldout_greedy
    """
    data, settings = config.data, config.eval
    parts = [policy]
    parts += [data.name] if has_own_data else []
    parts += [split, "greedy" if settings.temperature == 0 else f"t{settings.temperature:g}"]
    parts += [f"p{settings.top_p:g}"] if settings.top_p < 1 else []
    parts += [f"k{settings.samples}"] if settings.samples > 1 else []
    parts += [f"against_{reference}"] if reference else []
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))
