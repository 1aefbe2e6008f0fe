"""Journals of unfinished stages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.run.jsonl import Journal, read_records, write_records

WRITER = """
import sys
from pathlib import Path
from rl.run.jsonl import Journal

with Journal(Path(sys.argv[1])) as journal:
    for number in range(10**9):
        journal.add({"number": number, "text": "é" * 1000})
        if number == 50:
            print("50", flush=True)
"""


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "journal.jsonl") as journal:
        assert journal.records == []
        journal.add({"a": 1})
        journal.add({"b": "2\n3"})
    with Journal(tmp_path / "new" / "journal.jsonl") as journal:
        assert journal.records == [{"a": 1}, {"b": "2\n3"}]
        journal.remove()
    assert not (tmp_path / "new" / "journal.jsonl").exists()


@given(cut=st.integers(0, 40))
def test_a_torn_last_line_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    whole = b'{"a": 1}\n{"b": "two"}\n{"c": 3}\n'
    path.write_bytes(whole[:cut])
    with Journal(path) as journal:
        expected = [{"a": 1}, {"b": "two"}, {"c": 3}][: whole[:cut].count(b"\n")]
        assert journal.records == expected
        journal.add({"d": 4})
    with Journal(path) as journal:
        assert journal.records == [*expected, {"d": 4}]


def test_a_writer_killed_at_any_moment_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=os.getcwd()
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"50\n"
        time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        with Journal(path) as journal:
            numbers = [record["number"] for record in journal.records]
            assert len(numbers) > 50
            assert numbers == sorted(numbers)
            journal.remove()


@pytest.mark.parametrize("line", ["nonsense", "[1]", "3"])
def test_a_line_that_something_else_wrote_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "journal.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 2 is no JSON object"):
        Journal(tmp_path / "journal.jsonl")


def test_a_half_surrogate_comes_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add({"text": "né \ud83d"})
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.records == [{"text": "né \ud83d"}]


def test_a_reader_sees_the_whole_lines_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_records(path) == []
    with Journal(path) as journal:
        journal.add({"a": 1})
        assert read_records(path) == [{"a": 1}]
    torn = path.read_bytes() + b'{"b": '
    path.write_bytes(torn)
    assert read_records(path) == [{"a": 1}]
    # Reading leaves the file as it is: another process may be in the middle of the line.
    assert path.read_bytes() == torn


def test_records_that_replace_a_file_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_records(path, [{"a": 1}, {"b": "é \ud83d"}])
    write_records(path, [{"b": "é \ud83d"}])
    assert read_records(path) == [{"b": "é \ud83d"}]
