"""Brings a database to the schema of this release. Alembic is loaded only when there is something to do."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from imagen.errors import SchemaMismatch

HEAD = "0008"
"""The newest file in `migrations/versions`; a test keeps the two equal."""


def migrate(engine: Engine, *, lock: Path) -> None:
    """Apply what is missing, one process at a time.

    Raises:
        SchemaMismatch: a newer imagen has written this database.
    """
    if _version(engine) == HEAD:
        return
    with _alone(lock):
        version = _version(engine)
        if version == HEAD:
            return
        _upgrade(engine, version)


def _version(engine: Engine) -> str | None:
    with engine.connect().execution_options(reading=True) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: Engine, version: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - 0.2 s that only a new release costs
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise SchemaMismatch(
            f"the database has schema {version}, which this release does not know",
            hint="Install the newer imagen again.",
        )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
