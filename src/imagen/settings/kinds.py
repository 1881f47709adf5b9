"""What a setting's text may be, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from imagen.decoding import convert
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.secret import Secret
from imagen.errors import InvalidModelRef
from imagen.identity import clean_caller

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_ASPECT_RATIO = re.compile(r"[1-9][0-9]{0,3}:[1-9][0-9]{0,3}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|[0-9A-Fa-f:.]{2,45}")
_CATALOG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BACKEND_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_TOKEN_PREFIX = "r8_"  # noqa: S105 - how the tokens of Replicate begin, none of them

_LONGEST_TEXT = 4096


class Kind(msgspec.Struct, frozen=True):
    """One kind of value.

    Attributes:
        allowed: completes the sentence "it must be …".
        read: makes the value from its stripped, non-empty text; raises ValueError when it is not allowed.
            Relative paths start in the folder that comes with it.
        hidden: the text is never repeated in a message, as it is a secret or may hold one.
        pairs: in the file it may be a mapping too, which is then read as `NAME=VALUE, NAME=VALUE`.
    """

    allowed: str
    read: Callable[[str, Path], Any]
    hidden: bool = False
    pairs: bool = False


def text(allowed: str = "text without control characters", *, form: re.Pattern[str] | None = None) -> Kind:
    """One line of text, of a given form if there is one."""

    def read(given: str, _: Path) -> str:
        if len(given) > _LONGEST_TEXT or not given.isprintable() or (form and not form.fullmatch(given)):
            raise ValueError(allowed)
        return given

    return Kind(allowed, read)


def one_of(*words: str) -> Kind:
    """One of a few words, in any case."""
    allowed = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(given: str, _: Path) -> str:
        if given.lower() not in words:
            raise ValueError(allowed)
        return given.lower()

    return Kind(allowed, read)


def flag() -> Kind:
    """A boolean, in the words that YAML and shells use."""

    def read(given: str, _: Path) -> bool:
        if given.lower() in _TRUE:
            return True
        if given.lower() in _FALSE:
            return False
        raise ValueError(given)

    return Kind("true or false", read)


def whole(low: int, high: int) -> Kind:
    """A whole number within limits."""
    number = Annotated[int, msgspec.Meta(ge=low, le=high)]
    return Kind(f"a whole number from {low} to {high}", lambda given, _: _converted(given, number))


def seconds(high: int, *, zero: bool = False) -> Kind:
    """A duration, written as a number of seconds."""
    meta = msgspec.Meta(ge=0, le=high) if zero else msgspec.Meta(gt=0, le=high)
    number = Annotated[float, meta]
    allowed = (
        f"a number of seconds from 0 to {high}" if zero else f"a number of seconds above 0, at most {high}"
    )

    def read(given: str, _: Path) -> timedelta:
        duration = timedelta(seconds=_converted(given, number))
        if not zero and not duration:
            raise ValueError(given)  # less than a microsecond
        return duration

    return Kind(allowed, read)


def dollars() -> Kind:
    """An amount of money, not negative."""

    def read(given: str, _: Path) -> Usd:
        amount = Usd.parse(given)
        if amount < Usd():
            raise ValueError(given)
        return amount

    return Kind("an amount in dollars such as 0.05", read)


def secret() -> Kind:
    """A token, key or password."""

    def read(given: str, _: Path) -> Secret:
        if not is_sendable(given):
            raise ValueError("a secret")
        return Secret(given)

    return Kind("printable ASCII characters without spaces", read, hidden=True)


def is_sendable(token: str) -> bool:
    """Whether an HTTP header can carry it: printable ASCII, no spaces, of bounded length."""
    return 0 < len(token) <= _LONGEST_TEXT and all("!" <= character <= "~" for character in token)


def folder() -> Kind:
    """A folder; `~` is the user's, and what is relative starts where the setting was written."""

    def read(given: str, base: Path) -> Path:
        if not given.isprintable() or len(given) > _LONGEST_TEXT:
            raise ValueError(given)
        return base / Path(given).expanduser()

    return Kind("a folder's path", _without_home_error(read))


def place() -> Kind:
    """A folder, file or template of pictures; `~` is the user's."""

    def read(given: str, _: Path) -> str:
        if not given.isprintable() or len(given) > _LONGEST_TEXT:
            raise ValueError(given)
        opens_a_folder = given.endswith("/")
        return str(Path(given).expanduser()) + ("/" if opens_a_folder and given != "/" else "")

    return Kind("a path", _without_home_error(read))


def base_url(*, without: str = "") -> Kind:
    """The base of an API: HTTPS, or HTTP that does not leave this machine.

    Args:
        without: a path that is trimmed at its end.
    """

    def read(given: str, _: Path) -> str:
        return _base_url(given, without)

    # It may hold a password before an @, or a key after a ?, by mistake: never repeat it.
    allowed = (
        "an address such as https://host/path, or http:// to this machine only,"
        " without user name, password, ? and #"
    )
    return Kind(allowed, read, hidden=True)


def database_url() -> Kind:
    """The address of a PostgreSQL database. It may hold a password."""

    def read(given: str, _: Path) -> Secret:
        parts = urlsplit(given)
        if not is_sendable(given) or parts.scheme not in {"postgresql", "postgres"} or parts.port == 0:
            raise ValueError("an address")
        # A password with one of / ? # @ in it would end where it should not, and be told in errors as something else.
        if given.count("@") != parts.netloc.count("@") or given.count("@") > 1:
            raise ValueError("an address")
        return Secret(given)

    return Kind(
        "an address such as postgresql://user:password@host:5432/database, in whose password any of @ / ? # : % is"
        " written as %40 and so on",
        read,
        hidden=True,
    )


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def variable() -> Kind:
    """The name of an environment variable. Some write the token itself there, so it is never repeated."""

    def read(given: str, _: Path) -> str:
        if not _VARIABLE.fullmatch(given) or given.startswith(_TOKEN_PREFIX):
            raise ValueError("a variable")
        return given

    return Kind("the name of the environment variable that holds the token, not the token", read, hidden=True)


def model() -> Kind:
    """A model ref, or a name under which the catalog knows a model."""

    def read(given: str, _: Path) -> str:
        if _CATALOG_NAME.fullmatch(given):
            return given
        try:
            return str(ModelRef.parse(given))
        except InvalidModelRef:
            raise ValueError(given) from None

    return Kind("owner/name, owner/name:version or a name of the catalog", read)


def models_by_name() -> Kind:
    """Models by other names for them."""
    one = model()

    def read(given: str, base: Path) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for pair in given.split(","):
            name, equals, ref = (part.strip() for part in pair.partition("="))
            if not equals or not _CATALOG_NAME.fullmatch(name) or name.lower() in map(str.lower, found):
                raise ValueError(given)
            found[name] = one.read(ref, base)
        return MappingProxyType(found)

    allowed = "names with a model for each: a mapping in the file, NAME=MODEL, NAME=MODEL in the environment"
    return Kind(allowed, read, pairs=True)


def aspect_ratio() -> Kind:
    """Width to height."""
    return text("of the form W:H such as 16:9", form=_ASPECT_RATIO)


def host() -> Kind:
    """A name or address to listen on."""
    return text("a host name or address such as 127.0.0.1", form=_HOST)


def backend_type() -> Kind:
    """The name under which a backend registers."""
    return text("a backend's type such as replicate or emulator", form=_BACKEND_TYPE)


def caller() -> Kind:
    """A caller's name. Odd characters are dropped rather than refused: it is only a courtesy."""

    def read(given: str, _: Path) -> str:
        if not (name := clean_caller(given)):
            raise ValueError(given)
        return name

    return Kind("a name with printable characters", read)


def _converted(given: str, to: Any) -> Any:
    try:
        return convert(given, to, strict=False)
    except msgspec.ValidationError:
        raise ValueError(given) from None


def _without_home_error(read: Callable[[str, Path], Any]) -> Callable[[str, Path], Any]:
    def guarded(given: str, base: Path) -> Any:
        try:
            return read(given, base)
        except RuntimeError:  # pathlib: the user that ~ stands for has no home
            raise ValueError(given) from None

    return guarded


def _base_url(given: str, without: str) -> str:
    if not is_sendable(given) or any(character in given for character in "@?#\\"):
        raise ValueError("an address")
    parts = urlsplit(given)
    name = parts.hostname or ""
    if parts.port == 0 or not _HOST.fullmatch(name):  # .port raises ValueError itself when it is no number
        raise ValueError("an address")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(name)):
        raise ValueError("an address")
    path = parts.path.rstrip("/")
    if without:
        path = path.removesuffix(without).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(':')}{path}"
