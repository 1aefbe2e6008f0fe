"""Exports of what real learner ranks saved, and their proof in a real engine."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from policy.builtin.text_policy import ensure_tiny_policy
from rl.config.data import SourceConfig
from rl.config.recipe import load
from rl.export import __main__ as export
from rl.export import directory as serving
from rl.export import proof as proving
from rl.export.proof import PROOF_PROMPTS, ModeProof
from rl.export.transformers_answers import score_responses
from rl.loop.stages import Prompt, ReferenceRequest
from rl.run.directory import RunDirectory
from tests.integration.ranks import ask, close, open_ranks
from tests.integration.test_learner import make_batch

PROMPT = Prompt("export", ({"role": "user", "content": "?"},), "0")
# In float32, between what is served and the learner: half of it between learner and checkpoint
# (merging an adapter rounds), half between checkpoint and vLLM.
TOLERANCE = 1e-4
KINDS = {
    "zero_0": [],
    "zero_3_on_two_ranks": ["policy.zero_stage=3", "policy.ranks=2"],
    "lora_on_two_zero_3_ranks": [
        *("policy.zero_stage=3", "policy.ranks=2"),
        *("policy.lora.rank=4", "policy.lora.alpha=16"),
    ],
}
# Tiny weights would otherwise stay whole on every rank under ZeRO-3.
PARTITIONED = "policy.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"


@dataclass(frozen=True)
class Trained:
    """A run directory with a checkpoint, and what its learner computed before it ended."""

    root: Path
    sequences: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    """Of each sequence's tokens after the first, by the learner whose weights were saved."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Trained]:
    return {kind: train(tmp_path_factory.mktemp(kind) / "run", KINDS[kind]) for kind in KINDS}


def train(root: Path, settings: Sequence[str]) -> Trained:
    """One update of the tiny policy, large enough that its weights are clearly others."""
    config = load(
        [
            *("config=hybrid_50_50.yaml", "scale=cpu_tiny", f"run={root}", *settings),
            *("policy.optimizer.learning_rate=1e-3", "policy.optimizer.warmup_steps=0"),
            *([PARTITIONED] if settings else []),
        ]
    ).config
    directory = RunDirectory(root)
    ranks = open_ranks(config, ensure_tiny_policy())
    ask(ranks, "update", make_batch(1))
    progress = {"progress": {"trained_tokens": {"short": 1, "long": 2}}, "before": {}}
    with (
        directory.open(config),
        directory.checkpoints.writer(1, progress, keep_last=1) as path,
    ):
        ask(ranks, "save", path)
    sequences = [sample.trajectory.token_ids.tolist() for sample in make_batch(2).samples]
    answers = ChainMap(*ask(ranks, "reference_logprobs", requests(sequences)))
    logprobs = [answers[place] for place in range(len(sequences))]
    close(ranks)
    return Trained(root, sequences, logprobs)


def forward(directory: Path, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    scored = score_responses(directory, SourceConfig(), "float32", False, requests(sequences))
    return [one.logprobs for one in scored]


def requests(sequences: Sequence[Sequence[int]]) -> list[ReferenceRequest]:
    """For the log-probabilities of every token after the first."""
    return [
        ReferenceRequest(str(place), PROMPT, tuple(ids[:1]), tuple(ids[1:]), temperature=1.0)
        for place, ids in enumerate(sequences)
    ]


def largest_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    return max(
        abs(one - other)
        for row, other_row in zip(ours, theirs, strict=True)
        for one, other in zip(row, other_row, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_the_learners_logprobs(trained, kind, tmp_path):
    run = trained[kind]
    out = tmp_path / "out"
    assert export.main([f"run={run.root}", f"out={out}", "prove=false"]) == 0
    difference = largest_difference(forward(out, run.sequences), run.logprobs)
    print(f"{kind}: largest difference to the learner {difference:.1e}")
    assert difference <= TOLERANCE / 2
    untrained = forward(ensure_tiny_policy(), run.sequences)
    assert largest_difference(untrained, run.logprobs) > 0.1
    assert not [name for name in load_file(out / "model.safetensors") if "lora" in name]


def test_what_vllm_serves_is_proven_against_the_checkpoint(trained, tmp_path, monkeypatch):
    proofs: dict[str, ModeProof] = {}
    require_equal = proving.require_equal

    def kept(proof: Mapping[str, ModeProof], mean: float, largest: float) -> None:
        proofs.update(proof)
        require_equal(proof, mean, largest)

    monkeypatch.setattr(proving, "require_equal", kept)
    out = tmp_path / "out"
    run = trained["lora_on_two_zero_3_ranks"]
    assert export.main([f"run={run.root}", f"out={out}"]) == 0
    assert set(proofs) == {"short", "long"}
    for mode, proof in proofs.items():
        print(f"{mode}: {proof}")
        assert proof.prompts == PROOF_PROMPTS
        # A greedy and a sampled response of each prompt, with a token at least.
        assert proof.tokens >= 2 * PROOF_PROMPTS
        assert proof.max_difference <= TOLERANCE / 2
        assert proof.greedy_gap <= TOLERANCE / 2
        assert f"| {mode} | {PROOF_PROMPTS} | {proof.tokens} |" in (out / "README.md").read_text()


@pytest.mark.slow
def test_an_export_damaged_before_its_proof_is_refused(trained, tmp_path, monkeypatch, capsys):
    """One tensor is two per cent larger: the file is whole, and vLLM serves it."""
    write = serving.write_serving_directory

    def write_and_damage(source: Path, directory: Path, template: str, modes: Any) -> None:
        write(source, directory, template, modes)
        weights = load_file(directory / "model.safetensors")
        name = "model.layers.1.self_attn.o_proj.weight"
        weights[name] = 1.02 * weights[name]
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(serving, "write_serving_directory", write_and_damage)
    out = tmp_path / "out"
    assert export.main([f"run={trained['zero_0'].root}", f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert "the exported model differs from the checkpoint's" in error
    assert "nothing was exported" in error
    assert list(tmp_path.iterdir()) == []
