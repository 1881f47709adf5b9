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
