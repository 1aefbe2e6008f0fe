"""An interrupted and resumed run is the uninterrupted one, with fakes that a kill may hit anywhere.

The engine's answers depend on the version that samples, and the learner's weights on every sample:
a group that is sampled again by other weights, lost or trained twice changes all that follows.
"""

import asyncio
import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console

from rl.launch import run_state, training
from rl.launch.console import Console
from rl.launch.stopping import Stop
from rl.loop import publish
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import BatchUpdate, Choice, Prompt, RolloutGroup, Route, Score
from rl.run.directory import RunDirectory
from rl.run.ledger import read_rows
from rl.run.sinks import read_metrics
from tests.fakes import FakeEngine, FakeLearner, FakePrompts, FakeScorer, config, proof, trajectory

STEPS, PROMPTS = 14, 4
KILL_POINTS = ("sampling", "scoring", "updating", "publishing", "saving")
# The first step after a checkpoint, one in the middle, and one before any checkpoint.
KILLED_IN = (13, 11, 2)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in a run may catch it."""


class Death:
    """Kills the run the second time that it is at `point` in `step` (1-based)."""

    def __init__(self, point=None, step=None):
        self.point, self.step, self.times = point, step, 0

    def at(self, point, step):
        if (point, step) == (self.point, self.step):
            self.times += 1
            if self.times == 2 or point in ("updating", "publishing", "saving"):
                raise Killed


class Engine(FakeEngine):
    def __init__(self, death):
        super().__init__()
        self.death_of_run = death

    async def generate(self, request):
        self.requests.append(request)
        rng = np.random.default_rng([request.seed, self.version])
        first = self.version
        # Later requests often finish first.
        for _ in range(request.seed % 7):
            await asyncio.sleep(0)
        if "/" in request.group_id and request.group_id[0].isdigit():
            self.death_of_run.at("sampling", int(request.group_id.split("/")[0]) + 1)
        if request.seed % 11 == 0:
            raise GenerationFailed("timeout")
        trajectories = []
        for place in range(request.n):
            one = trajectory(versions=(first, self.version), text=str(rng.integers(1000)))
            if request.mode == "auto":
                choice = Choice(place < request.n / 2, 1, is_forced=request.is_pair)
                one = dataclasses.replace(one, choice=choice)
            trajectories.append(one)
        return RolloutGroup(request, tuple(trajectories))


class Scorer(FakeScorer):
    def __init__(self, death):
        super().__init__()
        self.death, self.baselines = death, {}

    @property
    def state(self):
        return dict(self.baselines)

    def load(self, state):
        self.baselines = dict(state)

    def learnt(self, request):
        return {request.prompt.id: self.baselines[request.prompt.id]}

    def recall(self, learnt):
        self.baselines |= learnt

    async def score(self, group):
        if group.request.group_id[0].isdigit():
            self.death.at("scoring", int(group.request.group_id.split("/")[0]) + 1)
        await asyncio.sleep(0)
        values = [int(t.text) / 1000 for t in group.trajectories]
        # Of the first answer to a prompt, as the probability reward keeps one.
        baseline = self.baselines.setdefault(group.request.prompt.id, values[0])
        values = [abs(value - baseline) for value in values]
        # Groups of hardly any spread, some of which the filter drops.
        if group.request.seed % 3 == 0:
            values = [0.5 + 0.01 * value for value in values]
        return tuple(Score(v, {"accuracy": v}, Route("probability", 1)) for v in values)


class Learner(FakeLearner):
    def __init__(self, death):
        super().__init__()
        self.death, self.weights, self.momentum, self.version = death, 0.0, 0.0, 0

    async def update(self, batch):
        for _ in range(5):
            await asyncio.sleep(0)
        self.death.at("updating", batch.step)
        self.version = batch.step
        for sample in batch.samples:
            gradient = sample.advantage * (int(sample.trajectory.text) + self.weights)
            self.momentum = 0.9 * self.momentum + gradient
            self.weights += 1e-3 * self.momentum
        return BatchUpdate({"loss/policy": self.weights}, (0.0,) * len(batch.samples))

    async def send_weights(self, version):
        self.death.at("publishing", version)
        return proof(version)

    async def save(self, directory):
        (directory / "state.json").write_text(json.dumps([self.weights, self.momentum]))
        self.death.at("saving", self.version)

    def load(self, path):
        self.weights, self.momentum = json.loads((path / "state.json").read_text())


@pytest.fixture(autouse=True)
def without_what_takes_long(monkeypatch):
    monkeypatch.setattr(run_state, "draw_curves", lambda directory: None)
    # It collects the garbage of the whole process, which holds every library that a test loaded.
    monkeypatch.setattr(run_state, "give_back_freed_memory", lambda: None)
    # A publish that fails waits for the news that an engine was lost, which here is never told.
    monkeypatch.setattr(publish, "BLAME_S", 0.0)


def settings(run, **changes):
    return config(
        run=str(run),
        steps=STEPS,
        log={"tensorboard": False},
        checkpoint={"every": 3},
        reward={"probability": {"filter_beta": 0.5}},
        eval={"every": 5},
        **changes,
    )


def train(cfg, death=None):
    """What rl.launch does, from the newest checkpoint on; returns the requests that it made."""
    death = death or Death()
    engine, scorer, learner = Engine(death), Scorer(death), Learner(death)

    async def main():
        inputs = SimpleNamespace(
            config=cfg,
            encode=lambda prompt, mode: (1, 2, 3),
            stream=FakePrompts(PROMPTS),
            heldout=(Prompt("heldout", (), "12"),),
        )
        screen = rich.console.Console(file=io.StringIO())
        console = Console("run", cfg.steps, list(cfg.modes), screen)
        directory = RunDirectory(training.Path(cfg.run))
        with directory.open(cfg):
            checkpoint = directory.checkpoints.newest(console.note)
            if checkpoint is not None:
                learner.load(checkpoint.path)
            directory.truncate_to(checkpoint.step if checkpoint else 0)
            sinks = training.Sinks(cfg.log, directory, console.note, ())
            parts = {"engine": engine, "scorer": scorer, "learner": learner}
            services = SimpleNamespace(**parts, reward_actors=())
            await training._train_from(
                checkpoint, inputs, services, directory, console, sinks, Stop(60)
            )

    try:
        asyncio.run(main())
    except Killed:
        assert death.point is not None
    return [request.group_id for request in engine.requests]


def left_by(run):
    """All that a run leaves on disk, without what a clock decides."""
    timed = ("time/", "perf/", "sync/", "memory/", "idle/", "engine/")
    metrics = {
        step: {key: value for key, value in line.items() if not key.startswith(timed)}
        for step, line in read_metrics(run / "metrics.jsonl").items()
    }
    last = RunDirectory(run).checkpoints.newest(print)
    progress = dict(last.progress)
    progress["progress"].pop("seconds")
    summary = json.loads((run / "summary.json").read_text())
    summary.pop("seconds")
    rows = [read_rows(path) for path in sorted((run / "ledger").iterdir())]
    weights = (last.path / "state.json").read_text()
    return {
        "metrics": metrics,
        "ledger": [[dataclasses.asdict(row) for row in step] for step in rows],
        "weights": weights,
        "progress": progress,
        "summary": summary,
    }


@pytest.mark.parametrize("staleness", [0, 2])
def test_killed_anywhere_and_resumed_it_is_the_run_that_was_not_killed(tmp_path, staleness):
    changes = {"rollout__max_staleness": staleness, "rollout__deterministic": True}
    train(settings(tmp_path / "whole", **changes))
    whole = left_by(tmp_path / "whole")
    assert {"timeout", "low_spread"} <= set(whole["summary"]["groups"]["dropped"])
    for point in KILL_POINTS:
        cfg = settings(tmp_path / point, **changes)
        for step in sorted(KILLED_IN) if point != "saving" else (3, 12):
            death = Death(point, step)
            train(cfg, death)
            assert death.times, f"the run was not {point} in step {step}"
        train(cfg)
        killed = left_by(tmp_path / point)
        for part, expected in whole.items():
            assert killed[part] == expected, (point, part)


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_was_finished_at_a_crash_is_not_sampled_again(tmp_path, staleness):
    """The second place of step 4 to be scored kills the run, whose checkpoint is of step 3."""
    cfg = settings(tmp_path / "run", rollout__max_staleness=staleness)
    train(cfg, Death("scoring", 4))
    path = tmp_path / "run" / "finished" / "step_000003.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) >= 1
    kept = [(line["step"], line["place"]) for line in lines]
    again = [tuple(map(int, i.split("/")[:2])) for i in train(cfg) if i[0].isdigit()]
    assert not set(kept) & set(again)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["groups"]["trained"] == STEPS * PROMPTS
    assert summary["groups"]["in_flight"] == 0


def test_a_price_that_adapts_goes_on_from_where_it_was(tmp_path):
    """Killed after a checkpoint, and once more before the next; the ledger has what it credited."""
    short = {"share": 0.0, "thinking": False, "max_tokens": 4}
    auto = {"share": 1.0, "thinking": "auto", "max_tokens": 16, "price": "target"}
    auto["pairs"] = {"start": 0.5, "floor": 0.5}
    changes = {"modes": {"short": short, "auto": auto}, "rollout__deterministic": True}
    train(settings(tmp_path / "whole", **changes))
    whole = left_by(tmp_path / "whole")
    prices = [metrics["choice/price"] for metrics in whole["metrics"].values()]
    assert prices[0] == 0.0 and len(set(prices)) > STEPS / 2
    cfg = settings(tmp_path / "killed", **changes)
    for step in (11, 12):
        train(cfg, Death("scoring", step))
    train(cfg)
    assert left_by(tmp_path / "killed") == whole
