"""Every command explains itself with an example, and asking for help loads nothing that is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from imagen.cli.main import app

COMMANDS = [
    ("batch",),
    ("batches", "list"),
    ("batches", "show"),
    ("batches", "pause"),
    ("batches", "resume"),
    ("batches", "cancel"),
    ("batches", "retry"),
    ("backends",),
    ("models",),
    ("usage",),
    ("doctor",),
    ("emulator",),
    ("predictions", "list"),
    ("predictions", "show"),
    ("predictions", "cancel"),
    ("predictions", "adopt"),
    ("auth", "login"),
    ("auth", "status"),
    ("auth", "logout"),
    ("config", "init"),
    ("config", "show"),
    ("config", "path"),
]
HEAVY = ("aiohttp", "alembic", "keyring", "msgspec", "PIL", "rich", "sqlalchemy", "uvloop", "yaml")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_on_a_line_of_its_own(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"], terminal_width=100)
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.output.splitlines()]
    assert "Examples:" in lines
    assert any(line.startswith(f"imagen {' '.join(command)}") for line in lines)
    prose = done.output.partition("Options:")[0].partition("Arguments:")[0].partition("Examples:")[0]
    assert not [line for line in prose.splitlines() if "   " in line.strip()]


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, imagen.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
