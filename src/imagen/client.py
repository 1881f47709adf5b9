"""The front door for applications: `AsyncClient`, and `Client`, the same over one loop thread.

from imagen import Client

with Client() as client:
    prediction = client.generate("a red fox in the snow", aspect_ratio="16:9", go_fast=False)
    prediction.images[0].save("fox.png")
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from imagen.assembly import App, build
from imagen.domain.events import Event
from imagen.domain.inside import is_inside
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction as Record
from imagen.domain.prediction import Status
from imagen.domain.preset import with_preset
from imagen.domain.request import GenerationRequest
from imagen.errors import DeliveryError, ImagenError
from imagen.pictures import PictureFacts
from imagen.service.deliver import Destination
from imagen.service.finish import Outcome
from imagen.service.semaphore_lease import HeldSemaphore, SemaphoreLeases
from imagen.settings import load_settings
from imagen.transport.loop import new_event_loop

T = TypeVar("T")
_CLEANUP_SECONDS = 20.0


class Image(msgspec.Struct, frozen=True):
    """One picture.

    Attributes:
        path: where it lies on this machine; None when it was not downloaded.
        url: where it came from; good for an hour. None when it came inside the answer.
        facts: its format, media type, width and height in pixels and size in bytes; None when not downloaded.
    """

    path: Path | None
    url: str | None
    facts: PictureFacts | None

    def save(self, path: str | Path, *, force: bool = True) -> Path:
        """Copy it to `path`, whole or not at all, and return that path.

        Raises:
            DeliveryError: it was not downloaded, or cannot be written there.
            FileExistsError: `force` is False and something is there.
        """
        from imagen.pictures import land  # noqa: PLC0415 - applications that keep the default folder never need it

        target = Path(path).expanduser()
        if not force and target.exists():
            raise FileExistsError(target)
        return land(self.read_bytes(), target, force=force)

    def read_bytes(self) -> bytes:
        """The file's bytes.

        Raises:
            DeliveryError: it was not downloaded.
        """
        if self.path is None:
            raise DeliveryError("this picture was left upstream", hint="Call generate with download=True.")
        return self.path.read_bytes()


class Prediction(msgspec.Struct, frozen=True):
    """What came of a request: its pictures, and what they cost.

    Attributes:
        images: all pictures, in order.
        records: each prediction as it was remembered; several when the model makes fewer pictures at a time.
        errors: why pictures are missing; empty when none is. With no picture at all, `generate` raises instead.
    """

    images: tuple[Image, ...]
    records: tuple[Record, ...]
    errors: tuple[ImagenError, ...] = ()

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[Outcome]) -> Prediction:
        """All outcomes as one.

        Raises:
            ImagenError: the first error, when there is no picture at all.
        """
        errors = tuple(outcome.error for outcome in outcomes if outcome.error is not None)
        images = tuple(image for outcome in outcomes for image in _images(outcome))
        if errors and not images:
            raise errors[0]
        return cls(images, tuple(outcome.prediction for outcome in outcomes), errors)

    @property
    def id(self) -> str:
        """Our id of the first prediction, good for `imagen predictions show`."""
        return self.records[0].id

    @property
    def status(self) -> Status:
        """How it ended."""
        return self.records[0].status

    @property
    def model(self) -> str:
        """`owner/name`, with the version that was pinned."""
        return self.records[0].model

    @property
    def seed(self) -> int | None:
        """The seed, chosen by you or for you; None for a model that takes none."""
        return self.records[0].seed

    @property
    def cached(self) -> bool:
        """Whether all pictures are those of equal requests, so that nothing was bought."""
        return all(record.reused for record in self.records)

    @property
    def cost(self) -> Usd | None:
        """What all of it costs; None when the price of a part is not known."""
        return Usd.total_or_none(record.spent for record in self.records)


class AsyncClient:
    """Makes pictures from async code. Use it as an async context manager, or call `aclose`.

    Args:
        config: path of an `imagen.yaml`; by default found like the command line finds it.
        token: a Replicate API token, instead of the environment's.
        data_dir: folder of the database and the pictures.
        caller: whom the ledger names.
        environ: replaces the process's environment, for tests.
    """

    def __init__(
        self,
        *,
        config: str | Path | None = None,
        token: str | None = None,
        data_dir: str | Path | None = None,
        caller: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        given = dict(os.environ if environ is None else environ)
        if data_dir is not None:
            given["IMAGEN_DATA_DIR"] = str(data_dir)
        if caller is not None:
            given["IMAGEN_CALLER"] = caller
        path = None if config is None else Path(config)
        settings = load_settings(config=path, environ=given, cwd=Path.cwd())
        if token is not None:
            given[settings.replicate.api_token_env] = token
            settings = load_settings(config=path, environ=given, cwd=Path.cwd())
        self._app: App = build(settings, environ=given)
        self._leases = SemaphoreLeases(
            admission=self._app.admission, semaphores=self._app.semaphores, clock=self._app.clock
        )

    async def generate(
        self,
        prompt: str,
        *,
        backend: str | None = None,
        model: str | None = None,
        width: int | None = None,
        height: int | None = None,
        aspect_ratio: str | None = None,
        steps: int | None = None,
        seed: int | None = None,
        negative_prompt: str | None = None,
        count: int = 1,
        input_image: str | Path | None = None,
        output: str | Path | None = None,
        force: bool = False,
        download: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the prediction's deadline at the service, not ours
        max_cost: Usd | None = None,
        semaphore: str | None = None,
        resume: bool = True,
        repeat_lost: bool = True,
        cache: bool | None = None,
        preset: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        **model_input: Any,
    ) -> Prediction:
        """Make pictures: buy once, fetch whole, write down what it cost.

        Args:
            prompt: what to show.
            backend: a configured backend; by default the default one.
            model: `owner/name[:version]` or a known name, instead of the backend's.
            width: pixels, together with height.
            height: pixels, together with width.
            aspect_ratio: `W:H`, instead of width and height.
            steps: denoising steps.
            seed: chosen for you when left out.
            negative_prompt: what to avoid, for models that can.
            count: pictures, 1 to 100.
            input_image: address, data URI or path of a picture to start from.
            output: file, folder/ or template; by default `pictures` in the data folder.
            force: replace files that exist.
            download: False leaves the pictures upstream, where they live for an hour.
            timeout: seconds until the prediction must have ended.
            max_cost: refuse before buying when it would cost more, or when the price is not known.
            semaphore: a named limit to wait for before anything is bought.
            resume: take up an unfinished prediction of the very same request before buying a new one.
            repeat_lost: send a create again whose answer was lost and which stayed away for the whole grace.
            cache: with a seed, or for a model without one, take pictures that were made before and keep these; by
                default as the settings say.
            preset: a named set of inputs that holds where nothing is said here; what the model does not take of it
                is told by the event `LeftOut`.
            on_event: called with each event on the way; must not block.
            **model_input: the model's own parameters by their own names.

        Raises:
            InvalidRequest, Refused: before anything was bought.
            BackendError, PredictionError, WaitTimeout, DeliveryError: see `imagen.errors`.
        """
        request = GenerationRequest(
            prompt=prompt,
            model=None if model is None else self._app.catalog.resolve(model),
            width=width,
            height=height,
            aspect_ratio=aspect_ratio,
            steps=steps,
            seed=seed,
            negative_prompt=negative_prompt,
            count=count,
            input_image=input_image,
            options=model_input,
            max_cost=max_cost,
            semaphore=semaphore,
            resume=resume,
            repeat_lost=repeat_lost,
            cache=cache,
            deadline_seconds=timeout,
        )
        request = with_preset(request, preset, self._app.settings.presets, resolve=self._app.catalog.resolve)
        place = Destination(
            output=None if output is None else _absolute(output),
            force=force,
            metadata=self._app.settings.metadata,
        )
        outcomes = await self._app.gateway.generate(
            request,
            backend=backend,
            caller=self._app.caller(),
            destination=place if download else None,
            observer=None if on_event is None else _Listener(on_event),
        )
        return Prediction.from_outcomes(outcomes)

    async def resume(self, prediction_id: str) -> Prediction:
        """Finish a prediction that was left unfinished, and fetch its pictures. Buys nothing.

        Raises:
            NotFound: no such prediction; and as `generate`.
        """
        return Prediction.from_outcomes([await self._app.gateway.resume(prediction_id)])

    async def cancel(self, prediction_id: str) -> Record:
        """Stop a prediction upstream, and tell how it stands then."""
        return await self._app.gateway.cancel(prediction_id)

    def semaphore(
        self, name: str, *, wait: float = 600.0, ttl: float = 60.0, holder: str | None = None
    ) -> HeldSemaphore:
        """A place in a named limit that processes share, held while a block runs: `async with client.semaphore("gpu"):`.

        It is renewed while the block runs, so `ttl` only bounds how long others wait for a process that died. Do not
        block the loop for that long: a place that is not renewed is lost (`HeldSemaphore` tells how one learns of it).

        Args:
            name: a semaphore that was registered.
            wait: seconds to wait for a place, 0 to 86400; 0 takes what is free now.
            ttl: seconds after which the place of a process that died is free, 1 to 86400.
            holder: whom others see; by default the caller.

        Raises:
            NotFound: on entering the block: no such semaphore; on leaving it: the place was lost meanwhile.
            RateLimited: on entering the block: no place became free in `wait`.
            InvalidInput, QueueFull: on entering the block, see `imagen.errors`.
        """
        caller = self._app.caller()
        return self._leases.hold(
            name,
            holder=caller.name if holder is None else holder,
            ttl_seconds=ttl,
            wait_seconds=wait,
            turn=caller.turn,
        )

    async def aclose(self) -> None:
        """Give everything back."""
        await self._leases.aclose()
        await self._app.leave_entries()
        await self._app.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Client:
    """`AsyncClient` for code that is not async: the same arguments, the same methods, over one loop thread.

    Safe to share between threads. Ctrl-C cancels the prediction upstream before it is raised.
    """

    def __init__(
        self,
        *,
        config: str | Path | None = None,
        token: str | None = None,
        data_dir: str | Path | None = None,
        caller: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        inner = AsyncClient(config=config, token=token, data_dir=data_dir, caller=caller, environ=environ)
        self._inner = inner
        self._thread = _LoopThread()
        self._closing = weakref.finalize(self, _close, self._thread, inner)

    def generate(self, prompt: str, **given: Any) -> Prediction:
        """See `AsyncClient.generate`."""
        return self._thread.run(self._inner.generate(prompt, **given))

    def resume(self, prediction_id: str) -> Prediction:
        """See `AsyncClient.resume`."""
        return self._thread.run(self._inner.resume(prediction_id))

    def cancel(self, prediction_id: str) -> Record:
        """See `AsyncClient.cancel`."""
        return self._thread.run(self._inner.cancel(prediction_id))

    def semaphore(
        self, name: str, *, wait: float = 600.0, ttl: float = 60.0, holder: str | None = None
    ) -> SemaphoreBlock:
        """See `AsyncClient.semaphore`: `with client.semaphore("gpu"):`. It is renewed however busy the block is."""
        held = self._inner.semaphore(name, wait=wait, ttl=ttl, holder=holder)
        return SemaphoreBlock(self, self._thread, held)

    def close(self) -> None:
        """Give everything back. Called by itself when the client goes away or the program ends."""
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SemaphoreBlock:
    """`HeldSemaphore` for code that is not async. Made by `Client.semaphore`."""

    def __init__(self, client: Client, thread: _LoopThread, held: HeldSemaphore) -> None:
        self._client = client  # who goes away closes itself
        self._thread = thread
        self._held = held

    @property
    def lost(self) -> ImagenError | None:
        """Why the place was lost while the block ran; None while it is ours."""
        return self._held.lost

    def check(self) -> None:
        """Make sure that the place is ours still.

        Raises:
            NotFound: it was lost.
        """
        self._held.check()

    def __enter__(self) -> Self:
        try:
            self._thread.run(self._held.take())
        except BaseException:
            self._give_back()  # Ctrl-C may come in the moment in which it was taken
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        if error is None:
            self._held.check()

    def _give_back(self) -> None:
        if self._held.is_held:  # otherwise the client may be closed already
            self._thread.run(self._held.give_back())


class _LoopThread:
    """One event loop on a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the loop and wait. Whoever is interrupted waits for the work to clean up."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._started())
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_CLEANUP_SECONDS)
            raise

    def stop(self) -> None:
        """End the loop."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="imagen-loop", daemon=True
                )
                self._thread.start()
            return self._loop


def _close(thread: _LoopThread, inner: AsyncClient) -> None:
    thread.run(inner.aclose())
    thread.stop()


class _Listener:
    """An observer that calls a function."""

    def __init__(self, call: Callable[[Event], None]) -> None:
        self._call = call

    def notify(self, event: Event) -> None:
        self._call(event)


def _images(outcome: Outcome) -> list[Image]:
    addresses = [None if is_inside(address) else address for address in outcome.prediction.output]
    if outcome.pictures:
        return [
            Image(picture.path, addresses[index] if index < len(addresses) else None, picture.facts)
            for index, picture in enumerate(outcome.pictures)
        ]
    return [] if outcome.error else [Image(None, address, None) for address in addresses]


def _absolute(output: str | Path) -> str:
    text = str(output)
    return text if text.startswith(("/", "~")) else f"{Path.cwd()}/{text}"
