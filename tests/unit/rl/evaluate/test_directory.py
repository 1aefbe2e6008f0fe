import dataclasses
import json
import os
import subprocess
import sys

import pytest

from rl.evaluate.directory import label, open_evaluation
from rl.evaluate.evaluation import ResponseLogprob, Sample
from tests.fakes import config

SETTINGS = {"policy": {"kind": "checkpoint", "step": 4}, "settings": {"temperature": 0.0}}
FIRST = Sample(
    "p/0", "long", 0, "1\n</think>二\u2028", "1\n", "二\u2028", 3, "stop", 1.0, "number/2"
)
SECOND = Sample("p/1", "long", 0, "2\n", None, None, 72, "length", 0.0, "number/2")
FAILED = Sample("p/2", "long", 0, failure="timeout: rollout.group_timeout_s passed")


def fill(root, *samples):
    with open_evaluation(root, SETTINGS) as directory:
        for sample in samples:
            directory.add(sample)


def stored(root):
    with open_evaluation(root, SETTINGS) as directory:
        return directory.samples


def test_samples_come_back_as_they_were(tmp_path):
    fill(tmp_path / "e", FIRST, SECOND)
    assert stored(tmp_path / "e") == [FIRST, SECOND]


def test_token_ids_come_back_and_leave_no_trace_where_there_are_none(tmp_path):
    with_ids = dataclasses.replace(SECOND, token_ids=(5, 6, 1))
    fill(tmp_path, FIRST, with_ids)
    assert stored(tmp_path) == [FIRST, with_ids]
    first, second = map(json.loads, (tmp_path / "samples.jsonl").read_text().strip().split("\n"))
    assert "token_ids" not in first
    assert second["token_ids"] == [5, 6, 1]


def test_what_is_added_is_there_at_once(tmp_path):
    fill(tmp_path, FIRST)
    with open_evaluation(tmp_path, SETTINGS) as directory:
        directory.add(FAILED)
        assert directory.samples == [FIRST, FAILED]


def logprobs_of(root, *added):
    with open_evaluation(root, SETTINGS, has_reference=True) as directory:
        for logprob in added:
            directory.add_logprob(logprob)
        return directory.logprobs


def test_logprobs_come_back_as_they_were_without_a_torn_line(tmp_path):
    whole = ResponseLogprob("p/0", "long", 0, "policy", "ab", -1.25)
    failed = ResponseLogprob("p/0", "long", 0, "reference", "ab", None, "timeout: 9 s")
    assert logprobs_of(tmp_path, whole, failed) == [whole, failed]
    path = tmp_path / "logprobs.jsonl"
    os.truncate(path, path.stat().st_size - 1)
    assert logprobs_of(tmp_path) == [whole]
    assert logprobs_of(tmp_path, failed) == [whole, failed]


def test_a_line_that_is_no_logprob_is_refused(tmp_path):
    (tmp_path / "logprobs.jsonl").write_text('{"prompt_id": "p/0"}\n')
    with pytest.raises(ValueError, match=r"logprobs.jsonl, line 1 is no ResponseLogprob"):
        logprobs_of(tmp_path)


def test_a_response_that_failed_is_asked_for_again(tmp_path):
    fill(tmp_path, FAILED, FIRST)
    assert stored(tmp_path) == [FIRST]


@pytest.mark.parametrize("lost", [1, 5, 60])
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(tmp_path, lost):
    fill(tmp_path, FIRST, SECOND)
    path = tmp_path / "samples.jsonl"
    os.truncate(path, path.stat().st_size - lost)
    with open_evaluation(tmp_path, SETTINGS) as directory:
        assert directory.samples == [FIRST]
        directory.add(SECOND)
    assert stored(tmp_path) == [FIRST, SECOND]
    assert len(path.read_text().strip().split("\n")) == 2


def test_a_line_torn_within_a_character_is_dropped(tmp_path):
    fill(tmp_path, FIRST)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("二".encode()) + 1])
    assert stored(tmp_path) == [FIRST]


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    broken = Sample("p/0", "short", 0, "\ud83d", None, "\ud83d", 1, "stop", 0.0)
    fill(tmp_path, broken)
    assert stored(tmp_path) == [broken]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    fill(tmp_path, FIRST)
    path = tmp_path / "samples.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"samples.jsonl, line 1 is no Sample"):
        stored(tmp_path)


def test_samples_of_other_settings_are_refused_by_name(tmp_path):
    fill(tmp_path, FIRST)
    other = {"policy": {"kind": "checkpoint", "step": 6}, "settings": {"temperature": 0.0}}
    refused = pytest.raises(ValueError, match=r"policy\.step was 4, is 6\. Name another .* out=DIR")
    with refused, open_evaluation(tmp_path, other):
        pass
    assert stored(tmp_path) == [FIRST]


def test_settings_may_change_before_the_first_sample(tmp_path):
    fill(tmp_path)
    with open_evaluation(tmp_path, {"policy": {"kind": "model"}}):
        pass
    assert json.loads((tmp_path / "settings.json").read_text()) == {"policy": {"kind": "model"}}


def test_two_processes_do_not_write_one_directory(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from rl.evaluate.directory import open_evaluation\n"
        "try:\n    open_evaluation(Path(sys.argv[1]), {}).__enter__()\n"
        "except ValueError as error:\n    print(error)"
    )
    with open_evaluation(tmp_path, SETTINGS):
        command = [sys.executable, "-c", code, str(tmp_path)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "is in use by process" in said.stdout


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match="cannot be written"),
        open_evaluation(tmp_path / "file" / "e", SETTINGS),
    ):
        pass


def test_a_label_says_what_was_asked():
    greedy = config(eval={"temperature": 0.0})
    assert label("step_000120", greedy, "heldout", False, None) == "step_000120_heldout_greedy"
    sampled = config(eval={"temperature": 0.7, "top_p": 0.9, "samples": 8})
    alone = label("model_a b", sampled, "train", False, None)
    assert alone == "model_a-b_train_t0.7_p0.9_k8"
    best = label("model_a", sampled, "heldout", False, "org b")
    assert best == "model_a_heldout_t0.7_p0.9_k8_against_org-b"


def test_other_data_is_named():
    built_in = config(eval={"temperature": 0.0}, data={"kind": "chain_sum"})
    assert label("a", built_in, "heldout", True, None) == "a_chain_sum_heldout_greedy"
    files = {"kind": "dataset", "path": "a/train.jsonl", "heldout_path": "a/math_500.jsonl"}
    dataset = config(eval={"temperature": 0.0}, data=files)
    assert label("a", dataset, "heldout", True, None) == "a_math_500_heldout_greedy"
