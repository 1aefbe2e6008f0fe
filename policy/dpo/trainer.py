"""TRL's DPO trainer over token ids and our visual inputs.

The loss (https://arxiv.org/abs/2305.18290, eq. 7), the pass over the reference and the step are
TRL's and accelerate's own. PairTrainer replaces what would tokenise texts, load pictures or write
files that nothing here needs.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from policy.dpo.pairs import COMPLETE, MEDIA, training_order
from policy.learner.deepspeed_engine import COLLECTIVE_TIMEOUT, deepspeed_config
from policy.learner.learning_rate import learning_rate_at
from policy.models.family import model_family
from rl.config.align import DpoConfig
from rl.config.run import Config
from rl.run.files import write_text
from rl.run.sinks import JsonlSink

REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")
METRICS = {
    "loss": "dpo/loss",
    "rewards/margins": "dpo/margin",
    "rewards/accuracies": "dpo/accuracy",
    "rewards/chosen": "dpo/chosen_reward",
    "rewards/rejected": "dpo/rejected_reward",
    "logps/chosen": "dpo/chosen_logprob",
    "logps/rejected": "dpo/rejected_logprob",
    "entropy": "policy/entropy",
    "grad_norm": "policy/grad_norm",
    "learning_rate": "optim/learning_rate",
}
"""Our names of what TRL logs. The margin is beta times the difference of the log-ratios."""


class PairTrainer(DPOTrainer):
    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        dpo: DpoConfig,
        on_batch: Callable[[], None],
        **arguments: Any,
    ) -> None:
        """on_batch: called before each micro-batch. arguments: DPOTrainer's."""
        self._dpo = dpo
        self._on_batch = on_batch
        _show_backbone(model)
        super().__init__(model=model, **arguments)
        # Trainer adds it by itself where progress bars are off; the driver shows the steps.
        self.remove_callback(PrinterCallback)
        # The data set is laid out in the order of training and read from front to end. So a resumed
        # run, and one with other ranks or micro-batches, trains on the same pairs in each step.
        # Only after TRL has added the reference log-probabilities, which it computes once a row.
        order = training_order(len(self.train_dataset), dpo.steps * dpo.batch_size, self.args.seed)
        self.train_dataset = self.train_dataset.select(order)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Rows are token ids already; TRL would tokenise texts."""
        return dataset

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch on the device, with the media as arguments of the model."""
        self._on_batch()
        device = self.args.device
        # Trainer would bring every float to DeepSpeed's type. In bfloat16 that rounds a
        # log-probability of some hundreds to a whole number, more than the margin of a pair.
        apart = {*REFERENCES, MEDIA}
        prepared = super()._prepare_inputs({k: v for k, v in inputs.items() if k not in apart})
        prepared |= {name: inputs[name].to(device) for name in REFERENCES if name in inputs}
        media = inputs.get(MEDIA)
        if media is not None and media.visual is not None:
            prepared |= media.visual.arguments(device, self.model.dtype)
        return prepared

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        # TRL's pass over the reference hands batches on without Trainer's own preparation.
        return super().compute_ref_log_probs(model, self._prepare_inputs(inputs))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The learner's schedule."""
        settings, steps = self._dpo.optimizer, self._dpo.steps
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer,
            lambda done: learning_rate_at(settings, done + 1, steps) / settings.learning_rate,
        )
        return self.lr_scheduler

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Takes the place of what a run does without."""

    # A checkpoint is DeepSpeed's state, and the result is written by the rank. The model card of an
    # export says what was trained. A run reports to nobody.
    save_model = create_model_card = _send_telemetry = _nothing

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # The mark comes last, when every rank has written its share: a checkpoint without it is
        # torn and not resumed from.
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_text(checkpoint / COMPLETE, "")


def _show_backbone(model: PreTrainedModel | PeftModel) -> None:
    """Give a model of our own the two attributes that TRL reads of transformers' models."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    backbone = model_family(base.config.model_type).backbone(base)
    if backbone is base.base_model:
        return
    # Set past nn.Module, because a submodule would list the model's parameters a second time.
    vars(base)["_backbone"] = backbone
    base.base_model_prefix = "_backbone"
    base.generation_config = GenerationConfig()


class MetricsLog(TrainerCallback):
    """Curves in metrics.jsonl; a loss that is not a number ends the training."""

    def __init__(self, path: Path, is_writer: bool) -> None:
        self._sink = JsonlSink(path) if is_writer else None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any
    ) -> None:
        # Trainer also logs a summary at the end, which belongs to no step.
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"the DPO loss of step {state.global_step} is {logs['loss']}; lower "
                "align.dpo.optimizer.learning_rate"
            )
        if self._sink is not None:
            metrics = {ours: logs[theirs] for theirs, ours in METRICS.items() if theirs in logs}
            self._sink.write(state.global_step, metrics)


def training_arguments(
    config: Config, directory: Path, use_cuda: bool, reference_batch_size: int
) -> DPOConfig:
    """What Trainer, TRL, accelerate and DeepSpeed are told.

    Make them after the policy is loaded: under ZeRO-3 they tell transformers to load every model
    from then on in shares, one a rank. reference_batch_size: see policy/dpo/pairs.py. Raises
    ValueError if the batch is not a whole number of micro-batches.
    """
    policy, dpo = config.policy, config.align.dpo
    optimizer, accumulation = dpo.optimizer, dpo.accumulation(policy.ranks)
    return DPOConfig(
        output_dir=str(directory),
        beta=dpo.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=reference_batch_size,
        max_steps=dpo.steps,
        per_device_train_batch_size=dpo.micro_batch_pairs,
        gradient_accumulation_steps=accumulation,
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        optim="adamw_torch_fused" if use_cuda else "adamw_torch",
        # The learner's configuration. Micro-batches are accelerate's affair here: it marks and
        # counts them, and these are the sizes that it goes by.
        deepspeed=deepspeed_config(policy.model_copy(update={"optimizer": optimizer}))
        | {
            "train_micro_batch_size_per_gpu": dpo.micro_batch_pairs,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": optimizer.max_grad_norm,
        },
        bf16=policy.dtype == "bfloat16",
        gradient_checkpointing=bool(policy.gradient_checkpointing),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # The order is that of the data set: see PairTrainer.
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=use_cuda,
        save_steps=dpo.checkpoint_every,
        # The one before must stay until the newest is complete.
        save_total_limit=2,
        logging_steps=1,
        # A loss that is not a number must reach MetricsLog, which ends the training.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not use_cuda,
        seed=config.seed,
        ddp_timeout=int(COLLECTIVE_TIMEOUT.total_seconds()),
    )
