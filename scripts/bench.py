"""Measures each part against the bare library on the same work, in one run, as ratios.

    python scripts/bench.py
    python scripts/bench.py config=hybrid_50_50.yaml scale=one_gpu rounds=9 out=FILE.json
    python scripts/bench.py against=trl
    python scripts/bench.py against=nothing
    python scripts/bench.py scale=one_gpu against=learner

Prints: tokens/s through the rollout workers against bare vLLM on the same requests; learner
tokens/s against a bare PyTorch loop on the same batches, with peak memory and MFU on a GPU; the
seconds of one publish by part; reward scores/s; references scored by forced decoding against
prompt_logprobs; verdicts/s of the rules against bare math-verify; and the share of step time in
which either side waits, and for what, from a short training run. Rounds alternate, so that a
disturbance of the machine falls on both sides; the ratio is that of the medians, the spread is min
to max.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import ray
from bench_driver import bench_driver
from bench_learner import learner_rows, model_config, refuse_cpu
from bench_trl import against_trl
from pydantic import Field

from policy.builtin.names import builtin_policy
from policy.models.cache import find_model
from rewards.rules.verifier import symbolic, verify_quickly
from rewards.text.workers import WorkerPool
from rl.assembly import RunInputs, TrainingServices, gather_inputs, open_training
from rl.config.recipe import load
from rl.config.run import Config
from rl.loop.loop import Parts, StepResult, TrainingLoop, train_request
from rl.loop.modes import draw_step, shares_at
from rl.loop.publish import CanaryCheck, publish
from rl.loop.stages import (
    ReferenceRequest,
    RolloutRequest,
    ScoredGroup,
    TrainBatch,
    TrainSample,
)
from rl.run.command import Command, Keys, RecipeName, ScaleName
from rl.system.engine_environment import engine_environment
from rollout.engines.worker import RolloutWorker, WorkerSettings

TRAINING_STEPS = 8
SETTLE_S = 1.5
"""vLLM's processes spin for a second after their last message, on cores the other side needs."""
CONTEXT_TOKENS, REFERENCE_TOKENS, SCORED_CONTEXTS = 1000, 8, 64


class BareEngine:
    """vLLM's own offline engine, with the arguments of our workers and nothing of ours."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**arguments)

    def generate(self, requests: list[RolloutRequest]) -> tuple[float, int]:
        """Seconds and response tokens for the requests, with their logprobs and text as output."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": list(r.prompt_token_ids)} for r in requests]
        sampling = [
            SamplingParams(
                n=r.n,
                max_tokens=r.max_tokens,
                temperature=r.temperature,
                seed=r.seed,
                logprobs=0,
                flat_logprobs=True,
                # Our workers deliver text too; they make it once, at the end.
                skip_special_tokens=False,
            )
            for r in requests
        ]
        started = time.monotonic()
        outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.monotonic() - started
        return seconds, sum(len(c.token_ids) for o in outputs for c in o.outputs)


class BareLearner:
    """A plain PyTorch loop: forward with full logits, the same loss, backward, AdamW."""

    def __init__(self, model: str, dtype: str, threads: int, checkpoint_every: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from policy.models.loading import checkpoint_layers

        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = getattr(torch, dtype)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model.to(self._device).train()
        if checkpoint_every:
            checkpoint_layers(self._model, checkpoint_every)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-5, fused=self._device == "cuda"
        )

    def update(self, batch: TrainBatch, budget: int) -> tuple[float, int]:
        """Seconds and tokens of one step over the same micro-batches the learner takes."""
        import torch

        from rl.loop.batching import collate, plan_micro_batches

        started = time.monotonic()
        lengths = [s.trajectory.num_tokens for s in batch.samples]
        (plan,) = plan_micro_batches(lengths, 1, budget)
        total = sum(s.trajectory.num_response_tokens for s in batch.samples)
        for chosen in plan:
            micro = collate([batch.samples[i] for i in chosen])
            ids, mask = micro.token_ids.to(self._device), micro.loss_mask.to(self._device)
            with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
                logits = self._model(ids).logits[:, :-1]
            logprobs = torch.log_softmax(logits.float(), -1)
            taken = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
            ratio = (taken - taken.detach()).exp()
            advantages = micro.advantages.to(self._device)[:, None]
            (-(ratio * advantages * mask[:, 1:]).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - started, sum(lengths)


async def alternate(
    rounds: int, ours: Callable[[], Awaitable[float]], bare: Callable[[], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Rates of both sides, round by round; one uncounted round first."""

    async def settled(side: Callable[[], Awaitable[float]]) -> float:
        await asyncio.sleep(SETTLE_S)
        return await side()

    pairs = [(await settled(ours), await settled(bare)) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def compared(name: str, unit: str, ours: list[float], bare: list[float]) -> dict[str, Any]:
    row = {
        "ours": statistics.median(ours),
        "bare": statistics.median(bare),
        "ratio": statistics.median(ours) / statistics.median(bare),
        "ours_range": [min(ours), max(ours)],
        "bare_range": [min(bare), max(bare)],
    }
    print(
        f"{name:34s} {row['ours']:>10,.0f} {unit} | bare {row['bare']:>10,.0f} | ratio "
        f"{row['ratio']:.3f}  (ours {min(ours):,.0f} to {max(ours):,.0f}, bare {min(bare):,.0f} to "
        f"{max(bare):,.0f})"
    )
    return row


def step_requests(material: RunInputs, step: int) -> list[RolloutRequest]:
    """The requests of one step, longest budget first, as the loop would send them."""
    config = material.config
    prompts = material.stream.prompts(step)
    pins = [p.mode for p in prompts]
    modes = draw_step(config.seed, step, shares_at(config, step + 1), pins, config.rollout.draw)
    requests = [
        train_request(config, material.encode, f"bench/{step}/{place}", prompt, mode)
        for place, (prompt, mode) in enumerate(zip(prompts, modes, strict=True))
    ]
    return sorted(requests, key=lambda r: -r.max_tokens)


def bare_arguments(material: RunInputs) -> dict[str, Any]:
    config = material.config
    return {
        "model": str(material.model),
        "dtype": config.policy.dtype,
        "max_model_len": config.rollout.max_model_length,
        "tensor_parallel_size": config.rollout.tensor_parallel,
        "seed": config.seed,
        "logprobs_mode": "processed_logprobs",
    } | config.rollout.engine


async def bench_rollout(
    material: RunInputs, system: TrainingServices, rounds: int
) -> dict[str, Any]:
    config = material.config
    on_gpu = config.resources.gpus > 0
    bare = (
        ray.remote(BareEngine)
        .options(
            num_cpus=0,
            runtime_env={"env_vars": engine_environment(config.resources.engine_cpus, on_gpu)},
        )
        .remote(bare_arguments(material))
    )
    steps = iter(range(10_000))

    async def through_workers() -> float:
        requests = step_requests(material, next(steps) // 2)
        requests = [_renamed(r, f"{r.group_id}/{time.monotonic_ns()}") for r in requests]
        started = time.monotonic()
        groups = await asyncio.gather(*(system.engine.generate(r) for r in requests))
        tokens = sum(t.num_response_tokens for g in groups for t in g.trajectories)
        return tokens / (time.monotonic() - started)

    async def through_vllm() -> float:
        seconds, tokens = await bare.generate.remote(step_requests(material, next(steps) // 2))
        return tokens / seconds

    ours, theirs = await alternate(rounds, through_workers, through_vllm)
    ray.kill(bare)
    return compared("rollout workers / bare vLLM", "response tok/s", ours, theirs)


def _renamed(request: RolloutRequest, group_id: str) -> RolloutRequest:
    return RolloutRequest(**{**vars(request), "group_id": group_id})


async def sample_batch(
    material: RunInputs, system: TrainingServices
) -> tuple[TrainBatch, list[ScoredGroup]]:
    requests = step_requests(material, 0)
    groups = await asyncio.gather(*(system.engine.generate(r) for r in requests))
    scored = [ScoredGroup(g, await system.scorer.score(g)) for g in groups]
    samples = tuple(
        TrainSample(t, 1.0 if place % 2 else -1.0, g.request.temperature)
        for g in groups
        for place, t in enumerate(g.trajectories)
    )
    return TrainBatch(0, samples), scored


async def bench_learner(
    material: RunInputs, system: TrainingServices, batch: TrainBatch, rounds: int
) -> dict[str, Any]:
    config = material.config
    policy = config.policy
    bare = (
        ray.remote(BareLearner)
        .options(
            num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.rank_threads)}}
        )
        .remote(str(material.model), policy.dtype, config.rank_threads, policy.checkpoint_every)
    )
    tokens = sum(s.trajectory.num_tokens for s in batch.samples)
    metrics: dict[str, float] = {}
    from_driver: list[float] = []

    async def through_learner() -> float:
        started = time.monotonic()
        metrics.update((await system.learner.update(batch)).metrics)
        from_driver.append(tokens / (time.monotonic() - started))
        # Both sides are timed where they compute, from the batch in hand to the step taken.
        return metrics["perf/learner_tokens_per_second"]

    async def through_torch() -> float:
        seconds, counted = await bare.update.remote(batch, policy.micro_batch_tokens)
        return counted / seconds

    ours, theirs = await alternate(rounds, through_learner, through_torch)
    ray.kill(bare)
    row = compared("learner / bare PyTorch", "tok/s", ours, theirs)
    row["from_driver"] = statistics.median(from_driver[1:])
    print(f"{'    with the batch sent by the driver':34s} {row['from_driver']:>7,.0f} tok/s")
    row["peak_gib"] = metrics["memory/rank_peak_gib"]
    print(f"{'learner peak memory':34s} {row['peak_gib']:.2f} GiB a rank")
    if "perf/mfu" in metrics:
        # Of the last round; with the same batch it goes with the speed.
        row["mfu"] = metrics["perf/mfu"] * row["ours"] / metrics["perf/learner_tokens_per_second"]
        print(f"{'learner MFU':34s} {row['mfu']:.3f} of the GPU's dense bf16 peak")
    return row


async def bench_publish(config: Config, system: TrainingServices, rounds: int) -> dict[str, Any]:
    runs = [
        await publish(system.learner, system.engine, version, CanaryCheck.of(config))
        for version in range(1, rounds + 2)
    ][1:]
    row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print("publish, seconds by part")
    for key, value in row.items():
        print(f"    {key.removeprefix('sync/'):30s} {value:.4g}")
    return row


class ScoringWorker(RolloutWorker):
    """A rollout worker that is timed where it works, and can also be asked the slow way."""

    async def rate(self, method: str, requests: list[ReferenceRequest]) -> float:
        """References scored per second by a method of this class."""
        started = time.monotonic()
        await asyncio.gather(*(getattr(self, method)(one) for one in requests))
        return len(requests) / (time.monotonic() - started)

    async def prompt_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """The same log-probabilities from vLLM's prompt_logprobs over context and reference."""
        context, reference = request.context_token_ids, request.reference_token_ids
        return await self._score(context, reference, request.prompt.media)


async def bench_probability(material: RunInputs, rounds: int) -> dict[str, Any]:
    """References scored per second over contexts of CONTEXT_TOKENS that the prefix cache holds."""
    config = material.config
    settings = WorkerSettings(
        model=str(material.model.absolute()),
        dtype=config.policy.dtype,
        max_model_length=CONTEXT_TOKENS + 2 * REFERENCE_TOKENS,
        tensor_parallel=config.rollout.tensor_parallel,
        transport="host",
        thinking={name: mode.thinking for name, mode in config.modes.items()},
        scores_references=True,
        engine=config.rollout.engine,
    )
    on_gpu = config.resources.gpus > 0
    environment = engine_environment(config.resources.engine_cpus, on_gpu)
    worker = (
        ray.remote(ScoringWorker)
        .options(num_cpus=0, max_concurrency=1000, runtime_env={"env_vars": environment})
        .remote("scoring", settings)
    )
    await worker.start.remote()
    rng = random.Random(0)
    alphabet = material.chat.token_ids("0123456789+-=abcdefgh")
    contexts = [tuple(rng.choices(alphabet, k=CONTEXT_TOKENS)) for _ in range(SCORED_CONTEXTS)]
    names = iter(range(10**9))

    def requests() -> list[ReferenceRequest]:
        return [
            ReferenceRequest(
                f"{next(names)}",
                material.heldout[0],
                context,
                tuple(rng.choices(alphabet, k=REFERENCE_TOKENS)),
                1.0,
            )
            for context in contexts
        ]

    async def rate(method: str) -> float:
        return await worker.rate.remote(method, requests())

    same = requests()[:8]
    forced = await asyncio.gather(*(worker.reference_logprobs.remote(one) for one in same))
    renamed = [dataclasses.replace(one, id=f"slow/{one.id}") for one in same]
    slow = await asyncio.gather(*(worker.prompt_logprobs.remote(one) for one in renamed))
    apart = max(
        abs(a - b) for x, y in zip(forced, slow, strict=True) for a, b in zip(x, y, strict=True)
    )
    ours, bare = await alternate(
        rounds, lambda: rate("reference_logprobs"), lambda: rate("prompt_logprobs")
    )
    await worker.close.remote()
    ray.kill(worker)
    row = compared("forced decoding / prompt_logprobs", "references/s", ours, bare)
    print(f"{'    apart by at most':34s} {apart:>10.1e}")
    return row | {"apart": apart}


def bench_rules(config: Config, rounds: int) -> dict[str, Any]:
    """Verdicts per second on one core, over ours in its killable worker and bare math-verify."""
    from math_verify import parse, verify

    pairs = list(_verified_pairs())
    pool = WorkerPool(1, config.reward.timeout_s, config.reward.memory_mib)

    def ours() -> int:
        right = 0.0
        for reference, answer in pairs:
            verdict = verify_quickly(reference, answer).accuracy
            right += pool.call(symbolic, reference, answer) if verdict is None else verdict
        return int(right)

    def bare() -> int:
        return sum(
            verify(
                parse(f"${reference}$", parsing_timeout=None), parse(answer, parsing_timeout=None)
            )
            for reference, answer in pairs
        )

    assert ours() == bare() == len(pairs), "both sides accept every pair, or they do other work"
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        for name, side in (("ours", ours), ("bare", bare)):
            started = time.monotonic()
            side()
            rates[name].append(len(pairs) / (time.monotonic() - started))
    pool.close()
    return compared("rule verifier / bare math-verify", "verdicts/s", rates["ours"], rates["bare"])


def _verified_pairs() -> Iterator[tuple[str, str]]:
    """Right answers as policies write them: half of them numbers, half of them need sympy."""
    for n in range(2, 102):
        yield str(n * 37), rf"so the sum is \boxed{{{n * 37}}}"
        yield rf"\frac{{{n}}}{{{2 * n + 1}}}", rf"\boxed{{\frac{{{n}}}{{{2 * n + 1}}}}}"
        yield rf"{n}x^2+{n}", rf"\boxed{{{n}(x^2+1)}}"
        yield rf"{n}\sqrt{{2}}", rf"\boxed{{\sqrt{{{2 * n * n}}}}}"


async def bench_rewards(
    system: TrainingServices, scored: list[ScoredGroup], rounds: int
) -> dict[str, float]:
    count = sum(len(s.scores) for s in scored)
    rates = []
    for _ in range(rounds + 1):
        # The prefix cache has what was just sampled; a publish in between would have cleared it.
        groups = [dataclasses.replace(s.group, request=_again(s)) for s in scored]
        started = time.monotonic()
        await asyncio.gather(*(system.scorer.score(group) for group in groups))
        rates.append(count / (time.monotonic() - started))
    rate = statistics.median(rates[1:])
    print(
        f"{'reward service, all five parts':34s} {rate:>10,.0f} scores/s | {1e3 / rate:.3f} ms each"
    )
    return {"scores_per_second": rate, "milliseconds_per_score": 1e3 / rate}


def _again(scored: ScoredGroup) -> RolloutRequest:
    return _renamed(scored.group.request, f"{scored.group.request.group_id}/{time.monotonic_ns()}")


async def bench_waiting(
    material: RunInputs, system: TrainingServices, version: int
) -> dict[str, float]:
    """Shares of step time over a short run, without the first step, which fills the pipeline."""
    results: list[StepResult] = []

    async def keep(result: StepResult) -> bool:
        results.append(result)
        return len(results) <= TRAINING_STEPS

    parts = Parts(material.stream, material.encode, system.engine, system.scorer, system.learner)
    await publish(system.learner, system.engine, version, CanaryCheck.of(material.config))
    await TrainingLoop(material.config, parts, version).run(keep)
    total = sum(r.seconds["step"] for r in results[1:])
    row = {
        part: sum(r.seconds[part] for r in results[1:]) / total
        for part in ("wait_for_groups", "scoring", "engines_idle", "update", "publish")
    }
    row["seconds_per_step"] = total / (len(results) - 1)
    print(
        f"of step time ({row['seconds_per_step']:.2f} s): learner waits "
        f"{row['wait_for_groups']:.0%}, of which for rewards alone {row['scoring']:.0%}, engines "
        f"idle {row['engines_idle']:.0%}, update "
        f"{row['update']:.0%}, publish {row['publish']:.0%}"
    )
    return row


async def bench(config: Config, rounds: int) -> dict[str, Any]:
    material = gather_inputs(config)
    async with open_training(material, lambda text: print(f"... {text}", flush=True)) as system:
        await publish(system.learner, system.engine, 0, CanaryCheck.of(config))
        results: dict[str, Any] = {"rollout": await bench_rollout(material, system, rounds)}
        batch, scored = await sample_batch(material, system)
        results["rewards"] = await bench_rewards(system, scored, rounds)
        results["learner"] = await bench_learner(material, system, batch, rounds)
        results["publish"] = await bench_publish(config, system, rounds)
        results["waiting"] = await bench_waiting(material, system, rounds + 2)
        results["probability"] = await bench_probability(material, rounds)
    results["rules"] = bench_rules(config, rounds)
    return results


class BenchKeys(Keys):
    config: RecipeName = "hybrid_50_50.yaml"
    scale: ScaleName = None
    rounds: int = Field(default=5, gt=0)
    """How often each part is measured, in turns with the bare library."""
    against: Literal["libraries", "trl", "nothing", "learner"] = "libraries"
    """What is measured: each part beside the bare library; whole steps beside TRL's trainer; the
    driver alone at 2,000 groups a step, whose engines, rewards and ranks do nothing; or the learner
    with its options one after the other, on a GPU (scripts/bench_learner.py)."""
    out: Path | None = Field(default=None, examples=["FILE.json"])
    """File for the figures."""


async def measure(keys: BenchKeys) -> None:
    settings = [f"config={keys.config}", *keys.settings]
    if keys.against == "trl":
        results = await against_trl(settings)
    elif keys.against == "nothing":
        results = await bench_driver(load(settings).config)
    elif keys.against == "learner":
        results = _against_learner(settings, keys.rounds)
    else:
        results = await _against_libraries(settings, keys.rounds)
    if keys.out is not None:
        keys.out.write_text(json.dumps(results, indent=1))


def _against_learner(settings: list[str], rounds: int) -> dict[str, Any]:
    refuse_cpu()
    config = load(settings).config
    directory = find_model(builtin_policy(config.policy.model), "policy.model")
    tokens = config.policy.micro_batch_tokens
    length = min(config.rollout.max_model_length, tokens)
    return learner_rows(model_config(directory), config.policy, tokens, length, rounds)


async def _against_libraries(settings: list[str], rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as run:
        config = load([*settings, f"run={run}"]).config
        if config.data.shows_media:
            raise ValueError(
                "the bare sides of this benchmark are given text alone; take a text recipe"
            )
        return await bench(config, rounds)


if __name__ == "__main__":
    command = Command("scripts.bench", __doc__, BenchKeys, measure, (Config,))
    sys.exit(command(sys.argv[1:]))
