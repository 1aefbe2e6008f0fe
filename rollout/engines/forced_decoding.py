"""Teacher-forced decoding: an engine emits given tokens and reports how probable they were.

The context comes from the prefix cache and the request shares batches with all others, which
`prompt_logprobs` does not. vLLM's V2 model runner has this (`trace_decode_token_ids`); for the V1
runner, which is the one on CPU, a sampler of ours puts the given token in the sampled one's place.
Log-probabilities are the processed ones in both: the distribution that sampling would draw from.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import RequestOutputKind
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

FORCED = "forced_token_ids"


def enable_forced_decoding(config: VllmConfig) -> None:
    """Let the engine of this configuration take the requests of `forced_sampling`."""
    model = config.model_config
    if config.use_v2_model_runner:
        model.enable_trace_replay = True
    else:
        model.logits_processors = [*(model.logits_processors or ()), ForcedTokens]


def forced_sampling(config: VllmConfig, token_ids: Sequence[int], temperature: float) -> Any:
    """Sampling parameters that emit `token_ids` and report their log-probabilities."""
    # The two runners of vLLM are told in different ways; what comes back is the same.
    if config.use_v2_model_runner:
        forcing: dict[str, Any] = {"trace_decode_token_ids": list(token_ids)}
    else:
        forcing = {"extra_args": {FORCED: list(token_ids)}}
    return SamplingParams(
        max_tokens=len(token_ids),
        temperature=temperature,
        # The reference is emitted to its end, also where it holds the end-of-sequence token.
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **forcing,
    )


class ForcedTokens(LogitsProcessor):
    """Knows which rows of the batch are forced, and to what; leaves the logits as they are."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, tuple[list[int], list[int]]] = {}
        """The tokens of a forced request, and the engine's own growing list of those it emitted."""

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        def row(
            params: SamplingParams, prompt: list[int] | None, emitted: list[int]
        ) -> tuple[list[int], list[int]] | None:
            forced = (params.extra_args or {}).get(FORCED)
            return (forced, emitted) if forced else None

        process_dict_updates(self.rows, batch_update, row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class ForcedSampler(Sampler):
    """vLLM's sampler; the log-probabilities it reports are those of the tokens it returns."""

    def sample(
        self,
        logits: torch.Tensor,
        sampling_metadata: SamplingMetadata,
        logprobs_mode_override: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Log-probabilities are gathered after this for whatever tokens are returned, so replacing
        # the tokens here is enough.
        sampled, logprobs = super().sample(logits, sampling_metadata, logprobs_mode_override)
        for processor in sampling_metadata.logitsprocs.argmax_invariant:
            if isinstance(processor, ForcedTokens):
                # vLLM appends what was emitted to this very list, so its length is the number of
                # tokens done.
                for row, (forced, emitted) in processor.rows.items():
                    if len(emitted) < len(forced):
                        sampled[row] = forced[len(emitted)]
        return sampled, logprobs
