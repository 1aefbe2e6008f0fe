"""What a label is made of, and an assistant on a server that speaks chat completions."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from math import exp, fsum, log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl.align.assistants import (
    ASK,
    EndpointAssistant,
    EngineAssistant,
    label_of,
    yes_no_tokens,
)
from rl.align.claims.types import Label
from rl.config.data import SourceConfig
from rl.data.media.names import MediaFile
from rl.data.media.store import MediaStore
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import NextTokenRequest
from rollout import endpoint
from rollout.chat import ChatTemplate
from rollout.endpoint import open_endpoint
from tests.bpe_policy import CHAT_TEMPLATE, make_tokenizer
from tests.minicpmv_tiny import noise_image
from tests.qwen_vl_tiny import tiny_tokenizer
from tests.unit.rollout.test_endpoint import Reply, Server, completion

QUESTION = "Is it correct that the cup is red? Please answer yes or no."
ASKED = {"role": "user", "content": QUESTION}
TEXTS = ["yes", " Yes", "YES", "\nyes ", "no", " NO", "No", "yes.", "yesno", "y", "", "not", "是"]


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any]], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def listing(*tokens: tuple[str, float]) -> dict[str, Any]:
    """A completion of one token, with the probabilities of the likeliest."""
    top = [{"token": text, "logprob": log(p), "bytes": None} for text, p in tokens]
    reply = completion(tokens[0][0])
    reply["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
    return reply


def on_server(url: str, ask: Callable[[EndpointAssistant], Any], deadline_s: float = 20) -> Any:
    async def opened() -> Any:
        media = MediaStore(SourceConfig())
        async with open_endpoint(url, "./exported", {ASK: False}, deadline_s, media) as server:
            return await ask(EndpointAssistant(server))

    return asyncio.run(opened())


def label(server: Server, *media: MediaFile, deadline_s: float = 20) -> Label:
    return on_server(server.url, lambda one: one.label(QUESTION, media), deadline_s)


def after_the_probe(server_reply: Callable[[dict[str, Any]], Reply]):
    """A server that is well until it is asked for log-probabilities."""
    return lambda body: server_reply(body) if "logprobs" in body else completion("3")


# What a label is made of.


@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.floats(0.01, 1.0)), min_size=1, max_size=20))
def test_a_label_is_the_mass_of_the_spellings(weighed: list[tuple[str, float]]):
    total = fsum(weight for _, weight in weighed)
    tokens = [(text, log(weight / total)) for text, weight in weighed]
    found = label_of(tokens)
    assert found == label_of(reversed(tokens))
    yes, no = TEXTS[:4], TEXTS[4:7]
    assert found.p_yes == pytest.approx(sum(exp(lp) for text, lp in tokens if text in yes))
    assert found.p_no == pytest.approx(sum(exp(lp) for text, lp in tokens if text in no))


def test_a_model_that_says_neither_has_a_label_of_no_mass():
    assert label_of([("The", log(0.9)), ("yes", -float("inf"))]) == Label(0.0, 0.0)
    assert label_of([]) == Label(0.0, 0.0)


# Tokens of a tokenizer.


def saved(directory: Path, tokenizer: Any) -> ChatTemplate:
    tokenizer.save_pretrained(directory)
    return ChatTemplate(str(directory))


def with_words(*words: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(words))
    return tokenizer


def test_every_spelling_in_one_token_counts_and_no_other(tmp_path):
    words = ("yes", " Yes", "YES", "no", " NO", "yEs", "none", "Nope")
    chat = saved(tmp_path, with_words(*words))
    found = yes_no_tokens("a", chat)
    assert sorted(found.values()) == sorted(words[:5])
    assert all(chat.token_ids(text) == (token,) for token, text in found.items())


def test_a_tokenizer_that_puts_a_space_before_a_text_hides_no_bare_word(tmp_path):
    pieces = ["<unk>", "▁", "\n", "▁yes", "yes", "▁no", "no", "▁YES"]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    found = yes_no_tokens("a", saved(tmp_path, tokenizer))
    assert [pieces[token] for token in sorted(found)] == ["▁yes", "yes", "▁no", "no", "▁YES"]


@pytest.mark.parametrize(
    ("words", "missing"), [(("yes",), "no"), (("no",), "yes"), ((), "yes or no")]
)
def test_a_tokenizer_without_a_word_cannot_label(tmp_path, words, missing):
    letters = tiny_tokenizer()
    letters.add_tokens(list(words))
    chat = saved(tmp_path, letters)
    message = rf"labeller tiny has no token that spells {missing}, so .*take a labeller whose"
    with pytest.raises(ValueError, match=message):
        yes_no_tokens("tiny", chat)


def test_an_unknown_token_is_no_word(tmp_path):
    vocabulary = {"<unk>": 0, "yes": 1, "2+2?": 2}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(ValueError, match="no token that spells no, so"):
        yes_no_tokens("a", saved(tmp_path, tokenizer))


# In engines.


class Answers:
    """An engine that finds its asked tokens 1/2, 1/4, 1/8, ... probable; keeps the requests."""

    def __init__(self) -> None:
        self.asked: list[NextTokenRequest] = []

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        self.asked.append(request)
        return tuple(-log(2) * place for place in range(1, len(request.token_ids) + 1))


def test_a_question_is_put_as_the_model_is_chatted_with(tmp_path):
    chat, engine = saved(tmp_path, with_words("yes", " Yes", "no")), Answers()
    found = asyncio.run(EngineAssistant("tiny", engine, chat).label(QUESTION, ()))
    (asked,) = engine.asked
    assert len(asked.token_ids) == 3
    assert (found.p_yes, found.p_no) == (pytest.approx(3 / 4), pytest.approx(1 / 8))
    assert chat.raw_text(asked.prompt_token_ids) == (
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_no_two_requests_have_one_id(tmp_path):
    chat, engine = saved(tmp_path, with_words("yes", "no")), Answers()
    for assistant in (EngineAssistant("a", engine, chat), EngineAssistant("b", engine, chat)):
        for _ in range(2):
            asyncio.run(assistant.label(QUESTION, ()))
    assert len({one.id for one in engine.asked}) == 4


def test_media_are_shown_in_order_before_the_question(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    chat, engine = saved(tmp_path, tokenizer), Answers()
    shown = (MediaFile("video", "/a.mp4"), MediaFile("image", "/b.png"))
    asyncio.run(EngineAssistant("tiny", engine, chat).label("red?", shown))
    (asked,) = engine.asked
    assert asked.prompt.media == shown
    video, image = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))
    assert f"user\n{video}{image}red?<|im_end|>" in chat.raw_text(asked.prompt_token_ids)


def test_a_question_that_writes_a_marker_fails_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    assistant = EngineAssistant("tiny", Answers(), saved(tmp_path, tokenizer))
    with pytest.raises(GenerationFailed, match=r"request_refused: .* no text of theirs may write"):
        asyncio.run(assistant.label("Is it <|image_pad|>?", ()))


# On a server.


def test_a_server_is_asked_for_one_token_at_temperature_1(serve):
    tokens = [
        ("Yes", 0.4),
        ("no", 0.2),
        (" yes", 0.125),
        ("No", 0.1),
        ("Yes,", 0.05),
        ("NO ", 0.01),
    ]
    server = serve(lambda body: listing(*tokens))
    found = label(server)
    assert found.p_yes == pytest.approx(0.525)
    assert found.p_no == pytest.approx(0.31)
    body = server.asked[-1]
    assert body["messages"] == [ASKED]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    said = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    said |= {"repetition_penalty": 1.0, "logprobs": True, "top_logprobs": 20}
    assert {key: body[key] for key in said} == said
    assert "logit_bias" not in body


def test_a_server_that_says_neither_gives_a_label_of_no_mass(serve):
    assert label(serve(lambda body: listing(("The", 0.9), ("A", 0.1)))) == Label(0.0, 0.0)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {"content": None},
        {"content": []},
        {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": []}]},
        {"tokens": ["yes"], "token_logprobs": [-0.1]},
        {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "yes"}]}]},
        {"content": [{"top_logprobs": [{"token": "yes", "logprob": None}]}]},
        "none",
    ],
)
def test_a_server_without_logprobs_cannot_label(serve, logprobs):
    def reply(body):
        answer = completion("yes")
        answer["choices"][0]["logprobs"] = logprobs
        return answer

    server = serve(after_the_probe(reply))
    message = f"endpoint {server.url}/ was asked for log-probabilities and sends none"
    with pytest.raises(ValueError, match=message):
        label(server)


@pytest.mark.parametrize("logprob", [0.7, 1000.0, float("nan")])
def test_what_is_no_logprob_is_refused(serve, logprob):
    def reply(body):
        answer = listing(("yes", 0.5))
        (top,) = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        top["logprob"] = logprob
        return answer

    with pytest.raises(ValueError, match="for a log-probability; mend the server"):
        label(serve(after_the_probe(reply)))


def test_a_question_that_a_server_refuses_fails_alone(serve):
    def picky(body):
        return 400 if "red" in body["messages"][0]["content"] else listing(("yes", 1.0))

    async def both(one: EndpointAssistant) -> list[Any]:
        asked = (one.label(question, ()) for question in (QUESTION, "Is it blue?"))
        return await asyncio.gather(*asked, return_exceptions=True)

    refused, answered = on_server(serve(picky).url, both)
    assert isinstance(refused, GenerationFailed)
    assert str(refused).startswith("request_refused: ")
    assert answered == Label(1.0, 0.0)


def test_a_server_that_went_down_is_asked_again_and_then_named(serve, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 2)
    server = serve(after_the_probe(lambda body: 500))
    with pytest.raises(ValueError, match=rf"endpoint {server.url}/ does not answer: .*500"):
        label(server)
    assert len(server.asked) == 1 + 3


def test_a_busy_server_labels_in_the_end(serve):
    busy = after_the_probe(lambda body: listing(("no", 1.0)) if len(server.asked) > 3 else 503)
    server = serve(busy)
    assert label(server) == Label(0.0, 1.0)
    assert len(server.asked) == 4


def test_a_silent_server_is_waited_for_no_longer_than_said(serve):
    is_over = threading.Event()
    server = serve(after_the_probe(lambda body: is_over.wait() and listing(("no", 1.0))))
    with pytest.raises(ValueError, match=rf"endpoint {server.url}/ .* no reply within 0\.5 s"):
        label(server, deadline_s=0.5)
    is_over.set()
    # The probe and one question: what is late is not asked again.
    assert len(server.asked) == 2


def test_a_server_sees_the_image_before_the_question(serve, tmp_path):
    noise = noise_image(30, 20)
    noise.save(tmp_path / "a.png")
    server = serve(lambda body: listing(("yes", 1.0)))
    assert label(server, MediaFile("image", str(tmp_path / "a.png"))) == Label(1.0, 0.0)
    (message,) = server.asked[-1]["messages"]
    image, text = message["content"]
    assert (message["role"], text) == ("user", {"type": "text", "text": QUESTION})
    sent = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(BytesIO(sent)) as received:
        assert received.tobytes() == noise.tobytes()


def test_an_image_that_is_gone_fails_its_question(serve):
    with pytest.raises(GenerationFailed, match=r"bad_media: missing: /none\.png"):
        label(serve(lambda body: listing(("yes", 1.0))), MediaFile("image", "/none.png"))


def test_a_reply_is_the_likeliest_text_or_none_if_it_was_cut(serve):
    messages = [{"role": "system", "content": "Divide."}, {"role": "user", "content": "A cup."}]

    def reply(body):
        return completion("1. A cup.", "length" if body["max_tokens"] < 16 else "stop")

    async def twice(one: EndpointAssistant) -> tuple[str | None, ...]:
        return await one.reply(messages, 16), await one.reply(messages, 15)

    server = serve(reply)
    assert on_server(server.url, twice) == ("1. A cup.", None)
    body = server.asked[1]
    assert (body["messages"], body["temperature"], body["max_tokens"]) == (messages, 0.0, 16)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "logprobs" not in body


def test_an_assistant_on_a_server_is_named_by_model_and_address(serve):
    server = serve(lambda body: completion("3"))

    async def name(one: EndpointAssistant) -> str:
        return one.name

    assert on_server(server.url, name) == f"./exported at {server.url}/"
