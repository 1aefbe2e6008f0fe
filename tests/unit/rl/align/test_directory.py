"""The directory of a pass: what it goes on with, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl.align.directory import AlignmentDirectory
from rl.config.run import Config
from tests.fakes import config

ORIGIN = {"step": 4, "weights": "abc"}


def settings(**align: Any) -> Config:
    stored = config().model_dump()
    return Config.model_validate(stored | {"align": align})


def opened(run: Path, asked: Config, origin: dict[str, Any] = ORIGIN) -> None:
    with AlignmentDirectory(run).open_pass(asked, origin):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pass that has sampled, and nothing else."""
    opened(tmp_path, settings(prompts=8))
    files = AlignmentDirectory(tmp_path).iteration(1)
    files.root.mkdir()
    files.responses.touch()
    return tmp_path


def test_a_pass_goes_on_under_its_own_settings(run):
    opened(run, settings(prompts=8, iterations=3, enabled=True))


def test_settings_of_finished_stages_must_not_differ(run):
    with pytest.raises(ValueError, match=r"other settings: align\.prompts was 8, is 9"):
        opened(run, settings(prompts=9))
    other = config(policy={"ranks": 2}, align={"prompts": 8})
    with pytest.raises(ValueError, match=r"policy\.ranks was 1, is 2"):
        opened(run, other)


def test_settings_of_later_stages_may_differ_until_they_begin(run):
    later = {"gap": 2, "labeller": {"model": "other"}, "dpo": {"beta": 1}, "mine": "reward"}
    opened(run, settings(prompts=8, **later))
    (AlignmentDirectory(run).iteration(1).root / "labels.parquet").touch()
    with pytest.raises(ValueError, match=r"align\.labeller\.model was other, is None"):
        opened(run, settings(prompts=8, **{**later, "labeller": {}}))
    opened(run, settings(prompts=8, **{**later, "gap": 3}))
    AlignmentDirectory(run).iteration(1).pairs.touch()
    with pytest.raises(ValueError, match=r"align\.gap was 3\.0, is 4\.0"):
        opened(run, settings(prompts=8, **{**later, "gap": 4}))


def test_the_labels_of_held_out_responses_count_too(run):
    before = AlignmentDirectory(run).iteration(1).before
    before.mkdir()
    (before / "labels.parquet").touch()
    with pytest.raises(ValueError, match=r"align\.labeller\.dtype"):
        opened(run, settings(prompts=8, labeller={"dtype": "bfloat16"}))


def test_another_policy_is_refused_by_what_differs(run):
    with pytest.raises(ValueError, match="begun with another policy: step was 4, is 5"):
        opened(run, settings(prompts=8), {"step": 5, "weights": "abc"})


def test_one_process_at_a_time(run):
    with (
        AlignmentDirectory(run).open_pass(settings(prompts=8), ORIGIN),
        pytest.raises(ValueError, match="in use by process"),
    ):
        opened(run, settings(prompts=8))
    opened(run, settings(prompts=8))


def test_what_another_pass_left_behind_is_in_the_way(tmp_path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="whose iterations are gone"):
        opened(tmp_path, settings())
