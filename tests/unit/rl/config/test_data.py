"""The section `data`: presets, mixtures, and keys that people guess."""

import pytest

from rl.config.data import ColumnsConfig, SourceConfig
from rl.config.presets import PRESETS
from rl.config.recipe import load
from rl.config.run import Config


def recipe(*settings) -> Config:
    return load(
        ["config=hybrid_50_50.yaml", "scale=one_gpu", "data.kind=dataset", *settings]
    ).config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_section_and_comes_back_as_it_is(name):
    config = SourceConfig(preset=name)
    assert config.path and config.columns.reference
    assert SourceConfig.model_validate(config.model_dump()) == config


def test_a_preset_yields_to_what_is_given_beside_it():
    data = recipe("data.preset=gsm8k", "data.task=number", "data.columns.id=row").data
    assert (data.path, data.subset, data.heldout_split) == ("openai/gsm8k", "main", "test")
    assert (data.task, data.columns.id, data.columns.reference) == ("number", "row", "answer")


def test_a_copy_of_a_preset_has_no_subset_and_splits_of_the_published_one():
    data = recipe("data.preset=docvqa", "data.path=mine.parquet").data
    assert (data.path, data.subset, data.heldout_split) == ("mine.parquet", None, None)
    assert (data.columns.reference, data.task) == ("answers", "anls")


def test_presets_and_mixtures_that_cannot_be_meant_are_refused():
    for settings, message in [
        (["data.preset=gsm8"], "no preset 'gsm8'; there are gsm8k"),
        (["data.kind=chain_sum", "data.preset=gsm8k"], "set data.kind=dataset too"),
        (["data.mix.a.preset=math", "data.path=b.jsonl"], "a source beside them"),
        (["data.mix.a.pth=b.jsonl"], r"data\.mix\.a\.pth: no such key"),
        (["data.mix.a.weight=-1"], r"data\.mix\.a\.weight: must be greater than or equal to 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            recipe(*settings)


def test_the_sources_of_a_mixture_have_names_and_may_be_presets():
    data = recipe("data.mix.a.path=a.jsonl", "data.mix.b.preset=math", "data.mix.b.weight=2").data
    assert [(name, source.weight) for name, source in data.mix.items()] == [("a", 1), ("b", 2)]
    assert data.sources == data.mix and data.sources["b"].columns.question == "problem"
    assert recipe("data.path=a.jsonl").data.sources[""].path == "a.jsonl"


def test_columns_of_media_are_one_or_several():
    columns = ColumnsConfig(images=["a", "b"], videos="c")
    assert columns.media == {"a": "image", "b": "image", "c": "video"}
    assert list(ColumnsConfig(images="a").media) == ["a"]


@pytest.mark.parametrize(("guess", "key"), [("answer", "reference"), ("prompt", "question")])
def test_names_of_other_trainers_lead_to_ours(guess, key):
    with pytest.raises(ValueError, match=rf"did you mean columns\.{key}"):
        recipe(f"data.columns.{guess}=x")
