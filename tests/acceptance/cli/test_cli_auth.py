"""Stories of `imagen auth`: a token is kept once it works, and never shown."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from typing import Any

import pytest

from imagen.domain.secret import Secret
from imagen.emulator import EmulatorThread

TOKEN = "r8_canary4711canary4711canary4711canary"


@pytest.fixture
def near(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command with the emulator for Replicate, and no token."""
    cli.env["IMAGEN_REPLICATE__API_BASE"] = replicate_emulator.url
    return cli


def test_login_status_logout(near: Any) -> None:
    file = near.config_home / "imagen" / "credentials.json"
    done = near("auth", "login", "--token-stdin", stdin=f"{TOKEN}\n", code=0)
    assert "emulated-" in done.stdout
    assert str(file) in done.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["REPLICATE_API_TOKEN"]["token"] == TOKEN
    status = near("auth", "status", code=0)
    assert status.lines[1].split()[:3] == ["REPLICATE_API_TOKEN", str(file), Secret(TOKEN).fingerprint()]
    both = near("auth", "status", "--json", env={"REPLICATE_API_TOKEN": "r8_another"}, code=0)
    assert both.json[0]["source"] == f"environment, hiding the one in {file}"
    assert both.json[0]["fingerprint"] == Secret("r8_another").fingerprint()
    assert near("backends", "--json", code=0).json[0]["ready"]
    gone = near("auth", "logout", code=0)
    assert gone.stdout == "forgot REPLICATE_API_TOKEN\n"
    assert near("auth", "logout", code=0).stdout == "no REPLICATE_API_TOKEN was kept\n"
    for shown in (done, status, both, gone):
        assert "canary" not in shown.stdout + shown.stderr


def test_a_token_that_does_not_work_is_not_saved(near: Any) -> None:
    done = near("auth", "login", "--token-stdin", stdin="r8_invalid_canary", code=4)
    assert "not saved" in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert not (near.config_home / "imagen" / "credentials.json").exists()


def test_without_an_answer_nothing_is_saved_unless_it_is_wanted_so(cli: Any) -> None:
    cli.env["IMAGEN_REPLICATE__API_BASE"] = "http://127.0.0.1:9"
    done = cli("auth", "login", "--token-stdin", stdin=TOKEN, code=4)
    assert "could not be checked" in done.stderr
    assert "refused" in done.stderr
    assert "--no-check" in done.stderr
    assert not (cli.config_home / "imagen" / "credentials.json").exists()
    done = cli("auth", "login", "--token-stdin", "--no-check", "--name", "OTHER_TOKEN", stdin=TOKEN, code=0)
    assert "unchecked" in done.stdout
    assert "api_token_env: OTHER_TOKEN" in done.stderr
    rows = {row["name"]: row for row in cli("auth", "status", "--json", code=0).json}
    assert rows["OTHER_TOKEN"]["fingerprint"]
    assert rows["REPLICATE_API_TOKEN"]["source"] == "not set"


@pytest.mark.parametrize("text", ["", "r8_a\nr8_b", "r8_ünïcode" * 600])
def test_what_is_no_token_is_refused_and_not_repeated(cli: Any, text: str) -> None:
    done = cli("auth", "login", "--token-stdin", "--no-check", stdin=text, code=2)
    assert done.stderr.startswith("imagen: That is no token")
    assert not text or text[:5] not in done.stderr


def test_a_token_given_for_a_name_is_not_repeated(cli: Any) -> None:
    done = cli("auth", "login", "--name", TOKEN, "--token-stdin", stdin=TOKEN, code=2)
    assert "canary" not in done.stdout + done.stderr


def test_without_a_terminal_it_does_not_ask(cli: Any) -> None:
    assert "--token-stdin" in cli("auth", "login", code=2).stderr


def test_in_a_terminal_the_token_is_asked_for_without_echo(cli: Any) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "imagen", "auth", "login", "--no-check"],
        env=cli.env,
        cwd=cli.work,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,  # without a controlling terminal getpass takes this one
    )
    os.close(theirs)
    seen = b""
    while b"api-tokens): " not in seen:
        seen += os.read(ours, 1024)
    os.write(ours, f"{TOKEN}\n".encode())
    assert process.wait(timeout=20) == 0
    while b"unchecked" not in seen:
        seen += os.read(ours, 1024)
    os.close(ours)
    assert b"canary" not in seen
    assert json.loads((cli.config_home / "imagen" / "credentials.json").read_text())["REPLICATE_API_TOKEN"]
