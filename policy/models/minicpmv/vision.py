"""The vision tower: a SigLIP transformer over views of any shape.

Each view keeps its own number of patches; its rows and columns are spread over the learned
position table (NaViT-style packing as in LLaVA-UHD, https://arxiv.org/abs/2403.11703, section 3.1).
Shapes: S views, N patches of the longest view, C tower width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.siglip.modeling_siglip import SiglipMLP

from rl.data.media.minicpmv_config import position_grid

Sizes = Sequence[tuple[int, int]]


def patch_mask(counts: Sequence[int], length: int, device: torch.device) -> Tensor:
    """[S, length], True on the first `counts` patches of each row, False on padding."""
    return torch.arange(length, device=device) < torch.tensor(counts, device=device)[:, None]


def attention_mask(counts: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """[S, 1, 1, length] for attention to the patches that are no padding."""
    # Without padding there is no mask: attention then has its fastest kernel.
    if min(counts) == length:
        return None
    return patch_mask(counts, length, device)[:, None, None, :]


def position_ids(sizes: Sizes, length: int, grid: int, device: torch.device) -> Tensor:
    """[S, length] row of the position table for each patch; 0 for padding.

    Patch i of n along a side takes position floor(i * grid / n) of the table's side.
    """
    shape = torch.tensor(sizes, device=device)  # [S, 2]
    rows, columns = shape[:, :1], shape[:, 1:]  # [S, 1] each
    patch = torch.arange(length, device=device)[None]  # [1, N]
    row, column = patch // columns, patch % columns  # [S, N] each
    # In integers, because division in floating point puts patches of some n on the wrong side of a
    # boundary.
    ids = (row * grid // rows) * grid + column * grid // columns
    return torch.where(row < rows, ids, 0)


class VisionTower(nn.Module):
    def __init__(self, config: Any) -> None:
        """config: a SiglipVisionConfig."""
        super().__init__()
        width, self.patch_size = config.hidden_size, config.patch_size
        self.grid = position_grid(config)
        patches = nn.Conv2d(config.num_channels, width, self.patch_size, self.patch_size)
        positions = nn.Embedding(self.grid**2, width)
        layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        # Dictionaries, because the checkpoint's names have these two levels.
        self.embeddings = nn.ModuleDict(
            {"patch_embedding": patches, "position_embedding": positions}
        )
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, patches: Tensor, sizes: Sizes) -> Tensor:
        """[S, 3, P, P * N] -> features [S, N, C]; those of padding mean nothing."""
        # A view's patches lie side by side in one strip, a patch high, so that views of any shape
        # go through one convolution.
        embedded = self.embeddings["patch_embedding"](patches)[:, :, 0].transpose(1, 2)  # [S, N, C]
        length, device = embedded.shape[1], embedded.device
        ids = position_ids(sizes, length, self.grid, device)  # [S, N]
        hidden = embedded + self.embeddings["position_embedding"](ids)
        mask = attention_mask([rows * columns for rows, columns in sizes], length, device)
        for layer in self.encoder["layers"]:
            hidden = layer(hidden, mask)
        return self.post_layernorm(hidden)


class VisionLayer(GradientCheckpointingLayer):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), mask)
        return hidden + self.mlp(self.layer_norm2(hidden))


class VisionAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Every patch of a view sees every other. mask: [S, 1, 1, N], False on padding."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [S, heads, N, C / heads] each
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [S, N, C]
