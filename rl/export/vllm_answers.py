"""What vLLM answers from a model directory alone, as a server of that directory would.

The engine runs in a process of its own, with none of the rollout workers' extensions; it gets its
messages as chats, so the directory's chat template and tokenizer are part of what answers. The
process ends with its last answer, and with it everything the engine held.
"""

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


@dataclass(frozen=True)
class Question:
    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    """Of the chat template, `enable_thinking` among them."""
    max_tokens: int
    temperature: float
    """0 is greedy."""


@dataclass(frozen=True)
class PlainResponse:
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each sampled token at temperature 1, whatever the question's temperature."""


def ask_vllm(
    arguments: Mapping[str, Any],
    questions: Sequence[Question],
    cpus: float,
    on_gpu: bool,
    deadline_s: float,
) -> list[PlainResponse]:
    """Start vLLM, have it answer the questions in their order, and end it.

    arguments: vLLM engine arguments, `model` among them. deadline_s: for start and all answers
    together. Raises ValueError if vLLM does not start, or does not answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="plain-engine-") as folder:
        job, answers, output = (Path(folder) / name for name in ("job", "answers", "output"))
        listed = [asdict(question) for question in questions]
        job.write_text(json.dumps({"engine": dict(arguments), "questions": listed}))
        # Into a file: a full pipe that nobody reads would stop vLLM while it logs.
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "rl.export.vllm_answers", str(job), str(answers)],
                env=os.environ | engine_environment(cpus, on_gpu),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(deadline_s)
        finally:
            # vLLM starts processes of its own, which outlive the first one; together they are a
            # group. What is left of it is killed also where this process is interrupted.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        tail = output.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
        if code != 0:
            why = "could not answer from the directory"
            if code is None:
                why = f"did not answer within {deadline_s:g} s; raise rollout.start_timeout_s"
            raise ValueError(f"nothing was exported: vLLM {why}; it said last: {tail}")
        return [PlainResponse(*map(tuple, fields)) for fields in json.loads(answers.read_text())]


def main(job: Path, answers: Path) -> None:
    """The other process: answer `job` and write `answers`."""
    # Only this process has vLLM, and the environment that it needs.
    from vllm import LLM, SamplingParams

    asked = json.loads(job.read_text())
    questions = [Question(**fields) for fields in asked["questions"]]
    llm: Any = LLM(**asked["engine"])
    answered: dict[int, list[list[Any]]] = {}
    # A batch has one set of template arguments, so the modes are asked one after the other.
    for variables in {
        json.dumps(question.variables): question.variables for question in questions
    }.values():
        batch = {number: q for number, q in enumerate(questions) if q.variables == variables}
        parameters = [
            # The sampled token alone, without the likeliest ones.
            SamplingParams(
                max_tokens=q.max_tokens, temperature=q.temperature, logprobs=0, flat_logprobs=True
            )
            for q in batch.values()
        ]
        outputs = llm.chat(
            [list(q.messages) for q in batch.values()],
            parameters,
            chat_template_kwargs=dict(variables),
            use_tqdm=False,
        )
        for number, output in zip(batch, outputs, strict=True):
            response: Any = output.outputs[0]
            logprobs = list(response.logprobs.logprobs)
            answered[number] = [list(output.prompt_token_ids), list(response.token_ids), logprobs]
    answers.write_text(json.dumps([answered[number] for number in range(len(questions))]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
