"""Verdicts that take a worker, and whose fault it is where a worker gives none.

What a response causes is wrong and not unscored: else an answer that nobody can evaluate, such as a
tower of powers, would be a free way out of the baseline for a policy that is unsure.
"""

from __future__ import annotations

from dataclasses import replace

from rewards.rules.verifier import UNVERIFIABLE, Verdict, check_reference, symbolic, verify_quickly
from rewards.text.workers import SampleFailed, WorkerPool


def verify(
    workers: WorkerPool, reference: str, answer: str, task: str = "auto", question: str = ""
) -> Verdict:
    """The verdict on one response; blocks while a worker decides.

    Raises NotScorable for a reference that cannot be checked, SampleFailed where the machine
    failed.
    """
    verdict = verify_quickly(reference, answer, task, question)
    if verdict.accuracy is not None:
        return verdict
    return verify_slowly(workers, verdict, reference, answer, task, question)


def verify_slowly(
    workers: WorkerPool,
    open_verdict: Verdict,
    reference: str,
    answer: str,
    task: str,
    question: str,
) -> Verdict:
    """`verify` from where `verify_quickly` left it."""
    arguments = (reference, answer, task, question)
    is_second_try = False
    while True:
        try:
            accuracy = workers.call(symbolic, *arguments)
        except SampleFailed as failed:
            reason = failed.failure.reason
            if reason not in ("timeout", "memory", "crash"):
                raise
            if not is_second_try:
                # If the reference alone is readable on this machine now, the response is at fault;
                # else this raises, and the sample has no score.
                workers.call(check_reference, reference, task, question)
            if reason != "crash" or is_second_try:
                return replace(open_verdict, accuracy=0.0, why=f"{UNVERIFIABLE}: {reason}")
            # A crash may be the machine's, which kills what it has no memory for: it counts when it
            # happens twice.
            is_second_try = True
        else:
            return replace(open_verdict, accuracy=accuracy, why="" if accuracy == 1 else "differs")
