"""Whose fault it is that a worker gives no verdict."""

import pytest

from rewards.rules.verifier import NotScorable, check_reference, symbolic, verify_quickly
from rewards.text.verification import verify_slowly
from rewards.text.workers import SampleFailed

REFERENCE, ANSWER = "x+1", "1+x"


class Workers:
    """A pool whose calls end as they are told, one after the other."""

    def __init__(self, *ends):
        self.ends = list(ends)
        self.called = []

    def call(self, function, *arguments):
        self.called.append(function)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def verify(workers, reference, answer):
    verdict = verify_quickly(reference, answer)
    if verdict.accuracy is not None:
        return verdict
    return verify_slowly(workers, verdict, reference, answer, "auto", "")


def test_a_response_that_takes_too_much_memory_is_wrong_where_the_reference_alone_does_not():
    workers = Workers(SampleFailed("memory"), 1.0)
    verdict = verify(workers, REFERENCE, ANSWER)
    assert (verdict.accuracy, verdict.why) == (0.0, "unverifiable: memory")
    assert workers.called == [symbolic, check_reference]


def test_a_reference_that_ends_in_a_limit_itself_leaves_the_response_without_a_score():
    with pytest.raises(SampleFailed, match="timeout"):
        verify(Workers(SampleFailed("timeout"), SampleFailed("timeout")), REFERENCE, ANSWER)


@pytest.mark.parametrize("reason", ["crash", "timeout"])
def test_what_may_be_the_machines_fault_counts_against_the_response_when_it_happens_twice(reason):
    once = verify(Workers(SampleFailed(reason), 1.0, 1.0), REFERENCE, ANSWER)
    assert (once.accuracy, once.why) == (1.0, "")
    twice = verify(Workers(SampleFailed(reason), 1.0, SampleFailed(reason)), REFERENCE, ANSWER)
    assert (twice.accuracy, twice.why) == (0.0, f"unverifiable: {reason}")


def test_a_reference_that_nobody_can_read_has_no_verdict():
    with pytest.raises(NotScorable):
        verify(Workers(NotScorable("no expression")), REFERENCE, ANSWER)


def test_a_tower_of_powers_is_wrong_without_a_worker():
    verdict = verify(Workers(), "17", r"\boxed{5^{5^{5^{5}}}}")
    assert verdict.accuracy == 0.0
    assert verdict.why.startswith("unverifiable")
    assert verdict.how == "box"
