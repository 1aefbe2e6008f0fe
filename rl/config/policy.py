"""The sections `policy` and `algorithm`: which model is trained, and how it learns from a batch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rl.config.section import Section

Part = Literal["llm", "vision", "resampler"]
"""The parts of a vision-language model. `resampler` is the layer between the vision tower and the
language model, which Qwen calls merger."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Attention = Literal["sdpa", "flash", "cudnn", "flash_attention_2", "flash_attention_3"]


class OptimizerConfig(Section):
    """AdamW, and the learning rate over the steps."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate; adapters (`policy.lora`) want about ten times that of all weights."""
    # PyTorch's own defaults; the papers that this follows publish none.
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW, times the learning rate at every step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate from the warm-up to the last step."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where `linear` and `cosine` end, as a fraction of the peak."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """A gradient with a larger L2 norm, over all parameters, is scaled down to this norm."""


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685), by peft.

    Engines compute with the adapter beside the model; checkpoints hold the sum of both as `model/`
    and, where it was trained by RL, the adapter by itself as `adapter/`.
    """

    # 512 is the largest that vLLM takes.
    rank: int = Field(default=16, gt=0, le=512)
    """Rank of the adapters' matrices."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the adapters: what they add is multiplied by alpha / rank."""
    targets: str | list[str] = "all-linear"
    """Modules that get an adapter, as peft names them."""


class ThinkTags(Section):
    """What the policy writes around its reasoning."""

    open: str = Field(default="<think>", min_length=1)
    """Opens it, at the end of the prompt of a mode that reasons."""
    close: str = Field(default="</think>", min_length=1)
    """Closes it; the answer follows."""

    @model_validator(mode="after")
    def _tags_differ(self) -> ThinkTags:
        # White space around a tag is the template's, and may be sampled otherwise.
        has_space = self.open != self.open.strip() or self.close != self.close.strip()
        if self.open in self.close or self.close in self.open or has_space:
            raise ValueError(
                "policy.think_tags must be two different tags without space around them, got "
                f"{self.open!r} and {self.close!r}"
            )
        return self

    @property
    def empty_block(self) -> str:
        """Reasoning that says nothing, which ends the prompt of a mode that answers at once."""
        return f"{self.open}\n\n{self.close}\n\n"


THINK_TAGS = ThinkTags()
"""The tags of most models."""


class PolicyConfig(Section):
    """The model that is trained, and the DeepSpeed ranks that train it."""

    model: str = "builtin:tiny"
    """A Hugging Face model directory or name, or `builtin:tiny` (made on first use, cached)."""
    think_tags: ThinkTags = THINK_TAGS
    """The tags around reasoning that the model knows, such as <seed:think> and </seed:think>."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of learner and engines; bfloat16 keeps float32 master weights."""
    ranks: int = Field(default=1, gt=0)
    """DeepSpeed ranks, one Ray actor each."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed divides over the ranks: 1 the optimizer's state, 2 gradients too, 3 weights
    too. bfloat16 runs at least 1."""
    # In tokens and not in rows, since responses of one batch differ in length by far: this bounds
    # memory, whatever was sampled.
    micro_batch_tokens: int = Field(default=16384, gt=0)
    """The most tokens, padding included, that a rank forwards at once."""
    logprob_chunk_tokens: int = Field(default=2048, gt=0)
    """Positions whose logits exist at one time; bounds memory to this many times the vocabulary."""
    logprobs: Literal["auto", "chunked", "fused"] = "auto"
    """How log-probabilities come from the output layer: `chunked` in PyTorch, chunk by chunk of
    positions; `fused` by TRL's kernel, tile by tile of the vocabulary, with less memory and
    traffic. `auto` takes the kernel on a GPU."""
    fused_layers: bool = False
    """Norms, rotary embeddings and SwiGLU by liger-kernel (`pip install hybrid-rl[fused]`), for the
    families that it knows; needs GPUs."""
    attention: Attention = "sdpa"
    """The learner's attention kernel. `sdpa` leaves the choice to PyTorch, `flash` and `cudnn`
    prefer one of its kernels, `flash_attention_2` and `_3` are packages of their own; all but
    `sdpa` need GPUs and bfloat16."""
    # An integer is not refused where every layer is meant: true and 1 are the same.
    gradient_checkpointing: bool | Annotated[int, Field(ge=1)] = False
    """Recompute activations in the backward pass in place of keeping them: less memory, more time.
    true does so in every layer, n in every n-th; the RLAIF-V pass takes n as true."""
    sequence_parallel: int = Field(default=1, gt=0)
    """Ranks that share each sequence (Ulysses, arXiv 2309.14509), for contexts too long for one;
    divides `ranks`, and by heads the attention of the model, which must read text alone."""
    # Null and not all three by name, so that a text policy needs no other setting.
    train: list[Part] | None = Field(default=None, min_length=1)
    """The parts of a vision-language model that are trained, while the others stay as they are;
    null trains all of them or, with `lora`, the adapters on the language model alone."""
    lora: LoraConfig | None = None
    """Adapters on the language model; null trains the weights themselves."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer of RL; the RLAIF-V pass has its own, `align.dpo.optimizer`."""
    threads: int | None = Field(default=None, gt=0)
    """Torch threads of a rank on CPU; null takes `resources.rank_cpus`, and the engines' cores too
    where these are idle while a rank updates (`rollout.max_staleness` 0). With GPUs a rank has
    `resources.rank_cpus`, and its share of the node's cores for an optimizer that is offloaded."""
    # DeepSpeed checks its own keys; a second list of them here would fall behind.
    deepspeed: dict[str, Any] = {}
    """Merged over the DeepSpeed configuration that the learner builds (offload, bucket sizes)."""

    @property
    def effective_zero_stage(self) -> int:
        """The ZeRO stage that runs: at least 1 with bfloat16."""
        # DeepSpeed's stage 0 adds up the gradients of micro-batches in bfloat16, where small
        # ones vanish.
        return max(self.zero_stage, 1) if self.dtype == "bfloat16" else self.zero_stage

    @property
    def checkpoint_every(self) -> int:
        """Every how many layers activations are recomputed; 0 where they are kept."""
        return int(self.gradient_checkpointing)

    @property
    def offloads_optimizer(self) -> bool:
        """Whether the optimizer keeps its state, and takes its steps, on the CPU."""
        zero = self.deepspeed.get("zero_optimization") or {}
        return (zero.get("offload_optimizer") or {}).get("device") == "cpu"

    @model_validator(mode="after")
    def _learner_fits(self) -> PolicyConfig:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                "policy.sequence_parallel must divide policy.ranks, because as many ranks share "
                f"each sequence, got {self.sequence_parallel} of {self.ranks}"
            )
        if self.attention != "sdpa" and self.dtype == "float32":
            raise ValueError(
                f"policy.attention={self.attention} computes in 16 bits, got policy.dtype=float32; "
                "take policy.dtype=bfloat16, or policy.attention=sdpa"
            )
        return self


class GuardConfig(Section):
    """When the update of a step is not taken, because its numbers went wrong.

    It never is where a reward, the loss or the gradient is not finite. The samples of such a step
    are kept in `skipped/` of the run's directory.
    """

    grad_norm: float | None = Field(default=None, gt=0)
    """Largest L2 norm of the gradient, before clipping; null has no limit."""
    mismatch_kl: float | None = Field(default=None, gt=0)
    """Largest `rollout/mismatch_kl`, by which engine and learner differ; null has no limit."""
    max_skipped: int = Field(default=3, gt=0)
    """Skipped steps in a row after which the run ends, with the last checkpoint to go on from."""


class AlgorithmConfig(Section):
    """GRPO (arXiv 2402.03300) with no KL and no entropy term (arXiv 2509.18154, 2.4.3), or one of
    its successors."""

    loss: Literal["grpo", "gspo", "gspo_token", "cispo"] = "grpo"
    """What is clipped: `grpo` the ratio of a token, after which the token has no gradient; `gspo`
    (arXiv 2507.18071) the ratio of a sequence, the geometric mean over its tokens, which moves far
    less (the paper clips at 3e-4 and 4e-4), and `gspo_token` the same with a gradient to each token
    by its own; `cispo` (arXiv 2506.13585) the weight of a token, above alone, and the token keeps a
    gradient (ScaleRL, arXiv 2510.13786, cuts the weight at 5: clip_high 4). All but grpo need
    `updates_per_batch` of 2 or more, and gspo `aggregation` sequence."""
    normalize_by_std: bool = True
    """Divide the centred rewards by the group's standard deviation; false is Dr. GRPO."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The importance ratio is clipped below at 1 - clip_low."""
    # Wider above than below: a likely token can hardly grow by 20 %, an unlikely one must grow by
    # more to be explored (DAPO, arXiv 2503.14476, section 3.1).
    clip_high: float = Field(default=0.27, ge=0)
    """The importance ratio is clipped above at 1 + clip_high (RLPR; DAPO's clip-higher is 0.28)."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """What the loss of a batch is: the mean over all loss tokens; the mean over sequences of their
    token means; or the sum over tokens, divided by sequences x `constant_length`."""
    constant_length: int = Field(default=1024, gt=0)
    """Divisor of `constant` aggregation, in tokens."""
    updates_per_batch: int = Field(default=1, gt=0)
    """Optimizer steps on one batch, which is cut into this many parts."""
    # Engine and learner compute in another order and precision, so their probabilities differ even
    # for equal weights. Without a cap one token with a tiny sampled probability could rule a step.
    rollout_weight_cap: float | None = Field(default=2.0, gt=0)
    """Cap of the importance weight of a token against the engine that sampled it; null, and no
    `rollout_weight_floor`, turns the weight off."""
    rollout_weight_floor: float | None = Field(default=None, gt=0)
    """Least importance weight; null sets no bound below."""
    # The names and the numbers are TRL's (`vllm_importance_sampling_mode`).
    rollout_weight: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "token_truncate"
    """What the weight is of, and what becomes of one out of bounds. It is a token's, or the product
    over a sequence, which all its tokens share; it is cut to the bound, or 0, which takes the token
    or the sequence out of the gradient while its tokens still count in the mean."""
    off_policy_limit: float | None = Field(default=None, gt=0)
    """A sequence with a negative advantage is out of the loss where the mean over its tokens of
    log(rollout / policy) is larger (DeepSeek-V3.2, arXiv 2512.02556, eq. 9); null leaves all in."""
    mask_truncated: bool = False
    """Leave responses that ran into their budget out of the loss (overlong filtering of DAPO, arXiv
    2503.14476). They stay in the baseline of their group and in the number of sequences, and their
    tokens do not count. A group of nothing else teaches nothing."""
    drop_zero_variance: bool = False
    """Replace groups whose rewards are all equal (dynamic sampling of DAPO, arXiv 2503.14476)."""
    # The baseline is the mean of the scored trajectories, which too few of them make a poor one.
    max_unscored_share: float = Field(default=0.5, ge=0, lt=1)
    """A group in which a larger share of the trajectories has no score is dropped."""

    @model_validator(mode="after")
    def _loss_has_a_meaning(self) -> AlgorithmConfig:
        if self.loss in ("gspo", "gspo_token") and self.aggregation != "sequence":
            raise ValueError(
                f"algorithm.loss={self.loss} is a mean over sequences, and algorithm.aggregation="
                f"{self.aggregation} would weigh each sequence by its length; set "
                "algorithm.aggregation=sequence"
            )
        # Then every ratio is 1 and no clip is ever at work.
        if self.loss != "grpo" and self.updates_per_batch == 1:
            raise ValueError(
                f"algorithm.loss={self.loss} differs from grpo only where a batch is learned in "
                "several optimizer steps, got algorithm.updates_per_batch=1; raise it, or leave "
                "algorithm.loss out"
            )
        cap, floor = self.rollout_weight_cap, self.rollout_weight_floor
        if cap is not None and floor is not None and floor >= cap:
            raise ValueError(
                "algorithm.rollout_weight_floor must be below algorithm.rollout_weight_cap, got "
                f"{floor:g} >= {cap:g}"
            )
        if self.rollout_weight != "token_truncate" and cap is None and floor is None:
            raise ValueError(
                f"algorithm.rollout_weight={self.rollout_weight} needs a bound, without which the "
                "weight is off; set algorithm.rollout_weight_cap or algorithm.rollout_weight_floor"
            )
        return self
