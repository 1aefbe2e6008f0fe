"""Replays the ledger of a run under another reward configuration, on CPU and without sampling.

    python -m rl.rescore run=runs/NAME reward.weights.format=0.2
    python -m rl.rescore run=runs/NAME config=other.yaml out=DIR

It says what each part, each mode and each advantage would have been, and writes the new scores in
the form of the ledger. Rules, format, repetition, length and plug-ins are computed anew; a reward
model that the run did not use is loaded and asked; a probability is taken from the ledger, because
it belongs to weights that are gone. Only keys of `reward` can be changed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rewards.composition import Accuracy, Preference, TextParts, compose_group, paired
from rewards.preference.preference import PreferenceInput, preference_input
from rewards.probability import debiased
from rewards.service import takes_probability
from rewards.text.plugins import with_checked_plugins
from rewards.text.text_rewards import TextRewards
from rl.config.recipe import load_over
from rl.config.run import Config, RewardConfig
from rl.loop.stages import (
    PROBABILITY,
    FinishReason,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    Trajectory,
    not_scorable,
)
from rl.rescore.study import Change, alarms, changes, sign_flips, with_advantages
from rl.run.command import Command, Keys, OptionalRecipeName, RunPath, ScaleName, run_command
from rl.run.directory import RunDirectory
from rl.run.ledger import LedgerRow, read_rows, write_step


class AnswerModel(Protocol):
    """A reward model in this process (rewards/preference/reward_model.py)."""

    def score(self, inputs: Sequence[PreferenceInput]) -> list[float | None]: ...


class RescoreKeys(Keys):
    run: RunPath
    """The run whose ledger is scored."""
    out: Path | None = Field(default=None, examples=["DIR"])
    """Directory for the new scores; by default `rescored` in the run's directory."""
    config: OptionalRecipeName = None
    scale: ScaleName = None

    @model_validator(mode="after")
    def _keep_the_ledger(self) -> RescoreKeys:
        ledger = RunDirectory(self.run).ledger_path
        if self.out is not None and self.out.resolve() == ledger.resolve():
            raise ValueError(f"out={self.out} is the ledger itself; name another directory")
        return self


async def compare(keys: RescoreKeys) -> None:
    console = Console(stderr=True)
    directory = RunDirectory(keys.run)
    out = keys.out or directory.root / "rescored"
    stored = load_over(directory.config_path, "reward", [])
    config = load_over(directory.config_path, "reward", keys.settings)
    reward = with_checked_plugins(config.reward)
    config = config.model_copy(update={"reward": reward})
    paths = sorted(directory.ledger_path.glob("step_*.parquet"))
    if not paths:
        raise ValueError(f"{directory.ledger_path} holds no step_*.parquet; was log.ledger on?")
    old, new = await rescore(paths, stored, config, out, console)
    Console().print(as_table(changes(old, new)))
    for mode, share in sign_flips(old, new).items():
        Console().print(f"{mode}: {share:.1%} of the advantages change their sign")
    weights = {mode: config.reward.weights_for("", "", mode) for mode in config.modes}
    for sentence in alarms(new, weights):
        Console().print(f"[bold red]alarm[/] {sentence}")
    console.print(f"{len(new)} scores written to {out}")


async def rescore(
    paths: Sequence[Path], stored: Config, config: Config, out: Path, console: Console
) -> tuple[list[LedgerRow], list[LedgerRow]]:
    """Score every step anew and write it under `out`; returns the old and the new rows."""
    model = _preference_model(stored.reward, config.reward)
    text = TextRewards(config.reward, config.modes)
    replay = Replay(config, text, model)
    old_rows: list[LedgerRow] = []
    new_rows: list[LedgerRow] = []
    try:
        for path in track(paths, "rescoring", console=console, transient=True):
            old = read_rows(path)
            new = await replay.step(old)
            write_step(out, old[0].step, new)
            old_rows += map(_without_text, old)
            new_rows += map(_without_text, new)
    finally:
        text.close()
    return old_rows, new_rows


def _without_text(row: LedgerRow) -> LedgerRow:
    """What the comparison needs; the texts of a whole run would not fit into memory."""
    return dataclasses.replace(row, messages="", text="", reasoning=None, answer=None)


class Replay:
    """Scores ledger rows under a reward configuration."""

    def __init__(self, config: Config, text: TextRewards, model: AnswerModel | None) -> None:
        """model: asked for preferences; None takes those of the ledger."""
        self._config = config
        self._text = text
        self._model = model

    async def step(self, rows: Sequence[LedgerRow]) -> list[LedgerRow]:
        """The rows of one step with new scores and advantages."""
        groups = [list(group) for _, group in groupby(rows, key=lambda row: row.group_id)]
        scored = await asyncio.gather(*(self._group(group) for group in groups))
        scores = [score for of_group in scored for score in of_group]
        new = [
            dataclasses.replace(
                row,
                reward=score.reward,
                parts=score.parts,
                route=str(score.route or ""),
                failure=str(score.failure) if score.failure else None,
                claimed=score.claimed.text if score.claimed else None,
                claimed_how=score.claimed.how if score.claimed else None,
                why=score.claimed.why if score.claimed else None,
                preference_answer=score.preference_answer,
            )
            for row, score in zip(rows, scores, strict=True)
        ]
        advantages = with_advantages(new, self._config.algorithm.normalize_by_std)
        return [
            dataclasses.replace(row, advantage=advantage)
            for row, advantage in zip(new, advantages, strict=True)
        ]

    async def _group(self, rows: Sequence[LedgerRow]) -> tuple[Score, ...]:
        group = as_group(rows)
        prompt, mode = group.request.prompt, group.request.mode
        probability = self._config.reward.probability
        by_rules = probability is None or not takes_probability(prompt)
        texts = await self._text.parts(group, by_rules)
        if probability is None or by_rules:
            accuracies = [
                text.accuracy or Accuracy(None, None, not_scorable("not scored by rules"))
                for text in texts
            ]
        else:
            debias = probability.debias and self._config.modes[mode].thinking
            accuracies = [
                _probability(row, text, debias, probability.invalid == "zero")
                for row, text in zip(rows, texts, strict=True)
            ]
        preferences = self._preferences(group, rows)
        return compose_group(self._config.reward, prompt, mode, accuracies, texts, preferences)

    def _preferences(
        self, group: RolloutGroup, rows: Sequence[LedgerRow]
    ) -> list[Preference] | None:
        if self._config.reward.preference is None:
            return None
        if self._model is None:
            return [Preference(r.preference_answer, r.parts.get("preference_raw")) for r in rows]
        shown = [preference_input(group.request.prompt, t) for t in group.trajectories]
        return paired(shown, self._model.score([one for one in shown if one is not None]))


def _probability(row: LedgerRow, text: TextParts, debias: bool, invalid_is_zero: bool) -> Accuracy:
    """The probability reward from the parts that the ledger keeps of it."""
    route = Route.parse(row.route) if row.route else None
    if not text.parts["format"]:
        if invalid_is_zero:
            return Accuracy(0.0, route)
        return Accuracy(None, route, not_scorable("no well-formed answer"))
    made_of = {part: row.parts[part] for part in ("probability", "baseline") if part in row.parts}
    if "probability" not in made_of or (debias and "baseline" not in made_of):
        failure = not_scorable("the ledger has no probability for it")
        return Accuracy(None, Route(PROBABILITY), failure)
    if not debias:
        made_of.pop("baseline", None)
    return Accuracy(debiased(**made_of), route, made_of=made_of)


def _preference_model(stored: RewardConfig, wanted: RewardConfig) -> AnswerModel | None:
    """The reward model to ask, or None where the ledger has its scores."""
    before, after = stored.preference, wanted.preference
    if after is None or (before and (before.kind, before.model) == (after.kind, after.model)):
        return None
    if after.kind == "judge":
        raise ValueError(
            f"the judge {after.model} is not what the run used, and a judge needs an engine; "
            "rescore with a classifier, or with reward.preference=null"
        )
    from policy.builtin.names import builtin_reward_model
    from policy.models.cache import find_model
    from rewards.preference.reward_model import RewardModel

    path = find_model(builtin_reward_model(after.model), "the preference model")
    return RewardModel(path, after.dtype, "cpu")


def as_group(rows: Sequence[LedgerRow]) -> RolloutGroup:
    """The group as the reward service saw it, its tokens but for their number left out."""
    first = rows[0]
    messages = tuple(json.loads(first.messages))
    prompt = Prompt(first.prompt_id, messages, first.reference, first.task)
    request = RolloutRequest(first.group_id, prompt, first.mode, (0,), len(rows), 1, 1.0, None)
    return RolloutGroup(request, tuple(_trajectory(row) for row in rows))


def _trajectory(row: LedgerRow) -> Trajectory:
    length = row.num_tokens + 1
    reason: FinishReason = row.finish_reason  # type: ignore[assignment]
    return Trajectory(
        token_ids=np.zeros(length, np.int32),
        loss_mask=np.arange(length) > 0,
        rollout_logprobs=np.zeros(length, np.float32),
        versions=(row.first_version, row.last_version),
        finish_reason=reason,
        text=row.text,
        reasoning=row.reasoning,
        answer=row.answer,
    )


def as_table(found: Sequence[Change]) -> Table:
    table = Table(title="mean over the ledger, as it was and as it would be")
    for column in ("mode", "part", "was", "would be", "differs"):
        table.add_column(column, justify="left" if column in ("mode", "part") else "right")
    for change in found:
        table.add_row(
            change.mode,
            change.name,
            _shown(change.old_mean),
            _shown(change.new_mean),
            f"{change.changed:.1%}",
        )
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


COMMAND = Command("rl.rescore", __doc__, RescoreKeys, compare, (Config,))


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
