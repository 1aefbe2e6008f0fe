"""What Ray is told of a learner rank."""

from __future__ import annotations

import pytest

from policy.learner import learner
from policy.learner.rank import LearnerRank
from rl.system.cluster import Cluster
from rl.system.placement import place
from tests.fakes import config


@pytest.mark.parametrize(
    ("resources", "threads"),
    [({"gpus": 2, "rank_cpus": 4}, "4"), ({"gpus": 2, "rank_cpus": 0.5}, "1"), ({}, "3")],
)
def test_a_rank_has_a_thread_for_every_core_that_is_reserved_for_it(
    monkeypatch: pytest.MonkeyPatch, resources: dict, threads: str
) -> None:
    """Without GPUs as many as policy.threads: there cores are shared."""

    class Remote:
        def options(self, **options: object) -> dict[str, object]:
            return options

    monkeypatch.setattr(learner.ray, "remote", lambda kind: Remote())
    monkeypatch.setattr(learner, "PlacementGroupSchedulingStrategy", lambda group, bundle: bundle)
    cfg = config(resources=resources, policy__threads=3)
    cluster = Cluster(place(cfg), None)  # type: ignore[arg-type]
    options = learner.rank_actor(LearnerRank, cfg, cluster, 0, {})
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == threads
