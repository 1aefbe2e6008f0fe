"""Language models that divide answers or label claims: in the project's engines, or on a server.

Both are asked in the chat of the model, without reasoning. What a label is made of is one token:
"yes" and "no" as the model would write them next, in any of their spellings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from rl.align.claims.types import Label
from rl.data.media.names import Medium
from rl.evaluate.evaluation import Sampler
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import NextTokenRequest, Prompt, RolloutRequest
from rollout.chat import ChatTemplate
from rollout.endpoint import Endpoint
from rollout.engines.pool import EnginePool
from rollout.prompts.row_media import place_media

ASK = "ask"
"""The mode of every request here: engine and endpoint are opened with thinking={ASK: False}."""
WORDS = ("yes", "no")

# Of the process, because assistants may share an engine.
_numbers = itertools.count()


class EngineAssistant:
    """Implements rl.align.judging.Assistant by a model in the project's engines."""

    def __init__(self, name: str, engine: EnginePool, chat: ChatTemplate) -> None:
        """chat: of the model that the engine serves."""
        self.name = name
        self._engine = engine
        self._chat = chat

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        """The likeliest reply; None if the token budget cut it off. Raises GenerationFailed."""
        prompt = _prompt(messages)
        return await _reply(self._engine, prompt, self._encoded(prompt), max_tokens)

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are, of the softmax over the whole vocabulary.

        Raises GenerationFailed, and ValueError for a model that cannot label or cannot see.
        """
        if media and not self._chat.shows_media:
            raise ValueError(
                f"labeller {self.name} sees no images or videos, and is shown {len(media)} with "
                f"{question!r:.100}; take a vision-language model, or data without media"
            )
        prompt = _question(question, media)
        tokens = self._yes_no
        request = NextTokenRequest(prompt.id, prompt, self._encoded(prompt), tuple(tokens))
        logprobs = await self._engine.next_token_logprobs(request)
        return label_of(zip(tokens.values(), logprobs, strict=True))

    @cached_property
    def _yes_no(self) -> Mapping[int, str]:
        return yes_no_tokens(self.name, self._chat)

    def _encoded(self, prompt: Prompt) -> tuple[int, ...]:
        try:
            return self._chat.prompt_token_ids(prompt, thinking=False)
        except ValueError as error:
            raise GenerationFailed("request_refused", error) from error


class EndpointAssistant:
    """Implements rl.align.judging.Assistant by an OpenAI-compatible server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        """The likeliest reply; None if the token budget cut it off.

        Raises GenerationFailed if the request is at fault, ValueError if the server is.
        """
        return await _reply(self._endpoint, _prompt(messages), (), max_tokens)

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are, as far as they are among the 20 likeliest tokens.

        Raises GenerationFailed if the request is at fault, ValueError if the server is, and for
        videos.
        """
        if any(medium.kind == "video" for medium in media):
            raise ValueError(
                f"labeller {self.name} is a server, which would choose other frames of a video; "
                "take a model directory as the labeller, or data without videos"
            )
        prompt = _question(question, media)
        return label_of(await self._endpoint.next_token_logprobs(prompt, ASK))


def label_of(logprobs: Iterable[tuple[str, float]]) -> Label:
    """The label of next tokens, given as text and log-probability; others than yes and no count 0.

    Example: label_of([("Yes", log(0.5)), (" yes", log(0.2)), ("No.", log(0.1))]) == Label(0.7, 0.0)
    """
    probabilities: dict[str, list[float]] = {word: [] for word in WORDS}
    for text, logprob in logprobs:
        if (word := _word(text)) in probabilities:
            probabilities[word].append(math.exp(logprob))
    p_yes, p_no = map(math.fsum, probabilities.values())
    return Label(p_yes, p_no)


def yes_no_tokens(name: str, chat: ChatTemplate) -> dict[int, str]:
    """The tokens that spell yes or no whole, with the text of each.

    name: the labeller's, for errors. Raises ValueError if there is none of yes, or none of no.
    """
    tokens = {word: _one_token_spellings(word, chat) for word in WORDS}
    if missing := [word for word, found in tokens.items() if not found]:
        raise ValueError(
            f"the tokenizer of labeller {name} has no token that spells {' or '.join(missing)}, so "
            "no label can be read from the next token; take a labeller whose tokenizer has both "
            "words, as those of Qwen and MiniCPM do"
        )
    return {token: text for found in tokens.values() for token, text in found.items()}


def _one_token_spellings(word: str, chat: ChatTemplate) -> dict[int, str]:
    """`word` in lower case, capitalised and in capitals, with and without a space in front."""
    found: dict[int, str] = {}
    # Some tokenizers put a space in front of any text; after a line break the bare word shows.
    line_break = chat.token_ids("\n")
    for spelling in (word, word.capitalize(), word.upper()):
        for text in (spelling, f" {spelling}"):
            after_break = chat.token_ids(f"\n{text}")
            for ids in (chat.token_ids(text), after_break[len(line_break) :]):
                # An unknown token is one token too, and a normaliser may have changed the word.
                if len(ids) == 1 and _word(chat.raw_text(ids)) == word:
                    found[ids[0]] = chat.raw_text(ids)
    return found


def _word(text: str) -> str:
    return text.strip().casefold()


def _question(question: str, media: Sequence[Medium]) -> Prompt:
    """One user message: the media in order, then the question."""
    messages = place_media(({"role": "user", "content": question},), media, has_tags=False)
    return _prompt(*messages)


def _prompt(messages: Sequence[Mapping[str, Any]], media: Sequence[Medium] = ()) -> Prompt:
    return Prompt(f"{ASK}/{next(_numbers)}", tuple(messages), reference="", media=tuple(media))


async def _reply(
    sampler: Sampler, prompt: Prompt, token_ids: tuple[int, ...], max_tokens: int
) -> str | None:
    request = RolloutRequest(prompt.id, prompt, ASK, token_ids, 1, max_tokens, 0.0, None)
    (trajectory,) = (await sampler.generate(request)).trajectories
    return None if trajectory.finish_reason == "length" else trajectory.text
