import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.align.claims.label_cache import LabelCache
from rl.align.claims.types import Label
from rl.run.files import FULL_DISK


def put_many(path, writer):
    cache = LabelCache(path)
    for i in range(100):
        # Half of the keys are those of every writer.
        name = f"shared {i}" if i % 2 else f"{writer} {i}"
        cache.put(name, Label(writer / 10, i / 100))


def num_labels(path):
    return sqlite3.connect(path).execute("SELECT count(*) FROM labels").fetchone()[0]


def test_a_label_comes_back_and_outlives_the_cache(tmp_path):
    cache = LabelCache(tmp_path / "new" / "labels.sqlite")
    assert cache.get("k") is None
    cache.put("k", Label(0.1, 1 / 3))
    assert cache.get("k") == Label(0.1, 1 / 3)
    assert LabelCache(tmp_path / "new" / "labels.sqlite").get("k") == Label(0.1, 1 / 3)
    assert cache.get("n") is None


def test_of_two_labels_for_one_key_the_first_stays(tmp_path):
    one, other = LabelCache(tmp_path / "l"), LabelCache(tmp_path / "l")
    one.put("k", Label(0.9, 0.1))
    other.put("k", Label(0.2, 0.8))
    other.put("n", Label(0.5, 0.5))
    assert other.get("k") == Label(0.9, 0.1)
    assert one.get("n") == Label(0.5, 0.5)
    assert num_labels(tmp_path / "l") == 2


def test_a_file_of_another_kind_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "l").write_text('{"key": "a", "p_yes": 1, "p_no": 0}\n' * 100)
    with pytest.raises(ValueError, match=r"holds no labels .* remove it"):
        LabelCache(tmp_path / "l")


def test_a_full_disk_is_an_error_that_the_command_knows(tmp_path):
    cache = LabelCache(tmp_path / "l")
    cache._database.execute("PRAGMA max_page_count = 3")
    with pytest.raises(OSError) as caught:
        for i in range(1000):
            cache.put(str(i), Label(0.5, 0.5))
    assert caught.value.errno in FULL_DISK


@given(st.lists(st.tuples(st.text("abc"), st.floats(0, 1), st.floats(0, 1)), max_size=8))
def test_probabilities_come_back_to_the_last_bit(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("cache") / "l"
    labels = {text: Label(yes, no) for text, yes, no in items}
    for key, label in labels.items():
        LabelCache(path).put(key, label)
    cache = LabelCache(path)
    assert {key: cache.get(key) for key in labels} == labels
    assert num_labels(path) == len(labels)


def test_writers_at_once_lose_and_repeat_nothing(tmp_path):
    path = tmp_path / "l"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=put_many, args=(path, i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert num_labels(path) == 3 * 50 + 50


def test_what_was_put_outlives_kill_9(tmp_path):
    path = tmp_path / "l"
    code = (
        "import sys, pathlib\n"
        "from rl.align.claims.label_cache import LabelCache\n"
        "from rl.align.claims.types import Label\n"
        "cache = LabelCache(pathlib.Path(sys.argv[1]))\n"
        "for i in range(10**9):\n"
        "    cache.put(str(i), Label(0.5, 0.25)); print(i, flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 50:
            break
    time.sleep(0.05)
    os.kill(writer.pid, signal.SIGKILL)
    # What it said after 50 and before it died was put as well.
    rest = writer.stdout.read().split()
    writer.wait(30)
    last = int(rest[-2] if len(rest) > 1 else 50)
    cache = LabelCache(path)
    assert all(cache.get(str(i)) == Label(0.5, 0.25) for i in range(last + 1))
    cache.put("after", Label(0.5, 0.5))
    assert LabelCache(path).get("after") == Label(0.5, 0.5)
