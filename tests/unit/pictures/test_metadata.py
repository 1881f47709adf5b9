"""The note goes in and comes out; nothing else changes."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib

import msgspec
import pytest
from PIL import Image

from imagen.pictures import PictureNote, embed, inspect_bytes, read_note

NOTE = PictureNote(
    "Ein Käfer, gemalt\nin 水彩 🐞",
    "black-forest-labs/flux-schnell",
    seed=42,
    prediction_id="pred_01",
    software="imagen 1.2.3",
    created_at="2026-11-22T05:00:00+00:00",
    extra={"num_inference_steps": "4", "negative_prompt": "blur", "note": "a, b: c"},
)
CASES = [
    *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "P", "L")),
    *(("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")),
    ("JPEG", "RGB", {"progressive": True}),
    *(("WEBP", mode, {}) for mode in ("RGB", "RGBA", "L")),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGB", {"icc_profile": b"profile"}),
]


def saved(format_: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise((37, 23), 90).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.effect_noise((37, 23), 90))
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.mode, picture.size, picture.tobytes()


def exif_of(data: bytes) -> Image.Exif:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.getexif()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def riff_with(data: bytes, name: bytes, body: bytes) -> bytes:
    content = data[8:] + name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)
    return b"RIFF" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(("format_", "mode", "options"), CASES)
def test_the_note_comes_back_and_the_pixels_stay(format_: str, mode: str, options: dict[str, object]):
    data = saved(format_, mode, **options)
    marked = embed(data, NOTE)
    assert marked != data
    assert read_note(marked) == NOTE
    assert pixels(marked) == pixels(data)
    assert inspect_bytes(marked).width == 37
    assert read_note(data) is None


@pytest.mark.parametrize(("format_", "mode", "options"), CASES)
def test_a_second_note_replaces_the_first(format_: str, mode: str, options: dict[str, object]):
    data = saved(format_, mode, **options)
    other = msgspec.structs.replace(NOTE, prompt="another", seed=None, extra={})
    assert embed(embed(data, NOTE), other) == embed(data, other)
    assert embed(embed(data, NOTE), NOTE) == embed(data, NOTE)


def test_png_text_is_what_other_programs_read():
    with Image.open(io.BytesIO(embed(saved("PNG"), NOTE))) as picture:
        text = picture.text  # type: ignore[attr-defined]
    assert text["Description"] == NOTE.prompt
    assert text["Software"] == "imagen 1.2.3"
    assert json.loads(text["imagen"])["seed"] == 42
    *prompt, negative, settings = text["parameters"].split("\n")
    assert "\n".join(prompt) == NOTE.prompt
    assert negative == "Negative prompt: blur"
    assert settings == (
        "Steps: 4, Seed: 42, Size: 37x23, Model: black-forest-labs/flux-schnell, "
        'Version: imagen 1.2.3, note: "a, b: c"'
    )
    # the web UI takes the last line for settings when it finds at least three of them in it
    assert len(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', settings)) >= 3


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_exif_is_what_other_programs_read(format_: str):
    exif = exif_of(embed(saved(format_), NOTE))
    assert exif[0x010E].encode("latin-1").decode() == NOTE.prompt
    assert exif[0x0131] == "imagen 1.2.3"
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"ASCII\0\0\0")
    assert json.loads(comment[8:])["imagen"]["prompt"] == NOTE.prompt


def test_the_jfif_segment_stays_first():
    marked = embed(saved("JPEG"), NOTE)
    assert marked[2:4] == b"\xff\xe0"
    assert marked[marked.index(b"\xff\xe1") + 4 :].startswith(b"Exif\0\0MM")


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_exif_of_others_stays_and_the_note_goes_beside_it(format_: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    exif[0x010E] = "theirs"
    data = saved(format_, exif=exif)
    marked = embed(data, NOTE)
    assert dict(exif_of(marked)) == {0x0112: 6, 0x010E: "theirs"}
    assert read_note(marked) == NOTE
    assert pixels(marked) == pixels(data)
    assert embed(marked, NOTE) == marked
    with Image.open(io.BytesIO(marked)) as picture:
        assert b"imagen:note" in picture.info["xmp"]


def test_a_jpeg_with_exif_and_xmp_of_others_gets_a_comment():
    data = saved("JPEG", exif=Image.Exif(), xmp=b"<x:xmpmeta/>")
    data = data[:2] + segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0") + data[2:]
    marked = embed(data, NOTE)
    assert b"\xff\xfe" in marked
    assert read_note(marked) == NOTE
    assert embed(marked, NOTE) == marked
    assert pixels(marked) == pixels(data)


def test_a_webp_with_exif_and_xmp_of_others_stays_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved("WEBP", exif=exif, xmp=b"<x:xmpmeta/>")
    assert embed(data, NOTE) == data


def test_text_of_others_in_a_png_stays():
    data = saved("PNG")
    foreign = png_chunk(b"tEXt", b"parameters\0theirs") + png_chunk(b"tEXt", b"workflow\0{}")
    data = data[:33] + foreign + data[33:]
    marked = embed(data, NOTE)
    assert foreign in marked
    with Image.open(io.BytesIO(marked)) as picture:
        assert picture.text["parameters"] == "theirs"  # type: ignore[attr-defined]
        assert picture.text["Description"] == NOTE.prompt  # type: ignore[attr-defined]
    assert read_note(marked) == NOTE


def signed() -> list[bytes]:
    png, jpeg, webp = saved("PNG"), saved("JPEG"), saved("WEBP", "RGBA")
    remote = (
        b'<x:xmpmeta xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="https://c2pa.example"/>'
    )
    return [
        png[:33] + png_chunk(b"caBX", b"\0\0\0\x10jumb") + png[33:],
        png[:33] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + remote) + png[33:],
        jpeg[:2] + segment(0xEB, b"JP\0\x01\0\0\0\x01\0\0\0\x20jumb") + jpeg[2:],
        jpeg[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + remote) + jpeg[2:],
        jpeg[:2] + segment(0xE2, b"MPF\0MM\0*") + jpeg[2:],
        riff_with(webp, b"C2PA", b"\0\0\0\x10jumb"),
        riff_with(webp, b"XMP ", remote),
    ]


@pytest.mark.parametrize("number", range(7))
def test_signed_and_interlinked_files_are_not_touched(number: int):
    data = signed()[number]
    assert embed(data, NOTE) == data


@pytest.mark.parametrize("format_", ["GIF", "AVIF", "BMP"])
def test_other_formats_are_not_touched(format_: str):
    data = saved(format_)
    assert embed(data, NOTE) == data
    assert read_note(data) is None


@pytest.mark.parametrize(
    "data", [b"", b"text", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]
)
def test_what_cannot_be_understood_is_not_touched(data: bytes):
    assert embed(data, NOTE) == data
    assert read_note(data) is None


def test_a_webp_of_no_size_is_not_touched():
    data = saved("WEBP")
    assert data[12:16] == b"VP8 "
    data = data[:26] + bytes(4) + data[30:]
    assert embed(data, NOTE) == data


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_a_cut_file_is_not_touched(format_: str):
    data = saved(format_)
    assert embed(data[:-4], NOTE) == data[:-4]


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("letter", ["a", "ü", "水", "🐞"])
def test_long_prompts_are_shortened_to_what_the_format_holds(format_: str, letter: str):
    data = saved(format_)
    marked = embed(data, msgspec.structs.replace(NOTE, prompt=letter * 300_000))
    note = read_note(marked)
    assert note is not None
    assert note.prompt.endswith("…")
    assert set(note.prompt[:-1]) == {letter}
    assert len(note.prompt.encode()) > (4_000 if format_ == "JPEG" else 250_000)
    assert note.extra == NOTE.extra
    assert pixels(marked) == pixels(data)


def test_extras_that_fill_a_jpeg_are_left_out_and_names_that_fill_it_leave_it_as_it_is():
    data = saved("JPEG")
    note = read_note(embed(data, msgspec.structs.replace(NOTE, extra={"log": "x" * 70_000})))
    assert note is not None
    assert (note.extra, note.prompt) == ({}, NOTE.prompt)
    assert embed(data, msgspec.structs.replace(NOTE, model="x" * 70_000)) == data


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_nul_and_lone_surrogates_are_cleaned(format_: str):
    dirty = PictureNote("a\0b\ud800c", "m/n\0", extra={"k\0": "v\0"})
    note = read_note(embed(saved(format_), dirty))
    assert note is not None
    assert (note.prompt, note.model, note.extra) == ("ab?c", "m/n", {"k": "v"})


def test_an_empty_note_of_short_words():
    for format_ in ("PNG", "JPEG", "WEBP"):
        note = PictureNote("", "", software="i")
        assert read_note(embed(saved(format_), note)) == note


def test_the_software_names_imagen():
    assert PictureNote("p", "m").software.startswith("imagen")


def test_simple_webp_gets_an_extended_header_with_the_right_flags():
    for mode, alpha in (("RGB", 0), ("RGBA", 0x10)):
        data = saved("WEBP", mode, lossless=True)
        assert data[12:16] == b"VP8L"
        marked = embed(data, NOTE)
        assert marked[12:16] == b"VP8X"
        assert marked[20] == 0x08 | alpha
        assert marked[24:30] == (36).to_bytes(3, "little") + (22).to_bytes(3, "little")
        assert struct.unpack_from("<I", marked, 4)[0] == len(marked) - 8


def test_animated_webp_and_png_keep_their_frames():
    frames = [Image.effect_noise((20, 10), 90) for _ in range(3)]
    for format_ in ("WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format_, save_all=True, append_images=frames[1:], duration=40)
        marked = embed(buffer.getvalue(), NOTE)
        assert read_note(marked) == NOTE
        with Image.open(io.BytesIO(marked)) as picture:
            assert picture.n_frames == 3  # type: ignore[attr-defined]


def test_bytes_after_the_end_and_fill_bytes_stay():
    jpeg = saved("JPEG")
    jpeg = jpeg[:20] + b"\xff\xff" + jpeg[20:] + b"film"
    marked = embed(jpeg, NOTE)
    at = marked.index(b"\xff\xe1")
    length = 2 + struct.unpack_from(">H", marked, at + 2)[0]
    assert marked[:at] + marked[at + length :] == jpeg


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_comment_that_another_program_rewrote_as_utf_16_is_read(order: str):
    text = json.dumps({"imagen": {"prompt": "ü", "model": "m/n"}}, ensure_ascii=False)
    comment = b"UNICODE\0" + text.encode("utf-16-le" if order == "<" else "utf-16-be")
    block = (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(f"{order}IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0)
        + struct.pack(f"{order}HHHIII", 1, 0x9286, 7, len(comment), 44, 0)
        + comment
    )
    data = saved("JPEG")
    note = read_note(data[:2] + segment(0xE1, b"Exif\0\0" + block) + data[2:])
    assert note is not None
    assert note.prompt == "ü"


@pytest.mark.parametrize("text", ['{"imagen": 5}', "{", '{"imagen": {"prompt": "x"}}', "\x80"])
def test_foreign_text_in_our_place_is_no_note(text: str):
    data = saved("JPEG")
    assert read_note(data[:2] + segment(0xFE, b"imagen " + text.encode("latin-1")) + data[2:]) is None
