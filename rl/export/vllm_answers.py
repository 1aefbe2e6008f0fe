"""What vLLM answers from a model directory alone, as a server of that directory would.

The engine runs in a process of its own, with none of the rollout workers' extensions; it gets its
messages as chats, so the directory's chat template and tokenizer are part of what answers. The
process ends with its last answer, and with it everything the engine held.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl.system.engine_environment import engine_environment

_SHOWN_OUTPUT = 2000


class PlainEngineFailed(RuntimeError):
    """vLLM did not start on the directory, or did not answer in time."""


@dataclass(frozen=True)
class Question:
    messages: Sequence[Mapping[str, Any]]
    thinking: bool
    """The value of the chat template's `enable_thinking`."""
    max_tokens: int
    temperature: float
    """0 is greedy."""


@dataclass(frozen=True)
class PlainResponse:
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each sampled token at temperature 1, whatever the question's temperature."""


@dataclass(frozen=True)
class PlainEngine:
    """Where and how the engine runs."""

    arguments: Mapping[str, Any]
    """vLLM engine arguments, `model` among them."""
    cpus: float
    on_gpu: bool
    deadline_s: float
    """For start and all answers together."""

    def ask(self, questions: Sequence[Question]) -> list[PlainResponse]:
        """Answer the questions, in their order; raises PlainEngineFailed."""
        with tempfile.TemporaryDirectory(prefix="plain-engine-") as folder:
            job, answers = Path(folder) / "job.json", Path(folder) / "answers.json"
            listed = [asdict(question) for question in questions]
            job.write_text(json.dumps({"engine": dict(self.arguments), "questions": listed}))
            self._run(job, answers, Path(folder) / "output.txt")
            found = json.loads(answers.read_text())
        return [PlainResponse(*map(tuple, fields)) for fields in found]

    def _run(self, job: Path, answers: Path, output: Path) -> None:
        environment = os.environ | engine_environment(self.cpus, self.on_gpu)
        command = [sys.executable, "-m", "rl.export.vllm_answers", str(job), str(answers)]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = process.wait(self.deadline_s)
        except subprocess.TimeoutExpired:
            raise PlainEngineFailed(
                f"vLLM did not answer within {self.deadline_s:g} s; raise "
                f"rollout.start_timeout_s, or see what it was doing: {_tail(output)}"
            ) from None
        finally:
            _end_group(process)
        if code != 0:
            raise PlainEngineFailed(f"vLLM could not answer from the directory: {_tail(output)}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the engine's processes, which are a group of their own, and what is left of them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace")[-_SHOWN_OUTPUT:].strip()


def main(job: Path, answers: Path) -> None:
    """The other process: answer `job` and write `answers`."""
    from vllm import LLM

    asked = json.loads(job.read_text())
    questions = [Question(**fields) for fields in asked["questions"]]
    llm = LLM(**asked["engine"])
    responses: dict[int, list[list[float]]] = {}
    for thinking in (False, True):
        places = [place for place, q in enumerate(questions) if q.thinking == thinking]
        answered = _chat(llm, [questions[place] for place in places], thinking) if places else []
        responses |= dict(zip(places, answered, strict=True))
    answers.write_text(json.dumps([responses[place] for place in range(len(questions))]))


def _chat(llm: Any, questions: Sequence[Question], thinking: bool) -> list[list[list[float]]]:
    from vllm import SamplingParams

    outputs = llm.chat(
        [list(question.messages) for question in questions],
        [
            SamplingParams(
                max_tokens=question.max_tokens,
                temperature=question.temperature,
                logprobs=0,
                flat_logprobs=True,
            )
            for question in questions
        ],
        chat_template_kwargs={"enable_thinking": thinking},
        use_tqdm=False,
    )
    return [
        [
            list(output.prompt_token_ids),
            list(output.outputs[0].token_ids),
            list(output.outputs[0].logprobs.logprobs),
        ]
        for output in outputs
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
