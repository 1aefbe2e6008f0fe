"""Log-probabilities of sampled tokens, without ever holding the logits of a whole micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from policy.models.family import model_family


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
    ) -> None:
        """chunk_tokens: positions whose logits exist at one time.

        unsampled: token ids that the engines never sample, and leave out of their softmax.
        """
        super().__init__()
        base = causal_lm.get_base_model() if isinstance(causal_lm, PeftModel) else causal_lm
        # Leave the output layer out of the backbone: ChunkedHead owns it, and ZeRO-3 must see it
        # under one module only.
        self.backbone = model_family(base.config.model_type).backbone(base)
        self.head = ChunkedHead(base.get_output_embeddings(), chunk_tokens, unsampled)

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


class ChunkedHead(nn.Module):
    """The output layer and log-softmax over chunks of positions, recomputed in the backward.

    One call takes all chunks. ZeRO-3 treats this module as a leaf, so the output layer is gathered
    once per call: ranks may then have different numbers of chunks without their collectives
    falling out of step.
    """

    def __init__(self, lm_head: nn.Module, chunk_tokens: int, unsampled: Sequence[int]) -> None:
        super().__init__()
        self.lm_head = lm_head
        self.chunk_tokens = chunk_tokens
        self.unsampled = list(unsampled)

    def forward(
        self,
        hidden: Float[Tensor, "n width"],
        targets: Int[Tensor, " n"],
        temperature: Float[Tensor, " n"],
        is_sampled: bool = True,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
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
        if hidden.is_cuda:
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
