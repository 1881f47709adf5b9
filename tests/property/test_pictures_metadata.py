"""Every note comes back, and no pixel changes."""

from __future__ import annotations

import io

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagen.pictures import PictureNote, embed, inspect_bytes, read_note


def saved(format_: str, mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((19, 13), 80).convert(mode).save(buffer, format_, **options)
    return buffer.getvalue()


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
PICTURES = [
    *(saved("PNG", mode) for mode in ("RGB", "RGBA", "P", "L")),
    *(saved("JPEG", mode) for mode in ("RGB", "L")),
    saved("JPEG", "RGB", exif=ORIENTED),
    *(saved("WEBP", mode) for mode in ("RGB", "RGBA")),
    saved("WEBP", "RGB", lossless=True),
    saved("WEBP", "RGB", exif=ORIENTED),
]
CLEAN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
NOTES = st.builds(
    PictureNote,
    prompt=CLEAN,
    model=CLEAN,
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    prediction_id=CLEAN,
    software=CLEAN,
    created_at=CLEAN,
    extra=st.dictionaries(CLEAN, CLEAN, max_size=3),
)


def pixels(data: bytes) -> tuple[str, bytes]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.mode, picture.tobytes()


@given(data=st.sampled_from(PICTURES), note=NOTES, second=NOTES)
@settings(max_examples=300, deadline=None)
def test_notes_come_back_and_pixels_stay(data: bytes, note: PictureNote, second: PictureNote):
    marked = embed(data, note)
    assert read_note(marked) == note
    assert pixels(marked) == pixels(data)
    assert inspect_bytes(marked).height == 13
    again = embed(marked, second)
    assert again == embed(data, second)
    assert read_note(again) == second


@given(data=st.sampled_from(PICTURES), prompt=st.text(st.characters(), max_size=300))
@settings(deadline=None)
def test_any_text_at_all_is_taken(data: bytes, prompt: str):
    note = read_note(embed(data, PictureNote(prompt, "m/n")))
    assert note is not None
    assert note.prompt == prompt.replace("\0", "").encode("utf-8", "replace").decode()


@given(prompt=CLEAN.filter(bool), times=st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_a_jpeg_holds_as_much_as_fits(prompt: str, times: int):
    data = saved("JPEG", "L")
    whole = PictureNote(prompt * times, "m/n", 5)
    note = read_note(embed(data, whole))
    assert note is not None
    assert note == whole or (
        note.prompt.endswith("…") and whole.prompt.startswith(note.prompt[:-1]) and len(note.prompt) > 1000
    )
    assert msgspec.structs.replace(note, prompt="") == msgspec.structs.replace(whole, prompt="")
