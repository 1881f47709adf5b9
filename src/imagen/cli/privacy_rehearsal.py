"""What `imagen privacy verify` does: a gateway in a temporary folder, prompts through all its doors, and a look at the rest."""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from imagen.domain.canary import Canary, new_words
from imagen.service.privacy import PrivacyReport, Sample, judge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imagen.assembly import App
    from imagen.settings import Settings
    from imagen.transport.message import HttpResponse

PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_DATABASE = "imagen.db"
_MODEL = "flux-schnell"
_FIRST_REFUSAL = 400
_OPEN = frozenset({"queued", "starting", "processing", "running"})
_RECEIVED_BYTES = 1 << 20


async def rehearse(settings: Settings) -> PrivacyReport:
    """Send prompts that occur nowhere else through everything, and look for them in everything that was written.

    Args:
        settings: of the user; what they say about hashes and metadata holds.
    """
    token = Canary.of_secret(f"r8_{secrets.token_hex(18)}")
    prompts = [Canary.of_prompt(new_words(iter(lambda: secrets.randbelow(1 << 16), -1))) for _ in range(5)]
    with tempfile.TemporaryDirectory(prefix="imagen-privacy-") as home, _listening() as log:
        folder = Path(home)
        async with AsyncExitStack() as stack:
            receiver = await stack.enter_async_context(_receiver())
            rehearsal = await stack.enter_async_context(_stage(settings, folder, token, receiver))
            await rehearsal.play(prompts)
            samples = [*rehearsal.samples, *await rehearsal.sinks()]
        samples += await rehearsal.cells()
        samples += [Sample("deliveries", heard) for heard in receiver.heard]
        samples += [Sample("log", line.encode()) for line in log]
        samples += await asyncio.to_thread(lambda: list(_written(folder)))
    return judge(samples, prompts=prompts, token=token, keyed=settings.prompt_hash_key is not None)


class _Receiver:
    """Somebody to whom events are delivered: takes all, and remembers them with their headers."""

    def __init__(self) -> None:
        self.url = ""
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            size = min(int(lengths[0].partition(b":")[2]), _RECEIVED_BYTES) if lengths else 0
            self.heard.append(head + await reader.readexactly(size))
            writer.write(b"HTTP/1.1 204 Taken\r\nconnection: close\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def _receiver() -> AsyncIterator[_Receiver]:
    receiver = _Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/events"
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Every line that would be logged at level debug, as text and as JSON; nothing of it is shown."""
    from imagen.instrumentation.logs import JsonFormatter, TextFormatter

    lines: list[str] = []

    class Memory(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(form.format(record) for form in (JsonFormatter(), TextFormatter()))

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [Memory()]
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


class _Rehearsal:
    """One gateway, asked in every way; what it answers is kept."""

    def __init__(
        self, app: App, url: str, folder: Path, token: Canary, receiver: _Receiver, admin: str
    ) -> None:
        self._app = app
        self._url = url
        self._folder = folder
        self._own = {"x-replicate-api-token": token.text}
        self._admin = {"x-admin-api-key": admin}
        self._receiver = receiver
        self.samples: list[Sample] = []

    async def play(self, prompts: Sequence[Canary]) -> None:
        """All of it."""
        alone, cached, durable, batch, failing = (prompt.text for prompt in prompts)
        await self._on_the_command_line(alone)
        for headers in (self._admin, self._own):
            await self._generate(cached, headers, seed=7, store=True)
            await self._generate(cached, headers, seed=7, store=True)
            await self._durably(durable, headers)
            await self._as_a_batch(batch, headers)
            await self._badly(failing, headers)
        await self._look_around()

    async def sinks(self) -> list[Sample]:
        """The ledger as a sink gets it."""
        from imagen.sinks.schema import to_row

        rows = [to_row(entry) for entry in await self._app.ledger.entries()]
        return [Sample("rows for sinks", repr(sorted(row.items())).encode()) for row in rows]

    async def cells(self) -> list[Sample]:
        """The database, value by value; to be read when everything is closed."""
        return [Sample(f"database: {column}", value) for column, value in await self._app.database.cells()]

    async def _on_the_command_line(self, prompt: str) -> None:
        from imagen.domain.request import GenerationRequest
        from imagen.errors import ImagenError
        from imagen.service.deliver import Destination

        for text, where in (
            (prompt, Destination(output=f"{self._folder / 'saved'}/", metadata=self._app.settings.metadata)),
            (f"{prompt} [fault:fail]", Destination()),
        ):
            request = GenerationRequest(prompt=text, model=self._app.catalog.resolve(_MODEL))
            try:
                outcomes = await self._app.gateway.generate(request, destination=where)
                errors: list[BaseException] = [one.error for one in outcomes if one.error is not None]
            except ImagenError as error:
                errors = [error]
            self.samples += [Sample("errors", f"{error!s} {error!r}".encode()) for error in errors]

    async def _generate(self, prompt: str, headers: dict[str, str], **fields: Any) -> HttpResponse:
        return await self._ask(
            "POST", "/generate", headers, {"model_name": _MODEL, "prompt": prompt} | fields
        )

    async def _durably(self, prompt: str, headers: dict[str, str]) -> None:
        body = {"model_name": _MODEL, "prompt": prompt, "webhook": self._receiver.url}
        for key in ("canary", "canary"):  # the second time it is told what came of the first
            answer = await self._ask(
                "POST",
                "/predictions",
                headers | {"idempotency-key": key},
                body | {"webhook_events_filter": ["start", "completed"]},
            )
        await self._ended(f"/predictions/{_field(answer, 'id')}", headers)

    async def _as_a_batch(self, prompt: str, headers: dict[str, str]) -> None:
        tasks = [{"prompt": prompt}, {"prompt": f"{prompt} [fault:fail]"}]
        body = {
            "model_name": _MODEL, "tasks": tasks, "webhook": self._receiver.url,
            "webhook_events_filter": ["item", "completed"],
        }  # fmt: skip
        answer = await self._ask("POST", "/batches", headers, body)
        await self._ended(f"/batches/{_field(answer, 'id')}", headers)

    async def _badly(self, prompt: str, headers: dict[str, str]) -> None:
        """What is refused before anything is bought, what fails at the service, and what it cannot answer."""
        for wrong in (
            {"aspect_ratio": "1:7"}, {"num_outputs": 999}, {"seed": "many"}, {"no_such_field": 1}, {"model_name": "no/such-model"},
        ):  # fmt: skip
            await self._generate(prompt, headers, **wrong)
        for fault in (
            "[fault:fail]",
            "[fault:fail preset=nsfw]",
            "[fault:status status=500]",
            "[fault:status status=422]",
        ):
            await self._generate(f"{prompt} {fault}", headers)
        await self._ask("POST", "/generate", headers, {"prompt": [prompt], "model_name": _MODEL})
        await self._ask("POST", "/generate", headers, None, raw=b'{"prompt": "' + prompt.encode() + b'"')
        await self._ask("POST", "/generate", {}, {"prompt": prompt, "model_name": _MODEL})

    async def _look_around(self) -> None:
        """What the gateway tells about itself, to whoever runs it, when all events have been delivered."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await self._app.standings.count_left()).deliveries_waiting:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(_PAUSE_SECONDS)
        for place, path in (
            ("metrics", "/metrics"),
            ("health", "/health"),
            ("usage", "/usage"),
            ("list of deliveries", "/deliveries"),
        ):
            await self._ask("GET", path, self._admin, None, place=place)

    async def _ended(self, path: str, headers: dict[str, str]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await self._ask("GET", path, headers, None)
                if _field(answer, "status") not in _OPEN:
                    return
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Any,
        *,
        place: str | None = None,
        raw: bytes | None = None,
    ) -> HttpResponse:
        from imagen.transport.message import HttpRequest

        answer = await self._app.client.send(
            HttpRequest(
                method=method,
                url=self._url + path,
                headers={"content-type": "application/json", **headers},
                body=raw if raw is not None else None if body is None else msgspec.json.encode(body),
                response_seconds=PATIENCE_SECONDS,
            )
        )
        where = place or ("errors" if answer.status >= _FIRST_REFUSAL else "answers")
        self.samples.append(Sample(where, repr(dict(answer.headers)).encode() + answer.body))
        return answer


@asynccontextmanager
async def _stage(
    settings: Settings, folder: Path, token: Canary, receiver: _Receiver
) -> AsyncIterator[_Rehearsal]:
    """A gateway and the emulator, both in this process."""
    from imagen.emulator import EmulatorThread
    from imagen.server.run import serving
    from imagen.settings import load_settings

    admin = secrets.token_hex(16)
    with EmulatorThread(run_seconds=0.05) as emulator:
        environ = {
            "HOME": str(folder / "home"),
            "IMAGEN_DATA_DIR": str(folder / "data"),
            "IMAGEN_REPLICATE__API_BASE": emulator.url,
            "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1",
            "IMAGEN_SECRET_KEY": secrets.token_urlsafe(32),
            "IMAGEN_METADATA": str(settings.metadata).lower(),
            "IMAGEN_CACHE__KEEP": "true",
            "IMAGEN_PICTURES__KEEP": "true",
            "IMAGEN_DELIVERIES__PRIVATE": "true",
            "CONCURRENT_DOCKER_ADMIN_API_KEY": admin,
            "FLASK_PORT": "0",
            "REPLICATE_API_TOKEN": token.text,
        }
        if settings.prompt_hash_key is not None:
            environ["IMAGEN_PROMPT_HASH_KEY"] = settings.prompt_hash_key.reveal()
        async with serving(load_settings(environ=environ, cwd=folder), environ=environ) as served:
            yield _Rehearsal(served.app, served.url, folder, token, receiver, admin)


def _written(folder: Path) -> Iterator[Sample]:
    """Everything on the disk but the database: what is in the files, and what they are called."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        kind = _kind(path.relative_to(folder))
        names = "names of saved pictures" if kind == "pictures" else "names of other files"
        yield Sample(names, str(path.relative_to(folder)).encode())
        if not path.name.startswith(_DATABASE):  # it is looked through cell by cell
            yield Sample(kind, path.read_bytes())


def _kind(path: Path) -> str:
    if path.parts[0] == "saved":
        return "pictures"
    return {"cache": "cache", "kept": "pictures"}.get(
        path.parts[1] if len(path.parts) > 2 else "", "other files"
    )


def _field(answer: HttpResponse, name: str) -> Any:
    return msgspec.json.decode(answer.body).get(name)
