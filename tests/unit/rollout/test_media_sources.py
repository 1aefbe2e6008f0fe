"""Prompts with images and videos: where media stand, which rows are quarantined, visual tasks."""

import json
import os
from base64 import b64encode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rl.config.data import SourceConfig
from rl.data.media.names import MediaCell, MediaError, MediaFile, RenderedMedium
from rl.data.media.store import MediaStore
from rl.data.tasks.pictures import TASKS, read_settings, render
from rollout.prompts.dataset import DatasetSource
from rollout.prompts.row_media import place_media
from rollout.prompts.sources import open_source
from tests.unit.rl.data.media.test_media import STRUCT, encoded, write_video

MODES = ("short", "long")
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two good images, a good video and texts that call themselves so."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 2)).save(tmp_path / name)
    write_video(tmp_path / "v.mp4", 3)
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "bad.mp4").write_text("no film")
    return tmp_path


def opened(folder, rows, name="rows.jsonl", **settings) -> DatasetSource:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"images": "i", "videos": "v", "id": "id"} | settings.pop("columns", {})
    config = SourceConfig(path=str(folder / name), columns=columns, **settings)
    return DatasetSource(config, MODES)


def row(n, text="?", images=(), videos=(), **more) -> dict:
    return {
        "id": f"r{n}",
        "question": f"{n}{text}",
        "answer": "1",
        "i": list(images),
        "v": list(videos),
    } | more


def prompts(source) -> dict:
    """By the row's id."""
    found = [source.train(n) for n in range(source.train_count)]
    found += [source.heldout(n) for n in range(source.heldout_count)]
    return {prompt.id.rpartition("/")[2]: prompt for prompt in found}


def text(content) -> dict:
    return {"type": "text", "text": content}


# Places


def media(kinds):
    return [MediaFile(kind, f"/{n}") for n, kind in enumerate(kinds)]


def placed(content, kinds, has_tags=True):
    asked = [{"role": "user", "content": content}]
    messages, ordered = place_media(asked, media(kinds), has_tags)
    return messages[0]["content"], [int(medium.path[1:]) for medium in ordered]


@pytest.mark.parametrize(
    ("content", "kinds", "parts", "order"),
    [
        ("how many?", ["image"] * 2, [IMAGE, IMAGE, text("how many?")], [0, 1]),
        ("<image>\nhow many?", ["image"], [IMAGE, text("\nhow many?")], [0]),
        ("is <image> in <video>?", ["image", "video"], None, [0, 1]),
        (
            "<video>is <image> of <image>",
            ["image", "image", "video"],
            [VIDEO, text("is "), IMAGE, text(" of "), IMAGE],
            [2, 0, 1],
        ),
        ([text("a"), IMAGE, text("b")], ["image"], [text("a"), IMAGE, text("b")], [0]),
        ([text("a <image>")], ["image"], [text("a "), IMAGE], [0]),
        (
            [{"type": "image", "text": None, "image": None}, {"type": "text", "text": "b", "x": 1}],
            ["image"],
            [IMAGE, text("b")],
            [0],
        ),
        ("none", [], "none", []),
        # Templates of language models know no parts, and some write nothing in their place.
        ([text("as it was"), text("!")], [], "as it was!", []),
        (["as it was", "!"], [], "as it was!", []),
    ],
)
def test_media_stand_where_the_text_says(content, kinds, parts, order):
    got, ordered = placed(content, kinds)
    assert ordered == order
    assert parts is None or got == parts


def test_without_places_media_stand_before_the_first_question():
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "then"},
    ]
    got, _ = place_media(messages, media(["image"]), True)
    assert got[1]["content"] == [IMAGE, text("first")]
    assert [got[n] for n in (0, 2, 3)] == [messages[n] for n in (0, 2, 3)]


@pytest.mark.parametrize(
    ("content", "kinds", "message"),
    [
        ("<image> <image>", ["image"], "places for 2 images and 0 videos, the row has 1 and 0"),
        ("<image>", ["image"] * 2, "^places_differ: .* 1 images and 0 videos, the row has 2 and 0"),
        ("<image>", ["video"], "1 images and 0 videos, the row has 0 and 1"),
        ([IMAGE], [], "1 images and 0 videos, the row has 0 and 0"),
        ([{"type": "audio", "audio": "a.wav"}], [], "^unknown_part: .*neither text nor a medium"),
        ([{"type": "image", "image": "a.png", "crop": 3}], [], "^unknown_part: .*got crop"),
        ([{"type": "image", "image": "a.png"}], [], "^unknown_part: "),
    ],
)
def test_places_that_do_not_match_are_refused(content, kinds, message):
    with pytest.raises(MediaError, match=message):
        placed(content, kinds)


def test_tags_are_words_where_no_column_names_media():
    assert placed("an <image> tag", [], has_tags=False) == ("an <image> tag", [])


@given(st.lists(st.sampled_from(["image", "video", "<", ">", "<b>", "text\n"]), max_size=12))
def test_text_and_order_survive_whatever_stands_between(pieces):
    kinds = [piece for piece in pieces if piece in ("image", "video")]
    written = "".join(f"<{p}>" if p in ("image", "video") else p for p in pieces)
    by_kind = sorted(kinds)
    content, order = placed(written, by_kind)
    assert [by_kind[n] for n in order] == kinds
    if kinds:
        back = "".join(part.get("text", f"<{part['type']}>") for part in content)
        assert back == written


# Data sets


def test_paths_start_at_the_data_file_and_media_are_in_chat_order(folder):
    rows = [row(n) for n in range(6)] + [row(6, " <video><image>", ["a.png"], ["v.mp4"])]
    prompt = prompts(opened(folder, rows, heldout_share=0.3, system_prompt="Look at <image>."))[
        "r6"
    ]
    assert prompt.media == (
        MediaFile("video", str(folder / "v.mp4")),
        MediaFile("image", str(folder / "a.png")),
    )
    assert prompt.messages == (
        {"role": "system", "content": "Look at <image>."},
        {"role": "user", "content": [text("6 "), VIDEO, IMAGE]},
    )
    store = MediaStore(SourceConfig())
    assert len(store.read(prompt.media[0]).frames) == 1  # 0.3 s at 3 frames a second
    assert store.read(prompt.media[1]).pixels.size == (4, 2)


def test_paths_from_the_working_directory_work_too(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    source = opened(elsewhere, [row(n, images=["a.png"]) for n in range(3)])
    assert prompts(source)["r0"].media == (MediaFile("image", str(folder / "a.png")),)
    monkeypatch.chdir(elsewhere)
    source = opened(
        elsewhere, [row(n, images=["a.png"]) for n in range(3)], "o.jsonl", media_dir=str(folder)
    )
    assert prompts(source)["r0"].media == (MediaFile("image", str(folder / "a.png")),)
    Image.new("RGB", (4, 2)).save(elsewhere / "a.png")
    source = opened(elsewhere, [row(n, images=["a.png"]) for n in range(3)], "other.jsonl")
    assert prompts(source)["r0"].media == (MediaFile("image", str(elsewhere / "a.png")),)


@pytest.mark.parametrize("form", ["absolute", "up", "home", "file"])
def test_a_row_names_no_file_outside_the_data(folder, tmp_path_factory, monkeypatch, form):
    """Another file of the machine would be shown to the policy, and by its answers to others."""
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (4, 2)).save(outside / "a.png")
    monkeypatch.setenv("HOME", str(outside))
    monkeypatch.chdir(folder)
    path = {
        "absolute": str(outside / "a.png"),
        "up": os.path.relpath(outside / "a.png", folder),
        "home": "~/a.png",
        "file": f"file://{outside / 'a.png'}",
    }[form]
    rows = [row(n, images=["a.png"]) for n in range(3)] + [row(3, images=[path])]
    source = opened(folder, rows)
    assert "r3" not in prompts(source)
    (left_out,) = source.quarantined
    assert left_out.reason.startswith("outside: ") and "data.allow_outside" in left_out.reason
    allowed = opened(folder, rows, "allowed.jsonl", allow_outside=True)
    (medium,) = prompts(allowed)["r3"].media
    assert os.path.samefile(medium.path, outside / "a.png")
    within = opened(folder, rows, "within.jsonl", media_dir=str(outside))
    assert "r3" in prompts(within) or form == "up"


def test_one_path_in_a_cell_is_one_image(folder):
    rows = [{"question": f"{n}?", "answer": "1", "i": "a.png"} for n in range(3)]
    source = opened(folder, rows, columns={"videos": None, "id": None})
    assert [len(prompt.media) for prompt in prompts(source).values()] == [1, 1, 1]


def test_bad_rows_are_quarantined_with_their_reason(folder):
    Image.new("1", (2**13 + 1, 2**13)).save(folder / "large.png")
    bad = {
        "b0": (row("b0", images=["gone.png"]), f"missing: {folder / 'gone.png'} does not exist"),
        "b1": (row("b1", images=["bad.png"]), f"not_an_image: {folder / 'bad.png'} is none of"),
        "b2": (row("b2", images=["a.png", "large.png"]), "too_large: "),
        "b3": (row("b3", "<image>", images=["a.png", "b.png"]), "places_differ: "),
        "b4": (row("b4", videos=["bad.mp4"]), "unreadable: "),
        "b5": (row("b5", images=["https://example.org/a.png"]), "missing: https://example.org/"),
        "b6": (
            row("b6", images=["a.png", None]),
            "not_an_image: image 1 of column i, train row 46",
        ),
    }
    good = [row(n, images=["a.png"]) for n in range(40)]
    rows = good + [one | {"id": name} for name, (one, _) in bad.items()]
    source = opened(folder, rows, heldout_share=0.2)
    assert source.train_count + source.heldout_count == 40
    assert set(prompts(source)) == {one["id"] for one in good}
    assert [one.id for one in source.quarantined] == [f"rows/train/{name}" for name in bad]
    for one, (_, reason) in zip(source.quarantined, bad.values(), strict=True):
        assert one.reason.startswith(reason)


def test_quarantine_moves_no_other_row_to_another_split(folder):
    rows = [row(n, images=["a.png"]) for n in range(200)]
    whole = opened(folder, rows, "whole.jsonl", heldout_share=0.3)
    rows[::4] = [one | {"i": ["gone.png"]} for one in rows[::4]]
    part = opened(folder, rows, "part.jsonl", heldout_share=0.3)
    assert (len(part.quarantined), part.train_count + part.heldout_count) == (50, 150)

    def held(source):
        return {source.heldout(n).id.rpartition("/")[2] for n in range(source.heldout_count)}

    assert held(part) == held(whole) & set(prompts(part))


def test_rows_are_quarantined_in_both_tables(folder):
    heldout = [row(10, images=["a.png"]), row(11, images=["gone.png"])]
    (folder / "h.jsonl").write_text("".join(json.dumps(one) + "\n" for one in heldout))
    rows = [row(n, images=["bad.png" if n == 1 else "a.png"]) for n in range(4)]
    source = opened(folder, rows, heldout_path=str(folder / "h.jsonl"))
    assert set(prompts(source)) == {"r0", "r2", "r3", "r10"}
    assert [one.id for one in source.quarantined] == ["rows/train/r1", "h/heldout/r11"]


def test_nothing_left_is_an_error_that_counts_the_reasons(folder):
    rows = [row(n, images=["gone.png"]) for n in range(6)] + [row(6, "<image>"), row(7, "<image>")]
    with pytest.raises(ValueError) as caught:
        opened(folder, rows)
    said = str(caught.value)
    assert "has no row that can be used; quarantined are 6 missing, 2 places_differ" in said
    assert f"the first: rows/train/r0 missing: {folder / 'gone.png'} does not exist" in said
    # Some of them are named, and never all.
    assert "/r1" in said and "/r5" not in said
    with pytest.raises(ValueError, match=r"too few to hold out .*\(quarantined are 6 missing"):
        opened(folder, [*rows[:6], row(9)], "one.jsonl")
    (folder / "h.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match=r"h\.jsonl has no row that can be used"):
        opened(folder, [row(n) for n in range(3)], heldout_path=str(folder / "h.jsonl"))


def test_a_column_of_something_else_is_refused(folder):
    with pytest.raises(ValueError, match=r"column i must hold paths, bytes or .*, got 7$"):
        opened(folder, [row(n, i=7) for n in range(3)])


def test_messages_with_parts_or_tags_are_prompts(folder):
    def chat(n, content):
        return row(n, images=["a.png"], chat=[{"role": "user", "content": content}])

    parts = [chat(n, [IMAGE | {"text": None}, text(f"{n}?")]) for n in range(3)]
    source = opened(folder, parts, columns={"messages": "chat"})
    assert prompts(source)["r0"].messages == ({"role": "user", "content": [IMAGE, text("0?")]},)
    tags = [chat(n, f"{n} <image>?") for n in range(3)]
    source = opened(folder, tags, "tags.jsonl", columns={"messages": "chat"})
    assert prompts(source)["r0"].messages[0]["content"] == [text("0 "), IMAGE, text("?")]


def test_messages_bring_pictures_beside_those_of_columns(folder):
    content = [{"type": "image_url", "image_url": {"url": "b.png"}}, text("or "), IMAGE, text("?")]
    chat = [{"role": "user", "content": content}]
    uri = "data:image/png;base64," + b64encode(encoded(Image.new("RGB", (9, 2)))).decode()
    cut = [{"role": "user", "content": [{"type": "image", "image": uri[:70]}, text("?")]}]
    own = [{"role": "user", "content": [{"type": "image", "image": uri, "max_pixels": 8}]}]
    rows = [row(n, images=["a.png"], chat=chat) for n in range(4)]
    rows += [row(4, chat=own), row(5, chat=cut), row(6, chat=chat)]
    source = opened(folder, rows, columns={"messages": "chat"})
    assert source.shows_media
    prompt, drawn = prompts(source)["r0"], prompts(source)["r4"]
    assert prompt.messages[0]["content"] == [IMAGE, text("or "), IMAGE, text("?")]
    assert [medium.path for medium in prompt.media] == [str(folder / n) for n in ("b.png", "a.png")]
    assert drawn.media == (MediaCell("image", "train", "chat", 4, 0),)
    store = MediaStore(SourceConfig(path=str(folder / "rows.jsonl")))
    assert store.read(drawn.media[0]).pixels.size == (6, 1)
    reasons = {one.id[-2:]: one.reason.partition(":")[0] for one in source.quarantined}
    assert reasons == {"r5": "not_an_image", "r6": "places_differ"}


def test_parts_need_no_column_of_media(folder):
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": "a.png"}, text(f"<image> {n}?")]}]
        for n in range(3)
    ]
    rows = [{"id": f"r{n}", "question": chat, "answer": "1"} for n, chat in enumerate(chats)]
    source = opened(
        folder, rows, columns={"images": None, "videos": None}, template="{{question}}!"
    )
    # Where no column holds media, the word is a word.
    content = [IMAGE, text("<image> 0?"), text("!")]
    assert prompts(source)["r0"].messages[0]["content"] == content
    assert source.shows_media


def test_several_columns_of_images_have_numbers(folder):
    rows = [
        {"id": f"r{n}", "question": f"{n} {asked}", "answer": "1", "x": "a.png", "y": "b.png"}
        for n, asked in enumerate(["<image 2>, not <image 1>; <image 2>", "<image 2>", "<image 3>"])
    ]
    rows += [dict(row, id=f"s{n}") for n, row in enumerate(rows)]
    source = opened(folder, rows, columns={"images": ["x", "y"], "videos": None})
    found = prompts(source)
    assert found["r0"].messages[0]["content"] == [
        *(text("0 "), IMAGE, text(", not "), IMAGE, text("; <image 2>"))
    ]
    paths = [[medium.path[-5:] for medium in found[name].media] for name in ("r0", "r1")]
    # An image that no number names stands in front.
    assert paths == [["b.png", "a.png"], ["a.png", "b.png"]]
    assert {one.id[-2:] for one in source.quarantined} == {"r2", "s2"}


def test_llava_rows_and_folders_of_pictures(folder):
    rows = [
        {
            "id": f"r{n}",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{n}?"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for n in range(4)
    ]
    (folder / "llava.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "images": "image"}
    llava = DatasetSource(SourceConfig(path=str(folder / "llava.json"), columns=columns), MODES)
    prompt = llava.train(0)
    assert prompt.messages[0]["content"][0] == IMAGE and prompt.reference == "red"
    nested = folder / "set" / "train"
    nested.mkdir(parents=True)
    (folder / "b.png").rename(nested / "c.png")
    lines = "".join(f"c.png,{n}?,red\n" for n in range(4))
    (nested / "metadata.csv").write_text("file_name,question,answer\n" + lines)
    config = SourceConfig(path=str(folder / "set"), columns={"images": "file_name"})
    assert DatasetSource(config, MODES).train(0).media[0].path == str(nested / "c.png")


def test_no_error_and_no_reason_is_long(folder):
    rows = [row(n, images=["x" * 9000 + ".png", "a.png"]) for n in range(4)]
    with pytest.raises(ValueError, match="4 missing") as caught:
        opened(folder, rows)
    assert len(str(caught.value)) < 1000
    source = opened(folder, [*rows, row(8, images=["a.png"]), row(9, images=["b.png"])], "b.jsonl")
    assert max(len(one.reason) for one in source.quarantined) < 400


def test_a_place_in_messages_without_a_column_of_media_is_quarantined(folder):
    chats = [[{"role": "user", "content": [text(f"{n}?")]}] for n in range(4)]
    chats[1][0]["content"].insert(0, IMAGE)
    rows = [{"id": f"r{n}", "chat": chat, "answer": "1"} for n, chat in enumerate(chats)]
    columns = {"messages": "chat", "images": None, "videos": None}
    source = opened(folder, rows, columns=columns)
    assert [one.id for one in source.quarantined] == ["rows/train/r1"]


def test_bytes_in_cells_are_named_and_read_by_any_process(tmp_path):
    def cell(shade):
        return {"bytes": encoded(Image.new("RGB", (4, 2), (shade, 0, 0))), "path": "same.png"}

    cells = [[cell(n)] for n in range(30)] + [[{"bytes": b"cut", "path": None}]]
    table = {
        "question": ["how red?"] * 31,
        "answer": [str(n) for n in range(31)],
        "i": pa.array(cells, pa.list_(STRUCT)),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    config = SourceConfig(path=str(tmp_path / "a.parquet"), columns={"images": "i"})
    source, store = DatasetSource(config, MODES), MediaStore(config)
    found = prompts(source)
    assert len(found) == 30
    assert found["7"].media == (MediaCell("image", "train", "i", 7, 0),)
    for prompt in found.values():
        (medium,) = prompt.media
        assert store.read(medium).pixels.getpixel((0, 0))[0] == int(prompt.reference)
    assert [one.reason.partition(":")[0] for one in source.quarantined] == ["not_an_image"]
    # The question is always the same: it is the picture that puts a row into a split.
    assert source.heldout_count < 10


def test_held_out_rows_are_told_apart_by_their_pictures(tmp_path):
    def write(name, shades):
        cells = [encoded(Image.new("RGB", (4, 2), (n, 0, 0))) for n in shades]
        columns = {"question": ["how red?"] * len(cells), "answer": ["1"] * len(cells), "i": cells}
        pq.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    config = SourceConfig(
        path=write("t.parquet", range(10)),
        heldout_path=write("h.parquet", range(8, 12)),
        columns={"images": "i"},
    )
    source, store = DatasetSource(config, MODES), MediaStore(config)
    assert (source.train_count, source.heldout_count) == (8, 4)
    (medium,) = source.heldout(3).media
    assert store.read(medium).pixels.getpixel((0, 0))[0] == 11


def test_opening_a_row_decodes_no_picture(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question", "answer")}
        | {"i": datasets.Image()}
    )
    picture = {"bytes": encoded(Image.new("RGB", (4, 2))), "path": None}
    rows = {"question": list("abcd"), "answer": list("1234"), "i": [picture] * 4}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    monkeypatch.setattr(
        "datasets.features.Image.decode_example", lambda *a, **k: pytest.fail("decoded")
    )
    config = SourceConfig(path=str(tmp_path / "a.parquet"), columns={"images": "i"})
    assert len(prompts(DatasetSource(config, MODES))) == 4


# Visual tasks


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_visual_task_asks_about_a_picture_that_it_names(task):
    source = open_source(SourceConfig(kind="visual", path=task, system_prompt="Look."), 5, MODES)
    assert (source.train_count, source.heldout_count, source.quarantined) == (None, None, ())
    assert source.rows_for("short") is None
    for prompt, seed, is_heldout in ((source.train(3), 5, False), (source.heldout(3), 0, True)):
        made = render(task, read_settings(task), seed, 3, is_heldout)
        assert prompt.media == (RenderedMedium(task, seed, 3, is_heldout, 0),)
        assert (prompt.reference, prompt.task) == (made.answer, made.task)
        assert prompt.messages == (
            {"role": "system", "content": "Look."},
            {"role": "user", "content": [IMAGE, text(made.question)]},
        )
        assert prompt.id == f"{task}/{'heldout' if is_heldout else 'train'}/3"


def test_a_prompt_of_a_scene_is_made_without_painting(monkeypatch):
    monkeypatch.setattr("PIL.Image.new", lambda *a, **k: pytest.fail("painted"))
    monkeypatch.setattr("PIL.Image.fromarray", lambda *a, **k: pytest.fail("painted"))
    for task in sorted(set(TASKS) - {"reconstruction"}):
        open_source(SourceConfig(kind="visual", path=task), 5, MODES).train(3)


def test_a_run_may_compare_answers_its_own_way():
    config = SourceConfig(kind="visual", path="digits", task="probability")
    assert open_source(config, 0, MODES).train(0).task == "probability"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"data\.path must name a visual task: digits, shapes"),
        ({"path": "digit"}, "no visual task 'digit'; did you mean digits"),
        ({"path": "digits", "settings": {"m": 1}}, "settings of digits: .*m"),
    ],
)
def test_a_visual_task_that_cannot_be_asked_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        open_source(SourceConfig(kind="visual", **data), 0, MODES)


def test_a_long_check_shows_its_progress(folder, capsys, monkeypatch):
    rows = [row(n, images=["a.png"]) for n in range(3)]
    opened(folder, rows)
    assert "checking media" not in capsys.readouterr().err
    monkeypatch.setattr("rollout.prompts.row_media.SILENT_S", 0.0)
    opened(folder, rows, "again.jsonl")
    assert "checking media" in capsys.readouterr().err
