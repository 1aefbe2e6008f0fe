"""What the built-in policy that reconstructs is taught to say of a form."""

from __future__ import annotations

import numpy as np
import pytest

from policy.builtin.sight.form_task import GUESSES, TASK, TASK_NAME, worked_example
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import draw_scene, read_settings
from rl.data.tasks.pictures.forms import FormsScene, kind_of
from rl.sweep.arms import load_sweep

DIGITS = (3, 4, 7, 8, 6, 4, 2, 2, 2)


def form(place: int, *masked: int) -> FormsScene:
    kind = kind_of(DIGITS, frozenset(masked), place)
    answer = str(DIGITS[place])
    return FormsScene("", "=?", answer, "number", DIGITS, frozenset(masked), place, kind)


def slips(reasoning: float = 0.0, answer: float = 0.0) -> Slips:
    return Slips(np.random.default_rng(0), reasoning, answer)


@pytest.mark.parametrize(
    ("scene", "long", "short"),
    [
        (form(1, 1), "+3[?]7\n3[4]7\n", "4"),
        (form(2, 1), "+3?[7]\n34[7]\n", "7"),
        (form(3, 3, 0, 8), ">[?]64\n[8]64\n", "8"),
        (form(7, 6, 7), "=?[?]2\n2[2]2\n", "2"),
        # One cell of a sum or of equal steps leaves several digits for the others.
        (form(0, 0, 1), "+[?]?7\n[?]?7\n", "?"),
        (form(5, 4, 5), ">8?[?]\n8?[?]\n", "?"),
        (form(8, 6, 7, 8), "=??[?]\n??[?]\n", "?"),
    ],
)
def test_an_example_says_what_is_seen_then_what_follows(scene, long, short):
    assert worked_example(scene, thinking=True) == f"{long}</think>\n\n{short}"
    assert worked_example(scene, thinking=False) == short


def test_without_slips_examples_are_right_and_honest():
    settings = read_settings(TASK_NAME, TASK | {"unknown_answer": "honest"})
    for index in range(300):
        scene = draw_scene(TASK_NAME, settings, 0, index, False)
        assert worked_example(scene, thinking=False) == scene.answer
        assert worked_example(scene, thinking=True).endswith(f"</think>\n\n{scene.answer}")


@pytest.mark.parametrize("thinking", [False, True])
def test_where_nothing_tells_some_examples_make_up_a_row_that_fits(thinking):
    made_up = slips()
    texts = [worked_example(form(0, 0, 1), thinking, made_up) for _ in range(600)]
    digits = [int(text[-1]) for text in texts if text[-1] != "?"]
    assert abs(len(digits) / len(texts) - GUESSES) < 0.06
    assert set(digits) == set(range(8))
    for text in texts:
        if thinking and text[-1] != "?":
            row = [int(sign) for sign in text.split("\n")[1] if sign.isdigit()]
            assert row[0] + row[1] == row[2] == 7


def test_a_misread_example_reasons_on_from_what_it_read():
    misread = slips(reasoning=0.5)
    texts = [worked_example(form(2, 2), True, misread) for _ in range(300)]
    read = [tuple(map(int, text[1:3])) for text in texts]
    assert len(set(read)) > 30
    for text, (a, b) in zip(texts, read, strict=True):
        assert text == f"+{a}{b}[?]\n{a}{b}[{text[-1]}]\n</think>\n\n{text[-1]}"
        # Two digits whose sum has none of its own are no row of a form, and any digit follows.
        assert int(text[-1]) == a + b or a + b > 9


def test_short_answers_slip_by_one_or_two():
    slipping = slips(answer=1.0)
    assert {worked_example(form(1), False, slipping) for _ in range(200)} == {"2", "3", "5", "6"}


def test_the_study_trains_on_what_the_policy_was_warmed_up_for():
    sweep = load_sweep(["config=sweep_corruption.yaml"])
    masked = {}
    for arm in sweep.arms:
        assert arm.config.policy.model == "builtin:tiny_reconstructor"
        sources = dict(arm.config.data.sources)
        trained = sources["trained"]
        masked[arm.point.variant] = trained.settings["masked"]
        own = TASK | {"masked": trained.settings["masked"]}
        if arm.point.variant == "honest mix":
            own["unknown_answer"] = "honest"
        assert read_settings(TASK_NAME, trained.settings) == read_settings(TASK_NAME, own)
        # Every arm is evaluated on the same sources, none of which is trained on.
        assert arm.config.data.weights == [1] + [0] * 9
        assert arm.config.data.heldout_weights == [0] + [1] * 9
        for name, source in list(sources.items())[1:]:
            kind = name.partition("_")[0]
            assert source.settings["asked"] == [kind]
            assert ("unknown_answer" in source.settings) == (kind == "unknown")
    shares = {"low": [0.3, 0.3], "moderate": [0.5, 0.5], "high": [0.7, 0.7], "mix": [0.3, 0.7]}
    assert masked == shares | {"honest mix": shares["mix"]}
    longest = max(len(worked_example(form(place), True)) for place in range(9))
    # The closing tag is one token, and one ends the response.
    tokens = longest - len("</think>") + 2
    assert tokens < sweep.arms[0].config.modes["long"].max_tokens
