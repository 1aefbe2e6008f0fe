"""Preference optimisation without ranks: pairs, batches, settings and the loss."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer

from policy.dpo import DpoPair
from policy.dpo.pairs import (
    COMPLETE,
    MEDIA,
    PairCollator,
    keep_pairs,
    reference_batch_size,
    refuse_bad_pairs,
    training_order,
)
from policy.dpo.stage import last_checkpoint
from policy.dpo.trainer import MetricsLog, PairTrainer
from rl.config.align import DpoConfig
from rl.config.run import Config
from rl.data.media.names import MediaFile
from rl.run.sinks import read_metrics
from tests import minicpmv_tiny
from tests.fakes import config
from tests.qwen3_tiny import tiny_qwen3

PAIR = DpoPair("a", (1, 2, 3), (), (4, 5), (6,))
IMAGE = MediaFile("image", "a.png")


def row(pair: DpoPair, directory: Path) -> dict[str, Any]:
    from datasets import load_from_disk

    return load_from_disk(str(keep_pairs([pair], directory)))[0]


def test_defaults_are_the_published_ones():
    dpo = DpoConfig()
    assert (dpo.beta, dpo.optimizer.learning_rate, dpo.batch_size, dpo.steps) == (
        0.1,
        1e-6,
        256,
        400,
    )
    assert DpoConfig(micro_batch_pairs=4).accumulation(ranks=8) == 8


def test_a_batch_that_is_not_whole_micro_batches_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=10 must be a multiple of the 6 pairs that 3"):
        DpoConfig(batch_size=10, micro_batch_pairs=2).accumulation(ranks=3)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"prompt_token_ids": ()}, r"a \(its prompt is empty\)"),
        ({"chosen_token_ids": ()}, r"a \(its chosen response is empty\)"),
        ({"rejected_token_ids": ()}, r"a \(its rejected response is empty\)"),
        ({"rejected_token_ids": (4, 5)}, r"a \(its responses are the same\)"),
        ({"rejected_token_ids": (6, 7, 8)}, r"a \(6 tokens, of at most 5\)"),
    ],
)
def test_bad_pairs_are_refused_by_name(changes: dict[str, Any], fault: str):
    good = replace(PAIR, id="good")
    refuse_bad_pairs([PAIR, good], max_length=5)
    with pytest.raises(ValueError, match=f"1 of 2 preference pairs cannot be trained on: {fault}"):
        refuse_bad_pairs([replace(PAIR, **changes), good], max_length=5)


def test_many_bad_pairs_are_counted():
    bad = [replace(PAIR, id=str(place), chosen_token_ids=()) for place in range(8)]
    with pytest.raises(ValueError, match=r"8 of 8 .*; 4 \(its chosen .*\) and 3 more; leave"):
        refuse_bad_pairs(bad, max_length=5)


def test_kept_pairs_are_written_once_and_no_others_beside_them(tmp_path: Path):
    first = keep_pairs([PAIR], tmp_path)
    written = (first / "state.json").stat().st_mtime_ns
    assert keep_pairs([PAIR], tmp_path) == first
    assert (first / "state.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="was begun with other pairs"):
        keep_pairs([replace(PAIR, rejected_token_ids=(7,))], tmp_path)


def dpo_config(zero_stage: int, micro_batch_pairs: int) -> Config:
    return config(
        policy={"ranks": 2, "zero_stage": zero_stage},
        align={"dpo": {"micro_batch_pairs": micro_batch_pairs}},
    )


@given(num_pairs=st.integers(3, 40), at_once=st.integers(1, 8))
def test_under_zero_3_every_rank_forwards_the_reference_twice(num_pairs: int, at_once: int):
    size = reference_batch_size(num_pairs, dpo_config(3, at_once))
    assert 1 <= size <= at_once
    # As accelerate shards batches: each rank has as many, rounded up.
    assert math.ceil(math.ceil(num_pairs / size) / 2) >= 2
    # No smaller than it must be.
    assert size == at_once or math.ceil(math.ceil(num_pairs / (size + 1)) / 2) == 1


def test_zero_3_needs_more_pairs_than_ranks():
    with pytest.raises(ValueError, match=r"2 pairs for policy\.ranks=2; sample more prompts, or"):
        reference_batch_size(2, dpo_config(3, 4))
    assert reference_batch_size(2, dpo_config(2, 4)) == 4


@given(num_pairs=st.integers(1, 40), num_places=st.integers(1, 200), seed=st.integers(0, 9))
def test_every_pair_is_trained_as_often_as_every_other(num_pairs: int, num_places: int, seed: int):
    order = training_order(num_pairs, num_places, seed)
    assert len(order) == num_places
    for start in range(0, num_places, num_pairs):
        assert max(Counter(order[start : start + num_pairs]).values()) == 1
    # A longer run begins like a shorter one.
    assert training_order(num_pairs, num_places + 7, seed)[:num_places] == order


def test_a_batch_has_chosen_rows_then_rejected_ones(tmp_path: Path):
    batch = PairCollator(0, None, 10)([row(PAIR, tmp_path)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 6, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]
    assert MEDIA not in batch


class TwoTokensPerMedium:
    """Visual inputs of a family whose marker is 3 and whose visual tokens are 3, 3."""

    def __call__(self, samples: Any, token_ids: torch.Tensor) -> Any:
        return SimpleNamespace(samples=samples, shape=token_ids.shape)

    def expanded(self, token_ids: Any, media: Any) -> tuple[int, ...]:
        assert list(token_ids).count(3) == len(media)
        return tuple(t for token in token_ids for t in ([3, 3] if token == 3 else [token]))


def test_media_are_laid_out_for_both_rows(tmp_path: Path):
    shown = row(replace(PAIR, media=(IMAGE,)), tmp_path)
    batch = PairCollator(0, TwoTokensPerMedium(), 6)([shown])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 3, 4, 5], [1, 2, 3, 3, 6, 0]]
    chosen, rejected = batch[MEDIA].visual.samples
    assert chosen.media == rejected.media == (IMAGE,)
    assert chosen.trajectory.token_ids.tolist() == [1, 2, 3, 3, 4, 5]
    assert rejected.trajectory.loss_mask.tolist() == [False] * 4 + [True]
    with pytest.raises(ValueError, match="pair a has 6 tokens with those of its media, of at most"):
        PairCollator(0, TwoTokensPerMedium(), 5)([shown])
    with pytest.raises(ValueError, match="pair a shows media to a policy of text alone"):
        PairCollator(0, None, 6)([shown])


def test_the_last_checkpoint_is_the_newest_complete_one(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    for step, is_complete in [(2, True), (10, True), (12, False)]:
        (tmp_path / f"checkpoint-{step}").mkdir()
        if is_complete:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    # What was being written when its process ended is in nobody's way.
    assert not (tmp_path / "checkpoint-12").exists()


def test_curves_have_our_names_and_no_loss_that_is_not_a_number(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl", is_writer=True)
    state = SimpleNamespace(global_step=3)
    log.on_log(None, state, None, {"loss": 0.5, "rewards/margins": 0.25, "epoch": 0.1})
    log.on_log(None, state, None, {"train_runtime": 3.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == {3: {"dpo/loss": 0.5, "dpo/margin": 0.25}}
    with pytest.raises(ValueError, match="DPO loss of step 3 is nan"):
        log.on_log(None, state, None, {"loss": math.nan})


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    return tiny_qwen3(len(minicpmv_tiny.tiny_tokenizer()), num_hidden_layers=1)


def settings(directory: Path) -> DPOConfig:
    return DPOConfig(
        str(directory),
        max_length=None,
        precompute_ref_log_probs=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        per_device_train_batch_size=2,
        report_to="none",
    )


def open_trainer(model: Qwen3ForCausalLM, pairs: list[DpoPair], directory: Path) -> PairTrainer:
    from datasets import load_from_disk

    return PairTrainer(
        model,
        DpoConfig(batch_size=2, steps=1),
        on_batch=lambda: None,
        args=settings(directory),
        train_dataset=load_from_disk(str(keep_pairs(pairs, directory))),
        data_collator=PairCollator(0, None, 100),
        processing_class=minicpmv_tiny.tiny_tokenizer(),
    )


def test_the_loss_is_the_one_computed_by_hand(model: Qwen3ForCausalLM, tmp_path: Path):
    """A uniform policy over V tokens: two chosen tokens, one rejected, references -1 and -2."""
    trainer = open_trainer(model, [PAIR], tmp_path)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rows = [trainer.train_dataset[0] | {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}]
    loss = trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))
    uniform = -math.log(model.config.vocab_size)
    margin = 0.1 * ((2 * uniform + 1) - (uniform + 2))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)), abs=1e-6)


def test_token_ids_train_as_the_texts_do_in_trl_itself(model: Qwen3ForCausalLM, tmp_path: Path):
    tokenizer = minicpmv_tiny.tiny_tokenizer()
    texts = [("what?", "this", "that one"), ("who?", "it is me", "no")]

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    pairs = [
        DpoPair(prompt, ids(prompt), (), *(ids(t + minicpmv_tiny.END) for t in responses))
        for prompt, *responses in texts
    ]
    ours = open_trainer(model, pairs, tmp_path / "ours")
    columns = dict(zip(("prompt", "chosen", "rejected"), zip(*texts, strict=True), strict=True))
    theirs = DPOTrainer(
        model,
        args=settings(tmp_path / "theirs"),
        train_dataset=Dataset.from_dict({name: list(texts) for name, texts in columns.items()}),
        processing_class=tokenizer,
    )
    with torch.no_grad():
        model.lm_head.weight.add_(0.1 * torch.randn_like(model.lm_head.weight))
    losses = []
    for trainer in (ours, theirs):
        rows = sorted(trainer.train_dataset, key=lambda row: len(row["prompt_ids"]))
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        losses.append(trainer.compute_loss(model, batch).item())
    assert losses[0] == losses[1] != math.log(2)
