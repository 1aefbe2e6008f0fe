"""The served page of a run: who may ask for it, and what browsers are told."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rl.run.directory import RunDirectory
from rl.run.jsonl import write_records
from rl.show.__main__ import main
from rl.show.watch import RENEW_S, open_server
from tests.fakes import config
from tests.unit.rl.show.test_run import metrics


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    with RunDirectory(tmp_path / "run").open(config(steps=4)) as directory:
        write_records(directory.metrics_path, [metrics(1)])
    return directory


def step_page(step: int) -> str:
    if step != 1:
        raise ValueError(f"no step {step}")
    return "<p>the samples of step 1</p>"


@pytest.fixture
def client(run) -> Iterator[httpx.Client]:
    with open_server(run, 0, step_page) as server:
        poll = (0.01,)  # the seconds until `shutdown` is noticed
        threading.Thread(target=server.serve_forever, args=poll, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
        finally:
            server.shutdown()


def test_every_answer_is_of_the_moment_and_no_browser_keeps_it(run, client):
    first = client.get("/")
    write_records(run.metrics_path, [metrics(1), metrics(2)])
    second = client.get("/")
    assert ["step 1 of 4" in first.text, "step 2 of 4" in second.text] == [True, True]
    for answer in (first, client.get("/samples/step_000001.html"), client.get("/other")):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_of_a_run_renews_itself_until_the_run_is_finished(run, client):
    assert client.get("/").headers["Refresh"] == str(RENEW_S)
    assert "Refresh" not in client.get("/samples/step_000001.html").headers
    write_records(run.metrics_path, [metrics(step) for step in range(1, 5)])
    run.summary_path.write_text("{}")
    assert "Refresh" not in client.get("/").headers


def test_what_is_broken_for_a_moment_is_asked_for_again(run, client):
    run.metrics_path.write_text("no JSON\n")
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Refresh"]) == (503, str(RENEW_S))
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "line 1 is no JSON object" in answer.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("localhost", 200),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_web_site_that_has_its_name_lead_here_reads_nothing(client, host, status):
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == status
    assert ("step 1 of 4" in answer.text) == (status == 200)


def test_steps_have_pages_and_nothing_else_of_the_disk_is_served(run, client):
    assert client.get("/samples/step_000001.html").text == "<p>the samples of step 1</p>"
    missing = client.get("/samples/step_000002.html")
    assert (missing.status_code, missing.text) == (404, "no step 2\n")
    for path in ("/config.yaml", "/samples/../config.yaml", "/samples/step_1.html"):
        assert client.get(path).status_code == 404
    assert client.post("/").status_code == 501


def test_it_listens_on_loopback_alone(run):
    with open_server(run, 0, step_page) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_one_line(run: RunDirectory, capsys, monkeypatch):
    monkeypatch.setattr("os.nice", lambda by: 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([f"run={run.root}", "watch=true", f"port={port}"]) == 2
    said = capsys.readouterr().err
    assert f"port {port} of this machine cannot be had (Address already in use)" in said
    assert not list(Path(run.root).glob("*.html"))
