"""`imagen estimate`: what a wish would cost, when it would be ready, and what costs less. Nothing is bought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import (
    AspectRatio,
    Backend,
    Config,
    Count,
    Height,
    InputImage,
    Model,
    NegativePrompt,
    Options,
    PresetName,
    Prompt,
    Server,
    Steps,
    Timeout,
    Width,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imagen.assembly import App
    from imagen.domain.money import Usd
    from imagen.errors import BudgetExceeded
    from imagen.service.choice_shapes import CheaperModel, QuoteAnswer, QuoteRange

EXAMPLES = """\b
Examples:
  imagen estimate "a red fox in the snow" -m flux-dev
  imagen estimate "a red fox" -m seedream-4 --count 8 --json
  imagen estimate "a red fox" --semaphore gpu --server https://pictures.example.com
"""
_LIMITS = {"account": "the limits of the account", "key": "the limits of the key"}


def estimate(
    prompt: Prompt,
    backend: Backend = None,
    model: Model = None,
    width: Width = None,
    height: Height = None,
    aspect_ratio: AspectRatio = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(help="As of generate.")] = None,
    negative_prompt: NegativePrompt = None,
    count: Count = 1,
    input_image: InputImage = None,
    opt: Options = None,
    preset: PresetName = None,
    max_cost: Annotated[
        str | None, typer.Option(help="US dollars; refuse as generate would when it would cost more.")
    ] = None,
    semaphore: Annotated[str | None, typer.Option(help="A named limit that it would wait for.")] = None,
    timeout: Timeout = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON; money in dollars.")] = False,
    server: Server = None,
    config: Config = None,
) -> None:
    """Tell what a picture would cost and when it would be ready. Checks what generate checks; buys nothing."""
    import msgspec

    from imagen.cli.exit_status import exit_status
    from imagen.cli.options import parts_at, read_prompt
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.run import error_facts, leave, run_app
    from imagen.cli.tables import format_facts
    from imagen.cli.wish import read_request
    from imagen.domain.money import read_dollars
    from imagen.domain.preset import with_preset

    async def command(app: App) -> tuple[QuoteAnswer, BudgetExceeded | None]:
        most = None if max_cost is None else read_dollars(max_cost, field="max_cost")
        request = read_request(
            app,
            prompt=read_prompt(prompt),
            model=model,
            width=width,
            height=height,
            aspect_ratio=aspect_ratio,
            steps=steps,
            seed=seed,
            negative_prompt=negative_prompt,
            count=count,
            input_image=input_image,
            opt=opt,
            deadline_seconds=timeout,
            semaphore=semaphore,
        )
        request = with_preset(request, preset, app.settings.presets, resolve=app.catalog.resolve)
        found = await parts_at(server, app).estimator.estimate(request, backend=backend, caller=app.caller())
        return found, _refusal(found, most)

    found, refusal = run_app(command, config=config, json=json)
    if json:
        print_json(found if refusal is None else msgspec.to_builtins(found) | error_facts(refusal))
    else:
        print_lines(format_facts(list(_lines(found))))
    if refusal is not None:
        remark(f"imagen: {refusal}")
        leave(exit_status(refusal))


def _refusal(found: QuoteAnswer, most: Usd | None) -> BudgetExceeded | None:
    """How generate would refuse it for want of money; None where it would not."""
    from imagen.errors import BudgetExceeded
    from imagen.service.prepare import check_most

    quote, short = found.quote.to_quote(), found.short_of
    try:
        check_most(quote, most, model=found.model)
    except BudgetExceeded as error:
        return error
    return None if short is None or short.waits else short.to_error(quote)


def _lines(found: QuoteAnswer) -> Iterator[tuple[str, str]]:
    pictures = "1 picture" if found.images == 1 else f"{found.images} pictures"
    runs = "" if found.predictions == 1 else f" in {found.predictions} runs"
    yield "model", found.model
    if found.preset is not None:
        left_out = (
            f" (without {', '.join(found.left_out)}: the model does not take that)" if found.left_out else ""
        )
        yield "preset", found.preset + left_out
    yield "makes", pictures + runs
    if found.practice:
        yield "cost", "nothing: it would be practice"
        yield "with a token", _money(found.listed)
    else:
        yield "cost", _money(found.quote)
    if found.short_of is not None:
        verdict = "it would wait for what is under way" if found.short_of.waits else "it would be refused"
        hint = f". {found.short_of.hint}" if found.short_of.hint else ""
        yield "budget", f"{found.short_of.budget}: {verdict}; {found.short_of.detail}{hint}"
    if found.short_of is None or found.short_of.waits:
        yield "turn", _turn(found)
        yield "starts", _after(found.starts_in)
        yield "ready", _after(found.ends_in)
    if found.cheaper:
        yield "cheaper", "\n".join(_cheaper(one) for one in found.cheaper)


def _money(quote: QuoteRange) -> str:
    told = quote.to_quote()
    return "nobody knows: no price is known" if told.likely is None and told.high is None else str(told)


def _turn(found: QuoteAnswer) -> str:
    if found.limit is None:
        return "at once"
    kind, _, name = found.limit.partition(":")
    what = _LIMITS.get(kind, f"the {kind} {name}")
    return f"waits for {what}" if not found.position else f"number {found.position} in line for {what}"


def _after(seconds: float | None) -> str:
    if seconds is None:
        return "nobody can tell"
    return "now" if not seconds else f"in about {seconds:g} s"


def _cheaper(one: CheaperModel) -> str:
    time = "" if one.seconds is None else f", {one.seconds:g} s"
    lost = f"; {', '.join(one.lost)}" if one.lost else ""
    return f"{one.model}  {_money(one.quote)}{time}{lost}"


estimate.__doc__ = f"{estimate.__doc__}\n\n{EXAMPLES}"
