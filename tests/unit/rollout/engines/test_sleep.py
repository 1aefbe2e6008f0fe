"""An engine that shares the GPU of the learner gives its memory up for the update."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest

from rl.config.policy import LoraConfig
from rollout.engines.worker import RolloutWorker, WorkerSettings

SETTINGS = WorkerSettings("model", "bfloat16", 32, 1, "ipc", {}, sleeps=True)


class FakeVllm:
    """Has the rules of vLLM's engine: it samples with all of its memory, and not while paused."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.away: set[str] = set()
        self.paused = False
        self.version_when_it_goes_on: int | None = None
        self.worker: RolloutWorker

    async def sleep(self, level: int, mode: str) -> None:
        assert not self.away, "vLLM ignores a second sleep"
        self.calls.append(f"sleep {level} {mode}")
        self.away, self.paused = {"weights", "kv_cache"}, True

    async def wake_up(self, tags: list[str]) -> None:
        assert set(tags) <= self.away, "vLLM ignores tags that are awake"
        self.calls.append(f"wake_up {' '.join(tags)}")
        self.away -= set(tags)
        if not self.away:
            await self._go_on()

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        assert not self.away, "nothing runs that could be paused"
        self.calls.append("pause_generation")
        self.paused = True

    async def reset_encoder_cache(self) -> None:
        self.calls.append("reset_encoder_cache")

    async def start_weight_update(self) -> None:
        assert self.paused and "weights" not in self.away
        self.calls.append("start_weight_update")

    async def finish_weight_update(self) -> None: ...

    async def resume_generation(self) -> None:
        assert not self.away
        self.calls.append("resume_generation")
        await self._go_on()

    async def _go_on(self) -> None:
        if self.paused:
            self.version_when_it_goes_on = self.worker._version
        self.paused = False


def publish(
    settings: WorkerSettings, *, is_asleep: bool, times: int = 1, begins_anew: bool = False
) -> FakeVllm:
    worker, vllm = RolloutWorker("engine 0", settings), FakeVllm()
    worker._engine, vllm.worker = vllm, worker
    worker._tally = SimpleNamespace(pause=lambda: None)

    async def steps() -> None:
        for version in range(1, times + 1):
            if is_asleep:
                await worker.sleep()
                assert vllm.away == {"weights", "kv_cache"}
            await worker.pause()
            if begins_anew:
                # Another engine was lost while weights were on their way.
                await worker.pause()
            await worker.start_weight_update()
            await worker.finish_weight_update()
            # Keys and values come back last: the learner needs the room to gather and send.
            assert vllm.away == ({"kv_cache"} if is_asleep else set())
            await worker.resume(version)
            assert not vllm.away and not vllm.paused

    asyncio.run(steps())
    return vllm


@pytest.mark.parametrize("begins_anew", [False, True])
def test_weights_come_back_for_the_publish_and_the_cache_after_it(begins_anew):
    vllm = publish(SETTINGS, is_asleep=True, times=2, begins_anew=begins_anew)
    step = ["sleep 2 keep", "wake_up weights", "start_weight_update"]
    step += ["wake_up kv_cache", "resume_generation"]
    assert vllm.calls == 2 * step
    # What goes on over the new weights says so.
    assert vllm.version_when_it_goes_on == 2


def test_beside_an_adapter_the_base_is_kept_because_no_publish_brings_it():
    settings = dataclasses.replace(SETTINGS, adapter=LoraConfig())
    assert publish(settings, is_asleep=True).calls[0] == "sleep 1 keep"


@pytest.mark.parametrize("keep_kv_cache", [True, False])
def test_an_engine_that_is_awake_is_paused_as_ever(keep_kv_cache):
    """Also one that can sleep: the first publish comes before any update."""
    settings = dataclasses.replace(SETTINGS, keep_kv_cache=keep_kv_cache)
    calls = publish(settings, is_asleep=False).calls
    reset = ["reset_encoder_cache"] if keep_kv_cache else []
    assert calls == ["pause_generation", *reset, "start_weight_update", "resume_generation"]
