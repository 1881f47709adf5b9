"""Whose list has which prediction of durable work, bought or not."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column and the index. Earlier attempts of the past get it too: lists pass over them one by one."""
    op.add_column("item_predictions", sa.Column("scope", sa.Text))
    op.execute(
        "UPDATE item_predictions SET scope = "
        "(SELECT batches.scope FROM batches WHERE batches.id = item_predictions.batch_id)"
    )
    op.create_index("item_predictions_by_scope", "item_predictions", ["scope", "prediction_id"])
