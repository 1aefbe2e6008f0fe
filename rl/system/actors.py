"""Calls to Ray actors: every wait has a deadline, and every error names the actor at fault."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError

from rl.loop.interfaces import WorkerFailed
from rl.system.vitals import VITALS
from rl.system.worker_logs import log_variables

MAX_CALLS_IN_FLIGHT = 10_000
"""Calls that an asynchronous actor takes up at once; it queues them better than Ray could."""
BLAME_S = 5.0
"""How long a failed call waits for the failures of other actors, to name the one at fault."""
DEATHS = (RayActorError, ObjectLostError, NodeDiedError)
"""What Ray says where an actor died, and where its answer was lost with its node."""


class ActorDied(WorkerFailed):
    """The process of an actor died."""

    def __init__(self, message: str, who: str) -> None:
        """who: the actor, as errors name it."""
        # Both as arguments, because pickle makes an exception again from those.
        super().__init__(message, who)
        self.who = who

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class ActorPlaces:
    """What Ray reserves for each of several actors of a kind, and where."""

    cpus: float
    gpus: int = 0
    """GPUs of each actor; 0 keeps it on CPU."""
    strategies: tuple[Any, ...] = ("DEFAULT",)
    """A Ray scheduling strategy per actor: `DEFAULT`, or a bundle of a placement group."""
    logs: Path | None = None
    """Where the actors' output goes (rl/system/worker_logs.py)."""

    def start(
        self,
        kind: type,
        name: str,
        environment: Mapping[str, str],
        arguments: Sequence[tuple],
        restarts: int = 0,
    ) -> list[Any]:
        """Start `kind(*arguments[i])` as an asynchronous actor in each place.

        kind: has rl.system.vitals.Watched. name: of their kind, which with a number behind it names
        their logs. restarts: how often an actor whose process dies starts again, -1 for always;
        what it was asked is then asked once more.
        """
        return [
            self.start_one(index, kind, name, environment, own, restarts)
            for index, own in enumerate(arguments)
        ]

    def start_one(
        self,
        index: int,
        kind: type,
        name: str,
        environment: Mapping[str, str],
        arguments: tuple,
        restarts: int = 0,
    ) -> Any:
        """Start the actor of one place; beyond the last place Ray puts it where there is room."""
        strategies, output = self.strategies, log_variables(self.logs, f"{name} {index}")
        # Its overloads know no class that is given at run time.
        remote: Any = ray.remote
        return (
            remote(concurrency_groups={VITALS: 1})(kind)
            .options(
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_concurrency=MAX_CALLS_IN_FLIGHT,
                max_restarts=restarts,
                max_task_retries=restarts,
                scheduling_strategy=strategies[index] if index < len(strategies) else "DEFAULT",
                runtime_env={"env_vars": {**environment, **output}},
            )
            .remote(*arguments)
        )


class Waiting:
    """The calls that this process waits for, and how many have been answered."""

    @dataclass(frozen=True, eq=False)
    class Call:
        who: str
        method: str
        since: float

    def __init__(self) -> None:
        self.num_answered = 0
        self._calls: dict[Waiting.Call, None] = {}

    @contextmanager
    def at(self, who: str, method: str) -> Iterator[None]:
        """A call; it has been answered if the block ends without an error."""
        call = Waiting.Call(who, method, time.monotonic())
        self._calls[call] = None
        try:
            yield
            self.num_answered += 1
        finally:
            del self._calls[call]

    def oldest(self) -> Call | None:
        # They are in the order in which they began.
        return next(iter(self._calls), None)


WAITING = Waiting()


async def call(
    actor: Any,
    method: str,
    *arguments: Any,
    deadline_s: float,
    who: str,
    hint: str = "",
    last_sign: Callable[[], float] = lambda: 0.0,
) -> Any:
    """Return the answer of one actor, or raise what its method raised.

    deadline_s: counts from the call, or from `last_sign()` if that is later: the time.monotonic()
    at which the actor last showed that it is at work. An actor with a long queue may answer late,
    but must not fall silent. who: names the actor in errors, such as `engine 0`. hint: ends the
    message of a deadline that passed.

    Raises TimeoutError once the deadline has passed, and WorkerFailed if the actor's process died.
    """
    reference = getattr(actor, method).remote(*arguments)
    answer = asyncio.ensure_future(answer_of(reference))
    # One without a deadline is not waited for: it tells of a death, sooner or later.
    waiting = nullcontext() if deadline_s == math.inf else WAITING.at(who, method)
    try:
        with waiting:
            if await _missing([answer], deadline_s, last_sign):
                raise TimeoutError(f"{who} did not finish {method} within {deadline_s:g} s{hint}")
            return answer.result()
    # First, because it is one of the deaths too where the method itself met a dead actor.
    except RayTaskError as error:
        # Ray's own message is the whole remote traceback, which stays visible as the cause.
        raise error.cause from error
    except DEATHS as error:
        raise ActorDied(f"{who}: its process died: {in_a_line(error)}", who) from error
    finally:
        _give_up(reference, answer)


async def call_all(
    actors: Sequence[Any],
    method: str,
    *arguments: Any,
    deadline_s: float,
    who: str,
    hint: str = "",
    last_sign: Callable[[], float] = lambda: 0.0,
    refusal: type[Exception] | tuple[()] = (),
) -> list[Any]:
    """Return the answers of all actors, in their order; the parameters are those of `call`.

    The first failure ends the wait, because the others may wait in a collective for the actor that
    failed. Their calls are cancelled. refusal: an error about the input, which is raised as it is.

    Raises WorkerFailed that names the actor which died, RuntimeError that names the one which
    failed, and TimeoutError that names those which are late.
    """
    references = [getattr(actor, method).remote(*arguments) for actor in actors]
    answers = [asyncio.ensure_future(answer_of(reference)) for reference in references]
    try:
        with WAITING.at(who, method):
            missing = await _missing(answers, deadline_s, last_sign)
        if missing and any(answer.done() and answer.exception() for answer in answers):
            # Collectives fail on all ranks when one dies, and the news of the death may come last.
            await asyncio.wait(missing, timeout=BLAME_S)
        errors = {i: e for i, a in enumerate(answers) if a.done() and (e := a.exception())}
        if errors:
            # An actor that died is blamed before one that failed, which may follow from it.
            # A RayTaskError is one of the deaths too where the method itself met a dead actor.
            dead = [
                index
                for index, error in errors.items()
                if isinstance(error, DEATHS) and not isinstance(error, RayTaskError)
            ]
            index = min(dead or errors)
            error = errors[index]
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, (refusal, WorkerFailed)):
                raise cause from error
            if dead:
                message = f"{who} {index} died in {method}: {in_a_line(cause)}"
                raise ActorDied(message, f"{who} {index}") from error
            raise RuntimeError(f"{who} {index} failed in {method}: {cause}") from error
        if missing:
            late = [index for index, answer in enumerate(answers) if answer in missing]
            raise TimeoutError(
                f"{who}s {late} did not finish {method} within {deadline_s:g} s{hint}"
            )
        return [answer.result() for answer in answers]
    finally:
        for reference, answer in zip(references, answers, strict=True):
            _give_up(reference, answer)


def _give_up(reference: Any, answer: asyncio.Future) -> None:
    """Cancel what has not been answered: late, or of no use to a caller who is cancelled himself.

    Otherwise the actor would go on, and an engine sample to the end what nobody takes.
    """
    if not answer.done():
        # At the end of a run Ray may be gone by now, and what it ran with it.
        if ray.is_initialized():
            ray.cancel(reference)
        answer.cancel()


async def _missing(
    answers: Sequence[asyncio.Future], deadline_s: float, last_sign: Callable[[], float]
) -> set[asyncio.Future]:
    """The answers that are not there once the deadline has passed or another one has failed."""
    called, missing = time.monotonic(), set(answers)
    while missing and not any(answer.done() and answer.exception() for answer in answers):
        left = max(called, last_sign()) + deadline_s - time.monotonic()
        if left <= 0:
            break
        _, missing = await asyncio.wait(missing, timeout=left, return_when=asyncio.FIRST_EXCEPTION)
    return missing


async def close_all(actors: Sequence[Any], deadline_s: float) -> None:
    """Let every actor end what it started, then end the actors; also if some are dead or stuck."""
    answers = (answer_of(actor.close.remote()) for actor in actors)
    closing = asyncio.gather(*answers, return_exceptions=True)
    try:
        await asyncio.wait([closing], timeout=deadline_s)
    finally:
        for actor in actors:
            kill_actor(actor)


def kill_actor(actor: Any) -> None:
    """End an actor for good; also if it is dead or stuck."""
    ray.kill(actor)


def in_a_line(error: BaseException) -> str:
    # Ray writes a table of the actor's ids first, over several lines, and general advice last.
    return " ".join(str(error).partition("Some common causes")[0].split())


async def answer_of(reference: Any) -> Any:
    """A Ray reference as a coroutine, which asyncio can time."""
    return await reference
