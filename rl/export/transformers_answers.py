"""Log-probabilities of a model directory by transformers alone: no engine, no learner code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from policy.models.checks import read_config
from policy.models.family import open_visual_inputs
from policy.models.loading import DTYPES, auto_class
from rl.config.data import SourceConfig
from rl.loop.batching import reference_sample
from rl.loop.stages import ReferenceRequest


@dataclass(frozen=True)
class ScoredTokens:
    """The tokens of one response under the model, at temperature 1; both have their length."""

    logprobs: tuple[float, ...]
    best: tuple[float, ...]
    """Log-probability of the likeliest token at each position."""


@torch.inference_mode()
def score_responses(
    directory: Path,
    data: SourceConfig,
    dtype: str,
    on_gpu: bool,
    requests: Sequence[ReferenceRequest],
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
    scored = []
    # One at a time: padding changes the last digits, and this reading is what vLLM's is held
    # against.
    for request in requests:
        context, response = request.context_token_ids, request.reference_token_ids
        if inputs is not None:
            context = inputs.expanded(context, request.prompt.media)
        ids = torch.tensor([[*context, *response]])  # [1, L]
        visual = inputs([reference_sample(request, context)], ids) if inputs is not None else None
        seen = {} if visual is None else visual.arguments(device, model.dtype)
        ids = ids.to(device)
        # The position before each response token predicts it.
        kept = len(response) + 1
        logits = model(input_ids=ids, logits_to_keep=kept, **seen).logits[0, :-1]  # [T, V]
        # In float32, as vLLM computes them too: rounding to bfloat16 would be a difference of its
        # own.
        table = torch.log_softmax(logits.float(), dim=-1)  # [T, V]
        chosen = table.gather(1, ids[0, -len(response) :, None])[:, 0]  # [T]
        best = table.max(dim=-1).values  # [T]
        scored.append(ScoredTokens(tuple(chosen.tolist()), tuple(best.tolist())))
    return scored
