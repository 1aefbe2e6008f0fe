"""Where models come from that are not simply there: made once on this machine, or downloaded."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from rl.data.fingerprint import stamp
from rl.data.media.names import shortened

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
# The same weights as pickles or for other programs, which nothing here reads, are left out.
_UNREAD = ["*.bin", "*.pth", "*.gguf"]
# Configuration, tokenizer and templates.
_DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt"]
_IS_DRY: ContextVar[bool] = ContextVar("_IS_DRY", default=False)


class NotMade(Exception):
    """A model that is made once on this machine, and has not been yet."""


@contextmanager
def looking_only() -> Iterator[None]:
    """In this block no model is made and no weights are downloaded: a dry run must end in seconds.

    `made_once` raises NotMade instead, and `find_model` gives a directory without weights.
    """
    # A context variable, because what looks for models stands several calls below, and in a run it
    # is the same code.
    token = _IS_DRY.set(True)
    try:
        yield
    finally:
        _IS_DRY.reset(token)


def find_model(name: str, setting: str) -> Path:
    """Return a directory as it is, or that of a Hugging Face model, downloading it on first use.

    setting: what names the model, for errors. Raises ValueError if there is no such model.
    """
    if Path(name).is_dir():
        return Path(name)
    if not _HUB_NAME.fullmatch(name):
        what = "that is a file" if Path(name).is_file() else "there is no such directory"
        raise ValueError(
            f"{setting} must be a model directory, a Hugging Face name or a builtin one, got "
            f"{name!r}; {what}"
        )
    wanted = _DESCRIPTION if _IS_DRY.get() else None
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=_UNREAD))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        # Its last line says it in words; those before are of the connection.
        why = str(error).strip().splitlines()[-1].rstrip(".") if str(error).strip() else repr(error)
        raise ValueError(
            f"{setting}={name} is no directory here and could not be downloaded: "
            f"{shortened(why, 160)}. Check the name and the network, or name a model directory of "
            f"this machine, {setting}=DIRECTORY"
        ) from error


def default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hybrid-rl"


def digest(parts: Any) -> str:
    """Return a name for everything that decides a model's weights and tokenizer."""
    return stamp(json.dumps(parts))


def made_once(directory: Path, write: Callable[[Path], None]) -> Path:
    """Return `directory`, complete: as it is, or filled by `write` in a place of its own first.

    A process that finds another one at work waits for it.
    """
    if directory.exists():
        return directory
    if _IS_DRY.get():
        raise NotMade(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # A file lock, because the kernel frees it if the process that holds it dies.
    with FileLock(directory.with_suffix(".lock")):
        if directory.exists():
            return directory
        aside = Path(tempfile.mkdtemp(prefix=".tiny-", dir=directory.parent))
        try:
            write(aside)
            # Renamed last, so that `directory` is complete when it exists.
            aside.rename(directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return directory
