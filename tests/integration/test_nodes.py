"""Ray nodes with GPUs that do not exist: who stands where, what a node lacks, a node that dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from policy.learner import learner
from policy.learner.learner import RayLearner
from rl.config.recipe import load
from rl.config.run import Config
from rl.launch.preflight import Preflight, _check_cluster
from rl.loop.interfaces import WorkerFailed
from rl.run.files import stack_versions
from rl.system.actors import ActorPlaces
from rl.system.cluster import Cluster, open_cluster, start_ray
from rl.system.node_checks import NodeModel, NodeNeeds, bundle_nodes, check_nodes
from rollout.engines import pool
from tests.doubles.actors import SeenEngine, SeenRank, SeenSettings

ROOT = Path(__file__).resolve().parents[2]
NODE = {
    "num_cpus": 64,
    "num_gpus": 8,
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
}
NAMES = ("node-a", "node-b", "node-c", "node-d")
LACKING = "node-e"


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray would start a worker process ahead for each of the many cores that do not exist.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        yield from open_nodes()


def open_nodes() -> Iterator[RayNodes]:
    # A place of its own, short for Ray's sockets: in the usual one Ray notes the cluster down,
    # which any other ray.init of this machine then joins.
    place = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")
    head = {**NODE, "node_name": NAMES[0], "temp_dir": place}
    cluster = RayNodes(initialize_head=True, head_node_args=head)
    try:
        for name in NAMES[1:]:
            cluster.add_node(**NODE, node_name=name)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def with_old_code(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One node more, on which another version of this project is installed."""
    old = tmp_path_factory.mktemp("old_code") / "rl"
    old.mkdir()
    (old / "__init__.py").write_text("# an old version, in which much is missing\n")
    node = {**NODE, "num_gpus": 0, "env_vars": {"PYTHONPATH": str(old.parent)}}
    nodes.add_node(**node, node_name=LACKING)
    nodes.wait_for_nodes()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray looks for code in the driver's directory, which other machines do not have."""
    monkeypatch.chdir(tmp_path)
    yield
    ray.shutdown()


def config_of(nodes: RayNodes, scale: str, *settings: str) -> Config:
    arguments = [
        *("config=hybrid_50_50.yaml", f"scale={scale}", f"run={Path.cwd() / 'run'}"),
        *(f"resources.ray_address={nodes.address}", *settings),
    ]
    return load(arguments).config


@contextlib.contextmanager
def seen_actors(
    monkeypatch: pytest.MonkeyPatch, config: Config
) -> Iterator[tuple[Cluster, RayLearner, list, list]]:
    """The run's reservation, with what is started in it: learner, engines, preference models."""
    monkeypatch.setattr(learner, "LearnerRank", SeenRank)
    monkeypatch.setattr(pool, "RolloutWorker", SeenEngine)
    with contextlib.closing(open_cluster(config)) as cluster:
        placement = cluster.placement
        ranks = RayLearner(config, Path("/here/model"), cluster)
        devices = None
        if config.resources.colocate:
            devices = asyncio.run(ranks.devices_by_engine())
        bundles = placement.engine_bundles
        width = config.rollout.tensor_parallel
        settings: Any = SeenSettings("model", "bfloat16", 64, width, config.transport)
        engines = pool.EnginePool.of_run(config, settings, cluster.group, bundles, devices)
        preference = config.reward.preference
        models = []
        if preference is not None:
            strategies = tuple(
                PlacementGroupSchedulingStrategy(cluster.group, bundle)
                for bundle in placement.preference_bundles
            )
            places = ActorPlaces(preference.cpus, preference.gpus, strategies)
            models = places.start(
                SeenEngine, "p", {}, [(f"p {n}",) for n in range(len(strategies))]
            )
        yield cluster, ranks, engines.actors, models


def places_of(actors: list) -> list[dict]:
    return ray.get([actor.where.remote() for actor in actors], timeout=300)


SCALES = [
    ("cluster", ["resources.rank_cpus=1"], 4),
    pytest.param("node_8gpu", [], 1, marks=pytest.mark.slow),
    pytest.param("one_gpu", [], 1, marks=pytest.mark.slow),
    # A recipe of one's own over two nodes, in which an engine shares its GPUs with two ranks.
    (
        "one_gpu",
        [
            *("resources.gpus=16", "resources.nodes=2", "rollout.workers=8", "policy.ranks=16"),
            "rollout.tensor_parallel=2",
        ],
        2,
    ),
]
NAMED = ["cluster", "node_8gpu", "one_gpu", "colocated_over_two_nodes"]


@pytest.mark.parametrize(("scale", "settings", "spread"), SCALES, ids=NAMED)
def test_every_actor_of_a_scale_sees_its_own_gpus(
    nodes: RayNodes,
    monkeypatch: pytest.MonkeyPatch,
    scale: str,
    settings: list[str],
    spread: int,
):
    config = config_of(nodes, scale, *settings)
    with seen_actors(monkeypatch, config) as (cluster, ranks, engines, models):
        of_ranks, of_engines = places_of(ranks.ranks), places_of(engines)
        of_models = places_of(models)
        by_bundle, at_ranks = bundle_nodes(cluster.group), learner.rank_bundles(cluster)
    assert [len(place["gpus"]) for place in of_ranks] == [1] * config.policy.ranks
    width = config.rollout.tensor_parallel
    assert [len(place["gpus"]) for place in of_engines] == [width] * config.rollout.workers
    # Colocated engines are on the GPUs of their ranks; all others have theirs to themselves.
    alone = of_ranks + of_models + ([] if config.resources.colocate else of_engines)
    taken = Counter((place["node"], gpu) for place in alone for gpu in place["gpus"])
    assert len(taken) == config.num_gpus_taken and set(taken.values()) == {1}
    bundles = cluster.placement
    if config.resources.colocate:
        for engine, bundle in zip(of_engines, bundles.engine_bundles, strict=True):
            own = [place for place, at in zip(of_ranks, at_ranks, strict=True) if at == bundle]
            assert len(own) == width
            assert {place["node"] for place in own} == {engine["node"]}
            assert tuple(gpu for place in own for gpu in place["gpus"]) == engine["gpus"]
    assert len({place["node"] for place in alone}) <= spread
    for place, bundle in zip(of_engines, bundles.engine_bundles, strict=True):
        assert place["node"] == by_bundle[bundle]
    for place, bundle in zip(of_ranks, at_ranks, strict=True):
        assert place["node"] == by_bundle[bundle]
    # Ranks of one node are neighbours.
    nodes_in_order = [place["node"] for place in of_ranks]
    assert len(list(itertools.groupby(nodes_in_order))) == len(set(nodes_in_order))


def test_engines_and_ranks_are_told_where_the_model_lies_on_their_node(
    nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(
        nodes, "cluster", "policy.ranks=2", "rollout.workers=1", "reward.preference=null"
    )
    monkeypatch.setattr(learner, "LearnerRank", SeenRank)
    here = Path("/here/model")
    with contextlib.closing(open_cluster(config)) as cluster:
        of_bundles = bundle_nodes(cluster.group)
        at = {(node, here): Path(f"/{node}/model") for node in of_bundles.values()}
        located = Cluster(cluster.placement, cluster.group, models=at)
        ranks = RayLearner(config, here, located).ranks
        models = ray.get([rank.model.remote() for rank in ranks], timeout=300)
        at_ranks = learner.rank_bundles(cluster)
    expected = [Path(f"/{of_bundles[bundle]}/model") for bundle in at_ranks]
    assert models == expected


def ids() -> dict[str, str]:
    """Of the nodes that are alive, by name."""
    return {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.mark.usefixtures("with_old_code")
def test_a_node_that_lacks_something_is_named_with_what_it_lacks(nodes: RayNodes, tmp_path: Path):
    config = config_of(nodes, "cluster")
    start_ray(config.resources, cpus=1)
    found = ids()
    assert found.keys() == {*NAMES, LACKING}
    run = tmp_path / "run"
    run.mkdir()
    good = {found[name]: 0 for name in NAMES}
    needs = NodeNeeds(stack_versions(), run=run)
    assert check_nodes(needs, good) == {}
    assert list(run.iterdir()) == []

    with pytest.raises(ValueError, match="1 of 5 nodes") as refused:
        check_nodes(needs, dict.fromkeys(found.values(), 0))
    (line,) = [line for line in str(refused.value).splitlines() if line.startswith("  node")]
    assert line.startswith(f"  node {LACKING} ") and "No module named 'rl.system'" in line
    assert "resources.working_dir" in line

    nowhere = tmp_path / "nowhere"
    lacking = NodeNeeds(
        {"ray": "1.0", "no-such-package": "2.0"},
        models=[NodeModel("policy.model=nowhere", nowhere)],
        paths={"data.media_dir": nowhere},
        run=run,
        memory=2**60,
    )
    with pytest.raises(ValueError, match="4 of 4 nodes") as refused:
        check_nodes(lacking, dict.fromkeys(good, 8))
    for name in NAMES:
        (line,) = [x for x in str(refused.value).splitlines() if x.startswith(f"  node {name} ")]
        for lack in (
            f"ray is {ray.__version__} there and 1.0 at the driver",
            "no-such-package is not installed",
            "data.media_dir is not there",
            "one process takes 1073741824.0",
            "Ray gives out 8 GPUs of it, and 0 are there",
        ):
            assert lack in line, lack
        # The driver's own node has what the driver has found.
        assert ("policy.model=nowhere: " in line) == (name != NAMES[0])


def test_a_node_finds_or_makes_a_model_that_it_does_not_have(nodes: RayNodes, tmp_path: Path):
    config = config_of(nodes, "cluster")
    start_ray(config.resources, cpus=1)
    there = tmp_path / "there"
    there.mkdir()
    model = NodeModel("policy.model=a/b", tmp_path / "only_here", there.absolute)
    node = ids()[NAMES[1]]
    found = check_nodes(NodeNeeds({}, [model]), {node: 0})
    assert found == {(node, model.here): there}


@pytest.mark.usefixtures("with_old_code")
def test_a_node_without_the_code_gets_it_from_the_drivers_working_directory(nodes: RayNodes):
    config = config_of(nodes, "cluster", f"resources.working_dir={ROOT}")
    # Nodes of one machine unpack it in one place, where one may find it half unpacked by another.
    for is_unpacked in (False, True):
        start_ray(config.resources, cpus=1)
        try:
            check_nodes(NodeNeeds(stack_versions()), {ids()[LACKING]: 0})
            break
        except ValueError:
            if is_unpacked:
                raise
            ray.shutdown()


@pytest.mark.usefixtures("with_old_code")
def test_a_dry_run_asks_the_nodes_of_the_cluster_that_is_to_be_joined(nodes: RayNodes):
    config = config_of(nodes, "cluster")
    report = Preflight()
    with report.looking("resources.ray_address"):
        _check_cluster(report, config)
    (problem,) = report.problems
    assert "5 of 5 nodes of the Ray cluster lack" in problem and "0 are there" in problem
    assert not ray.is_initialized()


async def lose_a_node(nodes: RayNodes, ranks: RayLearner, victim: str) -> None:
    work = asyncio.ensure_future(ranks.save(Path("nowhere")))
    await asyncio.sleep(3)
    (node,) = [node for node in nodes.list_all_nodes() if node.node_id == victim]
    await asyncio.to_thread(nodes.remove_node, node, allow_graceful=False)
    with pytest.raises(WorkerFailed, match=r"learner rank \d died in save"):
        await asyncio.wait_for(work, 120)


def test_a_node_that_is_lost_ends_the_work_of_all_ranks_with_the_name_of_one_on_it(
    nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
):
    """Last, as there are three nodes after it."""
    # Two nodes' worth of GPUs, of which one at most is the head's.
    settings = ["policy.ranks=10", "rollout.workers=1", "rollout.tensor_parallel=6"]
    config = config_of(nodes, "cluster", *settings, "reward.preference=null")
    with seen_actors(monkeypatch, config) as (cluster, ranks, _engines, _models):
        places_of(ranks.ranks)
        at = bundle_nodes(cluster.group)
        of_ranks = {at[bundle] for bundle in cluster.placement.rank_bundles}
        victim = min(of_ranks - {nodes.head_node.node_id})
        asyncio.run(lose_a_node(nodes, ranks, victim))
