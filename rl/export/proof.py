"""Whether an exported directory answers in vLLM as the checkpoint's model does.

Two readings of the same weights that share no code: vLLM's, from the exported files, chat template
included; and a transformers forward of the checkpoint's model over the tokens vLLM sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from policy.models.family import open_visual_inputs
from rl.config.run import Config
from rl.data.media.store import MediaStore
from rl.export.transformers_answers import ScoredTokens, score_responses
from rl.export.vllm_answers import PlainEngine, PlainEngineFailed, PlainResponse, Question
from rl.loop.stages import Prompt, ReferenceRequest
from rollout.chat import ChatTemplate
from rollout.endpoint import messages_with_images
from rollout.engines.media import serving_arguments
from rollout.prompts.stream import PromptStream

PROOF_PROMPTS = 16
PROOF_TOKENS = 256
"""Most tokens of a response that are compared; a mode with a smaller budget takes that."""


class ExportRefused(ValueError):
    """The exported directory does not answer as the checkpoint does."""


@dataclass(frozen=True)
class ModeProof:
    """How the exported directory's answers in one mode compare with the checkpoint's model."""

    prompts: int
    tokens: int
    max_difference: float
    """Largest difference of a sampled token's log-probability."""
    greedy_gap: float
    """Most by which another token was likelier, to the checkpoint's model, than a greedy one.

    At 0 the model's own greedy text is the same: by induction, each token follows the same tokens.
    """


@dataclass(frozen=True)
class Case:
    """One request of the proof."""

    mode: str
    prompt: Prompt
    is_greedy: bool

    def question(self, config: Config, media: MediaStore) -> Question:
        mode = config.modes[self.mode]
        return Question(
            messages=messages_with_images(self.prompt, media),
            thinking=mode.thinking,
            max_tokens=min(mode.max_tokens, PROOF_TOKENS),
            temperature=0.0 if self.is_greedy else mode.temperature,
        )


def prove(config: Config, model: Path, directory: Path) -> dict[str, ModeProof]:
    """Compare `directory`, served by vLLM, with the checkpoint's `model`; figures by mode.

    PROOF_PROMPTS held-out prompts are asked in every mode, greedily and at the mode's temperature.
    Raises ExportRefused where vLLM cannot serve the directory, or where the directory's chat
    template makes other prompt tokens than training did.
    """
    prompts = PromptStream.open(config).heldout(PROOF_PROMPTS)
    cases = [Case(*each) for each in product(config.modes, prompts, (True, False))]
    media = MediaStore(config.data)
    # vLLM first, and its process ends before the model is loaded here: a GPU may not hold both.
    responses = _ask(config, directory, [case.question(config, media) for case in cases])
    chat, inputs = ChatTemplate(str(model)), open_visual_inputs(model, config.data)
    asked = []
    for case, response in zip(cases, responses, strict=True):
        trained = chat.prompt_token_ids(case.prompt, config.modes[case.mode].thinking)
        shown = inputs.expanded(trained, case.prompt.media) if inputs is not None else trained
        require_trained_prompt(chat, case, response.prompt_token_ids, shown)
        asked.append(ReferenceRequest("proof", case.prompt, trained, response.token_ids, 1.0))
    on_gpu = config.resources.gpus > 0
    scored = score_responses(model, config.data, config.policy.dtype, on_gpu, asked)
    compared = list(zip(cases, responses, scored, strict=True))
    return {
        mode: summarize([one for one in compared if one[0].mode == mode]) for mode in config.modes
    }


def require_trained_prompt(
    chat: ChatTemplate, case: Case, served: Sequence[int], trained: Sequence[int]
) -> None:
    """Raise ExportRefused if a prompt's tokens are not those that training asked."""
    if tuple(served) != tuple(trained):
        raise ExportRefused(
            f"the exported chat template puts prompt {case.prompt.id} in mode {case.mode} as "
            f"{chat.raw_text(served)!r}, training put it as {chat.raw_text(trained)!r}; nothing "
            "was exported"
        )


def require_equal(proof: Mapping[str, ModeProof], tolerance: float) -> None:
    """Raise ExportRefused if a difference is above `tolerance`, or is no number."""
    for mode, figures in proof.items():
        # Written so that NaN, which is neither above nor below, is refused too.
        if not (figures.max_difference <= tolerance and figures.greedy_gap <= tolerance):
            raise ExportRefused(
                f"in mode {mode} the exported model differs from the checkpoint's: logprobs by up "
                f"to {figures.max_difference:.3g}, greedy tokens that are less likely by up to "
                f"{figures.greedy_gap:.3g}, accepted is {tolerance:g}; nothing was exported. "
                "Export again or another step; if it stays, vLLM computes this model otherwise"
            )


def _ask(config: Config, directory: Path, questions: Sequence[Question]) -> list[PlainResponse]:
    arguments = {
        "model": str(directory.absolute()),
        "dtype": config.policy.dtype,
        "max_model_len": config.rollout.max_model_length,
        "tensor_parallel_size": config.rollout.tensor_parallel,
        "seed": config.seed,
    }
    engine = PlainEngine(
        arguments=arguments | serving_arguments(directory) | config.rollout.engine,
        cpus=config.resources.engine_cpus,
        on_gpu=config.resources.gpus > 0,
        deadline_s=config.rollout.start_timeout_s + config.rollout.group_timeout_s,
    )
    try:
        return engine.ask(questions)
    except PlainEngineFailed as error:
        raise ExportRefused(f"{error}\nnothing was exported") from error


def summarize(compared: Sequence[tuple[Case, PlainResponse, ScoredTokens]]) -> ModeProof:
    """The figures of one mode; raises ValueError where there is nothing to compare."""
    differences, gaps = [], []
    for case, response, scored in compared:
        # Greedy and sampled responses both: greedy ones alone visit only the likeliest tokens.
        pairs = zip(response.logprobs, scored.logprobs, strict=True)
        differences += [abs(served - own) for served, own in pairs]
        if case.is_greedy:
            gaps += [b - own for b, own in zip(scored.best, scored.logprobs, strict=True)]
    return ModeProof(
        prompts=sum(case.is_greedy for case, _, _ in compared),
        tokens=len(differences),
        max_difference=_largest(differences),
        greedy_gap=_largest(gaps),
    )


def _largest(values: Sequence[float]) -> float:
    """The maximum; NaN if any is NaN, which max() would lose."""
    return math.nan if any(map(math.isnan, values)) else max(values)
