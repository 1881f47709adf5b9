"""`imagen batch`: a file of wishes, checked whole, bought once, and taken up again after anything."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import (
    AspectRatio,
    Backend,
    Config,
    Force,
    Height,
    InputImage,
    NegativePrompt,
    NeverRepeat,
    NoMetadata,
    Options,
    PresetName,
    Server,
    Steps,
    Width,
)

if TYPE_CHECKING:
    from imagen.assembly import App

EXAMPLES = """\b
Examples:
  imagen batch foxes.jsonl
  imagen batch foxes.csv -m flux-dev -o foxes/ --max-cost 5
  imagen batch foxes.yaml --dry-run
  generate-prompts | imagen batch - --format txt -o 'out/{index:04}-{model}.{ext}' --json
  imagen batch --resume batch_01kamx3
"""


def batch(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="JSONL, JSON, CSV, YAML, or text with a prompt a line; - is standard input."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, json, csv, yaml or txt; else by the name, and jsonl for -.",
        ),
    ] = None,
    backend: Backend = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="owner/name[:version] or a known name, for rows that name none."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A folder or a template; {index} is the number of the row. By default a folder of the file's name.",
        ),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="Line i tells what became of row i; - is standard output. By default beside the folder.",
        ),
    ] = None,
    force: Force = False,
    width: Width = None,
    height: Height = None,
    aspect_ratio: AspectRatio = None,
    steps: Steps = None,
    negative_prompt: NegativePrompt = None,
    count: Annotated[int, typer.Option("-n", "--count", help="How many pictures a row, 1 to 100.")] = 1,
    input_image: InputImage = None,
    opt: Options = None,
    max_cost: Annotated[
        str | None, typer.Option(help="US dollars; refuse before buying when all rows would cost more.")
    ] = None,
    semaphore: Annotated[
        str | None, typer.Option(help="Each row waits for a free place in this named limit.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds until each prediction must have ended.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and show the quote; buy nothing.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="ID", help="Go on with a batch; nothing is bought again."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output at the end.")
    ] = False,
    preset: PresetName = None,
    no_metadata: NoMetadata = False,
    new: Annotated[
        bool, typer.Option("--new", help="Begin another batch even if one of the same file has not ended.")
    ] = False,
    never_repeat: NeverRepeat = False,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache", help="Take pictures that were made before; by default as configured."
        ),
    ] = None,
    server: Server = None,
    config: Config = None,
) -> None:
    """Make the pictures of a whole file.

    Every row is checked before the first is bought. Ctrl-C pauses: what runs is waited for, nothing more is bought, and
    `--resume` goes on, as it does after a crash. Exit codes as of `imagen generate`; 5 when a row has no picture.
    """
    from imagen.cli.batch_flow import Wish, carry_on, start
    from imagen.cli.options import absolute_output
    from imagen.cli.run import leave, run_app
    from imagen.cli.wish import read_request
    from imagen.domain.money import read_dollars

    async def command(app: App) -> int:
        wish = Wish(
            file=file,
            form=form,
            backend=backend,
            output=absolute_output(output),
            results=results,
            force=force,
            metadata=app.settings.metadata and not no_metadata,
            common=read_request(
                app,
                prompt="-",
                model=model,
                width=width,
                height=height,
                aspect_ratio=aspect_ratio,
                steps=steps,
                negative_prompt=negative_prompt,
                count=count,
                input_image=input_image,
                opt=opt,
                deadline_seconds=timeout,
                semaphore=semaphore,
                repeat_lost=not never_repeat,
                cache=cache,
                preset=preset,
                resume=False,
            ),
            most=None if max_cost is None else read_dollars(max_cost, field="max_cost"),
            dry=dry_run,
            new=new,
            json=json,
        )
        if resume is not None:
            return await carry_on(app, resume, wish, server=server)
        return await start(app, wish, server=server)

    status = run_app(command, config=config, json=json)
    if status:
        leave(status)


batch.__doc__ = f"{cleandoc(batch.__doc__ or '')}\n\n{EXAMPLES}"
