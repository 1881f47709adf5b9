"""Fetching the pictures of a prediction: whole, really pictures, and kept where they belong: in a file or on the shelf."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from imagen.decoding import convert
from imagen.domain.events import Event, Fetching, Saved
from imagen.domain.identifiers import new_secret
from imagen.domain.prediction import Prediction
from imagen.errors import (
    BackendError,
    DeliveryError,
    ImagenError,
    InvalidInput,
    InvalidResponse,
    OutputDefective,
    Problem,
)
from imagen.pictures import (
    DefectivePicture,
    Landing,
    NameFields,
    OutputPattern,
    PictureFacts,
    PictureNote,
    check_writable,
    embed,
    inspect_picture,
    land,
)
from imagen.ports import Clock, Fetched, PictureShelf
from imagen.service.adopt import outputs_live
from imagen.service.endings import empty_output

GONE_STATUSES = frozenset({403, 404, 410})
"""How a file host says that it does not have a file: after the hour for good, before it perhaps only now."""
_LONGEST_SHOWN = 1000
"""Characters of an address in a sentence; a picture inside an answer has millions."""


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where the pictures of a request go. Kept with the prediction, so that another process can finish it.

    Attributes:
        output: what the user gave: file, folder or template with an absolute folder; None for the default folder.
        force: replace what is there.
        metadata: write model, prompt and seed into the files.
        first: the number of this prediction's first picture among all of the request, from 1; total: of them all.
        shelf: they go on the shelf, unless `output` names a place.
        shelf_key: the secret that their ids are made of. `to_stored` chooses it before anything is bought, so that a
            picture that lay on the shelf before a crash gets no second copy after it.
    """

    output: str | None = None
    force: bool = False
    metadata: bool = True
    first: int = 1
    total: int = 1
    shelf: bool = False
    shelf_key: str | None = None

    @property
    def shelved(self) -> bool:
        """Whether the pictures go on the shelf."""
        return self.shelf and self.output is None


class Kept(msgspec.Struct, frozen=True):
    """One picture on disk; `shelf_id` is its id there when it lies on the shelf."""

    path: Path
    facts: PictureFacts
    shelf_id: str | None = None


class Delivery(msgspec.Struct, frozen=True):
    """What came of fetching: a picture or None for each output, and the error that counts when one is missing."""

    pictures: tuple[Kept | None, ...]
    error: ImagenError | None = None


class PictureSource(Protocol):
    """Where pictures are fetched from: any `ports.Backend` is one."""

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        """See `ports.Backend.fetch`."""


class Advice(msgspec.Struct, frozen=True):
    """What a person does about a picture that did not come, as templates with {id} and {url}.

    Attributes:
        again: the command that fetches it.
        addresses: where its addresses are found.
    """

    again: str = "`imagen predictions adopt {id}`"
    addresses: str = "`imagen predictions show {id}` has its addresses"


class Deliverer:
    """Fetches and keeps.

    Args:
        default_folder: where pictures go when nothing else is said.
        incoming: for files that are still on their way.
        limit_bytes: the largest picture that is taken.
        software: named in the pictures' metadata.
        shelf: keeps those that are to outlive the hour.
        advice: for whom a picture did not come.
    """

    def __init__(
        self,
        *,
        default_folder: Path,
        incoming: Path,
        limit_bytes: int,
        software: str,
        shelf: PictureShelf,
        clock: Clock,
        advice: Advice = Advice(),  # noqa: B008 - frozen
    ) -> None:
        self._default_folder = default_folder
        self._incoming = incoming
        self._limit_bytes = limit_bytes
        self._software = software
        self._shelf = shelf
        self._clock = clock
        self._advice = advice

    def check(self, destination: Destination, prediction: Prediction, *, images: int) -> None:
        """Find out before anything is bought whether the pictures could be written.

        Raises:
            InvalidInput: for the field `output`, saying what to do instead.
            ConfigError: they go on the shelf, and it takes none now.
        """
        if destination.shelved:
            self._shelf.check()
            return
        pattern = self._pattern(destination)
        own_name = pattern.parts != OutputPattern.parse(None, default_folder=self._default_folder).parts
        for index in range(images):
            path = self._path(pattern, destination, prediction, index, "png")
            check_writable(path, force=destination.force or not own_name)
            if index == 0:
                _rehearse(path)

    async def deliver(
        self,
        source: PictureSource,
        prediction: Prediction,
        destination: Destination,
        *,
        notify: Callable[[Event], None],
    ) -> Delivery:
        """All pictures that can be had, in order; one that is bad or cannot be had now takes no other down."""
        if not prediction.output:
            return Delivery((), empty_output(prediction))
        kept: list[Kept | None] = []
        errors: list[ImagenError] = []
        for index, url in enumerate(prediction.output):
            notify(Fetching(prediction, index + 1, len(prediction.output)))
            try:
                one = await self._landed_before(prediction, destination, index)
                one = one or await self._deliver_one(source, prediction, destination, index, url)
            except ImagenError as error:
                errors.append(error)
                kept.append(None)
                continue
            notify(Saved(prediction, one.path, renamed=self._is_renamed(one, prediction, destination, index)))
            kept.append(one)
        # What can still be had decides: a defective picture stays defective.
        errors.sort(key=lambda error: isinstance(error, OutputDefective))
        return Delivery(tuple(kept), errors[0] if errors else None)

    async def lying(self, prediction: Prediction) -> tuple[Kept, ...]:
        """The pictures of a prediction that were delivered and are still there, in order."""
        place = from_stored(prediction.destination)
        if place is None:
            return ()
        found = [await self._lies(Path(name), place) for name in prediction.files if name]
        return tuple(one for one in found if one is not None)

    async def _lies(self, path: Path, destination: Destination) -> Kept | None:
        """The picture at a path where this destination may have put it."""
        lies = await self._shelf.at(path)
        if (lies is not None) != destination.shelved:
            return None
        try:
            facts = await asyncio.to_thread(inspect_picture, path)
        except (OSError, DefectivePicture):
            return None
        return Kept(path, facts, None if lies is None else lies.id)

    async def _landed_before(
        self, prediction: Prediction, destination: Destination, index: int
    ) -> Kept | None:
        """A picture that an earlier process delivered before something else of it failed.

        One that was asked for once more is delivered once more, but never a second time to the shelf.
        """
        name = prediction.files[index] if index < len(prediction.files) else ""
        if not name or (prediction.delivered_at is not None and not destination.shelved):
            return None
        return await self._lies(Path(name), destination)

    async def _deliver_one(
        self, source: PictureSource, prediction: Prediction, destination: Destination, index: int, url: str
    ) -> Kept:
        advice = _filled(self._advice, prediction, url)
        part = self._incoming / f"{prediction.id}-{index + 1}-{secrets.token_hex(4)}.part"
        try:
            await asyncio.to_thread(self._incoming.mkdir, parents=True, exist_ok=True)
            await source.fetch(url, part, limit_bytes=self._limit_bytes)
            try:
                return await self._keep(part, prediction, destination, index)
            except DefectivePicture:  # damaged on its way, perhaps: once more
                await source.fetch(url, part, limit_bytes=self._limit_bytes)
                return await self._keep(part, prediction, destination, index)
        except DefectivePicture as error:
            raise _defective(f"the picture {error.reason}", prediction, advice) from error
        except (OutputDefective, InvalidResponse) as error:
            raise _defective(error.detail, prediction, advice) from error
        except BackendError as error:
            if error.status in GONE_STATUSES and not outputs_live(prediction, self._clock.now()):
                gone = "the picture is gone, Replicate removes outputs after one hour"
                raise _defective(gone, prediction, advice, expired=True) from error
            raise DeliveryError(
                f"the picture is ready but could not be fetched: {error}",
                prediction_id=prediction.id,
                hint=f"{advice.again} fetches it within the hour; nothing is bought again.",
            ) from error
        except DeliveryError as error:
            error.prediction_id = prediction.id
            error.hint = f"{error.hint or ''} Then {advice.again} fetches the picture; nothing is bought again.".strip()
            raise
        except OSError as error:
            raise DeliveryError(
                f"{self._incoming} cannot be written: {error.strerror}",
                prediction_id=prediction.id,
                hint=f"Make room, then {advice.again} fetches the picture; nothing is bought again.",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    async def _keep(self, part: Path, prediction: Prediction, destination: Destination, index: int) -> Kept:
        facts, data = await asyncio.to_thread(self._checked, part, prediction, destination)
        if not destination.shelved:
            return await asyncio.to_thread(self._land, data, facts, prediction, destination, index)
        key = None if destination.shelf_key is None else f"{destination.shelf_key}-{index + 1}"
        lies = await self._shelf.put(data, media_type=facts.media_type, key=key)
        return Kept(lies.path, facts, lies.id)

    def _checked(
        self, part: Path, prediction: Prediction, destination: Destination
    ) -> tuple[PictureFacts, bytes]:
        facts = inspect_picture(part)
        data = part.read_bytes()
        if destination.metadata:
            data = embed(data, self._note(prediction))
        return msgspec.structs.replace(facts, size_bytes=len(data)), data

    def _land(
        self, data: bytes, facts: PictureFacts, prediction: Prediction, destination: Destination, index: int
    ) -> Kept:
        path = self._path(self._pattern(destination), destination, prediction, index, facts.format)
        if _holds(path, data):
            return Kept(path, facts)  # put there by a process that died before it could write that down
        return Kept(land(data, path, force=destination.force), facts)

    def _is_renamed(self, one: Kept, prediction: Prediction, destination: Destination, index: int) -> bool:
        if one.shelf_id is not None:
            return False
        wanted = self._path(self._pattern(destination), destination, prediction, index, one.facts.format)
        return one.path != wanted

    def _note(self, prediction: Prediction) -> PictureNote:
        return PictureNote(
            prompt=prediction.prompt,
            model=prediction.model,
            seed=prediction.seed,
            prediction_id=prediction.upstream_id or prediction.id,
            software=self._software,
            created_at=(prediction.ended_at or self._clock.now()).isoformat(timespec="seconds"),
        )

    def _pattern(self, destination: Destination) -> OutputPattern:
        return OutputPattern.parse(destination.output, default_folder=self._default_folder)

    def _path(
        self, pattern: OutputPattern, destination: Destination, prediction: Prediction, index: int, ext: str
    ) -> Path:
        fields = NameFields(
            prompt=prediction.prompt,
            model=prediction.model,
            seed=prediction.seed,
            id=prediction.id,
            at=prediction.created_at.astimezone(),
        )
        number = destination.first + index
        return pattern.path_for(number, max(destination.total, number), fields, ext)


def to_stored(destination: Destination) -> dict[str, Any]:
    """A destination as the prediction keeps it, with a key of its own where its pictures go on the shelf."""
    stored = {name: getattr(destination, name) for name in destination.__struct_fields__}
    if destination.shelved and destination.shelf_key is None:
        stored["shelf_key"] = new_secret("shelf")
    return stored


def from_stored(stored: dict[str, Any] | None) -> Destination | None:
    """What `to_stored` kept."""
    return None if stored is None else convert(stored, Destination, strict=False)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _rehearse(path: Path) -> None:
    """Begin a file there and take it back: some places only say no when it comes to it."""
    try:
        with Landing(path):
            pass
    except DeliveryError as error:
        raise InvalidInput([Problem("output", error.detail)], hint=error.hint) from error


def _filled(advice: Advice, prediction: Prediction, url: str) -> Advice:
    shown = url if len(url) <= _LONGEST_SHOWN else f"{url[:60]}…"
    return Advice(
        again=advice.again.format(id=prediction.id, url=shown),
        addresses=advice.addresses.format(id=prediction.id, url=shown),
    )


def _defective(
    reason: str, prediction: Prediction, advice: Advice, *, expired: bool = False
) -> OutputDefective:
    return OutputDefective(
        f"{reason}; it was charged",
        prediction_id=prediction.id,
        expired=expired,
        hint=f"{advice.addresses}, good for an hour.",
    )
