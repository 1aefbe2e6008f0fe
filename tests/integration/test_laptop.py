"""A machine without a GPU with data and a small model of its own: what a person there sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rl.config.recipe import CONFIGS
from rl.launch import __main__ as launch_command
from tests.bpe_policy import make_policy
from tests.integration.command import finish, start
from tests.integration.test_run import OWN_LINE


def readme_recipe() -> str:
    """The recipe for data of one's own, as the README has it."""
    text = (CONFIGS.parent / "README.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(# mine\.yaml.*?)```", text, re.DOTALL)
    return recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    (tmp_path / "mine.yaml").write_text(readme_recipe())
    rows = ({"problem": f"{n} + 2 = ?", "answer": str(n + 2)} for n in range(200))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_readmes_recipe_may_train_a_small_model_on_own_rows(here, capsys):
    make_policy(here / "model", 2048)
    arguments = ["config=mine.yaml", "scale=cpu", "policy.model=model", "dry_run=true"]
    assert launch_command.main(arguments) == 0, capsys.readouterr()
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_the_readmes_recipe_trains_a_small_model_on_own_rows(here):
    make_policy(here / "model", 2048)
    settings = ["steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "eval.prompts=2"]
    budgets = ["modes.short.max_tokens=8", "modes.long.max_tokens=16"]
    arguments = ["config=mine.yaml", "scale=cpu", "policy.model=model", *settings, *budgets]
    output = finish(start("rl.launch", *arguments))
    assert "starting 1 vLLM engine, 1 rank\n" in output
    assert (here / "runs" / "mine" / "summary.json").is_file()


def test_an_engine_that_dies_says_vllms_own_reason_in_the_last_line(here):
    # vLLM's attention on CPU has no heads of this size, which it says at the first request.
    make_policy(here / "model", 2048, head_dim=24)
    # A scale that says nothing of the engine: it would not even start if it were to compile.
    (here / "scratch.yaml").write_text(
        "steps: 1\nmodes: {short: {max_tokens: 8}, long: {max_tokens: 16}}\n"
        "rollout: {max_model_length: 256}\nreward: {preference: null}\n"
    )
    arguments = ["config=mine.yaml", "scale=scratch.yaml", "policy.model=model"]
    output = finish(start("rl.launch", *arguments), code=1)
    before, _, error = output.partition("error: ")
    assert [line for line in before.splitlines() if not OWN_LINE.match(line)] == []
    assert len(error.splitlines()) <= 10
    reason = "Unsupported CPU attention configuration: head_dim=24"
    assert reason in output.splitlines()[-1]
    # The whole of it is in the file that the message names.
    log = here / "runs" / "mine" / "logs" / "engine_0.log"
    assert str(log) in error
    assert "Traceback" in log.read_text() and reason in log.read_text()
