"""Calls that are passed on to Replicate's API as they are: on the account, paced with its other calls, repeated as they may be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from imagen.backends.registry import BackendContext
from imagen.backends.replicate.refusals import parse_refusal, tell_wait, without_quotes
from imagen.backends.replicate.wire import Wire, operation_of
from imagen.domain.events import Called
from imagen.errors import BackendError, BackendRateLimited, Unauthenticated
from imagen.ports import Passage, Reply
from imagen.transport.message import HttpRequest, HttpResponse, HttpStream
from imagen.transport.retry import RetryPolicy, call_with_retry

_FIRST_REFUSAL, _THROTTLED, _FIRST_FAULT = 400, 429, 500
_MOST_OF_A_REFUSAL = 256 * 1024
"""Bytes; what a proxy has to say beyond that is not passed on."""
_ONCE = RetryPolicy(rate_limited=0, unconnected=0, repeatable=0)
_LENGTH = "content-length"


class ReplicateRelay:
    """`ports.Relay` for one account.

    Args:
        context: of the backend whose account it is.
        wire: builds its requests.
    """

    def __init__(self, context: BackendContext, wire: Wire) -> None:
        self._context = context
        self._wire = wire

    async def relay(self, call: Passage, *, account: str) -> Reply:
        """See the port.

        Args:
            call: what is passed on.
            account: whose allowance of calls it takes.
        """
        if self._wire.token is None:
            raise Unauthenticated(
                f"{self._context.name}: no Replicate API token is set; nothing was sent",
                hint=f"Set {self._wire.token_env} or run `imagen auth login`.",
            )
        request = self._wire.build_passage(call)
        refused: Reply | None = None

        async def once() -> Reply:
            nonlocal refused
            refused = None
            if operation_of(request) != "cancel":  # one that waits would be paid for
                await self._context.calls.enter(account)
            stream = await self._sent(request, call)
            if stream.status < _FIRST_REFUSAL:
                return Reply(
                    status=stream.status, headers=stream.headers, pieces=stream.pieces, close=stream.close
                )
            refused, error = await self._refusal(stream, request)
            if isinstance(error, BackendRateLimited):
                await self._context.calls.refused(account, retry_after=error.retry_after, detail=error.detail)
            if error.status == _THROTTLED or stream.status >= _FIRST_FAULT:
                raise error
            return refused

        patient = request.repeatable and not call.hurried
        try:
            return await call_with_retry(
                once,
                repeatable=request.repeatable,
                policy=self._context.policy if patient else _ONCE,
                clock=self._context.clock,
                on_wait=partial(tell_wait, self._context.observer),
            )
        except BackendError as error:
            if refused is not None:
                return refused
            error.backend = self._context.name
            raise

    async def _sent(self, request: HttpRequest, call: Passage) -> HttpStream:
        status = None
        try:
            pieces = None if isinstance(call.body, bytes) else call.body
            stream = await self._context.client.stream(request, pieces=pieces, size_bytes=call.size_bytes)
            status = stream.status
        finally:
            self._context.observer.notify(Called(operation_of(request), status))
        return stream

    async def _refusal(self, stream: HttpStream, request: HttpRequest) -> tuple[Reply, BackendError]:
        """A refusal as it is passed on, held whole and without our token in it, and as the error that it means."""
        body = bytearray()
        try:
            async for piece in stream.pieces:
                body += piece
                if len(body) >= _MOST_OF_A_REFUSAL:
                    break
        finally:
            await stream.close()
        token = self._wire.token
        response = without_quotes(
            HttpResponse(stream.status, stream.headers, bytes(body[:_MOST_OF_A_REFUSAL])),
            "",
            secrets=[] if token is None else [token.reveal()],
        )
        error = parse_refusal(response, subject=request.path, token_env=self._wire.token_env)
        headers = {name: value for name, value in stream.headers.items() if name != _LENGTH}
        reply = Reply(status=stream.status, headers=headers, pieces=_all(response.body), close=_nothing)
        return reply, error


async def _all(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _nothing() -> None:
    """A refusal is closed already."""
