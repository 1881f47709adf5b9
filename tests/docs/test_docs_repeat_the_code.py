"""Pages that repeat the code say what the code says."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pages import PAGES, ROOT, generator, name_of

import imagen
from imagen.domain.limits import Patience
from imagen.limits.line import LineRules
from imagen.pictures.naming import FIELDS
from imagen.server.answers import ErrorBody
from imagen.server.batch import MOST_TASKS
from imagen.server.bodies import (
    MOST_BYTES,
    MOST_BYTES_OF_STRANGERS,
    MOST_GROUPS,
    MOST_VALUES,
    SILENCE_SECONDS,
)
from imagen.server.results import Turn, cost_header
from imagen.server.wishes import DOCUMENTED_RULES, EXTENSIONS

GENERATE = generator()
COMMANDS = list(GENERATE.commands())
FILE_IN_SRC = re.compile(r"`((?:[a-z_]+/)+(?:[a-z_0-9]+\.py)?|[a-z_]+\.py)`")


@pytest.mark.parametrize(
    ("path", "text"), GENERATE.build_pages().items(), ids=lambda value: getattr(value, "name", "")
)
def test_generated_pages_are_up_to_date(path: Any, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run `make docs`"


def test_the_code_map_has_every_module_and_says_what_it_is() -> None:
    rooms = GENERATE.module_rows()
    assert sum(map(len, rooms.values())) == len([*(ROOT / "src/imagen").rglob("*.py")])
    assert {"`replicate/calls.py`", "`openai/`"} <= {name for name, _ in rooms["server/"]}
    assert [name for rows in rooms.values() for name, told in rows if not told] == []


def test_a_room_without_a_mark_on_the_page_is_missed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "architecture.md"
    whole = GENERATE.ARCHITECTURE.read_text(encoding="utf-8")
    page.write_text(whole.replace("<!-- modules of queue/ -->", ""), encoding="utf-8")
    monkeypatch.setattr(GENERATE, "ARCHITECTURE", page)
    with pytest.raises(ValueError, match="one mark for each"):
        GENERATE.build_architecture_page()


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_says_what_it_does(name: str, command: Any) -> None:
    assert command.help, f"{name} has no help"
    silent = [one.name for one in command.params if not (getattr(one, "help", None) or one.name == "help")]
    assert silent == []


def test_the_python_page_names_every_public_name_and_parameter() -> None:
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    missing = [name for name in imagen.__all__ if f"`{name}" not in page]
    client = imagen.AsyncClient
    for method in (client.__init__, client.generate, client.semaphore):
        missing += [
            name for name in inspect.signature(method).parameters if name != "self" and f"{name}`" not in page
        ]
    for kind in (imagen.Prediction, imagen.Image):
        missing += [name for name in vars(kind) if not name.startswith("_") and f"`{name}" not in page]
    assert missing == []


def test_the_http_page_says_what_every_field_means() -> None:
    page = (ROOT / "docs/reference/http.md").read_text(encoding="utf-8")
    shapes = page.partition("## Shapes")[2].partition(GENERATE.MIDDLE[1])[0]
    assert re.findall(r"^\| `.*\|\s*\|$", shapes, re.MULTILINE) == []
    assert [name for name in GENERATE.MEANINGS if f"| `{name}` |" not in shapes] == []


def test_the_http_page_names_every_header_and_field_of_an_error() -> None:
    page = (ROOT / "docs/reference/http.md").read_text(encoding="utf-8")
    headers = {*Turn().headers(), *cost_header(None), "x-imagen-prediction-id", "x-request-id", "retry-after"}
    assert sorted(name for name in headers if f"| `{name}`" not in page.lower()) == []
    assert [name for name in ErrorBody.__struct_fields__ if f"| `{name}` |" not in page] == []


def test_the_http_page_tells_how_much_is_taken() -> None:
    page = (ROOT / "docs/reference/http.md").read_text(encoding="utf-8")
    for bound in (
        f"{MOST_BYTES >> 20} MiB; {MOST_BYTES_OF_STRANGERS >> 20} MiB",
        f"{MOST_GROUPS:,} objects and lists, {MOST_VALUES:,} values",
        f"{SILENCE_SECONDS:g} seconds",
        f"tasks of a batch | {MOST_TASKS:,}",
    ):
        assert bound in page


def test_the_http_page_names_the_documented_ranges() -> None:
    page = " ".join((ROOT / "docs/reference/http.md").read_text(encoding="utf-8").split())
    assert set(DOCUMENTED_RULES) == {"flux-kontext-max", "qwen-image"}
    assert DOCUMENTED_RULES["qwen-image"].defaults == {"num_inference_steps": 50, "guidance": 4.0}
    assert "50 steps and a guidance of 4, and `lora_scale` goes from 0 to 2" in page
    assert [ending for ending in EXTENSIONS if f"`{ending}`" not in page] == []


@pytest.mark.parametrize("page", ["docs/how-to/run-the-gateway.md", "docs/explanation/limits.md"])
def test_pages_of_the_gateway_tell_the_defaults(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    rules = LineRules()
    assert f"{rules.waiting:,}" in text
    assert f"{rules.waiting_per_caller:,}" in text
    assert f"{Patience().line_seconds:g}" in text


def test_the_page_on_saving_names_every_field() -> None:
    page = (ROOT / "docs/how-to/save-pictures.md").read_text(encoding="utf-8")
    assert [field for field in FIELDS if f"`{{{field}}}`" not in page] == []


@pytest.mark.parametrize(
    "name",
    [
        "docs/architecture.md",
        "docs/explanation/limits.md",
        "docs/explanation/paying-once.md",
        *(name_of(page) for page in PAGES if page.parent.name == "adr"),
        "CONTRIBUTING.md",
    ],
)
def test_files_that_are_named_exist(name: str) -> None:
    named = set(FILE_IN_SRC.findall((ROOT / name).read_text(encoding="utf-8")))
    assert sorted(one for one in named if not is_there(one)) == []


def is_there(name: str) -> bool:
    """Whether a path is one of ours from where readers look: the root, a folder of tests, any package."""
    if any((place / name).exists() for place in (ROOT, ROOT / "tests", ROOT / "docs")):
        return True
    return (
        next((ROOT / "src/imagen").rglob(name.rstrip("/")), None) is not None
        or (ROOT / "src/imagen" / name).exists()
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_that_are_named_exist(page: Any) -> None:
    known = {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in COMMANDS
    }
    wrong = []
    for line in re.findall(
        r"^(?:\$ )?(imagen [a-z].*)$|`(imagen [a-z][^`]*)`", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        words = "".join(line).split("#")[0].split()
        name = next((" ".join(words[:size]) for size in (3, 2) if " ".join(words[:size]) in known), None)
        if name is None:
            wrong.append(" ".join(words))
            continue
        options = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        wrong += [f"{name}: {option}" for option in sorted(options - known[name] - {"--help"})]
    assert wrong == []
