"""The section `reward`: what a response is scored by, and with which weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rl.config.section import Section

UNWEIGHTED_PARTS = ("probability", "baseline", "preference_raw", "leak", "unverifiable")
"""What a score keeps beside its weighted parts."""


class RewardWeights(Section):
    """The weight of each part; the reward is their weighted sum (arXiv 2509.18154, eq. 1)."""

    # None has a bound: a negative weight turns a part around, and 0 only records it.
    accuracy: float = 1.0
    """Weight of the part that says whether the answer is right, by rules or by probability."""
    format: float = 0.1
    """Weight of the part that is 1 if the response keeps the form of its mode, else 0."""
    repetition: float = 1.0
    """Weight of the part that is negative for repeated text, and 0 on clean reasoning."""
    preference: float = 0.5
    """Weight of the reward model's or judge's part, standardised within the group."""
    overlong: float = 1.0
    """Weight of the part that is negative just before the token budget (`overlong_window`)."""


class RepetitionConfig(Section):
    """What counts as repeated text."""

    form: Literal["ngram", "window"] = "ngram"
    """`ngram` gives minus the share of repeated n-grams (arXiv 2502.03373); `window` gives -1 if
    some window of words occurs `times` times (RLPR: 10 words, 10 times)."""
    # Reasoning repeats short phrases for good reasons ("so we have"), but not 20 words in a row.
    words: int = Field(default=20, gt=1)
    """Words in an n-gram or window; 20 leave clean reasoning at 0."""
    times: int = Field(default=10, gt=1)
    """How often a window must occur for `window` to punish it."""


class ProbabilityConfig(Section):
    """The probability reward of RLPR (arXiv 2506.18254) for references in natural language."""

    scorer: Literal["engine", "learner"] = "engine"
    """What computes the reference's probability: the engines, from their prefix cache, or the
    learner."""
    debias: bool = True
    """In modes that reason, subtract the probability that the reference has without reasoning."""
    invalid: Literal["zero", "not_scorable"] = "zero"
    """What a response without a well-formed answer gets: 0, as in RLPR, or no score."""
    # Probabilities are never all equal, so a group without any signal is known by its small spread.
    filter_beta: float | None = Field(default=0.5, gt=0)
    """Replace groups of reasoning modes whose rewards have a standard deviation below this multiple
    of its running mean; null keeps them."""


Reads = Literal["answer", "response"]


class PreferenceConfig(Section):
    """A preference model, which sees question, media, answer and, by default, no reasoning."""

    kind: Literal["classifier", "judge"] = "classifier"
    """A sequence-classification reward model, or a generative judge in vLLM that grades 0 to 9."""
    reads: Reads = "answer"
    """What it sees beside the question: the final `answer`, or the whole `response`. The second is
    for studies: scores of whole long chains misled and destabilised training (arXiv 2509.18154)."""
    model: str
    """Model directory or Hugging Face name; for questions with media, one that sees them.
    `builtin:tiny` and, for pictures of digits, `builtin:tiny_vision` are made on first use."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the preference model."""
    actors: int = Field(default=1, gt=0)
    """Copies of the model, one Ray actor each."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores that Ray reserves per copy."""
    gpus: int = Field(default=0, ge=0)
    """GPUs per copy; 0 runs it on CPU."""
    deadline_s: float = Field(default=600, gt=0)
    """Seconds that loading may take and, later, that a copy may leave every question unanswered."""
    engine: dict[str, Any] = {}
    """Of a `judge`: passed to vLLM's engine arguments as they are."""


class PluginConfig(Section):
    """A part of your own, computed by a function of yours; NAME is the part's."""

    # A file and not an import path, so that a function of yours needs no package around it.
    file: str
    """Python file with the function, which runs in the killable reward workers."""
    function: str = "score"
    """Name of the function, called with prompt, mode, answer and, if it takes it, reasoning."""
    weight: float = 1.0
    """Weight of the part in the reward."""


class RewardConfig(Section):
    """What a response is scored by. The reward is the weighted sum of its parts."""

    weights: RewardWeights = RewardWeights()
    task_weights: dict[str, dict[str, float]] = {}
    """Weights of single parts for one accuracy route or task, over `weights`."""
    mode_weights: dict[str, dict[str, float]] = {}
    """Weights of single parts in one mode, over `weights` and `task_weights`."""
    probability: ProbabilityConfig | None = None
    """How references in natural language are scored; null leaves them unscored, and leaves out
    generated prompts that only this reward could score."""
    preference: PreferenceConfig | None = None
    """The reward model or judge; null leaves the preference part out."""
    plugins: dict[str, PluginConfig] = {}
    """Parts of your own."""
    repetition: RepetitionConfig = RepetitionConfig()
    overlong_window: dict[str, int] = {}
    """By mode, the tokens before the end of its budget in which length is punished (DAPO); a mode
    that is not named has no such window."""
    # Processes and not threads: sympy can compute for ever, and only a process can be killed.
    workers: int = Field(default=1, gt=0)
    """Processes that verify answers; each can be killed without the others noticing. With GPUs each
    has a core that Ray reserves."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of scoring one sample, in seconds."""
    memory_mib: int = Field(default=1024, gt=0)
    """Memory limit of one worker process, in MiB."""

    @property
    def parts(self) -> dict[str, float]:
        """Every part that has a weight, with it."""
        weights = self.weights.model_dump()
        return weights | {name: plugin.weight for name, plugin in self.plugins.items()}

    def weights_for(self, route: str, task: str, mode: str) -> dict[str, float]:
        """The weight of every part for one accuracy route, task and mode."""
        weights = self.parts
        for name in (route, task):
            weights |= self.task_weights.get(name, {})
        return weights | self.mode_weights.get(mode, {})

    @model_validator(mode="after")
    def _parts_are_known(self) -> RewardConfig:
        # The ledger and the metrics name parts, so a plug-in of the same name would hide one.
        reserved = set(self.plugins) & {*RewardWeights.model_fields, *UNWEIGHTED_PARTS, "mean"}
        if reserved:
            raise ValueError(f"plugins must not take the name of a part: {sorted(reserved)}")
        known = sorted(self.parts)
        for key in ("task_weights", "mode_weights"):
            for name, weights in getattr(self, key).items():
                if unknown := sorted(set(weights) - set(known)):
                    what = f"{key}.{name} weighs unknown parts {unknown}"
                    raise ValueError(f"{what}; there are {known}")
        return self
