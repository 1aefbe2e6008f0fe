"""How much memory a process holds, as the operating system counts it.

Pages that processes share, such as libraries and Ray's object store, count in each of them.
"""

import ctypes
import gc
import resource
import sys

import psutil

GIB = 2**30
ANSWER_S = 5.0
"""A process that is slower to say what it takes is left out: no step waits for a figure."""


def resident_bytes(with_children: bool) -> int:
    """Resident size of this process; with_children: and of all that it started."""
    process = psutil.Process()
    total = process.memory_info().rss
    for child in process.children(recursive=True) if with_children else ():
        try:
            total += child.memory_info().rss
        except psutil.Error:
            # It has ended since it was listed.
            continue
    return total


def peak_resident_bytes() -> int:
    """The largest resident size that this process had since it started."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_freed_memory() -> None:
    """Return to the system what the process no longer uses and still holds.

    A picture is a web of objects that refer to one another, which only the garbage collector frees;
    by itself it looks through all objects too seldom for a process that makes few. What is freed
    the C library keeps for later: glibc has a call for it, others keep little.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
