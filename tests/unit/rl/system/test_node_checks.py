"""What a node is asked, on this one; several nodes are in integration/test_nodes.py."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from rl.system import node_checks
from rl.system.node_checks import NodeModel, NodeNeeds, code_digest, look

VERSIONS = {"ray": version("ray"), "torch": version("torch")}


def test_a_node_that_has_everything_lacks_nothing(tmp_path: Path):
    (tmp_path / "config.json").touch()
    mark = tmp_path / "mark"
    mark.touch()
    model = NodeModel("policy.model=m", tmp_path)
    needs = NodeNeeds(VERSIONS, [model], {"data.path": mark}, tmp_path, memory=2**20)
    answer = look(needs, 0, mark, code_digest())
    assert answer.lacks == ()
    assert answer.models == {tmp_path: tmp_path}


def test_a_run_directory_of_the_same_name_is_not_the_drivers(tmp_path: Path):
    answer = look(NodeNeeds({}, run=tmp_path), 0, tmp_path / "mark", code_digest())
    (lack,) = answer.lacks
    assert lack == f"run={tmp_path} is not the driver's; name one that all nodes share"


def test_other_code_is_told_from_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = code_digest()
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(node_checks, "_root", lambda: tmp_path)
    there = code_digest()
    (lack,) = look(NodeNeeds({}), 0, None, here).lacks
    assert f"the code in {tmp_path} is not the driver's" in lack
    (tmp_path / "rl" / "__pycache__").mkdir()
    (tmp_path / "rl" / "__pycache__" / "a.pyc").touch()
    assert code_digest() == there
    (tmp_path / "rl" / "a.py").write_text("x = 2\n")
    assert code_digest() != there


@pytest.mark.parametrize(
    ("rows", "takes", "said"),
    [
        (["10, 80000"] * 4, 4, None),
        (["10, 80000"] * 3, 4, "Ray gives out 4 GPUs of it, and 3 are there"),
        (["10, 80000", "70000, 80000"], 1, None),
        (["10, 80000", "70000, 80000"], 2, "other programs hold 1 of its 2 GPUs, the run takes 2"),
    ],
)
def test_gpus_that_are_not_there_or_in_use_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], takes: int, said: str | None
):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    lacks = look(NodeNeeds({}), takes, None, code_digest()).lacks
    assert lacks == (() if said is None else (said,))
