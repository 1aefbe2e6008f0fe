"""The RLAIF-V pass through the command line, on CPU with real Ray, vLLM, DeepSpeed and TRL."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy.builtin.names import builtin_policy
from rl.align import __main__ as align_command
from rl.align.claims.files import read_stage, write_stage
from rl.align.claims.types import JudgedResponse, Label, PreferencePair, Response
from rl.align.gate import as_measurement, refusals
from rl.align.judging import LEAST_MASS
from rl.align.pairing import select_pairs
from rl.config.data import SourceConfig
from rl.export import __main__ as export_command
from rl.export.transformers_answers import score_responses
from rl.loop.stages import ReferenceRequest
from rl.run.directory import RunDirectory
from rl.run.sinks import read_metrics
from rollout.chat import ChatTemplate
from tests.integration.command import finish, kill, start

# The first test waits for a labeller to be made, on a new machine, and for three passes.
pytestmark = pytest.mark.timeout(1200)
# As small as every stage can be. Such a pass takes about 0.02 wrong claims from a response, and
# what 48 prompts measure of that varies by 0.08, so in one pass of three wrong claims seem to rise.
# The tests hold the gate to its figures, and the policy to its pairs, which it must tell apart.
PROMPTS, RESPONSES, HELDOUT, STEPS = 96, 4, 48, 12
# Type and place of the plain forwards.
FORWARD = ("float32", False)
SETTINGS = [
    "model=builtin:tiny",
    "config=rlaif_v.yaml",
    "scale=cpu_tiny",
    "rollout.prompts_per_step=16",
    f"align.prompts={PROMPTS}",
    f"align.responses={RESPONSES}",
    f"align.gate.prompts={HELDOUT}",
    f"align.dpo.steps={STEPS}",
    "align.dpo.batch_size=32",
    "align.dpo.micro_batch_pairs=32",
    "align.dpo.checkpoint_every=2",
]


def align(run: Path, *settings: str) -> subprocess.Popen[str]:
    return start("rl.align", *SETTINGS, f"run={run}", *settings)


def align_here(run: Path, *settings: str) -> int:
    """The same in this process, which has loaded what a command would load; its exit code."""
    return align_command.main([*SETTINGS, f"run={run}", *settings])


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def labels(root: Path) -> set[tuple[str, float, float]]:
    """Key and probabilities of every label that a pass has kept so far."""
    path = root / "labels.sqlite"
    if not path.exists():
        return set()
    database = sqlite3.connect(path, timeout=60)
    try:
        return set(database.execute("SELECT key, p_yes, p_no FROM labels"))
    except sqlite3.OperationalError:
        # The file is made a moment before its table.
        return set()
    finally:
        database.close()


KILLED_IN: dict[str, Callable[[Path], bool]] = {
    "sample": lambda root: lines(root / "responses.jsonl") >= 8,
    "judge": lambda root: len(labels(root.parent)) >= 8,
    "dpo": lambda root: lines(root / "dpo" / "metrics.jsonl") >= 5,
    "gate": lambda root: lines(root / "after" / "samples.jsonl") >= 8,
}


def kill_when(run: Path, is_in: Callable[[Path], bool]) -> None:
    """Start the pass and end it with -9 once it is in a stage."""
    process = align(run)
    deadline = time.monotonic() + 300
    try:
        while not is_in(iteration(run)):
            assert time.monotonic() < deadline, "the stage never came"
            assert process.poll() is None, finish(process)
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            kill(process)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pass that ran to its end at once."""
    # Minutes on a new machine, for which no deadline of a pass is meant.
    builtin_policy("builtin:tiny_labeller")
    run = tmp_path_factory.mktemp("aligned") / "run"
    assert "wrong claims a response" in finish(align(run))
    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pass that was killed in every stage, and then came to its end."""
    run = tmp_path_factory.mktemp("killed") / "run"
    for is_in in KILLED_IN.values():
        kept = labels(run / "align")
        kill_when(run, is_in)
        assert kept <= labels(run / "align"), "a label was lost or asked for again"
    finish(align(run))
    return run


def iteration(run: Path) -> Path:
    return run / "align" / "iteration_1"


def test_pairs_are_of_one_prompt_and_mode_and_differ_in_wrong_claims(aligned):
    pairs = read_stage(iteration(aligned) / "pairs.parquet", PreferencePair)
    for pair in pairs:
        assert pair.mode in ("short", "long")
        assert pair.chosen.num_wrong < pair.rejected.num_wrong
        assert pair.chosen.response.answer != pair.rejected.response.answer
        for scored in (pair.chosen, pair.rejected):
            for claim, label in zip(scored.claims, scored.labels, strict=True):
                assert claim.question.startswith("Is it correct that the answer to ")
                assert label.p_yes + label.p_no >= LEAST_MASS
    # A labeller turned round would have nearly none right; the built-in one has nearly all.
    assert sum(map(is_right, pairs)) > 0.5 * len(pairs)
    counts = json.loads((iteration(aligned) / "pairs.json").read_text())["counts"]
    assert counts["pairs/kept"] == len(pairs)


def is_right(pair: PreferencePair) -> bool:
    """Whether the chosen answer is right and the other is not, by the sum itself."""
    total = int(pair.prompt.reference)
    given = [scored.response.answer for scored in (pair.chosen, pair.rejected)]
    return [answer.isdigit() and int(answer) == total for answer in given] == [True, False]


def test_labels_equal_a_direct_forward_of_the_labeller(aligned):
    directory = Path(builtin_policy("builtin:tiny_labeller"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    judged = read_stage(iteration(aligned) / "labels.parquet", JudgedResponse)
    labelled = [(one.claims[0], one.labels[0]) for one in judged if one.claims][:40]
    assert len({claim.question for claim, _ in labelled}) > 10
    for claim, label in labelled:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": claim.question}],
            add_generation_prompt=True,
            enable_thinking=False,
            return_tensors="pt",
            return_dict=False,
        )
        with torch.no_grad():
            probabilities = model(input_ids=ids).logits[0, -1].softmax(-1)
        assert label.p_yes == pytest.approx(float(probabilities[yes]), abs=1e-4)
        assert label.p_no == pytest.approx(float(probabilities[no]), abs=1e-4)


def test_both_modes_are_sampled_with_n_responses_each(aligned):
    responses = read_stage(iteration(aligned) / "responses.parquet", Response)
    assert len(responses) == PROMPTS * RESPONSES
    modes = [one.mode for one in responses]
    assert modes.count("short") == modes.count("long") == len(modes) / 2


def test_the_verdict_is_the_gates_word_on_both_measurements(aligned):
    root = aligned / "align"
    verdict = json.loads((iteration(aligned) / "gate.json").read_text())
    before, after = (as_measurement(verdict[when]) for when in ("before", "after"))
    assert set(before.modes) == set(after.modes) == {"short", "long"}
    gate = RunDirectory(root).stored_config().align.gate
    assert verdict["reasons"] == refusals(before, after, gate)
    assert verdict["is_accepted"] == (not verdict["reasons"])
    assert (root / "checkpoints" / "step_000001").exists() == verdict["is_accepted"]
    assert sorted(step for step in read_metrics(root / "metrics.jsonl")) == [*range(1, STEPS + 1)]
    assert (root / "curves.png").stat().st_size > 10_000


def aligned_model(run: Path) -> Path:
    """The policy that DPO made: in its checkpoint if the gate let it through, else where it was."""
    accepted = run / "align" / "checkpoints" / "step_000001" / "model"
    return accepted if accepted.exists() else iteration(run) / "dpo" / "model"


def test_the_pass_moves_the_policy_towards_what_its_own_pairs_prefer(aligned):
    """Plain forwards of both policies: the log-ratio of chosen responses rises over the rest."""
    policy = Path(builtin_policy("builtin:tiny"))
    chat = ChatTemplate(str(policy))
    pairs = read_stage(iteration(aligned) / "pairs.parquet", PreferencePair)
    requests = [
        ReferenceRequest(
            f"{pair.id}/{index}",
            pair.prompt,
            chat.prompt_token_ids(pair.prompt, thinking=pair.mode == "long"),
            scored.response.token_ids,
            1.0,
        )
        for pair in pairs
        for index, scored in enumerate((pair.chosen, pair.rejected))
    ]
    before, after = (
        [sum(each.logprobs) for each in score_responses(model, SourceConfig(), *FORWARD, requests)]
        for model in (policy, aligned_model(aligned))
    )
    ratios = [new - old for new, old in zip(after, before, strict=True)]
    margins = [c - r for c, r in zip(ratios[::2], ratios[1::2], strict=True)]
    # A policy that learned nothing has 0, and this one about 1 on every processor so far.
    assert sum(margins) / len(margins) > 0.1


def test_given_better_figures_the_policy_is_accepted_and_exported(aligned, tmp_path, capsys):
    """The gate goes by figures alone, so they are given here: after the pass no claim is wrong."""
    run, out = tmp_path / "run", tmp_path / "exported"
    shutil.copytree(aligned, run)
    root, files = run / "align", iteration(run)
    if not (files / "dpo" / "model").exists():
        shutil.copytree(aligned_model(run), files / "dpo" / "model")
    shutil.rmtree(root / "checkpoints", ignore_errors=True)
    (files / "gate.json").unlink()
    shutil.copy(files / "before" / "result.json", files / "after" / "result.json")
    judged = read_stage(files / "after" / "labels.parquet", JudgedResponse)
    right = [replace(each, labels=(Label(1.0, 0.0),) * len(each.claims)) for each in judged]
    write_stage(files / "after" / "labels.parquet", JudgedResponse, right)
    assert align_here(run) == 0
    output = capsys.readouterr().out
    assert "prompts sampled" not in output and "held-out responses" not in output
    assert json.loads((files / "gate.json").read_text())["is_accepted"]
    assert export_command.main([f"run={root}", f"out={out}", "prove=false"]) == 0
    card = (out / "README.md").read_text()
    assert "after 1 iteration of alignment on AI feedback (RLAIF-V, DPO)" in card
    assert "| wrong claims a response before |" in card


def test_the_same_command_does_nothing_again_and_another_is_refused(aligned, capsys):
    written = {path: path.stat().st_mtime_ns for path in iteration(aligned).rglob("*.parquet")}
    assert align_here(aligned) == 0
    assert "starting" not in capsys.readouterr().out
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert align_here(aligned, "align.responses=5") == 2
    assert "align.responses was 4, is 5" in capsys.readouterr().err


def test_pairs_are_a_function_of_what_was_judged(aligned):
    responses = read_stage(iteration(aligned) / "responses.parquet", Response)
    judged = read_stage(iteration(aligned) / "labels.parquet", JudgedResponse)
    assert [one.response for one in judged] == responses
    pairs = read_stage(iteration(aligned) / "pairs.parquet", PreferencePair)
    assert tuple(pairs) == select_pairs(judged, seed=0, gap=1, per_prompt=8).pairs


def test_both_policies_are_judged_by_the_same_heldout_prompts_and_none_of_them_is_learned(aligned):
    asked = []
    for when in ("before", "after"):
        lines = (iteration(aligned) / when / "samples.jsonl").read_text().splitlines()
        asked.append({json.loads(line)["prompt_id"] for line in lines})
    assert asked[0] == asked[1]
    assert len(asked[0]) == HELDOUT
    responses = read_stage(iteration(aligned) / "responses.parquet", Response)
    assert asked[0].isdisjoint({one.prompt.id for one in responses})
    assert all(name.startswith("chain_sum/heldout/") for name in asked[0])


def test_nothing_is_asked_twice(aligned):
    assert_nothing_is_there_twice(aligned)


@pytest.mark.slow
def test_killed_in_every_stage_it_has_the_pairs_of_an_uninterrupted_pass(killed, aligned):
    ours, theirs = (
        read_stage(iteration(run) / "responses.parquet", Response) for run in (killed, aligned)
    )
    assert ours == theirs
    ours, theirs = (
        read_stage(iteration(run) / "pairs.parquet", PreferencePair) for run in (killed, aligned)
    )
    # But for the last digits of probabilities, which depend on what else is in a batch.
    assert [as_chosen(pair) for pair in ours] == [as_chosen(pair) for pair in theirs]


def as_chosen(pair: PreferencePair) -> tuple[str, Response, Response]:
    return pair.id, pair.chosen.response, pair.rejected.response


@pytest.mark.slow
def test_killed_in_every_stage_it_does_nothing_twice(killed):
    assert_nothing_is_there_twice(killed)


def assert_nothing_is_there_twice(run: Path) -> None:
    for when in ("before", "after"):
        samples = (iteration(run) / when / "samples.jsonl").read_text().splitlines()
        fields = ("prompt_id", "mode", "sample")
        asked = [tuple(json.loads(line)[field] for field in fields) for line in samples]
        assert len(asked) == len(set(asked)) == 2 * HELDOUT
    assert not list(iteration(run).glob("*.jsonl"))
    assert not list((iteration(run) / "dpo").glob("checkpoint-*"))
