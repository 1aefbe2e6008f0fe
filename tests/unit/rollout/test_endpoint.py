"""The endpoint against a small server that speaks chat completions, as vLLM does and does not."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from rl.config.data import SourceConfig
from rl.config.policy import ThinkTags
from rl.data.media.names import MediaFile
from rl.data.media.store import MediaStore
from rl.evaluate.evaluation import evaluate
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest, Trajectory
from rollout import endpoint
from rollout.endpoint import open_endpoint, served_model
from tests.fakes import FakeScorer, config
from tests.minicpmv_tiny import noise_image

THINKING = {"short": False, "long": True}
PROMPT = Prompt("p/0", ({"role": "user", "content": "1+2?"},), "3")
MEDIA = MediaStore(SourceConfig())
Reply = dict[str, Any] | int


class Server:
    """Answers each request as `reply(body)` says: a completion, or a status. Keeps the requests.

    port 0: any free one.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], Reply], port: int = 0) -> None:
        self.asked: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = [{"id": "./exported", "max_model_len": 128}]
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(200, {"object": "list", "data": server.models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                answer = reply(body)
                is_status = isinstance(answer, int)
                self.send(*((answer, {"error": "said no"}) if is_status else (200, answer)))

            def send(self, status: int, content: Any) -> None:
                encoded = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                # Who is told to ask again need not wait half a second for it.
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        poll = (0.01,)
        threading.Thread(target=self._http.serve_forever, args=poll, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any]], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def completion(content: str | None, finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    """A chat completion of three tokens; fields: of the message."""
    message = {"role": "assistant", "content": content, "reasoning": None} | fields
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "./exported",
        "choices": [choice | {"token_ids": [5, 6, 0]}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }


def without_parser(text: str) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: completion("1" if body["max_tokens"] == 1 else text)


def with_parser(reasoning: str | None, content: str | None) -> Callable[[dict[str, Any]], Reply]:
    """Sends the first token of reasoning apart, as every parser does."""
    probed = completion(None, reasoning="1")
    whole = completion(content, reasoning=reasoning)
    return lambda body: probed if body["max_tokens"] == 1 else whole


def request(mode: str = "long", place: int = 0, max_tokens: int = 16) -> RolloutRequest:
    return RolloutRequest(f"eval/{mode}/{place}", PROMPT, mode, (), 1, max_tokens, 0.0, 7, 0.9)


async def ask_all(url: str, requests: list[RolloutRequest], deadline_s: float) -> list[Any]:
    async with open_endpoint(url, "./exported", THINKING, deadline_s, MEDIA) as opened:
        asked = (opened.generate(one) for one in requests)
        return await asyncio.gather(*asked, return_exceptions=True)


def ask(url: str, mode: str = "long", deadline_s: float = 20) -> RolloutGroup:
    (answer,) = asyncio.run(ask_all(url, [request(mode)], deadline_s))
    if isinstance(answer, Exception):
        raise answer
    return answer


def trajectory(server: Server, mode: str = "long") -> Trajectory:
    (only,) = ask(server.url, mode).trajectories
    return only


def read(server: Server, mode: str = "long") -> tuple[str, str | None, str | None]:
    only = trajectory(server, mode)
    return only.text, only.reasoning, only.answer


def test_with_and_without_a_parser_the_text_is_the_same(serve):
    whole = ("1+2=3\n</think>\n3", "1+2=3\n", "\n3")
    assert read(serve(without_parser("1+2=3\n</think>\n3"))) == whole
    assert read(serve(with_parser("1+2=3\n", "\n3"))) == whole


def test_reasoning_that_was_never_closed_has_no_answer(serve):
    cut = ("1+2=3", "1+2=3", None)
    assert read(serve(without_parser("1+2=3"))) == cut
    assert read(serve(with_parser("1+2=3", None))) == cut


def test_an_answer_without_reasoning_keeps_its_closing_tag(serve):
    """A parser then sends the answer alone, as a server without one sends a text cut off."""
    leaked = ("</think>3", "", "3")
    assert read(serve(without_parser("</think>3"))) == leaked
    assert read(serve(with_parser(None, "3"))) == leaked
    assert read(serve(with_parser("", "3"))) == leaked


def test_a_mode_that_answers_at_once_is_all_answer(serve):
    assert read(serve(without_parser("3")), "short") == ("3", None, "3")
    assert read(serve(with_parser(None, "3")), "short") == ("3", None, "3")
    leak = "1</think>3"
    assert read(serve(without_parser(leak)), "short") == (leak, None, leak)
    # Some parsers take every text apart, whatever the mode.
    assert read(serve(with_parser("1", "3")), "short") == (leak, None, leak)


def test_reasoning_is_found_under_its_older_name(serve):
    server = serve(lambda body: completion("3", reasoning_content="1"))
    assert read(server) == ("1</think>3", "1", "3")


def test_tokens_are_those_returned_or_else_those_counted(serve):
    returned = trajectory(serve(without_parser("3")), "short")
    assert (returned.token_ids.tolist(), returned.num_response_tokens) == ([5, 6, 0], 3)

    def counts_only(body):
        reply = completion("3")
        del reply["choices"][0]["token_ids"]
        return reply | {"usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}

    assert trajectory(serve(counts_only), "short").num_response_tokens == 5


def test_a_server_that_counts_no_tokens_is_refused(serve):
    def counts_nothing(body):
        reply = completion("3")
        del reply["choices"][0]["token_ids"], reply["usage"]
        return reply

    with pytest.raises(ValueError, match="neither token_ids nor usage"):
        ask(serve(counts_nothing).url)


def test_a_server_is_shown_the_very_pixels(serve, tmp_path):
    noise = noise_image(30, 20)
    noise.save(tmp_path / "a.png")
    parts = [{"type": "text", "text": "what?"}, {"type": "image"}]
    shown = (MediaFile("image", str(tmp_path / "a.png")),)
    prompt = Prompt("p/0", ({"role": "user", "content": parts},), "3", media=shown)
    server = serve(without_parser("3"))
    (group,) = asyncio.run(ask_all(server.url, [replace(request(), prompt=prompt)], 20))
    assert group.trajectories[0].text == "3"
    text, image = server.asked[-1]["messages"][0]["content"]
    assert text == parts[0]
    sent = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(BytesIO(sent)) as received:
        assert received.tobytes() == noise.tobytes()


def test_an_image_that_cannot_be_read_fails_its_request(serve):
    parts = [{"type": "image"}]
    gone = Prompt(
        "p/0", ({"role": "user", "content": parts},), "3", media=(MediaFile("image", "/none.png"),)
    )
    server = serve(without_parser("3"))
    (answer,) = asyncio.run(ask_all(server.url, [replace(request(), prompt=gone)], 20))
    assert isinstance(answer, GenerationFailed)
    assert str(answer).startswith("bad_media: missing: /none.png")


def test_a_request_says_all_that_the_engines_are_told(serve):
    server = serve(without_parser("3"))
    ask(server.url, "short")
    probe, asked = server.asked
    assert probe["max_tokens"] == 1
    assert asked == {
        "model": "./exported",
        "messages": [{"role": "user", "content": "1+2?"}],
        "max_tokens": 16,
        "temperature": 0.0,
        "top_p": 0.9,
        "seed": 7,
        # What vLLM would take from generation_config.json.
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": False},
        "skip_special_tokens": False,
        "return_token_ids": True,
    }


def test_a_mode_is_asked_with_its_variables_and_read_by_the_tags_of_the_policy(serve):
    server = serve(with_parser("1+2", "3"))
    variables, tags = {"long": {"thinking_budget": 9}}, ThinkTags(open="[T]", close="[/T]")

    async def asked() -> list[Trajectory]:
        async with open_endpoint(
            server.url, "./exported", THINKING, 20, MEDIA, variables, tags
        ) as opened:
            groups = [await opened.generate(request(mode)) for mode in ("long", "short")]
        return [group.trajectories[0] for group in groups]

    long, _ = asyncio.run(asked())
    assert (long.text, long.reasoning, long.answer) == ("1+2[/T]3", "1+2", "3")
    sent = [body["chat_template_kwargs"] for body in server.asked]
    reasons = {"enable_thinking": True, "thinking_budget": 9}
    assert sent == [reasons, reasons, {"enable_thinking": False}]


def test_a_refused_request_fails_alone(serve):
    def picky(body):
        return 400 if body["max_tokens"] > 16 else completion("3")

    requests = [request(), request(place=1, max_tokens=99)]
    answered, refused = asyncio.run(ask_all(serve(picky).url, requests, 20))
    assert answered.trajectories[0].finish_reason == "stop"
    assert isinstance(refused, GenerationFailed)
    assert str(refused).startswith("request_refused: ")


@pytest.mark.parametrize("finish_reason", ["abort", "tool_calls", "content_filter"])
def test_a_response_that_was_given_up_is_a_failure(serve, finish_reason):
    server = serve(lambda body: completion("3", finish_reason))
    with pytest.raises(GenerationFailed, match=f"aborted: .* {finish_reason}"):
        ask(server.url)


def test_a_busy_server_is_asked_again(serve):
    server = serve(lambda body: 503 if len(server.asked) < 3 else completion("3"))
    assert trajectory(server, "short").answer == "3"
    assert len(server.asked) == 4


def test_retries_end(serve, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 1)
    server = serve(lambda body: 500)
    with pytest.raises(ValueError, match=rf"endpoint {server.url}/ does not answer: .*500"):
        ask(server.url)
    assert len(server.asked) == 2


def test_a_server_that_went_away_ends_the_evaluation_and_nothing_is_lost(serve, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    kept = []

    def dies(body):
        return completion("3") if len(server.asked) < 4 else 500

    async def run():
        cfg = config(rollout__prompts_per_step=1, rollout__group_size=2)
        prompts = [Prompt(str(n), PROMPT.messages, "3") for n in range(8)]
        async with open_endpoint(server.url, "./exported", THINKING, 20, MEDIA) as opened:
            await evaluate(cfg, lambda p, m: (), opened, FakeScorer(), prompts, (), kept.append)

    server = serve(dies)
    with pytest.raises(ValueError, match="does not answer"):
        asyncio.run(run())
    assert len(kept) == 2
    assert len(server.asked) <= 6


def test_a_server_that_is_silent_does_not_answer(serve):
    server = serve(lambda body: time.sleep(2) or completion("3"))
    with pytest.raises(ValueError, match=r"does not answer: no reply within 0\.3 s"):
        ask(server.url, deadline_s=0.3)


def test_one_slow_response_among_others_fails_alone(serve):
    is_over = threading.Event()

    def slow(body):
        if body["max_tokens"] == 9:
            is_over.wait()
        return completion("3")

    requests = [request(max_tokens=9), request(place=1)]
    late, answered = asyncio.run(ask_all(serve(slow).url, requests, 1.0))
    is_over.set()
    assert isinstance(late, GenerationFailed)
    assert str(late) == "timeout: rollout.group_timeout_s passed"
    assert answered.trajectories[0].text == "3"


def test_no_more_requests_are_open_than_is_said(serve, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_IN_FLIGHT", 3)
    now, most, lock = 0, 0, threading.Lock()
    three = threading.Barrier(3, timeout=60)

    def counting(body):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        # Three are open together, however slowly they come; the pause lets a fourth be seen. The
        # first request, for one token, is sent alone.
        if body["max_tokens"] > 1:
            three.wait()
        time.sleep(0.05)
        with lock:
            now -= 1
        return completion("3")

    answers = asyncio.run(
        ask_all(serve(counting).url, [request(place=place) for place in range(12)], 20)
    )
    assert len(answers) == 12
    assert most == 3


def served(url: str, wanted: str | None, max_tokens: int = 72) -> str:
    return asyncio.run(served_model(url, wanted, max_tokens))


def test_the_served_model_is_found_or_named(serve):
    server = serve(without_parser("3"))
    assert served(server.url, None) == served(server.url, "./exported") == "./exported"
    with pytest.raises(ValueError, match=r"serves \./exported, not other; .* served_name=NAME"):
        served(server.url, "other")
    server.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(ValueError, match="serves a, b; name what it serves"):
        served(server.url, None)
    assert server.asked == []


def test_a_context_shorter_than_a_budget_is_refused(serve):
    server = serve(without_parser("3"))
    assert served(server.url, None, 127) == "./exported"
    with pytest.raises(ValueError, match=r"takes 128 tokens .* may answer with 128"):
        served(server.url, None, 128)


def test_a_server_that_is_not_there_is_told_at_once(serve):
    server = serve(without_parser("3"))
    server.close()
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"endpoint {server.url} does not answer"):
        served(server.url, None)
    assert time.monotonic() - started < 5


def test_a_server_that_refuses_every_request_is_told_before_the_first(serve):
    server = serve(lambda body: 400 if "chat_template_kwargs" in body else completion("3"))
    with pytest.raises(ValueError, match=r"cannot be asked as vLLM is: request_refused: .*400"):
        ask(server.url)
    assert len(server.asked) == 1


def test_what_is_no_chat_server_is_refused(serve):
    with pytest.raises(ValueError, match="sends no chat completions"):
        ask(serve(lambda body: {"hello": "there"}).url)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("\n1+2=3\n</think>\n\n3", "1+2=3\n", "\n\n3"),
        ("\n\n</think>\n\n3", None, "3"),
    ],
)
@pytest.mark.parametrize("is_parsed", [True, False])
def test_a_server_is_left_the_choice_and_what_it_chose_is_read_from_its_text(
    serve, monkeypatch, text, reasoning, answer, is_parsed
):
    monkeypatch.setitem(THINKING, "auto", "auto")
    said, _, content = text.partition("</think>")
    whole = completion(content, reasoning=said) if is_parsed else completion(text)
    server = serve(lambda body: whole)
    only = trajectory(server, "auto")
    assert (only.reasoning, only.answer) == (reasoning, answer)
    assert only.choice is not None and only.choice.thinking is (reasoning is not None)
    assert only.num_response_tokens == 3
    assert server.asked[-1]["chat_template_kwargs"] == {"enable_thinking": "auto"}
