"""`imagen promote`: the final of a preview, on a better model."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import (
    AspectRatio,
    Config,
    Force,
    Height,
    InputImage,
    MaxCost,
    Metadata,
    NegativePrompt,
    NeverRepeat,
    New,
    NoMetadata,
    Options,
    PresetName,
    Semaphore,
    Server,
    Show,
    Steps,
    Timeout,
    Urls,
    Width,
    Yes,
)

if TYPE_CHECKING:
    from imagen.assembly import App

EXAMPLES = """\b
Examples:
  imagen promote pred_01kamx3
  imagen promote pred_01kamx3 -m flux-1.1-pro-ultra -o fox.png
  imagen promote pred_01kamx3 --dry-run --json
"""


def promote(
    prediction_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="A preview, or any prediction with a picture; may be cut short."),
    ],
    backend: Annotated[
        str | None,
        typer.Option("-b", "--backend", help="A backend of your configuration; else the preview's."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Makes the final; else the one that the preview was asked for."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="A file, a folder/ or a template, as of generate.")
    ] = None,
    force: Force = False,
    prompt: Annotated[str | None, typer.Option("--prompt", help="In place of the preview's.")] = None,
    width: Width = None,
    height: Height = None,
    aspect_ratio: AspectRatio = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(help="In place of the preview's.")] = None,
    negative_prompt: NegativePrompt = None,
    input_image: InputImage = None,
    opt: Options = None,
    preset: PresetName = None,
    max_cost: MaxCost = None,
    semaphore: Semaphore = None,
    timeout: Timeout = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would be and cost; buy nothing.")
    ] = False,
    yes: Yes = False,
    json: Metadata = False,
    url: Urls = False,
    no_metadata: NoMetadata = False,
    new: New = False,
    never_repeat: NeverRepeat = False,
    show: Show = None,
    server: Server = None,
    config: Config = None,
) -> None:
    """Make the final of a preview: the same words, the same shape and the same seed, on a better model.

    What the model of the final does not take is said. In a terminal you are asked before it is bought; elsewhere, and
    with --yes, nobody is.
    """
    from imagen.cli.drafts import Look, final_report, make_final, show_final_quote, show_finals, spent_json
    from imagen.cli.drafts_makers import Here, There
    from imagen.cli.exit_status import exit_status
    from imagen.cli.options import absolute_output, parts_at
    from imagen.cli.output import print_json, remark
    from imagen.cli.predictions import find_prediction
    from imagen.cli.render import PRACTICE, REAL, REAL_THERE, Renderer
    from imagen.cli.run import leave, run_app
    from imagen.cli.wish import read_request
    from imagen.domain.draft import saving_line
    from imagen.domain.money import to_dollars
    from imagen.domain.preset import with_preset
    from imagen.service.deliver import Destination

    renderer = Renderer(quiet=json)

    async def command(app: App) -> int:
        from imagen.assembly import App as Local

        parts = parts_at(server, app)
        said = read_request(
            app,
            prompt=prompt or "",
            model=model,
            width=width,
            height=height,
            aspect_ratio=aspect_ratio,
            steps=steps,
            seed=seed,
            negative_prompt=negative_prompt,
            input_image=input_image,
            opt=opt,
            max_cost=max_cost,
            output=output,
            deadline_seconds=timeout,
            semaphore=semaphore,
            repeat_lost=not never_repeat,
            resume=not new,
        )
        said = with_preset(said, preset, app.settings.presets, resolve=app.catalog.resolve)
        place = Destination(
            output=absolute_output(output), force=force, metadata=app.settings.metadata and not no_metadata
        )
        here = isinstance(parts, Local)
        wanted = (await find_prediction(app, prediction_id)).id if here else prediction_id.strip()
        maker = Here(app, backend) if isinstance(parts, Local) else There(parts, app, backend)
        if dry_run:
            quote = await maker.plan_final(wanted, said, destination=None)
            show_final_quote(quote, parent=wanted, json=json)
            remark("nothing was bought")
            return 0
        look = Look(json=json, show=show, urls=url, yes=yes)
        quote, outcomes = await make_final(
            maker, wanted, said, destination=place, look=look, renderer=renderer
        )
        if not outcomes:
            return 0
        practice = any(one.prediction.practice for one in outcomes)
        spent = await maker.spent([outcome.prediction for outcome in outcomes])
        if json:
            saved = quote.saved if spent is None else spent.saved
            print_json(
                {
                    **final_report(quote, outcomes, practice=practice),
                    "saved_usd": to_dollars(saved),
                    "spent": spent_json(spent),
                }
            )
        show_finals(app, outcomes, look=look)
        if spent is not None:
            remark(str(spent))
        elif quote.saved is not None:
            remark(f"choosing {saving_line(quote.saved)}")
        if practice:
            remark(PRACTICE)
            remark(REAL if here else REAL_THERE)
        return next((exit_status(one.error) for one in outcomes if one.error is not None), 0)

    status = run_app(command, config=config, json=json, observer=renderer)
    if status:
        leave(status)


promote.__doc__ = f"{cleandoc(promote.__doc__ or '')}\n\n{EXAMPLES}"
