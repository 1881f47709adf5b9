"""`imagen generate`: one wish, one or more pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import (
    AspectRatio,
    Backend,
    Config,
    Count,
    Force,
    Height,
    InputImage,
    MaxCost,
    Metadata,
    Model,
    NegativePrompt,
    NeverRepeat,
    New,
    NoMetadata,
    Options,
    PresetName,
    Prompt,
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
  imagen generate "a red fox in the snow"
  imagen generate "a red fox" -m flux-dev --aspect-ratio 16:9 -n 4 -o foxes/
  imagen generate "a red fox" -o 'out/{model}-{seed}.{ext}' --opt go_fast=false --json
  imagen generate "a red fox" -m qwen-image --preset pod
  imagen generate "a red fox" -m flux-1.1-pro --preview 4
  IMAGEN_API_KEY=imk_… imagen generate "a red fox" --server https://pictures.example.com
"""


def generate(
    prompt: Prompt,
    backend: Backend = None,
    model: Model = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A file, a folder/ or a template with {prompt} {model} {seed} {index} {id} {date} {time} {ext}.",
        ),
    ] = None,
    force: Force = False,
    width: Width = None,
    height: Height = None,
    aspect_ratio: AspectRatio = None,
    steps: Steps = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed, prompt and model give a like picture. Chosen for you when left out."
        ),
    ] = None,
    negative_prompt: NegativePrompt = None,
    count: Count = 1,
    input_image: InputImage = None,
    opt: Options = None,
    max_cost: MaxCost = None,
    semaphore: Semaphore = None,
    timeout: Timeout = None,
    json: Metadata = False,
    url: Urls = False,
    no_download: Annotated[
        bool, typer.Option("--no-download", help="Leave the pictures upstream; show their addresses.")
    ] = False,
    no_metadata: NoMetadata = False,
    new: New = False,
    never_repeat: NeverRepeat = False,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="With --seed, take the picture from the cache where it was made before, and keep it there.",
            show_default="by the settings",
        ),
    ] = None,
    preset: PresetName = None,
    preview: Annotated[
        int | None,
        typer.Option(
            "--preview",
            metavar="N",
            help="First N cheap pictures (1 to 16), then the final of those you pick.",
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option("--pick", metavar="N", help="Pick these previews, such as 2 or 1,3; ask nobody."),
    ] = None,
    yes: Yes = False,
    show: Show = None,
    server: Server = None,
    config: Config = None,
) -> None:
    """Make a picture: buy it once, save it whole, say what it cost."""
    from imagen.cli.options import absolute_output, parts_at, read_prompt, wanted_cache
    from imagen.cli.pictures import show_pictures
    from imagen.cli.render import Renderer, show_outcomes
    from imagen.cli.run import leave, run_app
    from imagen.cli.wish import read_request
    from imagen.domain.preset import with_preset
    from imagen.errors import InvalidInput, Problem
    from imagen.service.deliver import Destination

    renderer = Renderer(quiet=json)

    async def command(app: App) -> int:
        parts = parts_at(server, app)
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
            max_cost=max_cost,
            output=output,
            deadline_seconds=timeout,
            semaphore=semaphore,
            repeat_lost=not never_repeat,
            resume=not new,
            cache=wanted_cache(cache, new=new),
        )
        request = with_preset(request, preset, app.settings.presets, resolve=app.catalog.resolve)
        destination = (
            None
            if no_download
            else Destination(
                output=absolute_output(output),
                force=force,
                metadata=app.settings.metadata and not no_metadata,
            )
        )
        if preview is not None:
            if destination is None:
                raise InvalidInput(
                    [Problem("no_download", "previews are looked at, so they are fetched; leave it away")]
                )
            from imagen.cli.drafts import Draft, Look, check_draft, run_draft

            look = Look(json=json, show=show, urls=url, yes=yes)
            picks = check_draft(preview, pick, request)
            draft = Draft(request=request, destination=destination, count=preview, picks=picks, look=look)
            return await run_draft(app, parts, backend, draft, renderer)
        if pick is not None:
            raise InvalidInput([Problem("pick", "it belongs to --preview")])
        here = parts is app
        practice = here and app.backends.get(backend).practice
        with renderer:
            outcomes = await parts.gateway.generate(
                request,
                backend=backend,
                caller=app.caller(),
                destination=destination,
                observer=renderer,
                watched=renderer.shows_progress,
            )
        practice = practice or any(one.prediction.practice for one in outcomes)
        show_pictures(
            [picture.path for outcome in outcomes for picture in outcome.pictures],
            wanted=show,
            setting=app.settings.terminal.pictures,
            json=json,
        )
        return show_outcomes(
            outcomes,
            json=json,
            urls=url or no_download,
            practice=practice,
            here=here,
            left_out=renderer.left_out,
        )

    status = run_app(command, config=config, json=json, observer=renderer)
    if status:
        leave(status)


generate.__doc__ = f"{generate.__doc__}\n\n{EXAMPLES}"
