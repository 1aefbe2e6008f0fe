from rl.launch.memory_growth import SETTLED_STEPS, MemoryGrowth


def sizes(**gib):
    return {f"memory/rss_{role}_gib": size for role, size in gib.items()} | {"time/step": 1e9}


def settled(limit=2.0):
    growth = MemoryGrowth(limit)
    for step in range(SETTLED_STEPS):
        assert growth.grown(sizes(engine=step / 4, driver=1.0)) == {}
    return growth


def test_a_role_that_grows_beyond_its_settled_size_is_named_and_no_other():
    growth = settled()
    assert growth.grown(sizes(engine=9.4, driver=1.9)) == {}
    assert growth.grown(sizes(engine=9.4, driver=2.1)) == {
        "driver": "1.0 GiB at first, 2.1 GiB now"
    }
    assert [*growth.grown(sizes(engine=9.6, driver=1.0))] == ["engine"]


def test_what_was_started_anew_settles_again():
    growth = settled()
    growth.start_anew("driver")
    assert growth.grown(sizes(engine=4.0, driver=50.0)) == {}
