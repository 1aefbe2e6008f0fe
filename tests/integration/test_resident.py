"""Resident sizes of a process and its children."""

import gc
import subprocess
import sys

import pytest

from rl.system.resident import (
    give_back_freed_memory,
    peak_resident_bytes,
    resident_bytes,
)

MIB = 2**20


def test_what_a_process_starts_counts_with_it():
    code = f"block = b'x' * {64 * MIB}; print('ready', flush=True); input()"
    # Other tests in this process may have left processes that wait, such as a fork server.
    before = resident_bytes(with_children=True)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        alone, together = resident_bytes(with_children=False), resident_bytes(with_children=True)
        child.communicate("\n")
    assert together - alone >= 64 * MIB
    assert together - before >= 64 * MIB
    assert resident_bytes(with_children=True) - before < 32 * MIB


def test_a_peak_stays_when_memory_is_given_back():
    block = bytearray(b"x") * (96 * MIB)
    held = resident_bytes(with_children=False)
    del block
    assert peak_resident_bytes() >= held - MIB
    assert resident_bytes(with_children=False) <= held - 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_what_is_freed_between_blocks_in_use_is_given_back():
    # Small enough for the C library's heap, and too large for Python's own pools.
    blocks = [bytes(4096) for _ in range(96 * MIB // 4096)]
    last = blocks.pop()
    blocks.clear()
    held = resident_bytes(with_children=False)
    give_back_freed_memory()
    assert resident_bytes(with_children=False) <= held - 64 * MIB
    assert len(last) == 4096


def test_what_only_refers_to_itself_is_given_back_too():
    class Web:
        pass

    web = Web()
    web.itself, web.block = web, bytearray(b"x") * (96 * MIB)
    held = resident_bytes(with_children=False)
    gc.disable()
    del web
    give_back_freed_memory()
    gc.enable()
    assert resident_bytes(with_children=False) <= held - 64 * MIB
