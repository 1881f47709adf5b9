"""The schema. Column names are the field names of `Prediction` and `UsageEntry`; migrations make it, one by one."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Computed,
    Float,
    Index,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    and_,
    literal_column,
    or_,
)

from imagen.domain.prediction import TERMINAL, Status
from imagen.store.types import Addresses, Encoded, Instant, Json, Micros, Quoted, StatusText, Wished

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
    Column("key", Text),
    Column("quote", Quoted),
    Column("tier", Text),
    Column("parent", Text),
    Column("preset", Text),
    Column("draft", Text),
    Column("wished", Wished),
    Column("prompt_hash", Text),
    Column("answer", Json),
    Column("ran_as", Text),
)
Index(
    "predictions_by_draft",
    predictions.c.draft,
    sqlite_where=predictions.c.draft.is_not(None),
    postgresql_where=predictions.c.draft.is_not(None),
)
Index("predictions_by_upstream", predictions.c.account, predictions.c.upstream_id, unique=True)
Index("predictions_by_request", predictions.c.request_key)
Index("predictions_by_status", predictions.c.status, predictions.c.delivered_at)
Index("predictions_by_time", predictions.c.created_at)
# Ids rise with time: these give each caller theirs, the newest first.
_OF_KEY = predictions.c.key.is_not(None)
Index(
    "predictions_by_key", predictions.c.key, predictions.c.id, sqlite_where=_OF_KEY, postgresql_where=_OF_KEY
)
Index("predictions_by_account", predictions.c.account, predictions.c.id)
_BOUGHT = predictions.c.upstream_id.is_not(None)
Index(
    "predictions_bought",
    predictions.c.account,
    predictions.c.sent_at,
    sqlite_where=_BOUGHT,
    postgresql_where=_BOUGHT,
)
# A database uses an index of some rows only where a query has the very same words: values stand in them, no parameters.
_ENDINGS: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in sorted(TERMINAL)]
UNFINISHED = or_(
    predictions.c.status.not_in(_ENDINGS),
    and_(
        predictions.c.status == literal_column(f"'{Status.SUCCEEDED}'"), predictions.c.delivered_at.is_(None)
    ),
)
"""Something of a prediction is left to do."""
UNSETTLED = and_(
    predictions.c.settled_at.is_(None),
    predictions.c.upstream_id.is_not(None),
    predictions.c.status.in_(_ENDINGS),
)
"""A prediction has ended and may cost something, and the ledger does not have it."""
Index(
    "predictions_unfinished",
    predictions.c.created_at,
    predictions.c.id,
    sqlite_where=UNFINISHED,
    postgresql_where=UNFINISHED,
)
Index("predictions_unsettled", predictions.c.status, sqlite_where=UNSETTLED, postgresql_where=UNSETTLED)

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

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("caller", Json, nullable=False),
    Column("scope", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("quoted", Micros, nullable=False),
    Column("unpriced", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("control", Text, nullable=False),
    Column("reason", Text),
    Column("own_token", Boolean, nullable=False),
    Column("sealed_token", Text),
    Column("webhook", Text),
    Column("webhook_events", Json, nullable=False),
    Column("details", Json, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("owner", Text),
    Column("fingerprint", Text),
    Column("owed_by", Text),
    Column("created_at", Instant, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("ended_at", Instant),
)
_OPEN = batches.c.ended_at.is_(None)
Index("batches_open", batches.c.id, sqlite_where=_OPEN, postgresql_where=_OPEN)
_OWED = batches.c.owed_by.is_not(None)
Index("batches_owed", batches.c.scope, batches.c.fingerprint, sqlite_where=_OWED, postgresql_where=_OWED)
Index("batches_by_kind", batches.c.kind, batches.c.id)
Index("batches_by_scope", batches.c.scope, batches.c.kind, batches.c.id)

items = Table(
    "items",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    Column("order", Encoded, nullable=False),
    Column("note", Json, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("predictions", Json, nullable=False),
    Column("error", Text),
    Column("code", Text),
    Column("hint", Text),
    Column("problem", Json, nullable=False),
    Column("charged", Boolean),
    Column("cost", Micros),
    Column("files", Json, nullable=False),
    Column("urls", Addresses, nullable=False),
    Column("seed", BigInteger),
    Column("images", Integer, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("ended_at", Instant),
)
# What is counted stands in the index too: a batch is counted again and again while somebody watches it.
Index(
    "items_by_status",
    items.c.batch_id,
    items.c.status,
    items.c.index,
    items.c.cost,
    items.c.images,
    items.c.ended_at,
)
Index("items_by_end", items.c.batch_id, items.c.sequence)

item_predictions = Table(
    "item_predictions",
    metadata,
    Column("prediction_id", Text, primary_key=True),
    Column("batch_id", Text, nullable=False),
    Column("index", Integer, nullable=False),
    Column("scope", Text),  # whose list has it; null for an attempt that is shown under the id of another
)
Index("item_predictions_by_scope", item_predictions.c.scope, item_predictions.c.prediction_id)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("answer", Json),
    Column("created_at", Instant, nullable=False),
)
Index("idempotency_by_time", idempotency.c.created_at)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Integer, nullable=False),  # rising: the order in which they were put
    Column("subject", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("body", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("tried_since", Instant),
    Column("due_at", Instant),
    Column("delivered_at", Instant),
    Column("given_up_at", Instant),
    Column("answer", Text),
)
_WAITING = deliveries.c.due_at.is_not(None)
Index("deliveries_by_number", deliveries.c.number, unique=True)
Index(
    "deliveries_waiting",
    deliveries.c.subject,
    deliveries.c.url,
    deliveries.c.number,
    sqlite_where=_WAITING,
    postgresql_where=_WAITING,
)

signing_secrets = Table(
    "signing_secrets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("secret", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("retires_at", Instant),
)

cached = Table(
    "cached",
    metadata,
    Column("key", Text, primary_key=True),
    Column("prediction_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text),
    Column("seed", BigInteger),
    Column("pictures", Json, nullable=False),
    Column("media_types", Json, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("used_at", Instant, nullable=False),
)
Index("cached_by_use", cached.c.used_at)

run_times = Table(
    "run_times",
    metadata,
    Column("model", Text, primary_key=True),
    Column("learned", Json, nullable=False),
)

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
    Column("key", Text),
    Column("quoted", Micros),
    Column("predict_seconds", Float),
    Column("saved", Micros),
    Column("tier", Text),
    Column("parent", Text),
    Column("sink", Text),  # the one that has it besides this database
)
Index("imagen_usage_by_time", usage.c.created_at.desc())
Index("imagen_usage_by_caller", usage.c.caller)
Index("imagen_usage_by_key", usage.c.key, usage.c.created_at)
Index("imagen_usage_by_sink", usage.c.sink, usage.c.created_at)

budgets = Table(
    "budgets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("limit", Micros, nullable=False),
    Column("per", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("hard", Boolean, nullable=False),
    Column("counts", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
)

balances = Table(
    "balances",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("settled", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
)

# One row for each purchase that a budget has counted: how the money of its quote went.
reservations = Table(
    "reservations",
    metadata,
    Column("prediction_id", Text, primary_key=True),
    Column("state", Text, nullable=False),  # open, settled or voided
    Column("amount", BigInteger, nullable=False),  # reserved, in micro-dollars
    Column("settled", BigInteger),  # what it came to
    Column("counted", Json, nullable=False),  # [budget, subject, period] of each balance it stands in
    Column("created_at", Instant, nullable=False),
    Column("ended_at", Instant),
)
RESERVED = reservations.c.state == literal_column("'open'")
Index("reservations_open", reservations.c.prediction_id, sqlite_where=RESERVED, postgresql_where=RESERVED)

feedback = Table(
    "feedback",
    metadata,
    Column("prediction_id", Text, primary_key=True),
    Column("caller", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("kept", Boolean, nullable=False),
    Column("at", Instant, nullable=False),
)
Index("feedback_by_caller", feedback.c.caller, feedback.c.kind, feedback.c.model)

# Whose the files are that callers have uploaded to the service through us.
relayed_files = Table(
    "relayed_files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("scope", Text, nullable=False),
    Column("expires_at", Instant, nullable=False),
)
Index("relayed_files_by_scope", relayed_files.c.scope)
Index("relayed_files_by_end", relayed_files.c.expires_at)
