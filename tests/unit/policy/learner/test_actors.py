"""What Ray is told of a learner rank, and what a rank takes of its node."""

from __future__ import annotations

import asyncio
import os

import pytest

from policy.learner import learner
from policy.learner.deepspeed_engine import optimizer_threads
from policy.learner.learner import RayLearner, rank_bundles
from policy.learner.rank import LearnerRank
from rl.system.cluster import Cluster
from rl.system.placement import place
from tests.fakes import config

JOINED = {"ray_address": "auto"}


def put_bundles(monkeypatch: pytest.MonkeyPatch, nodes: str) -> None:
    """Have Ray say that it put the bundles on these nodes, a letter each."""
    monkeypatch.setattr(learner, "bundle_nodes", lambda group: dict(enumerate(nodes)))


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({"resources": {"gpus": 2, "rank_cpus": 4}, "policy__threads": 3}, "4"),
        ({"resources": {"gpus": 2, "rank_cpus": 0.5}}, "1"),
        ({"policy__threads": 3}, "3"),
        ({"rollout__max_staleness": 0}, "2"),
        ({"rollout__max_staleness": 0, "policy__ranks": 2, "rollout__workers": 5}, "3"),
        ({"rollout__max_staleness": 1}, "1"),
    ],
)
def test_a_rank_has_a_thread_for_every_core_that_is_reserved_for_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict, threads: str
) -> None:
    """On CPU those of the engines too, unless these sample meanwhile."""

    class Remote:
        def options(self, **options: object) -> dict[str, object]:
            return options

    monkeypatch.setattr(learner.ray, "remote", lambda **_: lambda kind: Remote())
    monkeypatch.setattr(learner, "PlacementGroupSchedulingStrategy", lambda group, bundle: bundle)
    cfg = config(**settings)
    cluster = Cluster(place(cfg), None)  # type: ignore[arg-type]
    options = learner.rank_actor(LearnerRank, cfg, cluster, 0, 0, {})
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == threads


def test_ranks_are_numbered_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines first, then six ranks, which Ray has strewn over three nodes."""
    put_bundles(monkeypatch, "abbcabcax")
    cfg = config(policy__ranks=6, rollout__workers=2, resources={"gpus": 8, "nodes": 3} | JOINED)
    cluster = Cluster(place(cfg), None)  # type: ignore[arg-type]
    assert cluster.placement.rank_bundles == (2, 3, 4, 5, 6, 7)
    assert rank_bundles(cluster) == [2, 5, 3, 6, 4, 7]


def test_a_colocated_engine_gets_the_gpus_of_its_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles 0 and 2 are on one node, so the ranks of bundle 2 are numbered before those of 1."""
    put_bundles(monkeypatch, "abax")
    cfg = config(
        policy__ranks=6,
        rollout__workers=3,
        rollout__tensor_parallel=2,
        resources={"gpus": 6, "nodes": 2, "colocate": True} | JOINED,
    )
    cluster = Cluster(place(cfg), None)  # type: ignore[arg-type]
    assert rank_bundles(cluster) == [0, 0, 2, 2, 1, 1]

    class Asked(RayLearner):
        def __init__(self) -> None:
            self._cluster = cluster

        async def _call(self, method: str, deadline_s: float, *arguments: object) -> list[str]:
            return ["0", "1", "2", "3", "0", "1"]

    assert asyncio.run(Asked().devices_by_engine()) == ["0,1", "0,1", "2,3"]


def test_an_offloaded_optimizer_has_its_share_of_the_nodes_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    cfg = config(resources={"gpus": 4}, policy__ranks=3)
    hosts = ["a", "a", "b"]
    assert [optimizer_threads(cfg, hosts, rank) for rank in range(3)] == [48, 48, 96]
    many = config(resources={"gpus": 4, "rank_cpus": 60}, policy__ranks=3)
    assert optimizer_threads(many, hosts, 0) == 60
