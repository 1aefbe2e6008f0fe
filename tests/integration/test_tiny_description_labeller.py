"""The labeller of descriptions, made in two steps; what it is asked is tested without it
(tests/unit/policy/builtin/sight/test_describing.py), and how it learns in test_tiny_labeller.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from policy.builtin.labelling import NO, YES, claim_rows, labelling_loss, untrained_labeller
from policy.builtin.sight.describing_task import DescribingTask, all_ways
from policy.builtin.sight.description_labeller import (
    MISTAKES,
    RECIPE,
    DescriptionClaims,
    ensure_tiny_description_labeller,
)
from policy.builtin.sight.vision_policy import VisionWarmupRecipe, ensure_tiny_vision_policy
from policy.builtin.warmup import laid_out
from policy.models.checks import read_config, refuse_unusable_weights
from rollout.chat import ChatTemplate
from rollout.prompts.procedural import VisualSource

BRIEF = replace(RECIPE, min_steps=2, max_steps=2, examples_per_step=3, heldout_questions=4)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    brief = VisionWarmupRecipe(min_steps=1, max_steps=1, examples_per_step=5, heldout_questions=1)
    cache = tmp_path_factory.mktemp("cache")
    return ensure_tiny_vision_policy("tiny_describer", cache, 0, brief)


@pytest.fixture(scope="module")
def labeller(policy: Path) -> Path:
    return ensure_tiny_description_labeller(policy.parent, policy, BRIEF)


def opened(labeller: Path) -> DescriptionClaims:
    tokenizer = AutoTokenizer.from_pretrained(labeller)
    return DescriptionClaims(DescribingTask.open(labeller, tokenizer, all_ways()))


def test_the_directory_is_one_that_engines_load_and_says_how_it_ended(labeller: Path) -> None:
    refuse_unusable_weights(labeller, read_config(labeller))
    report = json.loads((labeller / "warmup.json").read_text())
    assert (report["seed"], report["steps"], report["is_ready"]) == (1, 2, False)
    assert report["accuracy"].keys() == {"right_number", "right_part", *MISTAKES}


def test_a_claim_is_asked_about_as_a_run_asks(labeller: Path) -> None:
    """The same tokens as the chat template and the engine's expansion give, in both ways."""
    claims, chat = opened(labeller), ChatTemplate(str(labeller))
    questions = claims.task.questions(0, 2, heldout=False)
    stated = [question.answer.partition(".")[0] + "." for question in questions]
    rows = claim_rows(claims, questions, stated)
    for question, claim, row in zip(questions, stated, rows, strict=True):
        way = question.media[0].source
        shown = VisualSource(all_ways().sources[way], 0, way).train(question.media[0].index)
        assert shown.media == question.media
        parts = [
            {"type": question.media[0].kind},
            {"type": "text", "text": claims.asked(question, claim)},
        ]
        prompt = replace(shown, messages=({"role": "user", "content": parts},))
        tokens = chat.prompt_token_ids(prompt, thinking=False)
        assert claims.task.inputs is not None
        assert list(claims.task.inputs.expanded(tokens, prompt.media)) == row
    assert {question.media[0].kind for question in questions} == {"image", "video"}


def test_the_loss_is_of_verdicts_foresight_and_names(labeller: Path) -> None:
    """Against each token's own log-probability, row by row."""
    claims = opened(labeller)
    tokenizer = claims.task.tokenizer
    questions = claims.task.questions(0, 2, heldout=False)
    pairs = []
    for question in questions:
        _, second, *_ = question.answer.removesuffix(".").split(". ")
        other = "purple" if "purple" not in second else "black"
        words = second.split()
        pairs.append((f"{second}.", " ".join([*words[:-2], other, f"{words[-1]}."])))
    plain = AutoModelForImageTextToText.from_pretrained(labeller)
    head, norm = plain.get_output_embeddings(), plain.model.language_model.norm
    verdicts, holds, told, ahead, colours, forms = [], [], [], [], [], []
    for question, pair in zip(questions, pairs, strict=True):
        for verdict, claim in zip((YES, NO), pair, strict=True):
            (row,) = claim_rows(claims, [question], [claim])
            token_ids, visual = laid_out(claims.task, [question], [row])
            with torch.no_grad():
                made = plain(input_ids=token_ids, output_hidden_states=True, **visual)
                logits = made.logits[0]
                # What the layer before the last would say.
                early = head(norm(made.hidden_states[-2][0]))
            logprobs = logits.log_softmax(dim=-1)
            verdicts.append(logprobs[-1, tokenizer.convert_tokens_to_ids(verdict)])
            for word in claim.removesuffix(".").split()[-2:]:
                place = row.index(tokenizer.convert_tokens_to_ids(f" {word}"))
                # From the wrong colour on, the wrong claim does not hold.
                between = logits[place, tokenizer.convert_tokens_to_ids([YES, NO])].log_softmax(-1)
                holds.append(between[int(verdict == NO)])
                if verdict == YES:
                    told.append(early.log_softmax(dim=-1)[place - 1, row[place]])
            if verdict == NO:
                continue
            # At the word of the part, two before the form.
            names = tokenizer.convert_tokens_to_ids([f" {name}" for name in NAMES["form"]])
            form = NAMES["form"].index(claim.removesuffix(".").split()[-1])
            ahead.append(early[place - 2, names].log_softmax(dim=-1)[form])
            marker = f"<|{question.media[0].kind}_pad|>"
            first = row.index(tokenizer.convert_tokens_to_ids(marker))
            for place, part in enumerate(question.scene.parts, start=first):
                for kind, found in (("colour", colours), ("form", forms)):
                    names = NAMES[kind] + ["nothing"]
                    ids = tokenizer.convert_tokens_to_ids([f" {name}" for name in names])
                    right = names.index(getattr(part, kind) if part else "nothing")
                    found.append(early[place, ids].log_softmax(dim=-1)[right])
    expected = -torch.stack(verdicts).mean() - 0.5 * torch.stack(told).mean()
    expected = expected - 0.5 * torch.stack(ahead).mean()
    for beside in (holds, colours, forms):
        expected = expected - 0.25 * torch.stack(beside).mean()
    recipe = replace(BRIEF, foresight=0.5, naming=0.25)
    model = untrained_labeller(labeller, tokenizer)
    with torch.no_grad():
        loss = labelling_loss(model, claims, questions, pairs, recipe)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


NAMES = {
    "colour": ["red", "blue", "green", "yellow", "purple", "black"],
    "form": ["circle", "square", "triangle", "cross", "star"],
}
