"""Resident sizes of a process and its children."""

import subprocess
import sys

from rl.system.resident import peak_resident_bytes, resident_bytes

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
