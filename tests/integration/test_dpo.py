"""Preference optimisation on real TRL, DeepSpeed and Ray, against plain transformers."""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file

from policy.dpo import DpoPair, train_dpo
from policy.dpo.pairs import COMPLETE, keep_pairs, training_order
from policy.dpo.stage import last_checkpoint
from policy.learner.learning_rate import learning_rate_at
from policy.models.checks import read_config
from policy.models.family import open_visual_inputs
from policy.models.loading import auto_class
from policy.models.qwen_vl import checkpoint_name
from rl.config.align import DpoConfig
from rl.config.data import SourceConfig
from rl.config.run import Config
from rl.data.media.names import MediaFile
from rl.export.transformers_answers import score_responses
from rl.loop.batching import reference_sample
from rl.loop.stages import Prompt, ReferenceRequest
from rl.run.sinks import read_metrics
from rl.system.cluster import Cluster
from rl.system.placement import place
from rollout.chat import ChatTemplate
from tests import minicpmv_tiny, qwen_vl_tiny
from tests.qwen3_tiny import tiny_qwen3

pytestmark = pytest.mark.usefixtures("local_ray")

FAMILIES = ("qwen3", "minicpmv", "qwen2_5_vl")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model directory of each family; those that see have two images beside."""
    found = {}
    for family in FAMILIES:
        directory = found[family] = tmp_path_factory.mktemp(family)
        if family == "minicpmv":
            minicpmv_tiny.save_tiny(directory)
        elif family == "qwen2_5_vl":
            qwen_vl_tiny.save_tiny(directory, family)
        else:
            save_text_policy(directory)
        for number, (width, height) in enumerate([(44, 60), (120, 70)]):
            minicpmv_tiny.noise_image(width, height, number).save(directory / f"{number}.png")
    return found


def save_text_policy(directory: Path) -> None:
    tokenizer = minicpmv_tiny.tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    model = tiny_qwen3(len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(directory)


def make_config(**policy: Any) -> Config:
    if policy.get("zero_stage") == 3:
        # Tiny parameters would otherwise stay whole on every rank.
        settings = {"stage3_param_persistence_threshold": 0}
        policy["deepspeed"] = {"zero_optimization": settings}
    return Config.model_validate(
        {
            "run": "unused",
            "steps": 1,
            "modes": {"short": {"share": 1.0, "thinking": False, "max_tokens": 16}},
            "data": {"kind": "chain_sum"},
            "rollout": {"max_model_length": 512},
            "policy": policy,
        }
    )


def make_dpo(**changes: Any) -> DpoConfig:
    fields = {
        "batch_size": 4,
        "steps": 3,
        "micro_batch_pairs": 2,
        "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "final_fraction": 0},
        "checkpoint_every": 2,
    }
    return DpoConfig.model_validate(fields | changes)


def make_pairs(directory: Path, count: int = 5, with_media: bool = False) -> list[DpoPair]:
    """Random responses; of policies that see, every other pair shows one image or two."""
    rng = np.random.default_rng(0)
    images = [MediaFile("image", str(directory / f"{number}.png")) for number in (0, 1)]
    chat = ChatTemplate(str(directory))
    pairs = []
    for number in range(count):
        media = tuple(images[: 1 + number // 2 % 2]) if with_media and number % 2 == 0 else ()
        text = f"what is {number}?"
        parts = [*[{"type": "image"}] * len(media), {"type": "text", "text": text}]
        content = parts if with_media else text
        prompt = Prompt(str(number), ({"role": "user", "content": content},), "", media=media)
        ids = chat.prompt_token_ids(prompt, thinking=False)
        chosen, rejected = (tuple(rng.integers(10, 80, 4 + number + k).tolist()) for k in (0, 2))
        pairs.append(DpoPair(f"pair-{number}", tuple(ids), media, chosen, rejected))
    return pairs


def train(config: Config, dpo: DpoConfig, source: Path, pairs: list[DpoPair], target: Path) -> Path:
    align = config.align.model_copy(update={"dpo": dpo})
    config = config.model_copy(update={"align": align})
    placement = place(config)
    group = placement_group([bundle.resources for bundle in placement.bundles])
    assert group.wait(30)
    try:
        cluster = Cluster(placement, group, False)
        return asyncio.run(
            train_dpo(config, source, pairs, target, cluster, lambda step, metrics: None)
        )
    finally:
        remove_placement_group(group)


def logprobs(directory: Path, pairs: list[DpoPair], field: str) -> np.ndarray:
    """Summed log-probability of each pair's response, one sequence at a time."""
    requests = [
        ReferenceRequest(
            pair.id,
            Prompt(pair.id, (), "", media=pair.media),
            pair.prompt_token_ids,
            getattr(pair, f"{field}_token_ids"),
            1.0,
        )
        for pair in pairs
    ]
    scored = score_responses(directory, SourceConfig(), "float32", False, requests)
    return np.array([sum(tokens.logprobs) for tokens in scored])


def plain_margins(source: Path, model: Path, pairs: list[DpoPair]) -> np.ndarray:
    chosen = logprobs(model, pairs, "chosen") - logprobs(source, pairs, "chosen")
    rejected = logprobs(model, pairs, "rejected") - logprobs(source, pairs, "rejected")
    return 0.1 * (chosen - rejected)


def reference_file(target: Path) -> Path:
    (file,) = target.glob("pairs-*/cache-*.arrow")
    return file


def trained_at(step: int, pairs: list[DpoPair], dpo: DpoConfig) -> list[DpoPair]:
    order = training_order(len(pairs), dpo.steps * dpo.batch_size, seed=0)
    return [pairs[place] for place in order[(step - 1) * dpo.batch_size : step * dpo.batch_size]]


LORA = {"lora": {"rank": 4}, "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("qwen3", {}),
        pytest.param("minicpmv", {}, marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", {}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"ranks": 2, "zero_stage": 3}, marks=pytest.mark.slow),
        pytest.param("minicpmv", {"ranks": 2, "zero_stage": 2} | LORA, marks=pytest.mark.slow),
        ("qwen2_5_vl", {"ranks": 2, "zero_stage": 3} | LORA),
    ],
    ids=str,
)
def test_three_steps_widen_the_margin_as_plain_forwards_see_it(
    family: str, policy: dict[str, Any], sources: dict[str, Path], tmp_path: Path
):
    # One micro-batch a rank and step: ZeRO-3 must take the reference in smaller ones.
    source, dpo = sources[family], make_dpo()
    pairs = make_pairs(source, dpo.batch_size, with_media=family != "qwen3")
    model = train(make_config(**policy), dpo, source, pairs, tmp_path)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert list(metrics) == [1, 2, 3]
    assert metrics[1]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[1]["dpo/margin"] == pytest.approx(0, abs=1e-4)
    # Each step has every pair in its batch, so a step lowers the loss on its own batch.
    losses = [metrics[step]["dpo/loss"] for step in (1, 2, 3)]
    assert losses == sorted(losses, reverse=True) and losses[2] < losses[0]
    # The last step has a learning rate of 0: the result is the policy that made its figures.
    assert metrics[3]["optim/learning_rate"] == 0
    margins = plain_margins(source, model, trained_at(3, pairs, dpo))
    assert metrics[3]["dpo/margin"] == pytest.approx(margins.mean(), abs=1e-3)
    assert metrics[3]["dpo/loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), abs=1e-3)
    assert metrics[3]["dpo/accuracy"] == (margins > 0).mean()
    kept = Dataset.from_file(str(reference_file(tmp_path))).to_dict()
    for name in ("chosen", "rejected"):
        expected = logprobs(source, pairs, name)
        assert np.abs(np.array(kept[f"ref_{name}_logps"]) - expected).max() < 1e-3
    check_layout(source, model, is_adapted="lora" in policy)
    assert not list(tmp_path.glob("checkpoint-*"))


def check_layout(source: Path, model: Path, is_adapted: bool) -> None:
    """The names and companions of the source; under LoRA only merged weights differ from it."""
    before, after = (load_file(path / "model.safetensors") for path in (source, model))
    if source.name.startswith("qwen2_5_vl"):
        before = {checkpoint_name("qwen2_5_vl", name): weight for name, weight in before.items()}
    assert before.keys() == after.keys()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (model / name).exists()
    if is_adapted:
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all("_proj.weight" in name for name in changed)
        assert not any(part in name for name in changed for part in ("vpm", "visual", "resampler"))


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [pytest.param(1, 0, marks=pytest.mark.slow), (2, 3)]
)
def test_the_weights_are_those_of_a_plain_loop(
    num_ranks: int, stage: int, sources: dict[str, Path], tmp_path: Path
):
    """Ranks of which only some have images, in micro-batches, against one pair at a time."""
    source, dpo = sources["minicpmv"], make_dpo(micro_batch_pairs=1)
    pairs = make_pairs(source, with_media=True)
    model = train(make_config(ranks=num_ranks, zero_stage=stage), dpo, source, pairs, tmp_path)
    found = load_file(model / "model.safetensors")
    start = load_file(source / "model.safetensors")
    expected = plain_loop(source, pairs, dpo)
    apart = {
        name: ((found[name] - weight).norm() / (weight - start[name]).norm().clamp(min=1e-6)).item()
        for name, weight in expected.items()
        # Attention does not depend on it: AdamW makes steps of what rounding leaves of a gradient.
        if not name.endswith("k_proj.bias")
    }
    assert {name: share for name, share in apart.items() if share > 0.02} == {}


def plain_loop(source: Path, pairs: list[DpoPair], dpo: DpoConfig) -> dict[str, torch.Tensor]:
    model = auto_class(read_config(source)).from_pretrained(source, dtype=torch.float32)
    inputs = open_visual_inputs(source, SourceConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    before = {
        side: dict(zip([p.id for p in pairs], logprobs(source, pairs, side), strict=True))
        for side in ("chosen", "rejected")
    }
    for step in range(1, dpo.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(dpo.optimizer, step, dpo.steps)
        optimizer.zero_grad()
        for pair in trained_at(step, pairs, dpo):
            ratios = {}
            for side in ("chosen", "rejected"):
                ratios[side] = response_logprob(model, inputs, pair, side) - before[side][pair.id]
            margin = dpo.beta * (ratios["chosen"] - ratios["rejected"])
            (-torch.nn.functional.logsigmoid(margin) / dpo.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def response_logprob(model: torch.nn.Module, inputs: Any, pair: DpoPair, side: str) -> torch.Tensor:
    prompt = Prompt(pair.id, (), "", media=pair.media)
    context = inputs.expanded(pair.prompt_token_ids, pair.media)
    response = getattr(pair, f"{side}_token_ids")
    request = ReferenceRequest(pair.id, prompt, context, response, 1.0)
    ids = torch.tensor([[*context, *response]])
    visual = inputs([reference_sample(request, context)], ids)
    seen = {} if visual is None else visual.arguments()
    table = torch.log_softmax(model(input_ids=ids, **seen).logits[0], dim=-1)
    first = len(context)
    return table[first - 1 : -1].gather(1, ids[0, first:, None]).sum()


def test_in_bfloat16_the_reference_is_not_rounded(sources: dict[str, Path], tmp_path: Path):
    """A log-probability of -33 has a step of 0.25 in bfloat16, a margin then one of 0.025."""
    source, dpo = sources["qwen3"], make_dpo(micro_batch_pairs=1, steps=1)
    train(make_config(dtype="bfloat16"), dpo, source, make_pairs(source), tmp_path)
    assert abs(read_metrics(tmp_path / "metrics.jsonl")[1]["dpo/margin"]) < 1e-4


@pytest.mark.slow
def test_killed_and_resumed_it_ends_at_the_same_weights(sources: dict[str, Path], tmp_path: Path):
    source, dpo = sources["minicpmv"], make_dpo(steps=8)
    config = make_config(lora={"rank": 2}, train=["llm", "resampler"])
    pairs = make_pairs(source, with_media=True)
    whole = train(config, dpo, source, pairs, tmp_path / "whole")
    target = tmp_path / "killed"
    killer = threading.Thread(target=kill_rank_after, args=(target / "checkpoint-2" / COMPLETE,))
    killer.start()
    with pytest.raises(RuntimeError, match="DPO rank 0 died"):
        train(config, dpo, source, pairs, target)
    killer.join()
    assert not (target / "model").exists()
    assert last_checkpoint(target)
    # What a kill within a save leaves.
    torn = target / "checkpoint-7"
    shutil.copytree(last_checkpoint(target), torn)
    (torn / COMPLETE).unlink()
    reference = reference_file(target).stat()
    resumed = train(config, dpo, source, pairs, target)
    assert reference_file(target).stat().st_mtime_ns == reference.st_mtime_ns
    expected = load_file(whole / "model.safetensors")
    found = load_file(resumed / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    metrics = [read_metrics(path / "metrics.jsonl") for path in (tmp_path / "whole", target)]
    assert metrics[0] == metrics[1]
    # Done is done.
    assert train(config, dpo, source, pairs, target) == resumed


def kill_rank_after(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::DpoRank"):
            process.kill()


def test_other_pairs_do_not_continue_a_stage(sources: dict[str, Path], tmp_path: Path):
    source = sources["qwen3"]
    pairs = make_pairs(source)
    keep_pairs(pairs[:4], tmp_path)
    with pytest.raises(ValueError, match="was begun with other pairs"):
        train(make_config(), make_dpo(), source, pairs, tmp_path)
