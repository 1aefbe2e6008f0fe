"""One rank of preference optimisation: a plain class; stage.py makes Ray actors of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import load_from_disk
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from policy.dpo.checkpoints import last_checkpoint
from policy.dpo.pairs import PairCollator
from policy.learner.deepspeed_engine import free_address, join_ranks
from policy.models.family import open_visual_inputs
from policy.models.loading import DTYPES, load_policy
from policy.weights.full_weights import FullWeights, write_model_directory
from rl.config.run import Config

if TYPE_CHECKING:
    from policy.dpo.trainer import PairTrainer

# A file whose time says when rank 0 last began a micro-batch. A file, because the rank cannot
# answer a call of the driver while it trains.
HEARTBEAT = "heartbeat"


@dataclass(frozen=True)
class DpoTask:
    """What every rank is told."""

    config: Config
    source: Path
    """Directory of the policy as it is now, which is the reference too."""
    pairs: Path
    """What policy.dpo.pairs.keep_pairs wrote."""
    directory: Path
    """The stage's own; all ranks can reach it."""


class DpoRank:
    def __init__(self, task: DpoTask, rank: int) -> None:
        self._task = task
        self._rank = rank
        self._use_cuda = task.config.resources.gpus > 0

    def free_address(self) -> tuple[str, int]:
        """Return an address of this node and a port that is free on it."""
        return free_address()

    def train(self, address: str, port: int, target: Path) -> None:
        """Meet the other ranks, train to the last step and write the model directory `target`."""
        policy_config = self._task.config.policy
        join_ranks(self._task.config, self._rank, address, port)
        # LoRA adapters start with random weights, which must be the same on every rank.
        torch.manual_seed(self._task.config.seed)
        policy = load_policy(self._task.source, policy_config)
        weights = FullWeights(
            policy,
            DTYPES[policy_config.dtype],
            is_partitioned=policy_config.effective_zero_stage == 3,
        )
        # After the policy is loaded: see training_arguments.
        trainer = self._trainer(policy)
        # Every rank looks by itself and finds the same: the driver has removed torn ones before.
        checkpoint = last_checkpoint(self._task.directory)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        # Every rank takes part, because under ZeRO-3 each holds a share of every weight.
        write_model_directory(weights, self._task.source, target, is_writer=self._rank == 0)
        # No rank may report success before the writer has finished.
        torch.distributed.barrier()

    def _trainer(self, policy: PreTrainedModel | PeftModel) -> PairTrainer:
        # TRL takes seconds to load. The driver imports this module too and needs none of it.
        from policy.dpo.trainer import MetricsLog, PairTrainer, training_arguments

        task = self._task
        tokenizer = AutoTokenizer.from_pretrained(
            task.source, trust_remote_code=False, local_files_only=True
        )
        # Padding is masked in attention and in the loss, so any token serves.
        pad_token_id = tokenizer.pad_token_id or 0
        max_length = task.config.rollout.max_model_length
        inputs = open_visual_inputs(task.source, task.config.data)
        return PairTrainer(
            policy,
            task.config.align.dpo,
            # One rank is enough: the others wait for it in every collective.
            on_batch=(task.directory / HEARTBEAT).touch if self._rank == 0 else lambda: None,
            args=training_arguments(task.config, task.directory, self._use_cuda),
            train_dataset=load_from_disk(str(task.pairs)),
            data_collator=PairCollator(pad_token_id, inputs, max_length),
            processing_class=tokenizer,
            callbacks=[MetricsLog(task.directory / "metrics.jsonl", is_writer=self._rank == 0)],
        )
