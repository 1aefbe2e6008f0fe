"""Plug-ins as a user writes them: files on disk, called in real workers."""

import asyncio
import os
import time

import pytest

from rewards.rules.verifier import NotScorable
from rewards.text.plugins import call_plugin, load_plugin
from rewards.text.workers import SampleFailed, WorkerPool
from rl.config.reward import RewardConfig

# A plug-in is imported in the worker within the limit of its first sample, which takes long where
# other processes have the cores.
PATIENT_S = 30.0
TIMEOUT_S = 0.5
LIMITS = RewardConfig(timeout_s=PATIENT_S)
PROMPT = {"id": "p/0", "messages": [{"role": "user", "content": "2+9?"}]} | {
    "reference": "11",
    "task": "auto",
}


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(num_workers=1, timeout_s=PATIENT_S, memory_mib=512)
    pool.call(abs, 1)
    yield pool
    pool.close()


@pytest.fixture
def plugin(tmp_path):
    def write(body, signature="prompt, mode, answer"):
        path = tmp_path / "mine.py"
        path.write_text(f"import dataclasses\n\ndef score({signature}):\n    {body}\n")
        return str(path)

    return write


def called(pool, path, answer="11", reasoning="2+9"):
    return asyncio.run(pool.run(call_plugin, path, "score", PROMPT, "long", answer, reasoning))


def test_it_sees_the_sample_and_its_number_comes_back(pool, plugin):
    path = plugin(
        "return 0.5 * (answer == prompt['reference']) + 0.25 * (reasoning == '2+9')"
        " + 0.125 * (mode == 'long') + 0.0625 * (prompt['messages'][0]['content'] == '2+9?')",
        "prompt, mode, answer, reasoning",
    )
    assert called(pool, path) == 0.9375
    assert called(pool, path, answer=None, reasoning=None) == 0.1875


def test_a_truth_is_a_number_and_reasoning_may_be_left_out(pool, plugin):
    value = called(pool, plugin("return answer == '11'", "answer, prompt, *, mode"))
    assert value == 1.0
    assert type(value) is float


def test_a_text_says_why_there_is_no_score(pool, plugin):
    with pytest.raises(NotScorable, match="no unit in p/0"):
        called(pool, plugin("return 'no unit in ' + prompt['id']"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return 1 / 0", "plugin_error: ZeroDivisionError: division by zero"),
        ("return int(answer[99])", "plugin_error: IndexError: string index out of range"),
        ("raise SystemExit('done')", "plugin_error: SystemExit: done"),
        ("pass", "plugin_error: score returned None; return a finite number"),
        ("return float('nan')", "plugin_error: score returned nan; return a finite number"),
        ("return [1]", r"plugin_error: score returned \[1\]; return a finite number"),
        ("return score(prompt, mode, answer)", "plugin_error: RecursionError: maximum"),
        ("return len(bytearray(2**33))", "memory"),
        ("import os; os._exit(1)", "crash"),
    ],
)
def test_an_error_is_a_failure_that_says_what_never_a_zero(pool, plugin, body, reason):
    with pytest.raises(SampleFailed, match=f"^{reason}"):
        called(pool, plugin(body))
    assert pool.call(abs, -3) == 3


def test_a_hang_is_killed_in_time(plugin):
    path = plugin("import time; time.sleep(3600)")
    hasty = WorkerPool(num_workers=1, timeout_s=TIMEOUT_S, memory_mib=512)
    started = time.perf_counter()
    with pytest.raises(SampleFailed, match=r"^timeout$"):
        called(hasty, path)
    assert TIMEOUT_S <= time.perf_counter() - started < PATIENT_S
    hasty.close()


def test_the_file_is_imported_once_per_worker(pool, tmp_path):
    path = tmp_path / "counting.py"
    path.write_text(
        "calls = []\ndef score(prompt, mode, answer):\n    calls.append(1)\n    return len(calls)\n"
    )
    assert [called(pool, str(path)) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_good_plugin_loads_to_its_absolute_path(plugin, tmp_path, monkeypatch):
    path = plugin("return 1.0", "prompt, mode, answer, reasoning=None")
    monkeypatch.chdir(tmp_path)
    assert load_plugin("mine.py", "score", LIMITS) == path


def test_what_cannot_be_used_is_said_before_the_run(plugin, tmp_path):
    def refused(message, function="score", path=None):
        with pytest.raises(ValueError, match=message):
            load_plugin(path or str(tmp_path / "mine.py"), function, LIMITS)

    refused(r"missing\.py is no file; name a Python file", path=str(tmp_path / "missing.py"))
    plugin("return 1.0")
    refused("it has no function grade; define it or name another", function="grade")
    plugin("return 1.0", "prompt, answer")
    refused(r"score must take \(prompt, mode, answer\) or .* got \(prompt, answer\)")
    plugin("return 1.0", "prompt, mode, answer, tools")
    refused(r"got \(prompt, mode, answer, tools\)")
    plugin("return 1.0", "prompt, mode, answer, **others")
    refused(r"got \(prompt, mode, answer, \*\*others\)")
    plugin("return 1.0", "prompt, mode, answer, /")
    refused(r"got \(prompt, mode, answer, /\)")
    broken = tmp_path / "broken.py"
    broken.write_text("def score(prompt, mode, answer)\n    return 1\n")
    refused("importing it failed: plugin_error: SyntaxError: expected ':'", path=str(broken))
    broken.write_text("import no_such_module_at_all\n")
    refused("ModuleNotFoundError: No module named 'no_such_module_at_all'", path=str(broken))
    other = tmp_path / "mine.txt"
    other.write_text("")
    refused(r"its name must end in \.py", path=str(other))
    later = tmp_path / "later.py"
    later.write_text("async def score(prompt, mode, answer):\n    return 1\n")
    refused("score is asynchronous; make it a plain function", path=str(later))


def test_loading_does_not_run_the_file_in_this_process(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "def score(prompt, mode, answer):\n    return 1\n"
    )
    load_plugin(str(path), "score", LIMITS)
    assert int((tmp_path / "pid").read_text()) != os.getpid()
