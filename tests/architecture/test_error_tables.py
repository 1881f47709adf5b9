"""errors.py is a tree that four tables hang on: each of them covers all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import aiohttp
import pytest

from imagen import errors
from imagen.cli.exit_status import EXIT_STATUS, INTERNAL, exit_status
from imagen.errors import ConnectFailed, ExchangeFailed, ImagenError, InvalidResponse, PredictionFailed
from imagen.server.answers import HTTP_STATUS, http_status
from imagen.transport.client import FOREIGN_ERRORS

NEVER_SENT = {
    "ClientConnectorCertificateError",
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ClientConnectorSSLError",
    "ClientProxyConnectionError",
    "ClientSSLError",
    "ConnectionTimeoutError",
    "InvalidURL",
    "InvalidUrlClientError",
    "InvalidUrlRedirectClientError",
    "UnixClientConnectorError",
}
PERHAPS_SENT = {
    "ClientConnectionError",
    "ClientConnectionResetError",
    "ClientError",
    "ClientHttpProxyError",
    "ClientOSError",
    "ClientPayloadError",
    "ClientResponseError",
    "ContentTypeError",
    "NonHttpUrlClientError",
    "NonHttpUrlRedirectClientError",
    "RedirectClientError",
    "ServerConnectionError",
    "ServerDisconnectedError",
    "ServerFingerprintMismatch",
    "ServerTimeoutError",
    "SocketTimeoutError",
    "TooManyRedirects",
    "UploadAbortedError",
    "WSMessageTypeError",
    "WSServerHandshakeError",
}


def descendants(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for child in kind.__subclasses__():
        yield from descendants(child)


def our_errors() -> list[type[ImagenError]]:
    return [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ImagenError)
    ]


def drawn_tree() -> dict[str, str | None]:
    """Name → name of the branch it hangs on, as the docstring draws it."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"(?P<lead>[│├└─ ]*)(?P<name>[A-Z]\w+)(?:  |$)", line):
            depth = len(found["lead"]) // 4
            del above[depth:]
            parents[found["name"]] = above[-1] if above else None
            above.append(found["name"])
    return parents


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    classes = our_errors()
    assert drawn_tree() == {
        kind.__name__: None if kind is ImagenError else kind.__bases__[0].__name__ for kind in classes
    }


def test_every_error_has_a_code_of_its_own_and_says_what_it_means() -> None:
    codes = {kind.__name__: vars(kind).get("code") for kind in our_errors()}
    assert [name for name, code in codes.items() if not code] == []
    assert len(set(codes.values())) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", str(code)) for code in codes.values())
    assert [kind.__name__ for kind in our_errors() if not kind.__doc__] == []


def test_every_branch_has_an_exit_status() -> None:
    branches = {kind for kind in our_errors() if kind.__bases__ == (ImagenError,)}
    assert branches == {kind for kind, _ in EXIT_STATUS}


@pytest.mark.parametrize("kind", our_errors())
def test_an_error_leaves_with_the_status_of_its_branch(kind: type[ImagenError]) -> None:
    error = kind.__new__(kind)
    expected = next((status for branch, status in EXIT_STATUS if issubclass(kind, branch)), INTERNAL)
    assert exit_status(error) == expected


def test_every_branch_has_an_http_status() -> None:
    branches = {kind for kind in our_errors() if kind.__bases__ == (ImagenError,)}
    assert branches - {kind for kind, _ in HTTP_STATUS} == set()
    assert {kind for kind, _ in HTTP_STATUS} <= set(our_errors())
    assert {status for _, status in HTTP_STATUS} <= set(range(400, 600))


def test_no_http_status_is_hidden_by_one_before_it() -> None:
    """First match wins: a class stands before the branch that it hangs on."""
    kinds = [kind for kind, _ in HTTP_STATUS]
    assert len(set(kinds)) == len(kinds)
    hidden = [
        (before.__name__, kind.__name__)
        for index, kind in enumerate(kinds)
        for before in kinds[:index]
        if issubclass(kind, before)
    ]
    assert hidden == []


@pytest.mark.parametrize("kind", our_errors())
def test_an_error_is_answered_with_the_status_of_the_nearest_class_above_it(kind: type[ImagenError]) -> None:
    statuses = dict(HTTP_STATUS)
    expected = next((statuses[above] for above in kind.__mro__ if above in statuses), 500)
    error = kind.__new__(kind)
    if issubclass(kind, PredictionFailed):
        vars(error)["category"] = None
    assert http_status(error) == expected


def ours(foreign: type[BaseException]) -> type[ImagenError]:
    return next(ours for theirs, ours in FOREIGN_ERRORS if issubclass(foreign, theirs))


def test_every_error_of_the_http_library_has_been_judged() -> None:
    """A new release may bring a new class: say on which side it belongs before it decides about money."""
    known = {kind.__name__ for kind in (*descendants(aiohttp.ClientError), aiohttp.ConnectionTimeoutError)}
    assert known - NEVER_SENT - PERHAPS_SENT == set()


@pytest.mark.parametrize(
    "kind", sorted(set(descendants(aiohttp.ClientError)), key=lambda kind: kind.__name__)
)
def test_only_what_surely_did_not_arrive_may_be_sent_again(kind: type[BaseException]) -> None:
    expected = ConnectFailed if kind.__name__ in NEVER_SENT else ExchangeFailed
    assert ours(kind) is expected
    assert ours(kind).delivered == ("no" if kind.__name__ in NEVER_SENT else "unknown")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (TimeoutError, ExchangeFailed),
        (ConnectionResetError, ExchangeFailed),
        (OSError, ExchangeFailed),
        (ValueError, InvalidResponse),
    ],
)
def test_what_the_system_raises_counts_as_perhaps_sent(
    kind: type[BaseException], expected: type[ImagenError]
) -> None:
    assert ours(kind) is expected
