"""Writes the pages of the reference that repeat the code: `make docs`. A test compares them with the code.

docs/architecture.md        its code map: every module
docs/reference/cli.md       every command, argument and option
docs/reference/errors.md    every error, its code, its exit status and its HTTP status
docs/reference/http.md      its middle: every operation of the gateway, and the shapes of what goes in and out
docs/reference/settings.md  its tables: every setting
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import typer

import imagen
from imagen import __version__, errors
from imagen.cli.exit_status import EXIT_STATUS, INTERNAL, INTERRUPTED
from imagen.cli.main import app
from imagen.errors import ImagenError, PredictionFailed
from imagen.server.answers import HTTP_STATUS, ErrorBody, http_status
from imagen.server.app import operations
from imagen.server.documents import openapi_document
from imagen.server.operation import Operation
from imagen.settings import BACKEND_ROWS, ROWS, Row

ARCHITECTURE = Path(__file__).parent / "architecture.md"
REFERENCE = Path(__file__).parent / "reference"
WRITTEN_BY = "<!-- Written by `make docs` from the code. Change it there. -->"
MIDDLE = ("<!-- What follows is written by `make docs` from the code. -->", "<!-- Written by hand again. -->")
ROOM_MARK = re.compile(r"<!-- modules of (\S+) -->")
ROOM_TABLE = re.compile(rf"({ROOM_MARK.pattern})\n(?:\n(?:\|.*\n)+)?")
INTERNAL_ERROR = 500


def build_pages() -> dict[Path, str]:
    """Every generated page with its text."""
    return {
        ARCHITECTURE: build_architecture_page(),
        REFERENCE / "cli.md": build_cli_page(),
        REFERENCE / "errors.md": build_errors_page(),
        REFERENCE / "http.md": build_http_page(),
        REFERENCE / "settings.md": build_settings_page(),
    }


# --- modules ---------------------------------------------------------------------------------------------


def build_architecture_page() -> str:
    """The page of the architecture, with the table behind each mark of a room written anew.

    Raises:
        ValueError: a room of the package has no mark, or a mark no room.
    """
    rooms = module_rows()
    text = ARCHITECTURE.read_text("utf-8")
    marks = ROOM_MARK.findall(text)
    if sorted(marks) != sorted(rooms):
        raise ValueError(
            f"architecture.md needs one mark for each of {sorted(rooms)}; it has {sorted(marks)}"
        )
    return ROOM_TABLE.sub(
        lambda found: f"{found[1]}\n\n{_table(('File', 'What it is'), rooms[found[2]])}\n", text
    )


def module_rows() -> dict[str, list[tuple[str, str]]]:
    """Every module by its room, with the first line of its docstring; `.` has those of no room.

    A folder comes before what is in it, by the docstring of its package.
    """
    root = Path(imagen.__file__).parent
    rooms: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        first, *rest = path.relative_to(root).parts
        room = f"{first}/" if rest else "."
        name = "/".join(rest).removesuffix("__init__.py") or first + "/" * bool(rest)
        told = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        rooms.setdefault(room, []).append((f"`{name}`", _one_line(told)))
    return rooms


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


# --- HTTP ------------------------------------------------------------------------------------------------


def build_http_page() -> str:
    """The page of the gateway, with what is between its two marks written anew."""
    text = (REFERENCE / "http.md").read_text("utf-8")
    before, _, rest = text.partition(MIDDLE[0])
    _, _, after = rest.partition(MIDDLE[1])
    if not after:
        raise ValueError(f"http.md has lost its marks {MIDDLE}")
    return f"{before}{MIDDLE[0]}\n\n{_http_middle(operations())}\n\n{MIDDLE[1]}{after}"


def _http_middle(all_of_them: Sequence[Operation]) -> str:
    document = openapi_document(all_of_them, __version__)
    schemas = document["components"]["schemas"]
    schemas.pop(ErrorBody.__name__)
    for operation in all_of_them:
        for kind in (operation.body, *operation.answers.values()):
            if _is_shape(kind):
                _inherit(schemas[kind.__name__], kind)
    rows = [
        (f"[`{_line(one)}`](#{_http_anchor(_line(one))})", ACCESS[one.access], one.summary)
        for one in all_of_them
    ]
    shapes = [_shape(name, schema) for name, schema in schemas.items()]
    return "\n\n".join(
        [
            "## Operations",
            _table(("Operation", "For", "What it does"), rows),
            *(_operation(one, document["paths"][_path(one)][one.method.lower()]) for one in all_of_them),
            "## Shapes",
            "A field without default must be there; of answers, it is there.",
            *shapes,
        ]
    )


MEANINGS = {
    "charged": "whether it is billed.",
    "code": "the stable name of the error.",
    "count": "how many pictures.",
    "error": "what went wrong, a sentence for people.",
    "external_semaphore_used": "whether a named limit was waited for.",
    "failed_count": "tasks without pictures.",
    "generated_files": "one for each picture, in order.",
    "model": "as it was run: owner/name, with a version where one was pinned.",
    "model_name": "as it was asked for.",
    "output_filename": "as it was asked for, or as it was chosen.",
    "prediction_id": "ours, good for `imagen predictions show`.",
    "prompt": "what the picture shall show.",
    "ready": "whether work is taken.",
    "reason": "why it is not.",
    "replicate_api_token": "of that account.",
    "seed": "with which the same picture can be made again.",
    "semaphore_id": "which named limit.",
    "success": "whether there are pictures.",
    "successful_count": "tasks with pictures.",
    "task_index": "the number of the task, from 0.",
    "total_tasks": "how many tasks there were.",
    "cost_usd": "US dollars; null where the price is not known.",
    "version": "the version of the model that ran.",
}
"""What fields mean whose classes leave it to their names."""
ACCESS = {"anyone": "anyone", "caller": "callers of every tier", "admin": "the admin"}


def _operation(operation: Operation, told: Mapping[str, Any]) -> str:
    """A section; `told` is the operation in the OpenAPI document."""
    parts = [f"### {_line(operation)}", f"{operation.summary}. For {ACCESS[operation.access]}."]
    if operation.description:
        parts.append(_one_line(operation.description))
    if found := told.get("parameters"):
        parameters = [(f"`{one['name']}`", one["in"], _one_line(one.get("description", ""))) for one in found]
        parts.append(_table(("Parameter", "In", "Meaning"), parameters))
    if isinstance(operation.body, type) and issubclass(operation.body, msgspec.Struct):
        parts.append(f"It takes a {_link(operation.body.__name__)}.")
    if operation.example is not None:
        what = "For example" if operation.body is not None else "It answers, for example"
        parts.append(f"{what}:\n\n```json\n{json.dumps(operation.example, indent=2)}\n```")
    parts.append(_table(("Status", "Answer"), _responses(told["responses"])))
    return "\n\n".join(parts)


def _responses(responses: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows, errors = [], []
    for status, answer in responses.items():
        content = answer.get("content", {})
        kind = _kind(content["application/json"]["schema"]) if "application/json" in content else ""
        if kind == _link(ErrorBody.__name__):
            errors.append(status)
        else:
            rows.append((status, kind or " or ".join(f"`{one}`" for one in content) or "nothing"))
    return [*rows, (", ".join(errors), "[an error](#errors)")] if errors else rows


def _path(operation: Operation) -> str:
    """Without the kinds of its parameters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", operation.path)


def _line(operation: Operation) -> str:
    return f"{operation.method} {_path(operation)}"


def _link(name: str) -> str:
    return f"[`{name}`](#{name.lower()})"


def _is_shape(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{field}`",
            _kind(facts),
            "" if field in required else _told_default(facts),
            _one_line(facts.get("description") or MEANINGS.get(field, "")),
        )
        for field, facts in schema.get("properties", {}).items()
    ]
    parts = [f"### {name}", _one_line(schema.get("description", ""))]
    if "enum" in schema:
        parts.append(f"One of {', '.join(f'`{one}`' for one in schema['enum'])}.")
    if rows:
        parts.append(_table(("Field", "Type", "Default", "Meaning"), rows))
    return "\n\n".join(part for part in parts if part)


def _told_default(facts: Mapping[str, Any]) -> str:
    return f"`{json.dumps(facts['default'])}`" if facts.get("default") is not None else "left out"


def _kind(facts: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in facts:
        return _link(facts["$ref"].rpartition("/")[2])
    if "anyOf" in facts:
        return " or ".join(_kind(one) for one in facts["anyOf"])
    if "enum" in facts:
        return " or ".join(f"`{one}`" for one in facts["enum"])
    kind = facts.get("type", "")
    if kind == "array":
        each = _kind(facts["items"]) if "items" in facts else "anything"
        return f"list of ({each})" if " or " in each else f"list of {each}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    if facts.get("format") == "date-time":
        return "instant"
    return words.get(kind, kind or "anything") + _bounds(facts)


def _bounds(facts: Mapping[str, Any]) -> str:
    if "maxLength" in facts:
        return f" of {facts.get('minLength', 0)} to {facts['maxLength']} characters"
    if "exclusiveMinimum" in facts:
        return f" above {facts['exclusiveMinimum']}, at most {facts['maximum']}"
    return f" from {facts['minimum']} to {facts['maximum']}" if "maximum" in facts else ""


def _inherit(schema: dict[str, Any], kind: type) -> None:
    """Tell of fields what the classes say that a class inherits them from."""
    for base in kind.__mro__[1:]:
        text = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for found in re.finditer(r"^    (\w+): (.+(?:\n {5,}.+)*)", text, re.MULTILINE):
            facts = schema["properties"].get(found[1])
            if facts is not None:
                facts.setdefault("description", found[2])


def _http_anchor(heading: str) -> str:
    """By the rule of the usual viewers."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- errors ----------------------------------------------------------------------------------------------


def build_errors_page() -> str:
    """The page of the errors."""
    rows = [
        (
            f"`{kind.code}`",
            f"`{kind.__name__}`",
            str(_status(kind)),
            _answered(kind),
            "yes" if kind.retryable else "",
            _meaning(kind),
        )
        for kind in error_classes()
    ]
    return f"""# Errors

{WRITTEN_BY}

Every error that imagen raises on purpose is an `ImagenError`. Who is at fault decides the branch, and the branch decides
the exit status and the status over HTTP. An error has a `code` that stays the same between releases, a `detail` that says
what happened without prompt or secret, mostly a `hint` that says what to do next, and `retry_after` (seconds) where that
is known.

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

{_table(("Code", "Class", "Exit status", "HTTP status", "Retryable", "Meaning"), rows)}

## Exit status

{_table(("Status", "Meaning"), _statuses())}

## HTTP status

What the gateway answers with. The body is always [the same shape](http.md#errors). 429 and 503 come with `Retry-After`
where a wait is known.

{_table(("Status", "Errors"), _answers())}
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


def _answered(kind: type[ImagenError]) -> str:
    """The status of the gateway's answer; an error of the branch itself is looked at, without its arguments."""
    error = kind.__new__(kind)
    if not isinstance(error, PredictionFailed):
        return str(http_status(error))
    vars(error)["category"] = None
    others = http_status(error)
    vars(error)["category"] = "safety"
    return f"{others}; {http_status(error)} for `safety`"


def _answers() -> list[tuple[str, ...]]:
    rows: dict[str, list[str]] = {}
    for kind, _ in HTTP_STATUS:
        for status in re.findall(r"\d+", _answered(kind)):
            rows.setdefault(status, []).append(f"`{kind.code}`")
    rows.setdefault(str(INTERNAL_ERROR), []).append("any fault of the program itself")
    return [
        (f"{status} {HTTPStatus(int(status)).phrase}", ", ".join(rows[status])) for status in sorted(rows)
    ]


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
