"""One exchange with a running gateway: where it is, which key is shown, and what its answer means."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from imagen.decoding import decode
from imagen.domain.secret import Secret
from imagen.errors import (
    ConnectFailed,
    GarbledResponse,
    ImagenError,
    TransportError,
    Unauthenticated,
)
from imagen.remote.refusals import read_refusal
from imagen.transport.client import HttpClient
from imagen.transport.message import HttpRequest

T = TypeVar("T")
_FIRST_REFUSAL = 300


class Connection:
    """Asks one gateway. Safe to share between tasks.

    Args:
        url: its address without a slash at the end: https, or http to this machine.
        client: carries the requests.
        key: a named key of the gateway; None where there is none.
        admin_key: the admin's; None where there is none.
    """

    def __init__(self, url: str, *, client: HttpClient, key: Secret | None, admin_key: Secret | None) -> None:
        self.url = url
        self._client = client
        self._key = key
        self._admin_key = admin_key

    async def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        body: Any = None,
        admin: bool = False,
        answer_seconds: float = 30.0,
        hidden: str = "",
        lost: str | None = None,
        idempotency_key: str | None = None,
    ) -> T:
        """One request and its answer. Nothing is repeated, no redirect is followed.

        Args:
            method: such as `POST`.
            path: below the gateway's address, quoted.
            answer: what is made of the JSON that comes back.
            body: sent as JSON; None for none.
            admin: the admin alone may ask this: the admin's key is shown, if there is one. Otherwise the named key is,
                as it is good for less.
            answer_seconds: how long the answer may take.
            hidden: a part of the path that nobody else shall see.
            lost: what to do when the answer was lost, one sentence.
            idempotency_key: under which it is carried out once, however often it is sent.

        Raises:
            ConnectFailed: nobody listens there; nothing was sent.
            ExchangeFailed: it may have arrived.
            InvalidResponse: what answers is no gateway.
            ImagenError: whatever the gateway raised.
        """
        request = HttpRequest(
            method=method,
            url=self.url + path,
            headers={
                "accept": "application/json",
                "content-type": "application/json",
                **self._shown(admin=admin),
                **({} if idempotency_key is None else {"idempotency-key": idempotency_key}),
            },
            body=None if body is None else msgspec.json.encode(body),
            response_seconds=answer_seconds,
        )
        try:
            response = await self._client.send(request)
        except TransportError as error:
            if hidden:
                error.detail = error.detail.replace(hidden, "…")
            unheard = isinstance(error, ConnectFailed)
            error.hint = f"Is `imagen serve` running at {self.url}?" if unheard else error.hint or lost
            raise
        if response.status >= _FIRST_REFUSAL:
            raise self._with_next_step(read_refusal(response, url=self.url), admin=admin)
        try:
            return decode(response.body, answer)
        except (ValueError, RecursionError):
            raise GarbledResponse(
                f"the answer of {self.url} is not what an imagen gateway tells",
                hint="Is it one, and of this version?",
            ) from None

    def _shown(self, *, admin: bool) -> dict[str, str]:
        for name, key in (
            ("x-admin-api-key", self._admin_key if admin else None),
            ("x-api-key", self._key),
            ("x-admin-api-key", self._admin_key),
        ):
            if key is not None:
                return {name: key.reveal()}
        return {}

    def _with_next_step(self, error: ImagenError, *, admin: bool) -> ImagenError:
        """The gateway's hints for those who send headers are of no use to those who set variables."""
        if isinstance(error, Unauthenticated) and (
            admin or error.hint is None or not self._shown(admin=admin)
        ):
            variable = "CONCURRENT_DOCKER_ADMIN_API_KEY" if admin else "IMAGEN_API_KEY"
            what = "its admin key" if admin else "a key of that gateway"
            error.hint = f"Set {variable} to {what}."
        return error
