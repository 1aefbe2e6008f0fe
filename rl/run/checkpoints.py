"""Checkpoints on disk: written aside, proven by a manifest, renamed into place.

    checkpoints/.step_000100.partial/   being written; removed on an error and by the next open
    checkpoints/step_000100/            complete: manifest.json lists every other file
    checkpoints/latest                  link to the newest complete one

A kill at any moment leaves the previous checkpoint usable.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.data.fingerprint import file_digest
from rl.run.files import FULL_DISK, read_json, sync_to_disk

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
LATEST = "latest"
_STEP_NAME = re.compile(r"step_(\d{6,})")
# Hashing releases the GIL; more threads than this only compete for the disk.
_DIGEST_THREADS = 8
# Where no more than this can be written, a full disk is the cause of an error.
_FULL_DISK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    """Steps done when it was written."""

    @property
    def progress(self) -> dict[str, Any]:
        """What the writer was given: counts and reward state, as JSON holds them."""
        return json.loads((self.path / PROGRESS).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in `directory`."""

    directory: Path

    @contextmanager
    def writer(self, step: int, progress: Mapping[str, Any], keep_last: int) -> Iterator[Path]:
        """Yield an empty directory to fill; when the block ends it is the checkpoint of `step`.

        An error removes what was written and passes on; of a full disk it becomes an OSError that
        says what to do. Only after the new checkpoint is complete are all but the newest
        `keep_last` deleted. Only the process that owns the run may call this.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.path(step)
        # The dot hides it from steps(): under its final name a checkpoint is complete or absent.
        partial = self.directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            (partial / PROGRESS).write_text(json.dumps(dict(progress)), encoding="utf-8")
            _write_manifest(partial, step)
            # A run that went back to an earlier checkpoint makes this step again. A directory
            # cannot be renamed over a full one, so the old one steps aside under a hidden name,
            # which the next open removes if a kill in between leaves it.
            replaced = self.directory / f".{final.name}.replaced"
            if final.exists():
                final.rename(replaced)
            partial.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
            # The rename itself must survive a power cut before older checkpoints are deleted.
            sync_to_disk(self.directory)
        except BaseException as error:
            # Asked before the partial one is removed, which makes room again.
            is_full = isinstance(error, OSError) and error.errno in FULL_DISK
            is_full = is_full or _is_full(partial)
            shutil.rmtree(partial, ignore_errors=True)
            # An interrupt on a nearly full disk is still an interrupt.
            if is_full and isinstance(error, Exception):
                intact = self.steps()
                resume = f"from step {intact[-1]}" if intact else "from the start"
                raise OSError(
                    errno.ENOSPC,
                    f"the disk of {self.directory} filled up while the checkpoint of step {step} "
                    "was written; make room or lower checkpoint.keep_last, then start the run "
                    f"again: it continues {resume}",
                ) from error
            raise
        self._point_latest_at(final)
        # Last: whatever failed until here, the older checkpoints are still there to go on from.
        for old in self.steps()[:-keep_last]:
            shutil.rmtree(self.path(old))

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are all as they were written; None if there is none.

        Damaged ones are passed over with a note that names the file. Raises ValueError where there
        are checkpoints and none is intact: starting again at step 0 would throw the run away
        without being asked.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.path(step)
            if damage := find_damage(path):
                note(f"checkpoint {path.name} is skipped: {damage}")
            else:
                return Checkpoint(path, step)
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self.directory} is intact (steps "
                f"{', '.join(map(str, steps))}); restore one, or start again with another "
                "run=NAME"
            )
        return None

    def newest_progress(self) -> dict[str, Any]:
        """What the newest one knows beside the model, not verified; empty without any.

        It may be read while the run goes on and puts another in its place.
        """
        return read_json(self.directory / LATEST / PROGRESS)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.directory / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; not verified."""
        matches = (_STEP_NAME.fullmatch(path.name) for path in self.directory.glob("step_*"))
        return sorted(int(match[1]) for match in matches if match)

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints past `step` to `*.damaged`, so that they are not counted as newest."""
        for path in [self.path(later) for later in self.steps() if later > step]:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        if kept := self.steps():
            self._point_latest_at(self.path(kept[-1]))

    def remove_partials(self) -> None:
        """Remove what a killed writer left. Only the process that owns the run may call this."""
        for partial in self.directory.glob(".step_*"):
            shutil.rmtree(partial)

    def _point_latest_at(self, final: Path) -> None:
        # A link made aside and renamed: at every moment `latest` leads to a complete checkpoint.
        link = self.directory / ".latest"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        os.replace(link, self.directory / LATEST)


def find_checkpoint(run: Path, step: int | None, note: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of a step, or the newest intact one; raises ValueError if it has no model."""
    checkpoints = Checkpoints(run / "checkpoints")
    steps = checkpoints.steps()
    if step is None:
        checkpoint = checkpoints.newest(note)
        if checkpoint is None:
            raise ValueError(f"{run} has no checkpoint yet; train it with rl.launch")
    elif step not in steps:
        listed = ", ".join(map(str, steps)) or "(none)"
        raise ValueError(f"{run} has no checkpoint of step {step}; there are steps {listed}")
    # The one that was named, or none: another step would be another policy.
    elif damage := find_damage(path := checkpoints.path(step)):
        raise ValueError(f"checkpoint {path} is damaged: {damage}; name another step")
    else:
        checkpoint = Checkpoint(path, step)
    if not (checkpoint.path / "model" / "config.json").is_file():
        raise ValueError(f"{checkpoint.path} holds no model/; name another step of {steps}")
    return checkpoint


def find_damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, naming the file; None if every file is intact."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["blake2b"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is not readable ({error})"
    if PROGRESS not in files:
        return f"{MANIFEST} does not list {PROGRESS}"
    # Sizes cost nothing, so all of them come before the first digest.
    for name, (size, _) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    stored = _digests(checkpoint, list(expected))
    changed = [name for name, (_, digest) in expected.items() if stored[name] != digest]
    return f"{changed[0]} has other content than was written" if changed else None


def _is_full(directory: Path) -> bool:
    """Whether little more can be written into the directory.

    safetensors, torch and DeepSpeed each wrap the system's error in one of their own, and free
    space says nothing of a quota. So it is tried.
    """
    probe = directory / ".probe"
    try:
        probe.write_bytes(bytes(_FULL_DISK_BYTES))
        sync_to_disk(probe)
    except OSError as error:
        return error.errno in FULL_DISK
    finally:
        probe.unlink(missing_ok=True)
    return False


def _write_manifest(directory: Path, step: int) -> None:
    """List every file with size and digest, with all of them on disk before the list is."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    # Files first, then the list that vouches for them, then the directories that hold their names:
    # in any other order a power cut could leave a manifest of files that are not there.
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
        digests = threads.map(file_digest, (directory / name for name in names))
        return dict(zip(names, digests, strict=True))
