"""A publish: learner weights to the engines, proven before anyone trains on their samples."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rl.config.run import Config
from rl.loop.interfaces import Engine, EngineLost, Learner, LearnerLost
from rl.loop.race import first_of
from rl.loop.stages import WeightProof

NAMES_SHOWN = 5
BLAME_S = 5.0
"""How long a failed transfer waits for the news that an engine was lost, which made it fail."""
# Simulated with the differences that are reported of bfloat16 engines, root mean square 0.03 to
# 0.04 with heavy tails: the mean over 64 tokens stays within a factor of two, and a canary whose
# tokens the policy unlearns grows noisier by a few times. Wrong weights differ by tens of times.
NOISE_FACTOR = 8.0
NOISE_FLOOR = 1e-4


class UnprovenWeights(RuntimeError):
    """An engine does not hold what the learner sent; the message names the tensor or the token."""


@dataclass
class CanaryCheck:
    """Whether an engine computes what the learner does; knows the noise of the first publish.

    In bfloat16 two correct programs round at other places, so that single tokens differ by tenths
    while the mean over a response hardly moves: it is the mean that is judged.
    """

    mean: float
    """Largest mean difference of a log-probability that is accepted."""
    largest: float
    """Largest single difference that is accepted."""
    noise: float | None = None
    """The mean difference at the first publish."""

    @classmethod
    def of(cls, config: Config) -> CanaryCheck:
        return cls(config.canary_tolerance, config.canary_largest)

    def judge(self, engine: str, sent: WeightProof, received: WeightProof) -> tuple[float, float]:
        """Return the mean and the largest difference; raises UnprovenWeights above the bounds."""
        pairs = zip(sent.canary_logprobs, received.canary_logprobs, strict=True)
        distances = [abs(ours - theirs) for ours, theirs in pairs]
        # Infinite where a side is not a number, which would compare as equal.
        differences = [math.inf if math.isnan(distance) else distance for distance in distances]
        mean = math.fsum(differences) / len(differences)
        worst = max(range(len(differences)), key=differences.__getitem__)
        bound = self.mean
        if self.noise is not None:
            bound = min(bound, max(NOISE_FACTOR * self.noise, NOISE_FLOOR))
        if mean > bound or differences[worst] > self.largest:
            raise UnprovenWeights(
                f"{engine} computes other log-probabilities than the learner for the same weights "
                f"of version {sent.version}: their mean difference on the canary is {mean:.3g}, "
                f"accepted {bound:.3g}; canary token {worst + 1} has "
                f"{received.canary_logprobs[worst]:.6g}, the learner "
                f"{sent.canary_logprobs[worst]:.6g}, accepted {self.largest:g}. Every tensor "
                "arrived intact, so the engine computes differently (dtype, attention, a copy of "
                "a tensor that it keeps); sync.canary_tolerance sets the bound"
            )
        return mean, differences[worst]


async def at_next_publish() -> None:
    """In the place of `admit` while nobody knows which version the learner holds.

    Engines that are joining wait for the publish that ends this.
    """


class JoinedEngine(Engine, Protocol):
    """An engine that others join while the run goes on."""

    async def pause_joining(self) -> int:
        """In the place of `pause`: let the publish go to those alone that have no weights yet.

        Returns how many they are.
        """
        ...


async def publish(
    learner: Learner, engine: Engine, version: int, canary: CanaryCheck
) -> dict[str, float]:
    """Move the weights of `version` to every engine and prove that they arrived.

    Requests in flight are frozen meanwhile and go on under the new weights, over the keys and
    values that they have (rollout.keep_kv_cache). If an engine is lost meanwhile, the publish
    begins anew with those that are left. Returns the `sync/...` metrics; raises UnprovenWeights if
    any engine holds something else.
    """
    started = time.monotonic()
    while True:
        try:
            return await _publish_once(learner, engine, version, canary, started)
        except EngineLost:
            # Whoever lost it counts such losses, and ends the run when there are too many.
            continue


async def admit(learner: Learner, engine: JoinedEngine, version: int, canary: CanaryCheck) -> None:
    """Move the weights of `version`, which the others have, to the engines that wait for them.

    Nothing is paused but these. The learner must hold that version: it may not update meanwhile.
    """
    while True:
        try:
            if await engine.pause_joining():
                await _send_and_prove(learner, engine, version, canary)
            return
        except EngineLost:
            continue


async def _publish_once(
    learner: Learner, engine: Engine, version: int, canary: CanaryCheck, started: float
) -> dict[str, float]:
    # Frozen and not aborted: long responses go on under the new weights, and record both versions.
    await engine.pause()
    paused = time.monotonic()
    metrics = await _send_and_prove(learner, engine, version, canary)
    return {
        "sync/seconds": time.monotonic() - started,
        "sync/pause_seconds": paused - started,
        **metrics,
    }


async def _send_and_prove(
    learner: Learner, engine: Engine, version: int, canary: CanaryCheck
) -> dict[str, float]:
    sent = await _while_alive(engine, learner.send_weights(version))
    await engine.resume(version)
    proving = time.monotonic()
    received = await engine.prove(version)
    mean, largest = check_proofs(sent, received, canary)
    return {
        **{f"sync/{part}_seconds": seconds for part, seconds in sent.seconds.items()},
        "sync/prove_seconds": time.monotonic() - proving,
        "sync/canary_max_abs_diff": largest,
        "sync/canary_mean_abs_diff": mean,
    }


async def _while_alive(engine: Engine, sending: Awaitable[WeightProof]) -> WeightProof:
    """Return the learner's proof, or raise what `engine.watch` says of an engine that died.

    A collective waits for an engine that is gone until its own deadline, many minutes later, and
    the error would name the learner, which is the one that waits.
    """
    async with first_of(sending, engine.watch()) as (send, watch):
        if send.done() and (error := send.exception()) and not isinstance(error, LearnerLost):
            # What the sender met may be the death of an engine, and its news come a moment later.
            await asyncio.wait((watch,), timeout=BLAME_S)
        if watch.done():
            watch.result()
        return await send


def check_proofs(
    sent: WeightProof, received: Sequence[WeightProof], canary: CanaryCheck
) -> tuple[float, float]:
    """Return the largest mean and the largest single difference on the canary.

    Raises UnprovenWeights that names what differs.
    """
    differences = []
    for place, proof in enumerate(received):
        engine = f"vLLM process {place}"
        # First, because digests of another version would differ too and blame the transfer.
        if proof.version != sent.version:
            raise UnprovenWeights(f"{engine} answers version {proof.version}, sent {sent.version}")
        # The digests prove that the bytes arrived, what changed in the engine that they were
        # applied, and the canary that the engine computes with them.
        _check_digests(engine, sent, proof)
        _check_application(engine, proof)
        differences.append(canary.judge(engine, sent, proof))
    mean, largest = map(max, zip(*differences, strict=True))
    if canary.noise is None:
        canary.noise = mean
    return mean, largest


def _check_digests(engine: str, sent: WeightProof, received: WeightProof) -> None:
    missing = [name for name in sent.digests if name not in received.digests]
    if missing:
        names = _listed(missing)
        raise UnprovenWeights(
            f"{engine} did not receive {names} in the publish of version {sent.version}"
        )
    if extra := [name for name in received.digests if name not in sent.digests]:
        raise UnprovenWeights(f"{engine} received {_listed(extra)}, which the learner did not send")
    differing = [name for name in sent.digests if sent.digests[name] != received.digests[name]]
    if differing:
        names = _listed(differing)
        raise UnprovenWeights(
            f"{engine} received other values than version {sent.version} holds for {names}: "
            "stale or corrupted on the way"
        )


def _check_application(engine: str, received: WeightProof) -> None:
    if received.unapplied:
        raise UnprovenWeights(
            f"{engine} received version {received.version} of {_listed(received.unapplied)} and "
            "goes on computing with what it had: vLLM's loader of this model leaves them out, or "
            "keeps a copy of them"
        )
    if received.unexplained:
        raise UnprovenWeights(
            f"{engine} holds {_listed(received.unexplained)}, which changed in the publish of "
            f"version {received.version} without being made of anything that changed, or is made "
            "of nothing that the learner sends"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
