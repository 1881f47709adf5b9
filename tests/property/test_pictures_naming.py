"""Whatever a prompt says, its picture stays in its folder."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from imagen.pictures import NameFields, OutputPattern
from imagen.pictures.naming import FIELDS, MAX_SLUG, slug

NASTY = st.sampled_from(
    ["..", "/", "\\", "\0", "-", ".", " ", "con", "NUL", ":", "~", "\u202e", "\n", "é", "水", "\ud800"]
)
TEXT = st.text(st.characters(), max_size=400) | st.lists(NASTY, max_size=60).map("".join)
PATTERNS = st.sampled_from([
    None, "f/", "{prompt}", "f/{prompt}/{id}/{model}.png",
    "{prompt}{prompt}{prompt}{model}{id}-{seed}_{index:03}", "f/{id}",
    "f/{model}.{ext}", "{seed}.{prompt}.jpg", "f/{ext}/{date}-{time}-{prompt}.webp",
])  # fmt: skip
NAMES = st.builds(
    NameFields,
    prompt=TEXT,
    model=TEXT,
    seed=st.none() | st.integers(),
    id=TEXT,
    at=st.integers(0, 10**10).map(
        lambda seconds: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    ),
)


@given(pattern=PATTERNS, fields=NAMES, ext=st.text(max_size=20), count=st.integers(1, 12))
@settings(max_examples=500, deadline=None)
def test_names_never_leave_their_folder(pattern: str | None, fields: NameFields, ext: str, count: int):
    root = Path("root")
    text = pattern if pattern is None else f"root/{pattern}"
    parsed = OutputPattern.parse(text, default_folder=root)
    paths = [parsed.path_for(index, count, fields, ext) for index in range(1, count + 1)]
    assert len(set(paths)) == count
    for path in paths:
        assert path.parts[0] == "root"
        assert len(path.parts) == (
            2 if pattern is None else 1 + len(Path(pattern).parts) + pattern.endswith("/")
        )
        for part in path.parts:
            assert part not in {"", ".", ".."}
            assert part[0] not in ".-"
            assert part[-1] not in ". "
            assert not set(part) & set('/\\\0:*?"<>|~\n\r\t')
            assert len(part.encode()) <= 200
            assert part.split(".")[0].lower() not in {"con", "nul", "aux", "prn"}
        assert path.suffix


@given(TEXT)
def test_slugs_are_short_and_settled(text: str):
    found = slug(text)
    assert len(found) <= MAX_SLUG
    assert all(character == "-" or unicodedata.category(character)[0] in "LNM" for character in found)
    assert not found.startswith("-")
    assert not found.endswith("-")
    assert "--" not in found


@given(
    st.lists(
        st.sampled_from([f"{{{field}}}" for field in FIELDS] + ["a", ".", "-", "{{", "}}", "/b"]), min_size=1
    )
)
def test_every_template_of_known_fields_can_be_used(pieces: list[str]):
    fields = NameFields("a cat", "m/n", 1, "pred_1", datetime(2026, 1, 1, tzinfo=UTC))
    parsed = OutputPattern.parse("root/x" + "".join(pieces), default_folder=Path())
    assert parsed.path_for(1, 2, fields, "png") != parsed.path_for(2, 2, fields, "png")
