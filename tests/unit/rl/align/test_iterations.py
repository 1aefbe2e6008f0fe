"""What an iteration makes of given figures, and what it does not do again; nothing is learned."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rl.align.assistants import Assistants
from rl.align.claims.files import read_stage, write_stage
from rl.align.claims.types import (
    Claim,
    DividedResponse,
    JudgedResponse,
    Label,
    PreferencePair,
    Response,
)
from rl.align.directory import CLAIMS, LABELS, AlignmentDirectory, Origin
from rl.align.gate import as_measurement, gate_config, refusals
from rl.align.iterations import Stages
from rl.align.report import AlignmentConsole
from rl.config.run import Config
from rl.evaluate.directory import open_evaluation
from rl.evaluate.evaluation import ModeResult, Sample, questions
from rl.loop.stages import Prompt
from tests.fakes import config

YES, NO = Label(0.9, 0.1), Label(0.1, 0.9)
CLAIM = Claim("It is 1.", "Is it 1?")
HELDOUT = [Prompt(f"h{n}", ({"role": "user", "content": f"a{n}?"},), "1") for n in range(4)]
TRAINED = Prompt("p", ({"role": "user", "content": "a?"},), "1")


def judged(response: Response, label: Label) -> JudgedResponse:
    return JudgedResponse(response, (CLAIM,), (label,))


def put_measurement(root: Path, settings: Config, accuracy: float, num_wrong: int) -> None:
    """Held-out responses of a policy, of whose claims so many are wrong in each mode."""
    settings = gate_config(settings)
    asked = {"eval": settings.eval.model_dump(mode="json"), "prompts": len(HELDOUT)}
    figures = ModeResult(accuracy, 0.04, 12.0, 0.0, 0, len(HELDOUT), pass_at={1: accuracy})
    with open_evaluation(root, asked) as evaluation:
        for question in questions(settings, HELDOUT):
            evaluation.add(
                Sample(*question.key, text="1", answer="1", asked=question.digest, tokens=3)
            )
        results = {mode: dataclasses.asdict(figures) for mode in settings.modes}
        evaluation.write_result({"modes": results})
    responses = [
        judged(Response(prompt, mode, 0, (), "1", "1"), NO if number < num_wrong else YES)
        for mode in settings.modes
        for number, prompt in enumerate(HELDOUT)
    ]
    divided = [DividedResponse(each.response, each.claims, "rules") for each in responses]
    write_stage(root / CLAIMS, DividedResponse, divided)
    write_stage(root / LABELS, JudgedResponse, responses)


class Sinks:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: dict[int, Mapping[str, float]] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.written[step] = metrics


@pytest.fixture
def directory(tmp_path: Path) -> AlignmentDirectory:
    """A pass of one iteration in which every stage is done but the gate."""
    settings = config()
    directory = AlignmentDirectory(tmp_path)
    files = directory.iteration(1)
    files.root.mkdir(parents=True)
    pair = PreferencePair(
        judged(Response(TRAINED, "short", 0, (5,), "1", "1"), YES),
        judged(Response(TRAINED, "short", 1, (6,), "2", "2"), NO),
    )
    responses = [pair.chosen.response, pair.rejected.response]
    write_stage(files.responses, Response, responses)
    divided = [DividedResponse(response, (CLAIM,), "rules") for response in responses]
    write_stage(files.root / CLAIMS, DividedResponse, divided)
    write_stage(files.root / LABELS, JudgedResponse, [pair.chosen, pair.rejected])
    write_stage(files.pairs, PreferencePair, [pair])
    put_measurement(files.before, settings, accuracy=0.5, num_wrong=2)
    (files.dpo / "model").mkdir(parents=True)
    (files.dpo / "model" / "config.json").write_text("{}")
    return directory


def run(directory: AlignmentDirectory, tmp_path: Path) -> tuple[dict[str, Any], Sinks]:
    """The verdict; a stage that asked a model or a learner would fail, as there is none."""
    settings = config()
    inputs: Any = SimpleNamespace(
        config=settings,
        stream=SimpleNamespace(heldout=lambda count: HELDOUT[:count]),
        encode=lambda prompt, mode: (1, 2),
    )
    origin = Origin(tmp_path, {"model": "p"}, {"before": {}}, 0, tmp_path)
    none: Any = None
    sinks: Any = Sinks()
    console = AlignmentConsole(Console(quiet=True))
    assistants = Assistants(none, None)
    stages = Stages(inputs, origin, assistants, directory, console, none, sinks)
    asyncio.run(stages.iterate(1))
    return directory.iteration(1).verdict(), sinks


def test_better_figures_make_the_aligned_policy_a_checkpoint(directory, tmp_path):
    put_measurement(directory.iteration(1).after, config(), accuracy=0.6, num_wrong=1)
    verdict, sinks = run(directory, tmp_path)
    assert verdict["is_accepted"] and verdict["reasons"] == []
    assert (directory.checkpoints.path(1) / "model" / "config.json").read_text() == "{}"
    told = json.loads((directory.checkpoints.path(1) / "progress.json").read_text())["align"]
    assert (told["accepted"], told["origin"], told["pairs"]) == (1, {"model": "p"}, 1)
    assert [*sinks.written] == [config().align.dpo.steps]


@pytest.mark.parametrize(
    ("accuracy", "num_wrong", "reason"),
    [(0.4, 1, "points of accuracy"), (0.6, 3, "wrong claims per response rise")],
)
def test_worse_figures_leave_the_policy_before_it(directory, tmp_path, accuracy, num_wrong, reason):
    put_measurement(directory.iteration(1).after, config(), accuracy, num_wrong)
    verdict, _ = run(directory, tmp_path)
    assert not verdict["is_accepted"]
    assert all(reason in why for why in verdict["reasons"])
    assert directory.checkpoints.steps() == []
    before, after = (as_measurement(verdict[when]) for when in ("before", "after"))
    assert verdict["reasons"] == refusals(before, after, config().align.gate)


def test_pairs_that_are_there_are_taken_as_they_are(directory, tmp_path):
    files = directory.iteration(1)
    put_measurement(files.after, config(), accuracy=0.6, num_wrong=1)
    written = {path: path.stat().st_mtime_ns for path in files.root.rglob("*.parquet")}
    run(directory, tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in files.root.rglob("*.parquet")}
    assert len(read_stage(files.pairs, PreferencePair)) == 1
