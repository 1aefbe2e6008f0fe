"""Log-probabilities of a model directory by transformers alone: no engine, no learner code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from policy.models.checks import read_config
from policy.models.family import VisualInputs, open_visual_inputs
from policy.models.loading import DTYPES, auto_class
from rl.config.data import SourceConfig
from rl.loop.batching import reference_sample
from rl.loop.stages import ReferenceRequest


@dataclass(frozen=True)
class ScoredTokens:
    """The tokens of one response under the model, at temperature 1; both have their length."""

    logprobs: tuple[float, ...]
    best: tuple[float, ...]
    """Log-probability of the likeliest token at each place."""


@torch.inference_mode()
def score_responses(
    directory: Path, data: SourceConfig, dtype: str, on_gpu: bool, asked: Sequence[ReferenceRequest]
) -> list[ScoredTokens]:
    """Score each request's reference after its context, one sequence at a time and unpadded.

    data: where the media of prompts are read from.
    """
    disable_progress_bar()
    device = torch.device("cuda:0" if on_gpu else "cpu")
    model = auto_class(read_config(directory)).from_pretrained(
        directory, dtype=DTYPES[dtype], trust_remote_code=False, local_files_only=True
    )
    model.to(device).eval()
    inputs = open_visual_inputs(directory, data)
    # One at a time: padding changes the last digits, and this reading is what vLLM's is held
    # against.
    return [_score(model, request, inputs) for request in asked]


def _score(
    model: PreTrainedModel, request: ReferenceRequest, inputs: VisualInputs | None
) -> ScoredTokens:
    context = request.context_token_ids
    if inputs is not None:
        context = inputs.expanded(context, request.prompt.media)
    response, count = request.reference_token_ids, len(request.reference_token_ids)
    ids = torch.tensor([[*context, *response]])  # [1, L]
    visual = inputs([reference_sample(request, context)], ids) if inputs is not None else None
    seen = {} if visual is None else visual.arguments(model.device, model.dtype)
    ids = ids.to(model.device)
    # The position before each response token predicts it.
    logits = model(input_ids=ids, logits_to_keep=count + 1, **seen).logits[0, :-1]  # [count, V]
    # In float32, as vLLM computes them too: rounding to bfloat16 would be a difference of its own.
    table = torch.log_softmax(logits.float(), dim=-1)  # [count, V]
    chosen = table.gather(1, ids[0, -count:, None])[:, 0]  # [count]
    return ScoredTokens(tuple(chosen.tolist()), tuple(table.max(dim=-1).values.tolist()))
