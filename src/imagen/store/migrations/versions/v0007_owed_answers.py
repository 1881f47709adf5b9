"""Which requests have no answer yet, and who owes it: whoever sends one again gets what it became."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add two columns and the index. What was accepted before is owed by nobody."""
    op.add_column("batches", sa.Column("fingerprint", sa.Text))
    op.add_column("batches", sa.Column("owed_by", sa.Text))
    owed = sa.text("owed_by IS NOT NULL")
    op.create_index(
        "batches_owed", "batches", ["scope", "fingerprint"], sqlite_where=owed, postgresql_where=owed
    )
