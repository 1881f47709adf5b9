"""Tiered work on a command line: cheap previews, a sheet to choose from, and finals of those that are picked."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from imagen.cli.drafts_makers import FIELD, FinalQuote, Here, Maker, RoundQuote, There
from imagen.cli.exit_status import exit_status
from imagen.cli.output import print_json, print_lines, remark
from imagen.cli.pictures import show_pictures
from imagen.cli.render import (
    PRACTICE,
    REAL,
    REAL_THERE,
    Renderer,
    build_report,
    left_out_line,
    show_outcome,
)
from imagen.domain.draft import MOST_PREVIEWS, Spent
from imagen.domain.money import Usd, to_dollars
from imagen.domain.prediction import Prediction
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.errors import ImagenError, InvalidInput, InvalidRequest, Problem
from imagen.pictures import OutputPattern, Tile, contact_sheet, land
from imagen.service.choice_shapes import quote_range
from imagen.service.deliver import Destination
from imagen.service.drafts import seeds_for

if TYPE_CHECKING:
    from imagen.assembly import App, Remote
    from imagen.service.finish import Outcome

SHEET = "contact-sheet.png"
_LONGEST_LINE = 1024


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """How results are shown.

    Attributes:
        json: as one object; show: pictures in the terminal, None by the setting.
        urls: addresses too; yes: nobody is asked before something is bought.
    """

    json: bool = False
    show: bool | None = None
    urls: bool = False
    yes: bool = False

    @property
    def asks(self) -> bool:
        """Whether there is somebody to be asked."""
        return not self.json and all(
            stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)
        )


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line wants.

    Attributes:
        request: the wish for the final.
        destination: where finals go; previews go into a folder of their own beside them.
        count: how many previews.
        picks: numbers of previews, from 1; None lets somebody choose.
    """

    request: GenerationRequest
    destination: Destination
    count: int
    picks: tuple[int, ...] | None
    look: Look


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round of previews.

    Attributes:
        folder: of the pictures; sheet: all of them in one; None where that could not be written.
    """

    quote: RoundQuote
    outcomes: Sequence[Outcome]
    folder: Path
    sheet: Path | None


def check_draft(count: int, picks: str | None, request: GenerationRequest) -> tuple[int, ...] | None:
    """The numbers that were picked.

    Raises:
        InvalidInput: a number is out of range, or is no number; or something cannot be said with previews.
    """
    problems = []
    if not 1 <= count <= MOST_PREVIEWS:
        problems.append(Problem(FIELD, f"{count} is not allowed; it must be from 1 to {MOST_PREVIEWS}"))
    if request.count != 1:
        problems.append(Problem("count", "with previews, each one that is picked becomes one final"))
    if problems:
        raise InvalidInput(problems)
    return None if picks is None else _numbers(picks, count)


async def run_draft(
    app: App, parts: App | Remote, backend: str | None, draft: Draft, renderer: Renderer
) -> int:
    """Make previews, let somebody pick, make the finals; the exit status.

    Raises:
        ImagenError: before anything was bought.
    """
    from imagen.assembly import App as Local

    maker: Maker = Here(app, backend) if isinstance(parts, Local) else There(parts, app, backend)
    flow = _Flow(app, maker, draft, renderer, name=parts.drafts.new_draft(), here=parts is app)
    return await flow.run()


class _Flow:
    """One draft, from its first round to its finals."""

    def __init__(
        self, app: App, maker: Maker, draft: Draft, renderer: Renderer, *, name: str, here: bool
    ) -> None:
        self._app = app
        self._maker = maker
        self._draft = draft
        self._look = draft.look
        self._renderer = renderer
        self._name = name
        self._here = here
        self._planned: tuple[RoundQuote, Path] | None = None
        self._rounds: list[Round] = []
        self._finals: list[tuple[int, FinalQuote, Sequence[Outcome]]] = []
        self._refused: list[ImagenError] = []

    async def run(self) -> int:
        """All of it; the exit status."""
        seed = self._draft.request.seed
        await self._plan(seeds_for(self._draft.count, seed))
        latest = await self._make()
        while (picks := await self._picks(latest)) is None:
            seed = None if seed is None else seed + self._draft.count
            try:
                await self._plan(seeds_for(self._draft.count, seed))
            except ImagenError as error:  # those that are there can be picked all the same
                remark(f"imagen: {error}")
            else:
                latest = await self._make()
        for position, number in enumerate(picks, start=1):
            try:
                await self._final(latest, number, position=position, total=len(picks))
            except ImagenError as error:  # the previews are there all the same
                remark(f"imagen: {error}")
                self._refused.append(error)
        return await self._told(latest)

    async def _picks(self, latest: Round) -> tuple[int, ...] | None:
        """What becomes a final; None where somebody wants to see others first."""
        if self._draft.picks is not None:
            return self._draft.picks
        if self._look.asks and any(one.pictures for one in latest.outcomes):
            return await self._ask(latest)
        return ()

    async def _plan(self, seeds: Sequence[int]) -> None:
        """Plan a round and say what it costs. It may have what the rounds before it left of `--max-cost`."""
        folder = self._new_folder()
        quote = await self._maker.plan_round(
            msgspec.structs.replace(self._draft.request, max_cost=self._left()),
            seeds=seeds,
            draft=self._name,
            places=[
                msgspec.structs.replace(
                    self._draft.destination, output=f"{_escaped(folder)}/{number}-{{model}}-{{seed}}.{{ext}}"
                )
                for number in range(1, len(seeds) + 1)
            ],
        )
        remark(_quote_line(len(seeds), quote, practice=self._maker.practice))
        self._planned = (quote, folder)

    async def _make(self) -> Round:
        """Buy the round that was planned, and show it."""
        if self._planned is None:
            raise RuntimeError("a round is planned before it is made")
        quote, folder = self._planned
        with self._renderer:
            outcomes = await self._maker.make_round(self._renderer, watched=self._renderer.shows_progress)
        latest = Round(quote=quote, outcomes=outcomes, folder=folder, sheet=_sheet(folder, outcomes))
        self._rounds.append(latest)
        if latest.sheet is not None:
            show_pictures(
                [latest.sheet],
                wanted=self._look.show,
                setting=self._app.settings.terminal.pictures,
                json=self._look.json,
            )
        for number, outcome in enumerate(outcomes, start=1):
            remark(f"--- {number}")
            show_outcome(outcome, json=self._look.json, urls=self._look.urls)
        if latest.sheet is not None:
            remark(f"contact sheet {latest.sheet}")
        return latest

    async def _ask(self, latest: Round) -> tuple[int, ...] | None:
        """What somebody picks; None for other seeds, nothing for none of them."""
        while True:
            remark(
                f"Which shall be made on {latest.quote.final_model}? 1 to {len(latest.outcomes)} (several: 1,3), "
                "r for others, q for none:"
            )
            answer = (await read_line()).strip().lower()
            if answer in {"", "q", "quit"}:
                return ()
            if answer == "r":
                return None
            try:
                numbers = _numbers(answer, len(latest.outcomes))
                for number in numbers:
                    _picked(latest, number)
            except ImagenError as error:
                remark(f"imagen: {error}")
                continue
            return numbers

    async def _final(self, latest: Round, number: int, *, position: int, total: int) -> None:
        preview = _picked(latest, number)
        said = GenerationRequest(
            prompt="",
            max_cost=self._left(),
            deadline_seconds=self._draft.request.deadline_seconds,
            semaphore=self._draft.request.semaphore,
            repeat_lost=self._draft.request.repeat_lost,
            resume=self._draft.request.resume,
            cache=self._draft.request.cache,
        )
        place = msgspec.structs.replace(self._draft.destination, first=position, total=total)
        quote, outcomes = await make_final(
            self._maker,
            preview.id,
            said,
            destination=place,
            # Whoever named the numbers before has agreed already.
            look=msgspec.structs.replace(self._look, yes=self._look.yes or self._draft.picks is not None),
            renderer=self._renderer,
        )
        if outcomes:
            self._finals.append((number, quote, outcomes))
            show_finals(self._app, outcomes, look=self._look)

    def _left(self) -> Usd | None:
        """What of `--max-cost` is left for what comes next: nothing where nobody knows what was spent."""
        most = self._draft.request.max_cost
        return None if most is None else left_of(most, self._made())

    def _made(self) -> list[Prediction]:
        previews = [outcome.prediction for latest in self._rounds for outcome in latest.outcomes]
        return previews + [outcome.prediction for _, _, outcomes in self._finals for outcome in outcomes]

    def _new_folder(self) -> Path:
        """A folder that is not there yet, beside where finals go."""
        settings = self._app.settings
        default = Path(settings.output) if settings.output else settings.data_dir / "pictures"
        base = OutputPattern.parse(self._draft.destination.output, default_folder=default).folder.absolute()
        stamp = f"{self._app.clock.now().astimezone():%Y%m%d-%H%M%S}"
        names = [f"previews-{stamp}", *(f"previews-{stamp}-{number}" for number in range(2, 100))]
        return next((base / name for name in names if not (base / name).exists()), base / names[0])

    async def _told(self, latest: Round) -> int:
        """Say how it went; the exit status."""
        outcomes = [*latest.outcomes, *(one for _, _, finals in self._finals for one in finals)]
        spent = await self._maker.spent(self._made()) if self._finals else None
        practice = any(one.prediction.practice for one in outcomes)
        if self._look.json:
            print_json(self._report(latest, spent, practice=practice))
        if spent is not None:
            remark(str(spent))
        elif not self._finals and (first := next((one for one in latest.outcomes if one.pictures), None)):
            remark(f"make the final of one with: imagen promote {first.prediction.id}")
        if practice:
            remark(PRACTICE)
            remark(REAL if self._here else REAL_THERE)
        if self._finals:
            failed = [one for _, _, finals in self._finals for one in finals if one.error is not None]
        else:
            failed = [one for one in latest.outcomes if one.error is not None]
            failed = failed if len(failed) == len(latest.outcomes) else []
        errors = [*self._refused, *(one.error for one in failed if one.error is not None)]
        return exit_status(errors[0]) if errors else 0

    def _report(self, latest: Round, spent: Spent | None, *, practice: bool) -> dict[str, Any]:
        quote = latest.quote
        previews = [build_report([one], practice=practice) for one in latest.outcomes]
        return {
            "draft": self._name,
            "preview_model": latest.outcomes[0].prediction.model,
            "final_model": quote.final_model,
            "quote": {
                "previews": msgspec.to_builtins(quote_range(quote.previews)),
                "final": msgspec.to_builtins(quote_range(quote.final)),
            },
            "previews": [{"number": number, **one} for number, one in enumerate(previews, start=1)],
            "contact_sheet": None if latest.sheet is None else str(latest.sheet),
            "picked": [number for number, _, _ in self._finals],
            "finals": [final_report(told, outcomes, practice=practice) for _, told, outcomes in self._finals],
            "errors": [{"error": one.code, "detail": one.detail, "hint": one.hint} for one in self._refused],
            "left_out": self._renderer.left_out,
            "spent": spent_json(spent),
            "practice": practice,
        }


def left_of(most: Usd, made: Iterable[Prediction]) -> Usd:
    """What is left of `most` after what was made. What may still be billed counts as much as it can cost."""
    spent = Usd.total_or_none(one.quote.high if one.spent is None else one.spent for one in made)
    return Usd(0) if spent is None else max(most - spent, Usd(0))


# --- finals ----------------------------------------------------------------------------------------------


async def make_final(
    maker: Maker,
    preview_id: str,
    said: GenerationRequest,
    *,
    destination: Destination | None,
    look: Look,
    renderer: Renderer,
) -> tuple[FinalQuote, Sequence[Outcome]]:
    """The final of one preview: told, agreed to and made. No outcomes where somebody said no.

    Raises:
        ImagenError: before it was bought.
    """
    quote = await maker.plan_final(preview_id, said, destination=destination)
    remark(_final_line(quote, practice=maker.practice))
    for note in quote.notes:
        renderer.tell_left_out(note)
    if look.asks and not look.yes and not await _agrees():
        remark("nothing was bought")
        return quote, []
    with renderer:
        return quote, await maker.make_final(renderer, watched=renderer.shows_progress)


def show_finals(app: App, outcomes: Sequence[Outcome], *, look: Look) -> None:
    """What came of a final, with its pictures where the terminal can show them."""
    pictures = [picture.path for outcome in outcomes for picture in outcome.pictures]
    show_pictures(pictures, wanted=look.show, setting=app.settings.terminal.pictures, json=look.json)
    for outcome in outcomes:
        show_outcome(outcome, json=look.json, urls=look.urls)


def show_final_quote(quote: FinalQuote, *, parent: str, json: bool) -> None:
    """What a final would be and cost, as the answer."""
    if not json:
        print_lines([_final_line(quote), *map(left_out_line, quote.notes)])
        return
    print_json(
        {
            "model": quote.model,
            "seed": quote.seed,
            "parent": parent,
            "quote": msgspec.to_builtins(quote_range(quote.quote)),
            "saved_usd": to_dollars(quote.saved),
            "left_out": [name for note in quote.notes for name in note.fields],
        }
    )


def final_report(quote: FinalQuote, outcomes: Sequence[Outcome], *, practice: bool) -> dict[str, Any]:
    """A final for machines."""
    left_out = [name for note in quote.notes for name in note.fields]
    return {
        **build_report(outcomes, practice=practice),
        "quote": msgspec.to_builtins(quote_range(quote.quote)),
        "left_out": left_out,
    }


def spent_json(spent: Spent | None) -> dict[str, Any] | None:
    """What a draft came to, in dollars; null where a price is not known."""
    if spent is None:
        return None
    amounts = {
        "previews_usd": spent.previews_cost,
        "finals_usd": spent.finals_cost,
        "instead_usd": spent.instead,
        "saved_usd": spent.saved,
    }
    return {
        "previews": spent.previews,
        "finals": spent.finals,
        **{name: to_dollars(amount) for name, amount in amounts.items()},
    }


# --- asking ----------------------------------------------------------------------------------------------


async def read_line() -> str:
    """A line from the terminal, without keeping the loop; empty at its end."""
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    typed: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        if not typed.done():
            try:
                typed.set_result(os.read(keyboard, _LONGEST_LINE))
            except OSError:  # the terminal has gone
                typed.set_result(b"")

    loop.add_reader(keyboard, read)
    try:
        return (await typed).decode("utf-8", "replace")
    finally:
        loop.remove_reader(keyboard)


async def _agrees() -> bool:
    remark("Make it? [Y/n]")
    return (await read_line()).strip().lower() in {"", "y", "yes"}


def _numbers(text: str, count: int) -> tuple[int, ...]:
    """Numbers of previews, each once.

    Raises:
        InvalidInput: one is none, or there are not so many.
    """
    numbers = []
    for part in text.replace(" ", ",").split(","):
        if not part:
            continue
        if not part.isascii() or not part.isdigit() or not 1 <= int(part[:9]) <= count:
            raise InvalidInput(
                [Problem("pick", f"{part[:20]!r} is not allowed; it must be a number from 1 to {count}")]
            )
        numbers.append(int(part))
    if not numbers:
        raise InvalidInput([Problem("pick", "it names no preview")])
    return tuple(dict.fromkeys(numbers))


def _picked(latest: Round, number: int) -> Prediction:
    """The preview of a number.

    Raises:
        InvalidRequest: it has no picture.
    """
    outcome = latest.outcomes[number - 1]
    if not outcome.pictures:
        raise InvalidRequest(f"preview {number} has no picture, so there is nothing to make a final of")
    return outcome.prediction


def _sheet(folder: Path, outcomes: Sequence[Outcome]) -> Path | None:
    """All previews of a round as one picture in their folder; None where there is none of them."""
    tiles = [
        Tile(
            one.pictures[0].path if one.pictures else None,
            "" if one.prediction.seed is None else f"seed {one.prediction.seed}",
        )
        for one in outcomes
    ]
    if all(tile.path is None for tile in tiles):
        return None
    try:
        return land(contact_sheet(tiles), folder / SHEET, force=True)
    except ImagenError as error:
        remark(f"warning: the contact sheet could not be written: {error}")
        return None


def _quote_line(count: int, quote: RoundQuote, *, practice: bool) -> str:
    many = f"{count} {'preview' if count == 1 else 'previews'}"
    if practice:
        return f"{many}, then {quote.final_model}: practice, which costs nothing"
    return f"{many} on {quote.model}: {_cost(quote.previews)}; a final on {quote.final_model}: {_cost(quote.final)}"


def _final_line(quote: FinalQuote, *, practice: bool = False) -> str:
    seed = "" if quote.seed is None else f", seed {quote.seed}"
    cost = "practice, which costs nothing" if practice else _cost(quote.quote)
    return f"final: {quote.model}{seed}, {cost}"


def _cost(quote: Quote) -> str:
    return "unknown price" if quote.likely is None and quote.high is None else str(quote)


def _escaped(folder: Path) -> str:
    return str(folder).replace("{", "{{").replace("}", "}}")
