"""Is it whole, and is it a picture?

What a model's run gives is bytes from the network: perhaps an error page, perhaps half of a file, perhaps a
file that claims a billion pixels. `inspect_picture` answers before anyone calls it a result. Each format is
walked from its first byte to its own end mark (decoders forgive a missing end, a customer does not), its
size is read from the header before a decoder may allocate anything, and then Pillow decodes every pixel.

Decoders are given only what makes pixels: comments, EXIF and animation control are left out of the copy
that is decoded, because Pillow reports oddities there as warnings, and warnings cannot be silenced for one
thread alone. Nothing here is global: any number of threads may inspect at once.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

import msgspec

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 150_000_000
"""More than any model makes (12,000 by 12,000), and less than a decoder needs to exhaust a small machine."""

MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "gif": "image/gif",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "svg": "image/svg+xml",
}
"""The formats that can be checked, and their media types. The key is also the usual extension."""

HEAD_BYTES = 4096
"""How much of a file's beginning `sniff_format` wants to see."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_LEFT_OUT = frozenset(range(0xE1, 0xEE)) | {0xEF, 0xFE}
_JPEG_ALONE = frozenset({0x01, 0xD9, *range(0xD0, 0xD8)})  # these have no length
_JPEG_MAX_SCANS = 100  # encoders make about ten; thousands are an attack on the decoder's time
_AVIF_BRANDS = (b"avif", b"avis")
_XML_PROLOG = r"(?>\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\])?\s*>)*+"  # atomic: never tried twice
_SVG_START = re.compile(rf"{_XML_PROLOG}<(?:[\w.-]+:)?svg[\s/>]", re.DOTALL)
_SVG_LENGTH = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(px|pt|pc|mm|cm|in|)\s*", re.IGNORECASE)
_SVG_UNITS = {"": 1.0, "px": 1.0, "pt": 96 / 72, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_SVG_DEFAULT_SIZE = (300, 150)  # what CSS gives a picture that tells no size

_OTHERS = (
    (re.compile(rb"%PDF-"), "a PDF document"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"II\*\0|MM\0\*"), "a TIFF picture, a format that imagen does not check"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL picture, a format that imagen does not check"),
    (
        re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL),
        "a HEIC picture, a format that imagen does not check",
    ),
    (re.compile(rb"....ftyp", re.DOTALL), "an MP4 video"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "a WebM or Matroska video"),
    (re.compile(rb"RIFF....(?:AVI |WAVE)", re.DOTALL), "a video or sound in a RIFF file"),
    (
        re.compile(
            rb"\s*(?><!--.*?-->\s*)*+<(?:!doctype\s+html|html|head|body)\b", re.DOTALL | re.IGNORECASE
        ),
        "an HTML page",
    ),
    (re.compile(rb"\s*<(?:\?xml|[A-Za-z])"), "an XML document"),
    (re.compile(rb"\s*(?:\{\s*[\"}]|\[\s*[\[{\"\]0-9-])"), "JSON"),
)


class DefectivePicture(Exception):
    """The file is empty, cut short, too large, or no picture.

    Attributes:
        reason: what is wrong, worded to follow "the picture": `is empty`, `ends too early: …`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PictureFacts(msgspec.Struct, frozen=True):
    """What a whole picture is, as read from its own bytes.

    Attributes:
        format: `png`, `webp`, `jpg`, `gif`, `avif`, `bmp` or `svg`.
        media_type: such as `image/png`.
        width: pixels as stored; for SVG the size it asks for, rounded.
        height: likewise.
        size_bytes: length of the file.
    """

    format: str
    media_type: str
    width: int
    height: int
    size_bytes: int


def inspect_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> PictureFacts:
    """Check the file at `path` from its first byte to its last. Blocks: call it in a worker thread.

    Raises:
        DefectivePicture: it is not a whole picture of a format that can be checked.
        OSError: the file could not be read at all.
    """
    return inspect_bytes(path.read_bytes(), max_pixels=max_pixels)


def inspect_bytes(data: bytes, *, max_pixels: int = MAX_PIXELS) -> PictureFacts:
    """Like `inspect_picture`, for a picture that is in memory already."""
    if not data:
        raise DefectivePicture("is empty")
    head = data[:HEAD_BYTES]
    kind = sniff_format(head)
    if kind is None:
        raise DefectivePicture(f"is no picture: it looks like {_describe(head)}")
    check = _CHECKS[kind]
    try:
        width, height = check(data, max_pixels)
    except IndexError:
        raise _cut_short(data) from None
    if width < 1 or height < 1:
        raise DefectivePicture(f"has no pixels: its header says {width} x {height}")
    return PictureFacts(kind, MEDIA_TYPES[kind], width, height, len(data))


def sniff_format(head: bytes) -> str | None:
    """The format that a file's first bytes (up to `HEAD_BYTES`) announce, or None for anything else.

    It is a claim, not a fact: only `inspect_picture` knows whether the rest keeps it.
    """
    if head.startswith(_PNG_SIGNATURE):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[4:8] == b"ftyp" and _is_avif(head):
        return "avif"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADER_SIZES:
        return "bmp"
    return "svg" if _SVG_START.match(_decode_xml_head(head)) else None


_BMP_HEADER_SIZES = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))


def _is_avif(head: bytes) -> bool:
    length = int.from_bytes(head[:4], "big")
    brands = head[8:12] + head[16 : max(length, 16)]
    return any(brands[at : at + 4] in _AVIF_BRANDS for at in range(0, len(brands), 4))


def _decode_xml_head(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", "replace")
    return head.removeprefix(b"\xef\xbb\xbf").decode("latin-1")


def _describe(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf")
    for pattern, description in _OTHERS:
        if pattern.match(text):
            return description
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    if not any(byte < 9 or 13 < byte < 32 or byte == 127 for byte in head):
        return "plain text"
    return "data of an unknown kind"


def _cut_short(data: bytes) -> DefectivePicture:
    return DefectivePicture(f"ends too early: it is cut short after {len(data)} bytes")


def _limit_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DefectivePicture(f"is too large: {width} x {height} are more than {max_pixels} pixels")


def _decode(build: Callable[[], ImageFile], frames: int, max_pixels: int) -> tuple[int, int]:
    """Decode every pixel of the first frames, until `max_pixels` are decoded (at least one frame)."""
    try:
        with build() as picture:
            width, height = picture.size
            _limit_pixels(width, height, max_pixels)
            picture.load()
            for frame in range(1, min(frames, max_pixels // max(width * height, 1))):
                picture.seek(frame)
                picture.load()
            return width, height
    except (DefectivePicture, MemoryError):
        raise
    except Exception as error:  # a decoder that is fed broken data raises whatever it likes
        text = str(error) or type(error).__name__
        raise DefectivePicture(f"is broken: it cannot be decoded ({text[:120]})") from error


# --- one check a format: walk to the end, read the size, decode -------------------------------------------


def _check_png(data: bytes, max_pixels: int) -> tuple[int, int]:
    from PIL.PngImagePlugin import PngImageFile  # noqa: PLC0415  Pillow loads late, see architecture.md

    kept = [_PNG_SIGNATURE]
    for name, start, end in walk_png(data):
        body = memoryview(data)[start + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end], "big"):
            raise DefectivePicture(f"is broken: a checksum does not match at byte {start}")
        if start == 8:
            if name != b"IHDR" or len(body) != 13:
                raise DefectivePicture("is broken: it has no header")
            _limit_pixels(int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big"), max_pixels)
        if name in _PNG_PIXEL_CHUNKS:
            kept.append(data[start:end])
    return _decode(lambda: PngImageFile(io.BytesIO(b"".join(kept))), 1, max_pixels)


def walk_png(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's name, start and end (length, name and checksum included), `IEND` last.

    Raises:
        DefectivePicture: the file ends before `IEND` does.
    """
    at = len(_PNG_SIGNATURE)
    name = b""
    while name != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if end > len(data) or len(name) < 4:
            raise _cut_short(data)
        yield name, at, end
        at = end


def _check_jpeg(data: bytes, max_pixels: int) -> tuple[int, int]:
    from PIL.JpegImagePlugin import JpegImageFile  # noqa: PLC0415  Pillow loads late, see architecture.md

    kept = [data[:2]]
    scans = 0
    for marker, start, end in walk_jpeg(data):
        if marker in JPEG_FRAMES:
            _limit_pixels(*jpeg_frame_size(data, start), max_pixels)
        scans += marker == 0xDA
        if scans > _JPEG_MAX_SCANS:
            raise DefectivePicture(f"is broken: it has more than {_JPEG_MAX_SCANS} scans")
        if marker not in _JPEG_LEFT_OUT:
            kept.append(data[start:end])
    if not scans:
        raise DefectivePicture("is broken: it has no picture data")
    return _decode(lambda: JpegImageFile(io.BytesIO(b"".join(kept))), 1, max_pixels)


def jpeg_frame_size(data: bytes, start: int) -> tuple[int, int]:
    """Width and height of the frame, one of `JPEG_FRAMES`, that begins at `start`."""
    height, width = (int.from_bytes(data[start + at : start + at + 2], "big") for at in (5, 7))
    return width, height


def walk_jpeg(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, start and end, from after SOI to EOI; a scan (0xDA) includes its coded data.

    What comes after EOI is not looked at: phones put films there, and it is no part of the picture.

    Raises:
        DefectivePicture: the file ends before EOI, or something else stands where a marker must be.
    """
    at = 2
    marker = 0
    while marker != 0xD9:
        start = at
        if data[at : at + 1] not in (b"\xff", b""):
            raise DefectivePicture(f"is broken: no marker at byte {at}")
        while data[at : at + 1] == b"\xff":
            at += 1
        if at >= len(data):
            raise _cut_short(data)
        marker = data[at]
        start, at = at - 1, at + 1  # fill bytes before a marker are dropped
        if marker in _JPEG_ALONE:
            yield marker, start, at
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or at + length > len(data):
            raise _cut_short(data)
        if length < 2:
            raise DefectivePicture(f"is broken: a segment without length at byte {start}")
        at += length
        if marker == 0xDA:
            following = _JPEG_NEXT_MARKER.search(data, at)
            if following is None:
                raise _cut_short(data)
            at = following.start()
        yield marker, start, at


def _check_webp(data: bytes, max_pixels: int) -> tuple[int, int]:
    from PIL.WebPImagePlugin import WebPImageFile  # noqa: PLC0415  Pillow loads late, see architecture.md

    frames = sum(name == b"ANMF" for name, _, _ in walk_webp(data))
    _limit_pixels(*webp_canvas(data)[:2], max_pixels)
    end = 8 + int.from_bytes(data[4:8], "little")
    return _decode(lambda: WebPImageFile(io.BytesIO(data[:end])), max(frames, 1), max_pixels)


def walk_webp(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's name, start and end (name, length and padding included).

    Raises:
        DefectivePicture: the file is shorter than it says, or has no chunk at all.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) or len(data) < 20:
        raise _cut_short(data)
    if end < 20:
        raise DefectivePicture("is broken: it has no picture data")
    at = 12
    while at + 8 <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise DefectivePicture(f"is broken: a part at byte {at} is longer than the file")
        following = min(at + 8 + length + (length & 1), end)
        yield data[at : at + 4], at, following
        at = following


def webp_canvas(data: bytes) -> tuple[int, int, bool]:
    """Width, height and whether it has an alpha channel, from the first chunk.

    Raises:
        DefectivePicture: the first chunk is none that a WebP picture begins with.
    """
    name, head = data[12:16], data[20:30]
    length = int.from_bytes(data[16:20], "little")
    if name == b"VP8X" and len(head) == 10 <= length:
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height, bool(head[0] & 0x10)
    if name == b"VP8L" and head[:1] == b"\x2f":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    if name == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        if width and height:
            return width, height, False
    raise DefectivePicture("is broken: it has no header")


def _check_gif(data: bytes, max_pixels: int) -> tuple[int, int]:
    from PIL import Image  # noqa: PLC0415  Pillow loads late, see architecture.md
    from PIL.GifImagePlugin import GifImageFile  # noqa: PLC0415

    # Above Pillow's own limit its GIF reader warns, and no GIF has a reason to be that large.
    max_pixels = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    width, height, frames = _walk_gif(data)
    _limit_pixels(width, height, max_pixels)
    if not frames:
        raise DefectivePicture("is broken: it has no picture data")
    return _decode(lambda: GifImageFile(io.BytesIO(data)), frames, max_pixels)


def _walk_gif(data: bytes) -> tuple[int, int, int]:
    """Width and height that hold every frame, number of frames. IndexError where the data ends too early."""
    width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    frames = 0
    while (kind := data[at]) != 0x3B:
        if kind == 0x2C:
            left, top, wide, high = (
                int.from_bytes(data[at + n : at + n + 2], "little") for n in (1, 3, 5, 7)
            )
            width, height = max(width, left + wide), max(height, top + high)
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            frames += 1
        elif kind == 0x21:
            at += 2
        elif kind == 0:  # padding that some writers leave between blocks
            at += 1
            continue
        else:
            raise DefectivePicture(f"is broken: no block at byte {at}")
        while length := data[at]:
            at += 1 + length
        at += 1
    return width, height, frames


def _check_avif(data: bytes, max_pixels: int) -> tuple[int, int]:
    try:
        from PIL.AvifImagePlugin import AvifImageFile  # noqa: PLC0415  Pillow loads late, see architecture.md
    except ImportError:  # Pillow before 11.3
        raise DefectivePicture("is AVIF, which the Pillow that is installed here cannot decode") from None
    clean = data
    for name, start, end in _walk_boxes(data):
        if name == b"meta":  # rename the EXIF item: broken EXIF makes Pillow warn
            clean = data[:start] + data[start:end].replace(b"Exif", b"skip") + data[end:]
            at = data.find(b"ispe", start, end)
            while at != -1:
                width, height = (int.from_bytes(data[at + n : at + n + 4], "big") for n in (8, 12))
                _limit_pixels(width, height, max_pixels)
                at = data.find(b"ispe", at + 4, end)
    return _decode(lambda: AvifImageFile(io.BytesIO(clean)), 1, max_pixels)


def _walk_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 0
    while at < len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        elif length == 0:
            length = len(data) - at
        if len(name) < 4 or at + length > len(data):
            raise _cut_short(data)
        if length < 8:
            raise DefectivePicture(f"is broken: a box without length at byte {at}")
        yield name, at, at + length
        at += length


def _check_bmp(data: bytes, max_pixels: int) -> tuple[int, int]:
    from PIL.BmpImagePlugin import BmpImageFile  # noqa: PLC0415  Pillow loads late, see architecture.md

    if int.from_bytes(data[2:6], "little") > len(data):
        raise _cut_short(data)
    return _decode(lambda: BmpImageFile(io.BytesIO(data)), 1, max_pixels)


def _check_svg(data: bytes, _max_pixels: int) -> tuple[int, int]:
    """Well-formed to its end. Entities are refused where they are declared, so none is ever expanded."""
    attributes: dict[str, str] = {}
    names: list[str] = []

    def start(name: str, values: dict[str, str]) -> None:
        if not names:
            names.append(name)
            attributes.update(values)

    def refuse(*_declaration: Any) -> None:
        raise DefectivePicture("declares XML entities, which imagen does not expand")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)  # noqa: FBT003  the parser's own signature
    except expat.ExpatError as error:
        raise DefectivePicture(f"is broken or cut short: not well-formed SVG ({error})") from None
    except (LookupError, ValueError):
        raise DefectivePicture("is broken: an SVG in an unknown encoding") from None
    return _svg_size(attributes)


def _svg_size(attributes: dict[str, str]) -> tuple[int, int]:
    width, height = (_svg_length(attributes.get(name, "")) for name in ("width", "height"))
    box = [_svg_length(part) for part in re.split(r"[\s,]+", attributes.get("viewBox", "").strip())[2:4]]
    box_width, box_height = box if len(box) == 2 else (None, None)
    if box_width and box_height:
        if width is None:
            width = height * box_width / box_height if height else box_width
        if height is None:
            height = width * box_height / box_width
    default_width, default_height = _SVG_DEFAULT_SIZE
    return max(round(width or default_width), 1), max(round(height or default_height), 1)


def _svg_length(text: str) -> float | None:
    match = _SVG_LENGTH.fullmatch(text)
    return float(match[1]) * _SVG_UNITS[match[2].lower()] if match and len(text) < 32 else None


_CHECKS: dict[str, Callable[[bytes, int], tuple[int, int]]] = {
    "png": _check_png,
    "jpg": _check_jpeg,
    "webp": _check_webp,
    "gif": _check_gif,
    "avif": _check_avif,
    "bmp": _check_bmp,
    "svg": _check_svg,
}
