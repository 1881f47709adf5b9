"""Data read into types, by msgspec, from any thread.

msgspec works out how to read a struct when it is first asked to, and remembers half of that before it has the whole: a second
thread that reads such a struct in that moment ends the process (a segmentation fault; `StructInfo_Convert` in `_core.c` of
msgspec 0.22.0). Here one thread at a time works it out, and the others see it only when it is whole. So all of imagen reads
types here; what becomes plain dicts and lists may be read anywhere.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
_ONE_AT_A_TIME = Lock()


def decoder(kind: type[T], *, strict: bool = True) -> msgspec.json.Decoder[T]:
    """What reads JSON as a `kind`, for one that is needed often; what is not `strict` takes "1" for 1 as well."""
    return _decoder(kind, strict=strict)  # type: ignore[arg-type]  # mypy: "a generic type may have no hash"; classes have


@overload
def decode(content: bytes | str, kind: type[T]) -> T: ...
@overload
def decode(content: bytes | str, kind: Any) -> Any: ...
def decode(content: bytes | str, kind: Any) -> Any:
    """Read JSON as a `kind`.

    Raises:
        msgspec.DecodeError: it is no JSON.
        msgspec.ValidationError: it is something else than a `kind`.
        UnicodeDecodeError: it is no UTF-8.
        RecursionError: it is too deep.
    """
    return _decoder(kind, strict=True).decode(content)


@overload
def convert(value: Any, kind: type[T], *, strict: bool = True) -> T: ...
@overload
def convert(value: Any, kind: Any, *, strict: bool = True) -> Any: ...
def convert(value: Any, kind: Any, *, strict: bool = True) -> Any:
    """Make a `kind` of what JSON, TOML, YAML or a database gave; what is not `strict` takes "1" for 1 as well.

    Raises:
        msgspec.ValidationError: it is something else than a `kind`.
    """
    _decoder(kind, strict=True)  # by making one msgspec works the type out, for whatever reads it then
    return msgspec.convert(value, kind, strict=strict)


@cache  # as many as the code has types to read
def _decoder(kind: Any, *, strict: bool) -> msgspec.json.Decoder[Any]:
    with _ONE_AT_A_TIME:
        return msgspec.json.Decoder(kind, strict=strict)
