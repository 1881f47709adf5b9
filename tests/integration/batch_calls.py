"""Waiting for durable work over HTTP, and reading its events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import ADMIN, RunningGateway

FLUX = "flux-schnell"


@dataclass(frozen=True)
class Told:
    """A server-sent event."""

    event: str
    data: Any
    id: str | None


async def make_batch(
    gateway: RunningGateway, prompts: list[str], *, headers: dict[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    """Ask for a batch; it is taken on."""
    body = {"model_name": FLUX, "tasks": [{"prompt": prompt} for prompt in prompts]} | fields
    answer = await gateway.request("POST", "/batches", json=body, headers=headers or ADMIN)
    assert answer.status == 202, answer.body
    found: dict[str, Any] = answer.json()
    return found


async def events(
    gateway: RunningGateway,
    batch_id: str,
    *,
    after: str | None = None,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Told]:
    """What is told of a batch, until the stream ends."""
    told = {} if after is None else {"Last-Event-ID": after}
    async with gateway.session.get(
        f"{gateway.url}/batches/{batch_id}/events", headers=(headers or ADMIN) | told
    ) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines: list[str] = []
        async for raw in response.content:
            if line := raw.decode().rstrip("\n"):
                lines.append(line)
                continue
            fields = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
            lines = []
            if "data" in fields:
                yield Told(fields["event"], json.loads(fields["data"]), fields.get("id"))


async def ended(
    gateway: RunningGateway, batch_id: str, *, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """How a batch ended, as its events tell it."""
    async with asyncio.timeout(30):
        told = [one async for one in events(gateway, batch_id, headers=headers)]
    assert told[-1].event == "end"
    found: dict[str, Any] = told[-1].data
    return found


async def items_of(
    gateway: RunningGateway, batch_id: str, *, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """All items, from the lines of the results."""
    answer = await gateway.request("GET", f"/batches/{batch_id}/results.jsonl", headers=headers or ADMIN)
    assert answer.status == 200
    return [json.loads(line) for line in answer.body.splitlines()]


def written_below(folder: Path) -> bytes:
    """Everything that stands in the files of a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
