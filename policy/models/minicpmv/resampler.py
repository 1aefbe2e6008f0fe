"""The 3D-resampler: learned queries that read a view, or all frames of a group at once.

Keys carry a 2D position and, for video frames, a time; values carry neither
(https://arxiv.org/abs/2509.18154). Shapes: S views of N patches, G groups with at most K
patches, Q queries, C tower width, D decoder width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from policy.models.minicpmv.vision import Sizes, attention_mask, patch_mask
from rl.data.media.minicpmv import STILL, Groups
from rl.data.media.minicpmv_config import RESAMPLER_HEAD_DIM

LAYER_NORM_EPS = 1e-6


def sin_cos(positions: Sequence[int], width: int) -> NDArray[np.float32]:
    """[n, width] rows [sin(p w), cos(p w)] with w_k = 10000^(-k / (width / 2)), k < width / 2
    (https://arxiv.org/abs/1706.03762, section 3.5).

    All in numpy's float32, frequencies too, as the published tables are: at times in the thousands
    another rounding of w moves the row by as much as 0.01.
    """
    exponents = np.arange(width // 2, dtype=np.float32) / np.float32(width / 2)
    frequencies = np.float32(1) / np.float32(10_000) ** exponents  # [width / 2]
    angles = np.asarray(positions, dtype=np.float32)[:, None] * frequencies  # [n, width / 2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def plane_positions(sizes: Sizes, width: int, like: Tensor) -> Tensor:
    """[patches of all views, width]: half of each row tells the column, half the row of a patch."""
    longest = max(max(size) for size in sizes)
    table = torch.from_numpy(sin_cos(range(longest), width // 2)).to(like)  # [longest, D / 2]
    planes = []
    for rows, columns in sizes:
        across = table[None, :columns].expand(rows, -1, -1)  # [rows, columns, D / 2]
        down = table[:rows, None].expand(-1, columns, -1)  # [rows, columns, D / 2]
        planes.append(torch.cat([across, down], dim=-1).flatten(0, 1))  # [rows * columns, D]
    return torch.cat(planes)


class Resampler(nn.Module):
    def __init__(self, num_queries: int, width: int, tower_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_queries, width))
        self.proj = nn.Parameter(torch.empty(width, width))
        self.kv_proj = nn.Linear(tower_width, width, bias=False)
        self.attn = CrossAttention(width)
        self.ln_q = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.ln_post = nn.LayerNorm(width, LAYER_NORM_EPS)

    def forward(self, features: Tensor, sizes: Sizes, groups: Groups) -> Tensor:
        """Features [S, N, C] of the views -> visual tokens [G, Q, D] of the groups."""
        counts = [rows * columns for rows, columns in sizes]  # [S]
        mask = patch_mask(counts, features.shape[1], features.device)  # [S, N]
        # Flat over all views from here on: a group's patches then stand together, whatever the
        # shapes of its views.
        values = self.ln_kv(self.kv_proj(features[mask]))  # [patches of all views, D]
        width = values.shape[-1]
        keys = values + plane_positions(sizes, width, values)
        times = [time for group in groups for time in group]  # [S]
        if any(time != STILL for time in times):
            table = torch.from_numpy(sin_cos(times, width)).to(values)  # [S, D]
            # A still has no time at all; time 0 would be that of a video's first frame.
            is_still = torch.tensor([time == STILL for time in times], device=values.device)
            by_view = table.masked_fill(is_still[:, None], 0)
            repeats = torch.tensor(counts, device=values.device)
            keys = keys + by_view.repeat_interleave(repeats, dim=0)
        # All frames of a group are read at once: a packed group costs as many tokens as one image.
        views = iter(counts)
        lengths = [sum(next(views) for _ in group) for group in groups]  # [G]
        mixed = self.attn(
            self.ln_q(self.query),  # [Q, D]
            pad_sequence(list(keys.split(lengths)), batch_first=True),  # [G, K, D]
            pad_sequence(list(values.split(lengths)), batch_first=True),  # [G, K, D]
            lengths,
        )  # [G, Q, D]
        return self.ln_post(mixed) @ self.proj


class CrossAttention(nn.Module):
    """Multi-head attention with the query, key and value projections in one parameter.

    Its parameters have the names and shapes of nn.MultiheadAttention, so of the checkpoint.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
        """query [Q, D], key and value [G, K, D] of which `lengths` count -> [G, Q, D]."""
        weights = self.in_proj_weight.chunk(3)  # [D, D] each
        biases = self.in_proj_bias.chunk(3)  # [D] each
        inputs = (query[None].expand(len(key), -1, -1), key, value)
        query, key, value = (
            functional.linear(part, weight, bias)
            .unflatten(-1, (-1, RESAMPLER_HEAD_DIM))
            .transpose(1, 2)
            for part, weight, bias in zip(inputs, weights, biases, strict=True)
        )  # [G, heads, Q or K, 128]
        # Groups are padded to the longest, whose padding must not be attended to.
        mask = attention_mask(lengths, key.shape[-2], key.device)  # [G, 1, 1, K]
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        # [G, heads, Q, 128]
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
