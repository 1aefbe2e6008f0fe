"""Which other split of ranks and engines a run is told of."""

from types import SimpleNamespace

import pytest

from rl.launch.advice import EVERY_STEPS, Advice, propose_split
from tests.fakes import config

GPUS = {"resources__gpus": 8, "policy__ranks": 4, "rollout__workers": 4}
GPUS |= {"rollout__max_staleness": 1}


@pytest.mark.parametrize(
    ("ranks", "engines", "width", "idle", "overlaps", "said"),
    [
        # A learner busy half of the time on four GPUs does two GPUs' work, the engines four.
        (4, 4, 1, (0.5, 0.0), True, "policy.ranks=3 rollout.workers=5"),
        (4, 4, 1, (0.0, 0.5), True, "policy.ranks=5 rollout.workers=3"),
        # An engine of two GPUs takes two ranks' place.
        (4, 2, 2, (0.6, 0.0), True, "policy.ranks=2 rollout.workers=3"),
        # One after the other the sum counts: 0.6 / 3 + 1.8 / 5 against 0.6 / 6 + 1.8 / 2.
        (6, 2, 1, (0.9, 0.1), False, "policy.ranks=3 rollout.workers=5"),
        (4, 4, 1, (0.5, 0.5), False, "rollout.max_staleness=1"),
        (1, 1, 1, (0.5, 0.0), True, None),
        # Both wait for the longest response, and no split shortens that.
        (4, 4, 1, (0.4, 0.4), True, None),
        (4, 4, 1, (0.33, 0.0), True, None),
    ],
)
def test_the_split_whose_steps_are_shortest_is_proposed(
    ranks, engines, width, idle, overlaps, said
):
    words = propose_split(ranks, engines, width, idle, overlaps)
    assert words is None if said is None else said in words


def test_the_words_say_who_waits_and_what_another_split_would_gain():
    words = propose_split(4, 4, 1, (0.5, 0.1), True)
    assert words.startswith("the learner waits 50% of the time: 3 ranks and 5 engines")
    # max(2 / 3, 3.6 / 5) in place of max(2 / 4, 3.6 / 4).
    assert words.endswith("about 20% shorter")
    assert propose_split(4, 4, 1, (0.1, 0.5), True).startswith("the engines wait 50% ")


def step(waits=0.5, **learner_metrics):
    seconds = {"step": 1.0, "wait_for_groups": waits, "scoring": 0.0, "engines_idle": 0.0}
    return SimpleNamespace(step=10**6, seconds=seconds, learner_metrics=learner_metrics)


def begun(**settings):
    """A run's advice after its first step, in which everything waited, and what it says."""
    notes = []
    advice = Advice(config(**settings), notes.append)
    advice.after(step(1.0), None, {})
    assert notes == []
    return advice, notes


def take(advice, count, waits=0.5):
    for _ in range(count):
        advice.after(step(waits), None, {})


def test_it_is_said_after_a_number_of_steps_and_again_only_if_it_changes():
    advice, notes = begun(**GPUS)
    take(advice, EVERY_STEPS - 1)
    assert notes == []
    take(advice, 1)
    assert ["rollout.workers=5" in words for words in notes] == [True]
    take(advice, EVERY_STEPS)
    assert len(notes) == 1
    take(advice, EVERY_STEPS, waits=0.7)
    assert ["rollout.workers=6" in words for words in notes] == [False, True]


def test_at_the_end_it_is_about_the_whole_run():
    advice, notes = begun(**GPUS)
    take(advice, EVERY_STEPS, waits=0.0)
    # Alone these would be worth a word: a mean of 0.7 over 2 of 22 steps is not.
    take(advice, 2, waits=0.7)
    advice.at_end()
    assert notes == []
    short, notes = begun(**GPUS)
    short.at_end()
    assert notes == []
    take(short, 3)
    short.at_end()
    assert ["rollout.workers=5" in words for words in notes] == [True]


@pytest.mark.parametrize(
    ("device", "metrics", "said"),
    [("Tesla V100", {}, 1), ("NVIDIA H200", {"perf/mfu": 0.4}, 0), (None, {}, 0)],
)
def test_a_gpu_whose_peak_is_not_known_is_named_once(device, metrics, said):
    # Its first step is skipped, which asks no rank.
    advice, notes = begun(**GPUS)
    for _ in range(2):
        advice.after(step(0.0, **metrics), device, {})
    assert [device in words for words in notes] == [True] * said


@pytest.mark.parametrize(
    "settings",
    [
        {"resources": {"gpus": 8, "colocate": True}, "policy__ranks": 8, "rollout__workers": 8},
        # One process a side on two cores.
        {},
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_split(settings):
    advice, notes = begun(**settings)
    take(advice, EVERY_STEPS)
    advice.at_end()
    assert notes == []


def test_a_role_whose_memory_grows_without_end_is_named_once():
    notes: list[str] = []
    advice = Advice(config(), notes.append)
    for number in range(60):
        advice.after(step(0.0), None, {"memory/rss_engine_gib": 1.0 + number / 10})
    assert len(notes) == 1 and "memory of engine grows: 2.9 GiB at first" in notes[0]


def test_a_role_that_can_be_started_anew_is_and_settles_again():
    recycled: list[str] = []
    notes: list[str] = []

    def recycle(role: str, why: str) -> bool:
        recycled.append(role)
        return role != "driver"

    advice = Advice(config(), notes.append, recycle)
    for number in range(100):
        grown = 1.0 + number % 50 / 10
        sizes = {"memory/rss_engine_gib": grown, "memory/rss_driver_gib": 1.0 + number}
        advice.after(step(0.0), None, sizes)
    # The driver can only be named, and once; engines settle for 20 steps after each time.
    assert recycled.count("driver") == 1
    assert recycled.count("engine") == 2
    assert sum("its processes are replaced" in note for note in notes) == 2


def test_a_choice_that_has_collapsed_is_told_once_and_again_if_it_comes_back():
    notes: list[str] = []
    advice = Advice(config(), notes.append)

    def follow(reasons: float, count: int) -> None:
        for _ in range(count):
            advice.after(step(0.0), None, {"choice/reasons": reasons})

    follow(0.5, EVERY_STEPS)
    follow(0.999, EVERY_STEPS)
    assert ["to reason with probability" in note for note in notes] == [True]
    assert "raise modes.NAME.price" in notes[0]
    follow(0.5, EVERY_STEPS)
    follow(0.0, EVERY_STEPS + 1)
    assert len(notes) == 2 and "to answer at once with probability" in notes[1]


def test_a_choice_is_watched_once_pairs_are_as_rare_as_they_become():
    auto = {"share": 1.0, "thinking": "auto", "max_tokens": 16}
    for until, has_note in ((0.5, False), (0.25, True)):
        notes: list[str] = []
        auto["pairs"] = {"until": until}
        advice = Advice(config(modes={"auto": auto}, steps=4 * EVERY_STEPS), notes.append)
        for number in range(1, 2 * EVERY_STEPS + 1):
            of_step = step(0.0)
            of_step.step = number
            advice.after(of_step, None, {"choice/reasons": 1.0})
        assert bool(notes) == has_note


def test_who_lets_the_price_adapt_is_not_told_to_change_it():
    notes: list[str] = []
    auto = {"share": 1.0, "thinking": "auto", "max_tokens": 16, "price": "target"}
    advice = Advice(config(modes={"auto": auto}), notes.append)
    for _ in range(EVERY_STEPS):
        advice.after(step(0.0), None, {"choice/reasons": 0.0})
    assert "modes.NAME.pairs.floor" in notes[0] and "NAME.price" not in notes[0]
