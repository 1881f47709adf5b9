"""Webhooks out: what happens to a prediction is told to the address that its create call named.

Facts (docs, topics/webhooks; spec): the events are `start`, `output`, `logs` and `completed`, by default `output` and
`completed`; the body is the prediction object; `output` and `logs` come at most once per 500 ms; redirects are not
followed; only the last one is sent again after a failure, several times with growing waits, for about a minute. It is
signed with HMAC-SHA256 over `{id}.{timestamp}.{body}`; whatever is sent again keeps its id.

Nothing is sent before `Mode.webhooks_via` says where to.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import math
import secrets
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from imagen.emulator.clock import timestamp
from imagen.emulator.course import Run
from imagen.emulator.fault import WEBHOOK, Fault, Slot, Subject
from imagen.emulator.faults import (
    WebhookDelay,
    WebhookDrop,
    WebhookDuplicate,
    WebhookForge,
    WebhookReorder,
)
from imagen.emulator.journal import MAX_BODY_BYTES, Entry
from imagen.emulator.shapes import logs_at
from imagen.emulator.showing import shown
from imagen.emulator.world import World

BY_DEFAULT = ("output", "completed")
"""Sent when a create call names an address and no events."""

LEAST_APART_SECONDS = 0.5
RETRY_SECONDS = (2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits between the attempts of the last webhook, on the virtual clock; together a minute."""

ANSWER_SECONDS = 10.0
"""How long one attempt waits for its answer, in real time."""

_STALE_SECONDS = 600
_OTHER_SECRET = "whsec_" + base64.b64encode(b"nobody's secret at all!!").decode()


@dataclass(eq=False)
class _Letter:
    """One webhook: `event`, and how the prediction looked at the instant `at`."""

    event: str
    prediction: Run
    at: float
    id: str = field(default_factory=lambda: f"msg_{secrets.token_urlsafe(18)}")
    body: bytes = b""

    @property
    def operation(self) -> str:
        return f"{self.event}.{WEBHOOK}"


@dataclass(eq=False)
class _Line:
    """What was told of a prediction so far, and what is to be sent, in order."""

    prediction: Run
    events: frozenset[str]
    next_look: float = math.inf
    started: bool = False
    put_out: bool = False
    ended: bool = False
    logs: str = ""
    logs_told_at: float = -math.inf
    letters: deque[_Letter] = field(default_factory=deque)
    held_back: list[_Letter] = field(default_factory=list)
    is_carried: bool = False

    def happened(self, now: float) -> Iterator[_Letter]:
        """What is new until `now`, in order."""
        prediction = self.prediction
        if not self.started and prediction.starts_at < now and prediction.started_at(now) is not None:
            self.started = True
            yield _Letter("start", prediction, self._begun_at)
        if not self.put_out and prediction.has_output(prediction.outputs_at) and prediction.outputs_at <= now:
            self.put_out = True
            yield _Letter("output", prediction, prediction.outputs_at)
        if prediction.has_ended(now):
            self.ended = True
            yield _Letter("completed", prediction, prediction.ends_at)
        elif self.started and now >= self.logs_told_at + LEAST_APART_SECONDS:
            logs = logs_at(prediction, now)
            if logs != self.logs:
                self.logs, self.logs_told_at = logs, now
                yield _Letter("logs", prediction, now)

    def due_after(self, now: float) -> float:
        """When there may be something new."""
        prediction = self.prediction
        instants = [self._begun_at, prediction.outputs_at, prediction.ends_at]
        if "logs" in self.events and self.started:
            instants.append(max(self.logs_told_at, now) + LEAST_APART_SECONDS)
        return min((instant for instant in instants if instant > now), default=now)

    @property
    def _begun_at(self) -> float:
        """The first instant at which it is not `starting` any more."""
        return math.nextafter(self.prediction.starts_at, math.inf)


class Webhooks:
    """Watches the predictions of one world that named an address, and sends their webhooks.

    Everything happens on the event loop on which `look` is called.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._lines: dict[str, _Line] = {}
        self._due: list[tuple[float, str]] = []
        self._earlier = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    def look(self, prediction: Run) -> None:
        """A prediction was created or canceled."""
        if prediction.webhook is None:
            return
        line = self._lines.get(prediction.id)
        if line is None:
            events = frozenset(prediction.webhook_events or BY_DEFAULT)
            line = self._lines[prediction.id] = _Line(prediction, events)
        self._take_up(line)
        if self._watching is None:
            self._watching = self._spawn(self._watch())

    async def aclose(self) -> None:
        """Stop watching and sending. Does no harm when done twice."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watching = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- what happens ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        clock = self._world.clock
        while True:
            while self._due and self._due[0][0] <= clock.time():
                due_at, identity = heappop(self._due)
                line = self._lines.get(identity)
                if line is not None and line.next_look == due_at:
                    self._take_up(line)
            if self._due:
                await clock.pause(self._due[0][0])
            else:
                self._earlier.clear()
                await self._earlier.wait()

    def _take_up(self, line: _Line) -> None:
        """Send what is new of a prediction, and remember when to look again."""
        now = self._world.clock.time()
        if self._is_forgotten(line.prediction):
            self._lines.pop(line.prediction.id, None)
            return
        line.letters += (letter for letter in line.happened(now) if letter.event in line.events)
        if (line.letters or (line.ended and line.held_back)) and not line.is_carried:
            line.is_carried = True
            self._spawn(self._carry(line))
        if line.ended:
            self._lines.pop(line.prediction.id, None)
            return
        line.next_look = line.due_after(now)
        if line.next_look < math.inf:
            is_first = not self._due or line.next_look < self._due[0][0]
            heappush(self._due, (line.next_look, line.prediction.id))
            if is_first:
                self._earlier.set()
                self._world.clock.wake()

    def _is_forgotten(self, prediction: Run) -> bool:
        return not self._world.state.remembers(prediction)

    # --- sending -----------------------------------------------------------------------------------------

    async def _carry(self, line: _Line) -> None:
        """Send the webhooks of a prediction one after another."""
        try:
            while line.letters:
                letter = line.letters.popleft()
                letter.body = msgspec.json.encode(await shown(self._world, letter.prediction, letter.at))
                fault = self._strike(letter)
                if isinstance(fault, WebhookDelay):
                    self._spawn(self._later(letter, fault.seconds))
                elif isinstance(fault, WebhookReorder) and letter.event != "completed":
                    line.held_back.append(letter)
                else:
                    await self._send(letter, fault)
                    await self._send_held_back(line)
            if line.ended:
                await self._send_held_back(line)
        finally:
            line.is_carried = False

    async def _send_held_back(self, line: _Line) -> None:
        while line.held_back:
            await self._send(line.held_back.pop(0), None)

    async def _later(self, letter: _Letter, seconds: float) -> None:
        await self._world.clock.sleep(seconds)
        await self._send(letter, None)

    async def _send(self, letter: _Letter, fault: Fault | None) -> None:
        """Send one until it is taken; only the last one of a prediction is sent again."""
        waits = RETRY_SECONDS if letter.event == "completed" else ()
        for wait in (*waits, None):
            if self._is_forgotten(letter.prediction) or await self._attempt(letter, fault) or wait is None:
                return
            await self._world.clock.sleep(wait)
            fault = self._strike(letter)

    async def _attempt(self, letter: _Letter, fault: Fault | None) -> bool:
        """One attempt; whether there is no reason for another."""
        via = self._world.mode.webhooks_via
        if via is None:
            return True
        if isinstance(fault, WebhookDrop):
            self._note(letter, {}, 0, fault)
            return True
        headers, body = self._signed(letter, fault)
        status = 0
        for _ in range(1 + (fault.copies if isinstance(fault, WebhookDuplicate) else 0)):
            status = await self._post(letter, via, headers, body)
            self._note(letter, headers, status, fault)
        return 200 <= status < 400

    async def _post(self, letter: _Letter, via: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status answered; 0 when none was."""
        named = urlsplit(letter.prediction.webhook or "")
        url = f"{via.rstrip('/')}{named.path or '/'}" + (f"?{named.query}" if named.query else "")
        passed_on = {"Host": named.netloc, "X-Forwarded-Proto": "https", "Content-Type": "application/json"}
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            )
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self._session.post(
                url, data=body, headers={**passed_on, **headers}, allow_redirects=False
            ) as answer:
                return answer.status
        return 0

    def _signed(self, letter: _Letter, fault: Fault | None) -> tuple[dict[str, str], bytes]:
        """The three headers and the body, as they are or as the fault makes them."""
        account = self._world.state.accounts[letter.prediction.account]
        kind = fault.kind if isinstance(fault, WebhookForge) else None
        if kind == "unsigned":
            return {}, letter.body
        if kind == "garbage":
            headers = {"webhook-id": "?", "webhook-timestamp": "now", "webhook-signature": "v1 v1,!!! v2"}
            return headers, letter.body
        now = int(self._world.clock.time()) - (_STALE_SECONDS if kind == "stale" else 0)
        secret = _OTHER_SECRET if kind == "secret" else account.webhooks_secret
        signature = sign(secret, letter.id, now, letter.body)
        headers = {"webhook-id": letter.id, "webhook-timestamp": str(now), "webhook-signature": signature}
        return headers, letter.body.replace(b'"model"', b'"Model"', 1) if kind == "body" else letter.body

    def _strike(self, letter: _Letter) -> Fault | None:
        prediction = letter.prediction
        subject = Subject(
            operation=letter.operation,
            method="POST",
            path=urlsplit(prediction.webhook or "").path,
            model=prediction.model,
            prompt=prediction.prompt,
            account=prediction.account,
        )
        return self._world.faults.strike(Slot.WEBHOOK, subject)

    def _note(self, letter: _Letter, headers: Mapping[str, str], status: int, fault: Fault | None) -> None:
        left_out: Any = {"left_out_bytes": len(letter.body)}
        self._world.journal.add(
            Entry(
                at=timestamp(self._world.clock.time()),
                server=WEBHOOK,
                operation=letter.operation,
                method="POST",
                path=letter.prediction.webhook or "",
                query={},
                headers=dict(headers),
                authorization=None,
                body=msgspec.json.decode(letter.body) if len(letter.body) <= MAX_BODY_BYTES else left_out,
                status=status,
                prediction_id=letter.prediction.id,
                fault=fault.name if fault is not None else None,
            )
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def sign(secret: str, identity: str, at: int, body: bytes) -> str:
    """The header `webhook-signature` (docs, verify-webhook): one signature, of version 1.

    Args:
        secret: `whsec_` and base64.
        identity: the header `webhook-id`.
        at: the header `webhook-timestamp`, in seconds.
        body: as it is sent.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{identity}.{at}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
