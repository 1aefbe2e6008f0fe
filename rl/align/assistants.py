"""Language models that divide answers or label claims: in engines of the project, or on a server.

Both are asked in the chat of the model, without reasoning. A label is read from one token: how
probable "yes" and "no" are as the next one, in any of their spellings. `check_assistants` makes
sure that the configured models can do this before anything heavy runs.
"""

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from policy.builtin.names import builtin_policy
from policy.models.checks import refuse_longer_than_model
from policy.models.loading import resolve_model
from rl.align.claims.types import Label
from rl.align.judging import DIVIDER_TOKENS, Assistant
from rl.config.align import AssistantConfig
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.names import Medium
from rl.data.media.store import MediaStore
from rl.loop.interfaces import GenerationFailed, Sampler
from rl.loop.stages import NextTokenRequest, Prompt, RolloutRequest
from rl.system.cluster import Cluster
from rollout.chat import ChatTemplate
from rollout.endpoint import Endpoint, open_endpoint, served_model
from rollout.engines.pool import EnginePool
from rollout.engines.worker import WorkerSettings
from rollout.prompts.row_media import place_media

# The mode of every request here: engine and endpoint are opened with thinking={ASK: False}.
ASK = "ask"
WORDS = ("yes", "no")
PROBE = "Is 2 an even number? Please answer yes or no."

# One count for the whole process: labeller and divider may share an engine, and an engine confuses
# two requests of one id.
_request_numbers = itertools.count()


class EngineAssistant:
    """Implements rl.align.judging.Assistant by a model in the project's engines."""

    def __init__(self, name: str, engine: EnginePool, chat: ChatTemplate) -> None:
        self.name = name
        self._engine = engine
        self._chat = chat

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        prompt = _prompt(messages)
        return await _reply(self._engine, prompt, self._encoded(prompt), max_tokens)

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are, of the softmax over the whole vocabulary."""
        prompt = _prompt([{"role": "user", "content": question}], media)
        # Not when it is made, because a divider may well have a tokenizer that cannot label.
        tokens = yes_no_tokens(self.name, self._chat)
        request = NextTokenRequest(prompt.id, prompt, self._encoded(prompt), tuple(tokens))
        logprobs = await self._engine.next_token_logprobs(request)
        return label_of(zip(tokens.values(), logprobs, strict=True))

    def _encoded(self, prompt: Prompt) -> tuple[int, ...]:
        try:
            return self._chat.prompt_token_ids(prompt, thinking=False)
        except ValueError as error:
            # A claim may hold text that writes a special token. That fails this request alone.
            raise GenerationFailed("request_refused", error) from error


class EndpointAssistant:
    """Implements rl.align.judging.Assistant by an OpenAI-compatible server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        return await _reply(self._endpoint, _prompt(messages), (), max_tokens)

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are, as far as they are among the 20 likeliest tokens."""
        prompt = _prompt([{"role": "user", "content": question}], media)
        return label_of(await self._endpoint.next_token_logprobs(prompt, ASK))


def label_of(logprobs: Iterable[tuple[str, float]]) -> Label:
    """The label of next tokens, given as text and log-probability; others than yes and no count 0.

    Example: label_of([("Yes", log(0.5)), (" yes", log(0.2)), ("No.", log(0.1))]) == Label(0.7, 0.0)
    """
    tokens = [(text.strip().casefold(), math.exp(logprob)) for text, logprob in logprobs]
    # fsum, so that the order of the tokens does not change the last bit of a label.
    return Label(*(math.fsum(p for text, p in tokens if text == word) for word in WORDS))


@cache
def yes_no_tokens(name: str, chat: ChatTemplate) -> dict[int, str]:
    """The tokens that spell yes or no whole, with the text of each.

    Those are the words in lower case, capitalised and in capitals, with and without a space in
    front. name: the labeller's, for errors. Raises ValueError if there is none of yes, or none of
    no.
    """
    tokens: dict[int, str] = {}
    # Some tokenizers put a space in front of any text; after a line break the bare word shows.
    line_break = chat.token_ids("\n")
    words = [spelling for word in WORDS for spelling in (word, word.capitalize(), word.upper())]
    for text in [space + word for word in words for space in ("", " ")]:
        for ids in (chat.token_ids(text), chat.token_ids(f"\n{text}")[len(line_break) :]):
            shown = chat.raw_text(ids)
            # The unknown token is one token too, and a normaliser may have changed the word.
            if len(ids) == 1 and shown.strip().casefold() in WORDS:
                tokens[ids[0]] = shown
    spelled = {text.strip().casefold() for text in tokens.values()}
    if missing := [word for word in WORDS if word not in spelled]:
        raise ValueError(
            f"the tokenizer of labeller {name} has no token that spells {' or '.join(missing)}, so "
            "no label can be read from the next token; take a labeller whose tokenizer has both "
            "words, as those of Qwen and MiniCPM do"
        )
    return tokens


def _prompt(messages: Sequence[Mapping[str, Any]], media: Sequence[Medium] = ()) -> Prompt:
    """The media are shown in order before the first message of a user."""
    shown, ordered = place_media(messages, media, has_tags=False)
    return Prompt(f"{ASK}/{next(_request_numbers)}", shown, reference="", media=ordered)


async def _reply(
    sampler: Sampler, prompt: Prompt, token_ids: tuple[int, ...], max_tokens: int
) -> str | None:
    # At temperature 0: the same answer is divided the same way in every pass.
    request = RolloutRequest(prompt.id, prompt, ASK, token_ids, 1, max_tokens, 0.0, None)
    (trajectory,) = (await sampler.generate(request)).trajectories
    return None if trajectory.finish_reason == "length" else trajectory.text


@dataclass(frozen=True)
class AssistantSource:
    """A model that was checked and can be opened; nothing of it runs before."""

    config: Config
    settings: AssistantConfig
    model: Path | None
    """None for the policy that is aligned, and for an endpoint."""
    served_name: str | None
    """Its name on the endpoint; None for a model that runs in engines here."""

    @asynccontextmanager
    async def open(self, policy: Path, cluster: Cluster | None) -> AsyncIterator[Assistant]:
        """policy: directory of the policy that is aligned. cluster: where engines go, if any."""
        config, settings = self.config, self.settings
        if settings.endpoint is not None:
            assert self.served_name is not None, "an endpoint that was checked has a name"
            deadline_s, media = config.rollout.group_timeout_s, MediaStore(config.data)
            async with open_endpoint(
                settings.endpoint, self.served_name, {ASK: False}, deadline_s, media
            ) as endpoint:
                yield EndpointAssistant(endpoint)
            return
        assert cluster is not None, "a model in engines needs a cluster"
        model = self.model or policy
        worker = WorkerSettings(
            model=str(model.absolute()),
            dtype=settings.dtype or config.policy.dtype,
            max_model_length=settings.max_model_length or config.rollout.max_model_length,
            tensor_parallel=config.rollout.tensor_parallel,
            transport=config.transport,
            thinking={ASK: False},
            seed=config.seed,
            engine=config.rollout.engine | settings.engine,
            data=config.data,
        )
        # Labels are kept under this name, so it holds all that may change an answer.
        deciding = json.dumps([worker.dtype, worker.max_model_length, settings.engine], default=str)
        name = f"{model.resolve().name}@{stamp_of_model(model)}/{stamp(deciding)}"
        engine = EnginePool.of_run(
            config, worker, cluster.group, cluster.placement.engine_bundles, logs=cluster.logs
        )
        try:
            await engine.start()
            chat = _chat_template(config, self.model, policy)
            yield EngineAssistant(name, engine, chat)
        finally:
            # The error of an engine that is stuck must not hide what went wrong before.
            await asyncio.gather(engine.close(), return_exceptions=True)


@dataclass(frozen=True)
class Assistants:
    labeller: AssistantSource
    divider: AssistantSource | None
    """None where rules divide."""


def _chat_template(config: Config, model: Path | None, policy: Path) -> ChatTemplate:
    """How an assistant is asked; model: None for the policy, whose think tags are configured."""
    if model is None:
        return ChatTemplate(str(policy), config.policy.think_tags)
    return ChatTemplate(str(model))


async def check_assistants(config: Config, policy: Path) -> Assistants:
    """The assistants that `config.align` names.

    policy: directory of the policy that is aligned first. Raises ValueError for a model that cannot
    do its task.
    """

    async def checked(settings: AssistantConfig, max_tokens: int) -> AssistantSource:
        # max_tokens: the most that it is asked to write at once.
        if settings.endpoint is not None:
            name = await served_model(settings.endpoint, settings.served_name, max_tokens)
            return AssistantSource(config, settings, None, name)
        model = None
        if settings.model is not None:
            model = resolve_model(builtin_policy(settings.model), untie=False)
        max_length = settings.max_model_length or config.rollout.max_model_length
        refuse_longer_than_model(model or policy, max_length)
        return AssistantSource(config, settings, model, None)

    align = config.align
    shows_videos = any(source.columns.videos for source in config.data.sources.values())
    if align.labeller.endpoint is not None and shows_videos:
        raise ValueError(
            "align.labeller.endpoint is a server, which would choose other frames of the videos in "
            "data.columns.videos; name a model, align.labeller.model=DIR_OR_NAME"
        )
    labeller = await checked(align.labeller, max_tokens=1)
    if align.labeller.endpoint is not None:
        # Only an answer shows whether a server sends log-probabilities.
        async with labeller.open(policy, cluster=None) as assistant:
            try:
                await assistant.label(PROBE, ())
            except GenerationFailed as failure:
                raise ValueError(
                    f"align.labeller.endpoint {align.labeller.endpoint} cannot be asked for the "
                    f"probabilities of yes and no: {failure}"
                ) from failure
    else:
        model = labeller.model or policy
        chat = _chat_template(config, labeller.model, policy)
        if config.data.shows_media and not chat.shows_media:
            raise ValueError(
                f"the labeller {model} sees no images, and the prompts show some; set "
                "align.labeller.model to a vision-language model"
            )
        yes_no_tokens(str(model), chat)
    divider = None if align.divider is None else await checked(align.divider, DIVIDER_TOKENS)
    return Assistants(labeller, divider)
