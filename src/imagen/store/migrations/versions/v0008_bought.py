"""What an account has bought lately, however long ago it was accepted: a lost create is none of those."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the index."""
    bought = sa.text("upstream_id IS NOT NULL")
    op.create_index(
        "predictions_bought",
        "predictions",
        ["account", "sent_at"],
        sqlite_where=bought,
        postgresql_where=bought,
    )
