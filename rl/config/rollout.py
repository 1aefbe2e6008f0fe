"""The sections `modes`, `share_schedule`, `rollout` and `eval`: what is sampled, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rl.config.section import Section, Share

Thinking = bool | Literal["auto"]
"""Whether a mode reasons; `auto` leaves that to the policy, response by response."""


class PairsConfig(Section):
    """How often both ways are forced in a mode whose `thinking` is auto: half of a group's
    responses then reason and half answer at once, so that each is sampled however rarely the policy
    chooses it."""

    start: Share = 1.0
    """Share of the mode's groups that are such pairs at the first step; from there it falls on a
    line."""
    # Never 0 by default: a policy that always chooses one way learns nothing of the other any more.
    floor: Share = 0.3
    """Share of pairs that is reached, and held to the end."""
    until: Share = 0.35
    """Share of the run's steps after which the floor is reached."""

    @model_validator(mode="after")
    def _share_falls(self) -> PairsConfig:
        if self.floor > self.start:
            raise ValueError(
                f"the share of pairs falls from start to floor, got start={self.start:g} and "
                f"floor={self.floor:g}; raise start, or lower floor"
            )
        return self

    def share_at(self, step: int, steps: int) -> float:
        """The share of pairs at a step (1-based) of a run of `steps`."""
        fallen = (step - 1) / max(1.0, self.until * steps)
        return self.start + (self.floor - self.start) * min(1.0, fallen)


class ModeConfig(Section):
    """A way to answer, such as with or without reasoning; NAME is yours to choose."""

    share: Share
    """Share of the prompts that are asked in this mode; all modes together make 1."""
    thinking: Thinking
    """Whether the model reasons before it answers; decides how the generation prompt ends. `auto`:
    the model itself decides, by the first token of its response."""
    max_tokens: int = Field(gt=0)
    """Token budget of one response, reasoning included."""
    # One number for both sides: with another divisor than the engine's, the importance ratio would
    # differ from 1 although the weights are the same.
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature in training; the learner divides its logits by the same number."""
    # enable_thinking and thinking are found by asking the template, and follow `thinking`.
    chat_template_kwargs: dict[str, Any] = {}
    """Further variables of the chat template in this mode, such as thinking_budget: 512."""
    price: Annotated[float, Field(ge=0)] | Literal["target"] = 0.0
    """Of `thinking: auto`: accuracy that a response of 1,000 tokens loses where the two ways are
    compared, as a share of it; it moves the choice alone, and how a way is gone not at all.
    `target`: as much as goes while what is chosen is right within 2 points as often as reasoning
    always is."""
    # Half a percent is five times what a token of 1,000 weighs: a choice is one token, and all of
    # a response hangs on it.
    choice_weight: float = Field(default=0.005, ge=0)
    """Of `thinking: auto`: weight of the mean loss of the choices beside that of the responses;
    about 5 / tokens of a response."""
    pairs: PairsConfig = PairsConfig()

    @model_validator(mode="after")
    def _only_a_choice_has_a_price(self) -> ModeConfig:
        fields = ("price", "choice_weight", "pairs")
        changed = [f for f in fields if getattr(self, f) != type(self).model_fields[f].default]
        if changed and self.thinking != "auto":
            raise ValueError(
                f"{', '.join(changed)} belong to a mode that chooses, got thinking="
                f"{str(self.thinking).lower()}; set thinking: auto, or leave them out"
            )
        return self


class SharePoint(Section):
    """The shares of the modes at one step."""

    step: int = Field(ge=1)
    """The step (1-based) at which these shares hold; between points they are interpolated."""
    shares: dict[str, Share]
    """Share of every mode at that step."""


class RolloutConfig(Section):
    """What is sampled in a step, and the vLLM engines that sample it."""

    prompts_per_step: int = Field(default=128, gt=0)
    """Groups per step, which are prompts with all their trajectories."""
    # Two at least: the advantage of a trajectory is what it has over the others of its group.
    group_size: int = Field(default=8, gt=1)
    """Trajectories per prompt."""
    max_staleness: int = Field(default=0, ge=0)
    """The most versions that a sample may be behind the learner when it is trained on; 0 is
    synchronous training."""
    # Exact shares keep the number of long responses, and so the cost of a step, from varying.
    draw: Literal["stratified", "bernoulli"] = "stratified"
    """How modes are drawn: `stratified` gives every step exactly its shares, in random places;
    `bernoulli` draws independently for each prompt."""
    workers: int = Field(default=1, gt=0)
    """vLLM engines, one Ray actor each."""
    min_workers: int = Field(default=1, gt=0)
    """Engines that must serve. While fewer do, because others died, requests wait for their
    replacements, for `recovery.wait_s` at most."""
    max_workers: int | None = Field(default=None, gt=0)
    """Engines that a run may grow to where its Ray cluster gets room for more than `workers`; null
    keeps to `workers`."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs per engine."""
    max_model_length: int = Field(gt=0)
    """Tokens of prompt and response that an engine accepts."""
    # vLLM's current model runner hashes a request's seed with the position, at no cost. Its older
    # one, on CPU and where VLLM_USE_V2_MODEL_RUNNER=0, has a generator for each request and samples
    # them one after the other.
    seed_requests: bool = True
    """Give every group a seed of its own, so that sampling is reproducible and no two engines can
    sample the same; false lets each engine draw from its own seed."""
    # Computing them again takes seconds of every publish that finds long responses in flight. What
    # the old ones differ by is corrected for as any other difference of engine and learner is.
    keep_kv_cache: bool = True
    """A response in flight at a publish goes on over the keys and values that older weights left;
    false computes them again. With `max_staleness` 0 none is in flight, and nothing changes; that
    is so for engines that sleep, which keep none."""
    deterministic: bool = False
    """Sample so that a run without GPUs repeats to the last bit: each response alone in its engine,
    because others in a batch decide how sums are rounded, and none across a publish. Slower by
    far; for tests and for finding faults. A preference model (`reward.preference`) still rounds by
    what it scores together."""
    # By null and not by true in a scale, so that who allows staleness need not know of it.
    sleep: bool | None = None
    """Engines that share the learner's GPUs give up their memory during its update: the KV cache,
    and their weights, which the publish brings again. Null does so with `max_staleness` 0."""
    # vLLM checks its own arguments; a second list of them here would fall behind.
    engine: dict[str, Any] = {}
    """Passed to vLLM's engine arguments as they are."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Seconds that the engines may take to be ready."""
    group_timeout_s: float = Field(default=1800, gt=0)
    """Seconds that one group may take; after them it is dropped, counted and replaced."""

    @model_validator(mode="after")
    def _deterministic_is_seeded(self) -> RolloutConfig:
        if self.deterministic and not self.seed_requests:
            raise ValueError(
                "rollout.deterministic=true needs the seed of every group; leave out "
                "rollout.seed_requests=false"
            )
        return self

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """What vLLM is given beside the settings that have names of their own."""
        alone = {"max_num_seqs": 1, "enable_prefix_caching": False}
        return {**self.engine, **alone} if self.deterministic else self.engine

    @model_validator(mode="after")
    def _workers_are_between(self) -> RolloutConfig:
        if not self.min_workers <= self.workers <= (self.max_workers or self.workers):
            raise ValueError(
                "rollout.workers must be between rollout.min_workers and rollout.max_workers, got "
                f"{self.min_workers} <= {self.workers} <= {self.max_workers or self.workers}"
            )
        return self


class EvalConfig(Section):
    """Held-out prompts, which are asked in every mode before, during and after training."""

    prompts: int = Field(default=256, gt=0)
    """Held-out prompts, each asked `samples` times in every mode."""
    samples: int = Field(default=1, gt=0)
    """Responses per prompt and mode; with more than one there is a pass@k."""
    every: int | None = Field(default=None, gt=0)
    """Steps between evaluations; null evaluates before and after training only."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of the evaluation; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: the most likely tokens are sampled from that make up this probability."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalConfig:
        # pass@k of equal responses would be accuracy by another name, at k times the cost.
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"eval.samples={self.samples} greedy responses would be copies of one; set "
                "eval.samples=1, or an eval.temperature above 0"
            )
        return self
