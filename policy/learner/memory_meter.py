"""What an update of a model takes, counted on tensors that have shapes and no memory.

The learner's own model is run forward and backward on the meta device, and every storage that an
operation makes is counted until it is freed. A model of 32 billion parameters takes seconds and
some hundred megabytes.
"""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from policy.learner.logprobs import LogprobModel
from policy.learner.sequence_parallel import refuse_unshareable
from policy.models.checks import read_config
from policy.models.family import model_family
from policy.models.loading import DTYPES, make_trainable
from rl.config.policy import PolicyConfig
from rl.config.run import Config
from rl.system.memory_estimate import ModelSize, UpdatePeak, config_sizes, offloads

LADDER = (4096, 16384, 65536)
"""Tokens of the micro-batches that are metered, beside those that the run has."""
# A transformer layer keeps 34 bytes of each number of its width for the backward, in 16 bits and
# with attention that keeps no scores (https://arxiv.org/abs/2205.05198, equation 2).
LAYER_BYTES = 34


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made under it and are still there."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        """known: tensors that were there before, which views of them must not be counted as."""
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class _FlashAttention(torch.autograd.Function):
    """The memory of attention that keeps no scores, and nothing of its arithmetic."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, on_gpu: bool) -> Tensor:
        batch, heads, time, _ = query.shape
        # Laid out by tokens, as kernels do, so that joining the heads afterwards copies nothing.
        output = query.new_empty(batch, time, heads, value.shape[-1]).transpose(1, 2)
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.on_gpu = on_gpu
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *_ = ctx.saved_tensors
        if ctx.on_gpu:
            # Kernels add up the gradient of the queries in float32, and those of keys and values
            # for every head of the queries before heads that share them are summed.
            adding = [torch.empty_like(query, dtype=torch.float32)]
            adding += [part.new_empty(query.shape) for part in (key, value)]
            del adding
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _register_attention(on_gpu: bool) -> str:
    """Tell transformers of an attention by a name that it then takes; returns the name."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        # [B, heads, T, width] each, to [B, T, heads, width].
        output = _FlashAttention.apply(query, key, value, on_gpu)
        return output.transpose(1, 2).contiguous(), None

    # For a name that it does not know transformers makes no mask: the scores that a masked
    # attention would keep are not there in a run either, and on the meta device a mask has no
    # values to look at.
    name = f"metered_{'gpu' if on_gpu else 'cpu'}"
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    return name


ATTENTION = {on_gpu: _register_attention(on_gpu) for on_gpu in (True, False)}


def meter_model(directory: Path, config: Config) -> ModelSize:
    """The size of the model of a directory, by its config.json, and what its updates take.

    No weights are read. An architecture whose forward needs values has no peaks. Raises ValueError
    for a configuration that cannot be used, for parts to train that the model does not have, and
    for ranks that cannot share its attention.
    """
    model_config, policy = read_config(directory), config.policy
    if policy.sequence_parallel > 1:
        refuse_unshareable(model_config, policy.sequence_parallel)
    family = model_family(model_config.model_type)
    attention = ATTENTION[config.resources.gpus > 0]
    with torch.device("meta"):
        model = family.auto_class.from_config(
            model_config, dtype=DTYPES[policy.dtype], attn_implementation=attention
        )
        whole = make_trainable(model, policy)
        learner = LogprobModel(whole, policy.logprob_chunk_tokens)
    learner.train()
    # A tied output layer is one parameter of both.
    parameters = list(learner.parameters())
    row = config.rank_row_tokens
    sizes = {row, max(row, policy.micro_batch_tokens)}
    if config.resources.gpus:
        # For what fits on which GPU.
        sizes |= {size for size in LADDER if size > row}
    # The language model without a tower, whose layout depends on the sizes of pictures.
    base = whole.get_base_model() if isinstance(whole, PeftModel) else whole
    decoder = family.parts(base)["llm"][0].base_model
    try:
        peaks = {size: meter_update(learner, decoder, policy, size, row) for size in sorted(sizes)}
    # The forward of an architecture is not our code, and may fail in any way where it reads a value
    # that is not there. What is known without it is still told.
    except Exception:
        peaks = None
    text = model_config.get_text_config()
    # The embedding, norms, queries, keys and values, and three tensors of the feed-forward.
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return ModelSize(
        sum(parameter.numel() for parameter in parameters),
        *config_sizes(model_config.to_dict()),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        largest=max(parameter.numel() for parameter in parameters),
        width=6 * text.hidden_size + 3 * inner,
        peaks=peaks,
        vision=_vision_bytes(model_config, policy),
    )


def meter_update(
    learner: LogprobModel, decoder: Any, policy: PolicyConfig, tokens: int, row: int
) -> UpdatePeak:
    """Run a micro-batch of `tokens` forward and backward on the meta device.

    decoder: the layers of the learner's language model. row: what a rank has of the longest row.
    All tokens are in the loss, which takes the most.
    """
    rows = max(1, tokens // row)
    batch = torch.empty(rows, tokens // rows, dtype=torch.long, device="meta")
    # DeepSpeed's optimizer for bfloat16 at stage 1 adds all gradients of a micro-batch to the
    # float32 ones after its backward; at other stages each is taken over at once.
    keeps_gradients = (
        policy.dtype == "bfloat16"
        and policy.effective_zero_stage == 1
        and not offloads(policy, "offload_optimizer")
    )
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    taken_over = [] if keeps_gradients else trained
    hooks = [parameter.register_post_accumulate_grad_hook(forget) for parameter in taken_over]
    with LiveBytes([*learner.parameters(), *learner.buffers()]) as counted:
        hidden = decoder(input_ids=batch, use_cache=False).last_hidden_state
        forward = counted.peak
        # Rows of the loss are picked by a mask, whose number of tokens the meta device cannot know.
        picked, targets = hidden.flatten(0, 1).clone(), batch.flatten()
        temperature = torch.empty(len(targets), device="meta")
        kept, counted.peak = counted.live, counted.live
        logprobs, _ = learner.head(picked, targets, temperature)
        loss = logprobs.sum()
        of_head = [counted.peak]

        def end_head(grad: Tensor) -> None:
            of_head.append(counted.peak)
            counted.peak = counted.live

        # The gradient reaches the hidden states when the head's backward is over: what is made from
        # there on is the layers' own.
        picked.register_hook(end_head)
        loss.backward()
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        forget(parameter)
    logits = max(of_head)
    layers = max(forward, counted.peak)
    return UpdatePeak(layers, logits - kept, max(layers, logits))


def _vision_bytes(config: PretrainedConfig, policy: PolicyConfig) -> float:
    """Bytes of the vision tower's activations for each token of a micro-batch, estimated."""
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return 0.0
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    # As if all tokens were pictures, of which each token is made of a square of patches.
    patches = getattr(vision, "spatial_merge_size", 2) ** 2
    width = vision.hidden_size * DTYPES[policy.dtype].itemsize / 2
    is_trained = "vision" in (policy.train or []) or (policy.train is None and not policy.lora)
    # A tower that is not trained keeps nothing, and works in one layer at a time.
    kept = 0.0
    if is_trained:
        kept = layers * (2 if policy.checkpoint_every else LAYER_BYTES)
    return patches * width * (kept + LAYER_BYTES)
