"""Who lives: told by the system's own locks."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagen.errors import StoreError
from imagen.store.owners import FileOwners

OTHER = """
import sys
from pathlib import Path
from imagen.store.owners import FileOwners
owners = FileOwners(Path(sys.argv[1]))
print(owners.me, flush=True)
sys.stdin.read()
owners.close()
"""


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[FileOwners]:
    made = FileOwners(tmp_path / "owners")
    yield made
    made.close()


def test_i_am_alive_and_keep_my_name(owners: FileOwners):
    assert owners.me == owners.me
    assert owners.me.startswith(f"{os.getpid()}-")
    assert owners.alive(owners.me)


def test_two_of_one_process_see_each_other(owners: FileOwners, tmp_path: Path):
    other = FileOwners(tmp_path / "owners")
    assert other.me != owners.me
    assert owners.alive(other.me)
    name = other.me
    other.close()
    assert not owners.alive(name)
    other.close()


@pytest.mark.parametrize("end", ["kill -9", "exit"])
def test_another_process_is_alive_until_it_ends_whichever_way(owners: FileOwners, tmp_path: Path, end: str):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path / "owners")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    name = process.stdout.readline().strip()
    assert owners.me != name
    assert owners.alive(name)
    if end == "exit":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    process.stdout.close()
    process.stdin.close()
    assert not owners.alive(name)
    assert (tmp_path / "owners" / name).exists() is (end != "exit")


@pytest.mark.parametrize(
    "name", ["", "nobody", "1-0123456789abcdef", "../../etc/passwd", "1-0123456789abcdeg", "x" * 5000]
)
def test_whoever_never_was_is_dead(owners: FileOwners, name: str):
    assert not owners.alive(name)


def test_files_of_the_dead_are_swept_and_those_of_the_living_and_the_newborn_are_not(
    owners: FileOwners, tmp_path: Path
):
    folder = tmp_path / "owners"
    folder.mkdir()
    long_ago, dead, newborn = 1_000_000_000, folder / f"1-{'0' * 16}", folder / f"2-{'0' * 16}"
    living = FileOwners(folder)
    for path in (dead, newborn, folder / living.me):
        path.touch()
    for path in (dead, folder / living.me):
        os.utime(path, (long_ago, long_ago))
    assert owners.alive(owners.me)
    assert not dead.exists()
    assert newborn.exists()
    assert owners.alive(living.me)
    living.close()


def test_a_folder_that_cannot_be_made_is_told_with_a_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be used.*IMAGEN_DATA_DIR"):
        _ = FileOwners(tmp_path / "file" / "owners").me


@pytest.mark.parametrize("trouble", ["no folder", "a folder", "a loop"])
def test_who_cannot_be_asked_about_is_taken_for_alive(tmp_path: Path, trouble: str):
    name = f"1-{'0' * 16}"
    folder = tmp_path / "owners"
    match trouble:
        case "no folder":
            folder.write_text("")
        case "a folder":
            (folder / name).mkdir(parents=True)
        case _:
            folder.mkdir()
            (folder / name).symlink_to(folder / name)
    assert FileOwners(folder).alive(name)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(5, "input/output error"), OSError(24, "files")]
)
def test_whatever_the_system_says_but_not_there_means_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    def fail(*_: object) -> None:
        raise error

    name = f"1-{'0' * 16}"
    (tmp_path / name).touch()
    assert not FileOwners(tmp_path).alive(name)
    monkeypatch.setattr(fcntl, "flock", fail)
    assert FileOwners(tmp_path).alive(name)
