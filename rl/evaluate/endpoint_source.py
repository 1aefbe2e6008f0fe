"""Servers: any OpenAI-compatible one that has the policy; rules verify its answers here.

All input is checked before the server is asked for an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

from rewards.composition import Accuracy
from rewards.service import RewardService, accuracy_route
from rewards.text.plugins import with_checked_plugins
from rewards.text.text_rewards import TextRewards
from rl.config.run import Config
from rl.data.media.store import MediaStore
from rl.evaluate.sources import Note, Session, Source, prompts_of
from rl.loop.stages import PROBABILITY, Failure, Prompt, RolloutGroup, Route, not_scorable
from rollout.endpoint import open_endpoint, served_model
from rollout.prompts.stream import PromptStream

NEEDS_ENGINE = not_scorable(
    "the probability reward needs log-probabilities of the policy, which an endpoint does not give"
)


async def endpoint_source(
    config: Config, split: str, url: str, served_name: str | None, note: Note
) -> Source:
    """A server that has the policy; rules verify its answers in this process."""
    prompts = prompts_of(PromptStream.open(config), split, config.eval.prompts)
    config = config.model_copy(update={"reward": with_checked_plugins(config.reward)})
    _refuse_unverifiable(prompts, config.reward.probability is not None, note)
    # A server whose model length is too short for the largest budget would answer the other modes
    # and fail every request of this one.
    max_tokens = max(mode.max_tokens for mode in config.modes.values())
    name = await served_model(url, served_name, max_tokens)
    return Source(
        name=f"endpoint_{Path(name).name}",
        path=url,
        policy={"kind": "endpoint", "step": None, "url": url, "served_name": name},
        prompts=prompts,
        open=lambda: _server(config, url, name),
    )


@asynccontextmanager
async def _server(config: Config, url: str, name: str) -> AsyncIterator[Session]:
    reward, modes = config.reward, config.modes
    thinking = {name: mode.thinking for name, mode in modes.items()}
    deadline_s, media = config.rollout.group_timeout_s, MediaStore(config.data)
    with closing(TextRewards(reward, modes)) as text:
        scorer = RewardService(reward, modes, text, NoProbability() if reward.probability else None)
        async with open_endpoint(url, name, thinking, deadline_s, media) as endpoint:
            # A server renders the chat itself, so there are no prompt tokens to give it.
            yield Session(lambda prompt, mode: (), endpoint, scorer)


class NoProbability:
    """Implements rewards.service.ProbabilitySource where no log-probabilities can be had."""

    async def accuracies(self, group: RolloutGroup, thinking: bool) -> list[Accuracy]:
        return [Accuracy(None, Route(PROBABILITY), NEEDS_ENGINE) for _ in group.trajectories]


def _refuse_unverifiable(prompts: Sequence[Prompt], uses_probability: bool, note: Note) -> None:
    """Say once how many prompts have no score, and raise ValueError if none has one."""
    if videos := sum(any(m.kind == "video" for m in prompt.media) for prompt in prompts):
        raise ValueError(
            f"{videos} prompts show videos, of which a server would choose other frames; evaluate "
            "run= or model=, or other data"
        )
    # Said before the server works for hours, not found in a column of unscored responses after it.
    reasons: Counter[Failure] = Counter()
    for prompt in prompts:
        route = accuracy_route(prompt, uses_probability)
        if isinstance(route, Failure):
            reasons[route] += 1
        elif route.name == PROBABILITY:
            reasons[NEEDS_ENGINE] += 1
    for why, count in reasons.most_common():
        note(f"note: {count} of {len(prompts)} prompts count as unscored: {why}")
    if reasons.total() == len(prompts):
        raise ValueError(
            f"no prompt of this split can be scored over an endpoint: {next(iter(reasons))}; "
            "evaluate run= or model=, or other data"
        )
