from rl.system.placement import divide_workers, place
from tests.fakes import config


def test_cpu_run_gives_each_actor_a_core():
    placement = place(config(rollout__workers=2, policy__ranks=2))
    assert [b.resources for b in placement.bundles] == [{"CPU": 1.0}] * 4
    assert placement.engine_bundles == (0, 1)
    assert placement.rank_bundles == (2, 3)
    assert placement.text_bundles == ()


def test_separate_engines_take_their_tensor_parallel_gpus_in_one_bundle():
    placement = place(
        config(
            rollout__workers=2,
            rollout__tensor_parallel=2,
            policy__ranks=4,
            resources={"gpus": 8},
        )
    )
    assert [b.gpus for b in placement.bundles] == [2, 2, 1, 1, 1, 1, 0]


def test_colocated_ranks_share_the_bundle_of_the_engine_on_their_gpus():
    placement = place(
        config(
            rollout__workers=2,
            rollout__tensor_parallel=2,
            policy__ranks=4,
            resources={"gpus": 4, "colocate": True},
        )
    )
    assert [b.gpus for b in placement.bundles] == [2, 2, 0]
    assert placement.rank_bundles == (0, 0, 1, 1)
    assert placement.bundles[1].actors == ("engine 1", "rank 2", "rank 3")


def test_a_run_of_one_node_is_never_spread_over_two():
    joined = {"gpus": 2, "ray_address": "auto"}
    assert place(config(resources=joined)).strategy == "STRICT_PACK"
    assert place(config(resources={**joined, "nodes": 2})).strategy == "PACK"


def test_where_there_are_gpus_the_workers_of_the_text_rewards_have_cores_of_their_own():
    judged = {"model": "a", "gpus": 1}
    placement = place(config(resources={"gpus": 3}, reward={"workers": 6, "preference": judged}))
    assert placement.text_bundles == (len(placement.bundles) - 1,)
    bundle = placement.bundles[-1]
    assert (bundle.actors, bundle.resources) == (("text rewards",), {"CPU": 6})


def test_many_workers_of_the_text_rewards_are_divided_among_actors():
    placement = place(config(resources={"gpus": 2}, reward={"workers": 18}))
    own = [placement.bundles[bundle] for bundle in placement.text_bundles]
    assert [bundle.actors for bundle in own] == [(f"text rewards {index}",) for index in range(3)]
    assert [bundle.cpus for bundle in own] == [6, 6, 6]
    assert [divide_workers(workers) for workers in (1, 8, 9, 32)] == [[1], [8], [5, 4], [8] * 4]
