"""Outputs that come inside the answer: `data:image/png;base64,…`."""

from __future__ import annotations

import base64
from urllib.parse import unquote_to_bytes

from imagen.errors import OutputDefective


def decode_data_uri(uri: str, *, limit_bytes: int) -> tuple[bytes, str | None]:
    """The bytes of a data URI and its media type.

    Raises:
        OutputDefective: it is malformed, or larger than `limit_bytes`.
    """
    head, comma, body = uri.removeprefix("data:").partition(",")
    if not comma:
        raise OutputDefective("the output is a data URI without data")
    if len(body) * 3 // 4 > limit_bytes + 3:
        raise OutputDefective(f"the picture is larger than the {limit_bytes >> 20} MiB that are allowed")
    media_type = head.split(";")[0] or None
    if not head.endswith(";base64"):
        return unquote_to_bytes(body), media_type
    try:
        return base64.b64decode(body, validate=True), media_type
    except ValueError as error:
        raise OutputDefective("the output is a data URI with broken base64") from error
