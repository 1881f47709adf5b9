"""The migrations make the schema that the code believes in."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import column, insert, inspect, table, text

from imagen.domain.batch import Batch, Item
from imagen.domain.budget import Budget
from imagen.domain.prediction import Prediction
from imagen.domain.usage import UsageEntry
from imagen.errors import SchemaMismatch
from imagen.store import migrate as migrating
from imagen.store.database import _engine
from imagen.store.migrate import HEAD, migrate
from imagen.store.tables import batches, budgets, items, metadata, predictions, usage


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(migrating.__file__).parent / "migrations"))
    return ScriptDirectory.from_config(config)


def test_head_is_the_newest_migration() -> None:
    assert scripts().get_heads() == [HEAD]


# whether computed columns are equal is not asked
@pytest.mark.filterwarnings("ignore:Computed default on .* cannot be modified:UserWarning")
def test_a_migrated_database_is_what_tables_says(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "imagen.db")
    migrate(engine, lock=tmp_path / "imagen.lock")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD
    engine.dispose()


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "imagen.db")
    for _ in range(2):
        migrate(engine, lock=tmp_path / "imagen.lock")
    engine.dispose()


def test_what_was_promised_before_lists_knew_of_it_gets_the_scope_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tmp_path / "imagen.db")
    with monkeypatch.context() as before:
        before.setattr(migrating, "HEAD", "0005")
        migrate(engine, lock=tmp_path / "imagen.lock")
    with engine.begin() as connection:
        names = [each["name"] for each in inspect(connection).get_columns("batches")]
        old = table("batches", *map(column, names))
        for number in (1, 2):
            row = dict.fromkeys(names, "") | {"id": f"batch_{number}", "scope": f"key:{number}"}
            connection.execute(insert(old), row)
            promised = {"id": f"pred_{number}", "batch": f"batch_{number}"}
            connection.execute(text("INSERT INTO item_predictions VALUES (:id, :batch, 0)"), promised)
    migrate(engine, lock=tmp_path / "imagen.lock")
    with engine.connect() as connection:
        found = connection.execute(text("SELECT prediction_id, scope FROM item_predictions ORDER BY 1"))
        assert found.all() == [("pred_1", "key:1"), ("pred_2", "key:2")]
    engine.dispose()


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "imagen.db")
    migrate(engine, lock=tmp_path / "imagen.lock")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch):
        migrate(engine, lock=tmp_path / "imagen.lock")
    engine.dispose()


def test_columns_are_the_fields_of_what_they_hold() -> None:
    assert {column.name for column in predictions.columns} == set(Prediction.__struct_fields__)
    assert {column.name for column in batches.columns} - {"accepted"} == set(Batch.__struct_fields__)
    assert {column.name for column in items.columns} == set(Item.__struct_fields__)
    # Which sink has it is no part of an entry; whether it was kept is read from the feedback.
    of_the_row = {column.name for column in usage.columns} - {"cost_usd_estimate", "sink"}
    assert of_the_row == set(UsageEntry.__struct_fields__) - {"kept"}
    assert {column.name for column in budgets.columns} == set(Budget.__struct_fields__)
