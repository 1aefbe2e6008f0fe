"""What keeps the source simple to read (scripts/house.py) and CONTRIBUTING.md true."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "house.py"


def load_script() -> ModuleType:
    """scripts/ is no package, so that nothing of the source can come to need it."""
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name while it is being made.
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


house = load_script()


def test_the_figures_of_a_tree_counted_by_hand(tmp_path):
    folder = tmp_path / "rl" / "room"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__pycache__").mkdir()
    (folder / "a.py").write_text(
        "# Why: a comment line of its own.\n"  # 1
        "x = 1  # a label, and no comment line\n"
        "def __call__(): pass\n"  # never counts as a name for one use
        "def once(): 'often'\n"
        "def often(): import os; once()\n"
        "often() or often()\n"
    )
    (folder / "b.py").write_text("def long():\n" + "    x\n" * 80)
    for name in ("rewards", "rollout", "policy", "tests/unit"):
        (tmp_path / name).mkdir(parents=True)
    found = house.measure(house.source_files(root=tmp_path), tmp_path)
    assert (found.lines, found.comment_lines) == (6 + 81, 1)
    assert sorted(found.function_lines) == [1, 1, 1, 81]
    assert found.named_once == ["rl/room/a.py:4 once"]
    assert found.long_functions == ["rl/room/b.py:1 long (81 lines)"]
    assert found.inner_imports == ["rl/room/a.py:5 in often"]
    assert house.folder_entries(tmp_path)["rl/room"] == 2
    with pytest.raises(ValueError, match="no Python file"):
        house.source_files(["nowhere"], tmp_path)


def test_every_invariant_has_a_test_that_exists_and_is_not_left_out_of_the_test_command():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    _, _, section = text.partition("## What must always hold")
    invariants, _, table = section.partition("Which test fails")
    rows = re.findall(r"^\| .*`.*\|$", table, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^- ", invariants, re.MULTILINE)) > 0
    for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", table):
        tree = ast.parse((ROOT / "tests" / path).read_text())
        (test,) = [node for node in tree.body if getattr(node, "name", None) == name]
        assert isinstance(test, ast.FunctionDef)
        # Single cases of a test may be slow, as long as others of it run.
        assert "pytest.mark.slow" not in map(ast.unparse, test.decorator_list)


@pytest.mark.parametrize(
    ("document", "heading"),
    [
        ("BENCHMARKS.md", "## Every path of a GPU"),
        ("CONTRIBUTING.md", "Which test fails without the recovery"),
    ],
)
def test_every_path_of_a_gpu_and_every_fault_has_a_test_that_exists(document, heading):
    _, _, after = (ROOT / document).read_text().partition(heading)
    table, _, _ = after.partition("\n#")
    _header, _line, *rows = re.findall(r"^\|.*\|$", table, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            tree = ast.parse((ROOT / "tests" / path).read_text())
            assert name in {getattr(node, "name", None) for node in tree.body}, (path, name)
