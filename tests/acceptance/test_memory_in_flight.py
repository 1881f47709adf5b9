"""What `imagen serve` holds in memory of the bytes that pass through it: never whole files, and never more with each round.

Bounds are made of three figures. `KEPT`: 16 MiB of freed memory stay with the process (`server/memory.py`), and 8 MiB are for
what it loads and remembers on the way. `EACH`: what one transfer may have here at a time: 512 KiB and a piece of 256 KiB
more (`transport/inflow.py`), and 64 KiB in each buffer towards a socket. And what the test says besides. What was measured
stands at each test; what is held against it would be several times the bound.
"""

from __future__ import annotations

import fcntl
import http.client
import itertools
import json
import os
import re
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from http_calls import call

from imagen.emulator.files import signature
from imagen.server.bodies import MOST_UNREAD_BYTES

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
    pytest.mark.timeout(120),
]

MIB = 1024 * 1024
KEPT, EACH = 24 * MIB, 1 * MIB
LARGEST = 100 * MIB
KEY = "an-admin-key-for-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
FORM = {"Content-Type": "multipart/form-data; boundary=bound"}
PIECE = os.urandom(256 * 1024)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\2\0\0\0\2\0\x08\2\0\0\0"
"""How a picture of 512x512 begins; nobody here looks at the rest."""
FLUX = "/v1/models/black-forest-labs/flux-schnell/predictions"
ENDLESS = 1 << 50


# --- how much it is ------------------------------------------------------------------------------------------


class Grown:
    """By how many bytes a process grew while a block ran: at most, and from its beginning to its end."""

    peak = 0
    stays = 0


class Memory:
    """The resident memory of a process."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def now(self) -> int:
        return self._read("VmRSS")

    @contextmanager
    def growth(self) -> Iterator[Grown]:
        """Measured by the system where the peak can be set back, else by looking every 10 ms."""
        found = Grown()
        try:
            (self._folder / "clear_refs").write_text("5")
        except OSError:
            looked: _Looks | None = _Looks(self.now)
        else:
            looked = None
        before = self.now()
        try:
            yield found
        finally:
            found.peak = (self._read("VmHWM") if looked is None else looked.most()) - before
            found.stays = self.now() - before

    def _read(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{name} is not told: the process has ended")


class _Looks:
    """The largest of many looks."""

    def __init__(self, look: Callable[[], int]) -> None:
        self._look, self._most, self._ended = look, look(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def most(self) -> int:
        self._ended.set()
        self._thread.join()
        return max(self._most, self._look())

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            self._most = max(self._most, self._look())


# --- who holds it --------------------------------------------------------------------------------------------


class Service:
    """A gateway and the emulator behind it, each a process; warm, so that what is loaded once is not counted."""

    def __init__(self, cli: Any, *emulator: str) -> None:
        self._emulator = cli.start("emulator", "--port", "0", "--json", *emulator)
        self._emulated = json.loads(self._emulator.read_line())["url"]
        cli.use(self._emulated)
        cli.env["CONCURRENT_DOCKER_ADMIN_API_KEY"] = KEY
        gateway = cli.start("serve", "--port", "0", "--json")
        self.url = json.loads(gateway.read_line())["url"]
        self.memory = Memory(gateway.process.pid)
        assert Upload(self, 1024).send().status == 201

    def connect(self) -> http.client.HTTPConnection:
        """A connection that takes in little of what its reader does not read."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
        line = socket.socket()
        line.settimeout(60)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        line.connect((connection.host, connection.port))
        connection.sock = line
        return connection

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        """Send a request whose answer is read later."""
        connection = self.connect()
        told = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, None if body is None else json.dumps(body), HEADERS | told | headers)
        return connection

    def link(self, file_id: str) -> str:
        """The path to the bytes of a file, signed as its owner does it."""
        (account,) = call("GET", f"{self._emulated}/_emulator/state").json()["accounts"]
        owner, expiry = account["username"], int(time.time()) + 3600
        signed = signature(account["files_secret"], owner, file_id, expiry)
        query = urlencode({"owner": owner, "expiry": expiry, "signature": signed})
        return f"/v1/files/{file_id}/download?{query}"

    @contextmanager
    def halted(self) -> Iterator[None]:
        """The service takes nothing and says nothing while the block runs; its connections stay."""
        pid = self._emulator.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


class Answer:
    """What came back to an upload, how much of that was sent, and whether the connection ended with it."""

    def __init__(self, response: http.client.HTTPResponse, sent: int) -> None:
        self.status, self.sent, self.closes = response.status, sent, response.will_close
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


class Upload:
    """A form with files, made while it is sent.

    Attributes:
        sent: how many bytes of files have gone out.
    """

    def __init__(
        self, service: Service, *sizes: int, path: str = "/v1/files", chunked: bool = False, key: str = KEY
    ) -> None:
        self._service, self._sizes, self._path, self._chunked = service, sizes, path, chunked
        self._bearer = {"Authorization": f"Bearer {key}"}
        self._name = "content" if path == "/v1/files" else "image[]"
        self.sent = 0

    def send(self) -> Answer:
        """All of it, or as much as is taken."""
        connection = self._service.connect()
        length = {"Transfer-Encoding": "chunked"} if self._chunked else {"Content-Length": self._length()}
        try:
            # Who is refused may find the line closed before they have sent everything; the answer is there all the same.
            with suppress(ConnectionError):
                connection.request(
                    "POST",
                    self._path,
                    self._pieces(),
                    self._bearer | FORM | length,
                    encode_chunked=self._chunked,
                )
            return Answer(connection.getresponse(), self.sent)
        finally:
            connection.close()

    def _length(self) -> str:
        around = sum(map(len, self._heads())) + len(self._sizes) * len(b"\r\n") + len(b"--bound--\r\n")
        return str(around + sum(self._sizes))

    def _heads(self) -> list[bytes]:
        texts = {} if self._name == "content" else {"model": "flux-2-pro", "prompt": "a fox"}
        part = '--bound\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
        told = "".join(part.format(name, "") + f"{text}\r\n" for name, text in texts.items())
        heads = [part.format(self._name, f'; filename="{index}.png"') for index in range(len(self._sizes))]
        return [(told + heads[0]).encode(), *(head.encode() for head in heads[1:])]

    def _pieces(self) -> Iterator[bytes]:
        for head, size in zip(self._heads(), self._sizes, strict=True):
            yield head + PNG
            left = size - len(PNG)
            while left > 0:
                piece = PIECE[:left]
                left -= len(piece)
                yield piece
                self.sent += len(piece)
            yield b"\r\n"
        yield b"--bound--\r\n"


def until_still(told: Callable[[], int], *, seconds: float = 0.4) -> None:
    """Wait until a figure that was moving has not moved for a while: whoever moved it is blocked."""
    ends, since, last = time.monotonic() + 30, time.monotonic(), 0
    while time.monotonic() - since < seconds:
        if (now := told()) != last or not now:
            since, last = time.monotonic(), now
        assert time.monotonic() < ends, "it never stood still"
        time.sleep(0.02)


def unread(connections: Sequence[http.client.HTTPConnection]) -> int:
    """Bytes that have come and that nobody has read."""
    return sum(
        struct.unpack("i", fcntl.ioctl(each.sock, termios.FIONREAD, b"\0\0\0\0"))[0] for each in connections
    )


def read_late(connections: Iterable[http.client.HTTPConnection]) -> list[tuple[int, int, bytes]]:
    """Read nothing until all of the answers have come as far as they can; then status, length and beginning of each."""
    waiting = list(connections)
    until_still(lambda: unread(waiting))
    found = []
    for connection in waiting:
        answer = connection.getresponse()
        head, count = b"", 0
        while piece := answer.read(256 * 1024):
            head, count = head or piece[:4096], count + len(piece)
        found.append((answer.status, count, head))
        connection.close()
    return found


# --- files ---------------------------------------------------------------------------------------------------


def test_uploads_of_the_largest_size_pass_without_being_held(cli: Any) -> None:
    """Measured: 1.6 MiB for one of 100 MiB; 2.5 MiB for four at once, while the service takes nothing, and then all."""
    service = Service(cli)
    with service.memory.growth() as grown:
        done = Upload(service, LARGEST).send()
    assert (done.status, done.json()["size"]) == (201, LARGEST)
    assert grown.peak < KEPT + EACH
    assert call("DELETE", f"{service.url}/v1/files/{done.json()['id']}", headers=HEADERS).status == 204

    uploads = [Upload(service, LARGEST) for _ in range(4)]
    with service.memory.growth() as grown, ThreadPoolExecutor(4) as pool:
        with service.halted():
            coming = [pool.submit(upload.send) for upload in uploads]
            until_still(lambda: sum(upload.sent for upload in uploads))
            assert all(upload.sent < LARGEST for upload in uploads)
        answers = [each.result() for each in coming]
    assert [(each.status, each.json()["size"]) for each in answers] == [(201, LARGEST)] * 4
    assert grown.peak < KEPT + 4 * EACH


def test_downloads_wait_for_their_readers(cli: Any) -> None:
    """Measured: 0.6 MiB for one of 100 MiB; 18.9 MiB for twenty of 20 MiB, read, or left by their readers."""
    service = Service(cli)
    large, smaller = (service.link(Upload(service, size).send().json()["id"]) for size in (LARGEST, 20 * MIB))
    with service.memory.growth() as grown:
        ((status, count, _),) = read_late([service.ask("GET", large)])
    assert (status, count) == (200, LARGEST)
    assert grown.peak < KEPT + EACH

    with service.memory.growth() as grown:
        found = read_late(service.ask("GET", smaller) for _ in range(20))
        left = [service.ask("GET", smaller) for _ in range(20)]
        until_still(lambda: unread(left))
        for connection in left:
            connection.close()
    assert [(status, count) for status, count, _ in found] == [(200, 20 * MIB)] * 20
    assert grown.peak < KEPT + 20 * EACH


def test_what_is_too_large_is_refused_and_never_held(cli: Any) -> None:
    """At once where its length is told. Measured: 2.0 MiB for all of them."""
    service = Service(cli)
    with service.memory.growth() as grown:
        told = Upload(service, 101 * MIB).send()
        untold = Upload(service, 101 * MIB, chunked=True).send()
        endless = Upload(service, ENDLESS, chunked=True).send()
    assert [each.status for each in (told, untold, endless)] == [413, 413, 413]
    assert "100MB" in untold.json()["detail"]
    assert told.sent < LARGEST
    assert grown.peak < KEPT + EACH
    assert Upload(service, 1024).send().status == 201


@pytest.mark.parametrize(
    ("key", "length", "status"), [(KEY, "", 400), ("no-key", "", 401), (KEY, str(ENDLESS), 400)]
)
def test_the_line_of_a_body_without_an_end_ends_with_its_refusal(
    cli: Any, key: str, length: str, status: int
) -> None:
    """Else the server would read it for as long as somebody sends it. Measured: 2.2 MiB."""
    service = Service(cli)
    endless = Upload(service, ENDLESS, path="/v1/images/edits", chunked=not length, key=key)
    with service.memory.growth() as grown:
        refused = endless.send()
    assert (refused.status, refused.closes) == (status, True)
    # What may come, what is thrown away behind the answer, and what fits into the buffers of the system.
    assert refused.sent < 64 * MIB + MOST_UNREAD_BYTES + 200 * MIB
    assert grown.peak < KEPT + EACH
    whole = Upload(service, 1024, chunked=True).send()
    assert (whole.status, whole.closes) == (201, False)


# --- pictures ------------------------------------------------------------------------------------------------


def test_pictures_inside_answers_take_what_sixty_of_them_need_and_no_more_with_each_round(cli: Any) -> None:
    """Held creates that all end at the same time, and their streams, with 1 MiB inside each and readers that are late.

    The newest 128 MiB of such pictures are remembered (`service/fresh.py`), which three rounds fill. Besides these, an answer
    is here as it came and as it goes. Measured: 152 to 166 MiB after three rounds, and then 0.5 MiB more with two of creates
    and 1 to 15 MiB with three of streams, of those that are remembered and of those that are asked for anew.
    """
    service = Service(cli, "--data-uris", "--picture-kib", "768", "--run-seconds", "0.5")
    together, remembered, numbers = 60, 128 * MIB, itertools.count()

    def create() -> http.client.HTTPConnection:
        body = {"input": {"prompt": f"fox {next(numbers)}"}}
        return service.ask("POST", FLUX, body, Prefer="wait=30")

    def creates() -> list[str]:
        found = read_late(create() for _ in range(together))
        assert all((status, count > MIB) == (201, True) for status, count, _ in found)
        return [re.findall(rb'"id":"(\w+)"', head)[0].decode() for _, _, head in found]

    def streams(ids: list[str]) -> None:
        found = read_late(service.ask("GET", f"/v1/predictions/{each}/stream") for each in ids)
        assert all((status, count > MIB) == (200, True) for status, count, _ in found)

    with service.memory.growth() as filling:
        first, _, third = creates(), creates(), creates()
    assert filling.peak < KEPT + remembered + 2 * together * EACH
    with service.memory.growth() as more:
        creates()
        last = creates()
    assert max(more.peak - KEPT, more.stays) < together * EACH
    with service.memory.growth() as more:
        for ids in (first, last, third):
            streams(ids)
    assert max(more.peak - KEPT, more.stays) < together * EACH


def test_pictures_of_an_edit_are_on_the_disk_while_they_wait(cli: Any) -> None:
    """Four edits at once of six pictures of 10 MiB, while the service takes nothing, and then all. Measured: 10.6 MiB."""
    service = Service(cli, "--run-seconds", "0")
    assert Upload(service, 300_000, path="/v1/images/edits").send().status == 200
    uploads = [Upload(service, *[10 * MIB] * 6, path="/v1/images/edits") for _ in range(4)]
    with service.memory.growth() as grown, ThreadPoolExecutor(4) as pool:
        with service.halted():
            coming = [pool.submit(upload.send) for upload in uploads]
            until_still(lambda: sum(upload.sent for upload in uploads))
        assert [each.result().status for each in coming] == [200] * 4
    # A picture waits in memory until it has a MiB; six of each form may, and four are read at a time.
    assert grown.peak < KEPT + 4 * 7 * EACH


def test_pictures_in_base64_are_never_whole_in_memory(cli: Any) -> None:
    """Four answers at once, each with four pictures of 16 MiB, and late readers. Measured: 13.4 MiB."""
    service = Service(cli, "--run-seconds", "0", "--picture-kib", str(16 * 1024))

    def wish(count: int) -> http.client.HTTPConnection:
        body = {"model": "flux-schnell", "prompt": "a fox", "n": count, "response_format": "b64_json"}
        return service.ask("POST", "/v1/images/generations", body)

    with service.memory.growth() as grown:
        found = read_late([wish(1), *(wish(4) for _ in range(4))])
    assert [status for status, _, _ in found] == [200] * 5
    assert [count > 4 * 21 * MIB for _, count, _ in found] == [False, True, True, True, True]
    # Four pictures of each answer are fetched at a time.
    assert grown.peak < KEPT + 17 * EACH
