"""The results file of a batch: line i tells what became of row i of the input. It is replaced whole, or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from imagen.domain.money import to_dollars
from imagen.errors import DeliveryError, InvalidInput, Problem
from imagen.pictures import Landing, check_writable
from imagen.service.manifest import place_of
from imagen.service.orders import see_order

if TYPE_CHECKING:
    from imagen.domain.batch import Item

STDOUT = "-"
ENDING = ".results.jsonl"
_PAGE = 500


def record_of(item: Item) -> dict[str, Any]:
    """What a results line tells of an item. Numbers and texts that nobody knows yet are null."""
    order = see_order(item.order)
    seed = item.seed if item.seed is not None else order.seed
    ended = item.status.terminal
    return {
        "index": item.index,
        "line": item.note.get("line"),
        "status": item.status.value,
        "prompt": order.prompt,
        "files": [name for name in item.files if name and not name.startswith("shelf:")],
        "error": item.error,
        "code": item.code,
        "prediction_ids": list(item.predictions),
        "seed": seed,
        "cost_usd": to_dollars(item.cost) if ended else None,
        "quoted_usd": to_dollars(order.quote.likely),
        "charged": item.charged,
        "attempts": item.attempt,
        "item": item.note.get("item"),
    }


def row_of(item: Item) -> str:
    """How sentences name the row of an item: by where it stands in the file."""
    return place_of(item.note.get("line", item.index + 1), item.note.get("item"))


class ResultsFile:
    """Where the results go.

    Args:
        path: a file, absolute; None for standard output.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def choose(cls, wanted: str | None, *, folder: Path, name: str, force: bool) -> ResultsFile:
        """The place for the results of a new batch.

        Args:
            wanted: what `--results` says; None for a name of ours beside `folder`, `-` for standard output.
            folder: of the pictures.
            name: of the input, without its ending.
            force: a file that was named may be replaced.

        Raises:
            InvalidInput: for the field `results`: it cannot be written.
        """
        if wanted == STDOUT:
            return cls(None)
        path = folder.parent / f"{name}{ENDING}" if wanted is None else Path.cwd() / Path(wanted).expanduser()
        if wanted is not None and (wanted.endswith(os.sep) or os.path.isdir(path)):  # noqa: PTH112 - never raises
            problem = Problem("results", f"{wanted} is a folder; it must be a file, or - for standard output")
            raise InvalidInput([problem])
        try:
            check_writable(path, force=force or wanted is None)
        except InvalidInput as error:
            problems = [Problem("results", problem.message) for problem in error.problems]
            raise InvalidInput(problems, hint=error.hint) from None
        check_takes_files(path.parent, field="results")
        return cls(path)

    async def claim(self, *, force: bool) -> None:
        """Take the name; without `force`, the next free one beside it."""
        if self.path is not None:
            self.path = await asyncio.to_thread(_land, b"", self.path, force=force)

    def give_back(self) -> None:
        """The batch did not come about."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    async def write(self, records: AsyncIterator[dict[str, Any]]) -> None:
        """Replace what is there.

        Raises:
            DeliveryError: no space, no permission, and the like.
        """
        lines = [msgspec.json.encode(record) async for record in records]
        if self.path is None:
            for line in lines:
                sys.stdout.write(line.decode() + "\n")
            sys.stdout.flush()
            return
        await asyncio.to_thread(_land, _joined(lines), self.path, force=True)


def check_takes_files(folder: Path, *, field: str) -> None:
    """Find out whether files can be made in a folder, or in the one in which it would be made. Nothing stays there.

    Permissions do not tell all: a file system of the kernel, or a full disk, says no only when it comes to it.

    Raises:
        InvalidInput: for `field`.
    """
    nearest = next(one for one in (folder, *folder.parents) if os.path.isdir(one) or one == one.parent)  # noqa: PTH112 - never raises
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = "it takes no files" if error.errno == errno.ENOENT else (error.strerror or "").lower()
        problem = Problem(
            field, f"nothing can be written to {nearest} ({reason}); it must lie in a folder that takes files"
        )
        raise InvalidInput([problem], hint="Choose another place.") from None


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _land(data: bytes, path: Path, *, force: bool) -> Path:
    try:
        with Landing(path, force=force) as landing:
            landing.write(data)
            return landing.commit()
    except DeliveryError as error:
        error.detail = error.detail.replace("The picture", "The results file", 1)
        error.hint = None if error.hint is None else error.hint.replace("-o", "--results")
        raise
