from collections import Counter

import pytest

from rl.loop.accounting import Accounting, in_words


def test_every_drawn_group_is_trained_dropped_or_in_flight():
    accounting = Accounting()
    for group_id in ("0/0/0", "0/1/0", "1/0/0"):
        accounting.draw(int(group_id[0]), group_id)
    accounting.drop(0, "0/1/0", "long", "timeout")
    accounting.draw(0, "0/1/1")
    assert accounting.settle(0, ["0/0/0", "0/1/1"]) == Counter({("long", "timeout"): 1})
    counts = accounting.check()
    assert counts == {"drawn": 4, "trained": 2, "dropped": {"timeout": 1}, "in_flight": 1}
    assert in_words(counts) == "drawn 4 = trained 2 + dropped 1 (timeout 1) + in flight 1"


def test_a_step_that_was_skipped_has_dropped_its_groups():
    accounting = Accounting()
    accounting.draw(0, "0/0/0")
    accounting.settle(0, ["0/0/0"], is_skipped=True)
    assert accounting.check() == {
        "drawn": 1,
        "trained": 0,
        "dropped": {"skipped": 1},
        "in_flight": 0,
    }


def test_a_checkpoint_counts_the_settled_steps_and_leaves_the_others_to_be_drawn_again():
    first = Accounting()
    first.draw(0, "0/0/0")
    first.draw(1, "1/0/0")
    first.drop(1, "1/0/0", "long", "timeout")
    first.settle(0, ["0/0/0"])
    second = Accounting()
    second.load(first.state)
    assert second.counts() == {"drawn": 1, "trained": 1, "dropped": {}, "in_flight": 0}


def test_a_step_that_is_begun_anew_is_not_counted_twice():
    accounting = Accounting()
    accounting.draw(3, "3/0/0")
    accounting.forget(3)
    accounting.draw(3, "3/0/0")
    accounting.settle(3, ["3/0/0"])
    assert accounting.check()["drawn"] == 1


def test_whatever_does_not_add_up_is_an_error():
    accounting = Accounting()
    accounting.draw(0, "0/0/0")
    with pytest.raises(RuntimeError, match="drawn twice"):
        accounting.draw(0, "0/0/0")
    with pytest.raises(RuntimeError, match="was not in flight"):
        accounting.drop(0, "0/1/0", "long", "timeout")
    with pytest.raises(RuntimeError, match="0/1/0"):
        accounting.settle(0, ["0/0/0", "0/1/0"])


def test_a_group_cannot_be_trained_twice():
    accounting = Accounting()
    accounting.draw(0, "0/0/0")
    with pytest.raises(RuntimeError, match="0/0/0"):
        accounting.settle(0, ["0/0/0", "0/0/0"])
