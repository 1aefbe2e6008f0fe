"""Whole training steps beside TRL's GRPOTrainer: the same policy, prompts, modes and rule reward.

Two tasks. `built-in` is the recipe's own, at its own size. `long tail` is a policy of random
weights with the same architecture, whose answers end at a random token, up to 500 tokens long: a
batch waits for its longest answer, as real ones do. Neither side may learn (the learning rate is
next to nothing), so that every step is the same work.

Each side has the machine for itself, one after the other. Both train on all 8 responses of each
prompt in float32, at temperature 1, without KL and entropy terms.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from rl.assembly import RunInputs, gather_inputs, open_training
from rl.config.recipe import load
from rl.loop.loop import Parts, StepResult, TrainingLoop
from rl.loop.modes import draw_step, shares_at
from rl.loop.publish import CanaryCheck, publish
from rl.loop.stages import split_response

STEPS, WARMUP_STEPS = 8, 2
"""Steps that count, and steps before them: the first ones fill caches and pipelines."""
LONG_TAIL_TOKENS = 500
EQUAL_WORK = [
    # A rule reward is what TRL gets too, and nothing may change the lengths from step to step.
    "reward.probability=null",
    "reward.preference=null",
    "policy.optimizer.learning_rate=1e-12",
    "steps=1000",
    "eval.every=null",
]


async def against_trl(settings: list[str]) -> dict[str, Any]:
    """Measure both tasks; tokens (of prompts and responses) a second, and seconds a step."""
    results = {}
    if not any(setting.startswith("scale=") for setting in settings):
        # A policy of one's own, as the long tail has, would make `auto` take another scale for it.
        settings = [*settings, "scale=cpu_tiny"]
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "random_policy"
        tail = [f"policy.model={policy}", "rollout.prompts_per_step=16"]
        tail += [f"rollout.max_model_length={LONG_TAIL_TOKENS + 100}"]
        tail += [f"modes.{mode}.max_tokens={LONG_TAIL_TOKENS}" for mode in ("short", "long")]
        random_policy(gather_inputs(_config(settings, folder)).model, policy)
        for task, more in (("built-in", []), ("long tail", tail)):
            inputs = gather_inputs(_config([*settings, *more], folder))
            results[task] = row = {"trl": _trl(inputs, Path(folder))}
            for staleness in (0, 1):
                # A start of its own: what the learner takes of the cores depends on it.
                changed = [*settings, *more, f"rollout.max_staleness={staleness}"]
                name = f"ours, max_staleness={staleness}"
                row[name] = await _ours(gather_inputs(_config(changed, folder)))
            for side, (rate, seconds) in row.items():
                ratio = rate / row["trl"][0]
                print(
                    f"{task:10s} {side:24s} {rate:>9,.0f} tok/s {seconds:6.2f} s/step {ratio:5.2f}x"
                )
    return results


def random_policy(like: Path, out: Path) -> None:
    """Save a policy of random weights with the architecture and the tokenizer of another."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(like)
    config.max_position_embeddings = 2 * LONG_TAIL_TOKENS
    torch.manual_seed(0)
    shutil.copytree(like, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    AutoModelForCausalLM.from_config(config).save_pretrained(out)


def _config(settings: list[str], run: str) -> Any:
    return load([*settings, *EQUAL_WORK, f"run={run}/run"]).config


async def _ours(inputs: RunInputs) -> tuple[float, float]:
    config, results = inputs.config, list[StepResult]()

    async def keep(result: StepResult) -> bool:
        results.append(result)
        return len(results) < WARMUP_STEPS + STEPS

    async with open_training(inputs, lambda text: print(f"... {text}", flush=True)) as services:
        parts = Parts(
            inputs.stream, inputs.encode, services.engine, services.scorer, services.learner
        )
        await publish(services.learner, services.engine, 0, CanaryCheck.of(config))
        await TrainingLoop(config, parts, 0).run(keep)
    tokens = [
        sum(t.num_tokens for scored in r.groups for t in scored.group.trajectories) for r in results
    ]
    return _rates(tokens[WARMUP_STEPS:], [r.seconds["step"] for r in results[WARMUP_STEPS:]])


def _rates(tokens: list[int], seconds: list[float]) -> tuple[float, float]:
    """Tokens a second and seconds a step, both of the step in the middle.

    A disturbance of the machine makes one step in ten several times as long, on either side.
    """
    return (
        statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)),
        statistics.median(seconds),
    )


def _trl(inputs: RunInputs, folder: Path) -> tuple[float, float]:
    """Run TRL in a process of its own, so that neither side's threads are in the other's way."""
    config, rows = inputs.config, list(_rows(inputs))
    settings = {
        "model": str(inputs.model),
        "group_size": config.rollout.group_size,
        "prompts": config.rollout.prompts_per_step,
        "max_tokens": max(mode.max_tokens for mode in config.modes.values()),
        "rows": rows,
    }
    request, answer = folder / "request.json", folder / "answer.json"
    request.write_text(json.dumps(settings))
    command = [sys.executable, __file__, str(request), str(answer)]
    # As many threads as it takes by itself, whatever the shell says that started this.
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, check=False, env=env
    )
    if done.returncode:
        raise RuntimeError(f"TRL's trainer failed: {done.stderr[-2000:]}")
    measured = json.loads(answer.read_text())
    return _rates(measured["tokens"], measured["seconds"])


def _rows(inputs: RunInputs) -> Iterator[dict[str, Any]]:
    """The prompts of all steps, as the policy is given them, with their references."""
    config = inputs.config
    for step in range(WARMUP_STEPS + STEPS):
        prompts = inputs.stream.prompts(step)
        pins = [prompt.mode for prompt in prompts]
        modes = draw_step(config.seed, step, shares_at(config, step + 1), pins, config.rollout.draw)
        for prompt, mode in zip(prompts, modes, strict=True):
            text = inputs.chat.raw_text(inputs.encode(prompt, mode))
            thinking = config.modes[mode].thinking
            yield {"prompt": text, "reference": prompt.reference, "thinking": thinking}


def train_with_trl(request: Path, answer: Path) -> None:
    """Train, and write the tokens and seconds of the steps that count."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rewards.rules.verifier import verify_quickly

    given = json.loads(request.read_text())
    tokenizer = AutoTokenizer.from_pretrained(given["model"])

    def rule(completion_ids, reference, thinking, **_: Any) -> list[float]:
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=False)
        scores = []
        for text, right, is_open in zip(texts, reference, thinking, strict=True):
            _, answer = split_response(text.removesuffix(tokenizer.eos_token), is_open)
            scores.append(verify_quickly(right, answer or "", "auto", "").accuracy or 0.0)
        return scores

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_: Any) -> None:
            ends.append(time.monotonic())

    batch = given["prompts"] * given["group_size"]
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=given["model"],
            reward_funcs=rule,
            train_dataset=Dataset.from_list(given["rows"]),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=batch,
                num_generations=given["group_size"],
                max_completion_length=given["max_tokens"],
                max_steps=WARMUP_STEPS + STEPS,
                learning_rate=1e-12,
                gradient_checkpointing=False,
                bf16=False,
                shuffle_dataset=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
        )
        trainer.train()
    logged = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    tokens = [after - before for before, after in pairwise(logged)]
    seconds = [after - before for before, after in pairwise(ends)]
    first = WARMUP_STEPS - 1
    answer.write_text(json.dumps({"tokens": tokens[first:], "seconds": seconds[first:]}))


if __name__ == "__main__":
    train_with_trl(Path(sys.argv[1]), Path(sys.argv[2]))
