"""The reward service over a ledger: the responses and what cannot be computed anew come from it.

A probability is taken from the ledger, because it belongs to weights that are gone, and so is the
score of a preference model that stays the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from policy.builtin.names import builtin_reward_model
from policy.models.cache import find_model
from rewards.composition import Accuracy, Preference
from rewards.preference.preference import PreferenceInput, PreferenceModel
from rewards.probability import probability_accuracy, unanswered
from rewards.service import PreferredAnswers, RewardService, TextSource
from rewards.text.text_rewards import TextRewards
from rl.config.reward import ProbabilityConfig, RewardConfig
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
)
from rl.rescore.study import scores_of
from rl.run.ledger import LedgerRow, ledger_rows, read_rows, write_step


async def rescore(
    paths: Sequence[Path], stored: Config, config: Config, out: Path, console: Console
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every step anew and write it under `out`; returns the old and the new numbers."""
    model = _preference_model(stored.reward, config.reward)
    was, would_be = [], []
    with closing(TextRewards(config.reward, config.modes)) as text:
        for path in track(paths, "rescoring", console=console, transient=True):
            old = read_rows(path)
            new = await _rescored(old, config, text, model)
            write_step(out, old[0].step, new)
            # Only numbers are kept of each step: the texts of a long run would not fit into memory.
            was.append(scores_of(old))
            would_be.append(scores_of(new))
    return pd.concat(was, ignore_index=True), pd.concat(would_be, ignore_index=True)


def _preference_model(stored: RewardConfig, wanted: RewardConfig) -> PreferenceModel | None:
    """The reward model to ask, or None where the ledger has its scores."""
    before, after = stored.preference, wanted.preference
    if after is None or (before and (before.kind, before.model) == (after.kind, after.model)):
        return None
    if after.kind == "judge":
        raise ValueError(
            f"the judge {after.model} is not what the run used, and a judge needs an engine; "
            "rescore with a classifier, or with reward.preference=null"
        )
    path = find_model(builtin_reward_model(after.model), "the preference model")
    return LoadedModel(path, after.dtype)


class LoadedModel:
    """Implements rewards.preference.preference.PreferenceModel by a model in this process."""

    def __init__(self, path: Path, dtype: str) -> None:
        # It loads torch, and most ledgers are scored again without a model.
        from rewards.preference.reward_model import RewardModel

        self._model = RewardModel(path, dtype, "cpu")

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
    recorded = RecordedScores(groups, reward.probability)
    preference = None
    if reward.preference is not None:
        preference = recorded if model is None else PreferredAnswers(model)
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
        self, rows: Mapping[str, Sequence[LedgerRow]], probability: ProbabilityConfig | None
    ) -> None:
        """rows: by group."""
        self._rows = rows
        self._probability = probability

    async def accuracies(self, group: RolloutGroup, thinking: bool) -> list[Accuracy]:
        assert self._probability is not None, "asked only where the reward is configured"
        debias = thinking and self._probability.debias
        accuracies = []
        for row, trajectory in zip(
            self._rows[group.request.group_id], group.trajectories, strict=True
        ):
            probability, baseline = row.parts.get("probability"), row.parts.get("baseline")
            if invalid := unanswered(self._probability, trajectory, thinking):
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
        )
        for row in rows
    ]
    return RolloutGroup(request, tuple(trajectories), media_digests=first.media_digests)
