"""`imagen presets`: the named sets of inputs that there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imagen.cli.parameters import Config

EXAMPLES = """\b
Examples:
  imagen presets
  imagen presets --json
  imagen generate "a red fox" -m qwen-image --preset pod
"""


def presets(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """List the presets: the built-in ones, and those of imagen.yaml."""
    from imagen.cli.output import print_json, print_table
    from imagen.cli.run import read_settings, reported
    from imagen.cli.tables import format_table, shorten
    from imagen.domain.secret import is_secret_name

    with reported(json=json):
        settings = read_settings(config)
        found: list[dict[str, Any]] = [
            {
                "name": one.name,
                "built_in": one.built_in,
                "source": "built in" if one.built_in else settings.sources[f"presets.{one.name}"],
                "fields": {
                    name: "***" if is_secret_name(name) else value for name, value in one.fields.items()
                },
            }
            for one in settings.presets.values()
        ]
        if json:
            print_json(found)
            return
        rows = [
            (one["name"], name, shorten(str(value), 80), one["source"])
            for one in found
            for name, value in one["fields"].items()
        ]
        print_table(format_table(("preset", "field", "value", "from"), rows))


presets.__doc__ = f"{presets.__doc__}\n\n{EXAMPLES}"
