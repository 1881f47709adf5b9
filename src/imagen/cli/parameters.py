"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Have a running `imagen serve` do it, at this address; by default IMAGEN_SERVER. IMAGEN_API_KEY is its key.",
    ),
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Configuration file.")]

# Of what makes pictures: one, or those of a whole file.

Prompt = Annotated[str, typer.Argument(help="What the picture shall show; - reads it from standard input.")]
Backend = Annotated[str | None, typer.Option("-b", "--backend", help="A backend of your configuration.")]
Model = Annotated[
    str | None, typer.Option("-m", "--model", help="owner/name[:version] or a known name such as flux-dev.")
]
Count = Annotated[int, typer.Option("-n", "--count", help="How many pictures, 1 to 100.")]
MaxCost = Annotated[
    str | None, typer.Option(help="US dollars; refuse before buying when it would cost more.")
]
Semaphore = Annotated[str | None, typer.Option(help="Wait for a free place in this named limit first.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds until the prediction must have ended.")]
New = Annotated[
    bool, typer.Option("--new", help="Buy a new one even if the same request was left unfinished.")
]
Metadata = Annotated[bool, typer.Option("--json", help="Metadata as JSON on standard output.")]
Urls = Annotated[
    bool, typer.Option("--url", help="Show the addresses of the outputs too; they live for an hour.")
]

Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Width = Annotated[int | None, typer.Option(help="Pixels, together with --height.")]
Height = Annotated[int | None, typer.Option(help="Pixels, together with --width.")]
AspectRatio = Annotated[str | None, typer.Option(help="Such as 16:9, instead of width and height.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What to avoid, for models that can.")]
InputImage = Annotated[str | None, typer.Option(help="A file or URL to start from, for models that can.")]
Options = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE, any of the model's own parameters; may be repeated.")
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Write no prompt, model and seed into the files.")
]
NeverRepeat = Annotated[
    bool, typer.Option("--never-repeat", help="Never send a create again whose answer was lost.")
]

PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A named set of inputs; `imagen presets` lists them. What you say wins.",
    ),
]
Show = Annotated[
    bool | None,
    typer.Option(
        "--show/--no-show",
        help="Show pictures in a terminal that can.",
        show_default="by the settings",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nobody before the final is bought.")]
