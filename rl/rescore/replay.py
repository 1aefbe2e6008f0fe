"""The reward service over a ledger, and how two scorings of the same trajectories differ.

The responses come from the ledger, and so does what cannot be computed anew: a probability, because
it belongs to weights that are gone, and the score of a preference model that stays the same.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

from policy.builtin.names import builtin_reward_model
from policy.models.cache import find_model
from rewards.composition import Accuracy, Preference
from rewards.preference.preference import PreferenceInput, PreferenceModel
from rewards.probability import probability_accuracy, unanswered
from rewards.service import PreferredAnswers, RewardService, TextSource
from rewards.text.text_rewards import TextRewards
from rl.config.data import SourceConfig
from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.reward import ProbabilityConfig
from rl.config.rollout import Thinking
from rl.config.run import Config
from rl.data.media.names import from_json
from rl.loop.advantages import group_advantages
from rl.loop.stages import (
    PROBABILITY,
    FinishReason,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    ScoredGroup,
    Trajectory,
    not_scorable,
    reasons,
)
from rl.run.ledger import LedgerRow, ledger_rows, read_rows, write_step

# Share of the within-group variance of the reward, from which an alarm is raised.
EXPLAINED_BY_PART = 0.8
EXPLAINED_BY_LENGTH = 0.5
# Fewer trajectories with variance than this prove nothing.
LEAST_ROWS = 32
# Two scorings of one trajectory that differ by less are equal up to rounding.
SAME = 1e-9
_NOT_PARTS = ("mode", "group_id", "num_tokens", "advantage", "reward")


async def rescore(
    paths: Sequence[Path], stored: Config, config: Config, out: Path, console: Console
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every step anew and write it under `out`; returns the old and the new numbers."""
    before, after, model = stored.reward.preference, config.reward.preference, None
    is_recorded = (
        before
        and after
        and (before.kind, before.model, before.reads) == (after.kind, after.model, after.reads)
    )
    if after is not None and not is_recorded:
        if after.kind == "judge":
            raise ValueError(
                f"the judge {after.model} is not what the run used, and a judge needs an engine; "
                "rescore with a classifier, or with reward.preference=null"
            )
        path = find_model(builtin_reward_model(after.model), "reward.preference.model")
        model = LoadedModel(path, after.dtype, config.data)
    was, would_be = [], []
    tags = config.policy.think_tags
    with closing(TextRewards(config.reward, config.modes, tags)) as text:
        for path in track(paths, "rescoring", console=console, transient=True):
            old = read_rows(path)
            new = await _rescored(old, config, text, model)
            write_step(out, old[0].step, new)
            # Only numbers are kept of each step: the texts of a long run would not fit into memory.
            was.append(scores_of(old))
            would_be.append(scores_of(new))
    return pd.concat(was, ignore_index=True), pd.concat(would_be, ignore_index=True)


class LoadedModel:
    """Implements rewards.preference.preference.PreferenceModel by a model in this process."""

    def __init__(self, path: Path, dtype: str, data: SourceConfig) -> None:
        """data: where the media of the questions are read from."""
        # They load torch, and most ledgers are scored again without a model.
        from policy.models.family import open_visual_inputs
        from rewards.preference.reward_model import RewardModel

        open_inputs = partial(open_visual_inputs, data=data)
        self._model = RewardModel(path, dtype, "cpu", open_inputs)

    async def score(self, inputs: Sequence[PreferenceInput]) -> tuple[float | None, ...]:
        return tuple(self._model.score(inputs))


async def _rescored(
    rows: Sequence[LedgerRow], config: Config, text: TextSource, model: PreferenceModel | None
) -> list[LedgerRow]:
    """Return the rows of one step with new scores and advantages.

    model: asked for preferences; None takes those of the ledger.
    """
    reward = config.reward
    # The ledger keeps the rows of a group together.
    groups = {name: list(of_group) for name, of_group in groupby(rows, lambda row: row.group_id)}
    tags = config.policy.think_tags
    recorded = RecordedScores(groups, reward.probability, tags)
    preference = None
    if reward.preference is not None:
        reads = reward.preference.reads
        preference = recorded if model is None else PreferredAnswers(model, tags, reads)
    service = RewardService(
        reward, config.modes, text, recorded if reward.probability else None, preference
    )
    sampled = [_as_group(group) for group in groups.values()]
    scored = await asyncio.gather(*map(service.score, sampled))
    return ledger_rows(
        rows[0].step,
        [ScoredGroup(group, scores) for group, scores in zip(sampled, scored, strict=True)],
        [
            group_advantages([score.reward for score in scores], config.algorithm.normalize_by_std)
            for scores in scored
        ],
        # They compare the log-probabilities of weights that are gone.
        [[row.mismatch for row in group] for group in groups.values()],
    )


class RecordedScores:
    """Implements rewards.service.ProbabilitySource and PreferenceSource from ledger rows."""

    def __init__(
        self,
        rows: Mapping[str, Sequence[LedgerRow]],
        probability: ProbabilityConfig | None,
        tags: ThinkTags = THINK_TAGS,
    ) -> None:
        """rows: by group. tags: around reasoning."""
        self._rows = rows
        self._tags = tags
        self._probability = probability

    async def accuracies(self, group: RolloutGroup, thinking: Thinking) -> list[Accuracy]:
        assert self._probability is not None, "asked only where the reward is configured"
        accuracies = []
        for row, trajectory in zip(
            self._rows[group.request.group_id], group.trajectories, strict=True
        ):
            probability, baseline = row.parts.get("probability"), row.parts.get("baseline")
            debias = reasons(thinking, trajectory) and self._probability.debias
            if invalid := unanswered(self._probability, trajectory, thinking, self._tags):
                accuracies.append(invalid)
            # A run whose reward had no probability, or was not debiased, did not measure them.
            elif probability is None or (debias and baseline is None):
                failure = not_scorable("the ledger has no probability for it")
                accuracies.append(Accuracy(None, Route(PROBABILITY), failure))
            else:
                accuracies.append(probability_accuracy(probability, baseline if debias else None))
        return accuracies

    async def preferences(self, group: RolloutGroup) -> list[Preference]:
        rows = self._rows[group.request.group_id]
        return [Preference(row.preference_answer, row.parts.get("preference_raw")) for row in rows]


def _as_group(rows: Sequence[LedgerRow]) -> RolloutGroup:
    """The group as the reward service saw it, its tokens but for their number left out."""
    first = rows[0]
    prompt = Prompt(
        id=first.prompt_id,
        messages=tuple(json.loads(first.messages)),
        reference=first.reference,
        task=first.task,
        media=from_json(first.media) if first.media else (),
    )
    request = RolloutRequest(first.group_id, prompt, first.mode, (0,), len(rows), 1, 1.0, None)
    trajectories = [
        Trajectory(
            # One prompt token before the response: a trajectory never begins inside the loss.
            token_ids=np.zeros(1 + row.num_tokens, np.int32),
            loss_mask=np.arange(1 + row.num_tokens) > 0,
            rollout_logprobs=np.zeros(1 + row.num_tokens, np.float32),
            versions=(row.first_version, row.last_version),
            finish_reason=cast(FinishReason, row.finish_reason),
            text=row.text,
            reasoning=row.reasoning,
            answer=row.answer,
            end_token=row.end_token,
            choice=row.as_choice,
        )
        for row in rows
    ]
    return RolloutGroup(request, tuple(trajectories), media_digests=first.media_digests)


# What a reward is made of. One that its length, or one part beside accuracy, explains nearly alone
# is a reward that the policy can win without answering well.


def scores_of(rows: Sequence[LedgerRow]) -> pd.DataFrame:
    """The numbers of each trajectory, but not its texts: those of a run may fill the memory.

    Columns: mode, group_id, num_tokens, advantage, reward, and one per reward part; NaN for none.
    """
    return pd.DataFrame(
        {name: getattr(row, name) for name in _NOT_PARTS} | dict(row.parts) for row in rows
    ).astype({"reward": float, "advantage": float})


def changes(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """How reward and parts differ, indexed by (mode, name); the rows are the same trajectories.

    Columns: the means `was` and `would be`, and `differs`, the share of trajectories where the
    value is another one, appears or disappears.
    """
    names = ["reward", *sorted({*old.columns, *new.columns} - {*_NOT_PARTS})]
    tables = {}
    for mode, rows in old.groupby("mode", sort=False).groups.items():
        was, would = (frame.loc[rows].reindex(columns=names) for frame in (old, new))
        is_same = ((was - would).abs() <= SAME) | (was.isna() & would.isna())
        means = {"was": was.mean(), "would be": would.mean(), "differs": 1 - is_same.mean()}
        # A part of other modes alone is no part of this one.
        is_part = was.notna().any() | would.notna().any() | (was.columns == "reward")
        tables[mode] = pd.DataFrame(means)[is_part]
    return pd.concat(tables)


def sign_flips(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, float]:
    """Share of each mode's trajectories that one scoring pushes up and the other down."""
    pairs = pd.DataFrame({"mode": old["mode"], "product": old["advantage"] * new["advantage"]})
    by_mode = pairs.dropna().groupby("mode", sort=False)["product"]
    return {str(mode): float(np.mean(products.to_numpy() < 0)) for mode, products in by_mode}


def alarms(rows: pd.DataFrame, weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What alone explains a mode's reward within its groups; weights: of the parts, by mode."""
    sentences = []
    for mode, of_mode in rows.dropna(subset="reward").groupby("mode", sort=False):
        parts = weights[str(mode)]
        names = ["reward", "num_tokens", *parts]
        columns = of_mode.reindex(columns=names).fillna(0.0)
        # An advantage sees only how a trajectory differs from the mean of its group.
        centred = columns - columns.groupby(of_mode["group_id"]).transform("mean")
        # Rounding leaves a trace where a whole group has the same value.
        centred[centred.abs() < 1e-12] = 0.0
        if np.count_nonzero(centred["reward"]) < LEAST_ROWS:
            continue
        # The squared correlation of each column with the reward; 0 where one is constant.
        shares = centred.corrwith(centred["reward"]).pow(2).fillna(0.0)
        explained: dict[str, float] = dict(zip(names, shares.tolist(), strict=True))
        # Accuracy is what a reward should be made of: where it explains the reward, a part that
        # agrees with it raises no alarm.
        if explained["accuracy"] < EXPLAINED_BY_PART:
            sentences += [
                f"{mode}: {part} alone explains {explained[part]:.0%} of the reward within "
                f"groups; lower reward.weights.{part}, or see why accuracy does not vary"
                for part, weight in parts.items()
                if part != "accuracy" and weight != 0 and explained[part] >= EXPLAINED_BY_PART
            ]
        if explained["num_tokens"] >= EXPLAINED_BY_LENGTH:
            sentences.append(
                f"{mode}: the length alone explains {explained['num_tokens']:.0%} of the reward "
                "within groups; look at what long and short responses of the ledger have in common"
            )
    return sentences


def as_table(changed: pd.DataFrame) -> Table:
    table = Table(title="mean over the ledger, as it was and as it would be")
    for column in ("mode", "part", "was", "would be", "differs"):
        table.add_column(column, justify="left" if column in ("mode", "part") else "right")
    for (mode, name), *means, differs in changed.itertuples(name=None):
        shown = ("-" if math.isnan(mean) else f"{mean:.4f}" for mean in means)
        table.add_row(mode, name, *shown, f"{differs:.1%}")
    return table
