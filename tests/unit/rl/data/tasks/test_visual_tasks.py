import subprocess
import sys
from hashlib import sha256

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.rules.verifier import verify_quickly
from rl.data.tasks.pictures import (
    HELDOUT_ONE_IN,
    TASKS,
    draw_scene,
    is_held_out,
    read_settings,
    render,
)

DEFAULTS = {task: read_settings(task) for task in TASKS}
tasks = st.sampled_from(sorted(TASKS))
seeds = st.integers(0, 2**31)
indices = st.integers(0, 10**9)

DIGESTS = """
from tests.unit.rl.data.tasks.test_visual_tasks import digests
print(*digests())
"""
# What a picture leaves white around it, in pixels.
CLEAR = {"figures": 3, "tables": 8, "charts": 2, "documents": 8}


def digests():
    """One per task, of everything an example has."""
    found = []
    for task in sorted(TASKS):
        made = render(task, DEFAULTS[task], 3, 5, False)
        words = "\n".join((made.question, made.answer, made.task)).encode()
        pixels = b"".join(image.tobytes() for image in made.images)
        found.append(sha256(words + pixels).hexdigest())
    return found


def test_pictures_and_words_are_the_same_in_every_process():
    run = subprocess.run(
        [sys.executable, "-c", DIGESTS], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.split() == digests()


def test_no_global_state_is_read_or_left():
    before, state = digests(), np.random.get_state()[1].tolist()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 10}):
        assert digests() == before
        assert mpl.rcParams["font.size"] == 30
    assert np.random.get_state()[1].tolist() == state


def test_draws_are_pinned():
    digits = [draw_scene("digits", DEFAULTS["digits"], 0, index, False).digits for index in (2, 0)]
    assert digits == [(4, 1, 3), (1, 1, 0)]
    held = draw_scene("digits", DEFAULTS["digits"], 0, 0, True)
    assert (held.digits, held.answer) == ((9, 4, 3), "16")


def test_a_seed_stands_for_the_same_pages_and_questions_in_every_version():
    """Of all tasks; pixels are left out, since they depend on the versions of the libraries."""
    scenes = sha256()
    for task in sorted(TASKS):
        for index in range(40):
            scene = draw_scene(task, DEFAULTS[task], 3, index, index % 2 == 1)
            words = [getattr(scene, name, "") for name in ("question", "answer", "task")]
            scenes.update("\n".join((scene.identity, *words)).encode())
    assert scenes.hexdigest()[:16] == "b9fed74bef8a48fa"


@given(tasks, seeds, indices, st.booleans())
def test_what_is_shown_decides_the_split(task, seed, index, is_heldout):
    scene = draw_scene(task, DEFAULTS[task], seed, index, is_heldout)
    assert is_held_out(scene) == is_heldout
    assert scene == draw_scene(task, DEFAULTS[task], seed, index, is_heldout)


def test_splits_are_apart_whatever_is_asked():
    """All pairs of digits turn up, each on one side, with every question."""
    some = read_settings("digits", {"n": [2, 2], "operations": ["sum", "max", "count"]})
    sides = [
        {draw_scene("digits", some, seed, index, held).digits for seed, index in places}
        for held, places in (
            (False, [(0, i) for i in range(1200)]),
            (True, [(1, i) for i in range(400)]),
        )
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 100
    assert 100 / HELDOUT_ONE_IN / 2 < len(sides[1]) < 2 * 100 / HELDOUT_ONE_IN


def test_pages_of_two_tasks_are_held_out_alike():
    page = draw_scene("documents", DEFAULTS["documents"], 0, 0, True).page
    assert page.identity.startswith("page ")
    damaged = draw_scene("reconstruction", DEFAULTS["reconstruction"], 0, 0, True)
    assert damaged.identity == damaged.page.identity


@settings(max_examples=60)
@given(tasks, seeds, indices)
def test_the_route_takes_the_answer_and_refuses_another(task, seed, index):
    made = render(task, DEFAULTS[task], seed, index, False)
    assert verify_quickly(made.answer, made.answer, made.task, made.question).accuracy == 1
    wrong = {"yes": "no", "no": "yes"}.get(made.answer, f"{made.answer}7")
    accuracy = verify_quickly(made.answer, wrong, made.task, made.question).accuracy
    assert accuracy is not None
    assert accuracy < 1


@pytest.mark.parametrize("task", sorted(TASKS))
def test_examples_are_rgb_pictures_with_a_question(task):
    for index in range(4):
        made = render(task, DEFAULTS[task], 1, index, True)
        assert [image.mode for image in made.images] == ["RGB"]
        assert made.question.endswith(("?", "alone."))
        assert made.answer.strip() == made.answer != ""
        low, high = made.images[0].convert("L").getextrema()
        assert high - low > 60


@pytest.mark.parametrize(
    ("task", "given", "count"),
    [
        ("figures", {}, 24),
        ("figures", {"lengths": [2, 99], "turn": 180}, 60),
        ("tables", {"rows": [2, 8], "columns": [2, 5], "values": [0, 9999]}, 24),
        ("charts", {}, 8),
        ("charts", {"kinds": ["line", "pie"], "categories": [7, 7], "labelled": 1}, 6),
        ("documents", {"letters": [12, 32]}, 40),
    ],
)
def test_nothing_is_cut_off_at_the_edge(task, given, count):
    clear, wide = CLEAR[task], read_settings(task, given)
    for index in range(count):
        pixels = np.asarray(render(task, wide, 2, index, False).images[0].convert("L"))
        inside = pixels[clear:-clear, clear:-clear]
        assert inside.min() < 128
        edge = pixels.copy()
        edge[clear:-clear, clear:-clear] = 255
        assert edge.min() > 245, index


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("digits", {"n": [2, 9], "jitter": 1, "noise": [0, 1], "fonts": ["strokes", "bitmap"]}),
        ("digits", {"n": [2, 2], "width": 24, "height": 14, "fonts": ["bitmap"]}),
        ("shapes", {"rows": [1, 6], "columns": [2, 6], "cell": 14, "filled": 1}),
        ("descriptions", {"cell": 14, "jitter": 1, "noise": [0, 1]}),
        ("tables", {"values": [5, 5], "rows": [2, 2], "columns": [2, 2]}),
        ("charts", {"categories": [2, 2], "height": 280}),
        ("reconstruction", {"width": 320, "letters": [12, 12]}),
        ("forms", {"masked": [0, 0], "asked": ["read"], "cell": 20}),
        ("forms", {"masked": [1, 1], "asked": ["unknown"]}),
        ("forms", {"masked": [0.85, 0.95], "asked": ["infer"]}),
    ],
)
def test_settings_at_their_limits_can_be_drawn(task, given):
    limits = read_settings(task, given)
    for index in range(40 if task != "charts" else 4):
        made = render(task, limits, 0, index, index % 2 == 1)
        assert made.images[0].size >= (24, 14)


def test_a_split_without_scenes_is_refused():
    # One rectangle, of 3 by 3 centimetres, cannot be on both sides.
    alone = read_settings("figures", {"kinds": ["area"], "lengths": [3, 3]})
    sides = []
    for is_heldout in (False, True):
        try:
            sides.append(render("figures", alone, 0, 0, is_heldout).answer)
        except ValueError as error:
            assert "scene in 1000 draws with settings" in str(error)
    assert sides == ["9"]


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        ("chart", {}, "no visual task 'chart'; did you mean charts?"),
        ("charts", {"kind": ["bar"]}, "kind: no such key, got ['bar']; did you mean kinds?"),
        ("charts", {"kinds": []}, "kinds: "),
        (
            "charts",
            {"categories": [3, 9]},
            "categories: must be a lower and an upper bound within 2",
        ),
        ("charts", {"width": 300}, "width: must be greater than or equal to 448, got 300"),
        ("digits", {"n": [4, 2]}, "within 2 and 9, the lower first, got [4, 2]"),
        ("digits", {"n": [3, 9], "width": 28}, "9 digits on 28x28 pixels have room for 9 pixels"),
        ("shapes", {"rows": [1, 2], "columns": [2, 2], "filled": 0.5}, "fewer than two shapes"),
        ("descriptions", {"n": [1, 4]}, "n: must be a lower and an upper bound within 2 and 4"),
        ("descriptions", {"shown": "apart"}, "shown: "),
        ("descriptions", {"cell": 8}, "cell: must be greater than or equal to 14, got 8"),
        ("reconstruction", {"masked_route": "text"}, "masked_route: "),
        ("documents", {"letters": [15, 32], "width": 400}, "need a width of 14 times as much, 448"),
        (
            "forms",
            {"masked": [0, 0], "asked": ["infer"]},
            "leaves no form a cell of asked=['infer']",
        ),
        ("forms", {"masked": [1, 1]}, "leaves no form a cell of asked=['read', 'infer']; widen"),
    ],
)
def test_settings_that_do_not_suit_are_refused(task, given, words):
    with pytest.raises(ValueError) as error:
        read_settings(task, given)
    assert words in str(error.value)


def test_settings_of_another_task_are_refused():
    with pytest.raises(ValueError, match="digits takes DigitsSettings, got ShapesSettings"):
        render("digits", DEFAULTS["shapes"], 0, 0, False)
