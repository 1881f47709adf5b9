r"""What the pages show to the reader happens.

A block behind `<!-- run -->` is run: lines of a `console` block that begin with `$ ` as commands of bash, a `python` block
as a program. The blocks of one page share a folder, one after the other. Lines without `$ ` are what is shown: `…` stands
for anything within a line, a line of `…` alone for any lines. Practice only: there is no token and no other network.

Blocks behind `<!-- run with a gateway -->` have a real `imagen serve` on the same data folder; `5003` stands for its port.
Those behind `<!-- run with an emulator -->` have an `imagen emulator`; `5055` stands for its port. A `python` block with tests
in it is run by pytest.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pages import PAGES, blocks, name_of, needs_emulator, needs_gateway

RUN = [page for page in PAGES if any(marked for marked, _, _ in blocks(page))]


ADMIN_KEY = "the-admin-key-of-the-pages"


def environment(home: Path) -> dict[str, str]:
    beside = str(Path(sys.executable).parent)
    return {
        "PATH": os.pathsep.join([beside, "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "TERM": "dumb",
        "COLUMNS": "120",
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "error",
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    }


@contextmanager
def serving(folder: Path, command: str = "serve") -> Iterator[str]:
    """A gateway that practises, or an emulator, for as long as the block runs; its port."""
    home = folder / "home"
    home.mkdir()
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "imagen", command, "--port", "0", "--json"],
            env=environment(home), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, encoding="utf-8",
        )  # fmt: skip
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"].rpartition(":")[2]
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0, (folder / "gateway.log").read_text()


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """The exit status, and what a person at a terminal sees: results first, then what is said about them."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def watch() -> None:
        try:
            while data := os.read(ours, 65_536):
                seen.extend(data)
        except OSError:  # how a terminal says that nobody writes any more
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    home = folder / "home"
    home.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(home), stdin=subprocess.DEVNULL, stdout=theirs,
            stderr=subprocess.PIPE, timeout=50, check=False,
        )  # fmt: skip
    finally:
        os.close(theirs)
        watcher.join()
        os.close(ours)
    shown = (seen + done.stderr).decode().replace("\r\n", "\n")
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", shown)  # bold and colours


def steps(body: str) -> Iterator[tuple[str, str]]:
    """Each command of a `console` block with what is shown below it."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = f"{command[:-1]} {more.removeprefix('>').strip()}"
        yield command, shown


def pattern(shown: str) -> str:
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*?") + r"\s*\n"
        for line in shown.splitlines()
    ]
    return "".join(lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page", [page for page in RUN if not needs_gateway(page) and not needs_emulator(page)], ids=name_of
)
def test_what_a_page_shows_happens(page: Path, tmp_path: Path) -> None:
    check_blocks(page, tmp_path)


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages speak to the gateway with curl")
@pytest.mark.parametrize("page", [page for page in RUN if needs_gateway(page)], ids=name_of)
def test_what_a_page_shows_of_the_gateway_happens(page: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as port:
        check_blocks(page, tmp_path, port=port)


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages speak to the emulator with curl")
@pytest.mark.parametrize("page", [page for page in RUN if needs_emulator(page)], ids=name_of)
def test_what_a_page_shows_of_the_emulator_happens(page: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "emulator") as port:
        check_blocks(page, tmp_path, port=port, shown_port="5055")


def check_blocks(page: Path, tmp_path: Path, *, port: str = "5003", shown_port: str = "5003") -> None:
    """Run each marked block of a page and compare what it shows."""
    for marked, language, text in blocks(page):
        body = text.replace(f":{shown_port}", f":{port}")
        if not marked:
            continue
        if language == "python":
            status, output = run([sys.executable, *as_program(body, tmp_path)], tmp_path)
            assert status == 0, output
            continue
        assert language == "console"
        for command, shown in steps(body):
            status, output = run(["bash", "-euo", "pipefail", "-c", command], tmp_path)
            assert status == 0, f"{command}\n{output}"
            if shown.strip():
                assert re.fullmatch(pattern(shown), output if output.endswith("\n") else output + "\n"), (
                    f"{command}\nshown:\n{shown}\nseen:\n{output}"
                )


def as_program(body: str, folder: Path) -> list[str]:
    """The arguments with which Python runs a block."""
    if "def test_" not in body:
        return ["-c", body]
    (folder / "test_page.py").write_text(body, encoding="utf-8")
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]


def test_some_pages_show_something() -> None:
    assert {"README.md", "docs/tutorial.md"} <= {name_of(page) for page in RUN}
    assert {"docs/how-to/run-the-gateway.md", "docs/how-to/share-a-semaphore.md"} <= {
        name_of(page) for page in PAGES if needs_gateway(page)
    }


def test_dots_stand_for_anything() -> None:
    assert re.fullmatch(pattern("saved …/a.png\n…\nend\n"), "saved /tmp/x/a.png\none\ntwo\nend\n")
    assert not re.fullmatch(pattern("saved …/a.png\n"), "saved /tmp/x/b.png\n")
