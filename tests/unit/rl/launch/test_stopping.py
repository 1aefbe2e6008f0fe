"""How a run ends before its last step: asked to by a signal, or by numbers that went wrong."""

import asyncio
import io
import json
import math
import os
import signal
from types import SimpleNamespace

import pytest
import rich.console

from rl.launch import run_state, training
from rl.launch.console import Console
from rl.launch.stopping import Stop
from rl.loop.stages import Prompt
from rl.loop.step_guard import RunStopped
from rl.run.directory import RunDirectory
from rl.run.ledger import read_rows
from tests.fakes import FakeEngine, FakeLearner, FakePrompts, FakeScorer, config


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(run_state, "draw_curves", lambda directory: None)


def settings(tmp_path, **changes):
    return config(run=str(tmp_path / "run"), log={"tensorboard": False}, **changes)


async def train(cfg, stop, engine=None, scorer=None, learner=None):
    """Take the steps with fakes; returns what the console said."""
    screen = rich.console.Console(file=io.StringIO(), width=1000)
    console = Console("run", cfg.steps, list(cfg.modes), screen)
    inputs = SimpleNamespace(
        config=cfg,
        encode=lambda prompt, mode: (1, 2, 3),
        stream=FakePrompts(4),
        heldout=(Prompt("heldout", (), "12"),),
    )
    services = SimpleNamespace(
        engine=engine or FakeEngine(),
        scorer=scorer or FakeScorer(),
        learner=learner or FakeLearner(),
        reward_actors=(),
    )
    with RunDirectory(training.Path(cfg.run)).open(cfg) as directory:
        sinks = training.Sinks(cfg.log, directory, console.note, ())
        await training._train_from(None, inputs, services, directory, console, sinks, stop)
    return screen.file.getvalue()


def terminate_when(condition):
    async def wait_and_kill():
        while not condition():
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    return asyncio.create_task(wait_and_kill())


def test_sigterm_saves_at_once_while_engines_would_sample_for_ever(tmp_path):
    """Step 3 has one group that never ends; the other three are kept for the next process."""
    cfg = settings(tmp_path)
    engine = FakeEngine(delay=lambda r: 1e6 if r.group_id == "2/3/0" else 0.0)

    async def main():
        stop = Stop(60)
        done = {"2/0/0", "2/1/0", "2/2/0"}
        killer = terminate_when(lambda: done <= set(engine.finished))
        said = await train(cfg, stop, engine)
        await killer
        return said, stop

    said, stop = asyncio.run(main())
    assert stop.signals == [signal.SIGTERM] and not stop.gave_up
    assert "stopped after step 2; the same command goes on from there" in said
    assert "drawn 12 = trained 8 + dropped 0 + in flight 4" in said
    assert RunDirectory(tmp_path / "run").checkpoints.steps() == [2]
    kept = (tmp_path / "run" / "finished" / "step_000002.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["place"] for line in kept) == [0, 1, 2]


def test_an_update_that_outlasts_the_grace_is_given_up(tmp_path):
    class Stuck(FakeLearner):
        is_stuck = False

        async def update(self, batch):
            if batch.step == 3:
                self.is_stuck = True
                await asyncio.sleep(1e6)
            return await super().update(batch)

    cfg = settings(tmp_path, checkpoint={"every": 2, "grace_s": 0.05})
    learner = Stuck()

    async def main():
        stop = Stop(cfg.checkpoint.grace_s)
        killer = terminate_when(lambda: learner.is_stuck)
        said = await train(cfg, stop, learner=learner)
        await killer
        return said, stop

    said, stop = asyncio.run(main())
    assert stop.gave_up
    assert "stopped after step 2, not saved in 0.05 s; the same command goes on" in said
    assert RunDirectory(tmp_path / "run").checkpoints.steps() == [2]


def test_an_evaluation_is_left_out_where_a_scheduler_waits(tmp_path):
    cfg = settings(tmp_path, eval={"every": 2, "prompts": 1})
    learner, asked = FakeLearner(), []

    def delay(request):
        if not learner.batches or request.group_id[0].isdigit():
            return 0.0
        asked.append(request)
        return 1e6

    async def main():
        killer = terminate_when(lambda: asked)
        said = await train(cfg, Stop(60), FakeEngine(delay), learner=learner)
        await killer
        return said

    assert "stopped after step 2" in asyncio.run(main())
    assert RunDirectory(tmp_path / "run").checkpoints.steps() == [2]


def not_a_number_from(step):
    def rewards(group):
        number = group.request.group_id.split("/")[0]
        is_wrong = number.isdigit() and int(number) + 1 >= step
        return [math.nan if is_wrong else 1.0, 0.0][: group.request.n]

    return FakeScorer(rewards)


def test_skipped_steps_in_a_row_end_the_run_at_the_checkpoint_before_them(tmp_path):
    cfg = settings(tmp_path, steps=20, checkpoint={"every": 1}, guard={"max_skipped": 3})
    with pytest.raises(RunStopped, match=r"3 steps in a row .* step 7.*checkpoint of step 4"):
        asyncio.run(train(cfg, Stop(60), scorer=not_a_number_from(5)))
    run = tmp_path / "run"
    assert RunDirectory(run).checkpoints.steps() == [3, 4]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["progress/skipped_steps"] for line in lines] == [0, 0, 0, 0, 1, 2, 3]
    states = [{row.state for row in read_rows(p)} for p in sorted((run / "ledger").iterdir())]
    assert states == [{"trained"}] * 4 + [{"skipped"}] * 3
    (first, *_) = (run / "skipped" / "step_000005.jsonl").read_text().splitlines()
    record = json.loads(first)
    assert record["why"] == "reward nan of 4/0/0/0"
    assert math.isnan(record["scores"][0]["reward"]) and record["trajectories"][0]["text"] == "12"


def test_a_run_that_skips_a_step_now_and_then_goes_on_and_says_so(tmp_path):
    def rewards(group):
        return [math.nan if group.request.group_id == "1/0/0" else 1.0, 0.0][: group.request.n]

    said = asyncio.run(train(settings(tmp_path), Stop(60), scorer=FakeScorer(rewards)))
    assert "step 2 is skipped (reward nan of 1/0/0/0)" in said
    assert "drawn 16 = trained 12 + dropped 4 (skipped 4) + in flight 0" in said
