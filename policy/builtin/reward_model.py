"""The built-in tiny reward model: prefers right sums to wrong ones, made once on this machine.

It stands in for a reward model trained on human preferences where none can be downloaded. It is the
tiny policy with a classification head, trained with TRL on pairs of answers to the questions of the
built-in task. It starts from the policy, which adds already, because from random weights adding is
not learned in the time. The training runs in a process of its own, because a TRL trainer decides
for its whole process on which device accelerate computes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pydantic import TypeAdapter
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3ForSequenceClassification,
    TrainerCallback,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from policy.builtin.text_policy import ensure_tiny_policy
from policy.builtin.warmup import shown_warmup
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.stages import OnStep
from rl.data.tasks.chain_sum import question

MISTAKES = ("off_by_one", "off_by_more", "ill_formed")
NOT_DIGITS = "abcdefgh+=?. "
# Forty times what it takes on one core.
TRAINING_TIMEOUT_S = 1800.0

# One thread, no GPU and no network for the process that trains.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
}
# The caller may be part of a distributed training, which accelerate would try to join.
NOT_INHERITED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class RewardModelRecipe:
    """Everything that decides the weights besides the policy they start from."""

    seed: int = 1
    """Of the questions; also of the head, the mistakes and their order."""
    steps: int = 600
    pairs_per_step: int = 64
    shares: tuple[float, ...] = (0.35, 0.45, 0.2)
    """How often the rejected answer makes each of MISTAKES."""
    learning_rate: float = 1.5e-3
    rise_steps: int = 30
    """Steps of linear rise; then linear fall to 0 at `steps`."""
    weight_decay: float = 0.01
    heldout_questions: int = 400
    """Questions of the held-out split per mistake, for the report."""


def ensure_tiny_reward_model(
    cache_dir: Path | None = None,
    policy: Path | None = None,
    recipe: RewardModelRecipe | None = None,
    seed: int | None = None,
) -> Path:
    """Return the directory of a Qwen3ForSequenceClassification model, making it on first use.

    policy: the tiny policy whose tokenizer and layers it starts from; made if not given. seed: in
    place of the recipe's, and of the policy that is made for it. The first use takes about a minute
    on one core, and another one for the policy.
    """
    cache_dir = cache_dir or default_cache_dir()
    policy = policy or ensure_tiny_policy(cache_dir, seed)
    recipe = recipe or RewardModelRecipe()
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    decides = [asdict(recipe), MISTAKES, NOT_DIGITS, policy.name]

    def write(directory: Path) -> None:
        command = [sys.executable, "-m", "policy.builtin.reward_model"]
        command += [str(directory), str(policy), json.dumps(asdict(recipe))]
        kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        environment = kept | ENVIRONMENT
        ended = subprocess.run(command, env=environment, timeout=TRAINING_TIMEOUT_S, check=False)
        if ended.returncode:
            raise RuntimeError(
                f"training the tiny reward model ended with status {ended.returncode}; its own "
                "message stands above on standard error"
            )

    return made_once(cache_dir / f"tiny-reward-{digest(decides)}", write)


def train(directory: Path, policy: Path, recipe: RewardModelRecipe) -> None:
    """Train the model and write it into an existing directory, with its report `training.json`."""
    # Imported on use: trl takes seconds, and whoever finds the model in the cache needs none of it.
    from trl import RewardConfig, RewardTrainer

    started = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = Qwen3ForSequenceClassification.from_pretrained(
        policy, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    )
    with tempfile.TemporaryDirectory() as aside, shown_warmup(recipe.steps, "reward model") as show:
        arguments = RewardConfig(
            output_dir=aside,
            seed=recipe.seed,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.pairs_per_step,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.rise_steps,
            weight_decay=recipe.weight_decay,
            adam_beta2=0.98,
            # No pair is cut or left out for its length.
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model,
            arguments,
            train_dataset=_training_pairs(tokenizer, recipe),
            processing_class=tokenizer,
            callbacks=[_ShowLoss(show)],
        )
        # It would print every loss on standard output.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    count = recipe.heldout_questions
    accuracy = {kind: heldout_accuracy(model, tokenizer, kind, count) for kind in MISTAKES}
    seconds = round(time.monotonic() - started, 1)
    report = {"steps": recipe.steps, "seconds": seconds, "accuracy": accuracy}
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "training.json").write_text(json.dumps(report, indent=2) + "\n")


class _ShowLoss(TrainerCallback):
    def __init__(self, show: OnStep) -> None:
        self._show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self._show(state.global_step, float(logs["loss"]))


def _training_pairs(tokenizer: PreTrainedTokenizerFast, recipe: RewardModelRecipe) -> Dataset:
    """One question per pair, each seen once."""
    rng = np.random.default_rng(recipe.seed)
    count = recipe.steps * recipe.pairs_per_step
    mistakes = enumerate(rng.choice(MISTAKES, size=count, p=recipe.shares))
    pairs = [_pair(rng, recipe.seed, index, False, mistake) for index, mistake in mistakes]
    chosen, rejected = (_encode(tokenizer, side) for side in zip(*pairs, strict=True))
    return Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})


def _pair(
    rng: np.random.Generator, seed: int, index: int, heldout: bool, mistake: str
) -> tuple[Conversation, Conversation]:
    asked = question(seed, index, heldout)
    answers = (asked.answer, wrong_answer(rng, int(asked.answer), mistake))
    user = {"role": "user", "content": asked.text}
    chosen, rejected = ([user, {"role": "assistant", "content": answer}] for answer in answers)
    return chosen, rejected


def wrong_answer(rng: np.random.Generator, total: int, mistake: str) -> str:
    """Return an answer that makes this mistake where `total`, of two digits, is right.

    Ill-formed: no answer, too few or too many digits, or something else beside or in place of one.
    """
    if mistake == "ill_formed":
        # All forms are drawn before one is taken, so the numbers drawn do not depend on it.
        other = NOT_DIGITS[rng.integers(len(NOT_DIGITS))]
        forms = (
            "",
            str(rng.integers(10)),
            str(rng.integers(100, 1000)),
            f"{total // 10}{other}",
            f"{other}{total % 10}",
            f"{total}{other}",
        )
        return forms[rng.integers(len(forms))]
    while True:
        if mistake == "off_by_one":
            wrong = total + int(rng.choice((-1, 1)))
        # Half of these are off by at most five, because over the whole range most would be far off.
        elif rng.random() < 0.5:
            wrong = total + int(rng.choice((-5, -4, -3, -2, 2, 3, 4, 5)))
        else:
            wrong = int(rng.integers(10, 70))
        if 10 <= wrong < 100 and (mistake == "off_by_one" or abs(wrong - total) > 1):
            return str(wrong)


def _encode(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterable[Conversation]
) -> list[list[int]]:
    texts = tokenizer.apply_chat_template(list(conversations), tokenize=False)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def heldout_accuracy(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    mistake: str,
    num_questions: int,
) -> float:
    """Share of held-out questions whose right answer scores above one with this mistake."""
    # Always the same wrong answers, so that two models are measured on the same pairs.
    rng = np.random.default_rng(0)
    pairs = [_pair(rng, 0, index, True, mistake) for index in range(num_questions)]
    scores = []
    for side in zip(*pairs, strict=True):
        rows = {"input_ids": _encode(tokenizer, side)}
        batch = tokenizer.pad(rows, padding_side="right", return_tensors="pt")  # [B, T]
        scores.append(model.eval()(**batch).logits[:, 0])  # [B]
    return int((scores[0] > scores[1]).sum()) / num_questions


if __name__ == "__main__":
    disable_progress_bar()
    set_verbosity_error()
    written_to, started_from, decided = sys.argv[1:]
    recipe = TypeAdapter(RewardModelRecipe).validate_json(decided)
    train(Path(written_to), Path(started_from), recipe)
