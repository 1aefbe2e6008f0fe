"""Whether an exported directory answers in vLLM as the checkpoint's model does.

Two readings of the same weights that share no code: vLLM's, from the exported files, chat template
included; and a transformers forward of the checkpoint's model over the tokens vLLM sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from policy.models.family import open_visual_inputs
from rl.config.run import Config
from rl.data.media.store import MediaStore
from rl.export.directory import request_fields
from rl.export.transformers_answers import ScoredTokens, score_responses
from rl.export.vllm_answers import PlainResponse, Question, ask_vllm
from rl.loop.stages import Prompt, ReferenceRequest
from rollout.chat import ChatTemplate
from rollout.endpoint import messages_with_images
from rollout.engines.media import serving_arguments
from rollout.prompts.stream import PromptStream

PROOF_PROMPTS = 16
PROOF_TOKENS = 256
"""Most tokens of a response that are compared; a mode with a smaller budget takes that."""


@dataclass(frozen=True)
class ModeProof:
    """How the exported directory's answers in one mode compare with the checkpoint's model."""

    prompts: int
    tokens: int
    mean_difference: float
    """Mean difference of a sampled token's log-probability."""
    max_difference: float
    """Largest such difference."""
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


def prove(config: Config, model: Path, directory: Path) -> dict[str, ModeProof]:
    """Compare `directory`, served by vLLM, with the checkpoint's `model`; figures by mode.

    PROOF_PROMPTS held-out prompts are asked in every mode, greedily and at the mode's temperature.
    Raises ValueError where vLLM cannot serve the directory, or where the directory's chat template
    makes other prompt tokens than training did.
    """
    prompts = PromptStream.open(config).heldout(PROOF_PROMPTS)
    media, on_gpu = MediaStore(config.data), config.resources.gpus > 0
    cases = [Case(*fields) for fields in product(config.modes, prompts, (True, False))]
    questions = []
    for case in cases:
        mode = config.modes[case.mode]
        messages, budget = messages_with_images(case.prompt, media), mode.max_tokens
        temperature = 0.0 if case.is_greedy else mode.temperature
        variables = request_fields(mode)["chat_template_kwargs"]
        question = Question(messages, variables, min(budget, PROOF_TOKENS), temperature)
        questions.append(question)
    engine = {
        "model": str(directory.absolute()),
        "dtype": config.policy.dtype,
        "max_model_len": config.rollout.max_model_length,
        "tensor_parallel_size": config.rollout.tensor_parallel,
        "seed": config.seed,
        **serving_arguments(directory),
        **config.rollout.engine,
    }
    deadline_s = config.rollout.start_timeout_s + config.rollout.group_timeout_s
    # vLLM first, and its process ends before the model is loaded here: a GPU may not hold both.
    responses = ask_vllm(engine, questions, config.resources.engine_cpus, on_gpu, deadline_s)
    chat = ChatTemplate(str(model), config.policy.think_tags)
    inputs = open_visual_inputs(model, config.data)
    requests = []
    for case, response in zip(cases, responses, strict=True):
        mode = config.modes[case.mode]
        trained = chat.prompt_token_ids(case.prompt, mode.thinking, mode.chat_template_kwargs)
        shown = inputs.expanded(trained, case.prompt.media) if inputs is not None else trained
        require_trained_prompt(chat, case, response.prompt_token_ids, shown)
        requests.append(ReferenceRequest("proof", case.prompt, trained, response.token_ids, 1.0))
    scored = score_responses(model, config.data, config.policy.dtype, on_gpu, requests)
    compared = list(zip(cases, responses, scored, strict=True))
    return {
        mode: summarize([triple for triple in compared if triple[0].mode == mode])
        for mode in config.modes
    }


def require_trained_prompt(
    chat: ChatTemplate, case: Case, served: Sequence[int], trained: Sequence[int]
) -> None:
    """Raise ValueError if a prompt's tokens are not those that training asked."""
    if tuple(served) != tuple(trained):
        raise ValueError(
            f"the exported chat template puts prompt {case.prompt.id} in mode {case.mode} as "
            f"{chat.raw_text(served)!r}, training put it as {chat.raw_text(trained)!r}; nothing "
            "was exported"
        )


def require_equal(proof: Mapping[str, ModeProof], mean: float, largest: float) -> None:
    """Raise ValueError if a difference is above what is accepted, or is no number.

    mean: of all tokens. largest: of any token; in bfloat16, where both programs round at other
    places, the largest of thousands says little.
    """
    for mode, figures in proof.items():
        # Written so that NaN, which is neither above nor below, is refused too.
        single = (figures.max_difference, figures.greedy_gap)
        if not (figures.mean_difference <= mean and all(value <= largest for value in single)):
            raise ValueError(
                f"in mode {mode} the exported model differs from the checkpoint's: logprobs by "
                f"{figures.mean_difference:.3g} on average (accepted is {mean:g}) and by up to "
                f"{figures.max_difference:.3g}, greedy tokens that are less likely by up to "
                f"{figures.greedy_gap:.3g} (accepted is {largest:g}); nothing was exported. "
                "Export again or another step; if it stays, vLLM computes this model otherwise"
            )


def summarize(compared: Sequence[tuple[Case, PlainResponse, ScoredTokens]]) -> ModeProof:
    """The figures of one mode; raises ValueError where there is nothing to compare."""
    differences, gaps = [], []
    for case, response, scored in compared:
        # Greedy and sampled responses both: greedy ones alone visit only the likeliest tokens.
        pairs = zip(response.logprobs, scored.logprobs, strict=True)
        differences += [abs(served - own) for served, own in pairs]
        if case.is_greedy:
            gaps += [best - own for best, own in zip(scored.best, scored.logprobs, strict=True)]
    return ModeProof(
        prompts=sum(case.is_greedy for case, _, _ in compared),
        tokens=len(differences),
        # NumPy's maximum is NaN if any value is, which Python's would lose.
        mean_difference=float(np.mean(differences)),
        max_difference=float(np.max(differences)),
        greedy_gap=float(np.max(gaps)),
    )
