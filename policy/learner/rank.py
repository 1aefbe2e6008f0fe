"""One learner rank: the policy under DeepSpeed, its updates, its weights and its checkpoints.

Every rank takes its share of a plan that is the same for all of them (shares.py), so ranks agree on
who forwards what without talking. A plain class; policy/learner/learner.py makes Ray actors of it.
"""

import gc
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from policy.learner.deepspeed_engine import (
    deepspeed_config,
    free_address,
    join_ranks,
    open_engine,
)
from policy.learner.learning_rate import learning_rate_at
from policy.learner.logprobs import LogprobModel, wants_kernel
from policy.learner.reshard import Layout, take_share
from policy.learner.sequence_parallel import share_sequences
from policy.learner.shares import SharedBatch, Update, divide, plan_rows
from policy.learner.usage import ModelFlops, RankUsage
from policy.models.family import open_visual_inputs, unsampled_token_ids
from policy.models.loading import DTYPES, load_policy
from policy.weights.full_weights import AdapterWeights, FullWeights, write_model_directory
from rl.config.run import Config
from rl.loop.batching import MicroBatch, collate, reference_sample
from rl.loop.losses import (
    LossInputs,
    choice_loss,
    mean_log_ratios,
    policy_loss,
    reduce_sums,
    token_weights,
)
from rl.loop.stages import Canary, ReferenceRequest, TrainBatch, TrainSample, WeightProof
from rl.loop.step_guard import wrong_loss, wrong_norm
from rl.system.vitals import Watched

CHECKPOINT_TAG = "learner"


@dataclass(frozen=True)
class RankUpdate:
    """What a rank reports of one batch."""

    sums: dict[str, float]
    """This rank's metric sums (rl/loop/losses.py)."""
    mismatches: dict[int, float]
    """Of the samples that this rank forwarded, by their place in the batch (BatchUpdate)."""
    grad_norm: float
    """Norm of the global gradient before clipping, mean over the updates; equal on all ranks."""
    learning_rate: float
    num_updates: int
    seconds: float
    usage: RankUsage
    skipped: str | None
    """Why an optimizer step was not taken; equal on all ranks."""


class LearnerRank(Watched):
    def __init__(self, config: Config, model: Path, rank: int) -> None:
        """model: the directory the policy is loaded from."""
        self._config = config
        self._source = model
        self._rank = rank
        self._use_cuda = config.resources.gpus > 0
        self._device = torch.device("cuda:0" if self._use_cuda else "cpu")

    def free_address(self) -> tuple[str, int]:
        return free_address()

    def start(self, address: str, port: int) -> None:
        """Meet the other ranks and load the policy; returns when this rank can update."""
        policy_config = self._config.policy
        join_ranks(self._config, self._rank, address, port)
        self._dtype = DTYPES[policy_config.dtype]
        # The same initial adapter on every rank.
        torch.manual_seed(self._config.seed)
        is_partitioned = policy_config.effective_zero_stage == 3
        # Divided as it is loaded: whole on every rank, a large model fits into no node.
        zero3 = deepspeed_config(policy_config) if is_partitioned else None
        policy = load_policy(self._source, policy_config, zero3)
        self._weights = FullWeights(policy, self._dtype, is_partitioned)
        self._flops = ModelFlops.of(policy)
        self._sent, self._adapter = self._weights, None
        if isinstance(policy, PeftModel):
            # The engines hold the base, which does not change, and apply the adapter themselves:
            # merged into bfloat16 weights, an update below half a rounding step would vanish.
            self._sent = FullWeights(policy, self._dtype, is_partitioned, beside_adapter=True)
            self._adapter = AdapterWeights(policy, is_partitioned)
        self._visual_inputs = open_visual_inputs(self._source, self._config.data)
        unsampled = unsampled_token_ids(self._source)
        is_fused = wants_kernel(
            policy_config.logprobs, policy.get_output_embeddings(), self._use_cuda
        )
        model = LogprobModel(policy, policy_config.logprob_chunk_tokens, unsampled, is_fused)
        self._engine = open_engine(model, policy_config, self._use_cuda)
        if policy_config.sequence_parallel > 1:
            model.share = share_sequences(
                policy.config, policy_config.sequence_parallel, self._rank
            )
        self._gate = None
        if policy_config.effective_zero_stage > 0:
            # Imported here: it brings DeepSpeed, which reads the environment that is set above.
            from policy.learner.step_gate import StepGate

            self._gate = StepGate(self._engine.optimizer)
        self._engine.train()
        # As often as Python does by itself (rl/system/worker_logs.py): tensors of a step that are
        # garbage would wait in the GPU's memory.
        gc.set_threshold(700, 10, 10)

    def update(self, batch: TrainBatch | SharedBatch) -> RankUpdate:
        """Take the optimizer steps of one batch; all ranks are given the same batch."""
        started = time.monotonic()
        if self._use_cuda:
            torch.cuda.reset_peak_memory_stats()
        optimizer = self._config.policy.optimizer
        learning_rate = learning_rate_at(optimizer, batch.step, self._config.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if isinstance(batch, SharedBatch):
            updates = batch.of_rank(self._rank)
        else:
            updates = self.plan(batch.samples)
        old_logprobs: list[list[Tensor] | None] = [None] * len(updates)
        # With one update the forward that trains gives them too, and saves a second forward.
        if len(updates) > 1:
            old_logprobs = [
                [self._logprobs([*rows.values()]) for rows in update.micro_batches]
                for update in updates
            ]
        parts: list[dict[str, Tensor]] = []
        mismatches: dict[int, float] = {}
        grad_norms = []
        wrong = None
        for update, old in zip(updates, old_logprobs, strict=True):
            sums, log_ratios = self.accumulate(update, old)
            parts += sums
            mismatches |= log_ratios
            # After a step that is not taken the others of the batch are not either. They are gone
            # through all the same, for the figures of their samples.
            norm, wrong = self._step(wrong or self._wrong_loss(sums))
            grad_norms.append(norm)
        self._give_memory_back()
        return RankUpdate(
            sums=reduce_sums(parts),
            mismatches=mismatches,
            grad_norm=sum(grad_norms) / len(grad_norms),
            learning_rate=learning_rate,
            num_updates=len(updates),
            seconds=time.monotonic() - started,
            usage=RankUsage.now(self._flops, self._use_cuda),
            skipped=wrong,
        )

    def plan(self, samples: Sequence[TrainSample]) -> list[Update]:
        """Return this rank's share of each optimizer step."""
        return divide(samples, self._config)[self._rank]

    def accumulate(
        self, update: Update, old_logprobs: Sequence[Tensor] | None
    ) -> tuple[list[dict[str, Tensor]], dict[int, float]]:
        """Leave the gradient of the whole update, over all ranks, in the engine.

        Returns the metric sums of each micro-batch, and the mismatch of each sample of this rank.
        old_logprobs: per micro-batch; None takes the policy's own, for a single update per batch.
        """
        last, has_choices = len(update.micro_batches) - 1, bool(self._config.choosing)
        parts: list[dict[str, Tensor]] = []
        mismatches: dict[int, float] = {}
        for place, samples in enumerate(update.micro_batches):
            self._engine.set_gradient_accumulation_boundary(place == last)
            micro_batch, logprobs, entropies = self._forward([*samples.values()])
            mask, algorithm = micro_batch.loss_mask, self._config.algorithm
            old = logprobs.detach() if old_logprobs is None else old_logprobs[place]
            of_choices = None
            if has_choices:
                is_choice = micro_batch.is_choice
                of_choices = (logprobs[is_choice], old[is_choice], entropies[is_choice])
                logprobs, old = logprobs[~is_choice], old[~is_choice]
                entropies = entropies[~is_choice]
            inputs = LossInputs(
                loss_mask=mask,
                policy_logprobs=logprobs,
                old_logprobs=old,
                rollout_logprobs=micro_batch.rollout_logprobs[mask],
                advantages=micro_batch.advantages[:, None].expand(mask.shape)[mask],
                weights=token_weights(mask, update.counts, algorithm),
                entropies=entropies,
            )
            loss, sums = policy_loss(inputs, algorithm)
            if of_choices is not None:
                added, more = choice_loss(*of_choices, micro_batch, update.counts, algorithm)
                loss, sums = loss + added, sums | more
            lengths = [sample.num_loss_tokens for sample in samples.values()]
            # Against the log-probabilities from before the first step of the batch: later ones
            # would measure how far the policy has moved, and not how far the engine is off.
            ratios = mean_log_ratios(inputs.old_logprobs, inputs.rollout_logprobs, lengths)
            mismatches |= zip(samples, ratios, strict=True)
            # DeepSpeed averages over ranks; the loss is already divided by global counts.
            self._engine.backward(loss * self._config.policy.ranks)
            parts.append(sums)
        return parts, mismatches

    def _wrong_loss(self, parts: Sequence[Mapping[str, Tensor]]) -> str | None:
        """What is wrong with the loss of an update over all ranks, which get the same answer."""
        own = reduce_sums(parts)
        figures = [own.get(key, 0.0) for key in ("loss", "mismatch_kl", "num_loss_tokens")]
        total = torch.tensor(figures, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(total)
        loss, mismatch, num_tokens = total.tolist()
        return wrong_loss(loss, mismatch / max(num_tokens, 1.0), self._config.guard)

    def _step(self, wrong: str | None) -> tuple[float, str | None]:
        """Clip and take the optimizer step, unless something is or goes wrong.

        Returns the norm that the gradient had, and what is wrong. All ranks decide alike.
        """
        guard = self._config.guard
        if self._gate is not None:
            norm = self._gate.step(
                self._engine, lambda norm: wrong is None and wrong_norm(norm, guard) is None
            )
            return norm, wrong or wrong_norm(norm, guard)
        # At stage 0 every rank holds the whole gradient after the reduction, so all clip alike.
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self._engine.module.parameters(), self._config.policy.optimizer.max_grad_norm
            )
        )
        wrong = wrong or wrong_norm(norm, guard)
        if wrong is None:
            self._engine.step()
        else:
            # Without the engine's step, which clips too and needs gradients for that.
            self._engine.module.zero_grad(set_to_none=True)
        return norm, wrong

    def _forward(
        self, samples: Sequence[TrainSample], is_sampled: bool = True
    ) -> tuple[MicroBatch, Tensor, Tensor]:
        """The samples as a micro-batch, and logprobs and entropies of loss tokens and choices."""
        micro_batch = collate(samples)
        visual = self._visual_inputs and self._visual_inputs(samples, micro_batch.token_ids)
        # After the visual inputs, which count tokens on the CPU.
        micro_batch = micro_batch.to(self._device)
        logprobs, entropies = self._engine(
            micro_batch.token_ids,
            micro_batch.scored_mask,
            micro_batch.temperature,
            visual and visual.arguments(self._device, self._dtype),
            is_sampled,
        )
        return micro_batch, logprobs, entropies

    @torch.no_grad()
    def _logprobs(self, samples: Sequence[TrainSample], is_sampled: bool = True) -> Tensor:
        _, logprobs, _ = self._forward(samples, is_sampled)
        return logprobs

    def reference_logprobs(
        self, requests: Sequence[ReferenceRequest]
    ) -> dict[int, tuple[float, ...]]:
        """Log-probabilities of reference tokens, by place of the request; this rank's share.

        All ranks are given the same requests, and together they answer each once.
        """
        samples = []
        for request in requests:
            context = request.context_token_ids
            if self._visual_inputs is not None:
                # The request has one marker per medium, the policy reads many tokens of it.
                context = self._visual_inputs.expanded(context, request.prompt.media)
            samples.append(reference_sample(request, context))
        lengths = [sample.trajectory.num_tokens for sample in samples]
        answers: dict[int, tuple[float, ...]] = {}
        for rows in plan_rows(lengths, self._config)[self._rank]:
            flat = self._logprobs([samples[place] for place in rows], is_sampled=False).tolist()
            for place in rows:
                count = samples[place].trajectory.num_response_tokens
                answers[place], flat = tuple(flat[:count]), flat[count:]
        return answers

    def canary_logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of the canary's response tokens, at temperature 1."""
        request, trajectory = self._canary.request, self._canary.trajectory
        # At temperature 1 on both sides: dividing the logits would shrink a difference.
        sample = TrainSample(trajectory, 0.0, 1.0, "canary", request.prompt.media)
        return tuple(self._logprobs([sample], is_sampled=False).tolist())

    def connect_engines(
        self, workers: Sequence[Any], canary: Canary, address: tuple[str, int]
    ) -> None:
        """Meet the rollout workers (Ray actors), at rank 0's address; all ranks take part."""
        # Brings vLLM, which takes seconds: the driver imports this module too and needs none of it.
        from policy.weights.sender import WeightSender

        self._canary = canary
        self.sender = WeightSender(
            self._config, self._rank, self._sent, self._adapter, workers, address
        )

    def send_weights(self, version: int) -> WeightProof:
        """Transfer every tensor and return this rank's proof; only rank 0's has digests."""
        seconds = self.sender.send()
        proof = WeightProof(version, self.sender.digests, self.canary_logprobs(), seconds)
        self._give_memory_back()
        return proof

    def _give_memory_back(self) -> None:
        """Let go of the memory that PyTorch keeps for later, which an engine here wakes up in."""
        if self._use_cuda and self._config.engines_sleep:
            torch.cuda.empty_cache()

    def save(self, directory: Path) -> None:
        """Write `state/` (DeepSpeed, for `load`) and `model/` (Hugging Face, for vLLM).

        Under LoRA also `adapter/`, by itself: `model/` has it added to the base and rounded.
        """
        # Frozen weights are those of the policy's directory, from which a resumed rank has them
        # again: the base of an adapter is a hundred times as large as the adapter.
        self._engine.save_checkpoint(
            str(directory / "state"), tag=CHECKPOINT_TAG, exclude_frozen_parameters=True
        )
        write_model_directory(
            self._weights, self._source, directory / "model", is_writer=self._rank == 0
        )
        if self._adapter is not None:
            self._adapter.write(self._source, directory / "adapter", is_writer=self._rank == 0)
        if self._rank == 0:
            Layout.of(self._config.policy).write(directory / "state")
        # So that no rank reports a checkpoint which another one is still writing.
        torch.distributed.barrier()

    def load(self, directory: Path) -> None:
        """Continue from `save`; raises ValueError if there is no complete checkpoint."""
        layout = Layout.of(self._config.policy)
        saved_by = Layout.read(directory / "state") or layout
        if saved_by != layout:
            take_share(self._engine, layout, directory / "state" / CHECKPOINT_TAG, saved_by)
            return
        path, _ = self._engine.load_checkpoint(
            str(directory / "state"), tag=CHECKPOINT_TAG, custom_load_fn=load_trained
        )
        # DeepSpeed warns and goes on from nothing where a checkpoint is missing; a resumed run must
        # not.
        if path is None:
            raise ValueError(
                f"{directory} holds no learner checkpoint; resume from a step that was saved"
            )

    def visible_devices(self) -> str:
        """Return the CUDA devices Ray gave this rank, as CUDA_VISIBLE_DEVICES has them."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def load_trained(src: Mapping[str, Tensor], dst: torch.nn.Module) -> None:
    """Load a checkpoint's weights, of which frozen ones may be missing; raises RuntimeError."""
    result = dst.load_state_dict(src, strict=False)
    frozen = {name for name, weight in dst.named_parameters() if not weight.requires_grad}
    # DeepSpeed would take any difference as an error, or with strict=False none.
    if wrong := sorted({*result.missing_keys, *result.unexpected_keys} - frozen):
        raise RuntimeError(
            f"the checkpoint's weights are not those of the policy: {wrong[:3]} are only on one "
            "side"
        )
