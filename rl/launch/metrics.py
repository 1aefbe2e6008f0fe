"""The metrics of one step, per mode, from its groups. Sums over counts, never means of means."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from rl.config.run import Config
from rl.evaluate.choosing import thirds
from rl.launch.advice import idle_shares
from rl.loop.advantages import has_zero_variance, within_kinds
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
    for mode, settings in config.modes.items():
        groups = [scored for scored in result.groups if scored.group.request.mode == mode]
        choices = [
            of_group
            for scored, of_group in zip(result.groups, result.choices, strict=True)
            if scored.group.request.mode == mode
        ]
        metrics[f"rollout/{mode}/groups"] = len(groups)
        metrics[f"rollout/{mode}/share"] = len(groups) / config.rollout.prompts_per_step
        # A mode that was not drawn has no figures: a zero would look like a policy that fails.
        if groups:
            metrics |= _mode_metrics(mode, groups, choices)
        if groups and settings.thinking == "auto":
            metrics |= _choice_metrics(mode, groups, choices)
        metrics[f"progress/{mode}/trained_tokens"] = progress.trained_tokens.get(mode, 0)
    # As other figures of choices, a mean over all of the step, where several modes choose.
    modes_of_groups = [scored.group.request.mode for scored in result.groups]
    prices = [result.prices[mode] for mode in modes_of_groups if mode in result.prices]
    metrics |= _mean("choice/price", prices)
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


def _mode_metrics(
    mode: str, groups: Sequence[ScoredGroup], choices: Sequence[Sequence[float | None]]
) -> dict[str, float]:
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
    silent = 0
    for scored, of_group in zip(groups, choices, strict=True):
        # Neither responses of one kind differ, nor kinds.
        rewards = [score.reward for score in scored.scores]
        of_kinds = within_kinds(
            scored.group.kinds, rewards, lambda of_kind: [has_zero_variance(of_kind)] * len(of_kind)
        )
        silent += all(of_kinds) and not any(of_group)
    return metrics | {f"rollout/{mode}/zero_variance": silent / len(groups)}


def _choice_metrics(
    mode: str, groups: Sequence[ScoredGroup], choices: Sequence[Sequence[float | None]]
) -> dict[str, float]:
    """What the policy chose where it was left to it, in all, by difficulty and by source."""
    free = [scored for scored in groups if not scored.group.request.is_pair]
    metrics = {f"rollout/{mode}/pairs": 1 - len(free) / len(groups)}
    gaps = []
    for scored, of_group in zip(groups, choices, strict=True):
        # All choices of a kind have one credit, but for those without a score, and those of both
        # differ by what the kinds do.
        credits = zip(scored.group.choices, of_group, scored.scores, strict=True)
        by_kind = {kind: credit for kind, credit, score in credits if score.reward is not None}
        if True in by_kind and False in by_kind:
            gaps.append((by_kind[True] or 0.0) - (by_kind[False] or 0.0))
    metrics |= _mean(f"rollout/{mode}/gap", gaps)
    strays = [t.choice and not t.choice.is_kept for g in free for t in g.group.trajectories]
    metrics |= _mean(f"rollout/{mode}/strayed", [float(bool(stray)) for stray in strays])
    parts = {"reasons": free}
    known = (g for g in free if g.group.request.prompt.difficulty is not None)
    by_difficulty = thirds(known, lambda g: g.group.request.prompt.difficulty or 0.0)
    parts |= {f"reasons_{third}": part for third, part in by_difficulty.items()}
    sources = defaultdict(list)
    for scored in free:
        sources[scored.group.request.prompt.id.partition("/")[0]].append(scored)
    if len(sources) > 1:
        parts |= {f"reasons_of_{source}": of_source for source, of_source in sources.items()}
    for name, part in parts.items():
        kinds = [float(kind or False) for scored in part for kind in scored.group.kinds]
        metrics |= _mean(f"rollout/{mode}/{name}", kinds)
    return metrics


def _mean(key: str, values: Sequence[float | None]) -> dict[str, float]:
    """The mean over the trajectories that have a value, under its key; empty if none has."""
    known = [value for value in values if value is not None]
    return {key: sum(known) / len(known)} if known else {}
