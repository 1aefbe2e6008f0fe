"""What Ray is told of a learner rank."""

from __future__ import annotations

import pytest

from policy.learner import learner
from policy.learner.rank import LearnerRank
from rl.system.cluster import Cluster
from rl.system.placement import place
from tests.fakes import config


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
    options = learner.rank_actor(LearnerRank, cfg, cluster, 0, {})
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == threads
