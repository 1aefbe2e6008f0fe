"""Killable workers under hostile samples: real processes, real hangs, real crashes."""

import asyncio
import os
import signal
import threading
import time

import pytest

from rewards.rules.verifier import NotScorable, symbolic, verify_quickly
from rewards.text.workers import MAX_MESSAGE_BYTES, SAMPLES_PER_PROCESS, SampleFailed, WorkerPool
from tests import reward_tasks

TIMEOUT_S = 0.5
PATIENT_S = 30.0
"""The limit of samples that end by themselves, on however busy a machine."""
MEMORY_MIB = 64
NEVER_KILLED_S = 60.0
"""Less than a hang takes that nobody kills (START_DEADLINE_S), and far more than a kill is late
where other processes have the cores. How late it is on an idle machine, scripts/bench.py says."""


def opened(num_workers, timeout_s, memory_mib=MEMORY_MIB):
    pool = WorkerPool(num_workers, timeout_s, memory_mib)
    for _ in range(num_workers):
        pool.call(os.getpid)
    return pool


@pytest.fixture(scope="module")
def hasty():
    pool = opened(2, TIMEOUT_S)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def pool():
    pool = opened(2, PATIENT_S)
    yield pool
    pool.close()


def reason(pool, function, *arguments):
    """Why a sample failed, with the seconds it took."""
    started = time.perf_counter()
    with pytest.raises(SampleFailed) as failed:
        pool.call(function, *arguments)
    return str(failed.value), time.perf_counter() - started


def assert_whole(pool):
    assert [pool.call(reward_tasks.square, place) for place in range(4)] == [0, 1, 4, 9]


@pytest.mark.parametrize("hang", [reward_tasks.sleep_for_ever, reward_tasks.hang_in_c])
def test_a_hang_is_killed_in_time_and_the_pool_is_whole_after_it(hasty, hang):
    why, seconds = reason(hasty, hang)
    assert why == "timeout"
    assert TIMEOUT_S <= seconds < NEVER_KILLED_S
    assert_whole(hasty)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (reward_tasks.eat_memory, "memory"),
        (reward_tasks.eat_memory_slowly, "memory"),
        (reward_tasks.crash, "crash"),
        (reward_tasks.crash_in_c, "crash"),
        (reward_tasks.leave, "crash: SystemExit: enough"),
        (reward_tasks.recurse, "crash: RecursionError: maximum recursion depth exceeded"),
        (reward_tasks.not_a_value, "crash: object is no number and no short text"),
    ],
)
def test_each_failure_is_named_and_the_pool_is_whole_after_it(pool, function, expected):
    assert reason(pool, function)[0] == expected
    assert_whole(pool)


def test_memory_is_bounded_and_given_back(pool):
    before = pool.call(reward_tasks.resident_mib)
    for _ in range(2):
        assert reason(pool, reward_tasks.eat_memory_slowly)[0] == "memory"
    after = [pool.call(reward_tasks.resident_mib) for _ in range(2)]
    assert max(after) < before + MEMORY_MIB / 2


def test_what_is_too_long_to_send_fails_at_once_both_ways(pool):
    why, _ = reason(pool, len, "x" * 50_000_000)
    assert why == f"memory: the sample is 50000050 bytes long, a worker takes {MAX_MESSAGE_BYTES}"
    why, _ = reason(pool, reward_tasks.megabytes, 9)
    assert why == "crash: str is no number and no short text"
    assert pool.call(len, "x" * 8_000_000) == 8_000_000
    assert pool.call(len, "\x00\ud800" * 10) == 20


def test_what_cannot_be_pickled_is_said_and_harms_nobody(pool):
    why, _ = reason(pool, len, lambda: 0)
    assert why.startswith("crash: the sample cannot be sent to a worker: Can't pickle local object")
    assert pool.call(reward_tasks.square, 5) == 25


def test_a_worker_that_died_while_idle_takes_no_sample_with_it(pool):
    workers = {pool.call(os.getpid) for _ in range(8)}
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert_whole(pool)
    time.sleep(0.3)
    assert_whole(pool)
    assert workers.isdisjoint({pool.call(os.getpid) for _ in range(8)})


def test_the_limit_starts_when_a_worker_takes_the_sample(hasty):
    async def run():
        hangs = [hasty.run(reward_tasks.sleep_for_ever) for _ in range(4)]
        squares = [hasty.run(reward_tasks.square, place) for place in range(100)]
        return await asyncio.gather(*hangs, *squares, return_exceptions=True)

    started = time.perf_counter()
    outcomes = asyncio.run(run())
    # Two workers and four hangs: the squares waited for two limits, and none of them has failed.
    assert time.perf_counter() - started > 2 * TIMEOUT_S
    assert [str(one) for one in outcomes[:4]] == ["timeout"] * 4
    assert outcomes[4:] == [place * place for place in range(100)]


def test_a_process_is_replaced_before_it_grows_old():
    pool = opened(1, PATIENT_S)
    first = pool.call(os.getpid)
    for _ in range(SAMPLES_PER_PROCESS - 3):
        pool.call(abs, 1)
    assert pool.call(os.getpid) == first
    assert pool.call(os.getpid) != first
    pool.close()


def test_closing_ends_what_is_under_way_and_takes_no_more(tmp_path):
    pool = opened(1, PATIENT_S)
    worker = pool.call(os.getpid)
    outcomes = []
    started = tmp_path / "started"
    thread = threading.Thread(
        target=lambda: outcomes.append(reason(pool, reward_tasks.tell_and_sleep, str(started))[0])
    )
    thread.start()
    while not started.exists():
        time.sleep(0.01)
    pool.close()
    thread.join(PATIENT_S)
    assert outcomes == ["crash"]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with pytest.raises(RuntimeError, match="the worker pool is closed"):
        pool.call(abs, 1)


def test_a_warm_sample_starts_no_process_and_imports_nothing(pool):
    """What a sample costs beyond its own work, as a fact; scripts/bench.py has the time."""
    modules = pool.call(reward_tasks.loaded_modules)

    async def run():
        return await asyncio.gather(*(pool.run(os.getpid) for _ in range(500)))

    workers = set(asyncio.run(run()))
    assert len(workers) <= 2
    assert os.getpid() not in workers
    assert pool.call(reward_tasks.loaded_modules) == modules


def boxed(answer):
    return rf"\boxed{{{answer}}}"


# A reference and what a hostile response may answer to it.
HOSTILE = {
    "tower of powers": ("x+1", boxed("9^{9^{9^{9}}}+x")),
    "tower for a number": ("2", boxed("9^{9^{9^{9}}}")),
    "tower in Python": ("x+1", boxed("9**9**9**9")),
    "factorial tower": ("x+1", boxed("((((9!)!)!)!)!")),
    "gamma of a tower": ("x+1", boxed(r"\Gamma(10^{10^{10}})")),
    "huge exponent": ("x+1", boxed("10^{10^{10}}")),
    "huge expansion": ("x+1", boxed("(x+1)^{100000000}")),
    "tower as reference": ("9^{9^{9^{9}}}", boxed("x+2")),
    "braces": ("x+1", boxed("{" * 10**5 + "1" + "}" * 10**5)),
    "open boxes": ("x+1", r"\boxed{" * 10**5),
    "many boxes": ("x+1", boxed("x+1") * 10**5),
    "fractions": ("x+1", boxed(r"\frac{1}{" * 10**5 + "1" + "}" * 10**5)),
    "some fractions": ("x+1", boxed(r"\frac{1}{" * 35 + "1" + "}" * 35)),
    "roots": ("x+1", boxed(r"\sqrt{" * 50 + "2" + "}" * 50)),
    "parentheses": ("x+1", boxed("(" * 10**5 + "1" + ")" * 10**5)),
    "some parentheses": ("x+1", boxed("(" * 190 + "1" + ")" * 190)),
    "braces as reference": ("{" * 10**5, "1"),
    "digits": ("12", boxed("1" * 10**6)),
    "letters": ("Paris", boxed("a" * 10**6)),
    "spaces": ("Paris", " " * 10**6 + "Paris"),
    "markers": ("Paris", "the answer is " * 70_000),
    "Chinese markers": ("12", "答案：" * 300_000),
    "letters as reference": ("a" * 10**6, "1"),
    "bold": ("Paris", "**" * 500_000),
    "dollars": ("x+1", "$" * 10**6),
    "a zero byte": ("x+1", boxed("x+1\x00")),
    "zero bytes": ("x+1", "\x00" * 10**6),
    "zero byte as reference": ("\x00", "1"),
    "surrogate": ("x+1", boxed("\ud800x+1")),
    "surrogates": ("Paris", "\udfff" * 100),
    "surrogate as reference": ("\ud800", "1"),
    "reversed number": ("12", boxed("\u202e21\u202c")),
    "reversed sum": ("x+2", boxed("\u202e2-x\u202c")),
    "combining marks": ("Paris", boxed("a" + "\u0315\u0300\u05ae" * 6000)),
    "gap before a sign": ("x = 1", boxed("x" + " " * 9000 + "= 1")),
    "gap in a marker": ("Paris", "answer" + " " * 9000 + "is"),
    "commas": ("12", boxed("1," * 6000 + "1")),
    "wrappers": ("Paris", boxed(r"\text{" * 3000)),
    "matrices": (r"\begin{pmatrix}1\\2\end{pmatrix}", boxed(r"\begin{pmatrix}" * 10**4)),
    "nested matrices": (
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        boxed(r"\begin{pmatrix}1&" * 20 + r"\end{pmatrix}" * 20),
    ),
    "intervals": ("(1,2)", boxed("[(" * 5000)),
    "sets": (r"\{1,2\}", boxed(r"\{" * 150 + "1" + r"\}" * 150)),
    "options": ("B", "B) " * 10**5),
    "number words": ("12", "one hundred " * 10**5),
    "dates": ("2024-01-05", "2024-01-05 " * 90_000),
    "percent signs": ("50%", "%" * 10**6),
    "units": ("5 km", boxed("5 " + "km^" * 60 + "2")),
    "tower of metres": ("5 km", boxed(r"5^{9^{9^{9}}} \text{ km}")),
    "long list": ("1, 2, 3", boxed("1, " * 10**5)),
    "infinite sum": ("x+1", boxed(r"\sum_{n=1}^{\infty}\frac{1}{n^{2.5}}")),
    "long sum": (r"\sum_{n=1}^{3}n+x", boxed(r"\sum_{n=1}^{10^{9}}\sin(n^2)")),
    "long product": (r"\prod_{n=1}^{3}n+x", boxed(r"\prod_{n=1}^{10^{9}}(n^2+\sin n)")),
    "integral": (
        r"\int_{0}^{1}x dx",
        boxed(r"\int_{0}^{\infty}\frac{\sin(x^3)\log(x)}{e^{x^2}+\cos x}dx"),
    ),
    "trigonometry": ("x+1", boxed(r"\sin(\cos(\tan(\sin(\cos(\tan(x^{x^{x}}))))))^{50}")),
    "large decimal exponent": ("12", boxed("1e999999999")),
    "Python": ("x+1", boxed("__import__('os').system('kill 0')")),
    "subclasses": ("x+1", boxed("().__class__.__bases__[0].__subclasses__()")),
}


@pytest.fixture(scope="module")
def judge():
    pool = opened(1, TIMEOUT_S, memory_mib=512)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_ends_in_time_with_a_stated_outcome(judge, name):
    reference, answer = HOSTILE[name]
    started, busy = time.perf_counter(), time.process_time()
    try:
        accuracy = verify_quickly(reference, answer).accuracy
        # Of this process alone, so that others on the machine do not count. Hundredths of a
        # second; what has no limit of its own takes minutes.
        assert time.process_time() - busy < 5.0
        if accuracy is None:
            accuracy = judge.call(symbolic, reference, answer)
        outcome = str(accuracy)
    except NotScorable:
        outcome = "not_scorable"
    except SampleFailed as failed:
        outcome = str(failed).partition(":")[0]
    assert outcome in {"0.0", "not_scorable", "timeout", "memory", "crash"}
    assert time.perf_counter() - started < NEVER_KILLED_S
    assert judge.call(reward_tasks.square, 3) == 9
