"""What `scale=auto` does on a machine with GPUs, beside counting them: what their memory holds.

    number of GPUs -> scale (rl/config/recipe.py) -> the settings and the model with which it fits

Set here are how a batch is cut and how much memory engines take, which change no result, and a
smaller model where nobody named one. A model that a person named and that does not fit is refused,
with what would fit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from policy.builtin.names import builtin_policy
from policy.learner.memory_meter import meter_model
from policy.models.cache import NotMade, find_model, looking_only
from rl.config.keys import RecipeError
from rl.config.recipe import (
    Loaded,
    count_visible_gpus,
    dotted_leaves,
    load,
    parse_arguments,
    visible_gpu_bytes,
)
from rl.config.run import Config
from rl.run.terminal import counted
from rl.system.memory_estimate import Fit, MemoryPlan, ModelSize, UpdatePeak
from rl.system.resident import GIB

BATCH, UTILIZATION, MODEL = (
    "policy.micro_batch_tokens",
    "rollout.engine.gpu_memory_utilization",
    "policy.model",
)
# The models of the shipped scales for text, the largest first.
MODELS = tuple(f"Qwen/Qwen3-{size}" for size in ("8B", "4B", "1.7B", "0.6B"))
# What a person may change to make a run fit, from what costs least to what costs most.
FEWER_LOGITS = ("policy.logprob_chunk_tokens=512",)
SHARED_ROWS = ("policy.sequence_parallel={ranks}",)
OFFLOAD = ("policy.deepspeed.zero_optimization.offload_optimizer.device=cpu",)
ADAPTER = ("policy.lora.rank=32", "policy.optimizer.learning_rate=1e-5")
ALONE = (FEWER_LOGITS, SHARED_ROWS, OFFLOAD, ADAPTER)
REMEDIES = (*ALONE, OFFLOAD + FEWER_LOGITS, ADAPTER + FEWER_LOGITS)


def plan_memory(config: Config) -> MemoryPlan | None:
    """What the run takes, by the configuration of its model; None if that cannot be read here."""
    with looking_only():
        try:
            directory = find_model(builtin_policy(config.policy.model), "policy.model")
            return MemoryPlan(config, meter_model(directory, config))
        # The checks of the run itself say what is wrong with a model.
        except (NotMade, ValueError):
            return None


def fit_scale(settings: Sequence[str], loaded: Loaded) -> Loaded:
    """`loaded` as it fits into the memory of this machine's GPUs.

    settings: the command line that it was loaded from. Raises RecipeError if nothing fits.
    """
    card = visible_gpu_bytes()
    if card is None or loaded.auto_scale is None:
        return loaded
    return choose_scale(settings, loaded.auto_scale, count_visible_gpus(), card, plan_memory)


def choose_scale(
    settings: Sequence[str],
    scale: str,
    gpus: int,
    card: float,
    plan: Callable[[Config], MemoryPlan | None] = plan_memory,
) -> Loaded:
    """The configuration of a scale as it fits on so many GPUs of `card` bytes each.

    settings: the rest of the command line. plan: says what a configuration takes. Raises
    RecipeError if nothing fits.
    """
    settings = [s for s in settings if not s.startswith("scale=")] + [f"scale={scale}"]
    given = dotted_leaves(parse_arguments(settings)[1])
    named = f"scale=auto takes {scale} for {counted(gpus, 'GPU')} of {card / GIB:.1f} GiB"
    loaded = load(settings)
    model = loaded.config.policy.model
    is_free = MODEL not in given and model in MODELS
    refused: MemoryPlan | None = None
    for smaller in MODELS[MODELS.index(model) :] if is_free else (model,):
        of_model = [f"{MODEL}={smaller}"] if smaller != model else []
        loaded = load([*settings, *of_model])
        planned = plan(loaded.config)
        if planned is None:
            note = f"{named}; whether {smaller} fits is not known"
            return replace(loaded, notes=(note, *loaded.notes))
        if (fit := planned.fit(card)) is not None:
            chosen, notes = _settings_of(fit, planned.config, given)
            loaded = load([*settings, *of_model, *chosen])
            note = f"{named}, with {', '.join([*of_model, *chosen]) or 'the sizes given'}"
            return replace(loaded, notes=(note, *notes, *loaded.notes))
        refused = refused or planned
    assert refused is not None
    least = max(refused.phases(refused.config.rank_row_tokens).values()) / GIB
    raise RecipeError(
        f"{named}, and {model} does not fit: a GPU holds {least:.1f} GiB at the least in training, "
        f"and what its engine needs to sample. {_advice(settings, refused, card, plan)}. Name the "
        f"scale, scale={scale}, to try it as it is"
    )


def _settings_of(fit: Fit, config: Config, given: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The settings that make a run fit, and notes of those that a person set to more."""
    chosen, notes = [], []
    # A larger micro-batch than the scale's gains next to nothing; more cache lets more answers be
    # sampled at a time.
    wanted = {UTILIZATION: fit.gpu_memory_utilization}
    if fit.micro_batch_tokens < config.policy.micro_batch_tokens:
        wanted[BATCH] = fit.micro_batch_tokens
    for key, value in wanted.items():
        if key not in given:
            chosen.append(f"{key}={value}")
        elif given[key] > value:
            notes.append(f"{key}={given[key]} is more than fits into the GPU's memory, {value}")
    return chosen, notes


def _advice(
    settings: Sequence[str],
    planned: MemoryPlan,
    card: float,
    plan: Callable[[Config], MemoryPlan | None],
) -> str:
    """What would fit, in words: settings, and the size of a model."""
    told: list[str] = []
    enough: list[set[str]] = []
    policy = planned.config.policy
    for changes in REMEDIES:
        # From stage 2 on gradients are offloaded too.
        needs_stage = OFFLOAD[0] in changes and policy.effective_zero_stage < 2
        remedy = ("policy.zero_stage=2", *changes) if needs_stage else changes
        remedy = [change.format(ranks=policy.ranks) for change in remedy]
        # More of what is enough already is no advice.
        if any(known <= set(remedy) for known in enough):
            continue
        try:
            config = load([*settings, *remedy]).config
        # A remedy may not go together with what a person has set.
        except RecipeError:
            continue
        tried = plan(config)
        if tried is not None and tried.fit(card) is not None:
            enough.append(set(remedy))
            host = tried.rank.host * config.policy.ranks / GIB
            told.append(
                " ".join(remedy) + (f" ({host:.0f} GiB of the node's memory)" if host else "")
            )
    whole = planned.size.parameters or 0
    shares = (percent / 100 for percent in range(95, 4, -5))
    fitting = (s for s in shares if replace(planned, size=_scaled(planned.size, s)).fit(card))
    if (share := next(fitting, None)) is not None:
        told.append(f"a {MODEL} of about {whole * share / 1e9:.1f} billion parameters")
    if not told:
        return (
            "Neither adapters, offload, rows that all ranks share nor a smaller model would; take "
            "more or larger GPUs"
        )
    return f"What would fit: {'; or '.join(told)}"


def _scaled(size: ModelSize, share: float) -> ModelSize:
    """A model of that share of the parameters and of the same vocabulary, roughly."""
    peaks = {
        tokens: UpdatePeak(share * p.activations, p.logits, share * p.activations + p.logits)
        for tokens, p in (size.peaks or {}).items()
    }
    return replace(
        size,
        parameters=round((size.parameters or 0) * share),
        trained=None if size.trained is None else round(size.trained * share),
        cached_numbers=round((size.cached_numbers or 0) * share),
        peaks=peaks or None,
    )
