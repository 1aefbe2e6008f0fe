"""What `scale=auto` chooses by number and size of GPUs, and what it says where nothing fits."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rl.config.keys import RecipeError
from rl.config.recipe import load
from rl.config.run import Config
from rl.launch.auto_scale import BATCH, UTILIZATION, choose_scale
from rl.system.memory_estimate import CARDS, MemoryPlan, ModelSize, UpdatePeak
from rl.system.resident import GIB
from tests.metered_models import FILE, key_of, meter_again, metered_plan

HYBRID = "config=hybrid_50_50.yaml"
SCALES = {1: "one_gpu", 2: "two_gpus", 4: "four_gpus", 8: "node_8gpu"}
# Scale, GPUs, GiB of each, and a model that is too large for them.
TOO_LARGE = [
    ("one_gpu", 1, 22.5, "Qwen/Qwen3-1.7B"),
    ("one_gpu", 1, 79.1, "Qwen/Qwen3-8B"),
    ("node_8gpu", 8, 44.4, "Qwen/Qwen3-8B"),
    ("one_gpu", 1, 22.5, "Qwen/Qwen3-8B"),
]


@pytest.mark.parametrize(
    ("gpus", "card", "model", "batch", "utilization"),
    [
        (1, 24, "0.6B", 16384, 0.42),
        (1, 48, "1.7B", 16384, 0.28),
        (1, 80, "1.7B", 16384, 0.59),
        (1, 141, "1.7B", 16384, 0.77),
        (2, 24, "0.6B", 16384, 0.49),
        (2, 48, "1.7B", 16384, 0.5),
        (2, 80, "4B", 16384, 0.45),
        (2, 141, "4B", 16384, 0.69),
        (4, 24, "0.6B", 16384, 0.58),
        (4, 48, "4B", 16384, 0.44),
        (4, 80, "8B", 16384, 0.46),
        (4, 141, "8B", 16384, 0.69),
        (8, 24, "1.7B", 16384, 0.86),
        (8, 48, "4B", 16384, 0.9),
        (8, 80, "8B", 16384, 0.9),
        (8, 141, "8B", 16384, 0.9),
    ],
)
def test_the_model_and_its_settings_by_number_and_size_of_gpus(
    gpus, card, model, batch, utilization
):
    scale = SCALES[gpus]
    loaded = choose_scale([HYBRID], scale, gpus, CARDS[card] * GIB, metered_plan)
    config = loaded.config
    assert config.policy.model == f"Qwen/Qwen3-{model}"
    assert config.resources.gpus == gpus
    assert config.policy.micro_batch_tokens == batch
    assert config.rollout.engine["gpu_memory_utilization"] == utilization
    assert f"scale=auto takes {scale} for {gpus} GPU" in loaded.notes[0]
    assert f"of {CARDS[card]:.1f} GiB" in loaded.notes[0]
    # What was chosen fits, by the same figures.
    plan = metered_plan(config)
    assert max(plan.phases(batch, CARDS[card] * GIB).values()) <= CARDS[card] * GIB


@pytest.mark.parametrize(
    ("scale", "gpus", "card", "model", "remedies"),
    [
        (*TOO_LARGE[0], ["offload_optimizer.device=cpu", "lora.rank=32", "0.6 billion"]),
        (*TOO_LARGE[1], ["offload_optimizer.device=cpu", "lora.rank=32", "3.7 billion"]),
        (*TOO_LARGE[2], ["offload_optimizer.device=cpu", "lora.rank=32", "6.6 billion"]),
        (*TOO_LARGE[3], ["0.4 billion"]),
    ],
)
def test_a_named_model_that_does_not_fit_is_refused_with_what_would(
    scale, gpus, card, model, remedies
):
    settings = [HYBRID, f"policy.model={model}"]
    with pytest.raises(RecipeError) as refused:
        choose_scale(settings, scale, gpus, card * GIB, metered_plan)
    message = str(refused.value)
    assert f"{model} does not fit" in message
    told = message.partition("What would fit: ")[2].split("; or ")
    assert len(told) == len(remedies), message
    for advice, words in zip(told, remedies, strict=True):
        assert words in advice
    # Advice that is followed is enough.
    for advice in told[:-1]:
        words = [word for word in advice.split() if "=" in word]
        assert choose_scale([*settings, *words], scale, gpus, card * GIB, metered_plan)


def test_rows_that_are_too_long_for_a_rank_are_shared_where_a_person_says_so():
    def plan(config: Config) -> MemoryPlan:
        # Half a mebibyte a token: 50 GiB for a whole row, 12.5 for what a rank has of it.
        peaks = {
            tokens: UpdatePeak(2**19 * tokens, GIB, 2**19 * tokens) for tokens in (1024, 2**17)
        }
        return MemoryPlan(config, ModelSize(2**33, 1000, 2**16, trained=2**33, peaks=peaks))

    settings = [HYBRID, "policy.model=Qwen/Qwen3-8B", "rollout.max_model_length=102400"]
    with pytest.raises(RecipeError, match=r"What would fit: policy\.sequence_parallel=4; or "):
        choose_scale(settings, "node_8gpu", 8, 79.1 * GIB, plan)
    loaded = choose_scale(
        [*settings, "policy.sequence_parallel=4"], "node_8gpu", 8, 79.1 * GIB, plan
    )
    # A rank has 25,600 tokens of a row, more than the scale's micro-batch.
    assert loaded.config.policy.micro_batch_tokens == 16384


def test_what_a_person_sets_stays_and_is_noted_where_it_is_too_much():
    settings = [HYBRID, f"{UTILIZATION}=0.75", f"{BATCH}=8192", "scale=auto"]
    loaded = choose_scale(settings, "one_gpu", 1, 79.1 * GIB, metered_plan)
    assert loaded.config.rollout.engine["gpu_memory_utilization"] == 0.75
    assert loaded.config.policy.micro_batch_tokens == 8192
    assert f"{UTILIZATION}=0.75 is more than fits into the GPU's memory, 0.59" in loaded.notes
    assert f"{BATCH}=8192" not in loaded.notes[0]


def test_a_model_whose_configuration_is_out_of_reach_is_taken_as_it_is():
    loaded = choose_scale([HYBRID], "one_gpu", 1, GIB, lambda config: None)
    assert loaded.config == load([HYBRID, "scale=one_gpu"]).config
    assert "whether Qwen/Qwen3-1.7B fits is not known" in loaded.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("key", list(json.loads(FILE.read_text()) if FILE.exists() else []))
def test_the_kept_figures_are_the_meters(monkeypatch, tmp_path, key):
    wanted = json.loads(key)
    settings = [HYBRID, "scale=one_gpu", f"policy.model=Qwen/Qwen3-{wanted['model']}"]
    settings += [f"policy.zero_stage={1 if wanted['gradients_wait'] else 2}"]
    settings += [f"policy.logprob_chunk_tokens={wanted['logits']}"]
    settings += [f"rollout.max_model_length={wanted['row']}"]
    # What ranks that share rows have of one may be less than the recipe's modes need.
    settings += ["modes.short.max_tokens=64", "modes.long.max_tokens=64"]
    if wanted["lora"]:
        settings.append(f"policy.lora.rank={wanted['lora']}")
    config = load(settings).config
    assert key_of(config) == key
    kept = metered_plan(config)
    monkeypatch.setattr("tests.metered_models.FILE", tmp_path / "figures.json")
    assert dataclasses.asdict(meter_again(config).size) == dataclasses.asdict(kept.size)
