"""Durable work: batches and their items, idempotency keys, deliveries, the cache of pictures, learned run times."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("quoted", sa.BigInteger, nullable=False),
        sa.Column("unpriced", sa.Integer, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("control", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("own_token", sa.Boolean, nullable=False),
        sa.Column("sealed_token", sa.Text),
        sa.Column("webhook", sa.Text),
        sa.Column("webhook_events", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "items",
        sa.Column("batch_id", sa.Text, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("order", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("predictions", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("code", sa.Text),
        sa.Column("hint", sa.Text),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("charged", sa.Boolean),
        sa.Column("cost", sa.BigInteger),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("urls", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "item_predictions",
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("batch_id", sa.Text, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("batch_id", sa.Text, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("tried_since", sa.DateTime(timezone=True)),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column("given_up_at", sa.DateTime(timezone=True)),
        sa.Column("answer", sa.Text),
    )
    op.create_table(
        "signing_secrets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retires_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "cached",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("prediction_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("seed", sa.BigInteger),
        sa.Column("pictures", sa.Text, nullable=False),
        sa.Column("media_types", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "run_times",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("learned", sa.Text, nullable=False),
    )
    endings = "'aborted', 'canceled', 'failed', 'succeeded', 'unknown'"
    unfinished = sa.text(f"status NOT IN ({endings}) OR status = 'succeeded' AND delivered_at IS NULL")
    unsettled = sa.text(f"settled_at IS NULL AND upstream_id IS NOT NULL AND status IN ({endings})")
    op.create_index(
        "predictions_unfinished",
        "predictions",
        ["created_at", "id"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    op.create_index(
        "predictions_unsettled",
        "predictions",
        ["status"],
        sqlite_where=unsettled,
        postgresql_where=unsettled,
    )
    is_open, waits = sa.text("ended_at IS NULL"), sa.text("due_at IS NOT NULL")
    op.create_index("batches_open", "batches", ["id"], sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("batches_by_kind", "batches", ["kind", "id"])
    op.create_index("batches_by_scope", "batches", ["scope", "kind", "id"])
    op.create_index("items_by_status", "items", ["batch_id", "status", "index", "cost", "images", "ended_at"])
    op.create_index("items_by_end", "items", ["batch_id", "sequence"])
    op.create_index("idempotency_by_time", "idempotency", ["created_at"])
    op.create_index("deliveries_by_number", "deliveries", ["number"], unique=True)
    op.create_index(
        "deliveries_waiting",
        "deliveries",
        ["subject", "url", "number"],
        sqlite_where=waits,
        postgresql_where=waits,
    )
    op.create_index("cached_by_use", "cached", ["used_at"])
