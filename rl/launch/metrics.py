"""The metrics of one step, per mode, from its groups. Sums over counts, never means of means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rl.loop.advantages import has_zero_variance
from rl.loop.loop import StepResult
from rl.loop.stages import Score, ScoredGroup, Trajectory


@dataclass
class Progress:
    """Counts over the whole run; saved with every checkpoint."""

    trained_tokens: dict[str, int] = field(default_factory=dict)
    """Prompt and response tokens of every trajectory that entered an update, by mode."""
    seconds: float = 0.0
    """Wall-clock seconds spent in steps."""

    @property
    def total_trained_tokens(self) -> int:
        return sum(self.trained_tokens.values())

    def add(self, result: StepResult) -> None:
        self.seconds += result.seconds["step"]
        for scored, advantages in zip(result.groups, result.advantages, strict=True):
            mode = scored.group.request.mode
            trained = sum(
                trajectory.num_tokens
                for trajectory, advantage in zip(scored.group.trajectories, advantages, strict=True)
                if advantage is not None
            )
            self.trained_tokens[mode] = self.trained_tokens.get(mode, 0) + trained


def step_metrics(
    result: StepResult, modes: Sequence[str], prompts_per_step: int, progress: Progress
) -> dict[str, float]:
    """Every metric of the step under its documented key; `progress` already counts the step."""
    # Every mean below is taken over trajectories at once, never over means of groups: modes differ
    # in their share, and a mean of means would give the rarer one as much weight as the other.
    everything = [pair for scored in result.groups for pair in _pairs(scored)]
    metrics: dict[str, float] = {"step": float(result.step)}
    metrics |= _reward_metrics("reward", everything)
    for mode in modes:
        groups = [scored for scored in result.groups if scored.group.request.mode == mode]
        metrics |= _mode_metrics(mode, groups, prompts_per_step)
        metrics[f"progress/{mode}/trained_tokens"] = progress.trained_tokens.get(mode, 0)
    for (_, reason), count in result.dropped.items():
        metrics[f"rollout/dropped/{reason}"] = metrics.get(f"rollout/dropped/{reason}", 0) + count
    # The step's update was made from this version, so that is what staleness is counted against.
    before = result.step - 1
    metrics["staleness/max"] = max(before - t.versions[0] for t, _ in everything)
    metrics["progress/trained_tokens"] = progress.total_trained_tokens
    metrics |= {f"time/{part}": seconds for part, seconds in result.seconds.items()}
    tokens = sum(t.num_tokens for t, _ in everything)
    metrics["perf/tokens_per_second"] = tokens / result.seconds["step"]
    return metrics | result.learner_metrics | result.sync_metrics


def _pairs(scored: ScoredGroup) -> list[tuple[Trajectory, Score]]:
    return list(zip(scored.group.trajectories, scored.scores, strict=True))


def _mode_metrics(
    mode: str, groups: Sequence[ScoredGroup], prompts_per_step: int
) -> dict[str, float]:
    metrics: dict[str, float] = {
        f"rollout/{mode}/groups": len(groups),
        f"rollout/{mode}/share": len(groups) / prompts_per_step,
    }
    # A mode that was not drawn has no figures: a zero would look like a policy that fails.
    if not groups:
        return metrics
    pairs = [pair for scored in groups for pair in _pairs(scored)]
    count = len(pairs)
    silent = sum(has_zero_variance([score.reward for score in g.scores]) for g in groups)
    return (
        metrics
        | _reward_metrics(f"reward/{mode}", pairs)
        | {
            f"rollout/{mode}/tokens_mean": sum(t.num_response_tokens for t, _ in pairs) / count,
            f"rollout/{mode}/truncated": sum(t.finish_reason == "length" for t, _ in pairs) / count,
            f"rollout/{mode}/leak": sum(s.parts.get("leak", 0.0) for _, s in pairs) / count,
            f"rollout/{mode}/unverifiable": sum(s.parts.get("unverifiable", 0.0) for _, s in pairs)
            / count,
            f"rollout/{mode}/unscored": sum(s.reward is None for _, s in pairs) / count,
            f"rollout/{mode}/zero_variance": silent / len(groups),
        }
    )


def _reward_metrics(prefix: str, pairs: Sequence[tuple[Trajectory, Score]]) -> dict[str, float]:
    """Mean reward and mean of every part, over the trajectories that have them."""
    rewards = [score.reward for _, score in pairs if score.reward is not None]
    metrics = {f"{prefix}/mean": sum(rewards) / len(rewards)} if rewards else {}
    if prefix == "reward":
        return metrics
    for part in sorted(
        {part for _, score in pairs for part in score.parts} - {"leak", "unverifiable"}
    ):
        values = [score.parts[part] for _, score in pairs if part in score.parts]
        metrics[f"{prefix}/{part}"] = sum(values) / len(values)
    return metrics
