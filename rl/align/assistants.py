"""Opens the models that divide answers and label claims: engines in the run's places, or a server.

Whether they can be used is checked first, before anything heavy runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from policy.builtin.names import builtin_policy
from policy.models.checks import refuse_longer_than_model
from policy.models.loading import resolve_model
from rl.align.assistant import ASK, EndpointAssistant, EngineAssistant, yes_no_tokens
from rl.align.judging import DIVIDER_TOKENS, Assistant
from rl.config.align import AssistantConfig
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.store import MediaStore
from rl.loop.interfaces import GenerationFailed
from rl.system.cluster import Cluster
from rollout.chat import ChatTemplate
from rollout.endpoint import open_endpoint, served_model
from rollout.engines.pool import EnginePool
from rollout.engines.worker import WorkerSettings

LABELLER, DIVIDER = "labeller", "divider"
PROBE = "Is 2 an even number? Please answer yes or no."


@dataclass(frozen=True)
class AssistantSource:
    """A checked assistant; nothing of it runs before it is opened."""

    config: Config
    asked: AssistantConfig
    model: Path | None
    """None for the policy that is aligned, and for an endpoint."""
    served_name: str | None
    """None for what runs in engines here."""

    @asynccontextmanager
    async def open(self, policy: Path, cluster: Cluster | None) -> AsyncIterator[Assistant]:
        """policy: directory of the policy that is aligned. cluster: where engines go, if any."""
        if self.served_name is not None:
            assert self.asked.endpoint is not None
            async with open_endpoint(
                self.asked.endpoint,
                self.served_name,
                {ASK: False},
                self.config.rollout.group_timeout_s,
                MediaStore(self.config.data),
            ) as endpoint:
                yield EndpointAssistant(endpoint)
            return
        assert cluster is not None, "engines need a place"
        model = self.model or policy
        engine = EnginePool.of_run(
            self.config, self._settings(model), cluster.group, cluster.placement.engine_bundles
        )
        try:
            await engine.start()
            yield EngineAssistant(self._name(model), engine, ChatTemplate(str(model)))
        finally:
            # What ends the wait for a stuck engine must not hide what went wrong.
            await asyncio.gather(engine.close(), return_exceptions=True)

    def _name(self, model: Path) -> str:
        """Tells it from any other whose answers may differ."""
        settings = self._settings(model)
        deciding = [settings.dtype, settings.max_model_length, self.asked.engine]
        weights = stamp_of_model(model)
        return f"{model.resolve().name}@{weights}/{stamp(json.dumps(deciding, default=str))}"

    def _settings(self, model: Path) -> WorkerSettings:
        config, asked = self.config, self.asked
        return WorkerSettings(
            model=str(model.absolute()),
            dtype=asked.dtype or config.policy.dtype,
            max_model_length=asked.max_model_length or config.rollout.max_model_length,
            tensor_parallel=config.rollout.tensor_parallel,
            transport=config.transport,
            thinking={ASK: False},
            seed=config.seed,
            engine=config.rollout.engine | asked.engine,
            data=config.data,
        )


async def assistant_source(config: Config, role: str, policy: Path) -> AssistantSource | None:
    """The assistant of a role as `config.align` names it; None where it names none.

    role: LABELLER or DIVIDER. policy: directory of the policy that is aligned first. Raises
    ValueError for one that cannot be asked what its role asks.
    """
    asked: AssistantConfig | None = getattr(config.align, role)
    if asked is None:
        return None
    if asked.endpoint is not None:
        _refuse_videos(config, role)
        budget = 1 if role == LABELLER else DIVIDER_TOKENS
        name = await served_model(asked.endpoint, asked.served_name, budget)
        source = AssistantSource(config, asked, None, name)
        if role == LABELLER:
            await _refuse_without_logprobs(source, policy)
        return source
    model = None
    if asked.model is not None:
        model = resolve_model(builtin_policy(asked.model), untie=False)
    _refuse_unfit(config, asked, role, model or policy)
    return AssistantSource(config, asked, model, None)


async def _refuse_without_logprobs(source: AssistantSource, policy: Path) -> None:
    async with source.open(policy, cluster=None) as labeller:
        try:
            await labeller.label(PROBE, ())
        except GenerationFailed as failure:
            raise ValueError(
                f"align.labeller.endpoint {source.asked.endpoint} cannot be asked for the "
                f"probabilities of yes and no: {failure}"
            ) from failure


def _refuse_videos(config: Config, role: str) -> None:
    if role == LABELLER and config.data.columns.videos:
        raise ValueError(
            "align.labeller.endpoint is a server, which would choose other frames of the videos in "
            "data.columns.videos; name a model, align.labeller.model=DIR_OR_NAME"
        )


def _refuse_unfit(config: Config, asked: AssistantConfig, role: str, model: Path) -> None:
    refuse_longer_than_model(model, asked.max_model_length or config.rollout.max_model_length)
    chat = ChatTemplate(str(model))
    if role != LABELLER:
        return
    if config.data.shows_media and not chat.shows_media:
        raise ValueError(
            f"the labeller {model} sees no images, and the prompts show some; set "
            "align.labeller.model to a vision-language model"
        )
    yes_no_tokens(str(model), chat)
