"""Serves the page of a run, and those of its steps, to browsers on this machine.

It only reads. Every answer is made when it is asked for, so a page shows the run as it is.
"""

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rl.run.directory import RunDirectory
from rl.show.run import as_html, read_run

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""How a browser may call this machine. Any other name is that of a web site which has its name
lead here, so that its scripts could read the page (DNS rebinding). The port may be another: that of
a tunnel."""
RENEW_S = 15
NICENESS = 10
IDLE_S = 30
"""Seconds after which a connection that asks nothing is closed; browsers open some in advance."""


def serve(run: RunDirectory, port: int, step_page: Callable[[int], str]) -> None:
    """Serve until Ctrl-C; port 0 takes any. Raises ValueError for a port that cannot be had.

    step_page: makes the page of a step; it raises ValueError where there is none.
    """
    # To draw takes a second, and the run may need every core of this machine.
    os.nice(NICENESS)
    with suppress(KeyboardInterrupt), open_server(run, port, step_page) as server:
        print(f"http://{HOST}:{server.server_port}/ shows {run.root}; Ctrl-C ends it", flush=True)
        server.serve_forever()


def open_server(
    run: RunDirectory, port: int, step_page: Callable[[int], str]
) -> ThreadingHTTPServer:
    """The server, which listens and answers once it is run; parameters as those of `serve`."""
    # matplotlib draws in one thread at a time.
    drawing = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S

        def do_GET(self) -> None:
            if self.headers.get("Host", "").partition(":")[0] not in NAMES:
                self._answer(HTTPStatus.FORBIDDEN, f"ask for http://{HOST}, not another name\n")
                return
            step = re.fullmatch(r"/samples/step_([0-9]{6,9})\.html", self.path)
            if self.path != "/" and step is None:
                self._answer(HTTPStatus.NOT_FOUND, "no such page; / is that of the run\n")
                return
            goes_on = step is None
            try:
                with drawing:
                    if step is not None:
                        html = step_page(int(step[1]))
                    else:
                        page = read_run(run, run.root, is_served=True)
                        html, goes_on = as_html(page), page.state != "finished"
            # What a run that goes on does not have at this moment may be there at the next.
            except (ValueError, OSError) as error:
                missing = HTTPStatus.SERVICE_UNAVAILABLE if goes_on else HTTPStatus.NOT_FOUND
                self._answer(missing, f"{error}\n", goes_on)
                return
            self._answer(HTTPStatus.OK, html, goes_on, "text/html")

        def _answer(
            self,
            status: HTTPStatus,
            text: str,
            goes_on: bool = False,
            kind: str = "text/plain",
        ) -> None:
            body = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            # A page that a browser kept would be of another moment, and holds a run's samples.
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if goes_on:
                # In place of a script, which the page's policy would not run.
                self.send_header("Refresh", str(RENEW_S))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Say nothing: a page that renews itself would fill the terminal."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise ValueError(
            f"port {port} of this machine cannot be had ({error.strerror}); name another, or leave "
            "port= out, which takes one that is free"
        ) from error
    # A browser that is still connected must not hold up Ctrl-C.
    server.daemon_threads = True
    return server
