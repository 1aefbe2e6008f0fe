"""The dry run of rl.launch: what it says of data, model and machine, and its exit code."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from policy.learner import memory_meter
from rl.config import recipe
from rl.launch import __main__ as launch
from rl.launch import preflight
from tests.bpe_policy import make_policy
from tests.published_models import write_qwen3

OWN = ["config=mine.yaml", "scale=cpu", "policy.model=model"]
MINE = """
extends: hybrid_50_50.yaml
modes: {short: {share: 0.3}, long: {share: 0.7}}
data:
  kind: dataset
  path: rows.jsonl
  columns: {question: problem, reference: answer, mode: way}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("model") / "model", 4096)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    # As on a machine without a network.
    monkeypatch.setattr("policy.models.cache.snapshot_download", _no_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("model").symlink_to(model)
    Path("mine.yaml").write_text(MINE)
    write_rows()
    return tmp_path


def _no_network(name: str, **patterns: object) -> str:
    raise OSError("Cannot reach the Hub")


def write_rows(**changed: object) -> None:
    rows = [
        {"problem": f"{n} + 2 = ?", "answer": str(n + 2), "way": "short" if n < 50 else None}
        | changed
        for n in range(200)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = launch.main([*arguments, "dry_run=true"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_dry_run_says_what_is_trained_on_and_shows_a_prompt_of_each_mode(capsys, place):
    before = sorted(place.rglob("*"))
    code, out, err = dry_run(capsys, *OWN)
    assert (code, err) == (0, "")
    _, _, said = out.partition("\nprompts:\n")
    lines = said.splitlines()
    count = int(lines[0].removeprefix("  rows: ").removesuffix(" to train on"))
    assert 180 < count < 200
    assert lines[1] == f"    reward: {count} number/5"
    pinned = count - int(lines[2].split()[1])
    assert f"mode: {count - pinned} drawn (short 0.3, long 0.7), {pinned} short" in lines[2]
    assert lines[3].startswith(f"  held out: {min(32, 200 - count)} ")
    short = said.partition("  mode short: ")[2]
    assert short.startswith("rows/train/0, ") and "tokens, and 256 at most" in short
    assert "    | 0 + 2 = ?<|im_end|>\n    | <|im_start|>assistant\n    | <think>\n" in short
    # A row that is pinned to short is no example of long.
    assert "  mode long: rows/train/5" in said
    assert "bundle 0: 0 GPU, 1 CPU: engine 0" in said
    assert "each learner rank: weights 0.00, gradients 0.00, optimizer 0.00, activations " in said
    assert "a vocabulary of 375 (policy.logprob_chunk_tokens)" in said
    # Nothing is started, and nothing left behind but what the library of data sets caches.
    assert [path for path in sorted(place.rglob("*")) if "cache" not in str(path)] == before


def test_rows_that_are_left_out_are_counted_and_the_first_are_named(capsys):
    write_rows(image="nowhere.png", problem="<image> 1 + 1?")
    code, out, err = dry_run(capsys, *OWN, "data.columns.images=image")
    assert code == 1 and "error: data.path=rows.jsonl: " in err and "nowhere.png" in err
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"image": "nowhere.png" if number < 7 else None, "problem": f"{number} + 2 = ?"}
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = dry_run(capsys, *OWN, "data.columns.images=image")
    assert code == 0, err
    assert "  left out: 7 rows (7 missing), such as\n    rows/train/0 missing: " in out


def test_a_row_that_is_too_long_for_the_policy_is_among_those_left_out(capsys):
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    rows[7]["problem"] = "1 + " * 3000
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = dry_run(capsys, *OWN)
    assert code == 0, err
    assert "  left out: 1 row (1 too_long), such as\n    rows/train/7 too_long: " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data.path=nothing.jsonl"], ["data.path=nothing.jsonl: ", "does not exist"]),
        (["data.columns.reference=solution"], ["rows.jsonl", "data.columns.reference=solution"]),
        (["policy.model=./nowhere"], ["policy.model=./nowhere: ", "no such directory"]),
        # The setting is named once.
        (["policy.model=some/name"], ["error: policy.model=some/name is no directory here"]),
        (["policy.model=some/name"], ["policy.model=DIRECTORY", "Cannot reach the Hub"]),
        (["rollout.max_model_length=4097"], ["4097 exceeds the 4096 positions"]),
        (["modes.long.max_tokens=3000", "rollout.max_model_length=3010"], ["too long for mode"]),
        (["reward.plugins.mine.file=no.py"], ["no.py is no file"]),
        pytest.param(
            ["log.wandb_project=mine"],
            ["error: log.wandb_project=mine needs the wandb package"],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("wandb") is not None, reason="wandb is installed"
            ),
        ),
        (["run=mine.yaml/run"], ["run=mine.yaml/run: ", "cannot be written"]),
    ],
)
def test_where_the_run_would_fail_it_says_why_and_ends_with_code_1(capsys, arguments, said):
    code, out, err = dry_run(capsys, *OWN, *arguments)
    assert code == 1
    assert err.startswith("error: ") and all(words in err for words in said), err
    # What can be said nevertheless is said.
    assert "placement:\n  bundle 0" in out


def test_everything_that_is_wrong_is_told_at_once(capsys):
    arguments = ["data.path=nothing.jsonl", "policy.model=./nowhere"]
    code, _, err = dry_run(capsys, *OWN, *arguments)
    assert code == 1
    assert [line.split(":")[1] for line in err.splitlines()] == [
        " data.path=nothing.jsonl",
        " policy.model=./nowhere",
    ]


def test_a_mistyped_key_is_a_mistake_in_the_input_as_ever(capsys):
    assert dry_run(capsys, *OWN, "rollout.grup_size=4")[0] == 2


def test_built_in_models_are_not_made(capsys, place):
    code, out, err = dry_run(capsys, "config=hybrid_50_50.yaml", "scale=cpu_tiny")
    assert (code, err) == (0, "")
    assert "note: policy.model=builtin:tiny: is made when the run starts" in out
    assert "note: reward.preference.model=builtin:tiny: is made" in out
    assert "  chain_sum: without end, of which 256 were looked at\n" in out
    assert "90,000 parameters" in out and "vocabulary of 110" in out
    assert not list(place.glob("cache/hybrid-rl/*"))


def test_a_hub_name_is_known_by_its_configuration_alone(capsys, monkeypatch, tmp_path, model):
    asked: list[str] = []

    def download(name: str, **patterns: object) -> str:
        asked.append(str(patterns))
        for file in model.iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / "hub" / file.name).write_bytes(file.read_bytes())
        return str(tmp_path / "hub")

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr("policy.models.cache.snapshot_download", download)
    code, out, err = dry_run(capsys, *OWN, "policy.model=some/name")
    assert (code, err) == (0, "")
    assert "'*.json'" in asked[0] and "*.safetensors" not in asked[0]
    assert "its weights are downloaded when the run starts" in out
    assert "  mode short: rows/train/0, " in out
    # Counted by hand: embedding and head, and per layer attention, norms and feed-forward.
    attention = 128 * 128 * 2 + 128 * 64 * 2 + 2 * 32
    parameters = 2 * 375 * 128 + 2 * (attention + 3 * 128 * 128 + 2 * 128) + 128
    assert f"  {parameters:,} parameters" in out


def test_a_run_for_another_machine_is_looked_at_without_its_gpus_and_the_hub(capsys, monkeypatch):
    monkeypatch.setattr(recipe, "count_visible_gpus", lambda: 0)
    code, out, err = dry_run(capsys, "config=mine.yaml", "scale=node_8gpu")
    assert (code, err) == (0, "")
    assert "note: not on this machine: resources.gpus asks for 8 GPUs" in out
    assert "note: not checked: policy.model=Qwen/Qwen3-8B" in out
    assert "bundle 7: 1 GPU, 2 CPU: preference model 0" in out
    # What is wrong everywhere is an error here too.
    code, _, err = dry_run(capsys, "config=mine.yaml", "scale=node_8gpu", "data.path=no.jsonl")
    assert code == 1 and "no.jsonl" in err


def test_a_model_that_is_too_large_for_the_memory_is_noted(capsys, monkeypatch):
    monkeypatch.setattr(preflight.MemoryPlan, "total_bytes", 2**60)
    _, out, _ = dry_run(capsys, *OWN)
    assert "note: the run takes 1073741824.0 GiB of memory or more, and this machine has" in out


def without_weights(name: str) -> str:
    write_qwen3(Path(name), name)
    return f"policy.model=./{name}"


def test_memory_needs_a_configuration_and_no_weights(capsys, monkeypatch):
    # Two sizes of micro-batches are enough here, and quicker.
    monkeypatch.setattr(memory_meter, "LADDER", ())
    monkeypatch.setattr(recipe, "count_visible_gpus", lambda: 0)
    code, out, err = dry_run(capsys, "config=mine.yaml", "scale=one_gpu", without_weights("0.6B"))
    # The run would not start, and is told what it lacks.
    assert code == 1 and "no *.safetensors weights" in err
    said = out.partition("\nmemory:\n")[2]
    assert "596,049,920 parameters, 596,049,920 of them trained" in said
    assert "weights 1.11, gradients 2.22, optimizer 6.66, activations " in said
    assert "GiB at once, in the update, with micro-batches of 16,384 tokens" in said
    assert "the engine sleeps while the learner updates" in said
    assert "GPUs of 24 GB: " in said and "GPUs of 141 GB: " in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8B", "32B"])
@pytest.mark.parametrize("scale", ["one_gpu", "two_gpus", "four_gpus", "node_8gpu", "cluster"])
def test_large_models_are_metered_at_every_scale(capsys, monkeypatch, name, scale):
    monkeypatch.setattr(recipe, "count_visible_gpus", lambda: 0)
    settings = [f"scale={scale}", without_weights(name), "resources.ray_address=null"]
    if scale == "cluster":
        settings.pop()
    _, out, _ = dry_run(capsys, "config=mine.yaml", *settings)
    said = out.partition("\nmemory:\n")[2]
    assert {"8B": "8,190,735,360", "32B": "32,762,123,264"}[name] in said
    assert re.search(r"activations \d+\.\d\d, logits \d\.\d\d, publish buffers", said), said
    assert "GPUs of 141 GB: " in said


def test_a_cluster_that_is_not_up_is_a_note(capsys, monkeypatch):
    def nobody(**settings):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(preflight.ray, "init", nobody)
    code, out, err = dry_run(capsys, *OWN, "resources.ray_address=10.0.0.1:6379")
    assert (code, err) == (0, "")
    assert "note: nodes are not checked: resources.ray_address=10.0.0.1:6379: no Ray" in out
