"""Log-probabilities of sampled tokens, without ever holding the logits of a whole micro-batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import is_triton_available
from trl.kernels import ChunkedLogProbFunction

from policy.learner.sequence_parallel import SequenceShare
from policy.models.family import model_family

VOCABULARY_TILE = 8192
"""Logits of a position that the fused kernel holds at one time; TRL has 4096 positions at once."""
NEVER = -1e5
"""Added to the logit of a token that is never sampled, where minus infinity would become no number:
the exponential of what is left is 0 all the same."""


class LogprobModel(nn.Module):
    """A causal language model that answers with the log-probabilities of its loss tokens.

    Rows are padded on the right and attention is causal, so no attention mask is needed: no
    token that counts sees padding.
    """

    def __init__(
        self,
        causal_lm: PreTrainedModel | PeftModel,
        chunk_tokens: int,
        unsampled: Sequence[int] = (),
        is_fused: bool = False,
    ) -> None:
        """chunk_tokens: positions whose logits exist at one time.

        unsampled: token ids that the engines never sample, and leave out of their softmax.
        is_fused: log-probabilities come from TRL's kernel (see wants_kernel).
        """
        super().__init__()
        base = causal_lm.get_base_model() if isinstance(causal_lm, PeftModel) else causal_lm
        # Leave the output layer out of the backbone: ChunkedHead owns it, and ZeRO-3 must see it
        # under one module only.
        self.backbone = model_family(base.config.model_type).backbone(base)
        self.head = ChunkedHead(base.get_output_embeddings(), chunk_tokens, unsampled, is_fused)
        self.share: SequenceShare | None = None
        """This rank's share of every row; None where it forwards whole rows."""

    def forward(
        self,
        token_ids: Int[Tensor, "batch time"],
        loss_mask: Bool[Tensor, "batch time"],
        temperature: Float[Tensor, " batch"],
        visual: Mapping[str, Any] | None = None,
        is_sampled: bool = True,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return (logprobs, entropies) of the N tokens under the mask, in row order.

        Token t is predicted from position t - 1. Entropies carry no gradient. visual: what the
        backbone takes besides the tokens (policy/models/family.py). is_sampled: whether the tokens
        come from a sampler, which leaves some out, or are scored as they stand.
        """
        if self.share is not None:
            return self._shared(self.share, token_ids, loss_mask, temperature, is_sampled)
        output = self.backbone(input_ids=token_ids, use_cache=False, **(visual or {}))
        hidden = output.last_hidden_state  # [B, T, H]
        # Logits are computed only where a loss token is predicted: most of a long prompt is not.
        predicted = loss_mask[:, 1:]
        row_temperature = temperature[:, None].expand(predicted.shape)
        return self.head(
            hidden[:, :-1][predicted],  # [N, H]
            token_ids[:, 1:][predicted],
            row_temperature[predicted],
            is_sampled,
        )

    def _shared(
        self,
        share: SequenceShare,
        token_ids: Int[Tensor, "batch time"],
        loss_mask: Bool[Tensor, "batch time"],
        temperature: Float[Tensor, " batch"],
        is_sampled: bool,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """What `forward` returns, on each of the ranks that forward a stretch of every row."""
        time = token_ids.shape[1]
        length = share.padded(time)
        positions = torch.arange(length, device=token_ids.device)[None]
        output = self.backbone(
            input_ids=share.own(token_ids, length),
            position_ids=share.own(positions, length),
            use_cache=False,
        )
        # Shifted before they are cut: what a stretch predicts last begins the next one.
        predicted = share.own(loss_mask[:, 1:], length)
        targets = share.own(token_ids[:, 1:], length)
        rows, columns = predicted.nonzero(as_tuple=True)
        logprobs, entropies = self.head(
            output.last_hidden_state[rows, columns],
            targets[rows, columns],
            temperature[rows],
            is_sampled,
        )
        places = torch.stack([logprobs, entropies], dim=-1)  # [own N, 2]
        stretch = places.new_zeros(*predicted.shape, 2).index_put((rows, columns), places)
        logprobs, entropies = share.whole(stretch)[:, : time - 1][loss_mask[:, 1:]].unbind(-1)
        return logprobs, entropies.detach()


class ChunkedHead(nn.Module):
    """The output layer and log-softmax over chunks of positions, recomputed in the backward.

    One call takes all chunks. ZeRO-3 treats this module as a leaf, so the output layer is gathered
    once per call: ranks may then have different numbers of chunks without their collectives
    falling out of step.
    """

    def __init__(
        self,
        lm_head: nn.Module,
        chunk_tokens: int,
        unsampled: Sequence[int],
        is_fused: bool = False,
    ) -> None:
        super().__init__()
        self.lm_head = lm_head
        self.chunk_tokens = chunk_tokens
        self.unsampled = list(unsampled)
        self.is_fused = is_fused

    def forward(
        self,
        hidden: Float[Tensor, "n width"],
        targets: Int[Tensor, " n"],
        temperature: Float[Tensor, " n"],
        is_sampled: bool = True,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        # Without a token there is nothing for the kernel; a chunk of none keeps the graph together.
        if self.is_fused and len(targets):
            return self._fused(hidden, targets, temperature, is_sampled)
        if len(targets) <= self.chunk_tokens:
            # One chunk is all that may exist at a time, so its logits may as well be kept.
            return self._chunk(hidden, targets, temperature, is_sampled)
        tensors = (hidden, targets, temperature)
        chunks = [
            checkpoint(
                self._chunk, *part, is_sampled, use_reentrant=False, preserve_rng_state=False
            )
            for part in zip(*(tensor.split(self.chunk_tokens) for tensor in tensors), strict=True)
        ]
        logprobs, entropies = zip(*chunks, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _fused(
        self,
        hidden: Float[Tensor, "n width"],
        targets: Int[Tensor, " n"],
        temperature: Float[Tensor, " n"],
        is_sampled: bool,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        weight, bias = self.lm_head.weight, self.lm_head.bias
        bias = None if bias is None else bias.float()
        if is_sampled and self.unsampled:
            never = torch.tensor(self.unsampled, device=hidden.device)
            bias = hidden.new_zeros(len(weight), dtype=torch.float32) if bias is None else bias
            bias = bias.index_fill(0, never, NEVER)
        logprobs = torch.zeros_like(temperature)
        entropies = torch.zeros_like(temperature)
        # The kernel takes one temperature at a time, and there are as many as there are modes.
        for value in temperature.unique().tolist():
            rows = (temperature == value).nonzero()[:, 0]
            arguments = (hidden[rows].float(), weight, bias, targets[rows], value)
            of_rows, entropy, *_ = _FusedLogprobs.apply(*arguments)
            logprobs = logprobs.index_copy(0, rows, of_rows)
            entropies = entropies.index_copy(0, rows, entropy.detach())
        return logprobs, entropies

    def _chunk(
        self,
        hidden: Float[Tensor, "n width"],
        targets: Int[Tensor, " n"],
        temperature: Float[Tensor, " n"],
        is_sampled: bool,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        logits = float32_logits(self.lm_head, hidden) / temperature[:, None]  # [N, V]
        if is_sampled and self.unsampled:
            never = torch.tensor(self.unsampled, device=logits.device)
            logits = logits.index_fill(1, never, -torch.inf)
        logprobs = torch.log_softmax(logits, dim=-1)  # [N, V]
        picked = logprobs.gather(1, targets[:, None])[:, 0]
        # Last, so that the recomputation in the backward stops before it.
        with torch.no_grad():
            entropies = torch.special.entr(logprobs.exp()).sum(dim=-1)
        return picked, entropies


def wants_kernel(setting: str, lm_head: nn.Module, use_cuda: bool) -> bool:
    """Whether policy.logprobs means TRL's kernel, for this output layer and on this device.

    Raises ValueError where the kernel is asked for and the output layer is not a plain one.
    """
    is_plain = type(lm_head) is nn.Linear
    if setting == "fused" and not is_plain:
        raise ValueError(
            "policy.logprobs=fused multiplies with the weights of a linear output layer, and this "
            f"model has a {type(lm_head).__name__}; take policy.logprobs=chunked"
        )
    # On CPU the kernel is a loop in PyTorch, which is no faster than the chunks.
    is_faster = use_cuda and is_plain and is_triton_available()
    return setting == "fused" or (setting == "auto" and is_faster)


class _FusedLogprobs(torch.autograd.Function):
    """TRL's kernel, on logits that are not rounded to 16 bits.

    It computes in the type of the rows, so they are float32. On CUDA the products are those of
    TF32, which has room for every number of 16 bits: nothing is rounded that float32_logits does
    not round, at half the speed of bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
    ) -> Any:
        ctx.is_exact = weight.dtype == torch.float32
        settings = (VOCABULARY_TILE, None, 1.0, ("entropy",))
        with _tf32(not ctx.is_exact):
            return ChunkedLogProbFunction.forward(
                ctx, hidden, weight, bias, targets, temperature, *settings
            )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        with _tf32(not ctx.is_exact):
            return ChunkedLogProbFunction.backward(ctx, *grads[:2])[:5]


@contextmanager
def _tf32(is_on: bool) -> Iterator[None]:
    """Within the block CUDA may multiply float32 matrices as TF32."""
    # Only here: rotary positions are float32 products too, and TF32 would move them.
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if is_on:
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def float32_logits(
    lm_head: nn.Module, hidden: Float[Tensor, "n width"]
) -> Float[Tensor, "n vocabulary"]:
    """The output layer's logits without rounding them to the type of its weights.

    A step between two bfloat16 numbers is 0.125 for a logit above 16, and the engines do not round
    them either (rollout/engines/worker.py).
    """
    # A wrapped layer, such as one with an adapter, has a forward of its own.
    if hidden.dtype == torch.float32 or type(lm_head) is not nn.Linear:
        return lm_head(hidden).float()
    logits = _Float32Product.apply(hidden, lm_head.weight)
    return logits if lm_head.bias is None else logits + lm_head.bias.float()


class _Float32Product(torch.autograd.Function):
    """`hidden @ weight.T` in float32 from operands of 16 bits; the gradients have 16 bits again.

    PyTorch has the product with a result of another type on CUDA, and no derivative of it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        # Also where memory is metered for one (policy/learner/memory_meter.py).
        if hidden.is_cuda or hidden.is_meta:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return hidden.float() @ weight.float().t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        # As the backward of a plain layer has it: a product in 16 bits, summed in float32.
        rounded = grad.to(hidden.dtype)
        of_hidden, of_weight = ctx.needs_input_grad
        return (
            rounded @ weight if of_hidden else None,
            rounded.t() @ hidden if of_weight else None,
        )
