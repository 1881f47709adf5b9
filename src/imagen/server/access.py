"""Who may come in: the admin, a key, a caller with a Replicate token of their own, or whoever is on this machine."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from cachetools import FIFOCache

from imagen.domain.caller import ADMIN, OWN_TOKEN, Caller
from imagen.domain.key import check_route
from imagen.domain.prediction import Prediction
from imagen.domain.secret import Secret
from imagen.errors import PermissionDenied, Unauthenticated
from imagen.ports import Backend, Clock
from imagen.transport.message import is_loopback

NO_CREDENTIALS = (
    "Authentication failed. Provide 'X-Admin-API-Key' in headers or complete credentials in payload."
)
WRONG_ADMIN_KEY = "Invalid admin API key"
WRONG_TOKEN = "Invalid Replicate API token in credentials"  # noqa: S105 - a sentence
WRONG_KEY = "Invalid API key"
TOKEN_HEADER = "x-replicate-api-token"  # noqa: S105 - a name
"""For requests without a payload that could have credentials: the same token in a header."""
_TOKENS = "r8_"
"""What every token of Replicate's begins with."""
_LONGEST_TOKEN = 512
_LONGEST_HOST = 255
_PROVEN_SECONDS, _MOST_PROVEN = 60.0, 10_000
_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers that tell that somebody stands between."""


class Visitor(msgspec.Struct, frozen=True, kw_only=True):
    """Who came in, and on whose account their pictures are made.

    Attributes:
        caller: whom the ledger names, with the limits of their key.
        backend: makes the pictures, on the account that pays for them.
        admin: whether they may do everything.
        own_token: they brought a Replicate token of their own; token: that one.
        models: the models that they may use; empty for all.
        routes: the paths that their key is good for; empty for all.
    """

    caller: Caller
    backend: Backend
    admin: bool = False
    own_token: bool = False
    token: Secret | None = None
    models: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()

    @property
    def owns_account(self) -> bool:
        """Whether all that the account has is theirs to see; others have no more than what is their own on it."""
        return self.admin or self.own_token

    @property
    def is_stranger(self) -> bool:
        """Whether they have shown nothing."""
        return not self.owns_account and self.caller.key is None


def scope_of(visitor: Visitor) -> str:
    """Whose durable work a visitor makes and may see: equal for all requests of the same key, token or admin.

    Returns:
        `admin`, `key:ID`, `token:ACCOUNT`, or `local` for callers who show nothing.
    """
    if visitor.admin:
        return "admin"
    if visitor.own_token:
        return f"token:{visitor.backend.account}"
    return "local" if visitor.caller.key is None else f"key:{visitor.caller.key}"


def sight_of(visitor: Visitor) -> str | None:
    """The scope that a visitor sees; None for the admin, who sees all."""
    return None if visitor.admin else scope_of(visitor)


def owns(visitor: Visitor, prediction: Prediction) -> bool:
    """Whether a prediction was asked for with the same key or token, or by whoever shows none; the admin has them all."""
    if visitor.admin:
        return True
    if visitor.own_token:
        return prediction.account == visitor.backend.account
    if visitor.caller.key is not None:
        return prediction.key == visitor.caller.key
    return (
        prediction.key is None
        and prediction.caller == visitor.caller.name
        and prediction.account == visitor.backend.account
    )


class Proven:
    """Accounts of callers whose own tokens the service let in a short while ago.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: FIFOCache[str, float] = FIFOCache(_MOST_PROVEN)

    async def check(self, backend: Backend) -> None:
        """Let the service tell whether a token is good, unless it has told so within the last minute.

        Raises:
            ImagenError: it is not, or the service could not tell.
        """
        account, now = backend.account, self._clock.monotonic()
        if self._until.get(account, now) > now:
            return
        await backend.probe()
        self._until[account] = now + _PROVEN_SECONDS  # counted from before the probe


class KeyRing(Protocol):
    """Knows the keys of this gateway."""

    async def find(self, shown: str) -> KeyFacts | None:
        """The key that was shown; None when there is none, or it was revoked."""


class KeyFacts(Protocol):
    """What the door needs to know of a key."""

    @property
    def caller(self) -> Caller:
        """Whom it names, with its limits."""

    @property
    def models(self) -> frozenset[str]:
        """`owner/name` of the models it is good for; empty for all."""

    @property
    def routes(self) -> frozenset[str]:
        """The paths it is good for; empty for all."""


class Accounts(Protocol):
    """Makes backends for accounts."""

    def own(self) -> Backend:
        """That of the server's own account."""

    def of(self, token: Secret) -> Backend:
        """That of a caller's own token; kept nowhere.

        Raises:
            Unauthenticated: no token looks like that.
        """


class Door:
    """Lets in by three tiers, the highest first.

    Args:
        admin_key: what the admin shows; None admits nobody as admin.
        accounts: backends of the server's and of callers' accounts.
        keys: the named keys of this gateway.
        fallback: whether callers without credentials use the server's account.
        local_caller: whom the ledger names then.
        local: whether only this machine can reach the gateway.
        clock: tells the time.
        public_host: the name under which callers reach it, where the settings tell one.
        through_proxies: whether `fallback` is also for what a proxy has passed on.
    """

    def __init__(
        self,
        *,
        admin_key: Secret | None,
        accounts: Accounts,
        keys: KeyRing,
        fallback: bool,
        local_caller: Caller,
        local: bool,
        clock: Clock,
        public_host: str | None = None,
        through_proxies: bool = False,
    ) -> None:
        self._admin_key = admin_key
        self._accounts = accounts
        self._keys = keys
        self._fallback = fallback
        self._local_caller = local_caller
        self._local = local
        self.proven = Proven(clock)
        self._public_host = public_host
        self._through_proxies = through_proxies

    @property
    def fallback(self) -> bool:
        """Whether callers without credentials use the server's account."""
        return self._fallback

    async def admit(
        self, headers: Mapping[str, str], *, credentials: Any = None, route: str | None
    ) -> Visitor:
        """Who asks.

        Args:
            headers: of the request, names in lower case. As good as credentials are `X-Replicate-Api-Token` and what
                Replicate's own clients send: `Authorization: Bearer r8_…`.
            credentials: `credentials` of the payload.
            route: the path that is asked for, as keys are scoped by it; None for what every key may ask.

        Raises:
            Unauthenticated: with the documented sentence.
            PermissionDenied: the key is not good for this route.
        """
        if self.is_admin(headers):
            return Visitor(caller=Caller(name=ADMIN), backend=self._accounts.own(), admin=True)
        if (key := _shown_key(headers)) is not None:
            return await self._by_key(key, route)
        token = headers.get(TOKEN_HEADER, _shown_token(headers))
        if credentials is None and token is not None:
            credentials = {"replicate_api_token": token}
        if credentials is not None:
            return self._by_token(credentials)
        if self._fallback and self._is_program(headers):
            return Visitor(caller=self._local_caller, backend=self._accounts.own())
        raise Unauthenticated(NO_CREDENTIALS)

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse what a web page that is not ours has sent, whatever it shows.

        Raises:
            PermissionDenied: its `Origin` is another one, or `Host` may be a name that a stranger gave us.
        """
        if "origin" not in headers:
            return
        told = headers.get("host", "")
        if _netloc(headers["origin"]) != told.lower() or not self._is_ours(_host(f"//{told}")):
            raise PermissionDenied("web pages of other origins are not served here")

    def sees_key(self, headers: Mapping[str, str]) -> bool:
        """Whether a key is shown, of whatever worth."""
        return "x-admin-api-key" in headers or _shown_key(headers) is not None or self.is_admin(headers)

    def require_admin(self, headers: Mapping[str, str]) -> None:
        """Let in nobody but the admin.

        Raises:
            Unauthenticated: no admin key, or a wrong one, was shown.
        """
        if not self.is_admin(headers):
            raise Unauthenticated(
                NO_CREDENTIALS if "x-admin-api-key" not in headers else WRONG_ADMIN_KEY,
                hint="Send the admin key in the header X-Admin-API-Key.",
            )

    def is_admin(self, headers: Mapping[str, str]) -> bool:
        """Whether the admin key was shown, as `X-Admin-API-Key` or as a bearer.

        Raises:
            Unauthenticated: a wrong one was shown by its own name.
        """
        shown = headers.get("x-admin-api-key")
        if shown is None:
            return (bearer := _bearer(headers)) is not None and self._is_admin_key(bearer)
        if not self._is_admin_key(shown):
            raise Unauthenticated(WRONG_ADMIN_KEY)
        return True

    def _is_admin_key(self, shown: str) -> bool:
        wanted = b"" if self._admin_key is None else self._admin_key.reveal().encode()
        # A header is bytes, which the server shows us as Latin-1.
        same = hmac.compare_digest(shown.encode("latin-1", "replace"), wanted)
        return same and self._admin_key is not None

    def _is_program(self, headers: Mapping[str, str]) -> bool:
        """Whether a request without credentials comes from a program here, and not from a web page or through a proxy.

        Any page may send requests to this machine. Browsers tell in `Origin` where the page is from, and in `Host`
        under which name, perhaps a made-up one, they found us. What a proxy passes on may come from anywhere.
        """
        if not self._through_proxies and any(name in headers for name in _OF_PROXIES):
            return False
        told = headers.get("host", "")
        host = _host(f"//{told}")
        if self._local and not is_loopback(host):
            return False
        if "origin" not in headers:
            return True
        return _netloc(headers["origin"]) == told.lower() and self._is_ours(host)

    def _is_ours(self, host: str | None) -> bool:
        """Whether no stranger can have given us that name; numbers are no name."""
        return host is not None and (host == self._public_host or is_loopback(host) or _is_address(host))

    async def _by_key(self, shown: str, route: str | None) -> Visitor:
        key = await self._keys.find(shown)
        if key is None:
            raise Unauthenticated(WRONG_KEY, hint="`imagen keys list` shows the keys that are good.")
        if route is not None:
            check_route(key.routes, route)
        return Visitor(caller=key.caller, backend=self._accounts.own(), models=key.models, routes=key.routes)

    def _by_token(self, credentials: Any) -> Visitor:
        shown = credentials.get("replicate_api_token") if isinstance(credentials, dict) else None
        if shown is None:
            raise Unauthenticated(NO_CREDENTIALS)
        if not isinstance(shown, str) or not _looks_like_token(shown):
            raise Unauthenticated(WRONG_TOKEN)
        token = Secret(shown)
        backend = self._accounts.of(token)
        return Visitor(
            caller=Caller(name=f"{OWN_TOKEN}{token.fingerprint()[:8]}", stranger=True),
            backend=backend,
            own_token=True,
            token=token,
        )


def _host(url: str) -> str | None:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    return host if host is not None and len(host) <= _LONGEST_HOST else None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _shown_key(headers: Mapping[str, str]) -> str | None:
    if (key := headers.get("x-api-key")) is not None:
        return key
    bearer = _bearer(headers)
    return None if bearer is None or bearer.startswith(_TOKENS) else bearer


def _shown_token(headers: Mapping[str, str]) -> str | None:
    """A token of Replicate's as its own clients show it."""
    bearer = _bearer(headers)
    return bearer if bearer is not None and bearer.startswith(_TOKENS) else None


def _bearer(headers: Mapping[str, str]) -> str | None:
    """What is shown in `Authorization`; older clients of Replicate say `Token` for `Bearer`.

    All of it where it has another scheme, or none: it was shown all the same, and does not count as nothing.
    """
    shown = headers.get("authorization")
    if shown is None:
        return None
    scheme, _, value = shown.partition(" ")
    return value.strip() if scheme.lower() in {"bearer", "token"} else shown


def _looks_like_token(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_TOKEN and all("!" <= character <= "~" for character in text)
