"""Preference models in real Ray actors: right scores, killed processes, a judge in vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen3ForCausalLM,
)

from policy.models.family import open_visual_inputs
from rewards.preference import actors
from rewards.preference.actors import RewardModelClient
from rewards.preference.judge import Judge, JudgePrompt
from rewards.preference.preference import PreferenceInput
from rewards.preference.reward_model import RewardModel
from rl.config.data import SourceConfig
from rl.config.reward import PreferenceConfig
from rl.config.run import RecoveryConfig
from rl.data.media.names import MediaError, MediaFile, StillImage
from rl.system.actors import ActorPlaces
from rl.system.supervision import Supervisor
from rollout.engines.pool import EnginePool
from tests.minicpmv_tiny import noise_image
from tests.qwen_vl_tiny import save_tiny
from tests.unit.rewards.test_preference import asked, make_random_model
from tests.unit.rewards.test_preference_media import PICTURE, chat, plain_score, save_classifier

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
    open_inputs = partial(open_visual_inputs, data=SourceConfig())
    return RewardModelClient.start(
        directory, places, "float32", deadline_s, open_inputs, supervisor
    )


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
            tokens = tokenizer(prompt.rendered(one).text, return_tensors="pt")
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
        engine = EnginePool.of_judge(config, tmp_path, ActorPlaces(cpus=1.0), SourceConfig())
        await engine.start()
        client = Judge(JudgePrompt(tmp_path), engine)
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


def pictured(picture: Path, answer: str) -> PreferenceInput:
    content = [{"type": "image"}, {"type": "text", "text": "sum?"}]
    medium = MediaFile("image", str(picture))
    return PreferenceInput(({"role": "user", "content": content},), answer, (medium,))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        noise_image(90 + 30 * seed, 60, seed).save(root / f"{seed}.png")
    return sorted(root.iterdir())


def test_an_actor_reads_the_pictures_itself_and_scores_as_a_plain_forward_does(
    loop, tmp_path: Path, pictures: list[Path]
) -> None:
    directories = save_classifier(tmp_path, "qwen2_5_vl")
    groups = [[pictured(picture, str(n)) for n in range(3)] for picture in pictures]
    groups.append([asked("11")])

    async def body() -> list[tuple[float | None, ...]]:
        client = await start(directories[0], actors=1)
        scores = await asyncio.gather(*map(client.score, groups))
        with pytest.raises(MediaError, match=r"^missing: /none\.png"):
            await client.score([pictured(Path("/none.png"), "11")])
        await client.close()
        return scores

    scores = loop.run(body())
    for picture, of_group in zip(pictures, scores, strict=False):
        still = StillImage(Image.open(picture).convert("RGB"), "")
        wanted = [
            plain_score(directories, chat(f"{PICTURE}sum?", str(n)), [still]) for n in range(3)
        ]
        assert list(of_group) == pytest.approx(wanted, abs=2e-5)
    (text,) = scores[-1]
    assert text == pytest.approx(plain_score(directories, chat("a2b9?", "11"), []), abs=2e-5)


@pytest.mark.slow
def test_a_judge_that_sees_grades_as_transformers_does(
    loop, tmp_path: Path, pictures: list[Path]
) -> None:
    save_tiny(tmp_path, "qwen2_5_vl")
    inputs = [pictured(picture, str(n)) for picture in pictures for n in range(2)]
    inputs.append(asked("11"))
    prompt = JudgePrompt(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    wanted = []
    for one in inputs:
        images = [Image.open(medium.path).convert("RGB") for medium in one.media]
        shown = {"images": images} if images else {}
        batch = processor(
            text=[prompt.rendered(one).text],
            return_tensors="pt",
            return_mm_token_type_ids=True,
            **shown,
        )
        with torch.no_grad():
            p = model(**batch).logits[0, -1].softmax(-1)[list(prompt.digit_ids)]
        wanted.append((p @ torch.arange(10.0) / p.sum()).item())
    assert max(wanted) - min(wanted) > 0.1

    async def body() -> None:
        config = PreferenceConfig(kind="judge", model="", deadline_s=DEADLINE_S, engine=CPU_ENGINE)
        engine = EnginePool.of_judge(config, tmp_path, ActorPlaces(cpus=1.0), SourceConfig())
        await engine.start()
        judge = Judge(prompt, engine)
        assert list(await judge.score(inputs)) == pytest.approx(wanted, abs=1e-4)
        # The question fits with a marker for its picture, and not with all of its visual tokens.
        room = CPU_ENGINE["max_model_len"] - 2
        fitting = room - len(prompt.token_ids(prompt.rendered(pictured(pictures[0], "")).text))
        assert await judge.score([pictured(pictures[0], "1" * fitting)]) == (None,)
        await engine.close()

    loop.run(body())
