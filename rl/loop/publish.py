"""A publish: learner weights to the engines, proven before anyone trains on their samples."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence

from rl.loop.interfaces import Engine, Learner
from rl.loop.stages import WeightProof

NAMES_SHOWN = 5


class UnprovenWeights(RuntimeError):
    """An engine does not hold what the learner sent; the message names the tensor or the token."""


async def publish(
    learner: Learner, engine: Engine, version: int, canary_tolerance: float
) -> dict[str, float]:
    """Move the weights of `version` to every engine and prove that they arrived.

    Requests in flight are frozen meanwhile and go on under the new weights, over the keys and
    values that they have (rollout.keep_kv_cache). Returns the `sync/...` metrics; raises
    UnprovenWeights if any engine holds something else.
    """
    started = time.monotonic()
    # Frozen and not aborted: long responses go on under the new weights, and record both versions.
    await engine.pause()
    paused = time.monotonic()
    sent = await _while_alive(engine, learner.send_weights(version))
    await engine.resume(version)
    proving = time.monotonic()
    received = await engine.prove(version)
    difference = check_proofs(sent, received, canary_tolerance)
    finished = time.monotonic()
    return {
        "sync/seconds": finished - started,
        "sync/pause_seconds": paused - started,
        **{f"sync/{part}_seconds": seconds for part, seconds in sent.seconds.items()},
        "sync/prove_seconds": finished - proving,
        "sync/canary_max_abs_diff": difference,
    }


async def _while_alive(engine: Engine, sending: Awaitable[WeightProof]) -> WeightProof:
    """Return the learner's proof, or raise what `engine.watch` says of an engine that died.

    A collective waits for an engine that is gone until its own deadline, many minutes later, and
    the error would name the learner, which is the one that waits.
    """
    send, watch = asyncio.ensure_future(sending), asyncio.ensure_future(engine.watch())
    try:
        await asyncio.wait((send, watch), return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        return await send
    finally:
        send.cancel()
        watch.cancel()
        await asyncio.gather(send, watch, return_exceptions=True)


def check_proofs(sent: WeightProof, received: Sequence[WeightProof], tolerance: float) -> float:
    """Return the largest canary difference, or raise UnprovenWeights naming what differs."""
    largest = 0.0
    for place, proof in enumerate(received):
        engine = f"vLLM process {place}"
        # First, because digests of another version would differ too and blame the transfer.
        if proof.version != sent.version:
            raise UnprovenWeights(f"{engine} answers version {proof.version}, sent {sent.version}")
        # The digests prove that the bytes arrived, the canary that the engine computes with them:
        # vLLM may keep a repacked copy of a tensor through an update, and no digest sees that.
        _check_digests(engine, sent, proof)
        largest = max(largest, _check_canary(engine, sent, proof, tolerance))
    return largest


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


def _check_canary(engine: str, sent: WeightProof, received: WeightProof, tolerance: float) -> float:
    pairs = zip(sent.canary_logprobs, received.canary_logprobs, strict=True)
    distances = [abs(ours - theirs) for ours, theirs in pairs]
    # Infinite where a side is not a number, which would compare as equal.
    differences = [math.inf if math.isnan(distance) else distance for distance in distances]
    # The largest and not the mean: one tensor that was not applied may move few tokens.
    worst = max(range(len(differences)), key=differences.__getitem__)
    if differences[worst] > tolerance:
        raise UnprovenWeights(
            f"{engine} computes other log-probabilities than the learner for the same weights of "
            f"version {sent.version}: canary token {worst + 1} has "
            f"{received.canary_logprobs[worst]:.6g}, the learner "
            f"{sent.canary_logprobs[worst]:.6g}, tolerance {tolerance:g}. Every tensor arrived "
            "intact, so the engine did not apply one of them (tied embeddings?) or computes "
            "differently (dtype, attention); sync.canary_tolerance sets the bound"
        )
    return differences[worst]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
