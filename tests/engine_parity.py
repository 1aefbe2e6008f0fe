"""One vLLM engine for a module's tests: started, asked and given weights as a rollout worker is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rl.system.engine_environment import engine_environment
from rollout.engines.worker import RolloutWorker, WorkerSettings


@contextmanager
def open_worker(
    directory: Path, dtype: str = "float32", max_model_length: int = 2048, **engine: Any
) -> Iterator[tuple[RolloutWorker, asyncio.Runner]]:
    """A worker of a tiny model, and the event loop that it runs in; engine: vLLM's arguments."""
    engine = {
        "enforce_eager": True,
        "max_num_batched_tokens": 2048,
        # A gibibyte of keys and values takes a second to make.
        "num_gpu_blocks_override": 256,
        # As configs/scale/cpu_tiny.yaml: one process less to start.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        **engine,
    }
    settings = WorkerSettings(
        str(directory),
        dtype,
        max_model_length=max_model_length,
        tensor_parallel=1,
        transport="host",
        thinking={"short": False, "long": True, "ask": False},
        scores_references=True,
        engine=engine,
    )
    worker = RolloutWorker("worker", settings)
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        for name, value in engine_environment(cpus=1, on_gpu=False).items():
            patch.setenv(name, value)
        runner.run(worker.start())
        try:
            yield worker, runner
        finally:
            runner.run(worker.close())


def engine_logprobs(output: Any) -> np.ndarray:
    """[T - 1] of the prompt's tokens and the sampled ones."""
    ids, (completion,) = output.prompt_token_ids, output.outputs
    pairs = [*zip(ids, output.prompt_logprobs, strict=True)][1:]
    pairs += zip(completion.token_ids, completion.logprobs, strict=True)
    return np.array([found[token].logprob for token, found in pairs], dtype=np.float32)


async def publish(
    worker: RolloutWorker, tensors: Mapping[str, torch.Tensor], directory: Path, version: int = 1
) -> dict[str, str]:
    """What `host` does for a learner (policy/weights/sender.py); returns the worker's digests."""
    path = directory / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    await worker.pause()
    await worker.init_weight_transfer_engine({})
    await worker.start_weight_update()
    await worker.update_weights({"path": str(path), "names": list(tensors)})
    await worker.finish_weight_update()
    await worker.resume(version)
    (receipt,) = await worker._engine.collective_rpc("weight_receipt")
    assert not receipt["unapplied"], receipt["unapplied"]
    assert not receipt["unexplained"], receipt["unexplained"]
    return receipt["digests"]
