"""The configuration tree: frozen, checked once, importable without torch.

`rl/config/recipe.py` reads YAML and the command line into it. The string under a field is its help.
Engine and DeepSpeed settings pass through as tables instead of being declared again.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rl.config.section import Section, Share

Part = Literal["llm", "vision", "resampler"]
"""Of a policy that sees; the resampler (or merger) brings features to the decoder's width."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class ModeConfig(Section):
    share: Share
    """Share of prompts that are asked in this mode."""
    thinking: bool
    """Whether the model reasons before it answers; chooses the end of the generation prompt."""
    max_tokens: int = Field(gt=0)
    """Token budget of one response."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the learner divides its logits by the same number."""


class SharePoint(Section):
    step: int = Field(ge=1)
    """The step (1-based) at which these shares hold; between points they are interpolated."""
    shares: dict[str, Share]
    """Share of every mode at that step."""


class ColumnsConfig(Section):
    question: str = "question"
    """Column with the question as text; ignored where `messages` is set."""
    messages: str | None = None
    """Column with chat messages (a list of role and content)."""
    reference: str = "answer"
    """Column with the reference answer."""
    task: str | None = None
    """Column that names the accuracy reward of the row."""
    mode: str | None = None
    """Column that pins a row to a mode; empty cells leave the row to the draw."""
    images: str | None = None
    """Column with images: a path or bytes, or a list of them. `<image>` in the text is where one
    goes; without it they stand in front."""
    videos: str | None = None
    """Column with videos, like `images`; `<video>` is where one goes."""
    id: str | None = None
    """Column with a unique id; by default the row number."""


class VideoConfig(Section):
    """Which frames of a video are seen; the defaults are MiniCPM-V 4.5's (arXiv 2509.18154)."""

    fps: float = Field(default=3, gt=0)
    """Frames seen per second of video."""
    max_frames: int = Field(default=540, gt=0)
    """Most frames seen of one video; of a longer one, fewer a second."""
    frames_per_group: int = Field(default=3, ge=1, le=6)
    """Most frames that MiniCPM-V packs into one block of visual tokens; others pack none."""
    max_frame_pixels: int = Field(default=2 * 448 * 448, ge=28 * 28)
    """Frames with more pixels are scaled down to so many as they are decoded; bounds memory."""

    @property
    def max_groups(self) -> int:
        return self.max_frames // self.frames_per_group

    @model_validator(mode="after")
    def _groups_are_whole(self) -> VideoConfig:
        if self.max_frames % self.frames_per_group:
            raise ValueError(
                f"video.max_frames={self.max_frames} must be a multiple of "
                f"video.frames_per_group={self.frames_per_group}; change one, "
                "frames_per_group=1 for models that pack no frames"
            )
        return self


class SourceConfig(Section):
    kind: Literal["chain_sum", "reasoning_gym", "visual", "dataset"] = "dataset"
    """`chain_sum` is the built-in task, `reasoning_gym` its procedural tasks, `visual` a task of
    rl/visual with pictures, `dataset` a file or a Hugging Face dataset."""
    path: str | None = None
    """For `dataset`: a .jsonl or .parquet file, a directory of them, or a dataset name. For
    `reasoning_gym` and `visual`: the task's name."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset, such as `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    heldout_path: str | None = None
    """For `dataset`: file or dataset with the held-out rows; by default a share of `path`."""
    heldout_split: str | None = None
    """Split with the held-out rows of a Hugging Face dataset."""
    heldout_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the rows kept out of training where no held-out rows are named."""
    columns: ColumnsConfig = ColumnsConfig()
    """Which column holds what."""
    video: VideoConfig = VideoConfig()
    """Which frames of its videos are seen."""
    settings: dict[str, Any] = {}
    """Passed to the procedural generator as they are."""
    seed: int | None = None
    """Decides which prompt stands at which place; by default the run's seed."""
    task: str = "auto"
    """Accuracy reward of every row that names none; `auto` chooses by the reference."""
    system_prompt: str | None = None
    """Put in front of every conversation that has no system message."""

    @property
    def shows_media(self) -> bool:
        """Whether its prompts can have images or videos."""
        return self.kind == "visual" or bool(self.columns.images or self.columns.videos)


class OptimizerConfig(Section):
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up, over `steps`."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where linear and cosine end, as a fraction of the peak."""
    max_grad_norm: float = Field(default=1.0, gt=0)


class LoraConfig(Section):
    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32, gt=0)
    targets: str | list[str] = "all-linear"
    """Modules that get an adapter, as peft names them."""


class PolicyConfig(Section):
    model: str = "builtin:tiny"
    """A Hugging Face model directory or name, or `builtin:tiny` (made on first use, cached)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of learner and engines; bfloat16 keeps float32 master weights."""
    ranks: int = Field(default=1, gt=0)
    """DeepSpeed ranks, one Ray actor each."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """Most padded tokens a rank forwards at once."""
    logprob_chunk_tokens: int = Field(default=2048, gt=0)
    """Positions whose logits exist at one time; bounds memory to chunk x vocabulary."""
    gradient_checkpointing: bool = False
    train: list[Part] | None = Field(default=None, min_length=1)
    """Parts of a vision-language model that are trained, the others stay as they are; None trains
    all, or under `lora` the language model's adapters alone."""
    lora: LoraConfig | None = None
    """Adapters on the language model; None trains the weights themselves."""
    optimizer: OptimizerConfig = OptimizerConfig()
    threads: int = Field(default=1, gt=0)
    """Torch threads of a rank on CPU."""
    deepspeed: dict[str, Any] = {}
    """Merged over the DeepSpeed configuration the learner builds (offload, bucket sizes, ...)."""

    @property
    def effective_zero_stage(self) -> int:
        """The ZeRO stage that runs: bfloat16 takes at least 1.

        DeepSpeed's stage 0 adds up the gradients of micro-batches in bfloat16, where small ones
        vanish.
        """
        return max(self.zero_stage, 1) if self.dtype == "bfloat16" else self.zero_stage


class AlgorithmConfig(Section):
    """GRPO (arXiv 2402.03300) with no KL and no entropy term (arXiv 2509.18154, 2.4.3)."""

    normalize_by_std: bool = True
    """Divide the centred rewards by the group's standard deviation; off is Dr. GRPO."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The importance ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.27, ge=0)
    """... and above at 1 + clip_high (RLPR; DAPO's clip-higher uses 0.28)."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all loss tokens; mean over sequences of their token means; or the token sum over
    sequences x `constant_length`."""
    constant_length: int = Field(default=1024, gt=0)
    """Divisor of `constant` aggregation, in tokens."""
    updates_per_batch: int = Field(default=1, gt=0)
    """Optimizer steps on one batch; the batch is cut into that many parts."""
    rollout_weight_cap: float | None = Field(default=2.0, gt=0)
    """Cap of the token-level truncated importance weight against the sampler; None turns it off."""
    drop_zero_variance: bool = False
    """Replace groups whose rewards are all equal (dynamic sampling of DAPO)."""
    max_unscored_share: float = Field(default=0.5, ge=0, lt=1)
    """A group with a larger share of trajectories without a score is dropped."""


class RolloutConfig(Section):
    prompts_per_step: int = Field(default=128, gt=0)
    """Groups per step."""
    group_size: int = Field(default=8, gt=1)
    """Trajectories per prompt."""
    max_staleness: int = Field(default=0, ge=0)
    """Most versions a sample may be behind the learner when it is trained on; 0 is synchronous."""
    draw: Literal["stratified", "bernoulli"] = "stratified"
    """Exact shares in every step's batch in random places, or an independent draw per prompt."""
    workers: int = Field(default=1, gt=0)
    """vLLM engines, one Ray actor each."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs per engine."""
    max_model_length: int = Field(gt=0)
    """Prompt and response tokens an engine accepts."""
    seed_requests: bool = False
    """Give every group its own seed, so that sampling is reproducible; costs speed on GPU."""
    engine: dict[str, Any] = {}
    """Passed to vLLM's engine arguments as they are."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Deadline for the engines to be ready."""
    group_timeout_s: float = Field(default=1800, gt=0)
    """Deadline for one group; past it the group is dropped and counted."""


class RewardWeights(Section):
    accuracy: float = 1.0
    format: float = 0.1
    repetition: float = 1.0
    preference: float = 0.5
    overlong: float = 1.0


class RepetitionConfig(Section):
    form: Literal["ngram", "window"] = "ngram"
    """`ngram`: minus the share of repeated n-grams (arXiv 2502.03373). `window`: -1 if some window
    of words occurs `times` times (RLPR: 10 words, 10 times)."""
    words: int = Field(default=20, gt=1)
    """Length of the n-grams or windows; 20 words leave clean reasoning at 0."""
    times: int = Field(default=10, gt=1)
    """Occurrences from which `window` punishes."""


class ProbabilityConfig(Section):
    """The probability reward of RLPR (arXiv 2506.18254) for references in natural language."""

    scorer: Literal["engine", "learner"] = "engine"
    """Where the reference is scored: by the engines, from their prefix cache, or by the learner."""
    debias: bool = True
    """Take off what the reference scores without reasoning, in modes that reason."""
    invalid: Literal["zero", "not_scorable"] = "zero"
    """What a response without a well-formed answer gets: 0, as in RLPR, or no score."""
    filter_beta: float | None = Field(default=0.5, gt=0)
    """Replace reasoning groups whose spread is below this multiple of its running mean."""


class PreferenceConfig(Section):
    """A preference model that sees question and final answer, never the reasoning."""

    kind: Literal["classifier", "judge"] = "classifier"
    """A sequence-classification reward model, or a generative judge in vLLM that grades 0 to 9."""
    model: str
    """Model directory or Hugging Face name; `builtin:tiny` is made on first use and cached."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    actors: int = Field(default=1, gt=0)
    """Copies of the model, one Ray actor each."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores Ray reserves per copy."""
    gpus: int = Field(default=0, ge=0)
    """GPUs per copy; 0 runs it on CPU."""
    deadline_s: float = Field(default=600, gt=0)
    """Deadline of loading the model; later, how long a copy may leave every question unanswered."""
    engine: dict[str, Any] = {}
    """For `judge`: passed to vLLM's engine arguments as they are."""


class PluginConfig(Section):
    file: str
    """Python file with the function; it runs in the killable reward workers."""
    function: str = "score"
    """Called with prompt, mode, answer and, if it has that parameter, reasoning."""
    weight: float = 1.0


class RewardConfig(Section):
    weights: RewardWeights = RewardWeights()
    """The reward is the weighted sum of the parts (arXiv 2509.18154, eq. 1)."""
    task_weights: dict[str, dict[str, float]] = {}
    """Weights of single parts for one accuracy route or task, over `weights`."""
    mode_weights: dict[str, dict[str, float]] = {}
    """Weights of single parts in one mode, over both."""
    probability: ProbabilityConfig | None = None
    """None leaves references in natural language unscored."""
    preference: PreferenceConfig | None = None
    """None leaves the preference part out."""
    plugins: dict[str, PluginConfig] = {}
    """Your own parts, by name."""
    repetition: RepetitionConfig = RepetitionConfig()
    overlong_window: dict[str, int] = {}
    """Tokens before a mode's budget in which length is punished (DAPO); none by default."""
    workers: int = Field(default=1, gt=0)
    """Processes that verify answers; each can be killed without the others noticing."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of one sample."""
    memory_mib: int = Field(default=1024, gt=0)
    """Memory limit of one worker process."""

    @property
    def parts(self) -> dict[str, float]:
        """Every part that has a weight, with it."""
        weights = self.weights.model_dump()
        return weights | {name: plugin.weight for name, plugin in self.plugins.items()}

    def weights_for(self, route: str, task: str, mode: str) -> dict[str, float]:
        """The weight of every part for one accuracy route, task and mode."""
        weights = self.parts
        for name in dict.fromkeys((route, task)):
            weights |= self.task_weights.get(name, {})
        return weights | self.mode_weights.get(mode, {})

    @model_validator(mode="after")
    def _parts_are_known(self) -> RewardConfig:
        reserved = set(self.plugins) & {*RewardWeights.model_fields, *UNWEIGHTED_PARTS, "mean"}
        if reserved:
            raise ValueError(f"plugins must not take the name of a part: {sorted(reserved)}")
        for key in ("task_weights", "mode_weights"):
            for name, weights in getattr(self, key).items():
                if unknown := sorted(set(weights) - set(self.parts)):
                    raise ValueError(
                        f"{key}.{name} weighs unknown parts {unknown}; there are "
                        f"{sorted(self.parts)}"
                    )
        return self


UNWEIGHTED_PARTS = ("probability", "baseline", "preference_raw", "leak")
"""What a score keeps beside its weighted parts."""


class SyncConfig(Section):
    transport: Literal["auto", "host", "nccl", "ipc"] = "auto"
    """How weights reach the engines: a shared-memory file, NCCL, or CUDA IPC when colocated."""
    deadline_s: float = Field(default=300, gt=0)
    """Deadline of each step of a publish; nothing waits for ever."""
    canary_tolerance: float | None = Field(default=None, gt=0)
    """Largest difference of canary logprobs; by default 1e-4 in float32, 0.35 in bfloat16."""


class CheckpointConfig(Section):
    every: int = Field(default=50, gt=0)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, gt=0)


class EvalConfig(Section):
    prompts: int = Field(default=256, gt=0)
    """Held-out prompts, each asked `samples` times in every mode."""
    samples: int = Field(default=1, gt=0)
    """Responses per prompt and mode; with more than one there is a pass@k."""
    every: int | None = Field(default=None, gt=0)
    """Steps between evaluations; None evaluates before and after only."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"eval.samples={self.samples} greedy responses would be copies of one; set "
                "eval.samples=1, or an eval.temperature above 0"
            )
        return self


class ResourcesConfig(Section):
    ray_address: str | None = None
    """None starts a local Ray; `auto` joins the cluster of this node."""
    gpus: int = Field(default=0, ge=0)
    """GPUs the run takes in all; 0 runs on CPU."""
    nodes: int = Field(default=1, gt=0)
    """Nodes the run is spread over."""
    colocate: bool = False
    """Engines and learner ranks share the same GPUs (weights then travel by CUDA IPC)."""
    engine_cpus: float = Field(default=1, gt=0)
    """CPU cores Ray reserves per engine."""
    rank_cpus: float = Field(default=1, gt=0)
    """CPU cores Ray reserves per learner rank."""


class DpoConfig(Section):
    """Preference optimisation; MiniCPM-V 4.5's settings (arXiv 2509.18154, appendix A)."""

    beta: float = Field(default=0.1, gt=0)
    """Weight of the log-ratio against the reference: the larger, the closer the policy stays."""
    batch_size: int = Field(default=256, gt=0)
    """Pairs per optimizer step, over all ranks."""
    steps: int = Field(default=400, gt=0)
    """Optimizer steps; pairs are taken again, in another order, where they run out."""
    micro_batch_pairs: int = Field(default=1, gt=0)
    """Pairs a rank forwards at once, each as two rows."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Its schedule is not published; the default is constant."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps between checkpoints to resume from."""

    def accumulation(self, ranks: int) -> int:
        """Micro-batches of a rank per step; raises ValueError if the batch is not whole ones."""
        at_once = self.micro_batch_pairs * ranks
        if self.batch_size % at_once:
            raise ValueError(
                f"align.dpo.batch_size={self.batch_size} must be a multiple of the {at_once} pairs "
                f"that {ranks} ranks (policy.ranks) with align.dpo.micro_batch_pairs="
                f"{self.micro_batch_pairs} forward at once; change one of the three"
            )
        return self.batch_size // at_once


class AssistantConfig(Section):
    """A language model that divides answers into claims, or labels them."""

    model: str | None = None
    """Model directory, Hugging Face name or builtin one; None is the policy that is aligned."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible server that is asked in place of a model here."""
    served_name: str | None = None
    """Which of the endpoint's models, where it serves several."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """By default the policy's."""
    max_model_length: int | None = Field(default=None, gt=0)
    """Tokens its engines accept; by default rollout.max_model_length."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments, over those of rollout.engine; it runs where the run's engines do."""

    @model_validator(mode="after")
    def _is_one_model(self) -> AssistantConfig:
        if self.model is not None and self.endpoint is not None:
            raise ValueError(
                f"model={self.model} and endpoint={self.endpoint} are two models; name one"
            )
        if self.served_name is not None and self.endpoint is None:
            raise ValueError("served_name belongs to an endpoint; name that too")
        return self


class GateConfig(Section):
    """What decides whether the aligned policy takes the place of the one before it."""

    prompts: int = Field(default=512, gt=0)
    """Held-out prompts, each asked in every mode before and after."""
    samples: int = Field(default=1, gt=0)
    """Responses per prompt and mode."""
    max_accuracy_drop: Share = 0.02
    """Most accuracy that any mode may lose."""


class AlignConfig(Section):
    """The RLAIF-V pass (arXiv 2405.17220) that follows RL (arXiv 2509.18154, section 2.4.5)."""

    enabled: bool = False
    """Whether rl.launch goes on with it after the last step."""
    iterations: int = Field(default=1, gt=0)
    """Rounds, each with new prompts and with responses of the policy that the last one gave."""
    prompts: int = Field(default=4000, gt=0)
    """Training prompts of an iteration."""
    responses: int = Field(default=10, gt=1)
    """Responses per prompt, all of one mode."""
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    mix: dict[str, Share] = {}
    """Share of the prompts that are asked in each mode; empty takes modes.*.share."""
    mine: Literal["reward", "accuracy"] | None = None
    """Take the pairs from the newest steps of the run's ledger, by this score, and sample none."""
    divider: AssistantConfig | None = None
    """What takes answers apart into claims; None does it by rules."""
    labeller: AssistantConfig = AssistantConfig()
    """What says whether a claim is true."""
    gap: float = Field(default=1, gt=0)
    """Least difference between the scores of a pair."""
    pairs_per_prompt: int = Field(default=2, gt=0)
    dpo: DpoConfig = DpoConfig()
    gate: GateConfig = GateConfig()


class LogConfig(Section):
    tensorboard: bool = True
    wandb_project: str | None = None
    """Also log to this Weights & Biases project."""
    ledger: bool = True
    """Write every trajectory with its scores to `ledger/`."""


class Config(Section):
    run: str
    """The run's directory."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    steps: int = Field(gt=0)
    """Loop steps: one batch, one publish each."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues a run directory that exists; `never` refuses it."""
    modes: dict[str, ModeConfig] = Field(min_length=1)
    share_schedule: list[SharePoint] = []
    """Shares over the run; empty holds `modes.*.share` throughout."""
    data: SourceConfig
    policy: PolicyConfig = PolicyConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rollout: RolloutConfig
    reward: RewardConfig = RewardConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    resources: ResourcesConfig = ResourcesConfig()
    align: AlignConfig = AlignConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Config:
        _check_shares("modes.*.share", {name: mode.share for name, mode in self.modes.items()})
        for place, point in enumerate(self.share_schedule):
            if unknown := set(point.shares) ^ set(self.modes):
                raise ValueError(
                    f"share_schedule[{place}].shares must name every mode and no other: "
                    f"{sorted(unknown)} differ from modes {sorted(self.modes)}"
                )
            _check_shares(f"share_schedule[{place}].shares", point.shares)
        steps = [point.step for point in self.share_schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"share_schedule steps must increase, got {steps}")
        return self

    @model_validator(mode="after")
    def _budgets_fit_the_engine(self) -> Config:
        for name, mode in self.modes.items():
            if mode.max_tokens >= self.rollout.max_model_length:
                raise ValueError(
                    f"modes.{name}.max_tokens must leave room for the prompt: {mode.max_tokens} "
                    f">= rollout.max_model_length {self.rollout.max_model_length}; lower the "
                    "first or raise the second"
                )
        return self

    @model_validator(mode="after")
    def _reward_modes_are_known(self) -> Config:
        for key in ("mode_weights", "overlong_window"):
            if unknown := sorted(set(getattr(self.reward, key)) - set(self.modes)):
                raise ValueError(
                    f"reward.{key} names unknown modes {unknown}; modes are {sorted(self.modes)}"
                )
        for mode, window in self.reward.overlong_window.items():
            if not 0 < window <= self.modes[mode].max_tokens:
                raise ValueError(
                    f"reward.overlong_window.{mode} must be between 1 and the mode's max_tokens "
                    f"{self.modes[mode].max_tokens}, got {window}"
                )
        return self

    @model_validator(mode="after")
    def _alignment_fits(self) -> Config:
        mix = self.align.mix
        if unknown := sorted(set(mix) - set(self.modes)):
            raise ValueError(f"align.mix names unknown modes {unknown}; modes are {[*self.modes]}")
        if mix:
            _check_shares("align.mix", mix)
        if self.align.mine and self.align.iterations > 1:
            raise ValueError(
                f"align.mine={self.align.mine} would take the same pairs in each of "
                f"align.iterations={self.align.iterations}; set one of them otherwise"
            )
        if self.align.enabled:
            self.align.dpo.accumulation(self.policy.ranks)
            if self.align.mine and not self.log.ledger:
                raise ValueError("align.mine takes pairs from the ledger; set log.ledger=true")
        return self

    @model_validator(mode="after")
    def _references_can_be_scored(self) -> Config:
        probability = self.reward.probability
        is_on_engine = probability is not None and probability.scorer == "engine"
        if is_on_engine and self.rollout.engine.get("speculative_config"):
            raise ValueError(
                "reward.probability scores on the engines, which cannot be forced while they "
                "decode speculatively; leave rollout.engine.speculative_config out, or set "
                "reward.probability.scorer=learner"
            )
        return self

    @model_validator(mode="after")
    def _preference_device_is_stated(self) -> Config:
        preference = self.reward.preference
        if preference is None:
            return self
        if preference.kind == "judge" and self.resources.gpus and not preference.gpus:
            raise ValueError(
                "a judge on a machine with GPUs needs one of its own; set "
                "reward.preference.gpus=1 and count it in resources.gpus"
            )
        if preference.kind == "classifier" and preference.gpus > 1:
            raise ValueError(
                f"a classifier runs on one GPU, got reward.preference.gpus={preference.gpus}; "
                "raise reward.preference.actors instead"
            )
        return self

    @model_validator(mode="after")
    def _updates_divide_the_batch(self) -> Config:
        if self.rollout.prompts_per_step < self.algorithm.updates_per_batch:
            raise ValueError(
                "algorithm.updates_per_batch must not exceed rollout.prompts_per_step, got "
                f"{self.algorithm.updates_per_batch} > {self.rollout.prompts_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_placed(self) -> Config:
        engines = self.rollout.workers * self.rollout.tensor_parallel
        ranks = self.policy.ranks
        gpus = self.resources.gpus
        preference = self.reward.preference
        preference_gpus = preference.actors * preference.gpus if preference else 0
        if gpus == 0:
            if preference_gpus:
                raise ValueError(
                    f"reward.preference takes {preference_gpus} GPUs, got resources.gpus=0; set "
                    "reward.preference.gpus=0 to run it on CPU"
                )
            if self.resources.colocate or self.sync.transport in ("nccl", "ipc"):
                raise ValueError(
                    "resources.colocate and sync.transport nccl or ipc need GPUs, got "
                    "resources.gpus=0; take a scale with GPUs or leave them out"
                )
            if self.resources.nodes > 1:
                raise ValueError(
                    "runs without GPUs stay on one node, because weights travel through its shared "
                    f"memory, got resources.nodes={self.resources.nodes}"
                )
            return self
        if self.num_gpus_taken > gpus:
            raise ValueError(
                f"resources.gpus must hold what the run takes: {engines} for engines "
                f"(rollout.workers x tensor_parallel), {ranks} for learner ranks and "
                f"{preference_gpus} for the preference model make {self.num_gpus_taken}, got {gpus}"
            )
        if self.resources.colocate and engines != ranks:
            raise ValueError(
                "resources.colocate needs as many learner ranks as engine GPUs, got policy.ranks="
                f"{ranks} and {engines} engine GPUs"
            )
        return self

    def without_preference(self) -> Config:
        """The same for responses that come one at a time, which are preferred to no other."""
        reward = self.reward.model_copy(update={"preference": None})
        return self.model_copy(update={"reward": reward})

    @property
    def num_gpus_taken(self) -> int:
        """GPUs that engines, learner ranks and preference models run on."""
        if self.resources.gpus == 0:
            return 0
        engines = self.rollout.workers * self.rollout.tensor_parallel
        policy = max(engines, self.policy.ranks)
        if not self.resources.colocate:
            policy = engines + self.policy.ranks
        preference = self.reward.preference
        return policy + (preference.actors * preference.gpus if preference else 0)

    @property
    def transport(self) -> Literal["host", "nccl", "ipc"]:
        if self.sync.transport != "auto":
            return self.sync.transport
        if self.resources.gpus == 0:
            return "host"
        return "ipc" if self.resources.colocate else "nccl"

    @property
    def canary_tolerance(self) -> float:
        if self.sync.canary_tolerance is not None:
            return self.sync.canary_tolerance
        return 1e-4 if self.policy.dtype == "float32" else 0.35


def _check_shares(key: str, shares: dict[str, float]) -> None:
    total = sum(shares.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        listed = " + ".join(f"{name} {share}" for name, share in shares.items())
        raise ValueError(f"{key} must sum to 1, got {total:g} ({listed})")
