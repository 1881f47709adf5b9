"""A batch from its file to its results: read, checked, quoted, accepted, watched, told."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from imagen.cli.batch_check import (
    FileQuote,
    Maker,
    Manifest,
    check_cost,
    check_mistakes,
    pace_of,
    prepare_rows,
    quote_of,
    read_file,
)
from imagen.cli.batch_here import Here
from imagen.cli.batch_results import STDOUT, ResultsFile, check_takes_files, record_of
from imagen.cli.batch_session import Desk, End, Interrupts, Session
from imagen.cli.batch_there import There
from imagen.cli.batch_view import BatchView, duration, progress_line
from imagen.cli.batches import checked_id, facts_of, server_option
from imagen.cli.exit_status import BACKEND, INTERRUPTED, PREDICTION, status_of_code
from imagen.cli.options import parts_at
from imagen.cli.output import on_terminal, print_json, print_lines, remark
from imagen.cli.render import PRACTICE, REAL, REAL_THERE, left_out_line
from imagen.cli.rows import Places, Reading
from imagen.domain.batch import BatchStatus, ItemStatus
from imagen.domain.money import Usd
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.service.deliver import Destination

if TYPE_CHECKING:
    from imagen.assembly import App, Remote
    from imagen.domain.batch import Item
    from imagen.service.batches import View

COMMAND = "imagen batch"
_PAGE = 500


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says.

    Attributes:
        file: as it was given; form: how it is written, where that was said.
        output: absolute; results: as it was given.
        common: what holds for rows that say nothing themselves.
        most: what all of it may cost.
        dry: check and quote only; new: begin another one beside an unfinished one.
    """

    common: GenerationRequest
    file: str | None = None
    form: str | None = None
    backend: str | None = None
    output: str | None = None
    results: str | None = None
    force: bool = False
    metadata: bool = True
    most: Usd | None = None
    dry: bool = False
    new: bool = False
    json: bool = False


class Batching(Maker, Protocol):
    """Makes batches, here or at a gateway."""

    async def unfinished(self, fingerprint: str) -> str | None:
        """The batch of a file of the same content that has not ended, if there is one."""

    async def accept(self, *, name: str, notes: Sequence[dict[str, Any]], details: dict[str, Any]) -> str:
        """Promise to make all that was prepared; its id."""

    async def work(self, batch_id: str) -> None:
        """Work on that batch until cancelled."""

    @property
    def in_line(self) -> Callable[[], int] | None:
        """Tells how many rows wait for a place or their turn now; None where nobody here knows."""

    def hold(self) -> None:
        """Buy nothing more."""


class Pages(Desk, Protocol):
    """A desk that shows items too."""

    async def items(
        self, batch_id: str, *, after: int = -1, limit: int = 100, status: ItemStatus | None = None
    ) -> Sequence[Item]:
        """Items in their order."""

    async def resume(self, batch_id: str) -> View:
        """Go on with it."""


async def start(app: App, wish: Wish, *, server: str | None) -> int:
    """A new batch; the exit status.

    Raises:
        ImagenError: nothing was bought.
    """
    if wish.file is None:
        raise InvalidRequest("Give a FILE, - for standard input, or --resume ID.")
    if wish.json and wish.results == STDOUT:
        raise InvalidInput(
            [Problem("results", "standard output has the JSON of --json already; name a file")]
        )
    parts = parts_at(server, app)
    here = parts is app
    maker = _maker(app, parts, wish.backend)
    manifest = read_file(wish.file, wish.form)
    places = Places(
        wish.output,
        default_folder=Path(app.settings.output)
        if app.settings.output
        else app.settings.data_dir / "pictures",
        name=manifest.name,
        rows=len(manifest.rows),
    )
    check_takes_files(places.folder, field="output")
    reading = Reading(
        common=wish.common,
        places=places,
        folder=manifest.folder,
        resolve=app.catalog.resolve,
        presets=app.settings.presets,
    )
    there = server_option(server)
    # By the content alone: with other options, or under another name, it would be bought twice no less.
    left = None if wish.new or wish.dry else await maker.unfinished(manifest.fingerprint)
    if left is not None:
        raise InvalidRequest(
            f"{manifest.shown} is the batch {left} already, which has not ended.",
            hint=f"`{COMMAND} --resume {left}{there}` goes on with it as it was begun; --new begins another one.",
        )
    place = Destination(force=wish.force, metadata=wish.metadata)
    prepared = await prepare_rows(maker, manifest, reading, place=place, dry=wish.dry)
    pace = await pace_of(maker, manifest, wish.common.semaphore)
    check_mistakes(manifest)
    for note in dict.fromkeys(note for one in prepared for note in one.notes):
        remark(left_out_line(note))
    quote = quote_of(prepared, pace)
    check_cost(quote, wish.most)
    results = ResultsFile.choose(wish.results, folder=places.folder, name=manifest.name, force=wish.force)
    if wish.dry:
        return _show_quote(manifest, quote, places, results, practice=maker.practice, json=wish.json)
    remark(_quote_line(manifest, quote, practice=maker.practice))
    await results.claim(force=wish.force)
    notes = [{"line": row.line, **({"item": row.item} if row.item else {})} for row in manifest.rows]
    details = {
        "command": COMMAND,
        "file": str(manifest.path or STDOUT),
        "fingerprint": manifest.fingerprint,
        "folder": str(places.folder),
        "results": str(results.path or STDOUT),
        "practice": maker.practice,
    }
    try:
        batch_id = await maker.accept(name=manifest.shown, notes=notes, details=details)
    except BaseException:
        results.give_back()
        raise
    remark(f"{batch_id}; if anything breaks off, `{COMMAND} --resume {batch_id}{there}` goes on")
    run = _Run(parts.batches, batch_id, results, details, wish, server=server, here=here)
    return await run.through(maker, after=0)


async def carry_on(app: App, batch_id: str, wish: Wish, *, server: str | None) -> int:
    """Go on with a batch that was begun before; the exit status.

    Raises:
        InvalidRequest: it is no batch of this command.
        ImagenError: it cannot be looked at.
    """
    if wish.file is not None:
        raise InvalidRequest("Give either FILE or --resume: a batch has the rows that it was accepted with.")
    parts = parts_at(server, app)
    here = parts is app
    view = await parts.batches.view(checked_id(batch_id, server))
    found = view.batch
    if found.details.get("command") != COMMAND:
        raise InvalidRequest(
            f"{found.id} was not begun by `{COMMAND}`{'' if here else ' on this machine'}.",
            hint=f"`imagen batches resume {found.id}{server_option(server)}` lets a gateway go on with it.",
        )
    path = found.details["results"]
    results = ResultsFile(None if path == STDOUT else Path(path))
    run = _Run(parts.batches, found.id, results, found.details, wish, server=server, here=here)
    if found.ended_at is not None and here:
        remark(f"{found.id} has ended: {progress_line(view)}")
        return await run.tell("ended")
    maker: Batching | None = _maker(app, parts, found.backend if here else None)
    if here and found.owner not in {None, app.owners.me} and app.owners.alive(found.owner or ""):
        remark(f"{found.id} is being worked on by another process, which goes on; this one only looks on")
        maker = None
    elif not view.status.terminal:
        await parts.batches.resume(found.id)
        remark(f"going on with {found.id}: {progress_line(view)}")
    return await run.through(maker, after=found.sequence)


def _maker(app: App, parts: App | Remote, backend: str | None) -> Batching:
    """Whoever makes the pictures."""
    from imagen.assembly import App as Local

    return Here(app, backend) if isinstance(parts, Local) else There(parts, backend)


class _Run:
    """An accepted batch, until it has been told how it went."""

    def __init__(
        self,
        desk: Pages,
        batch_id: str,
        results: ResultsFile,
        details: dict[str, Any],
        wish: Wish,
        *,
        server: str | None,
        here: bool,
    ) -> None:
        self._desk = desk
        self._id = batch_id
        self._results = results
        self._details = details
        self._json = wish.json
        self._there = server_option(server)
        self._here = here

    async def through(self, maker: Batching | None, *, after: int) -> int:
        """Work on it, or look on, until it ends or nobody wants to wait; then write the results."""
        interrupts = Interrupts()
        with interrupts.heard():
            with BatchView(quiet=self._json, in_line=None if maker is None else maker.in_line) as shown:
                session = Session(
                    self._desk,
                    self._id,
                    shown,
                    interrupts,
                    work=None if maker is None else partial(maker.work, self._id),
                    hold=(lambda: None) if maker is None else maker.hold,
                )
                end = await session.run(after=after)
            return await self.tell(end, watched=maker is None)

    async def tell(self, end: End, *, watched: bool = False) -> int:
        """Write the results and say how it went; the exit status."""
        if end != "left" or not watched:  # whoever works on it writes them
            await self._results.write(self._records())
        view = await self._desk.view(self._id)
        codes = await self._codes() if view.status.terminal else set()
        if self._json:
            print_json(self._report(view))
        elif self._results.path is not None and not on_terminal():
            print_lines([name async for record in self._records() for name in record["files"]])
        self._say(view, end)
        if end == "left" or (end == "paused" and view.batch.reason is None):
            return INTERRUPTED
        if end == "paused":
            return BACKEND
        if view.status is BatchStatus.SUCCEEDED:
            return 0
        return codes.pop() if len(codes) == 1 else PREDICTION

    async def _items(self) -> AsyncIterator[Item]:
        after = -1
        while page := await self._desk.items(self._id, after=after, limit=_PAGE):
            for item in page:
                yield item
            after = page[-1].index

    async def _records(self) -> AsyncIterator[dict[str, Any]]:
        async for item in self._items():
            yield record_of(item)

    async def _codes(self) -> set[int]:
        """Whose fault the rows without pictures are, as exit statuses."""
        return {
            status_of_code(item.code)
            async for item in self._items()
            if item.status is not ItemStatus.SUCCEEDED
        }

    def _say(self, view: View, end: End) -> None:
        batch = view.batch
        remark(f"{batch.id} {view.status}: {progress_line(view)}")
        if view.tally.images:
            remark(f"pictures in {self._details['folder']}")
        if self._results.path is not None:
            remark(f"results in {self._results.path}")
        if not view.status.terminal:
            if batch.reason is not None and end == "paused":
                remark(f"imagen: paused: {batch.reason}")
            remark(f"go on with: {COMMAND} --resume {batch.id}{self._there}")
        elif view.status is not BatchStatus.SUCCEEDED:
            again = f"imagen batches retry {batch.id}{self._there}"
            remark(f"try those without a picture again with: {again}")
        if self._details.get("practice"):
            remark(PRACTICE)
            remark(REAL if self._here else REAL_THERE)

    def _report(self, view: View) -> dict[str, Any]:
        resume = None if view.status.terminal else f"{COMMAND} --resume {view.batch.id}{self._there}"
        return facts_of(view) | {
            "folder": self._details["folder"],
            "results": None if self._results.path is None else str(self._results.path),
            "resume": resume,
            "practice": bool(self._details.get("practice")),
        }


def _quote_line(manifest: Manifest, quote: FileQuote, *, practice: bool) -> str:
    rows = f"{quote.rows} {'row' if quote.rows == 1 else 'rows'}"
    pictures = f"{quote.images} {'picture' if quote.images == 1 else 'pictures'}"
    cost = f"about {quote.cost}" + (f" and {quote.unpriced} of unknown price" if quote.unpriced else "")
    if practice:
        cost = "practice, which costs nothing"
    parts = [f"{manifest.shown}: {rows}, {pictures}", cost]
    if quote.seconds is not None:
        parts.append(f"{duration(quote.seconds)} at least ({quote.binds})")
    return ", ".join(parts)


def _show_quote(
    manifest: Manifest, quote: FileQuote, places: Places, results: ResultsFile, *, practice: bool, json: bool
) -> int:
    """What a dry run found out."""
    if json:
        print_json(
            {
                "rows": quote.rows,
                "predictions": quote.predictions,
                "images": quote.images,
                "quoted_usd": quote.cost.to_json(),
                "unpriced": quote.unpriced,
                "seconds": quote.seconds,
                "bound_by": quote.binds or None,
                "folder": str(places.folder),
                "results": None if results.path is None else str(results.path),
                "practice": practice,
            }
        )
    else:
        print_lines([_quote_line(manifest, quote, practice=practice)])
        sys.stdout.flush()
    remark("nothing was bought")
    return 0
