import pickle
from dataclasses import replace

import numpy as np
import pytest

from rl.loop.stages import Choice
from tests.fakes import trajectory


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("12", None, "12"),
        ("6 + 6</think>12", "6 + 6", "12"),
        ("6 + 6", "6 + 6", None),
        ("</think>", "", ""),
        # Not cut from the text, as a tool may have it.
        ("6 + 6</think> 12", "six and six", "twelve"),
    ],
)
def test_a_trajectory_comes_back_from_pickle_as_it_was(text, reasoning, answer):
    before = replace(
        trajectory(text=text, reasoning=reasoning, answer=answer),
        choice=Choice(True, 1, is_forced=True),
    )
    after = pickle.loads(pickle.dumps(before))
    assert (after.text, after.reasoning, after.answer) == (text, reasoning, answer)
    for name in ("token_ids", "loss_mask", "rollout_logprobs"):
        ours, theirs = getattr(before, name), getattr(after, name)
        assert theirs.dtype == ours.dtype and np.array_equal(theirs, ours)
    assert after.versions == before.versions
    assert after.choice == before.choice == Choice(True, 1, is_forced=True)


def test_what_comes_from_rays_object_store_is_little_work_for_the_garbage_collector():
    views: list[pickle.PickleBuffer] = []
    pickle.dumps(trajectory(), protocol=5, buffer_callback=views.append)
    assert not views


def test_a_long_text_is_pickled_once():
    reasoning = "so we go on " * 1000
    before = trajectory(text=f"{reasoning}</think>12", reasoning=reasoning, answer="12")
    assert len(pickle.dumps(before)) < 1.1 * len(before.text)
