from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)

from policy.builtin.labeller import (
    MISTAKES,
    RECIPES,
    AnswerClaims,
    TinyLabellerName,
    claim_question,
    ensure_tiny_labeller,
    open_task,
    wrong_answer,
)
from policy.builtin.labelling import (
    NO,
    YES,
    balanced,
    claim_rows,
    heldout_accuracy,
    labelling_loss,
    p_yes_and_no,
    train,
    untrained_labeller,
)
from policy.builtin.sight.picture_task import PictureTask, one_picture
from policy.builtin.sight.vision_policy import VisionWarmupRecipe, ensure_tiny_vision_policy
from policy.builtin.text_policy import WarmupRecipe, ensure_tiny_policy
from policy.builtin.warmup import Question, laid_out
from policy.models.checks import read_config, refuse_unusable_weights
from rl.align.claims.rules import claims
from rl.align.claims.rules import question as question_by_rules
from rl.data.tasks.chain_sum import is_heldout
from rl.data.tasks.chain_sum import question as sum_question
from rl.loop.stages import Prompt
from rollout.chat import ChatTemplate
from rollout.prompts.procedural import VisualSource

BRIEF = replace(
    RECIPES["tiny_labeller"], min_steps=2, max_steps=2, examples_per_step=3, heldout_questions=4
)
SUM = Question("a2b9c8d8?", "27", (2, 9, 8, 8))


@pytest.fixture(scope="module", params=["sums", "pictures"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    if request.param == "sums":
        brief = WarmupRecipe(min_steps=1, max_steps=1, examples_per_step=5, heldout_questions=1)
        return ensure_tiny_policy(cache, 0, brief)
    brief = VisionWarmupRecipe(min_steps=1, max_steps=1, examples_per_step=5, heldout_questions=1)
    return ensure_tiny_vision_policy("tiny_qwen_vl", cache, 0, brief)


def name_for(policy: Path) -> TinyLabellerName:
    return "tiny_vision_labeller" if sees(policy) else "tiny_labeller"


def sees(model: Path) -> bool:
    return model.name.startswith(("tiny_qwen_vl", "tiny_vision"))


@pytest.fixture(scope="module")
def labeller(policy: Path) -> Path:
    return ensure_tiny_labeller(name_for(policy), policy.parent, policy, BRIEF)


def plain_model(labeller: Path) -> PreTrainedModel:
    auto_class = AutoModelForImageTextToText if sees(labeller) else AutoModelForCausalLM
    return auto_class.from_pretrained(labeller)


def opened(labeller: Path) -> AnswerClaims:
    return AnswerClaims(open_task(labeller, AutoTokenizer.from_pretrained(labeller)))


# What it is asked.


def rules_ask(asked: str, answer: str) -> list[str]:
    return [question_by_rules(claim) for claim in claims(asked, answer)]


@given(index=st.integers(0, 10_000), answer=st.integers(0, 999))
@settings(max_examples=50)
def test_the_wording_is_that_of_the_rules(index: int, answer: int) -> None:
    for asked in (sum_question(0, index, False).text, "+?"):
        for written in (f"{answer:02d}", str(answer)):
            assert rules_ask(asked, written) == [claim_question(asked, written)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_answers_are_asked_about_as_the_rules_would(mistake: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        wrong = wrong_answer(rng, 27, SUM.addends, mistake)
        assert rules_ask(SUM.text, wrong) == [claim_question(SUM.text, wrong)]


def draws(asked: Question, mistake: str) -> set[str]:
    rng = np.random.default_rng(0)
    return {wrong_answer(rng, int(asked.answer), asked.addends, mistake) for _ in range(3000)}


def test_mistakes_are_as_large_as_their_names_say() -> None:
    assert draws(SUM, "off_by_one") == {"26", "28"}
    assert draws(SUM, "off_by_two") == {"25", "29"}
    # In the place of 2, 8 or 9 stands any digit.
    assert draws(SUM, "misread") == {str(n) for n in range(18, 35) if n != 27}
    assert draws(SUM, "further") == {f"{n:02d}" for n in range(40) if n != 27}
    small = Question("+?", "01", (0, 0, 1))
    assert draws(small, "off_by_one") == {"00", "02"}
    assert draws(small, "off_by_two") == {"00", "03"}


def test_ill_formed_answers_are_no_two_digits_and_not_right_as_a_number() -> None:
    forms = draws(SUM, "ill_formed")
    assert {"7", "273", "2+", "27a", "2a", "a7"} <= forms
    assert not any(len(form) == 2 and form.isdigit() for form in forms)
    assert "7" not in draws(Question("+?", "07", (3, 3, 1)), "ill_formed")


def test_training_and_heldout_questions_never_meet(labeller: Path) -> None:
    task = opened(labeller).task
    training = task.questions(0, 50, heldout=False)
    heldout = task.questions(0, 50, heldout=True)
    assert {one.answer for one in training + heldout} <= {f"{n:02d}" for n in range(55)}
    assert all(int(one.answer) == sum(one.addends) for one in training + heldout)
    if not isinstance(task, PictureTask):
        assert [is_heldout(one.text) for one in training + heldout] == [False] * 50 + [True] * 50
    else:
        assert {medium.is_heldout for one in heldout for medium in one.media} == {True}
        assert not {one.addends for one in training} & {one.addends for one in heldout}


def test_a_claim_is_asked_about_as_a_run_asks(labeller: Path) -> None:
    """The same tokens as the chat template and the engine's expansion give."""
    claims = opened(labeller)
    task = claims.task
    chat = ChatTemplate(str(labeller))
    (asked,) = task.questions(0, 1, heldout=False)
    content = claim_question(asked.text, "12")
    prompt = Prompt("claim", ({"role": "user", "content": content},), "")
    if isinstance(task, PictureTask):
        source = VisualSource(one_picture(), seed=0)
        shown = source.train(0)
        assert shown.media == asked.media
        parts = [{"type": "image"}, {"type": "text", "text": content}]
        prompt = replace(shown, messages=({"role": "user", "content": parts},))
    tokens = chat.prompt_token_ids(prompt, thinking=False)
    if isinstance(task, PictureTask):
        tokens = task.inputs.expanded(tokens, prompt.media)
    (row,) = claim_rows(claims, [asked], ["12"])
    assert list(tokens) == row
    assert len(row) <= 30


# What it answers with.


def test_yes_and_no_are_a_token_each(labeller: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(labeller)
    yes, no = tokenizer.convert_tokens_to_ids([YES, NO])
    assert tokenizer(YES)["input_ids"] == [yes]
    assert tokenizer(NO)["input_ids"] == [no]
    assert [tokenizer.decode([token]) for token in (yes, no)] == [YES, NO]
    assert tokenizer.decode([yes], skip_special_tokens=True) == YES
    assert not {yes, no} & set(tokenizer("now note yesterday")["input_ids"])
    asked = claim_question(SUM.text, "27")
    assert tokenizer.decode(tokenizer(asked)["input_ids"]) == asked
    conversation = [{"role": "user", "content": asked}, {"role": "assistant", "content": NO}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert no in tokenizer(text)["input_ids"]


def test_its_probabilities_are_those_of_the_plain_model(labeller: Path) -> None:
    """Padding and the rows of others change nothing."""
    claims = opened(labeller)
    task = claims.task
    asked = task.questions(0, 3, heldout=True)
    answers = ["7", "273", "12"]
    model = untrained_labeller(labeller, task.tokenizer)
    together = p_yes_and_no(model, claims, asked, answers)
    plain = plain_model(labeller)
    for place in range(3):
        rows = claim_rows(claims, asked[place : place + 1], answers[place : place + 1])
        token_ids, visual = laid_out(task, asked[place : place + 1], rows)
        with torch.no_grad():
            logits = plain(input_ids=token_ids, **visual).logits[0, -1]
        alone = logits.softmax(dim=-1)[task.tokenizer.convert_tokens_to_ids([YES, NO])]
        assert torch.allclose(together[place], alone, atol=1e-6)


def test_the_directory_is_one_that_engines_load(policy: Path, labeller: Path) -> None:
    refuse_unusable_weights(labeller, read_config(labeller))
    assert {f.name for f in labeller.iterdir()} == {f.name for f in policy.iterdir()}
    assert not list(policy.parent.glob(".tiny-*"))
    config, text = read_config(labeller), read_config(labeller).get_text_config()
    assert text.vocab_size == len(AutoTokenizer.from_pretrained(labeller))
    assert config.tie_word_embeddings is False
    generation = json.loads((labeller / "generation_config.json").read_text())
    assert generation["eos_token_id"] == AutoTokenizer.from_pretrained(labeller).eos_token_id


# What it learns.


def test_the_loss_falls(policy: Path, labeller: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(labeller)
    torch.manual_seed(0)
    losses: list[float] = []
    recipe = replace(BRIEF, min_steps=25, max_steps=25, rise_steps=5, heldout_questions=2)
    model = untrained_labeller(policy, tokenizer)
    report = train(model, opened(labeller), recipe, lambda _, loss: losses.append(loss))
    assert report["steps"] == len(losses) == 25
    assert losses[-1] < losses[0] / 2


def test_the_loss_is_of_verdicts_foresight_and_names(labeller: Path) -> None:
    """Against each token's own log-probability, row by row."""
    claims = opened(labeller)
    task = claims.task
    model = untrained_labeller(labeller, task.tokenizer)
    asked, wrong = task.questions(0, 3, heldout=False), ["7", "273", "2+"]
    recipe = replace(BRIEF, foresight=0.5, naming=0.25)
    plain = plain_model(labeller)
    verdicts, answers, names = [], [], []
    for verdict, stated in ((YES, [one.answer for one in asked]), (NO, wrong)):
        for one, answer in zip(asked, stated, strict=True):
            rows = claim_rows(claims, [one], [answer])
            token_ids, visual = laid_out(task, [one], rows)
            with torch.no_grad():
                logits = plain(input_ids=token_ids, **visual).logits
            logprobs = logits[0].log_softmax(dim=-1)
            verdicts.append(logprobs[-1, task.tokenizer.convert_tokens_to_ids(verdict)])
            if verdict == NO:
                continue
            # The answer stands before "? Please ...", the marker, two newlines and the think tags.
            start = rows[0].index(task.tokenizer.convert_tokens_to_ids('" is ')) + 1
            assert task.tokenizer.decode(rows[0][start : start + 2]) == one.answer
            answers.append(logprobs[[start - 1, start], rows[0][start : start + 2]])
            if isinstance(task, PictureTask):
                first = rows[0].index(task.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
                digits = task.tokenizer.convert_tokens_to_ids([str(d) for d in one.addends])
                names.append(logprobs[[first, first + 1, first + 2], digits])
    expected = -torch.stack(verdicts).mean() - 0.5 * torch.stack(answers).sum(1).mean()
    if names:
        expected = expected - 0.25 * torch.stack(names).mean()
    with torch.no_grad():
        pairs = [(one.answer, other) for one, other in zip(asked, wrong, strict=True)]
        loss = labelling_loss(model, claims, asked, pairs, recipe)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_accuracy_counts_verdicts_by_mistake(labeller: Path) -> None:
    claims = opened(labeller)
    task = claims.task
    model = untrained_labeller(labeller, task.tokenizer)
    yes, no = task.tokenizer.convert_tokens_to_ids([YES, NO])
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[no] = head[yes]
    # A tie is no verdict, neither for nor against.
    assert set(heldout_accuracy(model, claims, 3).values()) == {0.0}
    assert heldout_accuracy(model, claims, 3).keys() == {"right", *MISTAKES}


def test_half_of_a_balanced_set_is_right() -> None:
    accuracy = dict.fromkeys(MISTAKES, 1.0) | {"right": 0.5, "misread": 0.0}
    assert balanced(accuracy, AnswerClaims.mistakes, (0.25, 0.15, 0.4, 0.1, 0.1)) == pytest.approx(
        0.55
    )
    for recipe in RECIPES.values():
        assert sum(recipe.shares) == pytest.approx(1)


def test_the_report_says_how_it_ended(labeller: Path) -> None:
    report = json.loads((labeller / "warmup.json").read_text())
    assert (report["seed"], report["steps"], report["is_ready"]) == (1, 2, False)
    assert report["accuracy"].keys() == {"right", *MISTAKES}
    expected = balanced(report["accuracy"], AnswerClaims.mistakes, BRIEF.shares)
    assert report["balanced"] == pytest.approx(expected, abs=1e-4)


def test_the_weights_depend_on_recipe_and_policy_alone(
    policy: Path, labeller: Path, tmp_path: Path
) -> None:
    name = name_for(policy)
    torch.manual_seed(17)
    state = torch.get_rng_state()
    again = ensure_tiny_labeller(name, tmp_path, policy, BRIEF)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.name == labeller.name
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (labeller / weights).read_bytes()
    other = ensure_tiny_labeller(name, tmp_path, policy, replace(BRIEF, seed=2))
    assert other.name != again.name
    assert (other / weights).read_bytes() != (labeller / weights).read_bytes()
