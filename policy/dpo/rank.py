"""One rank of preference optimisation: a plain class; stage.py makes Ray actors of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import AutoTokenizer

from policy.dpo.pairs import PairCollator
from policy.learner.deepspeed_engine import free_address, join_ranks
from policy.models.family import open_visual_inputs
from policy.models.loading import DTYPES, load_policy
from policy.weights.full_weights import FullWeights, write_model_directory
from rl.config.run import Config

# A file whose time says when rank 0 last began a micro-batch. A file, because the rank cannot
# answer a call of the driver while it trains.
HEARTBEAT = "heartbeat"


@dataclass
class DpoRank:
    config: Config
    source: Path
    """Directory of the policy as it is now, which is the reference too."""
    pairs: Path
    """What policy.dpo.pairs.keep_pairs wrote."""
    directory: Path
    """The stage's own; all ranks can reach it."""
    reference_batch_size: int
    """Pairs that a rank forwards at once in the pass over the reference."""
    checkpoint: Path | None
    """The checkpoint that the training goes on from, if any."""
    rank: int

    def free_address(self) -> tuple[str, int]:
        """Return an address of this node and a port that is free on it."""
        return free_address()

    def train(self, address: str, port: int, target: Path) -> None:
        """Meet the other ranks, train to the last step and write the model directory `target`."""
        config, is_writer = self.config, self.rank == 0
        join_ranks(config, self.rank, address, port)
        # LoRA adapters start with random weights, which must be the same on every rank.
        torch.manual_seed(config.seed)
        policy = load_policy(self.source, config.policy)
        is_partitioned = config.policy.effective_zero_stage == 3
        weights = FullWeights(policy, DTYPES[config.policy.dtype], is_partitioned)
        tokenizer = AutoTokenizer.from_pretrained(
            self.source, trust_remote_code=False, local_files_only=True
        )
        inputs = open_visual_inputs(self.source, config.data)
        # TRL takes seconds to load. The driver imports this module too and needs none of it.
        from policy.dpo.trainer import MetricsLog, PairTrainer, training_arguments

        trainer = PairTrainer(
            policy,
            config.align.dpo,
            # One rank is enough: the others wait for it in every collective.
            on_batch=(self.directory / HEARTBEAT).touch if is_writer else lambda: None,
            # After the policy is loaded: see training_arguments.
            args=training_arguments(config, self.directory, use_cuda, self.reference_batch_size),
            train_dataset=load_from_disk(str(self.pairs)),
            # Padding is masked in attention and in the loss, so any token serves.
            data_collator=PairCollator(
                tokenizer.pad_token_id or 0, inputs, config.rollout.max_model_length
            ),
            processing_class=tokenizer,
            callbacks=[MetricsLog(self.directory / "metrics.jsonl", is_writer)],
        )
        trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
        # Every rank takes part, because under ZeRO-3 each holds a share of every weight.
        write_model_directory(weights, self.source, target, is_writer=is_writer)
        # No rank may report success before the writer has finished.
        torch.distributed.barrier()
