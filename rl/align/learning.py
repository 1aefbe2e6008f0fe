"""DPO on the pairs of an iteration, and its curves while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from policy.dpo import DpoPair, train_dpo
from rl.align.claims.types import PreferencePair
from rl.align.parts import Iteration
from rl.evaluate.evaluation import Encode
from rl.run.sinks import read_metrics

POLL_S = 1.0


async def learn(iteration: Iteration, pairs: Sequence[PreferencePair]) -> Path:
    """Return the directory of the aligned policy; every step is shown and logged as it is made."""
    config, files, num_steps = iteration.config, iteration.files, iteration.config.align.dpo.steps
    examples = [_example(pair, iteration.parts.material.encode) for pair in pairs]
    # An earlier process may have logged steps before it was killed.
    logged = max(read_metrics(iteration.parts.directory.metrics), default=0)
    first = (iteration.number - 1) * num_steps
    learning = asyncio.create_task(
        asyncio.to_thread(
            train_dpo, config, iteration.model, examples, files.dpo, iteration.cluster
        )
    )
    name = f"DPO steps on {len(pairs):,} pairs"
    with iteration.console.stage(name, num_steps) as advance:
        shown, is_over = 0, False
        while not is_over:
            is_over = bool((await asyncio.wait([learning], timeout=POLL_S))[0])
            made = read_metrics(files.dpo / "metrics.jsonl")
            for step in (step for step in made if step > shown):
                advance()
                if first + step > logged:
                    iteration.sinks.write(first + step, made[step])
            shown = max(made, default=0)
    return learning.result()


def _example(pair: PreferencePair, encode: Encode) -> DpoPair:
    return DpoPair(
        id=pair.id,
        prompt_token_ids=encode(pair.prompt, pair.mode),
        media=pair.prompt.media,
        chosen_token_ids=pair.chosen.response.token_ids,
        rejected_token_ids=pair.rejected.response.token_ids,
    )
