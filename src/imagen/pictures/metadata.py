"""How a picture was made, written into the picture itself, without touching a pixel.

    PNG     iTXt chunks: Description, Software, `imagen` (all as JSON), `parameters` (as in A1111's web UI)
    JPEG    an EXIF segment: ImageDescription, Software, UserComment (all as JSON)
    WebP    an EXIF chunk with the same

A file that has EXIF of its own keeps it untouched, and the JSON goes into an XMP packet beside it. Whatever
else is in a file stays where it is, byte for byte. Files with signed content credentials (C2PA) come back
unchanged, because any change would break the signature; so do other formats and files that cannot be
understood.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import msgspec

from imagen.decoding import decode
from imagen.pictures.inspect import (
    DefectivePicture,
    sniff_format,
    walk_jpeg,
    walk_png,
    walk_webp,
    webp_canvas,
)

_MAX_TEXT_BYTES = 256 * 1024  # PNG and WebP could hold more, but readers load all of it
_JPEG_MAX_PAYLOAD = 65_533  # a segment's length has 16 bits and counts itself
_WEBP_MAX_PAYLOAD = 8 * _MAX_TEXT_BYTES  # twice the prompt, once as JSON with three bytes for one
_SHORTER = (_MAX_TEXT_BYTES, 49_152, 32_768, 16_384, 8_192, 4_096, 1_024, 256)
_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_PNG = b"XML:com.adobe.xmp"
_EXIF_JPEG = b"Exif\0\0"
_COMMENT_PREFIX = b"imagen "
_COMMENT_ASCII = b"ASCII\0\0\0"
_XMP_NOTE = re.compile(rb'imagen:note="([^"]*)"')
_EXTERNAL_MANIFEST = b"dcterms:provenance"  # C2PA kept elsewhere, found through XMP
_IMAGE_DESCRIPTION, _SOFTWARE, _EXIF_IFD, _EXIF_VERSION, _USER_COMMENT = (
    0x010E,
    0x0131,
    0x8769,
    0x9000,
    0x9286,
)
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_PARAMETER_NAMES = {
    "steps": "Steps",
    "num_inference_steps": "Steps",
    "guidance": "CFG scale",
    "guidance_scale": "CFG scale",
    "scheduler": "Sampler",
}


def _software() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  slow, and seldom needed

    try:
        return f"imagen {version('imagen-gateway')}"
    except PackageNotFoundError:
        return "imagen"


class PictureNote(msgspec.Struct, frozen=True):
    """How a picture was made.

    Attributes:
        prompt: the text that it was made from.
        model: `owner/name`, perhaps with `:version`.
        seed: None when the model told none.
        prediction_id: ours.
        software: what made the request.
        created_at: ISO 8601.
        extra: anything else worth remembering, such as `steps` or `negative_prompt`.
    """

    prompt: str
    model: str
    seed: int | None = None
    prediction_id: str = ""
    software: str = msgspec.field(default_factory=_software)
    created_at: str = ""
    extra: dict[str, str] = {}


def embed(data: bytes, note: PictureNote) -> bytes:
    """The same picture with `note` in it; the same bytes where that is not possible or not wise.

    An earlier note of ours is replaced. Text is cleaned of NULs and lone surrogates, and a prompt that is
    too long for the format ends in `…`.
    """
    write = _WRITERS.get(sniff_format(data[:64]) or "")
    if write is None:
        return data
    try:
        return write(data, _clean(note), read_note(data))
    except (DefectivePicture, _Untouchable, struct.error):
        return data


def read_note(data: bytes) -> PictureNote | None:
    """What `embed` wrote, or None when there is nothing of ours."""
    find = _FINDERS.get(sniff_format(data[:64]) or "")
    if find is None:
        return None
    with contextlib.suppress(DefectivePicture):
        for text in find(data):
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # foreign text in our place
                return decode(text, _Envelope).imagen
    return None


class _Envelope(msgspec.Struct):
    imagen: PictureNote


class _Untouchable(Exception):
    """The file must not be changed, or has no place left."""


# --- the note as text ------------------------------------------------------------------------------------


def _clean_text(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _clean(note: PictureNote) -> PictureNote:
    return PictureNote(
        prompt=_shorten(_clean_text(note.prompt), _MAX_TEXT_BYTES),
        model=_clean_text(note.model),
        seed=note.seed,
        prediction_id=_clean_text(note.prediction_id),
        software=_clean_text(note.software),
        created_at=_clean_text(note.created_at),
        extra={_clean_text(name): _clean_text(value) for name, value in note.extra.items()},
    )


def _shorten(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, with `…` where something is missing."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 3].decode(errors="ignore") + "…"


def _to_json(note: PictureNote) -> str:
    """JSON in pure ASCII, which no reader can misread."""
    return json.dumps({"imagen": msgspec.to_builtins(note)})


def _fitting(note: PictureNote, build: Callable[[PictureNote], bytes], limit: int) -> bytes:
    """What `build` makes of the note; to fit `limit` its prompt is shortened and at last its extras go."""
    for keep_extra in (True, False):
        for size in _SHORTER:
            extra = note.extra if keep_extra else {}
            built = build(msgspec.structs.replace(note, prompt=_shorten(note.prompt, size), extra=extra))
            if len(built) <= limit:
                return built
    raise _Untouchable


def _parameters(note: PictureNote, width: int, height: int) -> str:
    """The text that many tools read: prompt, negative prompt, one line of settings."""
    extra = dict(note.extra)
    lines = [note.prompt]
    if negative := extra.pop("negative_prompt", ""):
        lines.append(f"Negative prompt: {negative}")
    settings: dict[str, str] = {}
    for name, label in _PARAMETER_NAMES.items():
        if value := extra.pop(name, ""):
            settings.setdefault(label, value)
    if note.seed is not None:
        settings["Seed"] = str(note.seed)
    settings |= {"Size": f"{width}x{height}", "Model": note.model, "Version": note.software}
    settings |= {name: value for name, value in extra.items() if name not in settings}
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value


def _xmp(note: PictureNote) -> bytes:
    """A packet with the JSON as an attribute; JSON in ASCII holds nothing that XML forbids."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:imagen="https://imagen.invalid/ns/1.0/" '
        f'imagen:note="{html.escape(_to_json(note))}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _xmp_notes(packet: bytes) -> Iterator[bytes]:
    for match in _XMP_NOTE.finditer(packet):
        yield html.unescape(match[1].decode("utf-8", "replace")).encode()


# --- EXIF ------------------------------------------------------------------------------------------------


def _exif(note: PictureNote) -> bytes:
    """A TIFF block with two directories. Text of type ASCII is UTF-8, as everybody reads it."""
    version = struct.pack(">HHI4s", _EXIF_VERSION, _UNDEFINED, 4, b"0232")
    comment = _COMMENT_ASCII + _to_json(note).encode()
    texts = [(_IMAGE_DESCRIPTION, note.prompt.encode() + b"\0"), (_SOFTWARE, note.software.encode() + b"\0")]
    at = 8 + 2 + 3 * 12 + 4
    entries, values = b"", b""
    for tag, text in texts:
        entries += struct.pack(">HHI", tag, _ASCII, len(text))
        if len(text) <= 4:
            entries += text.ljust(4, b"\0")
        else:
            entries += struct.pack(">I", at + len(values))
            values += text + b"\0" * (len(text) & 1)
    exif_at = at + len(values)
    entries += struct.pack(">HHII", _EXIF_IFD, _LONG, 1, exif_at)
    comment_at = exif_at + 2 + 2 * 12 + 4
    return b"".join((
        b"MM\0*", struct.pack(">I", 8), struct.pack(">H", 3), entries, bytes(4), values,
        struct.pack(">H", 2), version,
        struct.pack(">HHII", _USER_COMMENT, _UNDEFINED, len(comment), comment_at),
        bytes(4), comment,
    ))  # fmt: skip


def _exif_notes(block: bytes) -> Iterator[bytes]:
    """The text of UserComment, wherever another program may have moved it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return
    with contextlib.suppress(struct.error):
        directory = _directory(block, struct.unpack_from(f"{order}I", block, 4)[0], order)
        directory = _directory(block, directory.get(_EXIF_IFD, (0, len(block)))[1], order)
        length, at = directory.get(_USER_COMMENT, (0, 0))
        comment = block[at : at + length]
        if comment.startswith(_COMMENT_ASCII):
            yield comment[len(_COMMENT_ASCII) :].rstrip(b"\0 ")
        elif comment.startswith(b"UNICODE\0"):
            codec = "utf-16-le" if order == "<" else "utf-16-be"
            yield comment[8:].decode(codec, "replace").rstrip("\0 ").encode("utf-8", "replace")


def _directory(block: bytes, at: int, order: str) -> dict[int, tuple[int, int]]:
    """Each tag's count and value or offset."""
    (entries,) = struct.unpack_from(f"{order}H", block, at)
    found = {}
    for entry in range(entries):
        tag, _, count, value = struct.unpack_from(f"{order}HHII", block, at + 2 + 12 * entry)
        found[tag] = (count, value)
    return found


# --- PNG -------------------------------------------------------------------------------------------------


def _write_png(data: bytes, note: PictureNote, old: PictureNote | None) -> bytes:
    chunks = list(walk_png(data))
    names = [name for name, _, _ in chunks]
    xmp = b"".join(
        data[start:end] for name, start, end in chunks if name == b"iTXt" and _XMP_PNG in data[start:end]
    )
    if names[0] != b"IHDR" or b"caBX" in names or _EXTERNAL_MANIFEST in xmp:
        return data
    width, height = struct.unpack_from(">II", data, 16)
    earlier = set(_png_texts(old, width, height).values()) if old else set()
    taken = set()
    kept = []
    for name, start, end in chunks[1:]:
        chunk = data[start:end]
        keyword = data[start + 8 : end].partition(b"\0")[0]
        if name == b"iTXt" and (chunk in earlier or keyword == b"imagen"):
            continue
        if name in {b"tEXt", b"zTXt", b"iTXt"}:
            taken.add(keyword)  # what others wrote under the same name stays
        kept.append(chunk)
    ours = [chunk for keyword, chunk in _png_texts(note, width, height).items() if keyword not in taken]
    return b"".join((data[: chunks[0][2]], *ours, *kept, data[chunks[-1][2] :]))


def _png_texts(note: PictureNote, width: int, height: int) -> dict[bytes, bytes]:
    texts = {
        b"Description": note.prompt,
        b"Software": note.software,
        b"imagen": msgspec.json.encode(note).decode(),
        b"parameters": _parameters(note, width, height),
    }
    return {keyword: _itxt(keyword, text) for keyword, text in texts.items()}


def _itxt(keyword: bytes, text: str) -> bytes:
    body = b"iTXt" + keyword + b"\0\0\0\0\0" + text.encode()  # not compressed, no language, no translation
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _png_notes(data: bytes) -> Iterator[bytes]:
    for name, start, end in walk_png(data):
        body = data[start + 8 : end - 4]
        if name == b"iTXt" and body.startswith(b"imagen\0\0"):
            yield b'{"imagen":' + body.removeprefix(b"imagen\0\0\0\0\0") + b"}"


# --- JPEG ------------------------------------------------------------------------------------------------


def _write_jpeg(data: bytes, note: PictureNote, old: PictureNote | None) -> bytes:
    kept = []
    has_exif = has_xmp = False
    position = 0  # after SOI and the JFIF segments, which want to be first
    before = 2
    for marker, start, end in walk_jpeg(data):
        body = data[start + 4 : end] if marker not in {0xD9, 0xDA} else b""
        if marker == 0xEB and body.startswith(b"JP"):
            return data
        # It tells the length of this picture, which would change.
        if marker == 0xE2 and body.startswith(b"MPF\0"):
            return data
        if marker == 0xE1 and _EXTERNAL_MANIFEST in body:
            return data
        before, gap = end, data[before:start]  # fill bytes stay where they are
        if _is_earlier_segment(marker, body, old):
            continue
        has_exif |= marker == 0xE1 and body.startswith(_EXIF_JPEG)
        has_xmp |= marker == 0xE1 and body.startswith(_XMP_JPEG)
        kept.append(gap + data[start:end])
        if marker == 0xE0 and position == len(kept) - 1:
            position += 1
    kept.insert(position, _jpeg_segment(note, has_exif=has_exif, has_xmp=has_xmp))
    return b"".join((data[:2], *kept, data[before:]))


def _jpeg_segment(note: PictureNote, *, has_exif: bool, has_xmp: bool) -> bytes:
    if not has_exif:
        marker, body = 0xE1, _fitting(note, lambda note: _EXIF_JPEG + _exif(note), _JPEG_MAX_PAYLOAD)
    elif not has_xmp:
        marker, body = 0xE1, _fitting(note, lambda note: _XMP_JPEG + _xmp(note), _JPEG_MAX_PAYLOAD)
    else:
        marker, body = (
            0xFE,
            _fitting(note, lambda note: _COMMENT_PREFIX + _to_json(note).encode(), _JPEG_MAX_PAYLOAD),
        )
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _is_earlier_segment(marker: int, body: bytes, old: PictureNote | None) -> bool:
    if old is None:
        return False
    if marker == 0xFE:
        return body.startswith(_COMMENT_PREFIX + b'{"imagen"')
    return marker == 0xE1 and body in (_EXIF_JPEG + _exif(old), _XMP_JPEG + _xmp(old))


def _jpeg_notes(data: bytes) -> Iterator[bytes]:
    for marker, start, end in walk_jpeg(data):
        body = data[start + 4 : end]
        if marker == 0xDA:
            return
        if marker == 0xFE and body.startswith(_COMMENT_PREFIX):
            yield body.removeprefix(_COMMENT_PREFIX)
        elif marker == 0xE1 and body.startswith(_EXIF_JPEG):
            yield from _exif_notes(body.removeprefix(_EXIF_JPEG))
        elif marker == 0xE1 and body.startswith(_XMP_JPEG):
            yield from _xmp_notes(body)


# --- WebP ------------------------------------------------------------------------------------------------


def _write_webp(data: bytes, note: PictureNote, old: PictureNote | None) -> bytes:
    width, height, has_alpha = webp_canvas(data)
    parts = list(walk_webp(data))
    bodies = {name: data[start + 8 : end] for name, start, end in parts}
    if b"C2PA" in bodies or _EXTERNAL_MANIFEST in bodies.get(b"XMP ", b""):
        return data
    chunks = [(name, data[start:end]) for name, start, end in parts]
    if old:
        earlier = (_riff(b"EXIF", _exif(old)), _riff(b"XMP ", _xmp(old)))
        chunks = [(name, chunk) for name, chunk in chunks if chunk not in earlier]
    names = [name for name, _ in chunks]
    if names[0] != b"VP8X":
        flags = 0x10 if has_alpha else 0
        canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks.insert(0, (b"VP8X", _riff(b"VP8X", bytes((flags, 0, 0, 0)) + canvas)))
    if b"EXIF" not in names:
        flag, name, body = 0x08, b"EXIF", _fitting(note, _exif, _WEBP_MAX_PAYLOAD)
    elif b"XMP " not in names:
        flag, name, body = 0x04, b"XMP ", _fitting(note, _xmp, _WEBP_MAX_PAYLOAD)
    else:
        return data
    _, header = chunks[0]
    chunks[0] = (b"VP8X", header[:8] + bytes((header[8] | flag,)) + header[9:])
    pixels = max(
        at for at, (name, _) in enumerate(chunks) if name in {b"VP8 ", b"VP8L", b"ANMF", b"EXIF", b"VP8X"}
    )
    chunks.insert(pixels + 1, (name, _riff(name, body)))
    content = b"WEBP" + b"".join(chunk for _, chunk in chunks)
    end = parts[-1][2]
    return b"RIFF" + struct.pack("<I", len(content)) + content + data[end:]


def _riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def _webp_notes(data: bytes) -> Iterator[bytes]:
    for name, start, end in walk_webp(data):
        body = data[start + 8 : end]
        if name == b"EXIF":
            yield from _exif_notes(body.removeprefix(_EXIF_JPEG))
        elif name == b"XMP ":
            yield from _xmp_notes(body)


_WRITERS: dict[str, Callable[[bytes, PictureNote, PictureNote | None], bytes]] = {
    "png": _write_png,
    "jpg": _write_jpeg,
    "webp": _write_webp,
}
_FINDERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "png": _png_notes,
    "jpg": _jpeg_notes,
    "webp": _webp_notes,
}
