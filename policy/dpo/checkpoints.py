"""Trainer's checkpoints of a training: which one to resume from.

Apart from the trainer, because the driver needs this and must not wait for TRL to load.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

# Last file of a checkpoint: one without it was being written when its process ended.
COMPLETE = "complete"
_log = logging.getLogger(__name__)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that is complete."""
    # By number and not by name, as `checkpoint-10` sorts before `checkpoint-2`.
    by_step = {
        int(path.parent.name.rpartition("-")[2]): path.parent
        for path in directory.glob(f"checkpoint-*/{COMPLETE}")
    }
    return by_step[max(by_step)] if by_step else None


def remove_torn_checkpoints(directory: Path) -> None:
    """Remove what an earlier process was writing when it ended; only while no rank runs."""
    for checkpoint in directory.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).exists():
            _log.warning("removing %s, which was not complete", checkpoint)
            shutil.rmtree(checkpoint)
