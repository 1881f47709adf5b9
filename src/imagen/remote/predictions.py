"""Single predictions of a running gateway: how they stand, and stopping them."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import msgspec

from imagen.remote.connection import Connection
from imagen.remote.generate import MadeFile
from imagen.remote.refusals import shown

_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,100}\Z")]


class RemotePrediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway tells of a prediction, as far as it is read here. Texts may be long and hold anything.

    Attributes:
        id: the gateway's.
        status: `queued`, `starting`, `processing`, or an end.
        model: as it is run.
        files: its pictures.
        seed, cost_usd, charged, error: null where they are not known.
    """

    id: _Id
    status: str
    model: str
    files: Annotated[list[MadeFile], msgspec.Meta(max_length=1000)] = []
    seed: int | None = None
    cost_usd: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    charged: bool | None = None
    error: str | None = None


class RemotePredictions:
    """Those that a gateway has taken on durably; every method raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def show(self, prediction_id: str) -> RemotePrediction:
        """How one stands.

        Raises:
            NotFound: the gateway has taken on none of that name for whoever holds the key.
        """
        return _in_lines(await self._connection.ask("GET", _path(prediction_id), RemotePrediction))

    async def cancel(self, prediction_id: str) -> RemotePrediction:
        """Stop one; else as `show`."""
        return _in_lines(
            await self._connection.ask("POST", f"{_path(prediction_id)}/cancel", RemotePrediction)
        )


def _path(prediction_id: str) -> str:
    return f"/predictions/{quote(prediction_id, safe='')}"


def _in_lines(told: RemotePrediction) -> RemotePrediction:
    """The same with every text as it may be shown."""
    return msgspec.structs.replace(
        told,
        status=shown(told.status),
        model=shown(told.model),
        error=None if told.error is None else shown(told.error),
    )
