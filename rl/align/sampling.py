"""The policy's responses: to the prompts that pairs come from, and held-out ones for the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rewards.preference.preference import final_answer
from rl.align.claims.files import from_row, to_row, write_stage
from rl.align.claims.types import Response
from rl.align.console import Advance
from rl.align.heldout import evaluate_heldout, is_evaluated
from rl.align.parts import Iteration
from rl.assembly import System, open_engines
from rl.config.run import Config
from rl.evaluate.evaluation import Sampler, for_each
from rl.loop.interfaces import GenerationFailed
from rl.loop.loop import sampling_seed
from rl.loop.modes import draw_step
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest
from rl.run.jsonl import Journal


async def ask_policy(iteration: Iteration) -> None:
    """Leave its held-out responses, for the gate, and those that pairs come from."""
    files = iteration.files
    is_sampled = iteration.config.align.mine is not None or files.responses.exists()
    if is_sampled and is_evaluated(files.before):
        return
    async with _engines(iteration, iteration.model) as system:
        await evaluate_heldout(iteration, system, files.before, "held-out responses before")
        if not is_sampled:
            await _sample(iteration, system)


async def ask_aligned(iteration: Iteration, model: Path) -> None:
    """Leave the held-out responses of the aligned policy."""
    after = iteration.files.after
    if is_evaluated(after):
        return
    async with _engines(iteration, model) as system:
        await evaluate_heldout(iteration, system, after, "held-out responses after")


def _engines(iteration: Iteration, model: Path) -> AbstractAsyncContextManager[System]:
    parts = iteration.parts
    scorer = parts.origin.progress.get("scorer")
    return open_engines(parts.material, parts.console.note, model, scorer, iteration.cluster)


async def _sample(iteration: Iteration, system: System) -> None:
    config, files, console = iteration.config, iteration.files, iteration.console
    requests = _requests(iteration)
    if len(requests) < config.align.prompts:
        console.note(f"there are {len(requests)} of align.prompts={config.align.prompts}")
    with (
        Journal(files.root / "responses.jsonl") as journal,
        console.stage("prompts sampled", len(requests)) as advance,
    ):
        responses, failures = await sample(config, requests, system.engine, journal, advance)
        if not responses:
            raise RuntimeError(f"no prompt was answered; failures: {dict(failures)}")
        write_stage(files.responses, Response, responses)
        journal.remove()
    console.note_counts("prompts without responses", failures)


def _requests(iteration: Iteration) -> list[RolloutRequest]:
    """One per prompt; each prompt once, those first that RL would have asked next."""
    config, stream = iteration.config, iteration.parts.material.stream
    wanted = min(config.align.prompts, stream.num_train or config.align.prompts)
    num_steps = -(-wanted // config.rollout.prompts_per_step)
    shares = config.align.mix or {name: mode.share for name, mode in config.modes.items()}
    asked: dict[str, tuple[Prompt, str]] = {}
    step = config.steps + (iteration.number - 1) * num_steps
    while len(asked) < wanted:
        prompts = stream.prompts(step)
        pinned = [prompt.mode for prompt in prompts]
        modes = draw_step(config.seed, step, shares, pinned, "stratified")
        for prompt, mode in zip(prompts, modes, strict=True):
            asked.setdefault(prompt.id, (prompt, mode))
        step += 1
    return [_request(iteration, *one) for one in list(asked.values())[:wanted]]


def _request(iteration: Iteration, prompt: Prompt, mode: str) -> RolloutRequest:
    config = iteration.config
    group_id = f"align/{iteration.number}/{prompt.id}"
    return RolloutRequest(
        group_id=group_id,
        prompt=prompt,
        mode=mode,
        prompt_token_ids=iteration.parts.material.encode(prompt, mode),
        n=config.align.responses,
        max_tokens=config.modes[mode].max_tokens,
        temperature=config.align.temperature,
        top_p=config.align.top_p,
        # Always: a pass that was cut short must sample what it would have sampled.
        seed=sampling_seed(config.seed, group_id),
    )


async def sample(
    config: Config,
    requests: Sequence[RolloutRequest],
    engine: Sampler,
    journal: Journal,
    advance: Advance,
) -> tuple[list[Response], Counter[str]]:
    """Return the responses to all requests, and how many groups failed, by reason.

    What was answered is on disk before it counts as done; they come back in the order of requests.
    """
    known = {
        record["group_id"]: [from_row(Response, stored) for stored in record["responses"]]
        for record in journal.records
    }
    failures: Counter[str] = Counter()

    async def ask(request: RolloutRequest) -> None:
        if request.group_id not in known:
            try:
                group = await engine.generate(request)
            except GenerationFailed as failed:
                failures[failed.failure.reason] += 1
            else:
                found = known[request.group_id] = _responses(group)
                records = [to_row(response) for response in found]
                journal.add({"group_id": request.group_id, "responses": records})
        advance()

    await for_each(config, requests, ask)
    return [r for request in requests for r in known.get(request.group_id, [])], failures


def _responses(group: RolloutGroup) -> list[Response]:
    request = group.request
    return [
        Response(
            prompt=request.prompt,
            mode=request.mode,
            index=index,
            token_ids=tuple(trajectory.response_token_ids.tolist()),
            text=trajectory.text,
            answer=final_answer(trajectory.answer, trajectory.finish_reason),
        )
        for index, trajectory in enumerate(group.trajectories)
    ]
