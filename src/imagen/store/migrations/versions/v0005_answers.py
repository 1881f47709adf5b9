"""What Replicate's API tells besides: other outputs than lists of files, which model a version is of, whose a file is."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns and the table, and indexes by which each caller's predictions are listed."""
    op.add_column("predictions", sa.Column("answer", sa.Text))
    op.add_column("predictions", sa.Column("ran_as", sa.Text))
    of_key = sa.text("key IS NOT NULL")
    op.create_index(
        "predictions_by_key", "predictions", ["key", "id"], sqlite_where=of_key, postgresql_where=of_key
    )
    op.create_index("predictions_by_account", "predictions", ["account", "id"])
    op.create_table(
        "relayed_files",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("relayed_files_by_scope", "relayed_files", ["scope"])
    op.create_index("relayed_files_by_end", "relayed_files", ["expires_at"])
