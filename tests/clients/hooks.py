"""A receiver of webhooks on this machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Arrived:
    """One webhook: its headers, names in lower case, and its body as it came."""

    headers: dict[str, str]
    body: str


class Hooks:
    """What arrived, in order."""

    def __init__(self) -> None:
        self.url = ""
        self.arrived: queue.Queue[Arrived] = queue.Queue()

    def next(self, *, seconds: float = 20) -> Arrived:
        """The next one.

        Raises:
            queue.Empty: none came in time.
        """
        return self.arrived.get(timeout=seconds)


@contextmanager
def receiving() -> Iterator[Hooks]:
    """Listen until the block ends."""
    found = Hooks()

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found.arrived.put(Arrived({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *told: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
