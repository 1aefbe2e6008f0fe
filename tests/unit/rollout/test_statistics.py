"""What a run shows of its engines, by hand-made reports of vLLM's scheduler."""

from types import SimpleNamespace

import pytest

from rl.system.resident import GIB
from rollout.engines import statistics
from rollout.engines.statistics import MOST_NAMED, EngineStatistics, EngineTally, engine_metrics


def report(running, waiting=0, use=0.0, queries=0, hits=0, preempted=0, deferred=0):
    cache = SimpleNamespace(queries=queries, hits=hits, preempted_requests=preempted)
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=deferred,
        kv_cache_usage=use,
        prefix_cache_stats=cache,
    )


def tokens(count):
    return SimpleNamespace(num_generation_tokens=count)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(statistics.time, "monotonic", lambda: now.seconds)
    return now


def test_iterations_add_up_until_they_are_taken(clock):
    tally = EngineTally()
    tally.add(report(4, waiting=2, use=0.5, queries=100, hits=25), tokens(4))
    clock.seconds = 1.0
    tally.add(report(2, waiting=1, deferred=3, use=0.9, preempted=1), tokens(6))
    clock.seconds = 3.0
    tally.add(report(0), None)
    # Nothing ran, so this is no time of work.
    clock.seconds = 10.0
    tally.add(None, tokens(1))
    taken = tally.take(GIB)
    assert taken == EngineStatistics(
        iterations=3,
        running=6,
        waiting=6,
        most_waiting=4,
        cache_use=1.4,
        most_cache_use=0.9,
        queried_tokens=100,
        cached_tokens=25,
        preemptions=1,
        sampled_tokens=11,
        busy_s=3.0,
        resident_bytes=GIB,
    )
    assert tally.take(0) == EngineStatistics()


def test_the_time_of_a_publish_is_no_time_of_work(clock):
    tally = EngineTally()
    tally.add(report(4), tokens(4))
    tally.pause()
    clock.seconds = 30.0
    tally.add(report(4), tokens(4))
    clock.seconds = 31.0
    tally.add(report(0), tokens(4))
    assert tally.take(0).busy_s == 1.0


def busy(**changes):
    given = {"iterations": 10, "running": 40, "waiting": 20, "most_waiting": 7, "cache_use": 5.0}
    given |= {"most_cache_use": 0.8, "queried_tokens": 100, "cached_tokens": 60, "preemptions": 2}
    given |= {"sampled_tokens": 1000, "busy_s": 2.0, "resident_bytes": 3 * GIB}
    return EngineStatistics(**(given | changes))


def test_means_are_over_the_iterations_of_all_engines():
    idle = EngineStatistics(iterations=30, most_cache_use=0.1, resident_bytes=4 * GIB)
    metrics = engine_metrics({0: busy(), 1: idle}, gpus_per_engine=2)
    assert metrics["engine/kv_use"] == 5.0 / 40
    assert metrics["engine/kv_use_max"] == 0.8
    assert metrics["engine/queue"] == 0.5
    assert metrics["engine/queue_max"] == 7
    assert metrics["engine/running"] == 1.0
    assert metrics["engine/preemptions"] == 2
    assert metrics["engine/prefix_hits"] == 0.6
    assert metrics["engine/0/kv_use"] == 0.5
    assert metrics["engine/1/queue"] == 0.0
    assert "engine/1/prefix_hits" not in metrics
    assert metrics["perf/engine_tokens_per_second"] == 500.0
    # The idle engine has no speed, and its GPUs would only hide how fast the other one is.
    assert metrics["perf/engine_tokens_per_second_per_gpu"] == 250.0
    assert metrics["memory/rss_engine_gib"] == 4.0


def test_one_engine_and_very_many_have_no_figures_of_their_own():
    assert not any(key.startswith("engine/0/") for key in engine_metrics({0: busy()}, 0))
    many = engine_metrics({index: busy() for index in range(MOST_NAMED + 1)}, 0)
    assert not any(key.startswith("engine/0/") for key in many)
    assert "perf/engine_tokens_per_second_per_gpu" not in many


def test_engines_that_answer_nothing_have_no_figures():
    assert engine_metrics({}, 1) == {}
