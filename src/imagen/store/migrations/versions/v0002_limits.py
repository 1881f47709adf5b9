"""Limits and keys: places of every kind in one table, lines that wait for them, gates of the rates; named keys.

Old leases are dropped: they last minutes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    op.drop_table("leases")
    op.create_table(
        "leases",
        sa.Column("resource", sa.Text, primary_key=True),
        sa.Column("lease", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("leases_by_lease", "leases", ["lease"])
    op.create_index("leases_by_resource", "leases", ["resource", "expires_at"])
    op.create_table(
        "lines",
        sa.Column("resource", sa.Text, primary_key=True),
        sa.Column("line", sa.Text, primary_key=True),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
    op.create_table(
        "gates",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("used_at", sa.Float, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("routes", sa.Text, nullable=False),
        sa.Column("concurrent", sa.Integer),
        sa.Column("per_minute", sa.Integer),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
    )
    op.create_index("api_keys_by_digest", "api_keys", ["digest"], unique=True)
    good = sa.text("revoked_at IS NULL")
    op.create_index(
        "api_keys_by_name", "api_keys", ["name"], unique=True, sqlite_where=good, postgresql_where=good
    )
