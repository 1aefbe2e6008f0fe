"""Sequence parallelism: several ranks share each row of a micro-batch, a stretch of tokens each.

    tokens of a row    0 ....... T/2 | T/2 ....... T
                       rank 0        | rank 1            all layers but attention: own tokens
    heads of a layer   0 .. H/2      | H/2 .. H          attention: own heads over the whole row

DeepSpeed's Ulysses (arXiv 2309.14509) exchanges tokens for heads before each attention and back
after it. What is left is here: which ranks share, their stretches, and the log-probabilities of
whole rows on every rank, so that nobody beyond the model knows of it. DeepSpeed's engine takes the
ranks as so many data-parallel ones: each has the gradient of its own tokens, and their sum is that
of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rl.data.media.families import family_name


@dataclass(frozen=True)
class SequenceShare:
    """This rank's share of every row."""

    group: Any
    """torch's process group of the ranks that share rows."""
    size: int
    place: int

    def padded(self, time: int) -> int:
        """The length of rows of `time` tokens that the ranks can share evenly."""
        return -(-time // self.size) * self.size

    def own(self, rows: Tensor, length: int) -> Tensor:
        """This rank's stretch of rows [B, T, ...] that zeros fill up to a length it can share."""
        missing = (0, 0) * (rows.dim() - 2) + (0, length - rows.shape[1])
        return functional.pad(rows, missing).chunk(self.size, dim=1)[self.place]

    def whole(self, stretch: Tensor) -> Tensor:
        """Rows [B, T, ...] from the stretches of all ranks."""
        return _Joined.apply(stretch, self)


class _Joined(torch.autograd.Function):
    """All stretches, one after the other.

    Every rank goes on with the whole rows and computes the same loss, so each sends back the
    gradient of its own stretch alone; a sum over the ranks would count it once for each of them.
    """

    @staticmethod
    def forward(ctx: Any, stretch: Tensor, share: SequenceShare) -> Tensor:
        ctx.share = share
        stretches = [torch.empty_like(stretch) for _ in range(share.size)]
        torch.distributed.all_gather(stretches, stretch.contiguous(), group=share.group)
        return torch.cat(stretches, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.share.own(grad, grad.shape[1]).contiguous(), None


def share_sequences(model_config: PretrainedConfig, size: int, rank: int) -> SequenceShare:
    """Have this process compute its share of attention with the `size` ranks around it.

    To be called by all ranks once, when DeepSpeed runs. Raises ValueError for a model whose
    attention cannot be shared by so many.
    """
    refuse_unshareable(model_config, size)
    ranks = range(torch.distributed.get_world_size())
    # Every rank must take part in making each group, also of those that it is not in.
    groups = [torch.distributed.new_group(ranks[start:][:size]) for start in ranks[::size]]
    group = groups[rank // size]
    implementation = model_config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[implementation] = _shared_attention(
        ALL_ATTENTION_FUNCTIONS[implementation], model_config.get_text_config(), group
    )
    return SequenceShare(group, size, rank % size)


def refuse_unshareable(model_config: PretrainedConfig, size: int) -> None:
    """Raise ValueError for a model whose attention so many ranks cannot share."""
    text = model_config.get_text_config()
    key = f"policy.sequence_parallel={size}"
    if family_name(model_config.model_type) is not None:
        raise ValueError(
            f"{key} is for policies that read text alone, and {model_config.model_type} places "
            "images in its rows; set it to 1"
        )
    layers = set(getattr(text, "layer_types", None) or ())
    has_window = bool(getattr(text, "sliding_window", None)) and not layers
    if has_window or layers - {"full_attention"}:
        raise ValueError(
            f"{key} needs full attention in every layer, and {text.model_type} has "
            f"{', '.join(sorted(layers)) or 'a sliding window'}; set it to 1"
        )
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    if heads % size or (kv_heads % size and size % kv_heads):
        raise ValueError(
            f"{key} divides the heads of the attention among the ranks, and {text.model_type} has "
            f"{heads}, and {kv_heads} of keys and values; take a divisor of both"
        )


def _shared_attention(core: Callable[..., Any], text: PretrainedConfig, group: Any) -> Any:
    # Imported here: it takes DeepSpeed, which reads DS_ACCELERATOR at once.
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    ulysses = UlyssesSPAttentionHF(
        attn=core,
        batch_size=1,
        attn_head_count=text.num_attention_heads,
        attn_head_size=getattr(text, "head_dim", None)
        or text.hidden_size // text.num_attention_heads,
        kv_head_count=text.num_key_value_heads,
        num_hidden_layers=text.num_hidden_layers,
        process_group=group,
        seq_length_is_variable=True,
    )

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **rest: Any):
        # DeepSpeed takes rows of any length, but only one number of them; ours differs from
        # micro-batch to micro-batch.
        ulysses.batch_size = rows = query.shape[0]
        for shape in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            length, _rows, *width = getattr(ulysses, shape)
            setattr(ulysses, shape, torch.Size([length, rows, *width]))
        # Without the mask, which transformers makes for this rank's tokens and not for the row:
        # attention is causal, and rows are padded on the right.
        return ulysses(module, query, key, value, None, **rest)

    return attention
