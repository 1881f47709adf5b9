"""Webhooks in: the service tells that a prediction has ended, and whoever waits for it looks at once.

What a webhook says is believed in one point only: that it is worth looking now. So nothing depends on their order, on
their coming at all, or on their coming once.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, Protocol

import msgspec
from standardwebhooks import Webhook

from imagen.decoding import decode
from imagen.domain.secret import Secret
from imagen.errors import BackendBroken, BackendError, NotFound, WebhookRejected
from imagen.ports import Backend, Clock, WebhookSource

PATH = "/webhooks/replicate"
"""Where webhooks arrive, below the gateway's public address."""

TOLERANCE_SECONDS = 300
REMEMBERED_SECONDS = 2.0 * TOLERANCE_SECONDS
"""A webhook that is signed for the farthest future that is let in is stale after so long."""
MOST_REMEMBERED = 20_000
ASK_AGAIN_SECONDS = 60.0
"""The secret is asked for at most so often, whatever arrives."""

_ASK_SECONDS = 5.0
_MOST_WAITING = 16
"""So many webhooks wait while the secret is asked for; more than that is a flood."""
_MOST_SIGNATURES = 8
_LONGEST_SIGNATURES = 1024
_ID = re.compile(r"[!-~]{1,200}")
_INSTANT = re.compile(r"[0-9]{1,11}")

HEARD_SECONDS = 600.0
"""Whoever was told of nothing for so long relies on looking."""

Receipt = Literal["taken", "repeated"]
"""What became of a genuine webhook: its prediction is looked at, or it had come before."""

_log = logging.getLogger(__name__)


class Wakes(Protocol):
    """Whoever waits for predictions to end."""

    def wake(self, upstream_id: str) -> None:
        """Look at a prediction at once, or as soon as somebody waits for it. Any text may be said."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the headers of a webhook: well-formed and timely, and nothing of it proven.

    Attributes:
        id: of the message; the same when it is sent again.
        at: when it was signed, in whole seconds since 1970.
        signatures: those of version 1, in base64.
    """

    id: str
    at: int
    signatures: tuple[bytes, ...]


class _Told(msgspec.Struct):
    """As much of the body as is used."""

    id: str


class Webhooks:
    """Receives the webhooks of the gateway's own account.

    Args:
        source: the backend of that account.
        wakes: told which predictions to look at.
        clock: tells the time.
        public_url: under which the service reaches the gateway; only an https address can be named to it.
    """

    def __init__(
        self, *, source: Callable[[], Backend], wakes: Wakes, clock: Clock, public_url: str | None
    ) -> None:
        self._source = source
        self._wakes = wakes
        self._clock = clock
        self._url = f"{public_url}{PATH}" if public_url and public_url.startswith("https://") else None
        self._listens = False
        self._secret: Secret | None = None
        self._next_ask = float("-inf")
        self._asking = asyncio.Lock()
        self._waiting = 0
        self._seen: dict[str, float] = {}
        self._heard_at = float("-inf")

    @property
    def arrive(self) -> bool:
        """Whether they have come lately: an address that is only believed to reach us is not relied upon."""
        return self._clock.monotonic() - self._heard_at <= HEARD_SECONDS

    def listen(self) -> None:
        """From now on this process serves the public address: only such a one is told of anything."""
        self._listens = True

    def address(self, account: str) -> str | None:
        """The address that a create on that account may name; None where nobody could verify what came of it."""
        if self._url is None or not self._listens:
            return None
        own = self._source()
        signs = isinstance(own, WebhookSource) and not own.practice
        return self._url if signs and own.account == account else None

    def open(self, headers: Mapping[str, str]) -> Envelope:
        """Read the headers of what arrives. Cheap, so that it comes before anything of the body is read.

        Args:
            headers: names in lower case.

        Raises:
            NotFound: no webhooks are expected here.
            WebhookRejected: a header is missing or makes no sense, or it was signed too long ago or ahead of its time.
        """
        if self._url is None or not self._listens:
            raise NotFound(
                "no webhooks are expected here",
                hint="Set public_url (IMAGEN_PUBLIC_URL) to the https address of this gateway.",
            )
        message, instant = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        signed = headers.get("webhook-signature", "")
        if not _ID.fullmatch(message):
            raise _malformed("webhook-id must be 1 to 200 visible characters")
        if not _INSTANT.fullmatch(instant):
            raise _malformed("webhook-timestamp must be whole seconds since 1970")
        found = [part.partition(",") for part in signed[:_LONGEST_SIGNATURES].split()][:_MOST_SIGNATURES]
        signatures = tuple(
            text.encode("latin-1", "replace") for version, _, text in found if version == "v1" and text
        )
        if not signatures:
            raise _malformed("webhook-signature must have a signature of version v1")
        if abs(int(instant) - self._clock.now().timestamp()) > TOLERANCE_SECONDS:
            raise WebhookRejected(
                f"webhook-timestamp is more than {TOLERANCE_SECONDS} s from now",
                reason="stale",
                hint="If it is genuine, one of the two clocks is wrong.",
            )
        return Envelope(id=message, at=int(instant), signatures=signatures)

    async def take(self, envelope: Envelope, body: bytes) -> Receipt:
        """Verify a webhook, and let whoever waits for its prediction look. Taking it again changes nothing.

        Args:
            envelope: its headers.
            body: as it came; nothing of it is read before it is verified.

        Raises:
            WebhookRejected: its signature is wrong, or it does not name a prediction.
            BackendError: the secret could not be asked for, so nobody knows.
        """
        await self._verify(envelope, body)
        self._heard_at = self._clock.monotonic()
        if self._is_repeated(envelope.id):
            return "repeated"
        try:
            upstream_id = decode(body, _Told).id
        except (ValueError, RecursionError):
            raise _malformed("the body must be a prediction with its id") from None
        self._wakes.wake(upstream_id)
        return "taken"

    # --- the signature -----------------------------------------------------------------------------------

    async def _verify(self, envelope: Envelope, body: bytes) -> None:
        """Compare the signature with ours.

        The library signs, and the comparison is here: its own one goes by the system's clock and trips over headers
        that make no sense.
        """
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise _malformed("the body must be JSON in UTF-8") from None
        secret = self._secret
        if secret is not None and _fits(secret, envelope, text):
            return
        newer = await self._ask(instead_of=secret)
        if newer is None or not _fits(newer, envelope, text):
            raise WebhookRejected(
                "webhook-signature is not of the account whose webhooks are expected here",
                hint="The gateway and whoever made the prediction must use the same Replicate account.",
            )

    async def _ask(self, *, instead_of: Secret | None) -> Secret | None:
        """The secret as the service has it now; None when it is still the one that did not fit, or may not be asked for.

        Raises:
            BackendError: there is none, and it could not be asked for.
        """
        if self._waiting >= _MOST_WAITING:
            self._unasked("too many webhooks wait for the webhook secret")
            return None
        self._waiting += 1
        try:
            async with self._asking:
                if self._secret != instead_of:
                    return self._secret  # somebody else has asked in the meantime
                now = self._clock.monotonic()
                if now < self._next_ask:
                    self._unasked("the webhook secret could not be asked for a moment ago")
                    return None
                self._next_ask = now + ASK_AGAIN_SECONDS
                return await self._asked()
        finally:
            self._waiting -= 1

    async def _asked(self) -> Secret | None:
        source = self._source()
        if not isinstance(source, WebhookSource):
            return None
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                found = await source.webhook_secret()
        except BackendError as error:
            _log.warning("the webhook secret could not be asked for: %s", error.detail)
            self._unasked(error.detail)
            return None
        except TimeoutError:
            self._unasked("Replicate did not tell the webhook secret in time")
            return None
        if found == self._secret:
            return None
        if self._secret is not None:
            _log.info("the webhook secret was rotated")
        self._secret = found
        return found

    def _unasked(self, reason: str) -> None:
        """The secret was not asked for: then the one that there is counts.

        Raises:
            BackendError: there is none.
        """
        if self._secret is None:
            wait = max(self._next_ask - self._clock.monotonic(), 1.0)
            raise BackendBroken(f"this webhook cannot be verified now: {reason}", retry_after=wait)

    # --- what has come before ----------------------------------------------------------------------------

    def _is_repeated(self, message: str) -> bool:
        """Whether a genuine webhook has come before; it is remembered until it would be stale."""
        now = self._clock.monotonic()
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) < MOST_REMEMBERED and self._seen[oldest] > now - REMEMBERED_SECONDS:
                break
            del self._seen[oldest]
        if message in self._seen:
            return True
        self._seen[message] = now
        return False


def _fits(secret: Secret, envelope: Envelope, body: str) -> bool:
    signed_at = datetime.fromtimestamp(envelope.at, UTC)
    wanted = Webhook(secret.reveal()).sign(envelope.id, signed_at, body).partition(",")[2].encode()
    return any(hmac.compare_digest(wanted, one) for one in envelope.signatures)


def _malformed(detail: str) -> WebhookRejected:
    return WebhookRejected(detail, reason="malformed")
