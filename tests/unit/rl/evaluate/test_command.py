"""What `rl.evaluate` refuses, picks and shows, without an engine."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from rewards.service import RewardService
from rewards.text.text_rewards import TextRewards
from rl.config.reward import ProbabilityConfig, RewardConfig
from rl.config.run import Config
from rl.evaluate import __main__ as evaluate
from rl.evaluate.__main__ import as_table, config_of, main, progress, settings_of
from rl.evaluate.best_of import BestOf
from rl.evaluate.evaluation import METRICS, ModeResult, Sample, questions
from rl.evaluate.picture import draw_accuracy
from rl.evaluate.sources import NoProbability, prompts_of
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest, Route
from rl.run.command import read
from rl.run.directory import RunDirectory
from rollout.prompts.stream import PromptStream
from tests.bpe_policy import make_policy
from tests.fakes import config, trajectory
from tests.qwen_vl_tiny import save_tiny

RECIPE = ["config=hybrid_50_50.yaml", "scale=cpu_tiny"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint of step 4, whose model is a configuration alone."""
    root = tmp_path / "run"
    stored = config(run=str(root))
    directory = RunDirectory(root)
    with (
        directory.open(stored),
        directory.checkpoints.writer(4, {"scorer": {}}, keep_last=1) as path,
    ):
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text("{}")
    return root


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert evaluate.main(list(arguments)) == 2
    # The datasets library shows its progress before it.
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_how_a_mode_is_asked_tells_evaluations_apart_where_it_is_set():
    plain = settings_of(config(), "heldout", {})["settings"]
    # Evaluations that older versions made have no other keys, and go on.
    assert plain["modes"] == {
        "short": {"thinking": False, "max_tokens": 4},
        "long": {"thinking": True, "max_tokens": 16},
    }
    assert "think_tags" not in plain
    asked = config(modes__long__chat_template_kwargs={"budget": 9}, policy__think_tags__open="<t>")
    changed = settings_of(asked, "heldout", {})["settings"]
    assert changed["modes"]["long"]["chat_template_kwargs"] == {"budget": 9}
    assert changed["think_tags"] == {"open": "<t>"}


def test_a_command_without_one_clear_policy_is_refused(run, capsys):
    here, there = f"run={run}", "endpoint=http://127.0.0.1:9/v1"
    assert "run=runs/NAME" in refused(capsys)
    assert "run= or config=" in refused(capsys, "model=builtin:tiny")
    assert "two policies" in refused(capsys, here, "model=builtin:tiny", there)
    assert "both give settings" in refused(capsys, here, *RECIPE)
    assert "add model=DIR_OR_NAME or endpoint=URL" in refused(capsys, *RECIPE)
    assert "a run's checkpoint" in refused(capsys, here, "step=4", there)
    assert "belongs to endpoint=URL" in refused(capsys, here, "served_name=a")
    assert "model= names nothing" in refused(capsys, here, "model=")


def test_a_best_of_that_cannot_be_chosen_is_refused(run, capsys):
    best = (f"run={run}", "reference=builtin:tiny")
    assert "got eval.samples=1; set eval.samples=8" in refused(capsys, *best)
    endpoint = (*best, "eval.samples=2", "endpoint=http://127.0.0.1:9/v1")
    assert "which a server does not give; evaluate run= or model=" in refused(capsys, *endpoint)
    speculates = (*best, "eval.samples=2", "rollout.engine.speculative_config={method: ngram}")
    assert "rollout.engine.speculative_config=null" in refused(capsys, *speculates)
    assert "reference= names nothing" in refused(capsys, f"run={run}", "reference=")


def test_a_reference_that_cannot_score_the_responses_is_refused_before_anything_runs(
    tmp_path, capsys
):
    policy = make_policy(tmp_path / "policy", 512)
    asked = (*RECIPE, f"model={policy}", "eval.samples=2", f"out={tmp_path / 'out'}")

    def why(reference: Path | str) -> str:
        return refused(capsys, *asked, f"reference={reference}")

    shutil.copytree(policy, tmp_path / "other")
    names = json.loads((policy / "tokenizer.json").read_text())
    names["model"]["vocab"]["#"], names["model"]["vocab"]["$"] = (
        names["model"]["vocab"][token] for token in "$#"
    )
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(names))
    line = why(tmp_path / "other")
    assert "other tokens than the policy's, 2 in all, such as '#', '$'; name a model of" in line
    save_tiny(tmp_path / "sees", "qwen2_5_vl")
    assert "is of type qwen2_5_vl, which is not shown images as" in why(tmp_path / "sees")
    (tmp_path / "empty").mkdir()
    assert f"reference={tmp_path / 'empty'} has no config.json" in why(tmp_path / "empty")
    assert "reference=nowhere/at/all cannot be compared with" in why("nowhere/at/all")
    assert not (tmp_path / "out").exists()


def test_what_does_not_exist_is_refused_by_name(run, tmp_path, capsys):
    here = f"run={run}"
    assert "is no run directory" in refused(capsys, f"run={tmp_path}")
    assert "there are steps 4" in refused(capsys, here, "step=3")
    assert "got '4.0'" in refused(capsys, here, "step=4.0")
    assert "'heldout' or 'train', got 'test'" in refused(capsys, here, "split=test")
    assert "did you mean eval.samples?" in refused(capsys, here, "eval.sample=2")
    assert "would be copies" in refused(capsys, here, "eval.samples=2", "eval.temperature=0")
    (tmp_path / "empty").mkdir()
    line = refused(capsys, here, f"model={tmp_path / 'empty'}")
    assert "empty has no config.json" in line and "rl.export" in line
    manifest = run / "checkpoints" / "step_000004" / "manifest.json"
    manifest.unlink()
    assert "manifest.json is missing" in refused(capsys, here, "step=4")
    assert list(run.glob("evaluations/*")) == []


def test_data_that_an_endpoint_cannot_be_scored_on_is_refused_before_it_is_asked(tmp_path, capsys):
    nowhere = "endpoint=http://127.0.0.1:9/v1"
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"{n}?", "answer": "blue"} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = ["data.kind=dataset", f"data.path={path}", f"out={tmp_path / 'out'}"]
    assert evaluate.main([*RECIPE, nowhere, *data, "data.task=probability"]) == 2
    shown = capsys.readouterr().err
    assert "no prompt of this split can be scored over an endpoint" in shown
    assert "log-probabilities of the policy" in shown
    path.write_text("\n".join(json.dumps(row | {"answer": ""}) for row in rows))
    assert "4 rows with nothing in column answer" in refused(capsys, *RECIPE, nowhere, *data)
    path.write_text("\n".join(json.dumps({"question": row["question"]}) for row in rows))
    assert "no column for data.columns.reference=answer" in refused(capsys, *RECIPE, nowhere, *data)
    assert not (tmp_path / "out").exists()


def test_settings_are_those_of_the_run_with_the_command_line_over_them(run):
    keys = read(main, [f"run={run}", "eval.prompts=7", "split=train", "step=4"])
    assert (keys.run, keys.step, keys.split) == (run, 4, "train")
    settings = config_of(keys)
    assert (settings.eval.prompts, settings.modes["long"].max_tokens) == (7, 16)


def stream_of(config: Config) -> PromptStream:
    return PromptStream.open(config)


def test_training_prompts_are_those_that_training_asks_first(tmp_path):
    cfg = config()
    stream = stream_of(cfg)
    first = [*stream.prompts(0), *stream.prompts(1)]
    assert prompts_of(stream, "train", 6) == first[:6]
    assert prompts_of(stream, "heldout", 6) == stream.heldout(6)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": n}) for n in range(10)))
    few = stream_of(config(data={"kind": "dataset", "path": str(path)}))
    once = [prompt.id for prompt in prompts_of(few, "train", 99)]
    assert len(once) == len(set(once)) == 10 - len(few.heldout(99))


def test_a_probability_has_no_score_over_an_endpoint_and_rules_have():
    reward = RewardConfig(probability=ProbabilityConfig())
    text = TextRewards(reward, config().modes)
    scorer = RewardService(reward, config().modes, text, NoProbability())

    def score(task: str):
        prompt = Prompt("p", ({"role": "user", "content": "1+2?"},), "12", task)
        request = RolloutRequest("g", prompt, "short", (), 1, 4, 0.0, None)
        return asyncio.run(scorer.score(RolloutGroup(request, (trajectory(),))))[0]

    try:
        by_rules, unscored = score("auto"), score("probability")
    finally:
        text.close()
    assert (by_rules.parts["accuracy"], by_rules.failure) == (1.0, None)
    assert "accuracy" not in unscored.parts
    assert unscored.reward is None
    assert unscored.route == Route("probability")
    assert unscored.failure is not None and "log-probabilities" in unscored.failure.detail


def test_progress_counts_what_was_there(capsys):
    cfg = config()
    prompts = [Prompt(str(n), (), "1") for n in range(3)]
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    known = {("0", "long", 0), ("other", "long", 0)}
    added: list[Sample] = []
    with progress(questions(cfg, prompts), known, added.append, console) as keep:
        keep(Sample("1", "long", 0, "1"))
    assert [sample.prompt_id for sample in added] == ["1"]
    shown = screen.getvalue()
    assert "2/3" in shown and "0/3" in shown


def test_the_table_has_a_column_for_every_k():
    figures = ModeResult(0.5, 0.1, 12.0, 0.0, 0, 4, 0.25, 2, {1: 0.5, 2: 0.75})
    screen = io.StringIO()
    probable = ModeResult(0.5, 0.1, 3.0, 0.0, 0, 4, 0.0, 2, {})
    table = as_table("t", {"long": figures, "short": probable}, {})
    Console(file=screen, width=120).print(table)
    shown = screen.getvalue()
    for text in (
        "4 prompts",
        "accuracy (avg@2)",
        "pass@2",
        "75.0%",
        "50.0% ± 10.0",
        "25.0%",
        " - ",
    ):
        assert text in shown, text
    assert "pass@1" not in shown


def test_the_table_shows_the_chosen_beside_all():
    figures = ModeResult(0.5, 0.1, 12.0, 0.0, 0, 4, 0.25, 2, {1: 0.5, 2: 0.75})
    best = BestOf(0.625, 0.2, 9.5, 0.01, 3)
    screen = io.StringIO()
    Console(file=screen, width=120).print(as_table("t", {"long": figures}, {"long": best}))
    lines = [line.split("│")[1:3] for line in screen.getvalue().splitlines() if "│" in line]
    rows = {name.strip(): cell.strip() for name, cell in lines}
    assert rows["accuracy (avg@2)"] == "50.0% ± 10.0"
    assert rows["best of 2, self-feedback"] == "62.5% ± 20.0"
    assert (rows["tokens"], rows["tokens of the best"]) == ("12.0", "9.5")
    assert (rows["pass@2"], rows["unrewarded"]) == ("75.0%", "3")


def test_every_figure_is_defined():
    assert set(METRICS) == set(ModeResult.__dataclass_fields__)


def result(step: int, temperature: float = 1.0, accuracy: float = 0.5) -> dict:
    figures = {
        "accuracy": accuracy,
        "half_width": 0.05,
        "tokens_mean": 40.0,
        "pass_at": {"1": accuracy, "2": min(1.0, accuracy + 0.1)},
    }
    return {
        "policy": {"kind": "checkpoint", "step": step, "path": "x"},
        "task": {"kind": "chain_sum"},
        "split": "heldout",
        "settings": {"temperature": temperature, "top_p": 1.0, "seed": 0, "modes": {}},
        "n": 4,
        "k": 2,
        "modes": {"short": copy.deepcopy(figures) | {"tokens_mean": 3.0}, "long": figures},
    }


EVALUATION_FILES = ("result.json", "settings.json", "samples.jsonl")


def picture(root: Path, results: dict[str, dict], files: tuple[str, ...] = EVALUATION_FILES):
    for name, content in results.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file in EVALUATION_FILES if name == "own" else files:
            (root / name / file).write_text(json.dumps(content))
    return draw_accuracy(root / "own").read_bytes()


def test_the_picture_shows_others_that_asked_the_same_way_and_no_more(tmp_path):
    alone = picture(tmp_path / "a", {"own": result(8)})
    greedy = picture(tmp_path / "b", {"own": result(8), "other": result(4, 0.0, 0.2)})
    before = picture(tmp_path / "c", {"own": result(8), "other": result(4, 1.0, 0.2)})
    assert alone[:4] == b"\x89PNG" and len(alone) > 10_000
    assert greedy == alone
    assert before != alone


def test_the_picture_leaves_out_a_result_that_another_tool_wrote(tmp_path):
    alone = picture(tmp_path / "a", {"own": result(8)})
    beside = {"own": result(8), "other": result(4, 1.0, 0.2)}
    assert picture(tmp_path / "b", beside, ("result.json", "settings.json")) == alone
    assert picture(tmp_path / "c", beside, ("result.json", "samples.jsonl")) == alone
