"""The page of samples, parsed as a browser would: what is on it, and that texts stay texts."""

import base64
import hashlib
import io
import json
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rl.config.data import SourceConfig
from rl.data.media.names import MediaFile, RenderedMedium, to_json
from rl.data.media.store import MediaStore
from rl.run.command import read
from rl.run.ledger import LedgerRow, write_step
from rl.show import __main__ as command
from rl.show.__main__ import main
from rl.show.page import Page, Picture, as_html, as_ranges, framed
from rl.show.samples import page_of_ledger
from tests.html_tree import line_of, parsed, shape, text_of, within
from tests.unit.rl.data.media.test_media import write_video

HOSTILE = (
    "</script></style></title>--><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;"
)


def row(group="0/0/0", **changes):
    fields = {
        "step": 1,
        "group_id": group,
        "prompt_id": f"prompt/{group}",
        "task": "auto",
        "messages": json.dumps([{"role": "user", "content": "2+9?"}]),
        "mode": "long",
        "first_version": 3,
        "last_version": 4,
        "text": "2 and 9</think>11",
        "reasoning": "2 and 9",
        "answer": "11",
        "reference": "eleven",
        "finish_reason": "stop",
        "num_tokens": 1234,
        "reward": 1.25,
        "parts": {"accuracy": 1.0, "format": 0.5},
        "route": "number/2",
        "failure": None,
        "preference_answer": None,
        "advantage": 0.5,
        "mismatch": 1.5e-7,
    }
    return LedgerRow(**(fields | changes))


def page(*rows, pictures=(), name="run", limit=100, modes=()):
    """The page of a ledger of one step; pictures: of every prompt, whatever its media."""
    with tempfile.TemporaryDirectory() as ledger:
        path = write_step(Path(ledger), 1, rows)
        return page_of_ledger(name, {1: path}, limit, lambda *_: tuple(pictures), modes)


def texts(document):
    return [text_of(element) for element in within(document, class_="text")]


def show(arguments: Sequence[str]) -> tuple[Path, Page]:
    keys = read(command.main, arguments)
    command.show(keys)
    return command.page_of_steps(keys, keys.step or "latest")


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1, 2 and 12; in each the groups a, b and c with two trajectories."""
    root = tmp_path / "run"
    root.mkdir()
    (root / "config.yaml").write_text("data: {kind: visual, path: digits}")
    for step in (1, 2, 12):
        rows = [row(group, step=step, reward=0.5 * n) for group in "abc" for n in range(2)]
        write_step(root / "ledger", step, rows)
    return root


def test_a_trajectory_is_shown_with_all_that_its_reward_was_made_of():
    document = parsed(as_html(page(row(preference_answer="only 11"))))
    assert texts(document) == ["2+9?", "eleven", "2 and 9", "11", "only 11"]
    (group,), (one,) = within(document, class_="group"), within(document, class_="item")
    assert line_of(next(within(group, "h2"))) == "long prompt/0/0/0"
    assert line_of(next(within(group, class_="facts"))) == (
        "group 0/0/0 · step 1 · task auto · versions 3 to 4 · 1 trajectories · mean reward 1.25"
    )
    facts, parts = within(one, class_="facts")
    assert line_of(facts) == (
        "#1 reward 1.25 advantage +0.5 1,234 tokens stop versions 3 to 4 mismatch 1.5e-07"
    )
    assert line_of(parts) == "route number/2 accuracy 1 format 0.5"
    folded = [(line_of(part), "open" in part.attrib) for part in within(one, "details")]
    assert folded[0] == ("reasoning (7 characters)2 and 9", False)
    assert folded[1][0].endswith("(7 characters)only 11")


@pytest.mark.parametrize(
    ("advantage", "sign", "shown"),
    [
        (0.5, "plus", "advantage +0.5"),
        (-0.25, "minus", "advantage -0.25"),
        (-0.0, "", "advantage +0"),
    ],
)
def test_an_advantage_has_the_colour_of_its_sign(advantage, sign, shown):
    (one,) = within(parsed(as_html(page(row(advantage=advantage)))), class_="item")
    (advantage,) = [e for e in within(one, "strong") if text_of(e).startswith("advantage")]
    assert (advantage.get("class"), text_of(advantage)) == (sign, shown)


def test_a_failure_says_why_and_has_no_number_to_sort_by():
    failed = row(reward=None, parts={}, route="", failure="timeout", advantage=None, answer=None)
    (one,) = within(parsed(as_html(page(failed))), class_="item")
    assert "data-failed" in one.attrib
    assert not {"data-reward", "data-advantage"} & set(one.attrib)
    for part in ("no reward", "left out of the update", "failure: timeout", "no answer"):
        assert part in line_of(one)


def test_a_reward_that_is_no_number_is_shown_and_not_sorted_by():
    (one,) = within(parsed(as_html(page(row(reward=math.nan)))), class_="item")
    assert "reward nan" in line_of(one)
    assert "data-reward" not in one.attrib


def test_hostile_text_in_every_field_stays_text():
    messages = json.dumps([{"role": HOSTILE, "content": HOSTILE, HOSTILE: HOSTILE}])
    everywhere = dict.fromkeys(
        "prompt_id task mode reasoning answer reference finish_reason route failure".split(),
        HOSTILE,
    )
    hostile = row(
        HOSTILE,
        messages=messages,
        parts={HOSTILE: 1.0},
        preference_answer=HOSTILE,
        **everywhere,
    )
    pictures = (Picture(HOSTILE, None, HOSTILE), Picture(HOSTILE, HOSTILE, None))
    document = parsed(as_html(page(hostile, pictures=pictures, name=HOSTILE)))
    assert [text_of(element) for element in within(document, "title")] == [f"{HOSTILE}, step 1"]
    assert len(list(within(document, "script"))) == len(list(within(document, "style"))) == 1
    assert [image.attrib["alt"] for image in within(document, "img")] == [HOSTILE]
    assert not [e for e in within(document) if any(key.startswith("on") for key in e.attrib)]
    (one,) = within(document, class_="item")
    assert one.attrib["data-route"] == HOSTILE
    assert texts(document)[1:] == [HOSTILE] * 4


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=30), min_size=4, max_size=4))
def test_any_text_comes_back_and_leaves_the_markup_as_it_is(values):
    names = ("reference", "reasoning", "preference_answer", "prompt_id")
    document = parsed(as_html(page(row(**dict(zip(names, values, strict=True))))))
    plain = parsed(as_html(page(row(**dict.fromkeys(names, "x")))))
    assert shape(document) == shape(plain)
    reference, reasoning, preference, prompt_id = map(as_shown, values)
    assert texts(document) == ["2+9?", reference, reasoning, "11", preference]
    assert text_of(next(within(document, "h2"))) == f"long {prompt_id}"


def as_shown(text):
    """Control characters are shown by their pictures, lone surrogates as `?`."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(ord(m[0]) + 0x2400), text)
    return re.sub(r"[\ud800-\udfff]", "?", text.replace("\x7f", "␡"))


def test_newlines_at_the_start_of_a_text_are_kept():
    html = as_html(page(row(reasoning="\n\nso")))
    assert "\n\nso" in texts(parsed(html))
    assert "<pre" not in html and "<textarea" not in html


def test_the_white_space_between_reasoning_and_answer_takes_no_room():
    document = parsed(as_html(page(row(answer="\n\n  11\n12\n"))))
    assert texts(document)[-1] == "  11\n12"


def test_a_run_named_in_no_unicode_can_be_shown():
    empty = as_html(page(name="a\ud83d"))
    document = parsed(empty.encode("utf-8").decode("utf-8"))
    assert text_of(next(within(document, "h1"))) == "a?, step 1"


def test_the_browser_may_run_this_script_alone_and_load_nothing():
    html = as_html(page(row()))
    document = parsed(html)
    (policy,) = [m for m in within(document, "meta") if "http-equiv" in m.attrib]
    for name in ("script", "style"):
        (code,) = within(document, name)
        digest = base64.b64encode(hashlib.sha256(text_of(code).encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy.attrib["content"]
    assert "default-src 'none'" in policy.attrib["content"]
    assert not re.search(r"https?://|@import|url\(|\ssrc=|<link", html)


def test_the_script_finds_every_field_and_figure_that_it_names():
    check_form(parsed(as_html(page(row(failure="timeout")))), "failed")


def check_form(document, *flags):
    """That every control is one that the script reads, and of a figure that the item has."""
    (script,) = within(document, "script")
    (form,), (one,) = within(document, "form"), within(document, class_="item")
    data = {key.removeprefix("data-") for key in one.attrib if key.startswith("data-")}
    controls = [e.attrib for e in within(form) if e.tag in ("input", "select")]
    named = {e["name"] for e in controls if "name" in e}
    assert named == {"least", "most", "search", "order"}
    assert {e.attrib["name"] for e in within(form, "output")} == {"count"}
    assert {*re.findall(r"fields\.(\w+)", text_of(script))} == {*named, "count"}
    choices = {e["data-choice"] for e in controls if "data-choice" in e}
    assert {e["data-flag"] for e in controls if "data-flag" in e} == {*flags}
    assert len(named) + len(choices) + len(flags) == len(controls)
    order = next(e for e in within(form, "select") if "name" in e.attrib)
    stored, *orders = within(order, "option")
    assert text_of(stored) == "as stored"
    keys = {text_of(option).partition(", ")[0] for option in orders}
    assert {*choices, *flags, *keys, form.attrib["data-measure"], "place"} == data
    read = {"choice", "flag", "measure", "items", "place"}
    assert {*re.findall(r"dataset\.(\w+)", text_of(script))} == read
    assert all(e.attrib["data-items"] for e in within(document, "main"))


def test_counts_and_means_are_per_mode_and_over_what_has_the_figure():
    rows = [
        row("a", reward=1.0, num_tokens=10, mismatch=None),
        row("a", reward=None, failure="timeout", parts={}, num_tokens=20, mismatch=1e-6),
        row("b", reward=0.5, parts={"accuracy": 0.0}, num_tokens=30, mismatch=3e-6),
        row("c", mode="short", reward=-0.5, finish_reason="length", parts={}, mismatch=None),
    ]
    (table,) = within(parsed(as_html(page(*rows))), "table")
    assert [[text_of(cell) for cell in line] for line in within(table, "tr")] == [
        "mode groups trajectories failed truncated tokens reward accuracy format mismatch".split(),
        ["long", "2", "3", "1", "0.0%", "20.0", "0.75", "0.5", "0.5", "2e-06"],
        ["short", "1", "1", "0", "100.0%", "1,234.0", "-0.5", "–", "–", "–"],
    ]


def test_modes_have_the_order_and_the_colours_of_the_config():
    of_both = page(row("a"), row("b", mode="short"), modes=("short", "long"))
    of_one = page(row("a"), modes=("short", "long"))
    strange = page(row("a", mode="other"), row("b"), modes=("short", "long"))
    assert [line[0] for line in of_both.lines] == ["short", "long"]
    assert [mode_classes(shown) for shown in (of_both, of_one, strange)] == [
        {"long": "mode mode-1", "short": "mode mode-0"},
        {"long": "mode mode-1"},
        {"long": "mode mode-1", "other": "mode mode-2"},
    ]


def mode_classes(shown):
    headings = within(parsed(as_html(shown)), "h2")
    return {text_of(heading[0]): heading[0].attrib["class"] for heading in headings}


def test_messages_of_parts_show_their_text_and_the_rest_as_json():
    content = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    messages = [{"role": "user", "content": content}, {"role": "tool", "content": None, "id": 7}]
    shown = texts(parsed(as_html(page(row(messages=json.dumps(messages))))))
    assert shown[:2] == ["[image]\nHow many?", 'null\n{"id": 7}']


def test_the_newest_step_is_shown_by_its_number_or_a_range(run):
    asked = ("step=latest", "step=2", "step=2..12")
    assert [show([f"run={run}", step])[0].name for step in asked] == [
        "step_000012.html",
        "step_000002.html",
        "step_000002-000012.html",
    ]
    path, shown = show([f"run={run}", "step=1..11"])
    assert path == run / "samples" / "step_000001-000002.html"
    assert shown.extent == "step 1..2"
    assert len(list(within(parsed(path.read_text("utf-8")), class_="item"))) == 12


def test_the_limit_keeps_whole_groups_and_what_is_left_out_is_said(run):
    path, shown = show([f"run={run}", "step=1..2", "limit=5"])
    assert [(c.prompt_id, len(c.items)) for c in shown.cards] == [("prompt/a", 2), ("prompt/b", 2)]
    document = parsed(path.read_text("utf-8"))
    assert line_of(next(within(document, "p"))) == (
        "Groups: 6. Trajectories: 12. The table counts all of them; under it are the first 2 "
        "groups with 4 trajectories. With limit=12 all are shown."
    )
    (table,) = within(document, "table")
    assert [text_of(cell) for cell in within(table, "td")][:3] == ["long", "6", "12"]
    _, one = show([f"run={run}", "step=latest", "limit=1"])
    assert [len(card.items) for card in one.cards] == [2]


def test_no_later_group_fills_the_gap_of_one_that_did_not_fit():
    rows = [row("a"), *[row("b")] * 3, row("c")]
    assert [card.prompt_id for card in page(*rows, limit=3).cards] == ["prompt/a"]


def test_a_step_without_trajectories_is_an_empty_page(run):
    write_step(run / "ledger", 13, [])
    path, shown = show([f"run={run}", "step=latest"])
    assert (shown.extent, shown.cards) == ("step 13", ())
    assert "Trajectories: 0." in line_of(parsed(path.read_text("utf-8")))


def test_a_page_replaces_the_one_before_and_leaves_nothing_beside_it(run, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main([f"run={run}", f"out={out}", "step=latest"]) == 0
    assert capsys.readouterr().out == f"6 of 6 trajectories of step 12 in {out}\n"
    assert main([f"run={run}", f"out={out}", "step=1"]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert "<title>run, step 1</title>" in out.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["step=13"], "no step 13 can be shown; there are 1..2, 12"),
        (["step=3..11"], "no step 3..11 can be shown; there are 1..2, 12"),
        (["step=9..2"], "ends before it begins"),
        (["step=new"], "a number, latest, or a range such as 10..20, got 'new'"),
        (["limit=0"], "limit: must be greater than 0"),
        (["steps=1"], "steps: no such key; did you mean step? rl.show takes run, step, watch,"),
        (["out=page.txt"], "ends with .html, got page.txt"),
        (["step=12", "out={run}/config.yaml/page.html"], "config.yaml"),
        (["watch=true", "step=12"], "serves the whole run and writes nothing"),
        (["watch=true", "out=page.html"], "leave out step= and out="),
        (["port=8000"], "set watch=true, or leave it out"),
        (["watch=true", "port=65536"], "port: must be less than 65536"),
        ([], "config.yaml does not say how many steps the run takes"),
    ],
)
def test_what_cannot_be_shown_is_one_line(run, capsys, arguments, error):
    assert main([f"run={run}", *(one.format(run=run) for one in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert error in said


def test_no_run_and_no_ledger_are_told_apart(tmp_path, capsys):
    assert main([]) == 2
    assert "run=runs/NAME" in capsys.readouterr().err
    assert main([f"run={tmp_path}"]) == 2
    assert "is no run directory" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("")
    assert main([f"run={tmp_path}", "step=latest"]) == 2
    assert "log.ledger=true" in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_a_sweep_is_no_run_and_its_arms_are(tmp_path, capsys):
    (tmp_path / "arms" / "long_50_seed_0").mkdir(parents=True)
    (tmp_path / "sweep.yaml").write_text("")
    assert main([f"run={tmp_path}"]) == 2
    assert f"name one, such as run={tmp_path}/arms/long_50_seed_0\n" in capsys.readouterr().err


def shown_media(run, *media, digests=()):
    """The figures of a page with one group, and the bytes of the page."""
    rows = [row("a", media=to_json(media), media_digests=tuple(digests)) for _ in range(2)]
    write_step(run / "ledger", 13, rows)
    out, _ = show([f"run={run}", "step=latest"])
    return list(within(parsed(out.read_text("utf-8")), "figure")), out.stat().st_size


def pixels_of(figure):
    (image,) = within(figure, "img")
    kind, _, data = image.attrib["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_of_the_ledger_are_embedded_once_a_group(run, tmp_path):
    Image.new("RGB", (1024, 256), "red").save(tmp_path / "large.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "small.png")
    names = ("large.png", "small.png", "gone.png")
    media = [MediaFile("image", str(tmp_path / name)) for name in names]
    (large, small, gone), _ = shown_media(run, *media)
    assert (pixels_of(large).size, pixels_of(small).size) == ((448, 112), (30, 20))
    assert line_of(small) == media[1].path
    path = media[2].path
    assert line_of(gone) == f"not shown: missing: {path} does not exist{path}"
    assert not list(within(gone, "img"))


def test_a_picture_that_is_not_what_the_policy_saw_is_told(run, tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    medium = MediaFile("image", str(picture))
    seen = MediaStore(SourceConfig()).read(medium).digest
    (same,), _ = shown_media(run, medium, digests=[seen])
    assert line_of(same) == str(picture)
    Image.new("RGB", (30, 20), "blue").save(picture)
    (other,), _ = shown_media(run, medium, digests=[seen])
    assert line_of(other).startswith("changed since: ")
    assert pixels_of(other).getpixel((0, 0))[2] > 250


def test_a_video_is_a_strip_of_six_frames(run, tmp_path):
    path = write_video(tmp_path / "a.mp4", 30, size=(320, 160))
    (figure,), _ = shown_media(run, MediaFile("video", path))
    assert figure.attrib["class"] == "strip"
    strip = pixels_of(figure)
    assert strip.size == (6 * 160, 80)
    shades = [strip.getpixel((160 * n + 80, 40))[0] for n in range(6)]
    # Nine frames are seen (3 s at 3 a second); the strip shows number 0, 2, 3, 5, 6 and 8.
    assert shades == pytest.approx([8 * n for n in (1, 8, 11, 18, 21, 28)], abs=5)


def test_a_rendered_picture_is_painted_with_the_settings_of_the_run(run):
    (run / "config.yaml").write_text("data: {kind: visual, path: digits, settings: {width: 90}}")
    (figure,), size = shown_media(run, RenderedMedium("digits", 0, 3, False, 0))
    assert pixels_of(figure).size == (90, 28)
    assert line_of(figure) == "digits, training picture 3 of seed 0"
    assert size < 40_000


def test_a_run_whose_data_are_not_known_is_one_line(run, capsys):
    write_step(run / "ledger", 13, [row(media=to_json([MediaFile("image", "/a.png")]))])
    for text in ("", "data: 7", "data: {colour: red}", "data: ["):
        (run / "config.yaml").write_text(text)
        assert main([f"run={run}", "step=latest"]) == 2
        assert "does not say where the media of the run are" in capsys.readouterr().err


def test_a_page_without_samples_has_the_same_frame_and_no_script():
    document = parsed(framed(HOSTILE, "<p>made by <b>us</b></p>"))
    assert [text_of(title) for title in within(document, "title")] == [HOSTILE]
    assert line_of(next(within(document, "p"))) == "made by us"
    assert not list(within(document, "script")) and len(list(within(document, "style"))) == 1


def test_steps_are_named_in_ranges():
    assert as_ranges([1, 2, 3, 7]) == "1..3, 7"
    assert as_ranges([]) == ""
