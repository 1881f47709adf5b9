"""The schema. Column names are the field names of `Prediction` and `UsageEntry`; migrations make it, one by one."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Float,
    Index,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
)

from imagen.store.types import Addresses, Instant, Json, Micros, StatusText

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("backend", Text, nullable=False),
    Column("backend_type", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("input", Json, nullable=False),
    Column("request_key", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("deadline_seconds", Float, nullable=False),
    Column("seed", BigInteger),
    Column("status", StatusText, nullable=False),
    Column("sent_at", Instant),
    Column("upstream_id", Text),
    Column("version", Text),
    Column("output", Addresses, nullable=False),
    Column("error", Text),
    Column("category", Text),
    Column("logs", Text, nullable=False),
    Column("predict_seconds", Float),
    Column("image_count", Integer),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("owner", Text),
    Column("charged", Boolean),
    Column("cost", Micros),
    Column("destination", Json),
    Column("files", Json, nullable=False),
    Column("delivered_at", Instant),
    Column("settled_at", Instant),
)
Index("predictions_by_upstream", predictions.c.account, predictions.c.upstream_id, unique=True)
Index("predictions_by_request", predictions.c.request_key)
Index("predictions_by_status", predictions.c.status, predictions.c.delivered_at)
Index("predictions_by_time", predictions.c.created_at)

semaphores = Table(
    "semaphores",
    metadata,
    Column("name", Text, primary_key=True),
    Column("limit", Integer, nullable=False),
)

# Instants of what is held and waited for are epoch seconds: they are compared in every transaction of the limits.

leases = Table(
    "leases",
    metadata,
    Column("resource", Text, primary_key=True),  # semaphore:NAME, key:ID or account:FINGERPRINT@ORIGIN
    Column("lease", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)
Index("leases_by_lease", leases.c.lease)
Index("leases_by_resource", leases.c.resource, leases.c.expires_at)

lines = Table(
    "lines",
    metadata,
    Column("resource", Text, primary_key=True),
    Column("line", Text, primary_key=True),
    Column("lane", Integer, nullable=False),
    Column("since", Float, nullable=False),
    Column("count", Integer, nullable=False),
    Column("seen_at", Float, nullable=False),
)

gates = Table(
    "gates",
    metadata,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("used_at", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),  # sha256 of what is shown; the key itself is nowhere
    Column("models", Json, nullable=False),
    Column("routes", Json, nullable=False),
    Column("concurrent", Integer),
    Column("per_minute", Integer),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
)
Index("api_keys_by_digest", api_keys.c.digest, unique=True)
_GOOD = api_keys.c.revoked_at.is_(None)
# A name is given again after a revocation: the revoked row stays, so that ids of the past keep their meaning.
Index("api_keys_by_name", api_keys.c.name, unique=True, sqlite_where=_GOOD, postgresql_where=_GOOD)

usage = Table(
    "imagen_usage",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("backend", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("seed", BigInteger),
    Column("prompt_hash", Text, nullable=False),
    Column("latency_ms", Integer, nullable=False),
    # The truth is `cost`, in whole micro-dollars; this column shows it in dollars to whoever reads the table.
    Column("cost_usd_estimate", Numeric(14, 6), Computed("cost / 1000000.0", persisted=True)),
    Column("caller", Text, nullable=False),
    Column("cost", Micros),
    Column("outcome", Text, nullable=False),
    Column("images", Integer, nullable=False),
    Column("upstream_id", Text),
)
Index("imagen_usage_by_time", usage.c.created_at.desc())
Index("imagen_usage_by_caller", usage.c.caller)
