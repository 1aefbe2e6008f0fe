"""Stand-ins for engines and ranks that say where Ray put them; importing them takes no library."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True)
class SeenSettings:
    """What a pool reads of WorkerSettings, which takes transformers to unpickle."""

    model: str
    dtype: str
    max_model_length: int
    tensor_parallel: int
    transport: str
    seed: int = 0


def where() -> dict[str, Any]:
    """The node and the GPUs of the actor that calls this."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": tuple(int(device) for device in shown.split(",") if device),
    }


class SeenRank:
    def __init__(self, *given: Any) -> None:
        self.given = given

    def visible_devices(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def where(self) -> dict[str, Any]:
        return where()

    def model(self) -> Any:
        return self.given[1]

    def save(self, directory: object) -> None:
        time.sleep(600)


class SeenEngine:
    def __init__(self, name: str, settings: Any = None, devices: str | None = None) -> None:
        self.devices, self.settings = devices, settings

    async def where(self) -> dict[str, Any]:
        if self.devices is not None:
            # As a colocated engine does before it loads vLLM.
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
        return where()

    async def close(self) -> None:
        await asyncio.sleep(0)
