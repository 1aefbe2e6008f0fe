import pytest
import torch
from transformers import Qwen3ForCausalLM

from policy.learner import logprobs as logprobs_module
from policy.learner.logprobs import ChunkedHead, LogprobModel, float32_logits, wants_kernel
from tests.qwen3_tiny import tiny_qwen3

VOCABULARY, CHUNK = 64, 3


@pytest.fixture
def causal_lm() -> Qwen3ForCausalLM:
    # Nothing but logits is as wide as the vocabulary, so that a test knows them by their width.
    return tiny_qwen3(VOCABULARY, intermediate_size=32)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of 9, 6 and 4 tokens with prompts of 2, 3 and 1: 7 + 3 + 3 loss tokens."""
    token_ids = torch.zeros(3, 9, dtype=torch.int64)
    loss_mask = torch.zeros(3, 9, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for row, (length, prompt) in enumerate([(9, 2), (6, 3), (4, 1)]):
        token_ids[row, :length] = torch.randint(1, VOCABULARY, (length,), generator=generator)
        loss_mask[row, prompt:length] = True
    return token_ids, loss_mask, torch.tensor([1.0, 0.7, 1.3])


def plain(model: Qwen3ForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row alone, without padding, from the full logits."""
    logprobs, entropies = [], []
    for ids, mask, temperature in zip(*batch(), strict=True):
        length = int(mask.nonzero().max()) + 1
        logits = model(input_ids=ids[None, :length]).logits[0, :-1] / temperature
        table = torch.log_softmax(logits, dim=-1)
        picked = [(t - 1, int(ids[t])) for t in range(length) if mask[t]]
        logprobs += [table[position, token] for position, token in picked]
        entropies += [-(table[p].exp() * table[p]).sum() for p, _ in picked]
    return torch.stack(logprobs), torch.stack(entropies)


def gradients(model: torch.nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, len(value))
    return list(torch.autograd.grad((value * weights).sum(), list(model.parameters())))


def test_equals_the_full_logits_with_gradients(causal_lm: Qwen3ForCausalLM):
    expected, expected_entropies = plain(causal_lm)
    logprobs, entropies = LogprobModel(causal_lm, CHUNK)(*batch())
    assert len(logprobs) == 13
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=0)
    assert not entropies.requires_grad
    for ours, reference in zip(
        gradients(causal_lm, logprobs), gradients(causal_lm, expected), strict=True
    ):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


def test_logits_never_exist_for_more_than_a_chunk(causal_lm: Qwen3ForCausalLM):
    model = LogprobModel(causal_lm, CHUNK)
    rows_at_once, saved = [], []
    causal_lm.lm_head.register_forward_hook(lambda *call: rows_at_once.append(len(call[2])))

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs, _ = model(*batch())
    forward_calls = [3, 3, 3, 3, 1]
    assert rows_at_once == forward_calls
    assert not [shape for shape in saved if shape[-1:] == (VOCABULARY,)]
    logprobs.sum().backward()
    assert sorted(rows_at_once) == sorted(2 * forward_calls)


def test_a_batch_without_loss_tokens_gives_zero_gradients(causal_lm: Qwen3ForCausalLM):
    token_ids, loss_mask, temperature = batch()
    logprobs, entropies = LogprobModel(causal_lm, CHUNK)(
        token_ids, torch.zeros_like(loss_mask), temperature
    )
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for parameter in causal_lm.parameters()
    )


def test_tokens_that_are_never_sampled_leave_the_softmax(causal_lm):
    """By hand: p(t) / (1 - p(never)); a text that is scored as it stands keeps them."""
    never = (1, 5)
    token_ids, loss_mask, temperature = batch()
    # The row's last token is one of them, so it is no response to be scored this way.
    loss_mask &= ~torch.isin(token_ids, torch.tensor(never))
    whole, _ = LogprobModel(causal_lm, CHUNK)(token_ids, loss_mask, temperature)
    model = LogprobModel(causal_lm, CHUNK, never)
    scored, _ = model(token_ids, loss_mask, temperature, is_sampled=False)
    assert torch.equal(scored, whole)
    sampled, entropies = model(token_ids, loss_mask, temperature)
    logits = causal_lm(input_ids=token_ids).logits[:, :-1] / temperature[:, None, None]
    left = 1 - torch.softmax(logits, dim=-1)[..., list(never)].sum(dim=-1)  # [B, T - 1]
    assert torch.allclose(sampled, whole - left[loss_mask[:, 1:]].log(), atol=1e-5)
    assert (sampled > whole).all()
    assert entropies.isfinite().all()
    sampled.sum().backward()
    assert causal_lm.lm_head.weight.grad.isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_16_bits_are_not_rounded_to_16_bits(bias: bool):
    """A step of bfloat16 is 0.125 for the logits here, which reach 16 and more."""
    generator = torch.Generator().manual_seed(2)
    head = torch.nn.Linear(256, VOCABULARY, bias=bias, dtype=torch.bfloat16)
    hidden = torch.randn(5, 256, generator=generator).bfloat16().requires_grad_()
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, 256, generator=generator))
    exact = torch.nn.functional.linear(
        hidden.double(), head.weight.double(), head.bias.double() if bias else None
    )
    assert exact.abs().max() > 16
    logits = float32_logits(head, hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, atol=1e-4, rtol=0)
    assert (head(hidden).double() - exact).abs().max() > 0.02

    weights = torch.randn(5, VOCABULARY, generator=generator)
    leaves = [hidden, *head.parameters()]
    expected = torch.autograd.grad((exact * weights).sum(), leaves)
    ours = torch.autograd.grad((logits * weights).sum(), leaves)
    for own, reference in zip(ours, expected, strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own, reference, atol=0.15, rtol=0.02)


def test_the_kernel_equals_the_chunks_with_gradients(causal_lm: Qwen3ForCausalLM):
    """At three temperatures, and with tokens that are never sampled."""
    token_ids, loss_mask, temperature = batch()
    never = (1, 5)
    loss_mask &= ~torch.isin(token_ids, torch.tensor(never))
    for unsampled in ((), never):
        expected = LogprobModel(causal_lm, CHUNK, unsampled)(token_ids, loss_mask, temperature)
        found = LogprobModel(causal_lm, CHUNK, unsampled, is_fused=True)(
            token_ids, loss_mask, temperature
        )
        for own, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(own, reference, atol=1e-5, rtol=0)
        assert not found[1].requires_grad
        for own, reference in zip(
            gradients(causal_lm, found[0]), gradients(causal_lm, expected[0]), strict=True
        ):
            torch.testing.assert_close(own, reference, atol=1e-5, rtol=1e-5)
    model = LogprobModel(causal_lm, CHUNK, is_fused=True)
    logprobs, _ = model(token_ids, torch.zeros_like(loss_mask), temperature)
    assert logprobs.shape == (0,)
    assert len(gradients(causal_lm, logprobs)) == len(list(causal_lm.parameters()))


@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_rounds_no_logits_of_16_bits(bias: bool):
    """Where TRL's own would round them to steps of 0.125, it stays with the float32 head."""
    generator = torch.Generator().manual_seed(2)
    head = torch.nn.Linear(256, VOCABULARY, bias=bias, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, 256, generator=generator))
    hidden = torch.randn(9, 256, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(VOCABULARY, (9,), generator=generator)
    temperature = torch.tensor([1.0, 0.7, 1.0] * 3)
    heads = [ChunkedHead(head, 100, (), is_fused) for is_fused in (True, False)]
    sides = [one(hidden, targets, temperature) for one in heads]
    torch.testing.assert_close(sides[0], sides[1], atol=1e-4, rtol=1e-5)
    leaves = [hidden, *head.parameters()]
    own, reference = (torch.autograd.grad(side[0].sum(), leaves) for side in sides)
    for one, other in zip(own, reference, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.02)


def test_the_kernel_is_taken_where_it_is_faster_and_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    plain = torch.nn.Linear(2, 3)
    wrapped = torch.nn.Sequential(plain)
    for has_triton in (True, False):
        monkeypatch.setattr(logprobs_module, "is_triton_available", lambda has=has_triton: has)
        assert wants_kernel("auto", plain, use_cuda=True) == has_triton
        assert wants_kernel("fused", plain, use_cuda=False)
        assert not wants_kernel("auto", plain, use_cuda=False)
        assert not wants_kernel("auto", wrapped, use_cuda=True)
        assert not wants_kernel("chunked", plain, use_cuda=True)
        with pytest.raises(ValueError, match="this model has a Sequential"):
            wants_kernel("fused", wrapped, use_cuda=True)
