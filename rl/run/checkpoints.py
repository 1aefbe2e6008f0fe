"""Checkpoints on disk: written aside, proven by a manifest, renamed into place.

    checkpoints/.step_000100.partial/   being written; removed on an error and by the next open
    checkpoints/step_000100/            complete: manifest.json lists every other file
    checkpoints/latest                  link to the newest complete one

A kill at any moment leaves the previous checkpoint usable.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rl.run.files import FULL_DISK, sync_to_disk

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
_STEP_NAME = re.compile(r"step_(\d{6,})")
_CHUNK_BYTES = 16 * 2**20
# Hashing releases the GIL; more threads than this only compete for the disk.
_DIGEST_THREADS = 8
# Libraries report a full disk in many ways. With less room than this, it is the cause.
_FULL_DISK_BYTES = 16 * 2**20


class DiskFull(OSError):
    """The disk filled up while a checkpoint was written; earlier checkpoints are intact."""


class NoUsableCheckpoint(ValueError):
    """A run has checkpoints and every one of them is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    """Steps done when it was written."""
    progress: Mapping[str, Any]
    """What the writer was given: counts and reward state, as JSON holds them."""


class Checkpoints:
    """The checkpoints of one run, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def writer(self, step: int, progress: Mapping[str, Any], keep_last: int) -> Iterator[Path]:
        """Yield an empty directory to fill; when the block ends it is the checkpoint of `step`.

        An error removes what was written and passes on; a full disk becomes DiskFull. Only after
        the new checkpoint is complete are all but the newest `keep_last` deleted.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / _name(step)
        partial = self.directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            (partial / PROGRESS).write_text(json.dumps(dict(progress)), encoding="utf-8")
            _write_manifest(partial, step)
            self._move_into_place(partial, final)
        except BaseException as error:
            is_full = _is_disk_full(error, self.directory)
            shutil.rmtree(partial, ignore_errors=True)
            if is_full:
                raise DiskFull(errno.ENOSPC, self._disk_full_message(step)) from error
            raise
        self._point_latest_at(final)
        for old in self.steps()[:-keep_last]:
            shutil.rmtree(self.directory / _name(old))

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are all as they were written; None if there is none.

        Damaged ones are passed over with a note that names the file. Raises NoUsableCheckpoint
        where there are checkpoints and none is intact: starting again at step 0 would throw the
        run away without being asked.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.directory / _name(step)
            if damage := find_damage(path):
                note(f"checkpoint {path.name} is skipped: {damage}")
                continue
            progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
            return Checkpoint(path, step, progress)
        if steps:
            raise NoUsableCheckpoint(
                f"none of the checkpoints in {self.directory} is intact (steps "
                f"{', '.join(map(str, steps))}); restore one, or start again with another "
                "run=NAME"
            )
        return None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.directory / _name(step)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; not verified."""
        if not self.directory.is_dir():
            return []
        matches = (_STEP_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints past `step` to `*.damaged`, so that they are not counted as newest."""
        for later in [later for later in self.steps() if later > step]:
            path = self.directory / _name(later)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        if kept := self.steps():
            self._point_latest_at(self.directory / _name(kept[-1]))

    def remove_partials(self) -> None:
        """Remove what a killed writer left. Only the process that owns the run may call this."""
        for partial in self.directory.glob(".step_*"):
            shutil.rmtree(partial)

    def _move_into_place(self, partial: Path, final: Path) -> None:
        if final.exists():
            replaced = self.directory / f".{final.name}.replaced"
            final.rename(replaced)
            partial.rename(final)
            shutil.rmtree(replaced)
        else:
            partial.rename(final)
        sync_to_disk(self.directory)

    def _point_latest_at(self, final: Path) -> None:
        link = self.directory / ".latest"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        os.replace(link, self.directory / "latest")

    def _disk_full_message(self, step: int) -> str:
        intact = self.steps()
        resume = f"from step {intact[-1]}" if intact else "from the start"
        return (
            f"the disk of {self.directory} filled up while the checkpoint of step {step} was "
            "written; make room or lower checkpoint.keep_last, then start the run again: it "
            f"continues {resume}"
        )


def find_checkpoint(run: Path, step: int | None, note: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of a step with its `model/`, or the newest intact one.

    Raises ValueError if there is none, or if the one named is damaged.
    """
    checkpoints = Checkpoints(run / "checkpoints")
    steps = checkpoints.steps()
    if step is None:
        checkpoint = checkpoints.newest(note)
        if checkpoint is None:
            raise ValueError(f"{run} has no checkpoint yet; train it with rl.launch")
    elif step in steps:
        checkpoint = _intact(checkpoints.directory / _name(step), step)
    else:
        raise ValueError(
            f"{run} has no checkpoint of step {step}; there are steps "
            f"{', '.join(map(str, steps)) or '(none)'}"
        )
    if not (checkpoint.path / "model" / "config.json").is_file():
        raise ValueError(f"{checkpoint.path} holds no model/; name another step of {steps}")
    return checkpoint


def _intact(path: Path, step: int) -> Checkpoint:
    if damage := find_damage(path):
        raise ValueError(f"checkpoint {path} is damaged: {damage}; name another step")
    progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
    return Checkpoint(path, step, progress)


def find_damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, naming the file; None if every file is intact."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        sizes = {name: entry["bytes"] for name, entry in files.items()}
        digests = {name: entry["blake2b"] for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is not readable ({error})"
    if PROGRESS not in files:
        return f"{MANIFEST} does not list {PROGRESS}"
    # Sizes cost nothing, so all of them come before the first digest.
    return _wrong_size(checkpoint, sizes) or _wrong_content(checkpoint, digests)


def _wrong_size(checkpoint: Path, sizes: Mapping[str, int]) -> str | None:
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def _wrong_content(checkpoint: Path, digests: Mapping[str, str]) -> str | None:
    found = _digests(checkpoint, list(digests))
    for name, digest in digests.items():
        if found[name] != digest:
            return f"{name} has other content than was written"
    return None


def _write_manifest(directory: Path, step: int) -> None:
    """List every file with size and digest, with all of them on disk before the list is."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in paths:
        sync_to_disk(path)
    names = [path.relative_to(directory).as_posix() for path in paths]
    digests = _digests(directory, names)
    files = {
        name: {"bytes": path.stat().st_size, "blake2b": digests[name]}
        for name, path in zip(names, paths, strict=True)
    }
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    sync_to_disk(manifest)
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        sync_to_disk(folder)


def _digests(directory: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_DIGEST_THREADS) as threads:
        return dict(
            zip(names, threads.map(lambda name: _digest(directory / name), names), strict=True)
        )


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=32)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _is_disk_full(error: BaseException, directory: Path) -> bool:
    if not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return True
    return shutil.disk_usage(directory).free < _FULL_DISK_BYTES


def _name(step: int) -> str:
    return f"step_{step:06d}"
