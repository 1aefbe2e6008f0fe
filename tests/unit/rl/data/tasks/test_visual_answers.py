"""What the pictures show is what the answers say, worked out here in another way."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.data.tasks.pictures import ask, draw_scene, read_settings, render
from rl.data.tasks.pictures.digits import BITMAP_FONT, STROKE_FONT
from rl.data.tasks.pictures.drawing import Draws
from rl.data.tasks.pictures.pages import PageSettings, draw_page, paint_page
from rl.data.tasks.pictures.reconstruction import QUESTION, region

seeds = st.integers(0, 2**31)
indices = st.integers(0, 10**9)
OPERATIONS = ["sum", "max", "count"]


def scenes(task, count=60, **given):
    made = read_settings(task, given)
    return [draw_scene(task, made, 7, index, False) for index in range(count)]


def grey(image):
    return np.asarray(image.convert("L"), float)


@given(seeds, indices)
def test_digits_answer_what_is_asked(seed, index):
    plain = read_settings("digits", {"n": [2, 6], "operations": OPERATIONS})
    scene = draw_scene("digits", plain, seed, index, False)
    asked = re.findall(r"\d", scene.question)
    if "sum" in scene.question:
        assert int(scene.answer) == sum(scene.digits)
    elif "largest" in scene.question:
        assert int(scene.answer) == sorted(scene.digits)[-1]
    else:
        assert int(scene.answer) == "".join(map(str, scene.digits)).count(asked[0])


def test_terse_digits_need_no_words():
    asked = scenes("digits", operations=OPERATIONS, wording="terse")
    assert {re.sub(r"\d", "7", scene.question) for scene in asked} == {"+?", ">?", "#7?"}
    assert all(re.fullmatch(r"\d\d", scene.answer) for scene in asked)


def test_digits_are_the_same_however_they_are_shown():
    ways = {"together": ("image",), "apart": ("image",) * 3, "in_turn": ("video",)}
    for index in range(20):
        asked = {way: ask("digits", read_settings("digits", {"shown": way}), 0, index, True)
                 for way in ways}  # fmt: skip
        assert len({one.answer for one in asked.values()}) == 1
        assert {way: one.media for way, one in asked.items()} == ways
    assert {one.question.split()[-1] for one in asked.values()} == {
        "picture?",
        "pictures?",
        "video?",
    }


def test_a_picture_for_each_digit_shows_that_digit():
    still = {"fonts": ["bitmap"], "noise": [0, 0], "jitter": 0}
    settings = read_settings("digits", still | {"n": [2, 3], "shown": "apart"})
    shown: dict[int, set[bytes]] = {}
    for index in range(60):
        images = render("digits", settings, 0, index, False).images
        digits = draw_scene("digits", settings, 0, index, False).digits
        for digit, image in zip(digits, images, strict=True):
            shown.setdefault(digit, set()).add(image.tobytes())
    # Without noise or jitter a digit always looks alike, and like no other.
    assert sorted(map(len, shown.values())) == [1] * 10
    assert len(set.union(*shown.values())) == 10


def test_half_of_the_counted_digits_are_there():
    found = [scene.answer != "0" for scene in scenes("digits", 400, operations=["count"])]
    # 0.5, and of the other half 1 - 0.9 ** 3.
    assert abs(np.mean(found) - 0.636) < 0.08


def test_bitmap_digits_can_be_read_dot_by_dot():
    still = read_settings(
        "digits",
        {"n": [3, 3], "fonts": ["bitmap"], "noise": [0, 0], "jitter": 0, "width": 90, "height": 42},
    )
    for index in range(40):
        picture = grey(render("digits", still, 0, index, False).images[0]) < 128
        for place, digit in enumerate(draw_scene("digits", still, 0, index, False).digits):
            cell = picture[:, 30 * place : 30 * (place + 1)]
            rows, columns = np.flatnonzero(cell.any(1)), np.flatnonzero(BITMAP_FONT[digit].any(0))
            top, high = rows[0], len(rows)
            wide = round(high * 0.62)
            left = np.flatnonzero(cell.any(0))[0] - wide * columns[0] // 5
            dots = [
                [
                    cell[top + high * (2 * r + 1) // 14, left + wide * (2 * c + 1) // 10]
                    for c in range(5)
                ]
                for r in range(7)
            ]
            assert np.array_equal(dots, BITMAP_FONT[digit] > 0), digit


def test_drawn_digits_differ_and_stay_inside_their_square():
    assert STROKE_FONT.shape[0] == 10
    assert STROKE_FONT.min() > -0.05
    assert STROKE_FONT.max() < 1.05
    still = read_settings("digits", {"n": [2, 2], "noise": [0, 0], "jitter": 0})
    cells: dict[int, np.ndarray] = {}
    for index in range(200):
        picture = grey(render("digits", still, 0, index, False).images[0])
        digits = draw_scene("digits", still, 0, index, False).digits
        cells |= {digit: picture[:, 28 * p : 28 * (p + 1)] for p, digit in enumerate(digits)}
    assert len(cells) == 10
    apart = [np.abs(cells[a] - cells[b]).mean() for a in cells for b in cells if a < b]
    # 28 x 28 pixels of 0 to 255; the two most alike differ by 30 dark pixels or so.
    assert min(apart) > 8


def test_shapes_answer_what_is_asked():
    kinds = set()
    for scene in scenes("shapes", 200):
        shapes = [(s.colour, s.form, s.row, s.column) for s in scene.shapes]
        words = scene.question.rstrip("?").split()
        kinds.add(words[0])
        if words[0] == "How":
            named = " ".join(words[2:]).removesuffix(" are in the picture").replace(" shapes", "")
            wanted = {
                re.sub(r"(?<=s)es$|s$", "", word) if word != "cross" else word
                for word in named.split()
            }
            wanted = {word for word in wanted if word}
            assert int(scene.answer) == sum(wanted <= {c, f} for c, f, *_ in shapes)
        elif words[0] == "Is":
            first, second = re.fullmatch(
                r"Is the (.+) further left than the (.+)\?", scene.question
            ).groups()
            columns = {f"{c} {f}": column for c, f, _, column in shapes}
            assert (scene.answer == "yes") == (columns[first] < columns[second])
        else:
            form = words[4]
            place = re.findall(r"\d", scene.question)
            at = [int(number) - 1 for number in place]
            assert [scene.answer] == [
                c for c, f, row, column in shapes if f == form and at in ([], [row, column])
            ]
    assert kinds == {"How", "Is", "Which"}


def test_a_description_is_a_count_and_a_sentence_for_each_shape():
    counts = []
    for scene in scenes("descriptions", 200):
        shown = {place: shape for place, shape in enumerate(scene.parts) if shape}
        first, *others = scene.answer.removesuffix(".").split(". ")
        assert first == f"There are {' two three four'.split(' ')[len(shown) - 1]} shapes"
        told = [re.fullmatch(r"Part (\d) shows a (\w+) (\w+)", other) for other in others]
        assert {int(t[1]) - 1: (t[2], t[3]) for t in told if t} == shown
        counts.append(1 + len(others))
    assert set(counts) == {3, 4, 5}


def test_descriptions_are_the_same_however_they_are_shown():
    ways = {"together": ("image",), "in_turn": ("video",)}
    for index in range(20):
        asked = {way: ask("descriptions", read_settings("descriptions", {"shown": way}), 0, index,
                          True) for way in ways}  # fmt: skip
        assert len({one.answer for one in asked.values()}) == 1
        assert {way: one.media for way, one in asked.items()} == ways
        assert [word in one.question for one, word in
                zip(asked.values(), ("picture", "video"), strict=True)] == [True, True]  # fmt: skip


def test_each_part_shows_its_own_shape_and_empty_ones_nothing():
    still = {"jitter": 0, "noise": [0, 0], "cell": 28}
    shown: dict[object, set[bytes]] = {}
    for index in range(40):
        for way in ("together", "in_turn"):
            settings = read_settings("descriptions", still | {"shown": way})
            made = render("descriptions", settings, 0, index, False)
            assert len(made.seconds) == (4 if way == "in_turn" else 0)
            pixels = np.concatenate([np.asarray(image) for image in made.images], axis=1)
            assert pixels.shape == (28, 112, 3)
            for place, shape in enumerate(
                draw_scene("descriptions", settings, 0, index, False).parts
            ):
                # Without the lines between parts.
                cell = pixels[:, 28 * place + 2 : 28 * place + 26]
                shown.setdefault(shape, set()).add(cell.tobytes())
    # Without noise or jitter a shape always looks alike, and like no other.
    assert set(map(len, shown.values())) == {1}
    assert len(set.union(*shown.values())) == len(shown)
    assert shown[None] == {bytes([255]) * (28 * 24 * 3)}


def test_yes_and_no_are_as_frequent():
    answers = [scene.answer for scene in scenes("shapes", 300, questions=["left_of"])]
    yes = answers.count("yes") / (answers.count("yes") + answers.count("no"))
    assert abs(yes - 0.5) < 0.1


def test_the_first_shape_has_its_colour_in_its_cell():
    bare = read_settings("shapes")
    colours = {"red": 0, "green": 1, "blue": 2}
    for index in range(30):
        scene = draw_scene("shapes", bare, 0, index, False)
        pixels = np.asarray(render("shapes", bare, 0, index, False).images[0], int)
        assert pixels.shape == (scene.rows * 56, scene.columns * 56, 3)
        for shape in scene.shapes:
            if shape.colour in colours:
                top, left = shape.row * 56, shape.column * 56
                cell = pixels[top + 3 : top + 53, left + 3 : left + 53].reshape(-1, 3)
                ink = cell[cell.min(axis=1) < 100].mean(axis=0)
                assert ink.argmax() == colours[shape.colour]


def test_figures_follow_from_their_labels():
    kinds = set()
    for scene in scenes("figures", 200):
        kinds.add(scene.kind)
        assert not re.search(r"\d", scene.question)
        shown = [int(n) for label in scene.labels for n in re.findall(r"\d+", label.text)]
        assert sorted(shown) == sorted(scene.values)
        answer, values = int(scene.answer), scene.values
        if scene.kind == "angle":
            assert answer == 180 - sum(values)
        elif scene.kind == "right_triangle":
            squares = [value**2 for value in (*values, answer)]
            assert 2 * max(squares) == sum(squares)
        elif scene.kind == "segment":
            lengths = [*values, answer]
            assert 2 * max(lengths) == sum(lengths)
        elif scene.kind == "area":
            assert answer == values[0] * values[1]
        elif scene.kind == "perimeter":
            assert answer == 2 * sum(values)
        else:
            width, foot, arm, height = values
            assert answer == width * height - (width - arm) * (height - foot)
    assert len(kinds) == 6


def test_drawn_angles_and_sides_are_to_scale():
    for scene in scenes("figures", 60, kinds=["angle"]):
        corners = np.array(scene.outline)
        drawn = []
        for place in range(3):
            a, b = (corners[(place + step) % 3] - corners[place] for step in (1, 2))
            drawn.append(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))
        assert sorted(np.round(drawn).astype(int)) == sorted([*scene.values, int(scene.answer)])


def test_tables_answer_what_is_asked():
    kinds = set()
    for scene in scenes("tables", 200):
        table = {
            (row, column): value
            for row, values in zip(scene.rows, scene.cells, strict=True)
            for column, value in zip(scene.columns, values, strict=True)
        }
        words = scene.question.rstrip("?")
        rows = [row for row in scene.rows if row in words]
        columns = [column for column in scene.columns if column in words]
        if scene.task == "text":
            best = max(scene.rows, key=lambda row: table[row, columns[0]])
            assert scene.answer == best
        elif "differ" in words:
            values = [table[row, columns[0]] for row in rows]
            assert int(scene.answer) == max(values) - min(values)
        else:
            chosen = [
                value
                for (row, column), value in table.items()
                if row in (rows or scene.rows) and column in (columns or scene.columns)
            ]
            assert int(scene.answer) == sum(chosen)
        kinds.add((len(rows), len(columns), scene.task))
    assert kinds == {
        (0, 1, "text"),
        (2, 1, "number"),
        (0, 1, "number"),
        (1, 0, "number"),
        (1, 1, "number"),
    }


def test_charts_answer_what_is_asked():
    for scene in scenes("charts", 200):
        values = dict(zip(scene.names, scene.values, strict=True))
        named = [values[name] for name in scene.names if re.search(rf"\b{name}\b", scene.question)]
        assert all(value % scene.step == 0 and value > 0 for value in scene.values)
        if scene.kind == "pie":
            assert sum(scene.values) == 100
        if scene.task == "text":
            pick = max if "largest" in scene.question else min
            assert scene.answer == pick(values, key=values.get)
            assert scene.values.count(values[scene.answer]) == 1
        elif "differ" in scene.question:
            assert int(scene.answer) == max(named) - min(named)
        else:
            assert int(scene.answer) == sum(named)


def test_the_taller_bar_has_more_ink():
    bars = read_settings("charts", {"kinds": ["bar"], "categories": [2, 2], "labelled": 0})
    for index in range(6):
        scene = draw_scene("charts", bars, 0, index, False)
        pixels = np.asarray(render("charts", bars, 0, index, False).images[0], int)
        inked = (np.ptp(pixels, axis=2) > 25) | (np.abs(pixels - 0x7A).max(axis=2) < 3)
        middle = pixels.shape[1] * 55 // 100
        left, right = inked[:, :middle].sum(), inked[:, middle:].sum()
        assert abs(left / right / (scene.values[0] / scene.values[1]) - 1) < 0.1


def test_pages_state_their_facts_and_can_be_transcribed():
    for scene in scenes("documents", 120):
        text = scene.page.text
        assert "{" not in text
        assert all(fact in text for fact in scene.page.facts.values())
        if scene.task == "transcription":
            assert scene.answer in text
            assert len(text) < 700
        else:
            assert scene.answer in scene.page.facts.values()
            assert scene.answer not in scene.question


def test_lines_of_a_picture_make_up_the_page():
    rng = Draws(0)
    for _ in range(20):
        page = draw_page(rng)
        image, lines = paint_page(page, PageSettings(), rng)
        assert " ".join(line.text for line in lines) == page.text.replace("\n", " ")
        bottoms = [line.box[3] for line in lines]
        assert all(line.box[1] >= end for line, end in zip(lines[1:], bottoms, strict=False))
        assert max(line.box[2] for line in lines) < image.width - 10
        for line in lines:
            for mention, box in line.mentions.items():
                assert page.facts[page.mentions[mention]] in line.text
                assert line.box[0] <= box[0] < box[2] <= line.box[2]


def test_what_is_masked_stands_elsewhere_on_the_page():
    rng = Draws(1)
    for _ in range(60):
        page = draw_page(rng)
        _, lines = paint_page(page, PageSettings(), rng)
        box, text = region(page, lines, "masked", rng)
        (line,) = [line for line in lines if line.box[1] == box[1]]
        assert text in line.text
        assert len(re.findall(rf"\b{re.escape(text)}\b", page.text)) >= 2


@pytest.mark.parametrize(
    # How much of the region's own grey values is left, as their correlation.
    ("level", "least", "most"),
    [("light", 0.65, 0.95), ("heavy", 0.25, 0.65), ("masked", 0, 0)],
)
def test_damage_leaves_as_much_as_its_level_says(level, least, most):
    settings = read_settings("reconstruction", {"levels": [level], "masked_route": "probability"})
    for index in range(12):
        scene = draw_scene("reconstruction", settings, 0, index, False)
        made = render("reconstruction", settings, 0, index, False)
        assert (made.question, made.task) == (
            QUESTION,
            "probability" if level == "masked" else "transcription",
        )
        assert made.answer in scene.page.text.replace("\n", " ")
        damaged, whole = grey(made.images[0]), grey(_undamaged(scene, settings, index))
        rows, columns = np.nonzero(damaged != whole)
        # Without the frame.
        inside = np.s_[rows.min() + 4 : rows.max() - 3, columns.min() + 4 : columns.max() - 3]
        assert whole[inside].std() > 20
        kept = 0.0
        if damaged[inside].std():
            kept = np.corrcoef(damaged[inside].ravel(), whole[inside].ravel())[0, 1]
        assert least <= kept <= most


def _undamaged(scene, settings, index):
    """The page as it is painted before a region is damaged: the same draws up to there."""
    from rl.data.fingerprint import stable_hash
    from rl.data.tasks.pictures import is_held_out, reconstruction

    rng = Draws(stable_hash("reconstruction"), 0, index, 0)
    while is_held_out(drawn := reconstruction.draw(settings, rng)):
        pass
    assert drawn == scene
    return paint_page(scene.page, settings, rng)[0]


def _follow_their_rules(digits):
    sums, steps, facts = digits[:3], digits[3:6], digits[6:]
    return (
        sums[0] + sums[1] == sums[2]
        and steps[1] - steps[0] == steps[2] - steps[1] != 0
        and facts[0] == facts[1] == facts[2]
    )


@pytest.mark.parametrize("kind", ["read", "infer", "unknown"])
def test_what_is_asked_of_a_form_is_seen_or_follows_or_cannot_be_known(kind):
    """By trying every filling of the masked cells of a row, and all of what the rules say."""
    for scene in scenes("forms", asked=[kind]):
        assert _follow_their_rules(scene.digits)
        assert (scene.kind, scene.answer) == (kind, str(scene.digits[scene.place]))
        row = range(scene.place // 3 * 3, scene.place // 3 * 3 + 3)
        tried = [range(10) if at in scene.masked else [scene.digits[at]] for at in row]
        fillings = [
            scene.digits[: row[0]] + f + scene.digits[row[-1] + 1 :] for f in product(*tried)
        ]
        possible = {f[scene.place] for f in fillings if _follow_their_rules(f)}
        assert (scene.place in scene.masked) == (kind != "read")
        assert (len(possible) == 1) == (kind != "unknown")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_as_many_cells_of_a_form_are_masked_as_is_said(share):
    counts = [len(scene.masked) for scene in scenes("forms", 400, masked=[share, share])]
    assert set(counts) == {int(9 * share), int(9 * share) + 1}
    assert abs(np.mean(counts) - 9 * share) < 0.1


def test_an_honest_answer_is_a_question_mark_only_where_nothing_tells():
    for scene in scenes("forms", unknown_answer="honest", wording="terse"):
        assert scene.question == "=?"
        honest = (
            ("?", "text") if scene.kind == "unknown" else (str(scene.digits[scene.place]), "number")
        )
        assert (scene.answer, scene.task) == honest


def test_nothing_of_a_masked_cell_can_be_seen_and_the_frame_is_round_the_one_that_is_asked_for():
    clear = read_settings("forms", {"noise": [0, 0], "jitter": 1})
    for index in range(12):
        scene = draw_scene("forms", clear, 0, index, False)
        image = render("forms", clear, 0, index, False).images[0]
        assert image.size == (84, 84)
        for place in range(9):
            top, left = place // 3 * 28, place % 3 * 28
            cell = np.asarray(image.crop((left, top, left + 28, top + 28)), int)
            assert (len(np.unique(cell[2:-2, 2:-2])) == 1) == (place in scene.masked)
            is_red = cell[0, :, 0] - cell[0, :, 1] > 100
            assert is_red.all() if place == scene.place else not is_red.any()


def test_the_split_of_forms_is_by_their_digits_whatever_is_masked_or_asked():
    sides = {
        (scene.digits, share, held)
        for share in (0.3, 0.7)
        for held in (False, True)
        for scene in (
            draw_scene("forms", read_settings("forms", {"masked": [share] * 2}), 0, index, held)
            for index in range(300)
        )
    }
    trained = {digits for digits, _, held in sides if not held}
    assert not trained & {digits for digits, _, held in sides if held}
