"""Mixtures of sources: their weights, their order, what is left out of them."""

import json
from collections import Counter

import pytest

from rl.config.recipe import load
from rl.data.media.store import MediaStore
from rl.loop.stages import Prompt
from rollout.prompts.stream import BLOCK, PromptStream


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


class Numbered:
    def __init__(self, train: int | None, heldout: int | None = 2):
        self.train_count, self.heldout_count = train, heldout

    def train(self, index: int) -> Prompt:
        return Prompt(f"n/train/{index}", (), "1")

    def heldout(self, index: int) -> Prompt:
        return Prompt(f"n/heldout/{index}", (), "1")

    def rows_for(self, mode: str) -> None:
        return None


def mixed(seed=0, a: int | None = 30, b: int | None = 7, weights=(3, 1)) -> PromptStream:
    return PromptStream({"a": Numbered(a), "b": Numbered(b, None)}, seed, 20, weights)


def asked(stream, steps) -> list[str]:
    return [prompt.id for step in range(steps) for prompt in stream.prompts(step)]


def test_every_block_has_the_weights_exactly():
    ids = asked(mixed(), 2 * BLOCK // 20)
    for first in (0, BLOCK):
        counts = Counter(name[0] for name in ids[first : first + BLOCK])
        assert counts == {"a": 750, "b": 250}
    assert 40 < sum(name[0] == "b" for name in ids[:250]) < 85


def test_each_source_goes_through_its_own_epochs():
    ids = asked(mixed(), 10)
    for name, count in (("a", 30), ("b", 7)):
        own = [i for i in ids if i[0] == name]
        epochs = [own[start : start + count] for start in range(0, len(own), count)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert len(set(epochs[0])) == count


def test_a_step_and_its_replacements_are_the_same_from_a_fresh_stream():
    walked = mixed(3)
    steps = [walked.prompts(step) for step in range(80)]
    assert mixed(3).prompts(77) == steps[77]
    assert [mixed(4).prompts(step) for step in range(3)] != steps[:3]
    for place in range(20):
        replaced = walked.replacement(77, place, 1, "long")
        assert replaced == mixed(3).replacement(77, place, 1, "long")
        # Otherwise the groups that are dropped would change the mixture.
        assert replaced.id[0] == steps[77][place].id[0]


def test_a_source_without_end_may_be_mixed_with_rows():
    stream = mixed(a=None)
    ids = [i for i in asked(stream, 50) if i[0] == "a"]
    assert len(set(ids)) == len(ids) == 750
    # The seven rows of the other come again after 28 prompts, of which they are a quarter.
    assert stream.num_train == mixed().num_train == 28
    assert mixed(a=None, b=None).num_train is None


def test_every_source_has_a_share_of_a_block_however_small_its_weight():
    counts = Counter(name[0] for name in asked(mixed(weights=(1e9, 1)), BLOCK // 20))
    assert counts == {"a": 999, "b": 1}


def test_heldout_prompts_are_mixed_alike_for_every_seed():
    shown = [prompt.id for prompt in mixed().heldout(40)]
    assert shown == [prompt.id for prompt in mixed(5).heldout(40)]
    # Two of the first source are all it has, and the other has no end.
    assert Counter(name[0] for name in shown) == {"a": 2, "b": 38}


def write(path, tag, count=20) -> str:
    rows = [{"question": f"{tag}{n}?", "answer": "1"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(*settings) -> PromptStream:
    base = ["config=hybrid_50_50.yaml", "scale=cpu_tiny", "data.kind=dataset"]
    return PromptStream.open(load([*base, *settings]).config)


def test_a_recipe_mixes_data_sets_and_tasks(tmp_path):
    (tmp_path / "x").mkdir()
    files = [write(tmp_path / "rows.jsonl", "a"), write(tmp_path / "x" / "rows.jsonl", "b")]
    settings = [
        *(f"data.mix.one.path={files[0]}", "data.mix.one.weight=2"),
        *(f"data.mix.two.path={files[1]}", "data.mix.two.template='{{question}} Now.'"),
        "data.mix.sums.kind=chain_sum",
    ]
    stream = recipe(*settings)
    prompts = [prompt for step in range(20) for prompt in stream.prompts(step)]
    counts = Counter(prompt.id.partition("/")[0] for prompt in prompts)
    assert counts["one"] == pytest.approx(len(prompts) / 2, rel=0.2)
    assert {"two", "sums"} < counts.keys()
    of_two = next(p for p in prompts if p.id.startswith("two/"))
    assert of_two.messages[-1]["content"].endswith("? Now.")
    assert of_two.id.startswith("two/rows/train/")


def test_pictures_of_a_mixture_are_drawn_with_the_settings_of_their_source():
    settings = ["config=hybrid_50_50_vision.yaml", "scale=cpu_tiny", "data.kind=dataset"]
    of_task = ["kind=visual", "path=digits", "settings={width: 150}"]
    mix = [f"data.mix.drawn.{setting}" for setting in of_task] + ["data.mix.sums.kind=chain_sum"]
    config = load([*settings, *mix]).config
    stream = PromptStream.open(config)
    prompt = next(p for p in stream.prompts(0) if p.media)
    assert stream.shows_media and config.data.shows_media
    assert MediaStore(config.data).read(prompt.media[0]).pixels.width == 150


def test_a_task_may_be_mixed_with_itself_under_other_settings():
    settings = ["config=hybrid_50_50_vision.yaml", "scale=cpu_tiny", "data.kind=dataset"]
    ways = {"wide": "{width: 150}", "film": "{width: 60, shown: in_turn}"}
    for name, of_task in ways.items():
        settings += [f"data.mix.{name}.kind=visual", f"data.mix.{name}.path=digits"]
        settings += [f"data.mix.{name}.settings={of_task}"]
    config = load(settings).config
    seen = {
        prompt.id.partition("/")[0]: MediaStore(config.data).read(prompt.media[0])
        for prompt in PromptStream.open(config).heldout(20)
    }
    assert seen["wide"].pixels.width == 150
    assert seen["film"].frames.shape[2] == 60


def test_a_source_may_be_held_out_alone_or_trained_on_alone():
    sources = {name: Numbered(None, None) for name in "abc"}
    stream = PromptStream(sources, 0, 20, (3, 1, 0), (1, 0, 1))
    assert Counter(i[0] for i in asked(stream, BLOCK // 20)) == {"a": 750, "b": 250}
    assert Counter(p.id[0] for p in stream.heldout(BLOCK)) == {"a": 500, "c": 500}
    assert stream.replacement(0, 0, 1, "long").id[0] in "ab"
    for key, split in (("weight", "training"), ("heldout_weight", "held-out")):
        with pytest.raises(ValueError, match=f"mix gives no {split} prompts"):
            recipe("data.mix.a.path=a.jsonl", f"data.mix.a.{key}=0", "data.mix.a.heldout_weight=0")


def test_the_source_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.mix\.two: .*gone\.jsonl does not exist"):
        recipe(
            f"data.mix.one.path={write(tmp_path / 'a.jsonl', 'a')}", "data.mix.two.path=gone.jsonl"
        )
    with pytest.raises(ValueError, match="a source beside them"):
        recipe("data.path=a.jsonl", "data.mix.one.path=b.jsonl")


def test_prompts_are_left_out_of_their_source_and_named(tmp_path):
    settings = [f"data.mix.{n}.path={write(tmp_path / f'{n}.jsonl', n)}" for n in "ab"]
    stream = recipe(*settings)
    gone = [prompt.id for prompt in stream.checked() if prompt.id.startswith("a/")][:5]
    before = len(list(stream.checked()))
    stream.prompts(0)
    stream.leave_out(dict.fromkeys(gone, "too_long: 9 tokens"))
    assert len(list(stream.checked())) == before - 5
    assert [row.id for row in stream.quarantined] == gone
    assert not {p.id for step in range(40) for p in stream.prompts(step)} & set(gone)
    rest = [prompt.id for prompt in stream.checked() if prompt.id.startswith("a/")]
    with pytest.raises(ValueError, match="no train row is left"):
        stream.leave_out(dict.fromkeys(rest, "too_long: 9 tokens"))
