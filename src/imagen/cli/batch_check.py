"""A whole file, checked before anything of it is bought: every mistake with its line, and what all of it will cost."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from imagen.cli.output import remark
from imagen.cli.rows import SEMAPHORE_FIELDS
from imagen.cli.tables import shorten
from imagen.domain.money import Usd
from imagen.domain.quote import Quote
from imagen.errors import (
    BudgetExceeded,
    InputRejected,
    InvalidInput,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Problem,
)
from imagen.pictures import NameFields, OutputPattern, check_writable
from imagen.service.deliver import Destination
from imagen.service.manifest import (
    FORMS,
    MOST_BYTES,
    MOST_KEPT,
    MOST_SHOWN,
    Form,
    Mistakes,
    Row,
    form_of,
    gather_rows,
)

if TYPE_CHECKING:
    from imagen.cli.rows import Reading, Wanted
    from imagen.domain.events import LeftOut
    from imagen.domain.prediction import Prediction
    from imagen.domain.request import GenerationRequest

STDIN = "-"
_CREATES = "{:g} creates a minute"
_AT_ONCE = "{} at once"
_MISTAKE_COLUMNS = 500


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """One row as it is going to be bought.

    Attributes:
        intents: its predictions, each with the pictures that it gives and the seconds that it usually takes.
        semaphore: a named limit that each of them waits for.
        notes: what a preset offers and its model does not take.
    """

    intents: tuple[tuple[Prediction, int, float | None], ...]
    semaphore: str | None = None
    notes: Sequence[LeftOut] = ()


class Maker(Protocol):
    """Whoever makes the pictures: this process, or a gateway."""

    @property
    def practice(self) -> bool:
        """Whether the emulator paints and no model is run."""

    async def prepare(self, request: GenerationRequest, destination: Destination | None) -> Prepared:
        """Check a request, and keep it for `accept`.

        Raises:
            InvalidRequest, Refused, ConfigError, BackendError: it cannot be carried out.
        """

    async def pace(self, semaphores: Sequence[str]) -> Pace:
        """How fast it may go. Semaphores that there are not are left out."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast predictions may go; None where nobody says.

    Attributes:
        creates_per_minute, concurrent: of the account.
        semaphores: places by name, of those that were asked for and that there are.
    """

    creates_per_minute: float | None = None
    concurrent: int | None = None
    semaphores: Mapping[str, int] = {}


class FileQuote(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole file comes to.

    Attributes:
        rows, predictions, images: how many.
        cost: what those are likely to cost whose price is known; unpriced: rows whose price is not.
        high: the most that all of it can cost; None when nobody knows.
        seconds: how long it takes at least, where something is known of that; binds: what keeps it from being quicker.
    """

    rows: int
    predictions: int
    images: int
    cost: Usd
    unpriced: int
    high: Usd | None
    seconds: float | None = None
    binds: str = ""


# --- reading ---------------------------------------------------------------------------------------------


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A file of rows.

    Attributes:
        path: absolute; None for standard input.
        name: without folder and ending, for names of ours.
        shown: how sentences name it.
        folder: where files that it names are looked for.
        rows: those that can be read.
        mistakes: what is wrong with the others; hint: what to do about them.
        fingerprint: sha256 of its content, in hex.
    """

    path: Path | None
    name: str
    shown: str
    folder: Path
    rows: list[Row]
    mistakes: Mistakes
    hint: str | None
    fingerprint: str


def read_file(given: str, form: str | None) -> Manifest:
    """Read the file that the command line names.

    Raises:
        InvalidRequest: it cannot be read, or its form is not known.
        InvalidInput: it is not of that form as a whole.
    """
    wanted = _read_form(form)
    if given == STDIN:
        with _ends_at_once():
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
        path, name, shown, folder = None, "batch", "standard input", Path.cwd()
        wanted = wanted or "jsonl"
    else:
        path = Path.cwd() / Path(given).expanduser()
        content = _content_of(path, given)
        name, shown, folder = path.stem or "batch", path.name, path.parent
        wanted = wanted or form_of(path.name)
    if wanted is None:
        raise InvalidRequest(
            f"{shown}: its name does not tell how it is written.",
            hint=f"Give --format {' or '.join(sorted(set(FORMS.values())))}.",
        )
    found = gather_rows(content, form=wanted, subject=shown)
    return Manifest(
        path=path,
        name=name,
        shown=shown,
        folder=folder,
        rows=found.rows,
        mistakes=found.mistakes,
        hint=found.hint,
        fingerprint=hashlib.sha256(content).hexdigest(),
    )


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block at once: the loop, which hears them else, has no turn while it waits for input."""
    heard = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
    before = [(one, signal.signal(one, signal.default_int_handler)) for one in heard]
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)


def _read_form(text: str | None) -> Form | None:
    if text is None:
        return None
    forms = {form: form for form in FORMS.values()} | {ending[1:]: form for ending, form in FORMS.items()}
    found = forms.get(text.strip().lower())
    if found is None:
        known = " or ".join(sorted(set(FORMS.values())))
        raise InvalidInput([Problem("format", f"{text[:40]!r} is not known; it is {known}")])
    return found


def _content_of(path: Path, given: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or "that is no path"
        raise InvalidRequest(f"{given[:200]} cannot be read: {reason[0].lower()}{reason[1:]}.") from None


# --- checking --------------------------------------------------------------------------------------------


async def prepare_rows(
    maker: Maker, manifest: Manifest, reading: Reading, *, place: Destination, dry: bool
) -> list[Prepared]:
    """Check every row that can be read; nothing is bought.

    Args:
        maker: keeps what was prepared, in order.
        manifest: the rows; its mistakes get those that are found here.
        reading: makes requests of them.
        place: what holds for the pictures of all.
        dry: touch no folder.

    Raises:
        Refused, ConfigError, BackendError: nothing can be bought at all.
    """
    mistakes = manifest.mistakes
    prepared: list[Prepared] = []
    taken: dict[Path, Row] = {}
    missing: dict[str, str] = {}
    for number, row in enumerate(manifest.rows, start=1):
        wrong = partial(mistakes.add, row.line, item=row.item)
        try:
            wanted = reading.wanted(row, number)
            destination = msgspec.structs.replace(place, output=wanted.output)
            model = str(wanted.request.model)
            if model in missing:
                wrong(missing[model], field="model")
                continue
            one = await maker.prepare(wanted.request, None if dry else destination)
            _check_places(one, wanted, row, taken, force=place.force)
            prepared.append(one)
        except InvalidInput as error:
            mistakes.add_error(row, error)
        except (ModelNotFound, NotFound) as error:
            missing[str(wanted.request.model)] = error.detail
            wrong(error.detail, field="model")
        except InputRejected as error:
            wrong(error.detail)
        except InvalidRequest as error:
            wrong(str(error))
        except BudgetExceeded as error:
            error.detail = f"{manifest.shown}, {row.place}: {error.detail}"
            raise
    return prepared


async def pace_of(maker: Maker, manifest: Manifest, common: str | None) -> Pace:
    """How fast the rows may go; semaphores that there are not become mistakes of the lines that name them first.

    Args:
        maker: knows the semaphores.
        manifest: the rows; its mistakes get those that are found here.
        common: the semaphore of rows that name none.
    """
    first: dict[str, tuple[Row, str]] = {}
    named: Counter[str] = Counter()
    for row in manifest.rows:
        for field in SEMAPHORE_FIELDS & row.fields.keys():
            name = str(row.fields[field]).strip()
            first.setdefault(name, (row, field))
            named[name] += 1
    pace = await maker.pace(sorted({*first, *([common] if common else [])}))
    for name, (row, field) in first.items():
        if name not in pace.semaphores:
            others = f"; {named[name]:,} rows name it" if named[name] > 1 else ""
            manifest.mistakes.add(row.line, _no_semaphore(name) + others, item=row.item, field=field)
    if common and common not in pace.semaphores and common not in first:
        manifest.mistakes.add(0, _no_semaphore(common), field="--semaphore")
    return pace


def _no_semaphore(name: str) -> str:
    return f"no semaphore is called {name[:100]!r}; `imagen semaphore list` names those there are"


def check_mistakes(manifest: Manifest) -> None:
    """Go on where nothing is wrong. Several mistakes stand in a line each, before the error that counts them.

    Raises:
        InvalidInput: naming the mistakes, many for programs.
    """
    mistakes = manifest.mistakes
    if not mistakes.count:
        return
    error = mistakes.error(
        hint=" ".join(filter(None, (manifest.hint, "Nothing was bought."))), most=MOST_KEPT
    )
    if mistakes.count > 1:
        for problem in mistakes.first(MOST_SHOWN):
            remark(shorten(str(problem), _MISTAKE_COLUMNS))
        if mistakes.count > MOST_SHOWN:
            remark(f"and {mistakes.count - MOST_SHOWN:,} more; --json names up to {MOST_KEPT:,}")
        error.detail = f"{manifest.shown}: it has {mistakes.count:,} mistakes"
    raise error


def _check_places(one: Prepared, wanted: Wanted, row: Row, taken: dict[Path, Row], *, force: bool) -> None:
    """Refuse a place that another row has already, or that has a file.

    Raises:
        InvalidInput: for the field `output`.
    """
    pattern = OutputPattern.parse(wanted.output, default_folder=Path())
    total, first = sum(images for _, images, _ in one.intents), 1
    for intent, images, _ in one.intents:
        fields = NameFields(
            prompt=intent.prompt,
            model=intent.model,
            seed=intent.seed,
            id=intent.id,
            at=intent.created_at.astimezone(),
        )
        for index in range(first, first + images):
            path = pattern.path_for(index, total, fields, "png")
            other = taken.setdefault(path, row)
            if other is not row:
                raise InvalidInput(
                    [Problem("output", f"{path.name} is the picture of {other.place} already")]
                )
            check_writable(path, force=force)
        first += images


def quote_of(prepared: Sequence[Prepared], pace: Pace) -> FileQuote:
    """What all rows come to."""
    cost, unpriced, images, predictions = Usd(0), 0, 0, 0
    seconds, known = 0.0, True
    waits: dict[str, float] = {}
    for one in prepared:
        likely = [intent.quote.likely for intent, _, _ in one.intents]
        cost += Usd.total(amount for amount in likely if amount is not None)
        unpriced += None in likely
        predictions += len(one.intents)
        images += sum(count for _, count, _ in one.intents)
        lasts = [usual for _, _, usual in one.intents]
        known = known and None not in lasts
        took = sum(usual or 0.0 for usual in lasts)
        seconds += took
        if one.semaphore is not None:
            waits[one.semaphore] = waits.get(one.semaphore, 0.0) + took
    bounds: list[tuple[float, str]] = []
    if pace.creates_per_minute:
        bounds.append((predictions * 60 / pace.creates_per_minute, _CREATES.format(pace.creates_per_minute)))
    if pace.concurrent and known:
        bounds.append((seconds / min(pace.concurrent, max(predictions, 1)), _AT_ONCE.format(pace.concurrent)))
    for name, places in pace.semaphores.items():
        if known and places and name in waits:
            bounds.append((waits[name] / places, f"semaphore {name}, {_AT_ONCE.format(places)}"))
    longest, binds = max(bounds, default=(None, ""))
    return FileQuote(
        rows=len(prepared),
        predictions=predictions,
        images=images,
        cost=cost,
        unpriced=unpriced,
        high=Quote.total(intent.quote for one in prepared for intent, _, _ in one.intents).high,
        seconds=longest if known else None,
        binds=binds if known else "",
    )


def check_cost(quote: FileQuote, most: Usd | None) -> None:
    """Refuse what could cost more than is allowed.

    Raises:
        BudgetExceeded: it could, or nobody knows.
    """
    if most is None:
        return
    if quote.high is None:
        which = f"the price of {quote.unpriced} rows" if quote.unpriced else "what this can cost at most"
        raise BudgetExceeded(
            f"{which} is not known, so the whole cannot be held below {most}; nothing was bought",
            hint="Leave --max-cost away to buy them all the same.",
        )
    if quote.high > most:
        range_ = "" if quote.high == quote.cost else "up to "
        raise BudgetExceeded(
            f"this costs {range_}{quote.high}, more than the {most} that you allow; nothing was bought",
            quote_micros=quote.high.micros,
        )
