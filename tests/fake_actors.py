"""Stand-ins for Ray actors, for tests of what the driver does about their faults."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorDiedError

from rl.loop.stages import RolloutGroup, RolloutRequest, WeightProof
from rl.system.vitals import Process, Vitals, process_of
from tests.fakes import proof, trajectory

NOBODY = Process(2**22 + 1, 1)
"""A process that is not there."""


class Method:
    """A method of a fake actor, as Ray's handle has it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def options(self, **_: object) -> Method:
        return self

    def remote(self, *arguments: object) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._function(*arguments))


class FakeActor:
    """An engine that can die at any moment; what was asked of it fails then, as Ray has it.

    `held` keeps answers to requests back while it is not set, `may_start` that of the start, and
    `is_stopped` everything.
    """

    def __init__(self, index: int, log: list[tuple[int, str]]) -> None:
        self._index, self._log = index, log
        self._death = asyncio.Event()
        self.version = -1
        self.held = asyncio.Event()
        self.held.set()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.is_stopped = False
        self.dies_in: str | None = None
        self.process = process_of(os.getpid())

    def die(self) -> None:
        self._death.set()

    def __getattr__(self, name: str) -> Method:
        async def answer(*arguments: object) -> Any:
            self._log.append((self._index, name))
            if self.dies_in == name:
                self.die()
            body, death = (
                asyncio.ensure_future(work)
                for work in (getattr(self, f"_{name}")(*arguments), self._death.wait())
            )
            try:
                if self.is_stopped:
                    await death
                await asyncio.wait((body, death), return_when=asyncio.FIRST_COMPLETED)
                if death.done():
                    raise ActorDiedError
                return body.result()
            finally:
                body.cancel()
                death.cancel()

        if name.startswith("_"):
            raise AttributeError(name)
        return Method(answer)

    async def _start(self) -> int:
        await self.may_start.wait()
        return 100

    async def _watch(self) -> None:
        await asyncio.Event().wait()

    async def _vitals(self) -> Vitals:
        return Vitals("node", self.process, ())

    async def _generate(self, request: RolloutRequest) -> RolloutGroup:
        await self.held.wait()
        versions = (self.version, self.version)
        return RolloutGroup(request, tuple(trajectory(versions=versions) for _ in range(request.n)))

    async def _pause(self) -> None: ...

    async def _sleep(self) -> None: ...

    async def _resume(self, version: int) -> None:
        self.version = version

    async def _prove(self, canary: object) -> list[WeightProof]:
        return [proof(self.version)]

    async def _close(self) -> None: ...
