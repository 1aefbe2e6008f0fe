"""Settings of the learner that cannot work together are refused before anything starts."""

import pytest
from pydantic import ValidationError

from rl.config.policy import PolicyConfig
from tests.fakes import config


@pytest.mark.parametrize(("value", "every"), [(False, 0), (True, 1), (1, 1), (2, 2), (7, 7)])
def test_recomputation_is_of_all_layers_or_of_every_nth(value: bool | int, every: int):
    assert PolicyConfig(gradient_checkpointing=value).checkpoint_every == every


@pytest.mark.parametrize("value", [-1, "some", 1.5])
def test_recomputation_of_anything_else_is_refused(value: object):
    with pytest.raises(ValidationError):
        PolicyConfig(gradient_checkpointing=value)


def test_ranks_that_share_sequences_divide_all_ranks():
    assert PolicyConfig(ranks=4, sequence_parallel=2).sequence_parallel == 2
    with pytest.raises(ValidationError, match=r"must divide policy\.ranks.* got 4 of 6"):
        PolicyConfig(ranks=6, sequence_parallel=4)


@pytest.mark.parametrize("attention", ["flash", "cudnn", "flash_attention_2", "flash_attention_3"])
def test_attention_kernels_of_16_bits_are_for_gpus(attention: str):
    with pytest.raises(
        ValidationError, match=rf"policy\.attention={attention} computes in 16 bits"
    ):
        PolicyConfig(attention=attention)
    with pytest.raises(ValidationError, match=rf"policy\.attention={attention} takes kernels"):
        config(policy__attention=attention, policy__dtype="bfloat16")
    chosen = config(policy__attention=attention, policy__dtype="bfloat16", resources={"gpus": 2})
    assert chosen.policy.attention == attention


def test_fused_layers_are_for_gpus():
    with pytest.raises(ValidationError, match=r"policy\.fused_layers=true takes kernels"):
        config(policy__fused_layers=True)
    assert config(policy__fused_layers=True, resources={"gpus": 2}).policy.fused_layers


def test_offload_is_known_from_deepspeeds_own_settings():
    assert not PolicyConfig().offloads_optimizer
    zero = {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
    assert PolicyConfig(deepspeed={"zero_optimization": zero}).offloads_optimizer
    zero["offload_optimizer"]["device"] = "none"
    assert not PolicyConfig(deepspeed={"zero_optimization": zero}).offloads_optimizer
