"""One running system, whose processes are killed and stopped one after the other.

Each test leaves a system behind that works, so they share one; its heartbeats are short.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rl.assembly import TrainingServices, at_next_publish, gather_inputs, open_training
from rl.config.recipe import load
from rl.loop.group_filter import DropReason
from rl.loop.interfaces import LearnerLost
from rl.loop.loop import Parts, StepResult, TrainingLoop, train_request
from rl.loop.publish import CanaryCheck, publish
from rl.loop.stages import RolloutGroup
from rl.system.stacks import write_stacks
from rl.system.supervision import Supervisor
from rl.system.watchdog import watch_progress

PROMPTS = 6
HEARTBEAT_S = 6.0
DEADLINE_S = 180.0
SETTINGS = [
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    "rollout.workers=2",
    "steps=1000",
    f"rollout.prompts_per_step={PROMPTS}",
    "rollout.group_size=4",
    "rollout.max_staleness=1",
    "eval.prompts=4",
    f"recovery.heartbeat_s={HEARTBEAT_S}",
    "recovery.restarts_per_hour=20",
    "sync.deadline_s=20",
]


@dataclasses.dataclass
class Running:
    """The system, at the version that its engines hold."""

    runner: asyncio.Runner
    inputs: Any
    services: TrainingServices
    supervisor: Supervisor
    events: list[dict[str, Any]]
    canary: CanaryCheck
    version: int = 0

    def run(self, work: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE_S):
                return await work

        return self.runner.run(bounded())

    def steps(
        self,
        num: int,
        strike: Callable[[], None] = lambda: None,
        until: tuple[str, str] | None = None,
    ) -> list[StepResult]:
        """Train so many steps, and on until an event; strikes when the first step has begun."""
        services, inputs = self.services, self.inputs
        parts = Parts(
            inputs.stream, inputs.encode, services.engine, services.scorer, services.learner
        )
        loop = TrainingLoop(inputs.config, parts, self.version, self.canary)
        results: list[StepResult] = []
        since = len(self.events)

        async def on_step(result: StepResult) -> bool:
            results.append(result)
            self.version = result.step
            told = [(event["event"], event["who"]) for event in self.events[since:]]
            return len(results) < num or until not in [None, *told]

        async def train() -> None:
            services.engine.admit = partial(loop.admit, services.engine)
            asyncio.get_running_loop().call_later(0.3, strike)
            try:
                await loop.run(on_step)
            finally:
                services.engine.admit = at_next_publish

        self.run(train())
        return results

    def group(self, name: str) -> RolloutGroup:
        request = train_request(
            self.inputs.config, self.inputs.encode, name, self.inputs.heldout[0], "long"
        )
        return self.run(self.services.engine.generate(request))

    def publish(self) -> None:
        services = self.services
        self.run(publish(services.learner, services.engine, self.version, self.canary))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("recovery")
    inputs = gather_inputs(load([*SETTINGS, f"run={directory}"]).config)
    events: list[dict[str, Any]] = []
    with asyncio.Runner() as runner:
        supervisor = Supervisor(inputs.config.recovery, print, events.append)
        opened = open_training(inputs, print, supervisor)
        services = runner.run(opened.__aenter__())
        canary = CanaryCheck.of(inputs.config)
        system = Running(runner, inputs, services, supervisor, events, canary)
        system.publish()
        yield system
        runner.run(opened.__aexit__(None, None, None))


def process_of(actor: Any) -> psutil.Process:
    return psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))


def core_of(actor: Any) -> psutil.Process:
    """vLLM's own process of an engine, which holds the model."""
    (core,) = [
        child
        for child in process_of(actor).children(recursive=True)
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name()
    ]
    return core


def assert_ended(*processes: psutil.Process) -> None:
    """Nothing is left of them; the news of a loss may come a moment before its end."""
    _, left = psutil.wait_procs(processes, timeout=30)
    assert not left


def assert_trained(results: list[StepResult], first: int) -> None:
    """Each step trained its own groups, all of them, and no group or score was lost to a fault."""
    for number, result in enumerate(results):
        places = [s.group.request.group_id.rpartition("/")[0] for s in result.groups]
        assert places == [f"{first + number}/{place}" for place in range(PROMPTS)]
        # What the policy answers may teach nothing, or be no answer at all.
        assert {reason for _, reason in result.dropped} <= {str(reason) for reason in DropReason}
        failures = [score.failure for scored in result.groups for score in scored.scores]
        assert {failure.reason for failure in failures if failure} <= {"not_scorable"}


@pytest.mark.parametrize("victim", [process_of, core_of], ids=["actor", "vllm"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_an_engine_that_is_lost_is_replaced_and_the_run_goes_on(running, victim, number):
    since, first = len(running.events), running.version
    old = running.services.engine.actors[1]
    processes = [process_of(old), core_of(old)]
    results = running.steps(
        2, lambda: victim(old).send_signal(number), until=("joined", "engine 1")
    )
    assert_trained(results, first)
    lost, joined = running.events[since:]
    assert (lost["event"], lost["who"], joined["event"]) == ("lost", "engine 1", "joined")
    if number == signal.SIGSTOP:
        # On a busy machine the stop may come while weights are sent, where the publish has its own
        # deadline, as `recovery.heartbeat_s` says.
        assert re.search(r"answered nothing for|did not finish \w+ within", lost["why"])
    assert running.services.engine.actors[1] is not old
    assert len(running.services.engine.receivers) == 2
    assert_ended(*processes)
    running.publish()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
@pytest.mark.parametrize("part", ["text", "preference"])
def test_a_reward_actor_that_is_lost_starts_again_and_scores_what_it_was_asked(
    running, part, number
):
    scorer = running.services.scorer
    actor = scorer.text.actors[0] if part == "text" else scorer.preference.model.actors[0]
    who = "text rewards actor 0" if part == "text" else "preference model 0"
    group, since = running.group(f"rewards/{part}/{number}"), len(running.events)
    before = running.run(scorer.score(group))
    process = process_of(actor)

    async def strike_while_it_scores() -> list[Any]:
        scoring = [asyncio.create_task(scorer.score(group)) for _ in range(20)]
        await asyncio.sleep(0)
        process.send_signal(number)
        scores = await asyncio.gather(*scoring)
        while not any(event["event"] == "joined" for event in running.events[since:]):
            await asyncio.sleep(0.1)
        return scores

    assert running.run(strike_while_it_scores()) == [before] * 20
    assert process_of(actor).pid != process.pid
    assert [(e["event"], e["who"]) for e in running.events[since:]] == [
        ("lost", who),
        ("joined", who),
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_a_learner_whose_rank_is_lost_starts_again_from_its_checkpoint(running, number, tmp_path):
    learner = running.services.learner
    running.run(learner.save(tmp_path))
    saved, rank = running.version, process_of(learner.ranks[0])
    with pytest.raises(LearnerLost, match="learner rank 0"):
        running.steps(1000, lambda: rank.send_signal(number))
    assert_ended(rank)
    go_back(running, saved, tmp_path)


def go_back(running: Running, saved: int, checkpoint: Path) -> None:
    """Start the learner again, from a checkpoint, and show that it trains."""
    learner = running.services.learner
    running.run(learner.restart())
    running.run(learner.load(checkpoint))
    running.version = saved
    running.publish()
    assert_trained(running.steps(1), saved)


def test_a_rank_that_hangs_while_it_gives_signs_of_life_is_named_and_ended(running, tmp_path):
    learner, since = running.services.learner, len(running.events)
    running.run(learner.save(tmp_path))
    saved, rank = running.version, process_of(learner.ranks[0])
    logs = Path(running.inputs.config.run) / "logs"
    # In the thread that answers calls, where a collective would wait too.
    learner.ranks[0].__ray_call__.remote(lambda _: time.sleep(600))

    async def watch() -> None:
        await watch_progress(running.supervisor, 8.0, partial(write_stacks, logs))

    watching = running.runner.get_loop().create_task(watch())
    with pytest.raises(LearnerLost, match="learner rank 0"):
        running.steps(1000)
    watching.cancel()
    assert_ended(rank)
    stalled = running.events[since]
    assert (stalled["event"], stalled["who"]) == ("stalled", "learner rank")
    assert "has been at update for" in stalled["why"]
    told = Path(stalled["stacks"]).read_text()
    assert "test_recovery.py" in told.partition("== rank_0: ")[2], "where it hangs"
    go_back(running, saved, tmp_path)


def test_the_stacks_of_all_processes_tell_what_each_of_them_is_at(running):
    engine = running.services.engine.actors[0]
    core_of(engine).send_signal(signal.SIGSTOP)
    try:
        text = write_stacks(Path(running.inputs.config.run) / "logs").read_text()
    finally:
        core_of(engine).send_signal(signal.SIGCONT)
    sections = {
        section.splitlines()[0]: section for section in text.split("== ")[1:] if section.strip()
    }
    of_engine = [section for title, section in sections.items() if title.startswith("engine_0:")]
    assert any("T (stopped)" in section for section in of_engine)
    for name in ("driver", "engine_0", "engine_1", "rank_0", "rewards_0", "preference_model_0"):
        told = [section for title, section in sections.items() if title.startswith(f"{name}:")]
        assert any("most recent call first" in section for section in told), name
