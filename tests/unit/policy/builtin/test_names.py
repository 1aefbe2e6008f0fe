"""Built-in models by name. The makers are left out: tests/integration/test_tiny_*.py make them."""

import subprocess
import sys
from pathlib import Path

import pytest

from policy.builtin import (
    labelling,
    names,
    reward_model,
    text_policy,
)
from policy.builtin.names import builtin_policy, builtin_reward_model
from policy.builtin.sight import resampled, vision_policy, vision_reward_model
from policy.models.cache import default_cache_dir


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The directories that the makers were asked for; nothing is made."""
    asked: list[Path] = []

    def note(directory: Path, _: object) -> Path:
        asked.append(directory)
        return directory

    sight = (resampled, vision_policy, vision_reward_model)
    for module in (labelling, reward_model, text_policy, *sight):
        monkeypatch.setattr(module, "made_once", note)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(names.SEED_VARIABLE, raising=False)
    return asked


def test_the_usual_models_keep_their_places_in_the_cache(made: list[Path]):
    """A name changes only with what decides the weights: everyone then makes the model anew."""
    usual = ("tiny", "tiny_auto", "tiny_qwen_vl", "tiny_minicpmv", "tiny_reconstructor")
    for name in (*usual, "tiny_describer"):
        builtin_policy(f"builtin:{name}")
    assert [directory.parent for directory in made] == [default_cache_dir()] * 6
    assert [directory.name for directory in made] == [
        "tiny-a7060a12d12b",
        "tiny_auto-33f6779f8d93",
        "tiny_qwen_vl-ae917762adc7",
        "tiny_minicpmv-ba8c25d1cba5",
        "tiny_reconstructor-2e503d697379",
        "tiny_describer-9949f1bfc2da",
    ]


@pytest.mark.parametrize("name", names.POLICY_SIZES)
def test_another_seed_is_another_model(
    made: list[Path], monkeypatch: pytest.MonkeyPatch, name: str
):
    for seed in ("", "7", "8", "7"):
        monkeypatch.setenv(names.SEED_VARIABLE, seed)
        builtin_policy(name)
    # Behind the policy that it starts from, where there is one.
    usual, seven, eight, again = made[len(made) // 4 - 1 :: len(made) // 4]
    assert len({usual, seven, eight}) == 3
    assert seven == again


def test_the_seed_reaches_a_model_and_the_policy_it_starts_from(
    made: list[Path], monkeypatch: pytest.MonkeyPatch
):
    for seed in ("", "7"):
        monkeypatch.setenv(names.SEED_VARIABLE, seed)
        builtin_policy("builtin:tiny_labeller")
        builtin_policy("builtin:tiny_vision_labeller")
        builtin_policy("builtin:tiny_description_labeller")
        builtin_reward_model("builtin:tiny")
        builtin_reward_model("builtin:tiny_vision")
    assert [directory.name.rpartition("-")[0] for directory in made] == [
        *("tiny", "tiny_labeller", "tiny_qwen_vl", "tiny_vision_labeller"),
        *("tiny_describer", "tiny_description_labeller"),
        *("tiny", "tiny-reward", "tiny_qwen_vl", "tiny_vision_reward"),
    ] * 2
    assert not set(made[:10]) & set(made[10:])


def test_a_seed_that_is_no_number_is_refused(made: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(names.SEED_VARIABLE, "two")
    with pytest.raises(ValueError, match="HYBRID_RL_WARMUP_SEED must be a whole number, got 'two'"):
        builtin_policy("builtin:tiny")
    assert made == []


def test_any_other_name_stays_as_it_is():
    assert builtin_policy("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert builtin_policy("builtin:nothing") == "builtin:nothing"
    assert builtin_reward_model("builtin:tiny_labeller") == "builtin:tiny_labeller"


def test_sizes_are_known_without_loading_torch():
    code = "import sys, policy.builtin.names; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert printed.strip() == b"False"
