"""What a run is given before Ray starts, of models with chat templates of other kinds."""

import importlib.util
from pathlib import Path

import pytest
from transformers import Qwen3ForCausalLM, Qwen3ForSequenceClassification

from rl.assembly import gather_inputs
from tests import bpe_policy
from tests.fakes import config
from tests.qwen_vl_tiny import save_tiny
from tests.unit.rewards.test_preference import make_random_model

TURNS = bpe_policy.CHAT_TEMPLATE.split("{% if enable_thinking %}")[0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It reads a budget in place of a switch, and has tags of its own."""
    directory = bpe_policy.make_policy(tmp_path_factory.mktemp("policy"), 128)
    template = TURNS + "{% if budget is defined %}budget {{ budget }} {% endif %}{% endif %}"
    (directory / "chat_template.jinja").write_text(template)
    return directory


def test_a_model_without_a_switch_is_trained_in_both_modes_after_a_note(policy):
    plain = config(policy__model=str(policy), rollout__max_model_length=128)
    inputs = gather_inputs(plain)
    assert [note for note in inputs.notes if "no switch for reasoning" in note] == [*inputs.notes]
    ends = [inputs.chat.raw_text(inputs.encode(inputs.heldout[0], mode)) for mode in plain.modes]
    assert ends[0].endswith("assistant\n<think>\n\n</think>\n\n")
    assert ends[1].endswith("assistant\n<think>\n")


def test_prompts_have_the_tags_of_the_policy_and_the_variables_of_their_mode(policy):
    settings = config(
        policy__model=str(policy),
        policy__think_tags={"open": "[T]", "close": "[/T]"},
        rollout__max_model_length=128,
        modes__long__chat_template_kwargs={"budget": 9},
    )
    inputs = gather_inputs(settings)
    assert inputs.notes == ()
    ends = [inputs.chat.raw_text(inputs.encode(inputs.heldout[0], mode)) for mode in settings.modes]
    assert ends[0].endswith("assistant\n[T]\n\n[/T]\n\n")
    assert ends[1].endswith("assistant\nbudget 9 [T]\n")


def test_what_cannot_be_trained_can_be_asked(policy):
    (policy / "quantize_config.json").write_text("{}")
    plain = config(policy__model=str(policy), rollout__max_model_length=128)
    assert gather_inputs(plain, is_trained=False).model == policy
    with pytest.raises(ValueError, match="is quantised"):
        gather_inputs(plain)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_run_that_logs_to_wandb_is_refused_before_anything_where_the_package_is_missing(policy):
    changes = {"policy__model": str(policy), "rollout__max_model_length": 128}
    logged = config(**changes, log={"wandb_project": "mine"})
    with pytest.raises(ValueError, match=r"log\.wandb_project=mine needs the wandb package"):
        gather_inputs(logged)
    # An evaluation of its policy logs to nobody.
    assert gather_inputs(logged, is_trained=False).model == policy


@pytest.mark.parametrize("kind", ["classifier", "judge"])
def test_a_preference_model_that_reads_text_only_is_refused_for_pictures(tmp_path, kind):
    blind = make_random_model(
        tmp_path / "blind", Qwen3ForCausalLM if kind == "judge" else Qwen3ForSequenceClassification
    )
    settings = {
        "policy__model": str(tmp_path / "nowhere"),
        "data__kind": "visual",
        "data__path": "digits",
        "reward__preference": {"model": str(blind), "kind": kind},
    }
    # Before the policy is looked for, which may have to be downloaded.
    with pytest.raises(ValueError, match=r"blind reads text only.* builtin:tiny_vision.*=null"):
        gather_inputs(config(**settings))
    with pytest.raises(ValueError, match=r"policy.model must be .*nowhere"):
        gather_inputs(config(**settings | {"data__kind": "chain_sum", "data__path": None}))
    save_tiny(tmp_path / "seeing", "qwen2_5_vl")
    seeing = {"model": str(tmp_path / "seeing"), "kind": "judge"}
    with pytest.raises(ValueError, match=r"policy.model must be .*nowhere"):
        gather_inputs(config(**settings | {"reward__preference": seeing}))
