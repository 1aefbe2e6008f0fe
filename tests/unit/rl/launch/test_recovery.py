"""A training whose learner is lost goes back to its newest checkpoint, with the engines it has."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rich.console

import rl.assembly
from rl.config.recipe import Difference, Origin
from rl.launch import memory_growth, run_state, training
from rl.launch.stopping import Stop
from rl.loop.interfaces import LearnerLost, WorkerFailed
from rl.loop.loop import StepResult
from rl.loop.stages import BatchUpdate, Prompt, TrainBatch, WeightProof
from rl.run.files import FULL_DISK
from rl.run.jsonl import read_records
from tests.fakes import FakeEngine, FakeLearner, FakePrompts, FakeScorer, config
from tests.full_disk import full_disk
from tests.unit.rl.launch.test_stopping import settings, train


class MortalLearner(FakeLearner):
    """Counts its updates as weights; dies in the updates and publishes that are named."""

    def __init__(self, dies_in: set[str]) -> None:
        super().__init__()
        self.dies_in, self.is_dead, self.weights = dies_in, False, 0
        self.calls: list[str] = []

    def _at(self, what: str) -> None:
        self.calls.append(what)
        if what in self.dies_in:
            self.dies_in.remove(what)
            self.is_dead = True
        if self.is_dead:
            raise LearnerLost("learner rank 0 died")

    async def update(self, batch: TrainBatch) -> BatchUpdate:
        self._at(f"update {batch.step}")
        assert self.weights == batch.step - 1, "it trains what the engines have sampled with"
        self.weights = batch.step
        return await super().update(batch)

    async def send_weights(self, version: int) -> WeightProof:
        self._at(f"send {version}")
        assert self.weights == version
        return await super().send_weights(version)

    async def restart(self) -> None:
        self.is_dead, self.weights = False, 0
        self._at("restart")

    async def save(self, directory: Path) -> None:
        (directory / "weights").write_text(str(self.weights))

    async def load(self, directory: Path) -> None:
        self._at("load")
        self.weights = int((directory / "weights").read_text())


ORIGIN = Origin("a.yaml", None, (Difference("steps", "400", "6", "the command line"),))


def trained(
    monkeypatch: pytest.MonkeyPatch, run: Path, learner: MortalLearner, **changes: object
) -> tuple[list[int], list[dict[str, Any]], str]:
    """The steps of metrics.jsonl, the events and what the console said."""
    cfg = config(
        run=str(run),
        steps=6,
        checkpoint={"every": 2},
        log={"tensorboard": False},
        rollout__max_staleness=1,
        **changes,
    )
    inputs = SimpleNamespace(
        config=cfg,
        encode=lambda prompt, mode: (1, 2, 3),
        stream=FakePrompts(4),
        heldout=(Prompt("heldout", (), "12"),),
    )
    scorer = FakeScorer()
    scorer.load = lambda state: None  # type: ignore[attr-defined]
    services = SimpleNamespace(
        engine=FakeEngine(), scorer=scorer, reward_actors=(), learner=learner, supervisor=None
    )

    @asynccontextmanager
    async def open_training(*_: object):
        yield services

    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(rl.assembly, "gather_inputs", lambda config: inputs)
    monkeypatch.setattr(rl.assembly, "open_training", open_training)
    monkeypatch.setattr(training, "_check", nothing)
    monkeypatch.setattr(training, "ledger_rows", lambda *_: [])
    monkeypatch.setattr(training, "write_step", lambda *_: None)
    monkeypatch.setattr(run_state, "draw_curves", lambda *_: None)
    screen = rich.console.Console(file=io.StringIO(), width=200)
    try:
        asyncio.run(asyncio.wait_for(training.train(cfg, ORIGIN, screen=screen), 60))
    finally:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        events = read_records(run / "events.jsonl")
    return steps, events, screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("dies_in", "discarded"), [("update 4", 8), ("send 4", 8), ("update 1", 8), ("update 6", 4)]
)
def test_a_lost_learner_goes_on_from_the_newest_checkpoint(
    monkeypatch, tmp_path, dies_in, discarded
):
    learner = MortalLearner({dies_in})
    steps, events, said = trained(monkeypatch, tmp_path / "run", learner)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert learner.weights == 6
    assert [event["event"] for event in events] == ["lost", "discarded"]
    step = int(dies_in.split()[1])
    start = (step - 1) // 2 * 2
    # Of the steps after the checkpoint those that were trained, beside the groups in flight.
    assert events[1]["steps"] == step - 1 - start
    assert events[1]["groups"] == discarded
    assert "learner is replaced: learner rank 0 died" in said
    restarted = learner.calls.index("restart")
    first = "load" if start else "send 0"
    assert learner.calls[restarted + 1] == first
    assert f"update {start + 1}" in learner.calls[restarted:]


def test_a_learner_that_dies_while_it_restarts_is_restarted_once_more(monkeypatch, tmp_path):
    learner = MortalLearner({"update 3", "restart", "load"})
    steps, events, _ = trained(monkeypatch, tmp_path / "run", learner)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [event["event"] for event in events] == ["lost", "discarded"] * 3
    # What the config came from is kept beside it, for the run's page.
    assert json.loads((tmp_path / "run" / "recipe.json").read_text()) == {
        "recipe": "a.yaml",
        "scale": None,
        "differences": [{"key": "steps", "recipe": "400", "run": "6", "by": "the command line"}],
    }


def test_a_learner_that_is_lost_too_often_ends_the_run(monkeypatch, tmp_path):
    learner = MortalLearner({"update 3"})
    with pytest.raises(WorkerFailed, match="learner failed; the last time:\nlearner rank 0 died"):
        trained(monkeypatch, tmp_path / "run", learner, recovery={"restarts_per_hour": 0})


@pytest.mark.parametrize("full_at", [3, 4, 6])
def test_a_full_disk_ends_the_run_and_the_same_command_makes_the_steps_it_lost(
    monkeypatch, tmp_path, full_at
):
    """At the ends of steps with and without a checkpoint, and of the last one."""
    with ExitStack() as disk:

        class FillsTheDisk(MortalLearner):
            async def update(self, batch: TrainBatch) -> BatchUpdate:
                if batch.step == full_at:
                    disk.enter_context(full_disk())
                return await super().update(batch)

        with pytest.raises(OSError) as caught:
            trained(monkeypatch, tmp_path / "run", FillsTheDisk(set()))
    assert caught.value.errno in FULL_DISK
    assert str(tmp_path / "run") in str(caught.value)
    learner = MortalLearner(set())
    steps, _, said = trained(monkeypatch, tmp_path / "run", learner)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert f"continuing from step {(full_at - 1) // 2 * 2}" in said
    assert learner.weights == 6


def test_ranks_that_have_grown_start_anew_after_a_checkpoint_and_no_step_is_made_twice(
    monkeypatch, tmp_path
):
    learner, metrics = MortalLearner(set()), []

    async def gather_metrics(result: StepResult, *_: object) -> dict[str, float]:
        metrics.append(result.step)
        return {"loss/policy": 0.0}

    class GrownAtOnce(memory_growth.Recycling):
        def __init__(self, services: Any) -> None:
            super().__init__(services)
            if not metrics:
                assert self.begin("rank", "memory of rank grows")

    monkeypatch.setattr(training, "gather_metrics", gather_metrics)
    monkeypatch.setattr(training, "Recycling", GrownAtOnce)
    steps, events, _ = trained(monkeypatch, tmp_path / "run", learner)
    assert steps == metrics == [1, 2, 3, 4, 5, 6]
    assert learner.calls.count("restart") == 1
    assert [(event["event"], event.get("steps")) for event in events] == [
        ("lost", None),
        ("discarded", 0),
    ]


def test_an_engine_that_was_joining_as_a_publish_began_need_not_wait_for_the_next(tmp_path):
    """Without it there may be too few engines for any step, and so for any publish."""
    asked = []

    class Joining(FakeEngine):
        async def pause_joining(self) -> int:
            asked.append(len(self.requests))
            return 0

    asyncio.run(train(settings(tmp_path, steps=1), Stop(60), Joining()))
    assert asked == [0]
