"""`imagen predictions`: what was made, what is still under way, and what was left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from imagen.assembly import App
    from imagen.domain.prediction import Prediction, Status
    from imagen.service.deliver import Destination
    from imagen.service.finish import Outcome

app = typer.Typer(help="List, show, cancel and take up predictions.", no_args_is_help=True)

LIST_EXAMPLES = """\b
Examples:
  imagen predictions list
  imagen predictions list --unfinished
  imagen predictions list --status failed --limit 50 --json
"""
SHOW_EXAMPLES = """\b
Examples:
  imagen predictions show pred_01kamx3
  imagen predictions show pred_01kamx3 --json
"""
CANCEL_EXAMPLES = """\b
Examples:
  imagen predictions cancel pred_01kamx3
"""
ADOPT_EXAMPLES = """\b
Examples:
  imagen predictions adopt pred_01kamx3
  imagen predictions adopt pred_01kamx3 -o foxes/
"""

_COLUMNS = ("id", "created", "status", "model", "seed", "cost", "files", "prompt")
_PROMPT_COLUMNS = 40
_LONGEST_VALUE = 200
_SHORTEST_ID = 4
_PREFIX = "pred_"
Id = Annotated[str, typer.Argument(metavar="ID", help="Ours or Replicate's; ours may be cut short.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output; money in dollars.")]


# --- list ------------------------------------------------------------------------------------------------


@app.command("list", epilog=LIST_EXAMPLES)
def list_(
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS",
            help="queued, starting, processing, succeeded, failed, canceled, aborted or unknown.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show so many at most.")] = 20,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only those with something left to do.")
    ] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """List predictions, newest first."""
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(parts: App) -> None:
        wanted = _read_status(status)
        if unfinished:
            left = [one for one in await parts.store.unfinished() if wanted in {None, one.status}]
            found = left[::-1][:limit]
            more = len(left) > limit
        else:
            listed = await parts.store.list(limit=limit + 1, status=wanted)
            found, more = list(listed[:limit]), len(listed) > limit
        if json:
            print_json([_facts(parts, one) for one in found])
        elif found:
            print_table(format_table(_COLUMNS, map(_cells, found), right=("seed", "cost", "files")))
        else:
            remark(_nothing(unfinished=unfinished, status=status))
        if more:
            remark(f"older ones are left out; --limit {limit * 5} shows more")

    run_app(command, config=config, json=json)


def _read_status(text: str | None) -> Status | None:
    from imagen.domain.prediction import Status
    from imagen.errors import InvalidRequest

    if text is None:
        return None
    try:
        return Status(text.strip().lower())
    except ValueError:
        raise InvalidRequest(
            f"--status {text[:60]!r} is not known.", hint=f"It is one of {', '.join(Status)}."
        ) from None


def _nothing(*, unfinished: bool, status: str | None) -> str:
    if unfinished:
        return "nothing is left to do"
    if status is not None:
        return f"no prediction is {status}"
    return 'no predictions yet. Begin with: imagen generate "a red fox in the snow"'


def _cells(prediction: Prediction) -> Sequence[str]:
    from imagen.cli.tables import shorten

    return (
        prediction.id,
        _time(prediction.created_at),
        prediction.status.value,
        prediction.model.partition(":")[0],
        "-" if prediction.seed is None else str(prediction.seed),
        _cost(prediction),
        str(len(prediction.files)) if prediction.delivered_at else "-",
        shorten(prediction.prompt, _PROMPT_COLUMNS),
    )


# --- show ------------------------------------------------------------------------------------------------


@app.command(epilog=SHOW_EXAMPLES)
def show(prediction_id: Id, json: Json = False, config: Config = None) -> None:
    """Show all facts about one prediction, and what to do next if it is unfinished."""
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_facts
    from imagen.domain.money import to_dollars

    async def command(parts: App) -> None:
        found = await find_prediction(parts, prediction_id)
        finals = await parts.drafts.finals(found)
        spent = await parts.drafts.spent(found)
        if json:
            saved = None if spent is None else spent.saved
            lineage = {"finals": [one.id for one in finals], "saved_usd": to_dollars(saved)}
            print_json(_facts(parts, found) | lineage)
            return
        lines = _lines(parts, found)
        lines += [("finals", "\n".join(f"{one.id} ({one.model}, {one.status})" for one in finals))]
        lines += [("draft", "" if spent is None or not spent.finals else str(spent))]
        print_lines(format_facts(lines))

    run_app(command, config=config, json=json)


def _lines(parts: App, one: Prediction) -> list[tuple[str, str]]:
    latency = "" if one.latency_ms is None else f"{one.latency_ms / 1000:.1f} s"
    ran = "" if one.predict_seconds is None else f", of which the model ran {one.predict_seconds:.1f} s"
    given = [
        f"{name} = {_value(value)}" for name, value in _open_input(parts, one).items() if name != "prompt"
    ]
    return [
        ("id", one.id),
        ("status", one.status.value),
        ("next", "\n".join(_next_steps(parts, one))),
        ("error", one.error or ""),
        ("prompt", one.prompt),
        ("model", one.model),
        ("version", one.version or ""),
        ("seed", "" if one.seed is None else str(one.seed)),
        ("input", "\n".join(given)),
        ("preset", one.preset or ""),
        ("tier", _tier(one)),
        ("backend", f"{one.backend}{' (practice)' if one.backend_type == 'emulator' else ''}"),
        ("upstream id", one.upstream_id or "none yet"),
        ("caller", one.caller),
        ("created", _time(one.created_at)),
        ("sent", "" if one.sent_at is None else _time(one.sent_at)),
        ("started", "" if one.started_at is None else _time(one.started_at)),
        ("ended", "" if one.ended_at is None else _time(one.ended_at)),
        ("took", f"{latency}{ran}" if latency else ""),
        ("deadline", f"{one.deadline_seconds:g} s"),
        ("cost", _shown_cost(one)),
        ("quoted", str(one.quote) if one.quote.likely or one.quote.known else ""),
        (
            "in the ledger",
            "yes" if one.settled_at else "no" if one.upstream_id and one.status.terminal else "",
        ),
        ("files", "\n".join(_file(file) for file in one.files)),
        ("addresses", "\n".join(_addresses(parts, one))),
    ]


def _tier(one: Prediction) -> str:
    if one.tier == "preview":
        wanted = f" for {one.wished.model}" if one.wished is not None else ""
        return f"preview{wanted}; `imagen promote {one.id}` makes the final"
    return f"final of {one.parent}" if one.tier == "final" else ""


def _next_steps(parts: App, one: Prediction) -> list[str]:
    from imagen.domain.prediction import Status

    if one.finished:
        return []
    if one.owner is not None and parts.owners.alive(one.owner):
        return [
            f"a living process ({one.owner.partition('-')[0]}) follows it: wait for that",
            f"imagen predictions cancel {one.id}" if not one.status.terminal else "",
        ]
    if one.status is Status.SUCCEEDED:
        return [
            f"imagen predictions adopt {one.id}    fetches its picture within the hour; nothing is bought again"
        ]
    return [
        f"imagen predictions adopt {one.id}    finds out what became of it and fetches its picture",
        f"imagen predictions cancel {one.id}   stops it",
    ]


def _addresses(parts: App, one: Prediction) -> list[str]:
    if not one.output:
        return []
    from imagen.service.adopt import REMEMBERED_UPSTREAM

    addresses = [address if len(address) <= _LONGEST_VALUE else f"{address[:60]}…" for address in one.output]
    if one.practice:
        addresses.append("(of practice: gone with the process that made them)")
    elif one.ended_at is not None:
        gone_at = one.ended_at + REMEMBERED_UPSTREAM
        gone = gone_at <= parts.clock.now()
        addresses.append(f"({'gone since' if gone else 'good until'} {_time(gone_at)})")
    return addresses


def _shown_cost(one: Prediction) -> str:
    from imagen.domain.prediction import Status

    if one.practice:
        return "nothing: it was practice"
    if one.charged is None:
        return "nobody can tell" if one.status is Status.UNKNOWN else "open until it ends"
    if not one.charged:
        return "nothing: it was not charged"
    return "charged, but its price is not known" if one.cost is None else f"{one.cost}, charged"


def _file(file: str) -> str:
    return file if Path(file).exists() else f"{file} (no longer there)"


# --- cancel ----------------------------------------------------------------------------------------------


@app.command(epilog=CANCEL_EXAMPLES)
def cancel(prediction_id: Id, json: Json = False, config: Config = None) -> None:
    """Stop a prediction upstream. One that has ended stays as it is."""
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app

    async def command(parts: App) -> None:
        before = await find_prediction(parts, prediction_id)
        after = await parts.gateway.cancel(before.id)
        if json:
            print_json(_facts(parts, after))
        elif before.status.terminal:
            print_lines([f"{after.id} had ended already: {after.status}"])
        else:
            print_lines([_shown_cancel(after)])

    run_app(command, config=config, json=json)


def _shown_cancel(one: Prediction) -> str:
    if not one.status.terminal:
        return f"{one.id} is being canceled; it is {one.status} still, `imagen predictions adopt {one.id}` looks again"
    if one.upstream_id is None:
        return f"{one.id} ended: nothing had been bought"
    billing = "it was not charged" if not one.charged else f"what ran is charged ({_cost(one)})"
    return f"{one.id} {'was canceled' if one.status == 'canceled' else f'ended as {one.status}'}: {billing}"


# --- adopt -----------------------------------------------------------------------------------------------


@app.command(epilog=ADOPT_EXAMPLES)
def adopt(
    prediction_id: Id,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="File, folder/ or template, as of generate; else as it was asked for first.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Take up a prediction that was left unfinished: find it, follow it, fetch its pictures. Buys nothing."""
    from imagen.cli.output import remark
    from imagen.cli.render import Renderer
    from imagen.cli.run import run_app

    renderer = Renderer(quiet=json)

    async def command(parts: App) -> None:
        found = await find_prediction(parts, prediction_id)
        if found.finished and found.files and output is None:
            remark(f"{found.id} was finished already; -o fetches its pictures once more, elsewhere")
            _show_adopted(parts, found, found.files, json=json)
            return
        with renderer:
            outcome = await parts.gateway.resume(
                found.id, destination=_destination(found, output, force=force), observer=renderer
            )
        _show_outcome(parts, outcome, json=json)

    run_app(command, config=config, json=json, observer=renderer)


def _destination(prediction: Prediction, output: str | None, *, force: bool) -> Destination:
    """Where it was to go when it was asked for, with what is said now laid over it."""
    import msgspec

    from imagen.cli.options import absolute_output
    from imagen.service.deliver import Destination, from_stored

    place = from_stored(prediction.destination) or Destination()
    if output is not None:
        place = msgspec.structs.replace(place, output=absolute_output(output))
    return msgspec.structs.replace(place, force=force or place.force)


def _show_outcome(parts: App, outcome: Outcome, *, json: bool) -> None:
    """The saved files, or the error that it ended with.

    Raises:
        ImagenError: it gave no picture.
    """
    if outcome.error is not None:
        raise outcome.error
    _show_adopted(parts, outcome.prediction, [str(picture.path) for picture in outcome.pictures], json=json)


def _show_adopted(parts: App, prediction: Prediction, files: Sequence[str], *, json: bool) -> None:
    from imagen.cli.output import print_json, print_lines, remark

    if json:
        print_json(_facts(parts, prediction))
        return
    print_lines(files)
    seed = "" if prediction.seed is None else f"  seed {prediction.seed}"
    remark(f"{prediction.model}{seed}  {_shown_cost(prediction)}")


# --- all of them -----------------------------------------------------------------------------------------


async def find_prediction(parts: App, text: str) -> Prediction:
    """The prediction of an id, whole or cut short, with or without its prefix.

    Raises:
        InvalidRequest: too little of an id: an empty variable of a script must not mean whatever there is.
        NotFound: no prediction, or more than one, has it.
    """
    from imagen.errors import InvalidRequest, NotFound

    wanted = text.strip()
    if len(wanted.removeprefix(_PREFIX)) < _SHORTEST_ID:
        raise InvalidRequest(
            f"{text[:40]!r} is too short for an id: give {_SHORTEST_ID} characters of it at least.",
            hint="`imagen predictions list` shows them.",
        )
    try:
        return await parts.store.get(wanted)
    except NotFound as error:
        try:
            return await parts.store.get(_PREFIX + wanted)
        except NotFound:
            raise error from None


def _facts(parts: App, one: Prediction) -> dict[str, Any]:
    """Everything, for machines."""
    import msgspec

    from imagen.domain.money import to_dollars

    facts = {
        name: getattr(one, name)
        for name in one.__struct_fields__
        if name not in {"cost", "input", "owner", "quote"}
    }
    return {
        **{name: msgspec.to_builtins(value) for name, value in facts.items()},
        "input": _open_input(parts, one),
        "cost_usd": to_dollars(one.spent),
        "quoted_usd": to_dollars(one.quote.likely),
        "latency_ms": one.latency_ms,
        "finished": one.finished,
        "followed": one.owner is not None and parts.owners.alive(one.owner),
        "practice": one.practice,
        "next": [step.partition("  ")[0] for step in _next_steps(parts, one) if step],
    }


def _open_input(parts: App, one: Prediction) -> dict[str, Any]:
    """Its input, with the parameters hidden that the catalog knows as secret, or that are called like one."""
    from imagen.domain.secret import is_secret_name

    model = parts.catalog.find(one.model)

    def is_secret(name: str) -> bool:
        known = model.parameter(name) if model else None
        return is_secret_name(name) or (known is not None and known.secret)

    return {name: "***" if is_secret(name) else value for name, value in one.input.items()}


def _value(value: Any) -> str:
    import msgspec

    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST_VALUE else f"{text[:60]}… ({len(text):,} characters)"


def _cost(one: Prediction) -> str:
    if one.charged is None:  # open: no price is missing
        return "-"
    return "?" if one.cost is None else str(one.cost)


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
