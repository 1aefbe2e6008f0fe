"""policy.train and policy.lora: which weights get a gradient."""

import pytest

from policy.models.loading import choose_trained
from rl.config.policy import PolicyConfig
from tests.minicpmv_tiny import tiny_model

PREFIXES = {"llm": "llm.", "vision": "vpm.", "resampler": "resampler."}


def trainable(policy) -> set[str]:
    return {name for name, weight in policy.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    "parts", [None, ["llm"], ["resampler", "vision"], ["llm", "resampler"]], ids=str
)
def test_the_named_parts_are_trained_and_no_other(parts: list | None):
    model = tiny_model()
    policy = choose_trained(model, PolicyConfig(train=parts))
    wanted = tuple(PREFIXES[part] for part in parts or PREFIXES)
    assert trainable(policy) == {n for n, _ in model.named_parameters() if n.startswith(wanted)}


def test_adapters_stay_on_the_language_model():
    """By default nothing else is trained; a part that is named is trained whole."""
    policy = choose_trained(tiny_model(), PolicyConfig(lora={"rank": 2}))
    names = trainable(policy)
    # Seven linear layers in each of two decoder layers, two matrices an adapter.
    assert len(names) == 2 * 7 * 2
    assert all(".llm.model.layers." in name and ".lora_" in name for name in names)

    chosen = choose_trained(
        tiny_model(),
        PolicyConfig(lora={"rank": 2, "targets": ["q_proj"]}, train=["llm", "resampler"]),
    )
    names = trainable(chosen)
    assert sum(".llm." in name and "q_proj.lora_" in name for name in names) == 2 * 2
    resampler = {name for name, _ in chosen.named_parameters() if ".resampler." in name}
    assert names - {name for name in names if "lora_" in name} == resampler


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"rank": 2}, "train": ["vision"]}, "leaves as it is; add llm"),
        ({"lora": {"rank": 2, "targets": ["conv"]}}, "name no linear layer"),
    ],
    ids=["lora without llm", "no such target"],
)
def test_settings_that_train_nothing_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        choose_trained(tiny_model(), PolicyConfig(**settings))
