"""The directory of an evaluation: what was asked, every scored response, and what came out.

settings.json    what decides a response: policy, prompts, sampling, rewards
samples.jsonl    a line per response, appended as it comes (rl/evaluation.py:Sample)
result.json      the figures by mode, with what they belong to
accuracy.png     rl/evaluation_plot.py

The same evaluation goes on where a killed one stopped; another one is refused.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rl.atomic_write import write_text
from rl.config import EvalConfig
from rl.evaluation import Sample
from rl.setting_differences import setting_differences


class EvaluationDirectory:
    """An open one; `open_evaluation` makes it. Appending is safe against a kill at any moment."""

    def __init__(self, root: Path, samples: list[Sample], file: TextIO) -> None:
        self.root = root
        self.samples = samples
        """What earlier commands were answered."""
        self._file = file

    def add(self, sample: Sample) -> None:
        line = json.dumps(dataclasses.asdict(sample), ensure_ascii=False)
        self._file.write(f"{line}\n")
        self._file.flush()

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_text(self.root / "result.json", json.dumps(dict(result), indent=1) + "\n")


@contextmanager
def open_evaluation(root: Path, settings: Mapping[str, Any]) -> Iterator[EvaluationDirectory]:
    """Take a directory for this process, new or of an evaluation with the same settings.

    Raises ValueError if it cannot be written, is in use, or has samples of other settings. A last
    line that a kill left torn is dropped.
    """
    path = root / "samples.jsonl"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Half a surrogate pair, which a server can send, is then written as JSON's own escape.
        file = path.open("a+", encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise ValueError(
            f"{root} cannot be written ({error.strerror}); name another directory with out=DIR"
        ) from error
    with file:
        _lock(file, root)
        file.truncate(_complete_bytes(path))
        # A response that failed is asked for again: the server may have been mended since.
        samples = [sample for sample in _read(path) if sample.is_answered]
        _refuse_other_settings(root, settings, bool(samples))
        write_text(root / "settings.json", json.dumps(dict(settings), indent=1) + "\n")
        yield EvaluationDirectory(root, samples, file)


def label(policy: str, data: str | None, split: str, settings: EvalConfig) -> str:
    """The name of an evaluation's directory.

    data: what is asked in place of the run's own data.

    Example: label("step_000120", None, "heldout", EvalConfig(temperature=0))
             == "step_000120_heldout_greedy"
    """
    parts = [policy, *([data] if data else []), split]
    parts.append("greedy" if settings.temperature == 0 else f"t{settings.temperature:g}")
    parts += [f"p{settings.top_p:g}"] if settings.top_p < 1 else []
    parts += [f"k{settings.samples}"] if settings.samples > 1 else []
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    """result.json of every finished evaluation in `directory`, by its name.

    Other tools write files of that name too; what is not an evaluation's is left out.
    """
    found = {}
    for path in sorted(directory.glob("*/result.json")):
        if (path.parent / "settings.json").is_file() and (path.parent / "samples.jsonl").is_file():
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lock(file: TextIO, root: Path) -> None:
    """Hold an flock until the file is closed; the kernel frees it even after kill -9."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{root} is in use by another evaluation; wait for it to end, or name another "
            "directory with out=DIR"
        ) from error


def _complete_bytes(path: Path) -> int:
    """Length of the file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _read(path: Path) -> Iterator[Sample]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Sample(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no sample of this version ({error}); remove the "
                    "line to have it asked again, or name another directory with out=DIR"
                ) from error


def _refuse_other_settings(root: Path, settings: Mapping[str, Any], has_samples: bool) -> None:
    path = root / "settings.json"
    if not has_samples:
        return
    if not path.is_file():
        raise ValueError(f"{root} has samples but no {path.name}; name another with out=DIR")
    before = json.loads(path.read_text(encoding="utf-8"))
    if differences := setting_differences(before, json.loads(json.dumps(settings))):
        raise ValueError(
            f"{root} has samples of other settings: {differences}. Name another directory with "
            "out=DIR, or remove this one"
        )
