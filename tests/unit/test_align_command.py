"""What `rl.align` reads and refuses, without an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rl import align
from rl.align import parse
from rl.arms import load_sweep
from rl.assistants import LABELLER, assistant_source
from rl.recipe import dump
from rl.recipe_errors import RecipeError
from rl.run_directory import RunDirectory
from tests.bpe_policy import make_policy
from tests.fakes import config

RECIPE = ["config=rlaif_v.yaml", "scale=cpu_tiny"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without any checkpoint."""
    root = tmp_path / "run"
    stored = config(run=str(root), align={"prompts": 77})
    directory = RunDirectory(root)
    directory.open(stored, dump(stored))
    directory.close()
    return root


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert align.main(list(arguments)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_command_without_one_clear_policy_is_refused(run, tmp_path, capsys):
    assert "run=runs/NAME" in refused(capsys)
    assert "model=DIR_OR_NAME config=NAME.yaml" in refused(capsys, *RECIPE)
    assert "a run's checkpoint" in refused(capsys, "model=builtin:tiny", "step=4", *RECIPE)
    assert "model= names nothing" in refused(capsys, "model=", *RECIPE)
    assert "step must be the number" in refused(capsys, f"run={run}", "step=last")
    assert "has no config.yaml; train one with rl.launch" in refused(capsys, f"run={tmp_path}")
    assert "has no checkpoint yet" in refused(capsys, f"run={run}")
    assert "no dry run" in refused(capsys, f"run={run}", "dry_run=true")


def test_the_recipe_gives_its_section_and_the_command_line_anything(run, capsys):
    settings = [f"run={run}", "config=rlaif_v.yaml", "rollout.start_timeout_s=9"]
    asked = parse(settings).config
    assert (asked.rollout.start_timeout_s, asked.steps, asked.run) == (9, 4, str(run))
    assert "align.promts" in refused(capsys, f"run={run}", "align.promts=4")


def test_the_run_gives_the_settings_the_recipe_and_the_command_line_go_over_them(run):
    asked = parse([f"run={run}", "config=rlaif_v.yaml", "align.responses=3"]).config.align
    assert (asked.prompts, asked.responses, asked.enabled) == (77, 3, True)
    scaled = parse([f"run={run}", *RECIPE]).config.align
    assert scaled.labeller.model == "builtin:tiny_labeller"
    assert parse([f"run={run}"]).config.align.enabled is False


def test_a_batch_that_is_not_whole_micro_batches_is_refused_at_once(run, capsys):
    settings = ("align.dpo.batch_size=10", "align.dpo.micro_batch_pairs=4")
    assert "must be a multiple of the 4 pairs" in refused(capsys, f"run={run}", *settings)


def test_pairs_cannot_be_mined_without_a_ledger(run, capsys):
    assert "there is none in" in refused(capsys, f"run={run}", "align.mine=accuracy")


def test_an_assistant_is_one_model(run, capsys):
    both = ("align.labeller.model=a", "align.labeller.endpoint=http://127.0.0.1:9/v1")
    assert "are two models; name one" in refused(capsys, f"run={run}", *both)
    assert "belongs to an endpoint" in refused(capsys, f"run={run}", "align.labeller.served_name=a")


def test_a_mix_of_other_modes_is_refused(run, capsys):
    assert "align.mix must sum to 1" in refused(capsys, f"run={run}", "align.mix={short: 0.5}")
    assert "unknown modes ['lang']" in refused(capsys, f"run={run}", "align.mix={lang: 1}")


def test_a_sweep_refuses_the_pass():
    with pytest.raises(RecipeError, match=r"a sweep compares RL runs.*rl\.align run="):
        load_sweep(["config=sweep_ratio.yaml", "scale=cpu_tiny", "align.enabled=true"])


def source(policy: Path, labeller: dict, **data: object) -> None:
    settings = config(align={"labeller": labeller}, data={"kind": "chain_sum", **data})
    asyncio.run(assistant_source(settings, LABELLER, policy))


def test_a_labeller_that_sees_nothing_is_refused_where_prompts_show_pictures(tmp_path):
    directory = make_policy(tmp_path / "policy", 512)
    with pytest.raises(ValueError, match="sees no images, and the prompts show some"):
        source(directory, {}, kind="visual", path="digits")


def test_a_labeller_that_cannot_write_yes_as_one_token_is_refused(tmp_path):
    directory = make_policy(tmp_path / "policy", 512)
    with pytest.raises(ValueError, match="has no token that spells yes"):
        source(directory, {})


def test_an_endpoint_that_is_down_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"endpoint http://127\.0\.0\.1:9/v1 does not answer"):
        source(tmp_path, {"endpoint": "http://127.0.0.1:9/v1"})


def test_videos_are_not_sent_to_a_server(tmp_path):
    with pytest.raises(ValueError, match="would choose other frames"):
        source(
            tmp_path,
            {"endpoint": "http://127.0.0.1:9/v1"},
            kind="dataset",
            path="rows.jsonl",
            columns={"videos": "video"},
        )
