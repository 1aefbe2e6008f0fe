"""A run in which the policy chooses whether to reason, its export and its server."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policy.builtin.text_policy import CHOOSING_WARMUP, ensure_tiny_choosing_policy
from rl.run.ledger import LedgerRow, read_rows
from tests.integration.command import finish, start
from tests.integration.test_serving import start_server, wait_until_healthy

GROUP = 4
SETTINGS = [
    "config=hybrid_auto.yaml",
    "scale=cpu_tiny",
    "steps=2",
    "rollout.prompts_per_step=12",
    f"rollout.group_size={GROUP}",
    "modes.auto.pairs={start: 0.5, floor: 0.5}",
    "data.settings.probability_share=0.25",
    "eval.prompts=16",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("auto")
    # Nothing here needs right answers, and the usual warm-up takes two minutes.
    brief = replace(CHOOSING_WARMUP, min_steps=200, max_steps=200)
    policy = ensure_tiny_choosing_policy(root / "models", recipe=brief)
    finish(start("rl.launch", *SETTINGS, f"policy.model={policy}", f"run={root / 'run'}"))
    return root / "run"


def auto_groups(run: Path) -> list[list[LedgerRow]]:
    groups: dict[str, list[LedgerRow]] = {}
    for path in sorted((run / "ledger").glob("step_*.parquet")):
        for row in read_rows(path):
            if row.mode == "auto":
                groups.setdefault(row.group_id, []).append(row)
    return list(groups.values())


def test_in_pairs_half_of_a_group_reasons_and_elsewhere_the_policy_chose(run: Path):
    num_pairs = Counter(group[0].choice_by == "pair" for group in auto_groups(run))
    assert num_pairs[True] == pytest.approx(num_pairs[False], abs=1)
    for group in auto_groups(run):
        if group[0].choice_by == "pair":
            assert [row.choice for row in group] == ["long"] * 2 + ["short"] * 2
        for row in group:
            assert (row.reasoning is not None) == (row.choice == "long")
            # The text is that behind the choice, as in the mode that was chosen.
            if row.choice_by != "stray":
                assert not row.text.startswith("\n")


def test_engine_and_learner_agree_also_on_what_follows_a_choice(run: Path):
    mismatches = [row.mismatch for group in auto_groups(run) for row in group]
    assert max(abs(mismatch or 0.0) for mismatch in mismatches) < 1e-4
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["rollout/mismatch_kl"] < 1e-6
    assert 0.0 < last["choice/reasons"] < 1.0
    assert last["choice/entropy"] > 0.0
    assert (run / "choice.png").is_file()


def test_choices_of_one_kind_are_credited_alike_and_balance(run: Path):
    for group in auto_groups(run):
        assert sum(row.choice_advantage or 0.0 for row in group) == pytest.approx(0.0, abs=1e-9)
        of_kind = {(row.choice, row.choice_advantage) for row in group if row.choice_by == "pair"}
        assert len(of_kind) <= 2


def answers(directory: Path) -> dict[tuple[str, str], Any]:
    """By prompt and mode: what was chosen, answered and how many tokens that took."""
    rows = map(json.loads, (directory / "samples.jsonl").read_text().splitlines())
    return {
        (r["prompt_id"], r["mode"]): (r.get("reasons"), r["answer"].strip(), r["tokens"])
        for r in rows
        if r["answer"] is not None
    }


def test_run_export_and_server_answer_alike_where_the_policy_chooses(run: Path, tmp_path: Path):
    exported, greedy = tmp_path / "exported", ["eval.temperature=0", "eval.prompts=24"]
    finish(start("rl.export", f"run={run}", f"out={exported}"))
    modes = json.loads((exported / "modes.json").read_text())
    assert modes["default"] == "auto"
    finish(start("rl.evaluate", f"run={run}", f"out={tmp_path / 'own'}", *greedy))
    process, port = start_server(exported, tmp_path / "server.txt")
    try:
        wait_until_healthy(process, port, tmp_path / "server.txt")
        url = f"endpoint=http://127.0.0.1:{port}/v1"
        finish(start("rl.evaluate", url, f"run={run}", f"out={tmp_path / 'served'}", *greedy))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    own, served = answers(tmp_path / "own"), answers(tmp_path / "served")
    assert {mode for _, mode in own} == {"short", "long", "auto"}
    assert own == served
    result = json.loads((tmp_path / "own" / "result.json").read_text())
    assert set(result["choosing"]["by_difficulty"]["auto"]) == {"easy", "middle", "hard"}
    assert result["choosing"]["frontier"][0]["share"] == 0.0
