"""Which actor takes which GPUs and CPU cores: computed before Ray starts, shown by `dry_run`."""

from dataclasses import dataclass
from typing import Literal

from rl.config.run import Config

WORKERS_PER_ACTOR = 8
"""Worker processes that one actor of the text rewards keeps busy: it reads every text itself, some
milliseconds of a long one, and nobody else is answered meanwhile."""


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
    """The bundles of a run, and the bundle of each engine, learner rank and preference model.

    Where there are GPUs the text rewards have bundles too, since their worker processes would take
    the cores that ranks and engines were promised.
    """

    bundles: tuple[Bundle, ...]
    engine_bundles: tuple[int, ...]
    rank_bundles: tuple[int, ...]
    preference_bundles: tuple[int, ...]
    text_bundles: tuple[int, ...]
    strategy: Literal["STRICT_PACK", "PACK"]
    """Ray's: all bundles on one node, or on as few as hold them."""


def place(config: Config) -> Placement:
    """Give every engine, learner rank and preference model, and the text rewards, a bundle.

    A colocated engine shares the bundle of the learner ranks on whose GPUs it runs, so that CUDA
    IPC handles stay on one node.
    """
    resources, preference = config.resources, config.reward.preference
    engines, width = range(config.rollout.workers), config.rollout.tensor_parallel
    ranks = range(config.policy.ranks)
    if resources.colocate:
        cpus = resources.engine_cpus + width * resources.rank_cpus
        # Ranks are numbered along the engines, so engine e shares GPUs with `width` ranks in a row.
        shared = [[f"rank {r}" for r in ranks[e * width : (e + 1) * width]] for e in engines]
        bundles = [Bundle(width, cpus, (f"engine {e}", *shared[e])) for e in engines]
        rank_bundles = tuple(rank // width for rank in ranks)
    else:
        # A bundle each, so that Ray may put engines and ranks on different nodes.
        gpus = (width, 1) if resources.gpus else (0, 0)
        bundles = [Bundle(gpus[0], resources.engine_cpus, (f"engine {e}",)) for e in engines]
        bundles += [Bundle(gpus[1], resources.rank_cpus, (f"rank {r}",)) for r in ranks]
        rank_bundles = tuple(len(engines) + rank for rank in ranks)
    first = len(bundles)
    if preference is not None:
        bundles += [
            Bundle(preference.gpus, preference.cpus, (f"preference model {p}",))
            for p in range(preference.actors)
        ]
    preference_bundles = tuple(range(first, len(bundles)))
    first = len(bundles)
    # On a laptop not: it has fewer cores than actors, and workers verify while the engines wait.
    if resources.gpus:
        shares = divide_workers(config.reward.workers)
        names = [f"text rewards {index}" for index in range(len(shares))]
        # Each has room for the largest share, since Ray reserves the same for all of them.
        bundles += [
            Bundle(0, shares[0], (name if len(shares) > 1 else "text rewards",)) for name in names
        ]
    text_bundles = tuple(range(first, len(bundles)))
    # What promises to be on one node must be: `host` sends weights through its shared memory.
    strategy = "STRICT_PACK" if resources.nodes == 1 else "PACK"
    return Placement(
        tuple(bundles), tuple(engines), rank_bundles, preference_bundles, text_bundles, strategy
    )


def divide_workers(workers: int) -> list[int]:
    """Worker processes of each actor of the text rewards; the first has the most of them.

    Example: divide_workers(9) == [5, 4]
    """
    num_actors = -(-workers // WORKERS_PER_ACTOR)
    return [workers // num_actors + (index < workers % num_actors) for index in range(num_actors)]


def describe(placement: Placement) -> str:
    """One line per bundle, for people."""
    return "\n".join(
        f"  bundle {index}: {bundle.gpus} GPU, {bundle.cpus:g} CPU: {', '.join(bundle.actors)}"
        for index, bundle in enumerate(placement.bundles)
    )
