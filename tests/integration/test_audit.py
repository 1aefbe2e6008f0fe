"""The audit tool end to end, also as the command a user runs."""

import json
import subprocess
import sys

import pytest

from rewards.audit import MAX_ROWS_IN_FLIGHT, Judge, main
from rl.run.command import read


@pytest.fixture
def audit(tmp_path, capsys):
    """Write rows, run the command on them, and return what it printed and what it wrote."""

    def run(rows, *arguments):
        assert main([f"in={written_to(tmp_path, rows)}", *arguments]) == 0
        return capsys.readouterr().out, verdicts(tmp_path)

    return run


def written_to(directory, rows):
    source = directory / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return source


def verdicts(directory):
    return [json.loads(line) for line in (directory / "rows.audit.jsonl").read_text().splitlines()]


def test_every_kind_of_row_in_order(tmp_path):
    loop = "wait, " * 100
    rows = [
        {"reference": "11", "response": r"so \boxed{11}"},
        {"id": "mine", "reference": "x+1", "response": "1+x"},
        {"reference": r"\frac{", "response": "3"},
        {"mode": "short", "text": "11"},
        {"mode": "long", "text": "2+9\n</think>\n\n11", "reference": "11"},
        {"mode": "long", "text": f"{loop}</think>12", "reference": "11"},
        {"mode": "long", "text": "2+9, so 11", "reference": "11", "finish_reason": "length"},
        {"mode": "short", "text": "</think>11", "reference": "11", "response": "12"},
        {"reference": "", "response": "3", "question": None},
        {"reference": "11", "response": "\ud800\x00", "task": "number"},
    ]
    command = [sys.executable, "-m", "rewards.audit", f"in={written_to(tmp_path, rows)}"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    written = verdicts(tmp_path)
    assert [row["id"] for row in written] == [0, "mine", *range(2, 10)]
    assert all(
        list(row) == "id parts route claimed how why failure seconds".split() for row in written
    )
    assert [written[0][key] for key in ("claimed", "how", "why")] == ["11", "box", ""]
    assert [row["parts"].get("accuracy") for row in written[:2]] == [1.0, 1.0]
    assert "accuracy" not in written[2]["parts"]
    assert written[2]["failure"].startswith("not_scorable: ")
    assert written[3]["parts"] == {"format": 1.0, "repetition": 0.0}
    assert (written[3]["route"], written[3]["failure"]) == (None, None)
    assert written[4]["parts"] == {"accuracy": 1.0, "format": 1.0, "repetition": 0.0}
    assert written[4]["route"].startswith("number/")
    assert written[5]["parts"]["accuracy"] == 0.0
    assert written[5]["parts"]["repetition"] < -0.9
    assert written[6]["parts"] == {"accuracy": 0.0, "format": 0.0, "repetition": 0.0}
    assert written[7]["parts"]["format"] == 0.0
    assert written[8]["parts"] == {}
    assert written[8]["failure"].startswith("not_scorable: ")
    assert written[9]["parts"] == {"accuracy": 0.0}
    assert all(row["seconds"] >= 0 for row in written)


def test_labels_make_a_table(audit):
    right, wrong = {"response": "3"}, {"response": "4"}
    rows = [
        {"domain": "sums", "reference": "3", "correct": True} | right,
        {"domain": "sums", "reference": "3", "correct": False} | right,
        {"domain": "sums", "reference": "3", "correct": False} | wrong,
        {"domain": "sums", "reference": "3", "correct": False} | wrong,
        {"domain": "words", "reference": "Paris", "response": "Rome", "correct": True},
        {"domain": "words", "reference": "", "response": "Rome", "correct": True},
        {"domain": "words", "reference": "Paris", "response": "Paris"},
        {"domain": "words", "mode": "short", "text": "Paris", "correct": True},
    ]
    printed, written = audit(rows)
    table = [line.split() for line in printed.splitlines()]
    cells = {row[1]: row[2:] for row in table if row and row[0] == "│"}
    assert len(written) == 8
    # n, accuracy, false accepts, false rejects, unverifiable, failures
    assert [cell for cell in cells["sums"] if cell != "│"] == "4 75.00 % 1 0 0 0".split()
    assert [cell for cell in cells["words"] if cell != "│"] == "2 0.00 % 0 1 0 1".split()
    assert [cell for cell in cells["all"] if cell != "│"] == "6 50.00 % 1 1 0 1".split()
    assert audit(rows[6:7])[0] == ""


def test_a_bomb_is_wrong_alone_in_its_place_and_in_its_time(audit):
    bomb = {"reference": "x+1", "response": r"\boxed{10^{10^{10^{10}}}+x}"}
    rows = [{"reference": "x+1", "response": "1+x"}, bomb] * 2
    _, written = audit(rows, "timeout_s=3", "memory_mib=512", "workers=2")
    assert [row["parts"].get("accuracy") for row in written] == [1.0, 0.0] * 2
    assert {row["why"].partition(": ")[0] for row in written[1::2]} == {"unverifiable"}
    assert all(row["failure"] is None for row in written)
    assert {row["route"] for row in written} == {written[0]["route"]}


def test_a_long_file_streams_through(audit):
    """Many times the rows that may be in flight."""
    number = 8 * MAX_ROWS_IN_FLIGHT
    rows = [{"reference": str(n), "response": str(n + n % 2)} for n in range(number)]
    _, written = audit(rows)
    assert [row["parts"]["accuracy"] for row in written] == [1.0, 0.0] * (number // 2)
    assert [row["id"] for row in written] == list(range(number))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[" * 10**5, "is not JSON: maximum recursion depth"),
        ("[1]", "must be an object, got [1]"),
        ("{}", "must have reference and response, or mode and text, got only an empty object"),
        ('{"reference": "1"}', "must have reference and response, or mode and text, got only ref"),
        ('{"mode": "long"}', "must have reference and response, or mode and text, got only mode"),
        ('{"mode": "medium", "text": ""}', "mode: must be 'short' or 'long', got 'medium'"),
        (
            '{"reference": {"a": 1}, "response": "1"}',
            "reference: a reference must be text, a number or a list",
        ),
        (
            '{"reference": "1", "response": ["1"]}',
            "response: must be an instance of str, got ['1']",
        ),
        (
            '{"mode": "long", "text": "", "finish_reason": "eos"}',
            "finish_reason: must be 'stop', 'length' or 'abort', got 'eos'",
        ),
        (
            '{"reference": "1", "response": "1", "correct": "yes"}',
            "correct: must be a valid boolean, got 'yes'",
        ),
        (b"\xff{}", "is not JSON: 'utf-8' codec can't decode byte 0xff"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_line_is_named_and_the_others_are_judged(tmp_path, capsys, line, message):
    source, target = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    good = b'{"mode": "short", "text": "1"}\n'
    bad = line if isinstance(line, bytes) else line.encode()
    source.write_bytes(good + b"\n" + bad + b"\n" + good)
    assert main([f"in={source}", f"out={target}"]) == 0
    assert capsys.readouterr().err.startswith(f"{source}, line 3: {message}")
    written = [json.loads(row) for row in target.read_text().splitlines()]
    assert [row["parts"].get("format") for row in written] == [1.0, None, 1.0]
    assert written[1]["failure"].startswith(f"bad_row: line 3: {message}")


def test_wrong_arguments_are_refused(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"mode": "short", "text": "1"}\n')

    def refused(message, *arguments):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err

    refused("in= is missing; give in=FILE.jsonl")
    refused("'rows' is not key=value", "rows")
    refused("missing.jsonl: no such file", "in=missing.jsonl")
    refused("is the input itself", f"in={source}", f"out={tmp_path}/./rows.jsonl")
    refused("is a directory or lies in none", f"in={source}", f"out={tmp_path}")
    refused("is a directory or lies in none", f"in={source}", "out=no/such/directory/out")
    refused(
        "worker: no such key; did you mean workers? rewards.audit takes in, out, against, workers,",
        f"in={source}",
        "worker=2",
    )
    refused("workers: must be greater than 0, got '0'", f"in={source}", "workers=0")
    refused("timeout_s: must be a valid number", f"in={source}", "timeout_s=soon")
    assert main([f"in={source}"]) == 0
    assert main([f"in={source}"]) == 0, "an old output is replaced"


def test_limits_are_those_of_a_run_unless_given(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("")
    keys = read(main, [f"in={source}", "workers=3"])
    assert keys.target == tmp_path / "rows.audit.jsonl"
    assert (keys.workers, keys.timeout_s, keys.memory_mib) == (3, 5.0, 1024)


def test_rows_where_bare_math_verify_differs_are_listed(audit):
    rows = [
        {"id": "same", "reference": "12", "response": r"\boxed{12}"},
        {"id": "other", "reference": "12", "response": "twelve", "correct": True},
        {"reference": ["8", "12"], "response": r"\boxed{8}"},
    ]
    printed, written = audit(rows, "against=math_verify", "workers=1")
    assert [row["math_verify"] for row in written] == [1.0, 0.0, 1.0]
    assert "other" in printed
    assert "same" not in printed


def test_ctrl_c_keeps_the_rows_that_are_done(tmp_path, capsys, monkeypatch):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"reference": "1", "response": "1"}\n' * 3)
    judged = Judge.judge

    def interrupted(self, row):
        if row.id == 2:
            raise KeyboardInterrupt
        return judged(self, row)

    monkeypatch.setattr(Judge, "judge", interrupted)
    assert main([f"in={source}"]) == 130
    assert "the rows that were done are kept" in capsys.readouterr().err
    assert len((tmp_path / "rows.audit.jsonl").read_text().splitlines()) == 2


def test_it_starts_without_anything_heavy():
    code = (
        "import sys, rewards.audit\n"
        "print(sorted({'torch', 'ray', 'vllm', 'sympy', 'transformers'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert printed.stdout.decode().strip() == "[]"
