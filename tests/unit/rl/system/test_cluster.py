"""What a Ray cluster must have, with its answers made up."""

from __future__ import annotations

import pytest
import ray
from ray._private.services import get_node_ip_address

from rl.config.run import ResourcesConfig
from rl.system.cluster import NoCluster, refuse_unplaceable, start_ray
from rl.system.placement import place
from tests.fakes import config


def pretend(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    """A joined cluster of these nodes."""
    total = {kind: sum(node[kind] for node in nodes) for kind in ("CPU", "GPU")}
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {}}])


NODE = {"CPU": 8, "GPU": 4}


def test_a_cluster_with_too_few_gpus_or_nodes_is_refused(monkeypatch):
    pretend(monkeypatch, NODE, NODE)
    start_ray(ResourcesConfig(ray_address="auto", gpus=8, nodes=2), cpus=4)
    with pytest.raises(ValueError, match=r"takes 9 GPUs .* on 2 nodes .* Ray has 8 on 2"):
        start_ray(ResourcesConfig(ray_address="auto", gpus=9, nodes=2), cpus=4)
    with pytest.raises(ValueError, match=r"takes 8 GPUs .* on 3 nodes .* Ray has 8 on 2"):
        start_ray(ResourcesConfig(ray_address="auto", gpus=8, nodes=3), cpus=4)


def test_a_ray_of_our_own_takes_the_address_of_the_loopback_and_a_joined_one_does_not(monkeypatch):
    pretend(monkeypatch, NODE)
    taken = []
    monkeypatch.setattr(ray, "init", lambda **_: taken.append(get_node_ip_address()))
    start_ray(ResourcesConfig(gpus=1), cpus=4)
    start_ray(ResourcesConfig(ray_address="auto", gpus=1), cpus=4)
    assert taken == ["127.0.0.1", get_node_ip_address()]


def test_a_cluster_that_does_not_answer_is_waited_for_once(monkeypatch):
    """Ray tries as often as it is told; one try of its own client ends after 41 s."""
    monkeypatch.delenv("RAY_gcs_server_port_wait_time_s", raising=False)
    tries = []

    class Client:
        def __init__(self, **asked):
            tries.append(asked["address"])
            raise RuntimeError("timed out")

    monkeypatch.setattr("ray._private.node.GcsClient", Client)
    with pytest.raises(NoCluster, match=r"127\.0\.0\.1:1: no Ray cluster answers"):
        start_ray(ResourcesConfig(ray_address="127.0.0.1:1"), cpus=4)
    assert len(tries) == 1


def test_a_run_that_fits_on_two_nodes_alone_is_unplaceable_on_one(monkeypatch):
    pretend(monkeypatch, NODE, NODE)
    resources = {"gpus": 8, "ray_address": "auto"}
    sizes = {"rollout__workers": 4, "policy__ranks": 4}
    refuse_unplaceable(place(config(resources={**resources, "nodes": 2}, **sizes)))
    with pytest.raises(ValueError, match=r"no node of the Ray cluster has .*raise resources.nodes"):
        refuse_unplaceable(place(config(resources=resources, **sizes)))
    # A bundle never spans two nodes.
    wide = {"rollout__tensor_parallel": 5, "policy__ranks": 1}
    with pytest.raises(ValueError, match=r"has \{'CPU': 1, 'GPU': 5.0\}"):
        refuse_unplaceable(place(config(resources={**resources, "nodes": 2}, **wide)))


@pytest.mark.parametrize(
    ("fails", "error", "raised"),
    [
        (2, "The current node timed out during startup.", False),
        (3, "The current node timed out during startup.", True),
        (1, "Something else", True),
    ],
)
def test_a_ray_that_comes_up_too_slowly_is_started_again(monkeypatch, fails, error, raised):
    pretend(monkeypatch, NODE)
    starts = []

    def init(**_: object) -> None:
        starts.append(1)
        if len(starts) <= fails:
            raise Exception(error)

    monkeypatch.setattr(ray, "init", init)
    if raised:
        with pytest.raises(Exception, match=error):
            start_ray(config().resources, 1)
    else:
        start_ray(config().resources, 1)
    assert len(starts) == min(fails + (not raised), 3)


def test_a_working_directory_is_sent_to_the_nodes_of_a_cluster(monkeypatch, tmp_path):
    pretend(monkeypatch, NODE)
    given: list[dict] = []
    monkeypatch.setattr(ray, "init", lambda **settings: given.append(settings["runtime_env"]))
    monkeypatch.chdir(tmp_path)
    start_ray(ResourcesConfig(ray_address="auto"), cpus=1)
    start_ray(ResourcesConfig(ray_address="auto", working_dir="."), cpus=1)
    assert "working_dir" not in given[0]
    assert given[1]["working_dir"] == str(tmp_path) and ".venv" in given[1]["excludes"]
    with pytest.raises(ValueError, match=r"resources.working_dir=. is for the nodes of a cluster"):
        config(resources={"working_dir": "."})
