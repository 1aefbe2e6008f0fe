"""An OpenAI-compatible server as the source of responses, such as `vllm serve` of an export.

What a server sends is put back together as engines/worker.py would return it: one text, which
rollout/chat.py splits. A server with a reasoning parser sends reasoning and answer apart, without
the closing tag between them; a server without one sends the whole text.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
from openai.types.chat import ChatCompletion

from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.rollout import Thinking
from rl.data.media.names import MediaError, StillImage
from rl.data.media.store import MediaStore
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import (
    Choice,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Trajectory,
    split_response,
)

MAX_IN_FLIGHT = 128
MAX_RETRIES = 4
"""Of a request that met no server or a busy one, after 0.5, 1, 2 and 4 seconds."""
CHECK_TIMEOUT_S = 60.0
TOP_LOGPROBS = 20
"""As many as every server lists; vLLM refuses more unless it is started with --max-logprobs."""
# A server takes what a request leaves out from its own defaults, such as vLLM from the model's
# generation_config.json; the project's engines sample without any of these.
EXTRA = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# As the engines' own text, so that leaks of tags are seen (rewards/text/format.py).
EXTRA |= {"skip_special_tokens": False, "return_token_ids": True}
PROBE = Prompt("probe", ({"role": "user", "content": "2+2?"},), "4")


async def served_model(url: str, wanted: str | None, max_tokens: int) -> str:
    """The name under which a server has a model that can be asked for `max_tokens`.

    wanted: None where the server has only one. Raises ValueError if it does not answer, or has no
    such model.
    """
    # Without retries: at the start a person waits for the answer, and can mend the address.
    try:
        async with _client(url, CHECK_TIMEOUT_S, max_retries=0) as client:
            models = {model.id: model async for model in client.models.list()}
    except openai.AuthenticationError as error:
        raise ValueError(f"endpoint {url} wants a key: set OPENAI_API_KEY ({error})") from error
    # The URL may belong to some other web server. The OpenAI client then fails with whatever error
    # its answer happens to cause.
    except (openai.APIError, httpx.InvalidURL, AttributeError, TypeError, ValueError) as error:
        raise _does_not_answer(url, error, CHECK_TIMEOUT_S) from error
    name = next(iter(models)) if wanted is None and len(models) == 1 else wanted
    if name not in models:
        raise ValueError(
            f"endpoint {url} serves {', '.join(models) or 'no model'}"
            + (f", not {wanted}" if wanted else "")
            + "; name what it serves with served_name=NAME"
        )
    # vLLM says how many tokens it takes, other servers do not, and then only asking tells.
    length = (models[name].model_extra or {}).get("max_model_len")
    if length is not None and length <= max_tokens:
        raise ValueError(
            f"endpoint {url} takes {length} tokens of prompt and response, and a mode may answer "
            f"with {max_tokens}; serve it with a larger --max-model-len, or lower the modes' "
            "max_tokens"
        )
    return name


@asynccontextmanager
async def open_endpoint(
    url: str,
    served_name: str,
    thinking: Mapping[str, Thinking],
    deadline_s: float,
    media: MediaStore,
    variables: Mapping[str, Mapping[str, Any]] = {},
    tags: ThinkTags = THINK_TAGS,
) -> AsyncIterator[Endpoint]:
    """An endpoint that can be asked; raises ValueError if it refuses what every request has in it.

    thinking: of each mode. deadline_s: of one response, its retries included. media:
    reads the images of prompts. variables: of the chat template by mode, beside enable_thinking.
    tags: around reasoning.
    """
    async with _client(url, deadline_s, MAX_RETRIES) as client:
        endpoint = Endpoint(client, served_name, thinking, deadline_s, media, variables, tags)
        # One token, of reasoning if any mode has it, tells whether a parser sends that apart: it
        # then comes as reasoning, and the content stays empty.
        mode = max(thinking, key=lambda name: (thinking[name] is True, bool(thinking[name])))
        try:
            reply = await endpoint.reply(RolloutRequest("probe", PROBE, mode, (), 1, 1, 0.0, None))
        except GenerationFailed as failure:
            why = f"endpoint {endpoint.url} cannot be asked as vLLM is: {failure}"
            raise ValueError(why) from None
        endpoint.splits_reasoning = not reply.choices[0].message.content
        yield endpoint


def _client(url: str, timeout_s: float, max_retries: int) -> openai.AsyncOpenAI:
    key = os.environ.get("OPENAI_API_KEY", "none")
    return openai.AsyncOpenAI(base_url=url, api_key=key, timeout=timeout_s, max_retries=max_retries)


@dataclass
class Endpoint:
    """Implements rl.evaluate.evaluation.Sampler."""

    client: openai.AsyncOpenAI
    served_name: str
    thinking: Mapping[str, Thinking]
    deadline_s: float
    media: MediaStore
    variables: Mapping[str, Mapping[str, Any]]
    tags: ThinkTags
    splits_reasoning: bool = False
    """Whether a parser of the server sends reasoning apart from the answer."""

    def __post_init__(self) -> None:
        self.url = str(self.client.base_url)
        # With the address of the server, since another may call another model so.
        self.name = f"{self.served_name} at {self.url}"
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._answered_at = -math.inf

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        """Return a group of one trajectory, whose prompt tokens the server keeps to itself.

        Raises GenerationFailed if the request is at fault, ValueError if the server is.
        """
        thinking = self.thinking[request.mode]
        async with self._slots:
            reply = await self.reply(request)
        choice = reply.choices[0]
        if choice.finish_reason not in ("stop", "length"):
            raise GenerationFailed("aborted", f"the server ended with {choice.finish_reason}")
        ids = (choice.model_extra or {}).get("token_ids")
        if ids is None:
            if reply.usage is None:
                raise ValueError(
                    f"endpoint {self.url} tells neither token_ids nor usage: no tokens are counted"
                )
            # Zeros, as many as the server counts: lengths are measured all the same.
            ids = [0] * reply.usage.completion_tokens
        token_ids = np.asarray(ids, np.int32)
        if not len(token_ids):
            raise GenerationFailed("empty", "the server returned no tokens")
        # What a parser took apart is put together, with the closing tag in between.
        fields = choice.message.model_extra or {}
        said = fields.get("reasoning") or fields.get("reasoning_content")
        text = choice.message.content or said or ""
        # A parser gives no reasoning where the text begins with the closing tag.
        if choice.message.content and (said is not None or (thinking and self.splits_reasoning)):
            text = f"{said or ''}{self.tags.close}{text}"
        chosen = None
        if thinking == "auto":
            chosen, text = self._chosen(text)
            thinking = chosen.thinking
        reasoning, answer = split_response(text, thinking, self.tags)
        trajectory = Trajectory(
            token_ids=token_ids,
            # Nobody trains on an endpoint's samples, so log-probabilities and versions are empty.
            loss_mask=np.ones(len(token_ids), np.bool_),
            rollout_logprobs=np.zeros(len(token_ids), np.float32),
            versions=(0, 0),
            finish_reason=choice.finish_reason,
            text=text,
            reasoning=reasoning,
            answer=answer,
            choice=chosen,
        )
        return RolloutGroup(request, (trajectory,))

    def _chosen(self, text: str) -> tuple[Choice, str]:
        """What a response chose, and its text behind the choice.

        By its text, because a server tells no tokens of its template: a blank that is closed at
        once is no reasoning. Engines read token ids, and differ where reasoning was begun and
        closed without a word; there both count a leak or no reasoning, and neither is right.
        """
        begun, closed, rest = text.partition(self.tags.close)
        if closed and not begun.strip():
            return Choice(False, 1), rest.removeprefix("\n\n")
        return Choice(True, 1), text.removeprefix("\n")

    async def next_token_logprobs(self, prompt: Prompt, mode: str) -> tuple[tuple[str, float], ...]:
        """The likeliest next tokens, 20 at most: the text of each with its log-probability.

        One that is sampled and less likely takes the place of the last. Raises GenerationFailed if
        the request is at fault, ValueError if the server is, as one is that sends none.
        """
        # At temperature 1 servers that report the model's own distribution (OpenAI; vLLM unless it
        # is started with another --logprobs-mode) say the same as those that report the one they
        # sample from.
        request = RolloutRequest(prompt.id, prompt, mode, (), 1, 1, 1.0, None)
        async with self._slots:
            reply = await self.reply(request, logprobs=True, top_logprobs=TOP_LOGPROBS)
        listed: tuple[tuple[str, float], ...] = ()
        # The client hands on what is missing or has another form as it came.
        logprobs: Any = reply.choices[0].logprobs
        with suppress(AttributeError, IndexError, TypeError, ValueError):
            listed = tuple((e.token, float(e.logprob)) for e in logprobs.content[0].top_logprobs)
        if not listed:
            raise ValueError(
                f"endpoint {self.url} was asked for log-probabilities and sends none (logprobs: "
                f"{logprobs!r:.200}); take a server that does (vLLM), or a model directory"
            )
        # Rounding may lift a certain token a little above 0. `not` and `<=` refuse NaN as well.
        if wrong := [logprob for _, logprob in listed if not logprob <= 1e-3]:
            raise ValueError(
                f"endpoint {self.url} sends {wrong[0]} for a log-probability; mend the server"
            )
        return listed

    async def reply(self, request: RolloutRequest, **more: Any) -> ChatCompletion:
        """The server's own answer, of at least one choice; more: parameters of the request.

        Raises GenerationFailed if the request is at fault, ValueError if the server is.
        """
        asked_at = time.monotonic()
        # As rl.export writes templates and the fields of each mode.
        asked = {"enable_thinking": self.thinking[request.mode]}
        asked |= self.variables.get(request.mode, {})
        extra = EXTRA | {"chat_template_kwargs": asked}
        try:
            async with asyncio.timeout(self.deadline_s):
                # In a thread, because encoding pictures would hold up the other requests.
                messages: Any = await asyncio.to_thread(
                    messages_with_images, request.prompt, self.media
                )
                reply = await self.client.chat.completions.create(
                    model=self.served_name,
                    messages=messages,
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=request.seed,
                    extra_body=extra,
                    **more,
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            # A server that answered others in the meantime is alive, and this request too long.
            if self._answered_at > asked_at:
                raise GenerationFailed("timeout", "rollout.group_timeout_s passed") from None
            raise _does_not_answer(self.url, error, self.deadline_s) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise GenerationFailed("request_refused", error) from error
        except openai.APIError as error:
            raise _does_not_answer(self.url, error, self.deadline_s) from error
        except MediaError as error:
            raise GenerationFailed("bad_media", error) from error
        # The client does not validate what it was sent.
        if not isinstance(reply, ChatCompletion) or not reply.choices:
            raise ValueError(f"endpoint {self.url} sends no chat completions, but {reply!r:.200}")
        self._answered_at = time.monotonic()
        return reply


def messages_with_images(prompt: Prompt, store: MediaStore) -> list[dict[str, Any]]:
    """The prompt's messages as a chat server takes them, with the very pixels that training shows.

    Raises MediaError, and ValueError for a video, of which a server would choose other frames.
    """
    media = iter(prompt.media)

    def shown(part: Mapping[str, Any]) -> Mapping[str, Any]:
        if part["type"] == "text":
            return part
        medium = store.read(next(media))
        if not isinstance(medium, StillImage):
            raise ValueError("a video cannot be sent to a server; ask about images")
        # PNG, because it loses nothing: the server must see the pixels that training shows.
        written = BytesIO()
        medium.pixels.save(written, "PNG")
        address = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": address}}

    return [
        m if isinstance(m["content"], str) else {**m, "content": [*map(shown, m["content"])]}
        for m in map(dict, prompt.messages)
    ]


def _does_not_answer(url: str, error: Exception, deadline_s: float) -> ValueError:
    is_late = isinstance(error, TimeoutError | openai.APITimeoutError)
    why = f"no reply within {deadline_s:g} s" if is_late else str(error.__cause__ or error)
    return ValueError(
        f"endpoint {url} does not answer: {why}; start it, or mend the address (vLLM's ends in "
        "/v1), and give the same command again"
    )
