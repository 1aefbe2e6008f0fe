"""Which actor takes which GPUs and CPU cores: computed before Ray starts, shown by `dry_run`."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config.run import Config


@dataclass(frozen=True)
class Bundle:
    """One placement-group bundle: resources of one node that its actors share."""

    gpus: int
    cpus: float
    actors: tuple[str, ...]

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": float(self.gpus)} if self.gpus else {})


@dataclass(frozen=True)
class Placement:
    """The bundles of a run, and the bundle of each engine, learner rank and preference model."""

    bundles: tuple[Bundle, ...]
    engine_bundles: tuple[int, ...]
    rank_bundles: tuple[int, ...]
    preference_bundles: tuple[int, ...] = ()


def place(config: Config) -> Placement:
    """Give every engine, learner rank and preference model a bundle of its own.

    A colocated engine shares the bundle of the learner ranks on whose GPUs it runs, so that CUDA
    IPC handles stay on one node.
    """
    policy = _place_colocated(config) if config.resources.colocate else _place_apart(config)
    preference = config.reward.preference
    if preference is None:
        return policy
    first = len(policy.bundles)
    added = [
        Bundle(preference.gpus, preference.cpus, (f"preference model {p}",))
        for p in range(preference.actors)
    ]
    return Placement(
        (*policy.bundles, *added),
        policy.engine_bundles,
        policy.rank_bundles,
        tuple(range(first, first + len(added))),
    )


def _place_colocated(config: Config) -> Placement:
    engines, width = config.rollout.workers, config.rollout.tensor_parallel
    resources = config.resources
    bundles = [
        Bundle(
            width,
            resources.engine_cpus + width * resources.rank_cpus,
            (f"engine {e}", *(f"rank {r}" for r in range(e * width, (e + 1) * width))),
        )
        for e in range(engines)
    ]
    # Ranks are numbered along the engines, so engine e shares GPUs with `width` ranks in a row.
    rank_bundles = tuple(rank // width for rank in range(config.policy.ranks))
    return Placement(tuple(bundles), tuple(range(engines)), rank_bundles)


def _place_apart(config: Config) -> Placement:
    engines, ranks, resources = config.rollout.workers, config.policy.ranks, config.resources
    # A bundle each, so that Ray may put engines and ranks on different nodes.
    engine_gpus = config.rollout.tensor_parallel if resources.gpus else 0
    rank_gpus = 1 if resources.gpus else 0
    bundles = [Bundle(engine_gpus, resources.engine_cpus, (f"engine {e}",)) for e in range(engines)]
    bundles += [Bundle(rank_gpus, resources.rank_cpus, (f"rank {r}",)) for r in range(ranks)]
    return Placement(tuple(bundles), tuple(range(engines)), tuple(range(engines, engines + ranks)))


def describe(placement: Placement) -> str:
    """One line per bundle, for people."""
    return "\n".join(
        f"  bundle {place}: {bundle.gpus} GPU, {bundle.cpus:g} CPU: {', '.join(bundle.actors)}"
        for place, bundle in enumerate(placement.bundles)
    )
