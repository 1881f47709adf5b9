"""Outputs as the service tells them, where they are not a list of files."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    op.add_column("predictions", sa.Column("answer", sa.Text))
