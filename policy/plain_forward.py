"""Log-probabilities of a model directory by transformers alone: no engine, no learner code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from policy.model import DTYPES


@dataclass(frozen=True)
class ScoredTokens:
    """The tokens of one response under the model, at temperature 1; both have their length."""

    logprobs: tuple[float, ...]
    best: tuple[float, ...]
    """Log-probability of the likeliest token at each place."""


@torch.inference_mode()
def score_responses(
    directory: Path, dtype: str, on_gpu: bool, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[ScoredTokens]:
    """Score (prompt token ids, response token ids), one sequence at a time and unpadded."""
    disable_progress_bar()
    device = torch.device("cuda:0" if on_gpu else "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=DTYPES[dtype], trust_remote_code=False, local_files_only=True
    )
    model.to(device).eval()
    return [_score(model, prompt, response) for prompt, response in pairs]


def _score(model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int]) -> ScoredTokens:
    ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)  # [1, L]
    count = len(response)
    # The position before each response token predicts it.
    logits = model(input_ids=ids, logits_to_keep=count + 1).logits[0, :-1]  # [count, V]
    table = torch.log_softmax(logits.float(), dim=-1)  # [count, V]
    chosen = table.gather(1, ids[0, -count:, None])[:, 0]  # [count]
    return ScoredTokens(tuple(chosen.tolist()), tuple(table.max(dim=-1).values.tolist()))
