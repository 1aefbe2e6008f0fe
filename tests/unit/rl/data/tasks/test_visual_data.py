import json

import pytest
from PIL import Image

from rl.config.data import SourceConfig
from rl.data.tasks.pictures import read_settings, render
from rollout.prompts.dataset import DatasetSource
from scripts.make_visual_data import main
from tests.html_tree import parsed, text_of, within


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("visual") / "data"
    assert main([f"out={out}", "tasks=shapes,reconstruction", "count=4", "seed=2"]) == 0
    return out


def test_rows_are_prompts_of_the_dataset_source(written):
    config = SourceConfig(
        path=str(written),
        columns={"images": "images", "task": "task", "id": "id"},
        heldout_share=0.2,
    )
    source = DatasetSource(config, ["short", "long"])
    assert source.train_count + source.heldout_count == 8
    prompts = {
        prompt.id: prompt
        for prompt in (
            *map(source.train, range(source.train_count)),
            *map(source.heldout, range(source.heldout_count)),
        )
    }
    prompt = next(one for name, one in prompts.items() if name.endswith("reconstruction/3"))
    made = render("reconstruction", read_settings("reconstruction"), 2, 3, False)
    (medium,) = prompt.media
    with Image.open(medium.path) as image:
        assert image.tobytes() == made.images[0].tobytes()
    assert (prompt.reference, prompt.task) == (made.answer, made.task)
    assert prompt.messages[-1]["content"] == [
        {"type": "image"},
        {"type": "text", "text": made.question},
    ]


def test_the_contact_sheet_shows_every_example(written):
    page = parsed((written / "index.html").read_text())
    rows = [json.loads(line) for line in (written / "dataset.jsonl").read_text().splitlines()]
    sources = [image.attrib["src"] for image in within(page, "img")]
    assert len(sources) == len(rows) == 8
    assert all((written / source).is_file() for source in sources)
    shown = [text_of(element) for element in within(page, class_="text")]
    assert shown == [text for row in rows for text in (row["question"], row["answer"])]


def test_a_directory_with_files_is_refused(written, capsys):
    before = sorted(written.rglob("*"))
    assert main([f"out={written}", "tasks=digits", "count=1"]) == 2
    assert "is not empty; name a new directory" in capsys.readouterr().err
    assert sorted(written.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tasks=digits", "count=1"], "out= is missing; give out=DIR"),
        (["out=x", "tasks=digit", "count=1"], "no such task digit; there are digits, shapes"),
        (["out=x", "tasks=digits", "count=0"], "count: "),
        (["out=x", "tasks=digits", "count=1", "sed=1"], "did you mean seed?"),
        (["out=x", "tasks"], "key=value"),
    ],
)
def test_arguments_that_do_not_suit_are_refused(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
