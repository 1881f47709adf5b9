"""`imagen batches`: which there are, how they stand, and steering them."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from imagen.assembly import App, Remote
    from imagen.domain.batch import Item
    from imagen.service.batches import View

    Steered = tuple[View, str | None]

app = typer.Typer(help="List, show and steer batches.", no_args_is_help=True)

LIST_EXAMPLES = """\b
Examples:
  imagen batches list
  imagen batches list --limit 100 --json
  imagen batches list --server https://pictures.example.com
"""
SHOW_EXAMPLES = """\b
Examples:
  imagen batches show batch_01kamx3
  imagen batches show batch_01kamx3 --json
"""
PAUSE_EXAMPLES = """\b
Examples:
  imagen batches pause batch_01kamx3
"""
RESUME_EXAMPLES = """\b
Examples:
  imagen batches resume batch_01kamx3
"""
CANCEL_EXAMPLES = """\b
Examples:
  imagen batches cancel batch_01kamx3
"""
RETRY_EXAMPLES = """\b
Examples:
  imagen batches retry batch_01kamx3
"""

SHORTEST_ID = 4
_PREFIX = "batch_"
_COLUMNS = ("id", "created", "status", "items", "done", "failed", "cost", "name")
_NAME_COLUMNS = 40
_SHOWN_ERRORS = 10
_ERROR_COLUMNS = 160
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the batch; may be cut short.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output; money in dollars.")]


# --- list ------------------------------------------------------------------------------------------------


@app.command("list", epilog=LIST_EXAMPLES)
def list_(
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100, help="Show so many at most, up to 100.")
    ] = 20,
    json: Json = False,
    server: Server = None,
    config: Config = None,
) -> None:
    """List batches, newest first."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(app: App) -> None:
        found = await parts_at(server, app).batches.list(limit=limit + 1)
        if json:
            print_json([facts_of(view) for view in found[:limit]])
        elif found:
            rows = map(_cells, found[:limit])
            print_table(format_table(_COLUMNS, rows, right=("items", "done", "failed", "cost")))
        else:
            remark(f"no batches yet. Begin with: imagen batch FILE{server_option(server)}")
        if len(found) > limit:
            remark("older ones are left out; --limit shows more")

    run_app(command, config=config, json=json)


def _cells(view: View) -> Sequence[str]:
    from imagen.cli.tables import shorten

    batch, tally = view.batch, view.tally
    return (
        batch.id,
        _time(batch.created_at),
        view.status.value,
        str(batch.total),
        str(tally.succeeded),
        str(tally.ended - tally.succeeded),
        str(tally.cost),
        shorten(batch.name, _NAME_COLUMNS),
    )


# --- show ------------------------------------------------------------------------------------------------


@app.command(epilog=SHOW_EXAMPLES)
def show(batch_id: Id, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Show how a batch stands, what failed of it, and what to do next."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_facts
    from imagen.domain.batch import ItemStatus

    async def command(app: App) -> None:
        parts = parts_at(server, app)
        view = await parts.batches.view(checked_id(batch_id, server))
        following = _next(app, parts, view, server)
        failed = list(
            await parts.batches.items(view.batch.id, limit=_SHOWN_ERRORS + 1, status=ItemStatus.FAILED)
        )
        if json:
            print_json(facts_of(view) | {"next": following})
        else:
            print_lines(format_facts(_lines(view, failed, following)))

    run_app(command, config=config, json=json)


def _lines(view: View, failed: Sequence[Item], following: Sequence[str]) -> list[tuple[str, str]]:
    from imagen.cli.batch_results import row_of
    from imagen.cli.batch_view import progress_line
    from imagen.cli.tables import shorten

    batch = view.batch
    errors = [
        shorten(f"{row_of(item)}: {item.error or item.code}", _ERROR_COLUMNS)
        for item in failed[:_SHOWN_ERRORS]
    ]
    return [
        ("id", batch.id),
        ("name", batch.name),
        ("status", view.status.value),
        ("paused because", batch.reason or ""),
        ("waiting for", "" if view.trouble is None else view.trouble.reason),
        ("progress", progress_line(view)),
        ("created", _time(batch.created_at)),
        ("ended", "" if batch.ended_at is None else _time(batch.ended_at)),
        ("pictures", str(batch.details.get("folder", ""))),
        ("results", str(batch.details.get("results", ""))),
        ("failed", "\n".join([*errors, *(["…"] if len(failed) > _SHOWN_ERRORS else [])])),
        ("next", "\n".join(following)),
    ]


def _next(app: App, parts: App | Remote, view: View, server: str | None) -> list[str]:
    """What can be done now."""
    batch, there = view.batch, server_option(server)
    if view.status.terminal:
        good = view.tally.succeeded == batch.total
        return [] if good else [f"imagen batches retry {batch.id}{there}"]
    cancel = f"imagen batches cancel {batch.id}{there}"
    if parts is app and batch.owner is not None and app.owners.alive(batch.owner):
        return [f"imagen batches pause {batch.id}{there}", cancel]
    begun = batch.details.get("command") is not None
    again = "imagen batch --resume" if begun else "imagen batches resume"
    return [f"{again} {batch.id}{there}", cancel]


# --- steering --------------------------------------------------------------------------------------------


@app.command(epilog=PAUSE_EXAMPLES)
def pause(batch_id: Id, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Begin nothing more of a batch. What runs goes on to its end."""

    async def ask(parts: App | Remote, found: View) -> Steered:
        return await parts.batches.pause(found.batch.id), _ended_before(found)

    _steer(batch_id, ask, json=json, server=server, config=config)


@app.command(epilog=RESUME_EXAMPLES)
def resume(batch_id: Id, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Let a paused batch go on, in the process that works on it. `imagen batch --resume` works on it itself."""

    async def ask(parts: App | Remote, found: View) -> Steered:
        return await parts.batches.resume(found.batch.id), _ended_before(found)

    _steer(batch_id, ask, json=json, server=server, config=config)


@app.command(epilog=CANCEL_EXAMPLES)
def cancel(batch_id: Id, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Buy nothing more of a batch, and stop what runs. It cannot be resumed; `retry` begins what is missing anew."""

    async def ask(parts: App | Remote, found: View) -> Steered:
        return await parts.batches.cancel(found.batch.id), _ended_before(found)

    _steer(batch_id, ask, json=json, server=server, config=config)


@app.command(epilog=RETRY_EXAMPLES)
def retry(batch_id: Id, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Queue what failed, expired or was canceled once more, as new purchases."""

    async def ask(parts: App | Remote, found: View) -> Steered:
        count = await parts.batches.retry_failed(found.batch.id)
        idle = None if count else "nothing of it has failed, expired or was canceled"
        return await parts.batches.view(found.batch.id), idle

    _steer(batch_id, ask, json=json, server=server, config=config)


def _ended_before(found: View) -> str | None:
    return "it has ended already" if found.status.terminal else None


def _steer(
    batch_id: str,
    ask: Callable[[App | Remote, View], Awaitable[Steered]],
    *,
    json: bool,
    server: str | None,
    config: Path | None,
) -> None:
    """Steer a batch; `ask` tells how it stands then, and why nothing was done, if that is so."""
    from imagen.cli.batch_view import progress_line
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.run import run_app
    from imagen.domain.batch import Control

    async def command(app: App) -> None:
        parts = parts_at(server, app)
        found = await parts.batches.view(checked_id(batch_id, server))
        view, idle = await ask(parts, found)
        if parts is app and view.batch.control is Control.CANCEL:
            view = await _ended_here(app, view)
        if json:
            print_json(facts_of(view))
        else:
            print_lines([f"{view.batch.id} {view.status}: {progress_line(view)}"])
        if idle is not None:
            remark(f"nothing was done: {idle}")
        if view.status.terminal or _is_worked_on(app, parts, view):
            return
        if (
            view.batch.control is Control.CANCEL
            and (hindrance := app.why_it_cannot_end(view.batch)) is not None
        ):
            remark(f"what runs of it is not stopped yet: {hindrance}")
            remark(f"then ask once more: imagen batches cancel {view.batch.id}")
        else:
            again = f"imagen batch --resume {view.batch.id}{server_option(server)}"
            remark(f"nobody works on it now; go on with: {again}")

    run_app(command, config=config, json=json)


async def _ended_here(app: App, view: View) -> View:
    """End a canceled batch that no living process works on: what runs of it is stopped, and nothing is bought.

    It stays as it is where another process works on it, or what it is made on is not at hand.
    """
    import asyncio

    wanted = view.batch
    if (
        wanted.ended_at is not None
        or _is_worked_on(app, app, view)
        or app.why_it_cannot_end(wanted) is not None
    ):
        return view
    working = asyncio.ensure_future(
        app.queue.run(app.worker.work, emptied=app.worker.emptied, takes=lambda batch: batch.id == wanted.id)
    )
    try:
        return await app.batches.ended(wanted.id)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _is_worked_on(app: App, parts: App | Remote, view: View) -> bool:
    owner = view.batch.owner
    return parts is not app or (owner is not None and app.owners.alive(owner))


# --- all of them -----------------------------------------------------------------------------------------


def server_option(server: str | None) -> str:
    """What a command that we propose needs behind it, to mean the same gateway; nothing where none was named."""
    return "" if server is None else f" --server {shlex.quote(server.strip())}"


def checked_id(text: str, server: str | None = None) -> str:
    """An id, whole or cut short, with its prefix.

    Args:
        text: as it was given.
        server: as it was given, for what we propose.

    Raises:
        InvalidRequest: too little of an id: an empty variable of a script must not mean whatever there is.
    """
    from imagen.errors import InvalidRequest

    bare = text.strip().removeprefix(_PREFIX)
    if len(bare) < SHORTEST_ID:
        raise InvalidRequest(
            f"{text[:40]!r} is too short for an id: give {SHORTEST_ID} characters of it at least.",
            hint=f"`imagen batches list{server_option(server)}` shows them.",
        )
    return _PREFIX + bare


def facts_of(view: View) -> dict[str, Any]:
    """A batch for machines."""
    batch, tally = view.batch, view.tally
    return {
        "id": batch.id,
        "name": batch.name,
        "status": view.status.value,
        "reason": batch.reason,
        "created_at": batch.created_at,
        "ended_at": batch.ended_at,
        "total": batch.total,
        "queued": tally.queued,
        "running": tally.running,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "canceled": tally.canceled,
        "expired": tally.expired,
        "images": tally.images,
        "cost_usd": tally.cost.to_json(),
        "quoted_usd": batch.quoted.to_json(),
        "unpriced": tally.unpriced,
        "eta_seconds": view.eta_seconds,
        "waiting_for": None if view.trouble is None else view.trouble.reason,
        "folder": batch.details.get("folder"),
        "results": batch.details.get("results"),
    }


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
