"""`imagen budget`: who may spend how much in which time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.service.budgets import Standing

app = typer.Typer(
    help="Limits on spending, by key, caller, model or everything, that no purchase passes.",
    no_args_is_help=True,
)

SET_EXAMPLES = """\b
Examples:
  imagen budget set everything --usd 20 --per month --all
  imagen budget set shop --usd 1.00 --per day --key web-shop
  imagen budget set quota --usd 5 --per month --caller '*' --count succeeded
  imagen budget set pro --usd 2 --per day --model flux-kontext-max --warn
"""
LIST_EXAMPLES = """\b
Examples:
  imagen budget list
  imagen budget list --json
"""
REMOVE_EXAMPLES = """\b
Examples:
  imagen budget remove shop
"""

_COLUMNS = ("name", "whom", "limit", "settled", "reserved", "left", "renews")
_MONEY = ("settled", "reserved", "left")
_PERIODS = {"day": "a day", "month": "a month", "total": "in all"}
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="1 to 64 letters, digits, dots, dashes and underscores.")
]
Json = Annotated[bool, typer.Option("--json", help="As JSON; money in dollars.")]


@app.command("set", epilog=SET_EXAMPLES)
def set_(
    name: Name,
    usd: Annotated[
        str, typer.Option(metavar="DOLLARS", help="The limit of one period, with six decimals at most.")
    ],
    per: Annotated[str, typer.Option(metavar="PERIOD", help="day, month (of UTC) or total.")],
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME|ID", help="Counts what is asked for with this key; '*': each key."),
    ] = None,
    caller: Annotated[
        str | None, typer.Option(metavar="NAME", help="Counts what this caller asks for; '*': each caller.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Counts what this model makes; '*': each model.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Counts everything.")] = False,
    warn: Annotated[bool, typer.Option("--warn", help="Buy what does not fit, and say so.")] = False,
    count: Annotated[
        str,
        typer.Option(
            metavar="WHAT", help="charged: whatever is billed. succeeded: only runs that succeeded."
        ),
    ] = "charged",
    as_json: Json = False,
    server: Server = None,
    config: Config = None,
) -> None:
    """Make a budget, or change the one of that name. '*' gives each of them the limit for itself."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> Standing:
        return await parts_at(server, app).budgets.set(
            name,
            usd=usd,
            per=per,
            key=key,
            caller=caller,
            model=model,
            everything=everything,
            warn=warn,
            count=count,
        )

    standing = run_app(command, config=config, json=as_json)
    if as_json:
        print_json(standing.facts())
    remark(f"budget {standing.budget.name}: {_whom(standing)}, {_limit(standing)}")


@app.command("list", epilog=LIST_EXAMPLES)
def list_(as_json: Json = False, server: Server = None, config: Config = None) -> None:
    """Show how the budgets stand: what was spent, what is reserved for what runs, what is left."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(app: App) -> Sequence[Standing]:
        return await parts_at(server, app).budgets.list()

    found = run_app(command, config=config, json=as_json)
    if as_json:
        print_json([one.facts() | one.state() for one in found])
    elif found:
        print_table(format_table(_COLUMNS, map(_row, found), right=_MONEY))
    else:
        remark("No budget yet. `imagen budget set NAME --usd 5 --per day --all` makes one.")


@app.command(epilog=REMOVE_EXAMPLES)
def remove(name: Name, as_json: Json = False, server: Server = None, config: Config = None) -> None:
    """Remove a budget: nothing is refused for it any more."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> None:
        await parts_at(server, app).budgets.remove(name)

    run_app(command, config=config, json=as_json)
    if as_json:
        print_json({"name": name, "removed": True})
    remark(f"budget {name} removed")


def _row(standing: Standing) -> tuple[str, ...]:
    balance = standing.balance
    at = balance.renews_at
    return (
        standing.budget.name,
        _whom(standing),
        _limit(standing),
        str(balance.settled),
        str(balance.reserved),
        str(balance.left),
        "never" if at is None else f"{at:%Y-%m-%d %H:%M} UTC",
    )


def _whom(standing: Standing) -> str:
    """Whom a balance is of, in words."""
    from imagen.domain.budget import EACH

    scope = standing.budget.scope
    if scope == "all":
        return "everything"
    if standing.subject == EACH:
        return f"each {scope}"
    return f"{scope} {standing.subject}" + (" (of each)" if standing.whom == EACH else "")


def _limit(standing: Standing) -> str:
    budget = standing.budget
    only = " for what succeeds" if budget.counts == "succeeded" else ""
    return f"{budget.limit} {_PERIODS[budget.per]}{only}{'' if budget.hard else ', only warns'}"
