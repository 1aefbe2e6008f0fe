"""How many CUDA GPUs this process may use, asked without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_ASK_TIMEOUT_S = 20


def count_visible_gpus() -> int:
    """Return the machine's NVIDIA GPUs, no more than CUDA_VISIBLE_DEVICES lists where it is set."""
    # Not by torch, which takes seconds to import, and which a dry run on a laptop need not load.
    if (command := shutil.which("nvidia-smi")) is not None:
        answer = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=False
        )
        count = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    else:
        # Containers may have the devices without the tool.
        count = sum(path.name[len("nvidia") :].isdigit() for path in Path("/dev").glob("nvidia*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    listed: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        # CUDA stops reading the list at the first entry that names no device.
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        listed.append(name)
    return min(count, len(listed))
