"""The metrics of one step, per mode, from its groups. Sums over counts, never means of means."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rl.config.run import Config
from rl.launch.advice import idle_shares
from rl.loop.advantages import has_zero_variance
from rl.loop.loop import StepResult
from rl.loop.stages import Score, ScoredGroup, Trajectory

# What a score says of a response without rewarding it, which is shown beside lengths.
UNREWARDED = ("leak", "unverifiable")


@dataclass
class Progress:
    """Counts over the whole run; saved with every checkpoint."""

    trained_tokens: dict[str, int] = field(default_factory=dict)
    """Prompt and response tokens of every trajectory that entered an update, by mode."""
    seconds: float = 0.0
    """Wall-clock seconds of the steps, with what was written down between them."""
    skipped_steps: int = 0
    """Steps whose update was not taken."""
    skipped_in_a_row: int = 0

    def add(self, result: StepResult) -> None:
        self.seconds += result.seconds["step"]
        if result.skipped is not None:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        for scored, advantages in zip(result.groups, result.advantages, strict=True):
            mode, trained = scored.group.request.mode, 0
            for trajectory, advantage in zip(scored.group.trajectories, advantages, strict=True):
                trained += trajectory.num_tokens if advantage is not None else 0
            self.trained_tokens[mode] = self.trained_tokens.get(mode, 0) + trained


def step_metrics(result: StepResult, config: Config, progress: Progress) -> dict[str, float]:
    """Every metric of the step under its documented key; `progress` already counts the step."""
    # Every mean below is taken over trajectories at once, never over means of groups: modes differ
    # in their share, and a mean of means would give the rarer one as much weight as the other.
    everything = _pairs(result.groups)
    metrics: dict[str, float] = {"step": float(result.step)}
    metrics |= _mean("reward/mean", [score.reward for _, score in everything])
    for mode in config.modes:
        groups = [scored for scored in result.groups if scored.group.request.mode == mode]
        metrics[f"rollout/{mode}/groups"] = len(groups)
        metrics[f"rollout/{mode}/share"] = len(groups) / config.rollout.prompts_per_step
        # A mode that was not drawn has no figures: a zero would look like a policy that fails.
        if groups:
            metrics |= _mode_metrics(mode, groups)
        metrics[f"progress/{mode}/trained_tokens"] = progress.trained_tokens.get(mode, 0)
    for (_, reason), count in result.dropped.items():
        metrics[f"rollout/dropped/{reason}"] = metrics.get(f"rollout/dropped/{reason}", 0) + count
    # The step's update was made from this version, so that is what staleness is counted against.
    before = result.step - 1
    metrics["staleness/max"] = max(before - t.versions[0] for t, _ in everything)
    metrics["progress/skipped_steps"] = progress.skipped_steps
    metrics["progress/trained_tokens"] = sum(progress.trained_tokens.values())
    metrics |= {f"time/{part}": seconds for part, seconds in result.seconds.items()}
    tokens = sum(t.num_tokens for t, _ in everything)
    metrics["perf/tokens_per_second"] = tokens / result.seconds["step"]
    if config.resources.gpus:
        speed = metrics["perf/tokens_per_second"] / config.num_gpus_taken
        metrics["perf/tokens_per_second_per_gpu"] = speed
    metrics["idle/learner"], metrics["idle/engines"] = idle_shares(result.seconds)
    return metrics | result.learner_metrics | result.sync_metrics


def _pairs(groups: Sequence[ScoredGroup]) -> list[tuple[Trajectory, Score]]:
    return [pair for g in groups for pair in zip(g.group.trajectories, g.scores, strict=True)]


def _mode_metrics(mode: str, groups: Sequence[ScoredGroup]) -> dict[str, float]:
    pairs = _pairs(groups)
    scores = [score for _, score in pairs]
    metrics = _mean(f"reward/{mode}/mean", [score.reward for score in scores])
    for part in sorted({part for score in scores for part in score.parts} - {*UNREWARDED}):
        metrics |= _mean(f"reward/{mode}/{part}", [score.parts.get(part) for score in scores])
    totals = {
        "tokens_mean": sum(t.num_response_tokens for t, _ in pairs),
        "truncated": sum(t.finish_reason == "length" for t, _ in pairs),
        "unscored": sum(score.reward is None for score in scores),
        **{part: sum(score.parts.get(part, 0.0) for score in scores) for part in UNREWARDED},
    }
    metrics |= {f"rollout/{mode}/{name}": total / len(pairs) for name, total in totals.items()}
    silent = sum(has_zero_variance([score.reward for score in g.scores]) for g in groups)
    return metrics | {f"rollout/{mode}/zero_variance": silent / len(groups)}


def _mean(key: str, values: Sequence[float | None]) -> dict[str, float]:
    """The mean over the trajectories that have a value, under its key; empty if none has."""
    known = [value for value in values if value is not None]
    return {key: sum(known) / len(known)} if known else {}
