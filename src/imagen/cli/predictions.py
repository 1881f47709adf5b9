"""Placeholder, about to be written."""

import typer

app = typer.Typer()


@app.command()
def adopt() -> None:
    """Soon."""
