"""The Files API: what was uploaded, for how long, and the links to fetch it without a token.

Facts: at most 100 MiB (JS client issue #286), 24 hours (recorded 2024-08), a download link signed with
base64 HMAC-SHA256 of `{owner} {id} {expiry}` (OpenAPI document).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from imagen.emulator.clock import timestamp

MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_NAME_BYTES = 255
LIFETIME_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class StoredFile:
    """One uploaded file; `created_at` is seconds since 1970 on the virtual clock."""

    id: str
    name: str
    content_type: str
    content: bytes
    metadata: dict[str, Any]
    created_at: float

    @property
    def expires_at(self) -> float:
        """From when on it is not found any more."""
        return self.created_at + LIFETIME_SECONDS

    def to_json(self, api_url: str) -> dict[str, Any]:
        """The file object of the API."""
        md5 = hashlib.md5(self.content, usedforsecurity=False).hexdigest()
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.content_type,
            "size": len(self.content),
            "etag": md5,
            "checksums": {"sha256": hashlib.sha256(self.content).hexdigest(), "md5": md5},
            "metadata": self.metadata,
            "created_at": timestamp(self.created_at),
            "expires_at": timestamp(self.expires_at),
            "urls": {"get": f"{api_url}/v1/files/{self.id}"},
        }


def signature(secret: str, owner: str, file_id: str, expiry: int) -> str:
    """The signature of a download link that is good until `expiry`, seconds since 1970."""
    digest = hmac.new(secret.encode(), f"{owner} {file_id} {expiry}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def is_signed(given: str, secret: str, owner: str, file_id: str, expiry: int) -> bool:
    """Whether a signature is the right one, compared in constant time."""
    return hmac.compare_digest(given.encode(), signature(secret, owner, file_id, expiry).encode())
