from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.identifiers import from_uuid, new_id, to_uuid


@given(st.uuids())
def test_every_uuid_comes_back(found: UUID):
    assert to_uuid(from_uuid("pred", found)) == found


@given(st.integers(86_400, 250_000_000_000))
def test_every_id_of_ours_comes_back_and_keeps_its_order(second: int):
    at = datetime.fromtimestamp(second, UTC)
    made = new_id("pred", at)
    assert from_uuid("pred", to_uuid(made)) == made
    assert to_uuid(made) > to_uuid(new_id("pred", datetime(1970, 1, 1, tzinfo=UTC)))


@pytest.mark.parametrize(
    "odd", ["", "pred_", "pred_1", f"pred_{'u' * 26}", f"pred_{'z' * 26}", f"pred_{'0' * 27}"]
)
def test_what_is_no_id_of_ours_is_refused(odd: str):
    with pytest.raises(ValueError, match=r"."):
        to_uuid(odd)
