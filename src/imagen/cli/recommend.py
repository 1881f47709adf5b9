"""`imagen recommend`: which model to take for a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from imagen.assembly import App
    from imagen.service.choice_shapes import ModelChoice, RecommendAnswer

EXAMPLES = """\b
Examples:
  imagen recommend --budget 5 --iterations 40
  imagen recommend --budget 5 --iterations 40 --quality high
  imagen recommend 'a shop sign that says "Open"' --budget 2 --iterations 20 --within 15
  imagen recommend --budget 1 --iterations 10 --needs edit --needs seed --json
"""
_COLUMNS = ("model", "price", "seconds", "quality", "points", "of which")


def recommend(
    budget: Annotated[str, typer.Option(metavar="USD", help="US dollars for all of it.")],
    iterations: Annotated[int, typer.Option(metavar="N", help="How many pictures that is to pay for.")],
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What the pictures shall show, where that is known; - reads it from standard input."
        ),
    ] = None,
    quality: Annotated[
        str, typer.Option(metavar="standard|high", help="high: the best that the budget pays for.")
    ] = "standard",
    needs: Annotated[
        list[str] | None,
        typer.Option(
            "--needs",
            metavar="ABILITY",
            help="What it must be able to do: edit, mask, negative_prompt, photo, seed, several_outputs, "
            "transparent_background, typography or vector; may be repeated.",
        ),
    ] = None,
    within: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long a picture may take.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON; money in dollars.")] = False,
    server: Server = None,
    config: Config = None,
) -> None:
    """Recommend a model for a budget, and say why in one sentence."""
    from imagen.cli.options import parts_at, read_prompt
    from imagen.cli.output import print_json, print_lines, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table
    from imagen.domain.money import read_dollars

    async def command(app: App) -> RecommendAnswer:
        return await parts_at(server, app).recommender.recommend(
            budget=read_dollars(budget, field="budget"),
            iterations=iterations,
            high=_read_quality(quality),
            prompt=None if prompt is None else read_prompt(prompt),
            needs=frozenset(needs or ()),
            within_seconds=within,
            caller=app.caller(),
        )

    found = run_app(command, config=config, json=json)
    if json:
        print_json(found)
        return
    print_lines([found.sentence, ""])
    rows = [_row(one) for one in (found.choice, *found.alternatives)]
    print_table(format_table(_COLUMNS, rows, right=("price", "seconds", "quality", "points")))
    if not found.learning:
        remark("learning is switched off: what you kept and rejected was not looked at")


def _read_quality(text: str) -> bool:
    from imagen.errors import InvalidInput, Problem

    if text not in {"standard", "high"}:
        raise InvalidInput([Problem("quality", f"{text[:60]!r} must be standard or high")])
    return text == "high"


def _row(one: ModelChoice) -> tuple[str, ...]:
    from imagen.domain.money import from_dollars

    parts = ", ".join(f"{name} {points:+g}" for name, points in one.parts.items())
    return (
        one.model,
        "?" if one.price_usd is None else str(from_dollars(one.price_usd)),
        "?" if one.seconds is None else f"{one.seconds:g}",
        "?" if one.quality is None else str(one.quality),
        f"{one.score:g}",
        "; ".join(told for told in (one.obstacle or "", parts) if told),
    )


recommend.__doc__ = f"{recommend.__doc__}\n\n{EXAMPLES}"
