"""The address of a picture that goes in, as somebody wrote it: what leads to no picture is refused before anything is bought."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from imagen.errors import InvalidInput, Problem

_DATA = re.compile(r"data:image/[\w.+-]+(?:;[^,;]*)*;base64\Z", re.IGNORECASE)
_ADDRESS = "it must be a whole address such as https://example.com/picture.png"
_DATA_URI = "its data URI must be data:image/…;base64,… with a picture in it"


def check_address(told: str, *, field: str, schemes: Collection[str] = ("https", "http")) -> str:
    """An address or a data URI that can be one of a picture, as it was told; nobody is asked for it.

    Args:
        told: what somebody wrote.
        field: what it is called where they wrote it.
        schemes: of addresses.

    Raises:
        InvalidInput: it has another scheme or no host, or its data URI is no picture in base64.
    """
    if told[:5].lower() == "data:":
        if not _holds_picture(told):
            raise InvalidInput([Problem(field, _DATA_URI)])
        return told
    try:
        parts = urlsplit(told)
        whole = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a host in brackets, or a port, that is none
        whole = False
    if not whole or any(sign.isspace() or not sign.isprintable() for sign in told):
        raise InvalidInput([Problem(field, _ADDRESS)])
    return told


def _holds_picture(told: str) -> bool:
    head, _, body = told.partition(",")
    if not _DATA.match(head):
        return False
    try:
        return bool(base64.b64decode(body, validate=True))
    except ValueError:
        return False
