"""What an agent on this machine may do: pictures are files here, and may be taken from here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from imagen.agents.here import AppWorkshop
from imagen.agents.open_calls import OpenCalls
from imagen.agents.there import RemoteWorkshop
from imagen.assembly import App, Remote
from imagen.cli.options import absolute_output, read_image
from imagen.errors import InvalidInput, Problem
from imagen.pictures import check_address, sniff_format
from imagen.service.deliver import Destination, Kept

_BEGINS = 4096
"""Bytes by which a picture is known."""


class _Files:
    """The part of a workshop that is files of this machine."""

    app: App
    usual_output: str | None

    def destination(self, output: str | None) -> Destination:
        """A place for files."""
        place = self.usual_output if output is None else absolute_output(output)
        return Destination(output=place, metadata=self.app.settings.metadata)

    async def image(self, told: str) -> Any:
        """An address, or a file."""
        return await asyncio.to_thread(_picture, told)

    def place(self, picture: Kept) -> dict[str, str]:
        """Its path."""
        return {"path": str(Path(picture.path).absolute())}


class LocalWorkshop(_Files, AppWorkshop):
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
            open_calls=OpenCalls(),
        )
        self.usual_output = output


class ThroughGateway(_Files, RemoteWorkshop):
    """A running gateway makes the pictures, and this process fetches them.

    Args:
        app: this process.
        remote: the gateway.
        backend, output: as of `LocalWorkshop`.
    """

    def __init__(self, app: App, remote: Remote, *, backend: str | None, output: str | None) -> None:
        super().__init__(app, remote, backend=backend)
        self.usual_output = output


def _picture(told: str) -> str | Path:
    """An address, or a file that begins like a picture: an agent may be talked into sending others.

    Raises:
        InvalidInput: it is neither, or an address that is none.
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
    return check_address(image, field="image")
