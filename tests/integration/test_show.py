"""The page of a run in a real browser, as a file and as it is served and renews itself."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rl.run.directory import RunDirectory
from rl.run.jsonl import write_records
from rl.show import watch
from rl.show.__main__ import main
from tests.fakes import config
from tests.unit.rl.show.test_run import metrics

WAIT_S = 120
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is there")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    with RunDirectory(tmp_path / "run").open(config(steps=4)) as directory:
        write_records(directory.metrics_path, [metrics(1), metrics(2, 0.75)])
    return directory


def browse(profile: Path, *arguments: str) -> list[str]:
    return [
        *(str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *(f"--user-data-dir={profile}", *arguments),
    ]


def dom(tmp_path: Path, url: str) -> str:
    """The document as the browser has it once it is loaded."""
    command = browse(tmp_path / "profile", "--dump-dom", url)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, check=True
    ).stdout


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


@contextmanager
def served(run: RunDirectory) -> Iterator[str]:
    with watch.open_server(run, 0, lambda step: "") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@needs_browser
def test_a_browser_shows_the_page_as_a_file_and_as_it_is_served(run, tmp_path):
    assert main([f"run={run.root}"]) == 0
    of_file = dom(tmp_path, (run.root / "run.html").as_uri())
    assert "<title>run, stopped, step 2 of 4</title>" in of_file
    assert of_file.count('src="data:image/svg+xml;base64,') == 6
    with served(run) as url:
        assert "<strong>step 2 of 4</strong>" in dom(tmp_path, url)
        write_records(run.metrics_path, [metrics(step) for step in (1, 2, 3)])
        assert "<strong>step 3 of 4</strong>" in dom(tmp_path, url)


@needs_browser
def test_an_open_page_shows_a_new_step_by_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RENEW_S", 1)
    profile = tmp_path / "profile"
    with served(run) as url:
        command = browse(profile, "--remote-debugging-port=0", url)
        output = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=output, stderr=output) as browser:
            try:
                # Chromium writes here where it can be asked what its pages are called.
                port = profile / "DevToolsActivePort"
                wait_for(lambda: port.is_file() and len(port.read_text().splitlines()) == 2)
                pages = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list"

                def is_titled(title: str) -> bool:
                    listed = httpx.get(pages, timeout=WAIT_S, trust_env=False).json()
                    return title in [page["title"] for page in listed]

                wait_for(lambda: is_titled("run, stopped, step 2 of 4"))
                write_records(run.metrics_path, [metrics(step) for step in (1, 2, 3)])
                wait_for(lambda: is_titled("run, stopped, step 3 of 4"))
            finally:
                browser.terminate()


def test_ctrl_c_ends_the_server_cleanly(run):
    command = [sys.executable, "-m", "rl.show", f"run={run.root}", "watch=true"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What a shell starts in the background ignores Ctrl-C, and so would what it starts in turn.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, **pipes) as server:
        try:
            signal.signal(signal.SIGINT, before)
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.endswith(f" shows {run.root}; Ctrl-C ends it\n")
            url = line.split()[0]
            # A browser keeps a connection, and opens some that ask for nothing.
            with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
                assert "step 2 of 4" in client.get(url).text
                server.send_signal(signal.SIGINT)
                assert server.communicate(timeout=WAIT_S) == ("", "")
            assert server.returncode == 0
        finally:
            server.kill()
