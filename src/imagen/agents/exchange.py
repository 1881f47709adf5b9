"""Messages over HTTP, one request at a time and without sessions. It imports the SDK, which is large."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from imagen.agents.protocol import make_server

__all__ = ["make_server", "serve_exchange"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def serve_exchange(
    server: Server[Any], scope: Message, receive: Receive, send: Send, *, most_bytes: int
) -> None:
    """Answer one request, as JSON or as events.

    The manager of the SDK is there for this request only: nothing of it outlives the answer, and whoever ends the request ends
    all that was done for it.

    Args:
        server: with the tools of whoever asks.
        scope: of ASGI, and so are the next two.
        receive: gives the body.
        send: takes the answer.
        most_bytes: of the body.
    """
    manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=most_bytes)
    async with manager.run():
        await manager.handle_request(scope, receive, send)
