"""Ray for a run: joins or starts it, checks that it has what the run takes, reserves it."""

import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)

from rl.config.run import Config, ResourcesConfig
from rl.system.node_checks import bundle_nodes
from rl.system.placement import Placement, place
from rl.system.worker_logs import SETUP_HOOK

RESERVE_TIMEOUT_S = 120.0
START_TRIES = 3
NOT_SENT = [".git", ".venv", "/runs", "/evaluations", "/dist"]
"""What of resources.working_dir no node needs."""


class NoCluster(ValueError):
    """No Ray cluster answers at the configured address."""


@dataclass(frozen=True)
class Cluster:
    placement: Placement
    group: PlacementGroup
    is_own: bool = True
    """Whether Ray and the reservation are this run's, and end with it."""
    logs: Path | None = None
    """Where the output of the run's processes goes; None leaves it in Ray's own directory."""
    models: Mapping[tuple[str, Path], Path] = field(default_factory=dict)
    """Where a model lies on another node, by the node's id and by where it lies here."""

    def on_node_of(self, bundle: int, model: Path) -> Path:
        """Where a model that lies here lies on the node of a bundle."""
        if not self.models:
            return model
        return self.models.get((bundle_nodes(self.group)[bundle], model), model)

    def close(self) -> None:
        if self.is_own:
            remove_placement_group(self.group)
            ray.shutdown()


def open_cluster(config: Config) -> Cluster:
    """Start a local Ray or join the configured one, and reserve the run's bundles.

    Inside a Ray actor, which is an arm of a sweep, the bundles are reserved already: its own
    placement group holds them. Raises ValueError if the cluster lacks the GPUs, or if they are not
    free in time.
    """
    placement = place(config)
    # A command that asks a model without a run has no directory to leave it in.
    run = Path(config.run)
    logs = run / "logs" if run.is_dir() else Path(tempfile.mkdtemp(prefix="hybrid-rl-logs-"))
    if ray.is_initialized() and (reserved := get_current_placement_group()) is not None:
        return Cluster(placement, reserved, is_own=False, logs=logs)
    start_ray(config.resources, sum(bundle.cpus for bundle in placement.bundles))
    # All of the run at once, before any actor: two runs that each got half of what they need would
    # wait for each other for ever.
    bundles = [bundle.resources for bundle in placement.bundles]
    group = placement_group(bundles, strategy=placement.strategy)
    if not group.wait(RESERVE_TIMEOUT_S):
        remove_placement_group(group)
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        if placement.strategy == "STRICT_PACK":
            advice = "All of it must fit on one node: raise resources.nodes"
        else:
            advice = "Each bundle must fit on one node: lower rollout.tensor_parallel"
        raise ValueError(
            f"Ray could not reserve {bundles} within {RESERVE_TIMEOUT_S:g} s; free now: {free}. "
            f"{advice}, free the cluster, or take a smaller scale"
        )
    return Cluster(placement, group, logs=logs)


def start_ray(resources: ResourcesConfig, cpus: float) -> None:
    """Start a local Ray with room for `cpus`, or join the configured one.

    What its processes print does not appear here (rl/system/worker_logs.py). Raises ValueError if
    there are fewer GPUs or nodes than a run takes.
    """
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"worker_process_setup_hook": SETUP_HOOK},
    }
    # Actor creation with no GPU reserved must not hide the GPUs it is handed later.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if resources.ray_address is None:
        # Ray runs its workers at nice 15 by default, so that any other program starves the run.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # It would start a process for each core ahead. No actor of a run can use one, as each has
        # an environment of its own.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # Ray gives itself half a minute, which a machine that is busy for a moment may not have.
        for tries_left in reversed(range(START_TRIES)):
            try:
                with _only_on_loopback():
                    ray.init(
                        # Not the cluster that RAY_ADDRESS or an earlier `ray start` names.
                        address="local",
                        # Logical cores: a laptop may hold more actors than it has cores.
                        num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
                        include_dashboard=False,
                        **quiet,
                    )
                break
            # It has no type of its own for this.
            except Exception as error:
                if not tries_left or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
    else:
        address = resources.ray_address
        if resources.working_dir is not None:
            sent = str(Path(resources.working_dir).absolute())
            quiet["runtime_env"] |= {"working_dir": sent, "excludes": NOT_SENT}
        # One try, of 41 s. By itself Ray makes twenty where nothing answers, such as at the address
        # of a cluster that has ended, or that serves its own machine alone.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise NoCluster(
                f"resources.ray_address={address}: no Ray cluster answers ({error}); start one "
                "with ray start --head, or leave the key out"
            ) from error
    gpus = int(ray.cluster_resources().get("GPU", 0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    if resources.gpus > gpus or resources.nodes > nodes:
        ray.shutdown()
        raise ValueError(
            f"the run takes {resources.gpus} GPUs (resources.gpus) on {resources.nodes} nodes "
            f"(resources.nodes), Ray has {gpus} on {nodes}; take a smaller scale= or join a larger "
            "cluster with resources.ray_address=auto"
        )


def has_room(cpus: float, gpus: float) -> bool:
    """Whether the Ray cluster has as much free, beside what is reserved."""
    # Of all nodes together: an actor that fits on none of them alone stays pending, and says so
    # when the deadline of its start has passed.
    free = ray.available_resources()
    return free.get("CPU", 0) >= cpus and free.get("GPU", 0) >= gpus


@contextmanager
def _only_on_loopback() -> Iterator[None]:
    """Have a Ray of our own listen on 127.0.0.1 alone: whoever reaches its ports may run code.

    Ray does so by itself on systems where it can be no cluster, and takes any address that it is
    given for another one. Its processes ask the environment, this one asked when it was imported.
    """
    name, may_be_cluster = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = may_be_cluster
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def refuse_unplaceable(placement: Placement) -> None:
    """Raise ValueError for bundles that would wait for ever, even with nothing else running."""
    # Ray itself does not refuse them: such a placement group stays pending without a word.
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    bundles = [bundle.resources for bundle in placement.bundles]
    together: Counter[str] = Counter()
    for bundle in bundles:
        together.update(bundle)
    for bundle in [together] if placement.strategy == "STRICT_PACK" else bundles:
        if not any(all(node.get(k, 0) >= v for k, v in bundle.items()) for node in nodes):
            raise ValueError(
                f"no node of the Ray cluster has {dict(bundle)}; lower rollout.tensor_parallel or "
                "resources.*_cpus, raise resources.nodes, or join larger nodes"
            )
    for kind in ("CPU", "GPU"):
        needed = together[kind]
        there = sum(node.get(kind, 0) for node in nodes)
        if needed > there:
            raise ValueError(f"an arm takes {needed:g} {kind}s, the Ray cluster has {there:g}")
