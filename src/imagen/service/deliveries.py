"""Telling callers at their own addresses: events are signed, sent again until they are taken, and kept in order."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import math
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace
from standardwebhooks import Webhook

from imagen.domain.delivery import Delivery, SigningSecret
from imagen.domain.events import Delivered
from imagen.domain.secret import Secret
from imagen.errors import ConfigError, ImagenError, StoreError, TransportError
from imagen.ports import Clock, Observer, Outbox, Sealer
from imagen.transport.message import HttpResponse

MOST_IN_FLIGHT, MOST_OF_ONE_HOST = 32, 4
DAY_SECONDS = 86_400.0
"""How long a delivery is tried, from its first attempt on."""
WAITED_SECONDS = 7 * DAY_SECONDS
"""One that waited so long behind others for its first attempt gets that one only."""
KEPT_SECONDS = 7 * DAY_SECONDS
"""How long one that is done can still be looked at."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 4 * 3600.0
OVERLAP_SECONDS = DAY_SECONDS
"""How long the secret of before signs beside its successor."""
LOOK_SECONDS = 1.0
"""How often the outbox is looked into for what other processes have put there."""
_TURN_SECONDS = 5.0
_SWEEP_SECONDS = 3600.0
_LEAST_PAUSE_SECONDS, _PAUSE_FOR_A_LOOK, _MOST_PAUSE_SECONDS = 0.05, 20.0, 2.0
"""Between two looks there is so many times the length of the last one, but at least and at most so many seconds."""
_CANDIDATES = 256
_GONE = 410
_FACTOR, _JITTER = 3.0, 0.2

_PLAIN, _SEALED = "plain:", "sealed:"
"""Before what is kept of a signing secret: it was made while there was no key to seal it with, or while there was."""
_SECRET_BYTES = 32
_ROTATE = "Run `imagen deliveries secret rotate --overlap 0`; receivers then need their new secrets."

_LOOKING, _SENDING, _WRITING = "look", "send", "write"

_log = logging.getLogger(__name__)


class Poster(Protocol):
    """Sends one message to an address of a caller's."""

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        """Status and header fields of the answer.

        Raises:
            TransportError: no answer came, or the address is none that is called.
        """


class Turn(Protocol):
    """Whose turn it is, of all processes on one store."""

    def mine(self) -> bool:
        """Whether this process is the one that delivers.

        Raises:
            StoreError: that cannot be told.
        """


class CallerSecret(msgspec.Struct, frozen=True, kw_only=True):
    """What the events of one caller are signed with.

    Attributes:
        secret: `whsec_` and base64.
        created_at: since when it signs; retires_at: until when, None for the newest.
    """

    secret: Secret
    created_at: datetime
    retires_at: datetime | None


class SigningSecrets:
    """The secrets of all callers, derived from one that is kept. Safe to share between tasks.

    Args:
        outbox: where that one is kept.
        sealer: encrypts it there; None keeps it plain, in a file that only its owner reads.
        clock: tells the time.
    """

    def __init__(self, *, outbox: Outbox, sealer: Sealer | None, clock: Clock) -> None:
        self._outbox = outbox
        self._sealer = sealer
        self._clock = clock
        self._opened: dict[str, bytes] = {}
        self._trouble: str | None = None

    async def of(self, scope: str) -> Sequence[CallerSecret]:
        """Those of one caller that sign now, the newest first; at least one.

        Args:
            scope: whose they are.

        Raises:
            ConfigError: none of them can be opened: they were sealed with a key that is not set now, or are damaged.
            StoreError: they could not be read or written.
        """
        opened, refused = await self._masters()
        if refused is not None and not opened:
            raise refused
        return [
            CallerSecret(
                secret=derived_secret(master, scope), created_at=kept.created_at, retires_at=kept.retires_at
            )
            for kept, master in opened
        ]

    async def shut(self) -> ConfigError | None:
        """What is wrong with those that should sign and cannot be opened, with the next step; None while all can.

        Raises:
            StoreError: they could not be read.
        """
        return (await self._opened_of(await self._outbox.secrets(now=self._clock.now())))[1]

    @property
    def trouble(self) -> str | None:
        """What was wrong when they were opened last, for people; None when all could be."""
        return self._trouble

    async def rotate(self, *, overlap_seconds: float = OVERLAP_SECONDS) -> None:
        """Make new secrets for all callers; those of before sign beside them for so long.

        Raises:
            StoreError: it could not be written; all stays as it was.
        """
        await self._kept()  # without one from before, callers would have nothing to rotate from
        await self._outbox.rotate(await self._new(), now=self._clock.now(), overlap_seconds=overlap_seconds)

    async def _kept(self) -> Sequence[SigningSecret]:
        """Those that should sign now; at least one, whether it can be opened or not."""
        now = self._clock.now()
        if kept := await self._outbox.secrets(now=now):
            return kept
        return [await self._outbox.rotate(await self._new(), now=now, overlap_seconds=0.0, first=True)]

    async def _masters(self) -> tuple[list[tuple[SigningSecret, bytes]], ConfigError | None]:
        return await self._opened_of(await self._kept())

    async def _opened_of(
        self, kept: Sequence[SigningSecret]
    ) -> tuple[list[tuple[SigningSecret, bytes]], ConfigError | None]:
        """Those that can be opened, and what is wrong with the others."""
        # Deriving the key that unseals takes a while, and the same few are asked for again and again.
        opened, refused = {}, None
        for one in kept:
            known = self._opened.get(one.secret)
            try:
                opened[one.secret] = (
                    await asyncio.to_thread(self._open, one.secret) if known is None else known
                )
            except ConfigError as error:
                refused = error
        self._opened = opened
        self._trouble = None if refused is None else str(refused)
        return [(one, opened[one.secret]) for one in kept if one.secret in opened], refused

    async def _new(self) -> str:
        text = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        if self._sealer is None:
            return _PLAIN + text
        return _SEALED + await asyncio.to_thread(self._sealer.seal, Secret(text))

    def _open(self, kept: str) -> bytes:
        try:
            master = base64.b64decode(self._text(kept), validate=True)
        except ValueError:
            master = b""
        if len(master) != _SECRET_BYTES:
            raise ConfigError("what signs the events for callers is damaged.", hint=_ROTATE)
        return master

    def _text(self, kept: str) -> str:
        if not kept.startswith(_SEALED):
            return kept.removeprefix(_PLAIN)
        if self._sealer is None:
            told = "secret_key: what signs the events for callers is encrypted, and no key is set."
        else:
            try:
                return self._sealer.unseal(kept.removeprefix(_SEALED)).reveal()
            except ConfigError:
                told = (
                    "secret_key: what signs the events for callers was encrypted with another key, "
                    "or changed since."
                )
        raise ConfigError(
            told,
            setting="secret_key",
            hint=f"Set IMAGEN_SECRET_KEY to the key of then. If it is lost: {_ROTATE}",
        )


def derived_secret(master: bytes, scope: str) -> Secret:
    """The secret of one caller: nobody finds the master from it, nor that of another caller."""
    derived = hmac.digest(master, f"webhooks:{scope}".encode(), hashlib.sha256)
    return Secret(f"whsec_{base64.b64encode(derived).decode()}")


class Courier:
    """Sends what is due, until cancelled. Of all processes on one store, one does.

    A line is all that goes to one address about one subject: of it, one at a time is on its way, and the next one goes
    when that was taken or given up. A crash between sending and writing that down sends it again, under the same id.

    Args:
        outbox: what is to be sent.
        signing: what it is signed with.
        poster: sends it.
        turn: tells whether this process is the one.
        clock: tells the time.
        observer: told of every attempt.
        chance: from 0.0 to 1.0, for pauses that differ.
        body_of: the body of one as it is sent now.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        signing: SigningSecrets,
        poster: Poster,
        turn: Turn,
        clock: Clock,
        observer: Observer,
        chance: Callable[[], float] = random.random,
        body_of: Callable[[Delivery], Awaitable[Mapping[str, Any]]] | None = None,
    ) -> None:
        self._body_of = body_of
        self._outbox = outbox
        self._signing = signing
        self._poster = poster
        self._turn = turn
        self._clock = clock
        self._observer = observer
        self._chance = chance
        self._woken = asyncio.Event()
        self._ready: dict[str, Delivery] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._look_at = self._sweep_at = -math.inf
        self._troubles: dict[str, str] = {}

    @property
    def trouble(self) -> str | None:
        """Why something cannot be sent or signed now, for people; None while all is well."""
        return next(iter(self._troubles.values()), self._signing.trouble)

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._woken.set()

    async def deliver(self) -> None:
        """Send what is due, now and whenever something is, until cancelled. What is under way then is sent again."""
        try:
            while True:
                try:
                    pause = await self._round()
                except Exception as error:  # noqa: BLE001 - a fault of one round must not end all of it
                    self._in_trouble(_LOOKING, error)
                    pause = _TURN_SECONDS
                else:
                    self._troubles.pop(_LOOKING, None)
                await self._rest(pause)
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    # --- which, and when ---------------------------------------------------------------------------------

    async def _round(self) -> float:
        """Begin as many as may be; seconds until the next look."""
        if not self._turn.mine():
            return _TURN_SECONDS
        self._begin()
        now = self._clock.monotonic()
        if now >= self._sweep_at:
            await self._outbox.sweep(before=self._clock.now() - timedelta(seconds=KEPT_SECONDS))
            await self._signing.shut()  # told before the first event waits for it
            self._sweep_at = now + _SWEEP_SECONDS
        if len(self._under_way) >= MOST_IN_FLIGHT:
            return LOOK_SECONDS
        if now < self._look_at:
            return self._look_at - now
        await self._look()
        ended = self._clock.monotonic()
        pause = min(_PAUSE_FOR_A_LOOK * (ended - now), _MOST_PAUSE_SECONDS)
        self._look_at = ended + max(pause, _LEAST_PAUSE_SECONDS)
        self._begin()
        return LOOK_SECONDS

    async def _look(self) -> None:
        self._ended.clear()
        if self._signing.trouble is not None:
            await self._signing.shut()  # it may have been mended, or have retired
        found = await self._outbox.due(now=self._clock.now(), limit=_CANDIDATES)
        # What ended while the outbox was read may be in the answer as it was before.
        known = self._ended | self._under_way.keys()
        self._ready = {one.id: one for one in found if one.id not in known}

    def _begin(self) -> None:
        for one in list(self._ready.values()):
            if len(self._under_way) >= MOST_IN_FLIGHT:
                return
            host = _host(one.url)
            if self._hosts[host] >= MOST_OF_ONE_HOST:
                continue
            del self._ready[one.id]
            self._hosts[host] += 1
            task = asyncio.get_running_loop().create_task(self._carry(one))
            self._under_way[one.id] = task
            task.add_done_callback(partial(self._left, one, host))

    def _left(self, one: Delivery, host: str, _: asyncio.Task[None]) -> None:
        self._under_way.pop(one.id, None)
        self._ended.add(one.id)
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        self._woken.set()

    async def _rest(self, seconds: float) -> None:
        """Until something happens, at most for so long; woken in a row it looks again only after a moment."""
        resting = asyncio.ensure_future(self._clock.sleep(seconds))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({resting, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            resting.cancel()
            woken.cancel()
            self._woken.clear()

    # --- one of them -------------------------------------------------------------------------------------

    async def _carry(self, delivery: Delivery) -> None:
        try:
            tried = await self._attempt(delivery)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and tried again after a pause
            # Nothing was sent. It stays in the outbox as it was, and is found again.
            self._in_trouble(_SENDING, error)
            await self._clock.sleep(_TURN_SECONDS)
            return
        self._troubles.pop(_SENDING, None)
        following = await self._written(tried)
        self._tell(tried)
        if following is not None and following.id not in self._under_way:
            self._ready[following.id] = following

    async def _attempt(self, delivery: Delivery) -> Delivery:
        began = self._clock.now()
        try:
            sent = delivery.body if self._body_of is None else await self._body_of(delivery)
            body = msgspec.json.encode(sent)
        except Exception as error:  # whatever one row brings about concerns this delivery alone
            if isinstance(error, ImagenError) and not (isinstance(error, StoreError) and error.of_one_row):
                raise
            told = f"what it says cannot be read ({type(error).__name__})"
            return self._after(delivery, began=began, told=told)
        signatures = [
            Webhook(one.secret.reveal()).sign(delivery.id, began, body.decode())
            for one in await self._signing.of(delivery.scope)
        ]
        headers = {
            "content-type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(math.floor(began.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        try:
            answer = await self._poster.post(delivery.url, headers=headers, body=body)
        except TransportError as error:
            return self._after(delivery, began=began, told=error.detail)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's server brings about is a failed attempt
            return self._after(delivery, began=began, told=f"the connection failed ({type(error).__name__})")
        return self._after(delivery, began=began, told=f"status {answer.status}", answer=answer)

    def _after(
        self, delivery: Delivery, *, began: datetime, told: str, answer: HttpResponse | None = None
    ) -> Delivery:
        now = self._clock.now()
        return after_attempt(
            delivery,
            began=began,
            now=now,
            status=None if answer is None else answer.status,
            told=told,
            asked_seconds=None if answer is None else retry_after(answer.headers.get("retry-after"), now=now),
            chance=self._chance(),
        )

    async def _written(self, tried: Delivery) -> Delivery | None:
        """Write down what came of it, however long that takes: sent again, it would come twice."""
        pause = _LEAST_PAUSE_SECONDS
        while True:
            try:
                following = await self._outbox.done(tried, now=self._clock.now())
            except Exception as error:  # noqa: BLE001 - forgotten, it would be sent again at once
                self._in_trouble(_WRITING, error)
                pause = min(2 * pause, _TURN_SECONDS)
                await self._clock.sleep(pause)
            else:
                self._troubles.pop(_WRITING, None)
                return following

    def _tell(self, tried: Delivery) -> None:
        if tried.delivered_at is not None:
            self._observer.notify(Delivered("taken"))
        elif tried.given_up_at is not None:
            self._observer.notify(Delivered("given_up"))
            # Host and id alone: paths and queries of such addresses are often secrets of their owners.
            _log.warning("%s to %s was given up: %s", tried.id, _host(tried.url), tried.answer)
        else:
            self._observer.notify(Delivered("failed"))
            _log.info("%s to %s failed and is sent again: %s", tried.id, _host(tried.url), tried.answer)

    def _in_trouble(self, doing: str, error: Exception) -> None:
        told = str(error) if isinstance(error, ImagenError) else f"unexpected fault ({type(error).__name__})"
        if self._troubles.get(doing) != told:
            _log.warning("events for callers wait: %s", told)
            if not isinstance(error, ImagenError):
                _log.debug("the fault", exc_info=error)
        self._troubles[doing] = told


def after_attempt(
    delivery: Delivery,
    *,
    began: datetime,
    now: datetime,
    status: int | None,
    told: str,
    asked_seconds: float | None,
    chance: float,
) -> Delivery:
    """A delivery after one more attempt: taken, given up, or due again.

    Args:
        delivery: as it was before.
        began: when the attempt began.
        now: when it ended.
        status: of the answer; None when none came.
        told: what came of it, for people.
        asked_seconds: how long the receiver asked to be left alone.
        chance: from 0.0 to 1.0.
    """
    since = delivery.tried_since or began
    tried = replace(
        delivery,
        attempts=delivery.attempts + 1,
        tried_since=since,
        due_at=None,
        given_up_at=None,
        answer=told,
    )
    if status is not None and 200 <= status < 300:
        return replace(tried, delivered_at=now)
    over = since + timedelta(seconds=DAY_SECONDS)
    waited = delivery.tried_since is None and began - delivery.created_at > timedelta(seconds=WAITED_SECONDS)
    if status == _GONE or waited or now >= over:
        return replace(tried, given_up_at=now)
    pause = pause_after(tried.attempts, chance=chance)
    if asked_seconds is not None:
        pause = min(max(pause, asked_seconds), LONGEST_PAUSE_SECONDS)
    # The last attempt is made at the very end of the day.
    return replace(tried, due_at=min(now + timedelta(seconds=pause), over))


def pause_after(attempts: int, *, chance: float) -> float:
    """Seconds until the next attempt: 5, 15, 45, … 14400, each up to a fifth shorter by chance."""
    pause = min(FIRST_PAUSE_SECONDS * _FACTOR ** min(attempts - 1, 20), LONGEST_PAUSE_SECONDS)
    return float(pause * (1 - _JITTER * chance))


def retry_after(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a `Retry-After` asks for, which has a number or a date; None when it says nothing that makes sense."""
    if header is None or len(header) > 64:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return max(0.0, (when - now).total_seconds())


def _host(url: str) -> str:
    """The host of an address in small letters, for counting and for the log."""
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:
        return "?"
