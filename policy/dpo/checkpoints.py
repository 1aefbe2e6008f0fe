"""Trainer's checkpoints of a stage: which one to resume from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

COMPLETE = "complete"
"""Last file of a checkpoint: one without it was being written when its process ended."""
_log = logging.getLogger(__name__)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that is complete."""
    found = {
        int(path.parent.name.rpartition("-")[2]): path.parent
        for path in directory.glob(f"checkpoint-*/{COMPLETE}")
    }
    return found[max(found)] if found else None


def remove_torn_checkpoints(directory: Path) -> None:
    """Remove what an earlier process was writing when it ended; only while no rank runs."""
    for checkpoint in directory.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).exists():
            _log.warning("removing %s, which was not complete", checkpoint)
            shutil.rmtree(checkpoint)
