"""Every cell of a database, for whoever looks for what must not be there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path


def read_cells(path: Path) -> Iterator[tuple[str, bytes]]:
    """`table.column` and the value's bytes, for each value that is not null.

    Args:
        path: of a database that nobody has open.
    """
    with closing(sqlite3.connect(path)) as connection:
        tables = [
            name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
        ]
        for table in tables:
            cursor = connection.execute(f'select * from "{table}"')  # noqa: S608 - a name of our own schema
            columns = [column for column, *_ in cursor.description]
            for row in cursor:
                for column, value in zip(columns, row, strict=True):
                    if value is not None:
                        yield f"{table}.{column}", value if isinstance(value, bytes) else str(value).encode()
