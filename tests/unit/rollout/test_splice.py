"""Where context ends and reference begins, over a byte-level BPE that merges across the answer."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.loop.stages import Choice, Prompt, RolloutGroup, RolloutRequest, Trajectory
from rollout.chat import ChatTemplate
from rollout.splice import Splice
from tests.bpe_policy import make_tokenizer

PROMPT = Prompt("p", ({"role": "user", "content": "Which city?"},), "Paris")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe")
    make_tokenizer().save_pretrained(path)
    return ChatTemplate(str(path))


def group(chat, text, thinking=True):
    prompt_ids = chat.prompt_token_ids(PROMPT, thinking)
    response = (*chat.token_ids(text), *chat.token_ids("<|im_end|>"))
    ids = np.array([*prompt_ids, *response], np.int32)
    mask = np.arange(len(ids)) >= len(prompt_ids)
    one = Trajectory(ids, mask, np.zeros(len(ids), np.float32), (3, 4), "stop", text, None, text)
    request = RolloutRequest("3/4/0", PROMPT, "long", prompt_ids, 1, 99, 0.7, None)
    return RolloutGroup(request, (one,), engine=1)


def spliced(chat, text, kept_text, reference, max_length=4096):
    return Splice(chat, max_length).after_reasoning(group(chat, text), 0, kept_text, reference)


def test_a_boundary_inside_a_token_is_made_exact(chat):
    text = "2 and 2. the answer is Paris, not London"
    sampled = chat.token_ids(text)
    place = next(p for p, token in enumerate(sampled) if len(chat.raw_text([token])) > 6)
    kept = chat.raw_text(sampled[: place + 1])[:-3]
    request = spliced(chat, text, kept, "Paris")
    prompt_ids = chat.prompt_token_ids(PROMPT, True)
    context = request.context_token_ids[len(prompt_ids) :]
    assert request.context_token_ids[: len(prompt_ids)] == prompt_ids
    assert chat.raw_text(context) == kept
    assert request.reference_token_ids == chat.token_ids("Paris")
    assert context[:place] == sampled[:place], "kept, so that the prefix cache has them"
    assert (request.temperature, request.engine) == (0.7, 1)
    assert request.version == 3, "its keys and values are kept under the version it began with"


def test_sampled_tokens_are_kept_to_the_last_where_the_boundary_is_one(chat):
    text = "two and two</think>\n\nParis"
    request = spliced(chat, text, "two and two</think>", "London")
    prompt_ids = chat.prompt_token_ids(PROMPT, True)
    kept = request.context_token_ids[len(prompt_ids) :]
    assert kept == chat.token_ids(text)[: len(kept)]


def test_a_space_before_the_answer_goes_with_the_reference(chat):
    request = spliced(chat, "Answer: 42", "Answer: ", "Paris")
    prompt_ids = chat.prompt_token_ids(PROMPT, True)
    assert chat.raw_text(request.context_token_ids[len(prompt_ids) :]) == "Answer:"
    assert request.reference_token_ids == chat.token_ids(" Paris")


@given(
    text=st.text(st.sampled_from("aAn swer:{}4🙂答案\n\\boxed"), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    reference=st.text(st.sampled_from("Pari42 🙃四"), min_size=1, max_size=12),
)
def test_context_and_reference_spell_what_they_should_at_any_cut(chat, text, cut, reference):
    kept = text[: min(cut, len(text))]
    request = spliced(chat, text, kept, reference)
    prompt_ids = chat.prompt_token_ids(PROMPT, True)
    context = chat.raw_text(request.context_token_ids[len(prompt_ids) :])
    assert context + chat.raw_text(request.reference_token_ids) == kept + reference
    assert context in (kept, kept[:-1])


def test_the_baseline_stands_right_after_an_empty_think_block(chat):
    request = Splice(chat, 4096).without_reasoning(PROMPT, "Paris", 1.0)
    assert request.context_token_ids == chat.prompt_token_ids(PROMPT, thinking=False)
    assert chat.raw_text(request.context_token_ids).endswith("<think>\n\n</think>\n\n")
    assert request.engine is request.version is None


def test_what_does_not_fit_is_not_asked(chat):
    text = "Answer: 42"
    length = len(chat.prompt_token_ids(PROMPT, True)) + len(chat.token_ids("Answer:"))
    fits = length + len(chat.token_ids(" Paris"))
    assert spliced(chat, text, "Answer: ", "Paris", fits) is not None
    assert spliced(chat, text, "Answer: ", "Paris", fits - 1) is None
    assert spliced(chat, text, text, "") is None


def test_behind_a_choice_the_context_is_that_of_the_mode_that_was_chosen(chat):
    """The text begins behind the choice, and the reference stands where it would there."""
    kinds = chat.choice_tokens()
    for thinking, tokens in ((True, kinds.long), (False, kinds.short)):
        forced = group(chat, "so Paris, not London", thinking)
        asked = chat.prompt_token_ids(PROMPT, "auto")
        (one,) = forced.trajectories
        chosen = dataclasses.replace(
            one,
            loss_mask=np.arange(len(one.token_ids)) >= len(asked),
            choice=Choice(thinking, len(tokens)),
        )
        free = dataclasses.replace(
            forced,
            request=dataclasses.replace(forced.request, prompt_token_ids=asked),
            trajectories=(chosen,),
        )
        splice = Splice(chat, 4096)
        expected = splice.after_reasoning(forced, 0, "so ", "Paris")
        assert splice.after_reasoning(free, 0, "so ", "Paris") == expected
