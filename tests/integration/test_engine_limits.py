"""How much of a device vLLM is let use: read from its own configuration, without a start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rl.loop.interfaces import WorkerFailed
from rollout.engines import vllm_api
from rollout.engines.worker import RolloutWorker, WorkerSettings
from tests.qwen3_tiny import tiny_qwen3


@pytest.mark.parametrize("transport", ["host", None], ids=["policy", "judge"])
def test_an_engine_has_the_limits_of_its_device_and_not_vllms_smallest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transport: str | None
) -> None:
    """On CPU 4,096 tokens and 256 sequences a step; without a usage context 2,048 and 128."""
    tiny_qwen3(64).save_pretrained(tmp_path)
    configured: list[Any] = []

    def stop(config: Any, **_: Any) -> None:
        configured.append(config)
        raise RuntimeError("the configuration is there")

    monkeypatch.setattr(vllm_api.AsyncLLM, "from_vllm_config", stop)
    worker = RolloutWorker("w", WorkerSettings(str(tmp_path), "float32", 64, 1, transport, {}))
    with pytest.raises(WorkerFailed, match="the configuration is there"):
        asyncio.run(worker.start())
    scheduler = configured[0].scheduler_config
    # The policy's engine has one sequence more, which the canary alone may take.
    admitted = scheduler.max_num_active_seqs or scheduler.max_num_seqs
    assert (scheduler.max_num_batched_tokens, admitted) == (4096, 256)


def test_an_engine_that_cannot_start_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_qwen3(64).save_pretrained(tmp_path)
    engine = {"block_size": -1, "enforce_eager": True}
    settings = WorkerSettings(str(tmp_path), "float32", 64, 1, "host", {}, engine=engine)
    said = "^engine 0: its vLLM engine died; vLLM says:\nInput should be greater than 0$"
    with pytest.raises(WorkerFailed, match=said):
        asyncio.run(RolloutWorker("engine 0", settings).start())
    # The whole of it is where the worker prints.
    assert "block_size" in capsys.readouterr().err
