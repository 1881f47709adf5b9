"""Writes the pages of the reference that repeat the code: `make docs`. A test compares them with the code.

docs/reference/cli.md       every command, argument and option
docs/reference/errors.md    every error, its code and its exit status
docs/reference/settings.md  its tables: every setting
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from imagen import errors
from imagen.cli.exit_status import EXIT_STATUS, INTERNAL, INTERRUPTED
from imagen.cli.main import app
from imagen.errors import ImagenError
from imagen.settings import BACKEND_ROWS, ROWS, Row

REFERENCE = Path(__file__).parent / "reference"
WRITTEN_BY = "<!-- Written by `make docs` from the code. Change it there. -->"


def build_pages() -> dict[Path, str]:
    """Every generated page with its text."""
    return {
        REFERENCE / "cli.md": build_cli_page(),
        REFERENCE / "errors.md": build_errors_page(),
        REFERENCE / "settings.md": build_settings_page(),
    }


# --- settings --------------------------------------------------------------------------------------------


def build_settings_page() -> str:
    """The page of the settings, with the rows of its two tables written anew."""
    parts: list[str] = []
    tables = iter([ROWS, BACKEND_ROWS])
    for line in (REFERENCE / "settings.md").read_text("utf-8").splitlines():
        if line.startswith("| `"):
            continue
        parts.append(line)
        if line.startswith("|---"):
            parts += map(_setting, next(tables))
    return "\n".join(parts) + "\n"


def _setting(row: Row) -> str:
    default = row.absent if row.default is None else f"`{row.default}`"
    variables = "" if row in BACKEND_ROWS else f"{', '.join(f'`{name}`' for name in row.variables)} | "
    return f"| `{row.name}` | {variables}{default} | {row.kind.allowed} | {row.help} |"


# --- commands --------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, parents first."""
    yield from _walk("imagen", typer.main.get_command(app))


def build_cli_page() -> str:
    """The page of the commands."""
    intro = f"""# Commands

{WRITTEN_BY}

What a person reads goes to standard error. Standard output carries results only: tables, JSON, and in a pipe the paths
of the pictures. `imagen COMMAND --help` shows the same as this page. What the exit codes mean is in
[errors.md](errors.md), the settings are in [settings.md](settings.md).
"""
    return "\n".join([intro, *(_section(name, command) for name, command in commands())])


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child in getattr(command, "commands", {}).values():
        if not child.hidden:
            yield from _walk(f"{name} {child.name}", child)


def _section(name: str, command: Any) -> str:
    parts = [f"## {name}", *_help(command.help or "")]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    if arguments:
        rows = [(f"`{_metavar(one)}`", _one_line(getattr(one, "help", "") or "")) for one in arguments]
        parts.append(_table(("Argument", "Meaning"), rows))
    if options:
        rows = [(_names(one), _one_line(one.help or "") + _default(one)) for one in options]
        parts.append(_table(("Option", "Meaning"), rows))
    if children := [child for child in getattr(command, "commands", {}).values() if not child.hidden]:
        rows = [
            (f"[`{name} {one.name}`](#{_anchor(f'{name} {one.name}')})", _summary(one)) for one in children
        ]
        parts.append(_table(("Command", "Meaning"), rows))
    if command.epilog:
        parts += _help(command.epilog)
    return "\n\n".join(parts) + "\n"


def _help(text: str) -> list[str]:
    """Paragraphs; those that are marked to be kept as they are, as blocks."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            parts.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        elif paragraph.strip():
            parts.append(_one_line(paragraph))
    return parts


def _summary(command: Any) -> str:
    first = inspect.cleandoc(command.help or "").partition("\n\n")[0]
    return _one_line(first)


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag or option.count else f"{names} `{_metavar(option)}`"


def _metavar(param: Any) -> str:
    """What stands for the value; by the parameter's own name, because how Typer names types changes."""
    return str(param.metavar or param.name).upper().strip("{}[]<>")


def _default(option: Any) -> str:
    default = option.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f" Default: `{default}`." if plain and not option.is_flag else ""


# --- errors ----------------------------------------------------------------------------------------------


def build_errors_page() -> str:
    """The page of the errors."""
    rows = [
        (
            f"`{kind.code}`",
            f"`{kind.__name__}`",
            str(_status(kind)),
            "yes" if kind.retryable else "",
            _meaning(kind),
        )
        for kind in error_classes()
    ]
    return f"""# Errors

{WRITTEN_BY}

Every error that imagen raises on purpose is an `ImagenError`. Who is at fault decides the branch, and the branch decides
the exit status. An error has a `code` that stays the same between releases, a `detail` that says what happened without
prompt or secret, mostly a `hint` that says what to do next, and `retry_after` (seconds) where that is known.

On the command line an error is one line on standard error. With `--json` it is an object on standard output besides:
`error` (the code), `detail`, `hint`, and where they apply `problems`, `prediction_id`, `charged`, `retry_after`,
`category` and `reason`.

## The tree

```text
{_tree()}
```

## Codes

"Retryable" means that the same request may succeed later. It does not mean that imagen repeats it: whether a create is
repeated is told in [paying once](../explanation/paying-once.md).

{_table(("Code", "Class", "Exit status", "Retryable", "Meaning"), rows)}

## Exit status

{_table(("Status", "Meaning"), _statuses())}
"""


def error_classes() -> list[type[ImagenError]]:
    """Every class of errors.py, in its order."""
    return [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ImagenError)
    ]


def _status(kind: type[ImagenError]) -> int:
    return next((status for branch, status in EXIT_STATUS if issubclass(kind, branch)), INTERNAL)


def _statuses() -> list[tuple[str, ...]]:
    branches: dict[int, list[str]] = {}
    for kind, status in EXIT_STATUS:
        branches.setdefault(status, []).append(f"`{kind.__name__}`")
    fixed = {0: "Done.", INTERRUPTED: "Interrupted, by Ctrl-C, SIGTERM or a closed pipe."}
    rows = {status: ", ".join(names) for status, names in branches.items()} | fixed
    rows[INTERNAL] = rows.get(INTERNAL, "") + ", and any fault of the program itself"
    return [(str(status), rows[status]) for status in sorted(rows)]


def _meaning(kind: type[ImagenError]) -> str:
    return _one_line(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0])


def _tree() -> str:
    return (errors.__doc__ or "").partition("\n\n")[2].strip()


# --- Markdown --------------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def main() -> None:
    """Write every page whose text has changed."""
    for path, text in build_pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
