"""What computes a policy's layers: recomputation, attention kernels and fused layers."""

import sys
from types import ModuleType

import pytest
import torch
from transformers import Qwen3ForCausalLM

from policy.models.kernels import attention_implementation, fuse_layers, preferred_attention
from policy.models.loading import checkpoint_layers
from tests.qwen3_tiny import tiny_qwen3


def gradients(model: Qwen3ForCausalLM) -> tuple[list[torch.Tensor], list[int]]:
    """Of the log-probabilities of a few tokens; and how often each layer was computed for them."""
    calls = [0] * len(model.model.layers)

    def count(index: int):
        def hook(*_: object) -> None:
            calls[index] += 1

        return hook

    for index, layer in enumerate(model.model.layers):
        # Before its last part, since the recomputation stops as soon as it has what was not kept.
        layer.mlp.register_forward_pre_hook(count(index))
    ids = torch.arange(12).reshape(2, 6)
    loss = torch.log_softmax(model(input_ids=ids).logits, dim=-1)[..., 3].sum()
    return list(torch.autograd.grad(loss, list(model.parameters()))), calls


@pytest.mark.parametrize(
    ("every", "computed"), [(1, [2, 2, 2, 2, 2]), (2, [2, 1, 2, 1, 2]), (3, [2, 1, 1, 2, 1])]
)
def test_every_nth_layer_is_recomputed_and_the_gradient_stays(every: int, computed: list[int]):
    expected, calls = gradients(tiny_qwen3(32, num_hidden_layers=5).train())
    assert calls == [1] * 5
    model = tiny_qwen3(32, num_hidden_layers=5).train()
    checkpoint_layers(model, every)
    found, calls = gradients(model)
    assert calls == computed
    for own, reference in zip(found, expected, strict=True):
        assert torch.equal(own, reference)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_an_attention_whose_package_is_missing_is_refused_by_its_name(attention):
    with pytest.raises(ValueError, match=rf"policy\.attention={attention} needs the package flash"):
        attention_implementation(attention)


def test_pytorchs_own_kernels_are_chosen_for_the_time_of_a_block():
    flags = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.cudnn_sdp_enabled
    before = [flag() for flag in flags]
    for attention, expected in [("flash", [True, False]), ("cudnn", [True, True])]:
        assert attention_implementation(attention) == "sdpa"
        with preferred_attention(attention):
            assert [flag() for flag in flags] == expected
            # A mask is what not every kernel takes, so there must be one that does.
            assert torch.backends.cuda.math_sdp_enabled()
    assert [flag() for flag in flags] == before


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands where liger-kernel would: one family, with the signature that liger-kernel has."""
    module = ModuleType("liger_kernel.transformers")
    module.calls = []

    def apply_liger_kernel_to_qwen3(
        rope=True,
        cross_entropy=False,
        fused_linear_cross_entropy=True,
        rms_norm=True,
        swiglu=True,
        model=None,
    ):
        module.calls.append((rope, cross_entropy, fused_linear_cross_entropy, rms_norm, model))

    module.apply_liger_kernel_to_qwen3 = apply_liger_kernel_to_qwen3
    module.__all__ = ["LigerRMSNorm", "apply_liger_kernel_to_qwen3"]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    return module


def test_the_layers_of_a_known_family_are_fused_and_its_output_layer_is_not(liger):
    model = tiny_qwen3(32)
    fuse_layers(model)
    assert liger.calls == [(True, False, False, True, model)]


def test_a_family_that_liger_kernel_does_not_know_is_refused(liger):
    model = tiny_qwen3(32)
    model.config.model_type = "other"
    with pytest.raises(ValueError, match="no layers for other, only for qwen3"):
        fuse_layers(model)


def test_fused_layers_without_liger_kernel_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.delitem(sys.modules, "liger_kernel.transformers", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'hybrid-rl\[fused\]'"):
        fuse_layers(tiny_qwen3(32))
