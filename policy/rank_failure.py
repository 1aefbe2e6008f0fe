"""Which rank is to blame when a call on all of them fails."""

from __future__ import annotations

from collections.abc import Mapping

from ray.exceptions import RayActorError, RayTaskError


def rank_failure(who: str, method: str, errors: Mapping[int, BaseException]) -> Exception:
    """Name the rank at fault: one that died, else the first that raised.

    The others wait in a collective for one that will not come. A ValueError is about the input and
    comes back as it was.
    """
    dead = [rank for rank, error in errors.items() if isinstance(error, RayActorError)]
    rank = min(dead or errors)
    error = errors[rank]
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ValueError):
        cause.__cause__ = error
        return cause
    verb = "died" if dead else "failed"
    failure = RuntimeError(f"{who} rank {rank} {verb} in {method}: {cause}")
    failure.__cause__ = error
    return failure
