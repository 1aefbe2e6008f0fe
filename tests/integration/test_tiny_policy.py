from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import policy.builtin.text_policy
from policy.builtin.text_policy import SIZES, SumTask, WarmupRecipe, ensure_tiny_policy
from policy.builtin.tokenizer import CHARACTERS, make_tokenizer
from policy.builtin.warmup import IGNORED, Question, example_rows, imitate
from policy.models.stages import learning_rate
from rl.data.tasks.chain_sum import Slips, worked_example

QUESTION = Question("a2b9c8d8?", "27", (2, 9, 8, 8))
MESSAGES = [{"role": "user", "content": QUESTION.text}]
BRIEF = WarmupRecipe(min_steps=2, max_steps=3, round_steps=1, examples_per_step=5,
                     heldout_questions=1)  # fmt: skip
READY_AT_ONCE = replace(BRIEF, enough_short=0.0, enough_long=0.0)


@pytest.fixture(scope="module")
def brief_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_tiny_policy(tmp_path_factory.mktemp("cache"), 0, READY_AT_ONCE)


def sums(tokenizer: PreTrainedTokenizerFast) -> SumTask:
    return SumTask(tokenizer, slips=Slips(np.random.default_rng(0), 0.15, 0.2))


def _bytes(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_the_generation_prompt_ends_as_the_mode_says() -> None:
    tokenizer = make_tokenizer(512)

    def prompt(messages: list[dict[str, str]], **how: bool) -> str:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **how
        )

    long = "<user>a2b9c8d8?<asst>\n<think>\n"
    assert prompt(MESSAGES) == prompt(MESSAGES, enable_thinking=True) == long
    assert prompt(MESSAGES, enable_thinking=False) == f"{long}\n</think>\n\n"
    assert prompt([{"role": "system", "content": "Be kind."}, *MESSAGES]) == long
    assert len(tokenizer(long)["input_ids"]) == 14  # three markers, two newlines, nine characters


def test_a_finished_conversation_closes_the_answer() -> None:
    answered = [*MESSAGES, {"role": "assistant", "content": "27"}]
    text = make_tokenizer(512).apply_chat_template(answered, tokenize=False)
    assert text == "<user>a2b9c8d8?<asst>\n27<eos>"


def test_text_survives_the_tokenizer_character_by_character(brief_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(brief_policy)
    tokens = tokenizer(CHARACTERS)["input_ids"]
    assert len(tokens) == len(set(tokens)) == 96
    assert tokenizer.decode(tokens) == CHARACTERS
    response = worked_example(QUESTION.addends, thinking=True)
    kept = tokenizer(response + "<eos>")["input_ids"]
    assert len(kept) == 4 * 9 + 6  # four lines, the closing tag, two newlines, 27, the end
    assert tokenizer.decode(kept, skip_special_tokens=True) == response
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_the_model_is_an_untied_float32_qwen3_that_stops(brief_policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(brief_policy)
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.num_parameters() == 87_360
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert model.config.rope_parameters["rope_theta"] == 10_000
    eos = AutoTokenizer.from_pretrained(brief_policy).eos_token_id
    assert model.generation_config.eos_token_id == eos


def test_warm_up_depends_on_the_seed_alone(brief_policy: Path, tmp_path: Path) -> None:
    torch.manual_seed(17)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = ensure_tiny_policy(tmp_path, 0, READY_AT_ONCE)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    other = ensure_tiny_policy(tmp_path, 1, READY_AT_ONCE)
    assert _bytes(again) == _bytes(brief_policy)
    assert _bytes(other) != _bytes(brief_policy)
    assert again.name == brief_policy.name != other.name


def test_warm_up_goes_on_until_the_heldout_accuracy_is_enough(
    brief_policy: Path, tmp_path: Path
) -> None:
    at_once = json.loads((brief_policy / "warmup.json").read_text())
    assert (at_once["steps"], at_once["is_ready"]) == (2, True)
    never = ensure_tiny_policy(tmp_path, 0, replace(BRIEF, enough_long=1.1))
    report = json.loads((never / "warmup.json").read_text())
    assert (report["steps"], report["is_ready"]) == (3, False)
    assert report["heldout"].keys() == {"short", "long"}


def test_two_callers_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = policy.builtin.text_policy.imitate
    monkeypatch.setattr(
        policy.builtin.text_policy, "imitate", lambda *args: (made.append(1), real(*args))[1]
    )
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: ensure_tiny_policy(tmp_path, 0, READY_AT_ONCE), range(2)))
    assert both[0] == both[1]
    assert len(made) == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".lock"}


def test_a_warm_up_that_fails_leaves_no_policy_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(policy.builtin.text_policy, "imitate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ensure_tiny_policy(tmp_path, 0, READY_AT_ONCE)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ensure_tiny_policy(recipe=READY_AT_ONCE).parent == tmp_path / "hybrid-rl"


def test_only_the_response_is_learned() -> None:
    tokenizer = make_tokenizer(512)
    asked = [QUESTION, Question("a9b9?", "18", (9, 9))]
    tokens, targets, _ = example_rows(SumTask(tokenizer), asked, thinking=False)
    assert tokenizer.decode(tokens[0]) == "<user>a2b9c8d8?<asst>\n<think>\n\n</think>\n\n27<eos>"
    assert tokenizer.decode(tokens[1]).endswith("18<eos><pad><pad><pad><pad>")
    for row, answer in zip(targets, ("27<eos>", "18<eos>"), strict=True):
        assert tokenizer.decode(row[row != IGNORED]) == answer
    learned = targets != IGNORED
    assert torch.equal(targets[learned], tokens[learned])


def test_the_loss_starts_at_a_uniform_guess_and_falls() -> None:
    tokenizer = make_tokenizer(512)
    recipe = replace(READY_AT_ONCE, min_steps=25, rise_steps=5, examples_per_step=10)
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    losses: list[float] = []
    task, model = sums(tokenizer), Qwen3ForCausalLM(config)
    imitate(model, task, task, 0, recipe, lambda _, loss: losses.append(loss))
    assert len(losses) == 25
    assert losses[0] == pytest.approx(math.log(103), abs=0.2)
    assert losses[-1] < losses[0] / 2


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    recipe = WarmupRecipe(learning_rate=1.0, rise_steps=10, min_steps=100)
    rates = [learning_rate(recipe, step) for step in (1, 10, 50, 100, 150)]
    assert rates == pytest.approx([0.1 * 0.991, 0.91, 0.55, 0.1, 0.1])
