"""Pictures made larger in bytes and not in pixels, for measuring: every decoder skips what is added.

PNG has ancillary chunks, JPEG comments, WebP chunks that nobody knows, SVG comments. What is added is the same for all,
and made once; then comes a mark, of each picture its own, so that no two files are the same.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass

MARK_BYTES = 32

_PNG_END_BYTES = 12
_SEGMENT_BYTES = 65_533
"""The most that one comment of a JPEG holds."""

_CHUNK = b"emPd"
"""The kind of what is added: as a PNG's it is ancillary, private and safe to copy."""


@dataclass(frozen=True)
class Padded:
    """A picture filled up, with a place for the mark."""

    kind: str
    before: bytes
    after: bytes

    def marked(self, mark: bytes) -> bytes:
        """The whole file with a mark of 32 bytes."""
        return b"".join((self.before, _added(self.kind, mark), self.after))


def padded(content: bytes, kind: str, least_bytes: int) -> Padded:
    """Fill a picture up, if it is not as large already.

    Args:
        content: the file.
        kind: `png`, `jpg`, `webp` or `svg`.
        least_bytes: about how large it is to be.
    """
    missing = max(0, least_bytes - len(content))
    filling = random.Random(missing).randbytes(missing)  # noqa: S311 - cannot be compressed, and is no secret
    match kind:
        case "png":
            before, after = content[:-_PNG_END_BYTES], content[-_PNG_END_BYTES:]
        case "jpg":
            before, after = content[:2], content[2:]
        case "webp":
            return Padded(kind, _webp(content, _added(kind, filling)), b"")
        case _:
            before, after, filling = content, b"", filling[: missing // 2]
    return Padded(kind, before + _added(kind, filling), after)


def _added(kind: str, data: bytes) -> bytes:
    """Data as a decoder of this kind skips it."""
    match kind:
        case "png":
            checksum = zlib.crc32(data, zlib.crc32(_CHUNK))
            return struct.pack(">I", len(data)) + _CHUNK + data + struct.pack(">I", checksum)
        case "jpg":
            parts = (data[start : start + _SEGMENT_BYTES] for start in range(0, len(data), _SEGMENT_BYTES))
            return b"".join(b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts)
        case "webp":
            return _riff(_CHUNK, data)
    return b"<!-- " + data.hex().encode() + b" -->"


def _webp(content: bytes, added: bytes) -> bytes:
    """In the extended form, whose readers skip chunks that they do not know; a mark follows."""
    # 14 bits each, behind the start code of a lossy frame (RFC 6386, 9.1).
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = _riff(b"VP8X", bytes(4) + canvas) + content[12:] + added
    size = len(b"WEBP") + len(body) + len(_riff(_CHUNK, bytes(MARK_BYTES)))
    return b"RIFF" + struct.pack("<I", size) + b"WEBP" + body


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
