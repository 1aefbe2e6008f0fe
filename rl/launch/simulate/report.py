"""What `simulate=true` of rl.launch prints: a scale's expected step, and what would change it."""

from pathlib import Path
from typing import Any

import rich.console
from rich.table import Table

from rl.config.run import Config
from rl.launch.simulate.hardware import device_of, engine_speed, learner_speed, shape_of
from rl.launch.simulate.lengths import drawn_lengths, ledger_lengths
from rl.launch.simulate.simulation import WARMUP_STEPS, Death, Outcome, simulate
from rl.run.directory import RunDirectory
from rl.run.terminal import counted, duration

MEASURED_STEPS = 10
STALENESS = (0, 1, 2)
BACK_S = 300.0
"""Seconds until a machine that was taken away is replaced and its engine has started."""


def print_simulation(config: Config, screen: rich.console.Console | None = None) -> None:
    """Simulate the scale as it is, with other engines and staleness, and with an engine lost.

    Raises ValueError for a model whose sizes are not known, or that fits no engine.
    """
    screen = screen or rich.console.Console(highlight=False)
    shape = shape_of(config.policy.model)
    speeds = engine_speed(config, shape), learner_speed(config, shape)
    ledger = RunDirectory(Path(config.run)).ledger_path
    lengths = ledger_lengths(config, ledger) or drawn_lengths(config)

    def run(deaths: tuple[Death, ...] = (), **changes: Any) -> Outcome:
        rollout = config.rollout.model_copy(update=changes)
        steps = WARMUP_STEPS + rollout.max_staleness + MEASURED_STEPS
        changed = config.model_copy(update={"rollout": rollout, "steps": steps})
        return simulate(changed, *speeds, lengths, deaths)

    rollout = config.rollout
    engines, ranks = counted(rollout.workers, "engine"), counted(config.policy.ranks, "rank")
    devices = counted(rollout.tensor_parallel, device_of(config).name)
    screen.print(
        f"simulated by roofline: {engines} on {devices} each, {ranks}, {config.policy.model}; "
        f"response lengths: {lengths.origin}; rewards count as free",
        soft_wrap=True,
    )
    calm = run()
    screen.print(_described(config, calm), soft_wrap=True)
    # In the middle of a run, and where it hurts as much as on average: at a random point of a step.
    death = Death(engine=0, at_s=calm.total_s / 2, back_s=BACK_S)
    spot = run((death,))
    screen.print(
        f"an engine that is taken away and back after {duration(BACK_S)} costs the run "
        f"{max(0.0, spot.total_s - calm.total_s):,.0f} s and {spot.lost_tokens:,.0f} tokens that "
        "are sampled again",
        soft_wrap=True,
    )
    table = Table(title="seconds a step (learner waits, engines idle)", title_justify="left")
    table.add_column("engines", justify="right")
    for staleness in STALENESS:
        table.add_column(f"max_staleness={staleness}", justify="right")
    factors = (0.5, 1, 1.5, 2)
    for workers in sorted({max(1, round(rollout.workers * factor)) for factor in factors}):
        outcomes = (run(workers=workers, max_staleness=staleness) for staleness in STALENESS)
        cells = (f"{o.step_s:,.1f} ({o.learner_waits:.0%}, {o.engines_idle:.0%})" for o in outcomes)
        table.add_row(f"{workers:,}", *cells)
    screen.print(table)


def _described(config: Config, outcome: Outcome) -> str:
    """A step in words, and how many engines would keep the learner busy."""
    own_engine = outcome.tokens_per_second / (config.rollout.workers * (1 - outcome.engines_idle))
    # While weights are sent the learner does nothing else.
    at_most = outcome.tokens_per_second / (outcome.updating + outcome.publishing)
    return (
        f"a step takes {outcome.step_s:,.1f} s: the learner waits {outcome.learner_waits:.0%} for "
        f"groups, updates {outcome.updating:.0%} and publishes {outcome.publishing:.0%}; engines "
        f"are idle {outcome.engines_idle:.0%}\n"
        f"an engine that is never idle samples {own_engine:,.0f} tokens/s, the learner takes "
        f"{at_most:,.0f} tokens/s at most: it feeds on {at_most / own_engine:,.1f} engines"
    )
