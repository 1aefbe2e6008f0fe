"""Held-out responses of a policy, from which the gate measures it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rewards.preference.preference import final_answer
from rl.align.claims.files import read_stage
from rl.align.claims.types import JudgedResponse, Response
from rl.align.directory import labels_path
from rl.align.gate import Measurement, as_modes, hallucination_rates
from rl.align.parts import Iteration
from rl.assembly import System
from rl.config.run import Config, EvalConfig
from rl.evaluate.directory import open_evaluation
from rl.evaluate.evaluation import Sample, answered_before, evaluate, questions
from rl.loop.stages import Prompt


def is_evaluated(root: Path) -> bool:
    return (root / "result.json").exists()


def gate_config(config: Config) -> Config:
    """The run's configuration with the gate's prompts in place of the evaluation's."""
    gate, asked = config.align.gate, config.eval
    settings = EvalConfig(
        prompts=gate.prompts,
        samples=gate.samples,
        temperature=asked.temperature,
        top_p=asked.top_p,
    )
    return config.model_copy(update={"eval": settings})


async def evaluate_heldout(iteration: Iteration, system: System, root: Path, name: str) -> None:
    """Leave held-out samples and their figures in `root`, unless they are there.

    name: of the stage, on the console.
    """
    if is_evaluated(root):
        return
    config, prompts = gate_config(iteration.config), _prompts(iteration)
    asked = questions(config, prompts)
    settings = {"eval": config.eval.model_dump(mode="json"), "prompts": len(prompts)}
    with (
        open_evaluation(root, settings) as directory,
        iteration.console.stage(name, len(asked)) as advance,
    ):
        known = answered_before(asked, directory.samples)
        for _ in known:
            advance()

        def keep(one: Sample) -> None:
            directory.add(one)
            advance()

        encode = iteration.parts.material.encode
        results = await evaluate(
            config, encode, system.engine, system.scorer, prompts, known.values(), keep
        )
        modes = {mode: dataclasses.asdict(result) for mode, result in results.items()}
        directory.write_result({"modes": modes})


def heldout_responses(iteration: Iteration, root: Path) -> list[Response]:
    """What `evaluate_heldout` left in `root`."""
    prompts = {prompt.id: prompt for prompt in _prompts(iteration)}
    settings = json.loads((root / "settings.json").read_text(encoding="utf-8"))
    with open_evaluation(root, settings) as directory:
        samples = sorted(directory.samples, key=lambda one: one.key)
    return [_response(prompts[one.prompt_id], one) for one in samples]


def measurement(root: Path) -> Measurement:
    """Of the policy whose judged held-out responses lie in `root`."""
    stored = json.loads((root / "result.json").read_text(encoding="utf-8"))["modes"]
    return Measurement(
        as_modes(stored), hallucination_rates(read_stage(labels_path(root), JudgedResponse))
    )


def _prompts(iteration: Iteration) -> list[Prompt]:
    return iteration.parts.material.stream.heldout(iteration.config.align.gate.prompts)


def _response(prompt: Prompt, one: Sample) -> Response:
    """A held-out sample as a response; it is judged and not trained on, so it has no tokens."""
    assert one.text is not None, "an open evaluation holds what was answered"
    answer = final_answer(one.answer, one.finish_reason)
    return Response(prompt, one.mode, one.sample, (), one.text, answer)
