"""Best-of-N with self-feedback through the command line, with real engines of both models."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.builtin.text_policy import ensure_tiny_policy
from rl.config.recipe import load
from rl.export.transformers_answers import score_responses
from rl.loop.stages import ReferenceRequest
from rollout.chat import ChatTemplate
from rollout.prompts.stream import PromptStream
from tests.integration.command import HANGS_S, finish, kill, start

PROMPTS, SAMPLES = 8, 3
RESPONSES = 2 * PROMPTS * SAMPLES
SETTINGS = [
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    f"eval.prompts={PROMPTS}",
    f"eval.samples={SAMPLES}",
    "align.dpo.beta=0.1",
]
# Of the sum over a response. Measured: 2e-5 at most, in float32.
TOLERANCE = 1e-4
NOISE = 0.02


def evaluation(*arguments: str) -> subprocess.Popen[str]:
    return start("rl.evaluate", *SETTINGS, *arguments)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["prompt_id"], row["mode"], row["sample"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with noise on its weights."""
    directory = tmp_path_factory.mktemp("reference") / "noisy"
    shutil.copytree(ensure_tiny_policy(), directory)
    weights = directory / "model.safetensors"
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + NOISE * torch.randn(tensor.shape, generator=draw)
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    return directory


@pytest.mark.slow
def test_a_killed_best_of_goes_on_and_has_the_logprobs_of_transformers(
    reference: Path, tmp_path: Path
):
    policy = ensure_tiny_policy()
    command = (f"model={policy}", f"reference={reference}", f"out={tmp_path}")
    process = evaluation(*command)
    wait_for_logprobs(tmp_path, 5)
    kill(process)
    with (tmp_path / "logprobs.jsonl").open("a") as file:
        file.write('{"prompt_id": "chain_sum/heldout/')
    before = (tmp_path / "logprobs.jsonl").read_text().count("\n")
    assert 5 <= before <= RESPONSES
    print(f"killed with {before} log-probabilities")
    output = finish(evaluation(*command))
    assert f"0 of {RESPONSES} responses are to be asked for" in output
    if before < RESPONSES:
        assert f"{RESPONSES - before} responses are to be scored by the policy" in output
    assert f"{RESPONSES} responses are to be scored by the reference" in output
    assert_scored_as_transformers_does(tmp_path, policy, reference)
    assert_chosen_by_hand(tmp_path)
    again = finish(evaluation(*command))
    assert "starting" not in again and "to be scored" not in again


def wait_for_logprobs(out: Path, count: int) -> None:
    deadline = time.monotonic() + HANGS_S
    path = out / "logprobs.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    raise TimeoutError(f"{path} did not reach {count} lines")


def assert_scored_as_transformers_does(out: Path, policy: Path, reference: Path) -> None:
    samples = {key(row): row for row in rows_of(out / "samples.jsonl")}
    rows = rows_of(out / "logprobs.jsonl")
    found = {(row["by"], *key(row)): row["logprob"] for row in rows}
    assert len(samples) == RESPONSES
    assert len(found) == len(rows) == 2 * RESPONSES
    config = load(SETTINGS).config
    chat = ChatTemplate(str(policy))
    prompts = {prompt.id: prompt for prompt in PromptStream.open(config).heldout(PROMPTS)}
    requests = []
    for (prompt_id, mode, _), row in samples.items():
        prompt, token_ids = prompts[prompt_id], tuple(row["token_ids"])
        assert len(token_ids) == row["tokens"]
        context = chat.prompt_token_ids(prompt, config.modes[mode].thinking)
        requests.append(ReferenceRequest("r", prompt, context, token_ids, 1.0))
    for by, directory in (("policy", policy), ("reference", reference)):
        plain = score_responses(directory, config.data, "float32", False, requests)
        worst = max(
            abs(found[by, *one] - sum(scored.logprobs))
            for one, scored in zip(samples, plain, strict=True)
        )
        print(f"largest difference of a response by the {by}: {worst:.1e}")
        assert worst < TOLERANCE


def assert_chosen_by_hand(out: Path) -> None:
    samples = {key(row): row for row in rows_of(out / "samples.jsonl")}
    sums = {(row["by"], *key(row)): row["logprob"] for row in rows_of(out / "logprobs.jsonl")}
    right: dict[str, list[float]] = {"short": [], "long": []}
    others = 0
    for choice in rows_of(out / "best_of.jsonl"):
        rewards = []
        for number in range(SAMPLES):
            one = (choice["prompt_id"], choice["mode"], number)
            gained = sums["policy", *one] - sums["reference", *one]
            rewards.append(0.1 * gained / samples[one]["tokens"])
        assert choice["rewards"] == pytest.approx(rewards, abs=1e-9)
        best = samples[choice["prompt_id"], choice["mode"], choice["sample"]]
        assert rewards[choice["sample"]] >= max(rewards) - 1e-6
        others += choice["sample"] != 0
        right[choice["mode"]].append(best["accuracy"])
    assert others > 0
    best_of = json.loads((out / "result.json").read_text())["best_of"]
    assert best_of["beta"] == 0.1
    figures = best_of["modes"]
    for mode, accuracies in right.items():
        assert figures[mode]["accuracy"] == pytest.approx(sum(accuracies) / PROMPTS)
        assert figures[mode]["unrewarded"] == 0
