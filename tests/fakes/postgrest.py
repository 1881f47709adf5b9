"""A double of Supabase's REST API (PostgREST behind its gateway of keys) over a real PostgreSQL, with faults on request.

It speaks as much of PostgREST as a client of one table needs: `POST` with `Prefer: resolution=ignore-duplicates` and
`on_conflict`, `GET` with `select` (casts too), filters, `or`, `order` and `limit`, schemas by `Content-Profile` and
`Accept-Profile`, and its error bodies. Each request is one transaction, as the role of its key.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psycopg

from fakes.postgres import Postgres

SERVICE_KEY, ANON_KEY = "sb-service-role-key-of-tests", "sb-anon-key-of-tests"
_ROLES = {SERVICE_KEY: "service_role", ANON_KEY: "anon"}
_MAKE_ROLES = """
do $$ begin
    if not exists (select from pg_roles where rolname = 'service_role') then
        create role anon nologin; create role authenticated nologin;
        create role service_role nologin bypassrls;
    end if;
end $$
"""
_OPERATORS = {"eq": "=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_STATUS = {"42501": 403, "42P01": 404, "23505": 409}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "details": None, "hint": hint}
        if code is None:  # the gateway of keys has bodies of its own
            self.body = {"message": message, "hint": hint}


class PostgrestDouble:
    """One project.

    Attributes:
        url: as `SUPABASE_URL`.
        database: the address of its database.
        schemas: those that are exposed.
        max_rows: given at once at most.
        faults: for the next requests, one each: `503`, `html`, `drop` (nothing happens), `lost` (it happens, and the
            answer does not come), `half` (half of a batch happens, and no answer comes), `slow` (answers when released).
        requests: method and target of each that came.
    """

    def __init__(self, postgres: Postgres) -> None:
        postgres.run(_MAKE_ROLES)
        self.database = postgres.database()
        self.schemas = ["public", "mai"]
        self.max_rows = 1000
        self.faults: deque[str] = deque()
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()
        self.url = ""

    def migrate(self, sql: str) -> None:
        """As the SQL editor does."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(sql.encode())

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Status and JSON of one request."""
        key = headers.get("apikey")
        if key is None:
            raise Refused(
                401, "No API key found in request", hint="No `apikey` request header or url param was found."
            )
        if key not in _ROLES or headers.get("authorization") != f"Bearer {key}":
            raise Refused(
                401, "Invalid API key", hint="Double check your Supabase `anon` or `service_role` API key."
            )
        parts = urlsplit(target)
        table = parts.path.removeprefix("/rest/v1/")
        schema = headers.get("accept-profile" if method == "GET" else "content-profile", self.schemas[0])
        if schema not in self.schemas:
            raise Refused(
                406, f"The schema must be one of the following: {', '.join(self.schemas)}", code="PGRST106"
            )
        query = parse_qsl(parts.query)
        try:
            with psycopg.connect(self.database) as connection:
                columns = self._columns(connection, schema, table)
                connection.execute(f"set local role {_ROLES[key]}".encode())
                if method == "GET":
                    return 200, self._select(connection, f"{schema}.{table}", query, columns)
                self._insert(connection, f"{schema}.{table}", dict(query), headers, json.loads(body), columns)
                return 201, None
        except psycopg.Error as error:
            state = error.sqlstate or "XX000"
            raise Refused(_STATUS.get(state, 400), error.diag.message_primary or "", code=state) from error

    def _columns(self, connection: psycopg.Connection, schema: str, table: str) -> set[str]:
        found = connection.execute(
            "select column_name from information_schema.columns where table_schema = %s and table_name = %s",
            (schema, table),
        ).fetchall()
        if not found:
            raise Refused(
                404, f"Could not find the table '{schema}.{table}' in the schema cache", code="PGRST205"
            )
        return {name for (name,) in found}

    def _insert(
        self, connection: psycopg.Connection, table: str, query: dict[str, str], headers: dict[str, str], rows: Any,
        columns: set[str],
    ) -> None:  # fmt: skip
        names = re.findall(r'"([^"]+)"', query.get("columns", "")) or sorted(
            {name for row in rows for name in row}
        )
        for name in names:
            if name not in columns:
                raise Refused(
                    400,
                    f"Could not find the '{name}' column of '{table}' in the schema cache",
                    code="PGRST204",
                )
        listed = ", ".join(f'"{name}"' for name in names)
        conflict = ""
        if "resolution=ignore-duplicates" in headers.get("prefer", ""):
            conflict = f"on conflict ({query['on_conflict']}) do nothing"
        connection.execute(  # names come from a test's own client
            f"insert into {table} ({listed}) select {listed} from json_populate_recordset(null::{table}, %s::json) {conflict}".encode(),  # noqa: S608
            (json.dumps(rows),),
        )

    def _select(
        self, connection: psycopg.Connection, table: str, query: list[tuple[str, str]], columns: set[str]
    ) -> Any:
        select, order, limit, wheres, values = "*", "", self.max_rows, [], []
        for name, value in query:
            if name == "select":
                select = ", ".join(self._selected(one, columns) for one in value.split(","))
            elif name == "order":
                order = "order by " + ", ".join(one.replace(".", " ") for one in value.split(","))
            elif name == "limit":
                limit = min(limit, int(value))
            elif name == "or":
                wheres.append(_logic("or", value[1:-1], values))
            else:
                wheres.append(_condition(f"{name}.{value}", values))
        where = f"where {' and '.join(wheres)}" if wheres else ""
        row = connection.execute(
            f"select coalesce(json_agg(found), '[]') from (select {select} from {table} {where} {order} limit {limit}) found".encode(),  # noqa: S608
            values,
        ).fetchone()
        return row[0] if row else []

    def _selected(self, one: str, columns: set[str]) -> str:
        name, _, cast = one.partition("::")
        if name not in columns:
            raise Refused(400, f"column {name} does not exist", code="42703")
        return f'"{name}"::{cast} as "{name}"' if cast else f'"{name}"'


def _logic(word: str, inside: str, values: list[str]) -> str:
    """`a.lt.1,and(b.eq.2,c.gt.3)` as SQL."""
    parts = re.findall(r'(?:and|or)\([^()]*\)|(?:"[^"]*"|[^,])+', inside)
    found = [
        _logic(part[: part.index("(")], part[part.index("(") + 1 : -1], values)
        if re.match(r"(and|or)\(", part)
        else _condition(part, values)
        for part in parts
    ]
    return f"({f' {word} '.join(found)})"


def _condition(text: str, values: list[str]) -> str:
    name, operator, value = text.split(".", 2)
    values.append(value.strip('"'))
    return f'"{name}" {_OPERATORS[operator]} %s'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: PostgrestDouble

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _handle(self) -> None:
        double = self.double
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        double.requests.append((self.command, self.path))
        fault = double.faults.popleft() if double.faults else None
        if fault == "503":
            return self._send(
                503,
                {
                    "code": "PGRST002",
                    "message": "Could not query the database for the schema cache. Retrying.",
                },
            )
        if fault == "html":
            return self._send(502, "<html><body>Bad gateway</body></html>")
        if fault == "drop":
            return self._drop()
        if fault == "slow":
            double.released.wait(20)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if fault == "half":
            rows = json.loads(body)
            double.answer(self.command, self.path, headers, json.dumps(rows[: len(rows) // 2]).encode())
            return self._drop()
        try:
            status, found = double.answer(self.command, self.path, headers, body)
        except Refused as refused:
            status, found = refused.status, refused.body
        if fault == "lost":
            return self._drop()
        return self._send(status, found)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, found: Any) -> None:
        data = (
            b"" if found is None else found.encode() if isinstance(found, str) else json.dumps(found).encode()
        )
        self.send_response(status)
        self.send_header(
            "content-type", "text/html" if isinstance(found, str) else "application/json; charset=utf-8"
        )
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that gave up is no news."""


@contextmanager
def postgrest_double(postgres: Postgres) -> Iterator[PostgrestDouble]:
    """A project that answers on loopback while the block runs."""
    double = PostgrestDouble(postgres)
    handler = type("Handler", (_Handler,), {"double": double})
    server = _Server(("127.0.0.1", 0), handler)
    double.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        double.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
