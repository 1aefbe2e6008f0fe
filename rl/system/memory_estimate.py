"""How much memory a run will take, before anything is loaded; shown by `dry_run`.

    ModelSize (config.json, and the meter of policy/learner/memory_meter.py) + Config -> MemoryPlan

Weights, gradients, optimizer state, buffers and caches are arithmetic, which stands here. What a
forward and backward makes beside them is metered, because no formula follows every architecture.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from rl.config.policy import PolicyConfig
from rl.config.run import Config
from rl.system.resident import GIB

CACHED_RESPONSES = 4
"""Responses of full length whose keys and values an engine on CPU has room for at the same time."""
BYTES = {"float32": 4, "bfloat16": 2}
CHECKPOINT_BYTES = 16
"""Of a trained parameter: the weight, AdamW's two moments in float32, the master weight or none,
and its share of `model/`."""

CARDS = {24: 22.5, 48: 44.4, 80: 79.1, 141: 139.8}
"""The common sizes of a GPU in GB as they are sold, and the GiB that the smallest card of each has
for programs (A10, L40S, A100 and H100, H200)."""
LEARNER_RESERVE = 3 * GIB
"""What a rank's process takes of its GPU beside its tensors: CUDA's context, NCCL's buffers, and
memory that the allocator holds in pieces too small to use."""
ENGINE_RESERVE = 2 * GIB
"""The same of an engine, with its CUDA graphs; an engine that sleeps goes on holding it."""
LARGEST_UTILIZATION = 0.9
"""vLLM's own default. Beyond it, an engine meets allocations that its profile did not see."""
MICRO_BATCH_UNIT = 1024
"""Proposed micro-batches are multiples of this many tokens."""
TRANSFER_BUFFER = GIB
"""vLLM's packed weight transfer moves tensors in buffers of this size, or of the largest tensor."""


class UpdatePeak(NamedTuple):
    """The most bytes that live at once in the forward and backward of a micro-batch.

    Parameters and what outlives the backward are not counted.
    """

    activations: float
    """In the layers, logits apart."""
    logits: float
    """Of logits and what is made of them, on top of the activations that are kept meanwhile."""
    total: float
    """Of both; less than their sum, because not all activations are there when logits are."""


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on; None where it is not known."""

    parameters: int | None
    vocabulary: int | None
    cached_numbers: int | None = None
    """Numbers that an engine keeps of each token: keys and values of all layers."""
    trained: int | None = None
    """Parameters that the optimizer updates."""
    largest: int = 0
    """Numbers of the largest tensor."""
    width: int = 0
    """Numbers of a token between two layers, and in the widest place inside one, together."""
    peaks: Mapping[int, UpdatePeak] | None = None
    """Metered, by the tokens of a micro-batch; None where the model was not metered."""
    vision: float = 0
    """Bytes that the vision tower adds for each token of a micro-batch; estimated."""

    def peak(self, tokens: int) -> UpdatePeak | None:
        """The peak of a micro-batch of `tokens`, from the metered ones around it."""
        if not self.peaks:
            return None
        known = sorted(self.peaks)
        if tokens <= known[0]:
            return self.peaks[known[0]]
        # Each moment of an update takes memory that is a constant and a part that grows with the
        # tokens, and the peak is the largest of them. So it is convex: the line between two
        # metered points is never below it.
        above = next((size for size in known if size >= tokens), known[-1])
        below = known[known.index(above) - 1] if len(known) > 1 else above
        share = (tokens - below) / (above - below) if above > below else tokens / above
        low, high = self.peaks[below], self.peaks[above]
        between = zip(low, high, strict=True)
        activations, logits, total = (a + share * (b - a) for a, b in between)
        return UpdatePeak(activations + self.vision * tokens, logits, total + self.vision * tokens)


def model_size(directory: str) -> ModelSize:
    """The size of the model in a directory, by its config.json and the headers of its weights."""
    file = Path(directory) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        # Whoever loads the model refuses such a file by name.
        config = {}
    return ModelSize(count_parameters(directory), *config_sizes(config))


def config_sizes(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Vocabulary and cached numbers per token of a model, as its config.json gives them."""
    # A vision-language model may hold its language model's configuration as one of its own.
    text = config.get("text_config") or config
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not layers or not heads:
        return text.get("vocab_size"), None
    width = text.get("head_dim") or text.get("hidden_size", 0) // heads
    return text.get("vocab_size"), 2 * layers * (text.get("num_key_value_heads") or heads) * width


def cache_gib(model: str, dtype: str, max_model_length: int | None) -> int:
    """GiB of keys and values that an engine on CPU should have room for, one at least."""
    numbers = model_size(model).cached_numbers
    if numbers is None or max_model_length is None:
        return 1
    tokens = CACHED_RESPONSES * max_model_length
    return max(1, math.ceil(tokens * numbers * BYTES[dtype] / GIB))


def weight_shapes(model: str) -> Iterator[Sequence[int]]:
    """The shapes in a model directory by its safetensors headers; none if it is not here."""
    # Headers alone are read, so a large model on a slow disk is counted at once.
    for path in Path(model).glob("*.safetensors"):
        with safe_open(path, "np") as file:
            yield from (file.get_slice(name).get_shape() for name in file.keys())  # noqa: SIM118


def count_parameters(model: str) -> int | None:
    """Parameters of a model directory; None if it is not here."""
    return sum(map(math.prod, weight_shapes(model))) or None


def checkpoint_bytes(model: str, policy: PolicyConfig) -> int:
    """Most bytes that a checkpoint of a policy takes; 0 if the model's weights are not here."""
    shapes = list(weight_shapes(model))
    parameters = sum(map(math.prod, shapes))
    # Parts that are trained whole beside an adapter cannot be told by shapes: then all are counted.
    if policy.lora is None or set(policy.train or ["llm"]) != {"llm"}:
        return parameters * CHECKPOINT_BYTES
    # The state is of the adapter alone, whose two matrices are at most as large as for an adapter
    # on every matrix of the model; `model/` is the whole model, with the adapter added.
    adapter = sum(policy.lora.rank * sum(shape) for shape in shapes if len(shape) == 2)
    return parameters * BYTES[policy.dtype] + adapter * CHECKPOINT_BYTES


class RankMemory(NamedTuple):
    """Bytes that a learner rank holds through the whole run."""

    weights: float
    gradients: float
    optimizer: float
    """AdamW's two running means and, in bfloat16, the float32 master weights."""
    buffers: float
    """DeepSpeed's, in which gradients are reduced and ZeRO-3 gathers weights."""
    host: float
    """What is offloaded to the memory of the node."""

    @property
    def device(self) -> float:
        """All of it that lies where the rank computes."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def rank_memory(policy: PolicyConfig, parameters: int, trained: int | None = None) -> RankMemory:
    """What a rank holds of so many parameters, of which `trained` are updated (by default all).

    float32: 4 + 4 + 8 bytes a parameter. bfloat16: 2 + 4 (gradients accumulate in float32), and
    4 + 8 for master weights and state. ZeRO 1 divides the last over the ranks, 2 the gradients too,
    3 everything (https://arxiv.org/abs/1910.02054, section 3).
    """
    if trained is None:
        # Under LoRA the adapter is small beside the weights.
        trained = 0 if policy.lora else parameters
    stage, ranks = policy.effective_zero_stage, policy.ranks
    of_weight, of_gradient, of_state = (2, 4, 12) if policy.dtype == "bfloat16" else (4, 4, 8)
    weights = parameters * of_weight / (ranks if stage >= 3 else 1)
    gradients = trained * of_gradient / (ranks if stage >= 2 else 1)
    optimizer = trained * of_state / (ranks if stage >= 1 else 1)
    zero, buffers, host = policy.deepspeed.get("zero_optimization", {}), 0.0, 0.0
    if stage >= 2:
        # A bucket of gradients is reduced in float32, beside the bucket itself.
        bucket = min(trained, zero.get("reduce_bucket_size", 500_000_000))
        buffers += bucket * (of_weight + (4 if policy.dtype == "bfloat16" else 0))
    if stage == 3:
        live = zero.get("stage3_max_live_parameters", zero.get("max_live_parameters", 10**9))
        buffers += min(parameters, live) * of_weight
    if offloads(policy, "offload_optimizer"):
        host, optimizer = host + optimizer, 0.0
        # At stage 1 gradients add up on the device, and only their share is brought to the host.
        if stage >= 2:
            host, gradients = host + gradients, 0.0
    if stage == 3 and offloads(policy, "offload_param"):
        host, weights = host + weights, 0.0
    return RankMemory(weights, gradients, optimizer, buffers, host)


def offloads(policy: PolicyConfig, part: str) -> bool:
    """Whether DeepSpeed keeps `offload_optimizer` or `offload_param` in the memory of the node."""
    chosen = policy.deepspeed.get("zero_optimization", {}).get(part) or {}
    return chosen.get("device", "none") != "none"


def logits_bytes(policy: PolicyConfig, vocabulary: int) -> int:
    """Bytes of the logits in flight on a learner rank, and of what is made of them."""
    # Four tensors of a chunk exist at once, in float32: its logits, their log-softmax, and what its
    # entropy takes, the probabilities and p log p. The backward pass holds no more.
    return 4 * 4 * policy.logprob_chunk_tokens * vocabulary


class Fit(NamedTuple):
    """The largest settings with which a run fits on GPUs of one size."""

    micro_batch_tokens: int
    gpu_memory_utilization: float
    cached_tokens: int | None
    """Tokens whose keys and values an engine then has room for."""


@dataclass(frozen=True)
class MemoryPlan:
    """What each GPU of a run holds in each of its phases: sampling, update, publish."""

    config: Config
    size: ModelSize

    @cached_property
    def rank(self) -> RankMemory:
        assert self.size.parameters is not None, "a plan is of a model of known size"
        return rank_memory(self.config.policy, self.size.parameters, self.size.trained)

    @property
    def num_bytes(self) -> int:
        return BYTES[self.config.policy.dtype]

    @cached_property
    def engine_weights(self) -> float:
        assert self.size.parameters is not None
        return self.size.parameters * self.num_bytes / self.config.rollout.tensor_parallel

    @cached_property
    def engine_workspace(self) -> float:
        """Of one step of an engine, estimated: activations of its tokens, or its logits."""
        # What vLLM takes by itself on a GPU of 70 GiB or more (UsageContext.LLM_CLASS).
        engine = self.config.rollout.engine
        tokens = engine.get("max_num_batched_tokens", 16384)
        sequences = engine.get("max_num_seqs", 1024)
        layers = tokens * self.size.width * self.num_bytes
        # In float32: logits, their log-softmax, and the copy that is sampled from.
        sampler = 3 * 4 * sequences * (self.size.vocabulary or 0)
        return max(layers, sampler) / self.config.rollout.tensor_parallel

    @property
    def cached_token(self) -> float | None:
        """Bytes of one token's keys and values on one GPU of an engine."""
        if self.size.cached_numbers is None:
            return None
        dtype = str(self.config.rollout.engine.get("kv_cache_dtype", "auto"))
        # All types of 8 bits that vLLM has are called fp8 or int8 and a suffix.
        width = 1 if dtype.startswith(("fp8", "int8")) else self.num_bytes
        return self.size.cached_numbers * width / self.config.rollout.tensor_parallel

    @cached_property
    def publish_buffers(self) -> tuple[float, float]:
        """Bytes of a publish on a rank's GPU, and on an engine's beyond the engine's own budget."""
        policy = self.config.policy
        if not self.config.resources.gpus or (policy.lora and policy.train in (None, ["llm"])):
            # An adapter travels as a file.
            return 0.0, 0.0
        largest = self.size.largest * self.num_bytes
        gathered = largest if policy.effective_zero_stage == 3 else 0
        buffer = max(TRANSFER_BUFFER, largest)
        if self.config.transport == "host":
            return gathered, 0.0
        if self.config.transport == "ipc":
            # The staging buffer, which the engine reads in place, and the engine's copies of a
            # layer until all that is fused in it has come.
            return buffer + gathered, buffer
        # Two buffers are filled in turn; where a layer straddles them the engine keeps a third.
        return 2 * TRANSFER_BUFFER + gathered, 3 * buffer

    def phases(self, tokens: int, card: float | None = None) -> dict[str, float]:
        """Bytes on a learner rank's GPU by phase, with micro-batches of `tokens`.

        card: bytes of the GPU, of which an engine that is awake beside the rank takes its share;
        None leaves the engine out.
        """
        peak = self.size.peak(max(tokens, self.config.rank_row_tokens))
        vocabulary = self.size.vocabulary or 0
        made = peak.total if peak else logits_bytes(self.config.policy, vocabulary)
        of_rank, of_engine = self.publish_buffers
        on_gpu, shared = self.config.resources.gpus > 0, self.config.resources.colocate
        held = self.rank.device + (LEARNER_RESERVE if on_gpu else 0)
        phases = {"update": held + made, "publish": held + of_rank}
        if not shared:
            return phases
        phases["publish"] += of_engine
        if self.config.engines_sleep:
            phases["update"] += ENGINE_RESERVE
            phases["publish"] += ENGINE_RESERVE + self.engine_weights
            # A learner that scores references runs its forward while the engines sample.
            probability = self.config.reward.probability
            scores = probability is not None and probability.scorer == "learner"
            phases["sampling"] = held + (made if scores else 0)
            awake: tuple[str, ...] = ("sampling",)
        else:
            awake = ("update", "publish")
        if card is not None:
            for phase in awake:
                phases[phase] += card * self.utilization
        return phases

    @property
    def utilization(self) -> float:
        return float(self.config.rollout.engine.get("gpu_memory_utilization", LARGEST_UTILIZATION))

    def fit(self, card: float) -> Fit | None:
        """The largest settings that fit on GPUs of `card` bytes each; None if none do.

        Where both compete for the same memory, micro-batches stay as they are set.
        """
        wanted = max(self.config.policy.micro_batch_tokens, self.config.rank_row_tokens)
        resources = self.config.resources
        budget = card - self.publish_buffers[1]
        if resources.colocate:
            if self.config.engines_sleep:
                budget = card - self.phases(wanted)["sampling"]
            else:
                # Small enough for the engine to have its least, so that one of both can give way.
                wanted = self._largest_batch(card - self.least_engine, wanted) or 0
                budget = card - max(self.phases(wanted).values())
        utilization = min(LARGEST_UTILIZATION, math.floor(100 * budget / card) / 100)
        if utilization * card < self.least_engine:
            return None
        taken = utilization * card if resources.colocate and not self.config.engines_sleep else 0
        largest = self._largest_batch(card - taken, max(self.size.peaks or [wanted]))
        if largest is None:
            return None
        cached = None
        if self.cached_token:
            of_cache = utilization * card - (self.least_engine - self._one_response)
            cached = int(of_cache / self.cached_token)
        return Fit(largest, utilization, cached)

    @property
    def least_engine(self) -> float:
        """Bytes with which an engine can answer at all."""
        return self.engine_weights + self.engine_workspace + ENGINE_RESERVE + self._one_response

    @property
    def _one_response(self) -> float:
        return (self.cached_token or 0) * self.config.rollout.max_model_length

    def _largest_batch(self, room: float, most: int) -> int | None:
        """The most tokens of a micro-batch, up to `most`, with which every phase has room."""
        least = self.config.rank_row_tokens
        sizes = [least, *range(MICRO_BATCH_UNIT, most + 1, MICRO_BATCH_UNIT)]
        fitting = [
            tokens
            for tokens in sizes
            if tokens >= least and max(self.phases(tokens).values()) <= room
        ]
        return max(fitting, default=None)

    @property
    def total_bytes(self) -> float:
        """What learner ranks and engines take together on a machine without GPUs."""
        policy, rollout = self.config.policy, self.config.rollout
        tokens = policy.micro_batch_tokens
        ranks = policy.ranks * (max(self.phases(tokens).values()) + self.rank.host)
        return ranks + rollout.workers * self.engine_weights * rollout.tensor_parallel


def describe_memory(plan: MemoryPlan, card: float | None = None) -> str:
    """Lines for people: a learner rank, an engine, and the largest settings that fit.

    card: bytes of this machine's GPUs; None tells of each common size.
    """
    size, policy = plan.size, plan.config.policy
    rank, tokens = plan.rank, max(policy.micro_batch_tokens, plan.config.rank_row_tokens)
    trained = "" if size.trained is None else f", {size.trained:,} of them trained"
    parts = {"weights": rank.weights, "gradients": rank.gradients, "optimizer": rank.optimizer}
    if rank.buffers:
        parts["ZeRO buffers"] = rank.buffers
    peak = size.peak(tokens)
    if peak:
        parts |= {"activations": peak.activations, "logits": peak.logits}
    else:
        parts["logits"] = logits_bytes(policy, size.vocabulary or 0)
    if plan.config.resources.gpus:
        parts |= {"publish buffers": plan.publish_buffers[0], "CUDA": LEARNER_RESERVE}
    phases = plan.phases(tokens)
    phase = max(phases, key=phases.__getitem__)
    lines = [
        f"  {size.parameters:,} parameters{trained}",
        f"  each learner rank: {_listed(parts)}",
        f"    at most {phases[phase] / GIB:.2f} GiB at once, in the {phase}, with micro-batches of "
        f"{tokens:,} tokens" + ("" if peak else ", and activations on top"),
    ]
    if rank.host:
        lines.append(f"    offloaded to the node's memory: {rank.host / GIB:.2f} GiB a rank")
    if size.vision:
        lines.append("    with an estimate of the vision tower; all else is counted")
    if size.vocabulary is not None:
        lines.append(
            f"    logits are of {policy.logprob_chunk_tokens:,} positions at a time and a "
            f"vocabulary of {size.vocabulary:,} (policy.logprob_chunk_tokens)"
        )
    engine = {"weights": plan.engine_weights}
    if plan.config.resources.gpus:
        engine |= {"workspace": plan.engine_workspace, "CUDA": ENGINE_RESERVE}
        if buffers := plan.publish_buffers[1]:
            engine["publish buffers"] = buffers
    if plan.cached_token:
        longest = plan.config.rollout.max_model_length
        engine[f"a response of {longest:,} tokens"] = plan.cached_token * longest
    lines.append(f"  each engine GPU or process: {_listed(engine)}; the rest is KV cache")
    if plan.config.resources.colocate:
        shares = "sleeps while the learner updates" if plan.config.engines_sleep else "stays awake"
        lines.append(f"  a rank and an engine share each GPU, and the engine {shares}")
    if plan.config.resources.gpus:
        lines += _describe_fits(plan, card)
    return "\n".join(lines)


def _describe_fits(plan: MemoryPlan, card: float | None) -> list[str]:
    cards = {f"{gb} GB": gib * GIB for gb, gib in CARDS.items()}
    if card is not None:
        cards = {f"{card / GIB:.1f} GiB (this machine's)": card}
    lines = ["  the largest policy.micro_batch_tokens and gpu_memory_utilization that fit:"]
    for name, there in cards.items():
        fit = plan.fit(there)
        if fit is None:
            lines.append(f"    GPUs of {name}: it does not fit")
            continue
        cache = "" if fit.cached_tokens is None else f", a KV cache of {fit.cached_tokens:,} tokens"
        batch = "" if plan.size.peaks is None else f"{fit.micro_batch_tokens:,} and "
        lines.append(f"    GPUs of {name}: {batch}{fit.gpu_memory_utilization:.2f}{cache}")
    return lines


def _listed(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items()) + " GiB"
