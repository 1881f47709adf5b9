"""What an agent on this machine may do: pictures are files here, and may be taken from here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from imagen.agents.here import AppWorkshop
from imagen.agents.there import RemoteWorkshop
from imagen.assembly import App, Remote
from imagen.cli.options import absolute_output, read_image
from imagen.errors import InvalidInput, Problem
from imagen.pictures import sniff_format
from imagen.service.deliver import Destination, Kept

_BEGINS = 4096
"""Bytes by which a picture is known."""


class LocalWorkshop(AppWorkshop):
    """This process makes the pictures.

    Args:
        app: the application.
        backend: of the configuration; None for the default one.
        output: where pictures go when a call says nothing; None for the default folder.
    """

    def __init__(self, app: App, *, backend: str | None, output: str | None) -> None:
        name = backend or app.backends.default
        super().__init__(
            app,
            backend=app.backends.get(name),
            caller=app.caller(),
            usual=app.backends.habits(name).model,
            local=True,
        )
        self._output = output

    def destination(self, output: str | None) -> Destination:
        """A place for files."""
        return _files(self.app, output, self._output)

    async def image(self, told: str) -> Any:
        """An address, or a file."""
        return await asyncio.to_thread(_picture, told)

    def place(self, picture: Kept) -> dict[str, str]:
        """Its path."""
        return _path(picture)


class ThroughGateway(RemoteWorkshop):
    """A running gateway makes the pictures, and this process fetches them.

    Args:
        app: this process.
        remote: the gateway.
        backend, output: as of `LocalWorkshop`.
    """

    def __init__(self, app: App, remote: Remote, *, backend: str | None, output: str | None) -> None:
        super().__init__(app, remote, backend=backend)
        self._output = output

    def destination(self, output: str | None) -> Destination:
        """A place for files."""
        return _files(self.app, output, self._output)

    async def image(self, told: str) -> Any:
        """An address, or a file."""
        return await asyncio.to_thread(_picture, told)

    def place(self, picture: Kept) -> dict[str, str]:
        """Its path."""
        return _path(picture)


def _picture(told: str) -> str | Path:
    """An address, or a file that begins like a picture: an agent may be talked into sending others.

    Raises:
        InvalidInput: it is neither.
    """
    image = read_image(told)
    if isinstance(image, Path):
        try:
            with image.open("rb") as file:
                begins = file.read(_BEGINS)
        except OSError as error:
            raise InvalidInput(
                [Problem("image", f"{told[:200]} cannot be read: {error.strerror}")]
            ) from error
        if sniff_format(begins) is None:
            raise InvalidInput([Problem("image", f"{told[:200]} is no picture")])
    return image


def _files(app: App, output: str | None, usual: str | None) -> Destination:
    place = usual if output is None else absolute_output(output)
    return Destination(output=place, metadata=app.settings.metadata)


def _path(picture: Kept) -> dict[str, str]:
    return {"path": str(Path(picture.path).absolute())}
