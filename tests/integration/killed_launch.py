"""rl.launch in a process that kills itself, with -9, at a stated point of a stated step.

python -m tests.integration.killed_launch POINT STEP config=... run=...
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress

import psutil

from policy.learner.learner import RayLearner
from rewards.service import RewardService
from rl.launch.__main__ import main
from rollout.engines.pool import EnginePool


def print_open_ports() -> None:
    """A line for each port of the run that another machine could reach."""
    driver = psutil.Process()
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                address = connection.laddr
                is_local = address and "127.0.0.1" in address.ip
                if connection.status == psutil.CONN_LISTEN and not is_local:
                    print(f"open port: {address} of {process.cmdline()[:3]}", flush=True)


def kill_at(point: str, step: int) -> None:
    """Replace what the driver calls at that point by what kills it there."""
    calls = 0

    def die() -> None:
        print_open_ports()
        os.kill(os.getpid(), signal.SIGKILL)

    def die_at_the_second_group(owner: type, name: str, request_of) -> None:
        original = getattr(owner, name)

        async def killed(self, given):
            nonlocal calls
            group_id = request_of(given).group_id
            calls += group_id.startswith(f"{step - 1}/")
            if calls == 2:
                die()
            return await original(self, given)

        setattr(owner, name, killed)

    if point == "sampling":
        die_at_the_second_group(EnginePool, "generate", lambda request: request)
    elif point == "scoring":
        die_at_the_second_group(RewardService, "score", lambda group: group.request)
    else:
        # The ranks are at work, then the driver goes.
        name = {"updating": "update", "publishing": "send_weights", "saving": "save"}[point]
        original = getattr(RayLearner, name)

        async def killed(self, given):
            done = {
                "updating": lambda: given.step == step,
                "publishing": lambda: given == step,
                "saving": lambda: given.name == f".step_{step:06d}.partial",
            }[point]()
            work = asyncio.ensure_future(original(self, given))
            if done:
                await asyncio.wait([work], timeout=0.02)
                die()
            return await work

        setattr(RayLearner, name, killed)


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
