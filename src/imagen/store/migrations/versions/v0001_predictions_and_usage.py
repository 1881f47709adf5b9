"""The first tables: predictions, which are intents first, semaphores with their leases, and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "predictions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("backend_type", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("request_key", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("deadline_seconds", sa.Float, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("sent_at", instant),
        sa.Column("upstream_id", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("category", sa.Text),
        sa.Column("logs", sa.Text, nullable=False),
        sa.Column("predict_seconds", sa.Float),
        sa.Column("image_count", sa.Integer),
        sa.Column("started_at", instant),
        sa.Column("ended_at", instant),
        sa.Column("owner", sa.Text),
        sa.Column("charged", sa.Boolean),
        sa.Column("cost", sa.BigInteger),
        sa.Column("destination", sa.Text),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("delivered_at", instant),
        sa.Column("settled_at", instant),
    )
    op.create_index("predictions_by_upstream", "predictions", ["account", "upstream_id"], unique=True)
    op.create_index("predictions_by_request", "predictions", ["request_key"])
    op.create_index("predictions_by_status", "predictions", ["status", "delivered_at"])
    op.create_index("predictions_by_time", "predictions", ["created_at"])
    op.create_table(
        "semaphores",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("limit", sa.Integer, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("semaphore", sa.Text, primary_key=True),
        sa.Column("lease", sa.Text, primary_key=True),
        sa.Column("expires_at", instant, nullable=False),
    )
    op.create_table(
        "imagen_usage",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("prompt_hash", sa.Text, nullable=False),
        sa.Column("latency_ms", sa.Integer, nullable=False),
        sa.Column("cost_usd_estimate", sa.Numeric(14, 6), sa.Computed("cost / 1000000.0", persisted=True)),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("cost", sa.BigInteger),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("upstream_id", sa.Text),
    )
    op.create_index("imagen_usage_by_time", "imagen_usage", [sa.text("created_at DESC")])
    op.create_index("imagen_usage_by_caller", "imagen_usage", ["caller"])
