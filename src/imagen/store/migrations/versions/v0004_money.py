"""Money: quotes, budgets with their balances and reservations, feedback, and what the ledger tells besides."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns, make the tables."""
    for name in ("key", "quote", "tier", "parent", "preset", "draft", "wished", "prompt_hash"):
        op.add_column("predictions", sa.Column(name, sa.Text))
    some = sa.text("draft IS NOT NULL")
    op.create_index(
        "predictions_by_draft", "predictions", ["draft"], sqlite_where=some, postgresql_where=some
    )
    op.add_column("imagen_usage", sa.Column("key", sa.Text))
    op.add_column("imagen_usage", sa.Column("quoted", sa.BigInteger))
    op.add_column("imagen_usage", sa.Column("predict_seconds", sa.Float))
    op.add_column("imagen_usage", sa.Column("saved", sa.BigInteger))
    op.add_column("imagen_usage", sa.Column("tier", sa.Text))
    op.add_column("imagen_usage", sa.Column("parent", sa.Text))
    op.add_column("imagen_usage", sa.Column("sink", sa.Text))
    op.create_index("imagen_usage_by_key", "imagen_usage", ["key", "created_at"])
    op.create_index("imagen_usage_by_sink", "imagen_usage", ["sink", "created_at"])
    op.create_table(
        "budgets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("limit", sa.BigInteger, nullable=False),
        sa.Column("per", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("hard", sa.Boolean, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "balances",
        sa.Column("budget", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("period", sa.Text, primary_key=True),
        sa.Column("settled", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "reservations",
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.BigInteger),
        sa.Column("counted", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
    )
    op.create_index(
        "reservations_open", "reservations", ["prediction_id"], sqlite_where=sa.text("state = 'open'")
    )
    op.create_table(
        "feedback",
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("kept", sa.Boolean, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("feedback_by_caller", "feedback", ["caller", "kind", "model"])
