"""Preference models in real Ray actors: right scores, killed processes, a judge in vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from rewards.preference import actors
from rewards.preference.actors import RewardModelClient
from rewards.preference.judge import Judge, JudgePrompt
from rewards.preference.preference import PreferenceInput
from rewards.preference.reward_model import RewardModel
from rl.config.reward import PreferenceConfig
from rl.config.run import RecoveryConfig
from rl.system.actors import ActorPlaces
from rl.system.supervision import Supervisor
from rollout.engines.pool import EnginePool
from tests.unit.rewards.test_preference import asked, make_random_model

pytestmark = pytest.mark.usefixtures("local_ray")

DEADLINE_S = 120.0
CPU_ENGINE = {
    "enforce_eager": True,
    "enable_chunked_prefill": False,
    "max_model_len": 512,
    "max_num_batched_tokens": 4096,
}


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("reward-model"))


def start(directory: Path, actors: int, deadline_s: float = DEADLINE_S):
    places = ActorPlaces(cpus=1.0, strategies=("DEFAULT",) * actors)
    # With signs of life every second, so that no restart is missed.
    supervisor = Supervisor(RecoveryConfig(restarts_per_hour=2, heartbeat_s=6))
    return RewardModelClient.start(directory, places, "float32", deadline_s, supervisor)


def process_of(client: RewardModelClient | EnginePool, place: int = 0) -> psutil.Process:
    pid = ray.get(client.actors[place].__ray_call__.remote(lambda _: os.getpid()), timeout=60)
    return psutil.Process(pid)


def long_inputs() -> list[PreferenceInput]:
    """Some seconds of work on one core."""
    return [asked(str(n), "a1b2c3d4" * 60 + "?") for n in range(300)]


async def scores_through_a_kill(client: RewardModelClient | EnginePool, inputs):
    """The scores of `inputs`, whose actor is killed while it computes them."""
    process = process_of(client)
    before = process.cpu_times().user
    scoring = asyncio.ensure_future(client.score(inputs))
    # By the work that it has done, so that a slow or a busy machine does not matter.
    while process.cpu_times().user < before + 0.1:
        await asyncio.sleep(0.01)
    assert not scoring.done()
    process.send_signal(signal.SIGKILL)
    return await scoring


def test_a_killed_actor_comes_back_with_right_scores_until_its_restarts_are_spent(
    loop, directory: Path
) -> None:
    inputs = long_inputs()
    wanted = pytest.approx(RewardModel(directory, "float32", "cpu").score(inputs), abs=1e-5)

    async def body() -> None:
        client = await start(directory, actors=1)
        assert list(await client.score(inputs)) == wanted
        process_of(client).kill()
        assert list(await client.score(inputs)) == wanted
        assert list(await scores_through_a_kill(client, inputs)) == wanted
        with pytest.raises(RuntimeError, match="preference model 0: its process died"):
            await scores_through_a_kill(client, inputs)
        with pytest.raises(RuntimeError, match="preference model 0: its process died"):
            await client.score(inputs[:1])
        await client.close()

    loop.run(body())


def test_groups_in_flight_get_their_own_scores_from_either_actor(loop, directory: Path) -> None:
    groups = [[asked(str(n + i), f"a{n}?") for i in range(n % 4)] for n in range(1, 40)]
    model = RewardModel(directory, "float32", "cpu")

    async def body() -> None:
        client = await start(directory, actors=2)
        scored = await asyncio.gather(*(client.score(group) for group in groups))
        for group, scores in zip(groups, scored, strict=True):
            assert list(scores) == pytest.approx(model.score(group), abs=1e-5)
        assert process_of(client, 0).pid != process_of(client, 1).pid
        twice = await client.score([asked("11"), asked("12"), asked("11"), asked("1" * 2100)])
        assert twice[0] == twice[2] != twice[1]
        assert twice[3] is None
        # A question at fault fails alone.
        picture = PreferenceInput(({"role": "user", "content": "?"},), "11", ("a.png",))
        bad, good = await asyncio.gather(
            client.score([asked("11"), picture]), client.score([asked("11")]),
            return_exceptions=True,
        )  # fmt: skip
        assert isinstance(bad, ValueError)
        assert str(bad).startswith("the preference model reads text only")
        assert isinstance(good, tuple)
        await client.close()

    loop.run(body())


def test_a_broken_model_is_an_error_and_no_score(loop, tmp_path: Path) -> None:
    weights = make_random_model(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    tensors["score.weight"][:] = float("nan")
    save_file(tensors, weights, {"format": "pt"})

    async def body() -> None:
        client = await start(tmp_path, actors=1)
        with pytest.raises(RuntimeError, match="preference model 0 scored nan for the answer '11'"):
            await client.score([asked("11")])
        await client.close()

    loop.run(body())


def test_what_cannot_be_loaded_is_refused_at_the_start(loop, tmp_path: Path) -> None:
    make_random_model(tmp_path, Qwen3ForCausalLM)
    with pytest.raises(ValueError, match=r"^the reward model .* without a classification head"):
        loop.run(start(tmp_path, actors=1))


def test_a_start_that_takes_too_long_is_an_error(
    loop, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An actor that is still loading does not answer a request to close either.
    monkeypatch.setattr(actors, "CLOSE_TIMEOUT_S", 0.1)
    with pytest.raises(TimeoutError, match=r"did not finish load within 0\.01 s"):
        loop.run(start(directory, actors=1, deadline_s=0.01))


def expected_grades(directory: Path, inputs: list[PreferenceInput]) -> list[float]:
    """The same from transformers: one prompt at a time, probabilities of the digits after it."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = JudgePrompt(directory)
    digits = torch.tensor([tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)])
    grades = []
    for one in inputs:
        with torch.no_grad():
            tokens = tokenizer(prompt.rendered(one), return_tensors="pt")
            p = model(**tokens).logits[0, -1].softmax(-1)[digits]
        grades.append((p @ torch.arange(10.0) / p.sum()).item())
    return grades


@pytest.mark.slow
def test_the_judge_grades_as_transformers_does_also_after_its_engine_was_killed(
    loop, tmp_path: Path
) -> None:
    make_random_model(tmp_path, Qwen3ForCausalLM)
    inputs = [asked(str(n), f"a{n}b{n + 1}?") for n in range(12)]
    wanted = expected_grades(tmp_path, inputs)
    assert max(wanted) - min(wanted) > 0.1

    async def body() -> None:
        config = PreferenceConfig(kind="judge", model="", deadline_s=DEADLINE_S, engine=CPU_ENGINE)
        engine = EnginePool.of_judge(config, tmp_path, ActorPlaces(cpus=1.0))
        await engine.start()
        assert engine.max_model_length == CPU_ENGINE["max_model_len"]
        client = Judge(JudgePrompt(tmp_path), engine, engine.max_model_length)
        scores = await client.score([*inputs, inputs[0], asked("1" * 2100)])
        assert list(scores[:12]) == pytest.approx(wanted, abs=1e-4)
        assert scores[12] == scores[0]
        assert scores[13] is None
        processes = process_of(engine).children(recursive=True)
        assert processes
        for process in processes:
            process.kill()
        assert list(await client.score(inputs)) == pytest.approx(wanted, abs=1e-4)
        await engine.close()

    loop.run(body())
