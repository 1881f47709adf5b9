"""What a person sees while pictures are made, and what remains when they are there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

from imagen.cli.exit_status import exit_status
from imagen.cli.output import on_terminal, print_json, remark
from imagen.domain import events
from imagen.domain.aspect_ratio import aspect_ratio_of
from imagen.domain.inside import is_inside
from imagen.domain.money import Usd, to_dollars
from imagen.domain.prediction import Prediction
from imagen.errors import Refused, money_facts

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from imagen.domain.budget import Shortage
    from imagen.service.finish import Outcome

PRACTICE = "practice: these pictures come from the built-in emulator, not from a model, and cost nothing."
REAL = "For real ones set REPLICATE_API_TOKEN or run `imagen auth login`."
REAL_THERE = "For real ones set REPLICATE_API_TOKEN where the gateway runs."


class Renderer:
    """An observer that shows progress on stderr: a bar in a terminal, lines for what matters elsewhere.

    Args:
        quiet: no bar; only what the user must know.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._bar = not quiet and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._notes: set[events.LeftOut] = set()
        self.left_out: list[str] = []
        """What a preset offered, or was carried over, and a model did not take; each name once."""

    @property
    def shows_progress(self) -> bool:
        """Whether somebody can see how far a prediction is."""
        return self._bar

    def tell_left_out(self, note: events.LeftOut) -> None:
        """Say what was left out, once however many predictions it is for, and keep it for the report at the end."""
        if note not in self._notes:
            self._notes.add(note)
            self.left_out += [name for name in note.fields if name not in self.left_out]
            self._say(left_out_line(note))

    def notify(self, event: events.Event) -> None:
        """See `ports.Observer`."""
        match event:
            case events.LeftOut():
                self.tell_left_out(event)
            case events.Submitted(prediction, typical):
                about = "" if typical is None else f" (usually {typical:g} s)"
                self._task(prediction.id, f"{_model_name(prediction.model)}: waiting{about}")
            case events.Progressed(prediction, fraction):
                done = None if fraction is None else fraction * 100
                self._task(prediction.id, f"{_model_name(prediction.model)}: {prediction.status}", done)
            case events.Fetching(prediction, index, count):
                self._task(
                    prediction.id, f"{_model_name(prediction.model)}: fetching {index} of {count}", 100
                )
            case events.Ended(prediction):
                self._task(prediction.id, f"{_model_name(prediction.model)}: {prediction.status}", 100)
            case _:
                if line := _line(event):
                    self._say(line)

    def _task(self, key: str, text: str, done: float | None = None) -> None:
        if self._progress is None:
            return
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(text, total=None)
        total = None if done is None else 100
        self._progress.update(self._tasks[key], description=text, total=total, completed=done or 0)

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(line, highlight=False, markup=False)
        else:
            remark(line)

    def __enter__(self) -> Self:
        if self._bar:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _line(event: events.Event) -> str | None:  # noqa: C901, PLR0912 - a table of sentences
    match event:
        case events.Resumed(prediction):
            return f"taking up the unfinished prediction {prediction.id} of the same request instead of buying again"
        case events.GivenUp(prediction, reason):
            return (
                f"the unfinished prediction {prediction.id} cannot be recovered ({reason}); buying a new one"
            )
        case events.AnswerLost(prediction, seconds):
            return f"the answer for {prediction.id} was lost; looking for what it bought, up to {seconds:g} s"
        case events.CacheHit(prediction, made_as, shared):
            how = "an equal request just had" if shared else "from the cache, as made by"
            return f"{prediction.id} has the picture that {made_as} made ({how}); nothing is bought"
        case events.Adopted(prediction):
            return (
                f"found: {prediction.id} is {prediction.upstream_id} at the service; nothing is bought again"
            )
        case events.Waiting(reason, seconds):
            return f"waiting {seconds:g} s: {reason}"
        case events.InLine(limit, position):
            return f"waiting for {_limit_in_words(limit)}, number {position} in line"
        case events.BudgetPassed(shortage):
            return _passed(shortage)
        case events.LedgerDelayed(prediction_id, reason):
            return f"warning: the cost of {prediction_id} could not be written down yet and is kept: {reason}"
        case events.Canceled(prediction):
            return f"canceled {prediction.upstream_id or prediction.id} upstream ({_billing(prediction.charged)})"
        case events.CancelUnconfirmed(prediction, reason):
            return (
                f"warning: {prediction.id} could not be canceled for sure ({reason}); it ends by itself after "
                f"{prediction.deadline_seconds:g} s. `imagen predictions adopt {prediction.id}` shows what became of it"
            )
        case events.LeftUnfetched(prediction):
            return (
                f"{prediction.id} was made already ({_billing(prediction.charged)}); "
                f"`imagen predictions adopt {prediction.id}` fetches its picture within the hour"
            )
        case events.HungUp(server, made):
            return _left_at(server, made)
        case events.Saved(_, path, renamed) if renamed:
            return f"the name was taken meanwhile; saved as {path.name}"
        case _:
            return None


def left_out_line(note: events.LeftOut) -> str:
    """What a preset offered, or was carried over, and is not sent."""
    names, model = ", ".join(note.fields), _model_name(note.model)
    several = len(note.fields) > 1
    left_out = "which are left out" if several else "which is left out"
    if note.preset is not None:
        return f"preset {note.preset}: {model} does not take {names}, {left_out}"
    return f"{model} does not take {names} as {'they were' if several else 'it was'}, {left_out}"


def _passed(shortage: Shortage) -> str:
    balance = shortage.balance
    budget = balance.budget
    return (
        f"warning: the budget {budget.name!r} of {budget.limit} has {max(balance.left, Usd(0))} left, and this costs "
        f"up to {shortage.quote}; it only warns"
    )


def _left_at(server: str, made: Sequence[Prediction]) -> str:
    if not made:
        return (
            f"the connection to {server} is closed: the gateway cancels what it was making "
            "(pictures that it keeps it makes to their end)"
        )
    ids = ", ".join(prediction.id for prediction in made)
    addresses = " ".join(_short(address) for prediction in made for address in prediction.output)
    return f"the gateway at {server} had made {ids} already (charged); for an hour: {addresses}"


def _billing(charged: bool | None) -> str:
    if charged is None:
        return "whether it is charged is not known yet"
    return "what ran is charged" if charged else "not charged"


def _short(address: str) -> str:
    return address if len(address) < 300 else f"{address[:60]}…"


def _model_name(model: str) -> str:
    return model.partition(":")[0].rpartition("/")[2]


def show_outcomes(
    outcomes: Sequence[Outcome],
    *,
    json: bool,
    urls: bool,
    practice: bool,
    here: bool = True,
    left_out: Sequence[str] = (),
) -> int:
    """What came of a request, and the exit status for it; `here` is False when a gateway elsewhere did the work."""
    if json:
        report = {**build_report(outcomes, practice=practice), "left_out": list(left_out)}
        print_json(report)
    for outcome in outcomes:
        show_outcome(outcome, json=json, urls=urls)
    if practice:
        remark(PRACTICE)
        remark(REAL if here else REAL_THERE)
    return next((exit_status(outcome.error) for outcome in outcomes if outcome.error is not None), 0)


def show_outcome(outcome: Outcome, *, json: bool, urls: bool) -> None:
    """What came of one prediction: its files, or why there are none, and what it cost."""
    piped = not json and not on_terminal()
    for picture in outcome.pictures:
        remark(f"saved {picture.path}")
        if piped:
            typer.echo(str(picture.path))
    if urls or (not outcome.pictures and outcome.error is None):
        for address in outcome.prediction.output:
            remark(f"address {_short(address)}")
            if piped:
                typer.echo(address)
    if outcome.error is not None:
        remark(f"imagen: {outcome.error}")
        return
    prediction = outcome.prediction
    seconds = (prediction.latency_ms or 0) / 1000
    cost = "unknown price" if prediction.spent is None else str(prediction.spent)
    if prediction.reused:
        cost = f"{cost} (nothing was bought)"
    facts = [prediction.model, f"seed {prediction.seed}", f"{seconds:.1f} s", cost, prediction.id]
    remark("  ".join(facts))


def build_report(outcomes: Sequence[Outcome], *, practice: bool) -> dict[str, Any]:
    """The metadata of a request: of its one prediction, or of the first with all of them under `predictions`."""
    reports = [_report(outcome, practice=practice) for outcome in outcomes]
    if len(reports) == 1:
        return reports[0]
    return {
        **reports[0],
        "cost_usd_estimate": _total(outcome.prediction.spent for outcome in outcomes),
        "cost_usd": _total(outcome.prediction.spent for outcome in outcomes),
        "quoted_usd": _total(outcome.prediction.quote.likely for outcome in outcomes),
        "files": [file for report in reports for file in report["files"]],
        "urls": [url for report in reports for url in report["urls"]],
        "predictions": reports,
    }


def _total(amounts: Iterable[Usd | None]) -> float | None:
    """All of them in dollars; None where one is not known."""
    return to_dollars(Usd.total_or_none(amounts))


def _report(outcome: Outcome, *, practice: bool) -> dict[str, Any]:
    prediction = outcome.prediction
    size = outcome.pictures[0].facts if outcome.pictures else None
    width = size.width if size else prediction.input.get("width")
    height = size.height if size else prediction.input.get("height")
    report: dict[str, Any] = {
        "id": prediction.id,
        "status": _status(outcome),
        "backend": prediction.backend,
        "backend_type": prediction.backend_type,
        "model": prediction.model,
        "model_version": prediction.version,
        "prediction_id": prediction.upstream_id,
        "seed": prediction.seed,
        "width": width,
        "height": height,
        "aspect_ratio": prediction.input.get("aspect_ratio")
        or aspect_ratio_of(width, height, fallback="")
        or None,
        "latency_ms": prediction.latency_ms,
        "predict_time_seconds": prediction.predict_seconds,
        "cost_usd_estimate": to_dollars(prediction.spent),
        "cost_usd": to_dollars(prediction.spent),
        "quoted_usd": to_dollars(prediction.quote.likely),
        "charged": prediction.charged,
        "cached": prediction.reused,
        "files": [str(picture.path) for picture in outcome.pictures],
        "urls": [address for address in prediction.output if not is_inside(address)],
        "practice": practice,
        "preset": prediction.preset,
        "tier": prediction.tier,
        "parent": prediction.parent,
        "draft": prediction.draft,
    }
    if outcome.error is not None:
        report |= {"error": outcome.error.code, "detail": outcome.error.detail, "hint": outcome.error.hint}
        report |= money_facts(outcome.error)
    return report


def _status(outcome: Outcome) -> str:
    """How it stands: what was refused before it was bought never came as far as a status."""
    prediction = outcome.prediction
    never_bought = isinstance(outcome.error, Refused) and prediction.sent_at is None
    return "refused" if never_bought and not prediction.status.terminal else prediction.status.value


def _limit_in_words(limit: str) -> str:
    kind, _, name = limit.partition(":")
    if kind == "budget":
        return f"what is reserved of the budget {name}"
    return (
        f"a place in semaphore {name}" if kind == "semaphore" else f"the limits of this {kind or 'account'}"
    )
