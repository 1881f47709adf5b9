"""Whole or not, picture or not: real files made with Pillow, and everything that only looks like one."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from imagen.pictures import MEDIA_TYPES, DefectivePicture, inspect_bytes, inspect_picture, sniff_format

SAVED = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG", "gif": "GIF", "avif": "AVIF", "bmp": "BMP"}
MODES = [
    *(("png", mode) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")),
    *(("webp", mode) for mode in ("RGB", "RGBA", "L")),
    *(("jpg", mode) for mode in ("RGB", "L", "CMYK")),
    *(("gif", mode) for mode in ("RGB", "P", "L")),
    *(("avif", mode) for mode in ("RGB", "RGBA", "L")),
    *(("bmp", mode) for mode in ("RGB", "P", "L", "1")),
]


def drawn(mode: str = "RGB", size: tuple[int, int] = (37, 23)) -> Image.Image:
    noise = Image.effect_noise(size, 90)
    return (
        noise.point(lambda value: value * 257, "I").convert("I;16") if mode == "I;16" else noise.convert(mode)
    )


def saved(format_: str, mode: str = "RGB", size: tuple[int, int] = (37, 23), **options: object) -> bytes:
    buffer = io.BytesIO()
    drawn(mode, size).save(buffer, SAVED[format_], **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def reason_of(data: bytes, **options: int) -> str:
    with pytest.raises(DefectivePicture) as caught:
        inspect_bytes(data, **options)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(("format_", "mode"), MODES)
def test_whole_pictures_of_each_format_and_mode_pass(format_: str, mode: str, tmp_path: Path):
    path = tmp_path / "whatever.bin"
    path.write_bytes(saved(format_, mode))
    facts = inspect_picture(path)
    assert (facts.format, facts.media_type) == (format_, MEDIA_TYPES[format_])
    assert (facts.width, facts.height, facts.size_bytes) == (37, 23, path.stat().st_size)


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("jpg", {"progressive": True}),
        ("jpg", {"optimize": True, "quality": 100}),
        ("webp", {"lossless": True}),
        ("webp", {"exif": b"Exif\0\0broken"}),
        ("png", {"interlace": 1}),
    ],
)
def test_variants_pass(format_: str, options: dict[str, object]):
    assert inspect_bytes(saved(format_, **options)).width == 37


@pytest.mark.parametrize("format_", ["gif", "webp", "png", "avif"])
def test_animations_pass_with_the_size_of_their_canvas(format_: str):
    buffer = io.BytesIO()
    frames = [drawn(), drawn(), drawn()]
    frames[0].save(buffer, SAVED[format_], save_all=True, append_images=frames[1:], duration=50)
    facts = inspect_bytes(buffer.getvalue())
    assert (facts.format, facts.width, facts.height) == (format_, 37, 23)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>504</body></html>", "an HTML page"),
        (b"\n <html>", "an HTML page"),
        (b'{"error": "no"}', "JSON"),
        (b"[1, 2]", "JSON"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        (b"upstream connect error", "plain text"),
        ("blühender Unsinn".encode(), "plain text"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\0\0\0\x20ftypisom....", "an MP4 video"),
        (b"\0\0\0\x18ftypheic....", "a HEIC picture"),
        (b"\x1a\x45\xdf\xa3", "a WebM"),
        (b"II*\0....", "a TIFF picture"),
        (b"\0" * 5000, "zero bytes"),
        (b"\x01\x02\x03", "unknown kind"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data: bytes, said: str):
    assert said in reason_of(data)
    assert sniff_format(data) is None


@pytest.mark.parametrize("format_", SAVED)
def test_a_header_alone_is_no_picture(format_: str):
    data = saved(format_)
    for length in (12, 16, 24, 40):
        reason_of(data[:length])


@pytest.mark.parametrize("format_", ["png", "webp", "jpg", "gif"])
def test_one_missing_byte_is_noticed(format_: str):
    assert "ends too early" in reason_of(saved(format_)[:-1])


def test_a_jpeg_without_its_end_mark_is_cut_short():
    data = saved("jpg")
    assert data.endswith(b"\xff\xd9")
    assert "ends too early" in reason_of(data[:-2])


@pytest.mark.parametrize("format_", ["png", "webp", "jpg", "gif"])
def test_what_follows_the_end_mark_is_not_looked_at(format_: str):
    assert inspect_bytes(saved(format_) + b"\0trailing bytes").width == 37


def test_an_end_mark_inside_of_a_thumbnail_is_not_the_end():
    thumbnail = b"\xff\xd8\xff\xd9"
    data = saved("jpg")
    data = data[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + data[2:]
    assert inspect_bytes(data).width == 37
    assert "ends too early" in reason_of(data[: len(data) // 2])


def test_fill_bytes_before_a_marker_are_allowed():
    data = saved("jpg")
    assert inspect_bytes(data[:2] + b"\xff\xff" + data[2:]).width == 37


@pytest.mark.parametrize("length", [0, 9])
def test_a_webp_with_a_short_or_empty_header_is_broken(length: int):
    short = vp8x(10, 10)[:16] + struct.pack("<I", length) + vp8x(10, 10)[20:]
    assert "is broken" in reason_of(short)
    data = saved("webp")
    assert data[12:16] == b"VP8 "
    assert "is broken" in reason_of(data[:28] + b"\0\0" + data[30:])


def test_flipped_bits_in_a_png_are_noticed():
    data = bytearray(saved("png"))
    data[len(data) // 2] ^= 1
    assert "checksum" in reason_of(bytes(data))


def bomb(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def vp8x(width: int, height: int) -> bytes:
    body = b"VP8X\x0a\0\0\0\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif(width: int, height: int) -> bytes:
    data = saved("gif")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def jpeg(width: int, height: int) -> bytes:
    data = saved("jpg", "L")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        bomb(100_000, 100_000),
        vp8x(16_000_000, 200),
        gif(60_000, 60_000),
        gif(10_000, 10_000),
        jpeg(65_000, 65_000),
    ],
    ids=["png", "webp", "gif", "gif over Pillow's own limit", "jpg"],
)
def test_bombs_are_refused_by_their_header(data: bytes):
    assert "too large" in reason_of(data)


def test_the_limit_can_be_chosen():
    data = saved("avif")
    assert inspect_bytes(data, max_pixels=37 * 23).width == 37
    assert "is too large: 37 x 23" in reason_of(data, max_pixels=37 * 23 - 1)


def test_a_picture_above_the_limit_where_pillow_warns_passes_without_warning():
    data = saved("png", "1", (10_000, 9_500))
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 95_000_000
    assert inspect_bytes(data).width == 10_000


def test_endless_scans_are_refused():
    data = saved("jpg", "L", progressive=True)
    at = data.rindex(b"\xff\xda")
    assert "scans" in reason_of(data[:at] + data[at:-2] * 200 + b"\xff\xd9")


@pytest.mark.parametrize("format_", ["jpg", "png", "webp", "avif"])
def test_broken_exif_neither_warns_nor_fails(format_: str):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x03" + b"\x01\x1a\0\x05\0\0\0\x01\0\xff\xff\xff" * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = saved(format_, exif=exif)
    assert inspect_bytes(data).width == 37


def test_a_broken_animation_header_neither_warns_nor_fails():
    data = saved("png")
    at = 8 + 25
    assert inspect_bytes(data[:at] + chunk(b"acTL", bytes(8)) + data[at:]).width == 37


def test_truncation_is_noticed_even_when_someone_told_pillow_not_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for format_ in ("png", "jpg", "webp", "gif"):
        data = saved(format_)
        reason_of(data[: len(data) * 2 // 3])


def test_many_threads_inspect_at_once():
    pictures = [saved(format_, size=(200, 150)) for format_ in SAVED] * 8
    with ThreadPoolExecutor(16) as pool:
        facts = list(pool.map(inspect_bytes, pictures))
    assert [fact.format for fact in facts] == list(SAVED) * 8


def test_a_missing_file_is_no_defective_picture(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        inspect_picture(tmp_path / "none.png")


SVG = '<svg xmlns="http://www.w3.org/2000/svg" {}><path d="M0 0"/></svg>'


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ('width="640" height="480"', (640, 480)),
        ('width="640px" height="48.5"', (640, 48)),
        ('width="1in" height="2.54cm"', (96, 96)),
        ('viewBox="0 0 1024 768"', (1024, 768)),
        ('viewBox="0,0,1024,512" width="100"', (100, 50)),
        ('viewBox="0 0 1024 512" width="100%" height="100"', (200, 100)),
        ("", (300, 150)),
        ('width="calc(1px)" viewBox="nonsense"', (300, 150)),
    ],
)
def test_svg_tells_its_size(attributes: str, size: tuple[int, int]):
    facts = inspect_bytes(SVG.format(attributes).encode())
    assert (facts.format, facts.width, facts.height) == ("svg", *size)


@pytest.mark.parametrize(
    "before",
    [
        "\ufeff",
        '<?xml version="1.0" encoding="UTF-8"?>\n',
        "<!-- made by a machine -->\n",
        '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">',
    ],
)
def test_svg_may_begin_in_many_ways(before: str):
    assert inspect_bytes((before + SVG.format("")).encode()).format == "svg"


def test_svg_in_utf_16():
    text = '<?xml version="1.0" encoding="UTF-16"?>' + SVG.format('width="9" height="9"')
    assert inspect_bytes(text.encode("utf-16")).width == 9


@pytest.mark.timeout(5)
@pytest.mark.parametrize("piece", ["<!---->", "<??>", " ", "<!DOCTYPE x []>", "<!DOCTYPE"])
def test_a_long_beginning_takes_no_long_time(piece: str):
    reason_of((piece * 2000 + "<!-").encode())


def test_svg_with_a_namespace_prefix():
    assert inspect_bytes(b'<s:svg xmlns:s="http://www.w3.org/2000/svg" width="5" height="6"/>').height == 6


@pytest.mark.parametrize(
    "text", ["<svg><path></svg>", "<svg><path/>", "<svg", "<svg></svg><svg/>", "<svg>&unknown;</svg>"]
)
def test_svg_must_be_well_formed_to_its_end(text: str):
    reason_of(text.encode() if text != "<svg" else b"<svg ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_svg_entities_are_refused_where_they_are_declared(encoding: str):
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))
    text = f'<!DOCTYPE svg [<!ENTITY l0 "ha">{lol}]><svg>&l29;</svg>'
    assert "entities" in reason_of(text.encode(encoding))
    external = '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
    assert "entities" in reason_of(external.encode(encoding))
