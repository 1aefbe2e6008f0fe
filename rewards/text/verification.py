"""Verdicts that take a worker, and whose fault it is where a worker gives none.

What a response causes is wrong and not unscored: else an answer that nobody can evaluate, such as a
tower of powers, would be a free way out of the baseline for a policy that is unsure.
"""

from dataclasses import replace

from rewards.rules.verifier import UNVERIFIABLE, Verdict, check_reference, symbolic
from rewards.text.workers import SampleFailed, WorkerPool


def verify_slowly(
    workers: WorkerPool, verdict: Verdict, reference: str, answer: str, task: str, question: str
) -> Verdict:
    """The verdict that `verify_quickly` left open; blocks while a worker decides.

    Raises NotScorable for a reference that sympy cannot read, SampleFailed if the machine failed.
    """
    # A crash may be the machine's, which kills what it has no memory for, and a timeout that of a
    # worker which was stopped: either counts when it happens twice.
    for may_be_machine in (True, False):
        try:
            accuracy = workers.call(symbolic, reference, answer, task, question)
            return replace(verdict, accuracy=accuracy, why="" if accuracy == 1 else "differs")
        except SampleFailed as failed:
            reason = failed.failure.reason
            if reason not in ("timeout", "memory", "crash"):
                raise
            if may_be_machine:
                # If the reference alone is readable on this machine now, the response is at fault;
                # else this raises, and the sample has no score.
                workers.call(check_reference, reference, task, question)
            verdict = replace(verdict, accuracy=0.0, why=f"{UNVERIFIABLE}: {reason}")
            if reason == "memory":
                break
    return verdict
