"""Events on their way to callers: signed, in order, sent again until they are taken, whoever else is slow or dies."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from fakes.clock import ManualClock
from fakes.servers import Exchange, RawServer, raw_server
from imagen.domain.delivery import Delivery
from imagen.domain.events import Delivered, Event
from imagen.domain.secret import Secret
from imagen.errors import ConfigError, StoreBusy
from imagen.instrumentation.clock import SystemClock
from imagen.ports import Clock, Sealer
from imagen.sealing import KeySealer
from imagen.service.deliveries import MOST_IN_FLIGHT, MOST_OF_ONE_HOST, Courier, SigningSecrets
from imagen.store.database import Database
from imagen.store.outbox import SqlOutbox
from imagen.store.turn import FileTurn
from imagen.transport.client import PublicPoster

pytestmark = pytest.mark.anyio


class SteppedClock(ManualClock):
    """Time passes when the test says so; whoever sleeps waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while self.monotonic() < until:
            await self._moved.wait()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


class Record:
    """An observer that remembers how attempts ended."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def notify(self, event: Event) -> None:
        if isinstance(event, Delivered):
            self.outcomes.append(event.outcome)


class ReluctantOutbox(SqlOutbox):
    """One that does not take the ends of attempts for a while."""

    refusals = 0
    refusal: Exception = StoreBusy("the database is held by another process")

    async def done(self, delivery: Delivery, *, now: datetime) -> Delivery | None:
        if self.refusals:
            self.refusals -= 1
            raise self.refusal
        return await super().done(delivery, now=now)


@dataclass
class Process:
    """All that one process has that delivers: a database of its own on the common file, and a courier."""

    outbox: ReluctantOutbox
    signing: SigningSecrets
    courier: Courier
    record: Record
    clock: Clock
    running: asyncio.Task[None] | None = None

    async def put(self, *deliveries: Delivery) -> None:
        await self.outbox.put(deliveries)
        self.courier.wake()

    async def states(self) -> dict[str, Delivery]:
        return {one.id: one for one in await self.outbox.list(limit=10_000)}

    async def stop(self) -> None:
        """As a process ends: what is under way is not waited for."""
        if self.running is not None:
            self.running.cancel()
            with suppress(asyncio.CancelledError):
                await self.running


@asynccontextmanager
async def delivering(
    tmp_path: Path, clock: Clock | None = None, *, sealer: Sealer | None = None, runs: bool = True
) -> AsyncIterator[Process]:
    database = Database(tmp_path / "imagen.db")
    clock, record = clock or SystemClock(), Record()
    outbox = ReluctantOutbox(database)
    signing = SigningSecrets(outbox=outbox, sealer=sealer, clock=clock)
    poster = PublicPoster(private=True, look_up=everything_is_here)
    turn = FileTurn(tmp_path / "deliveries.lock")
    courier = Courier(
        outbox=outbox,
        signing=signing,
        poster=poster,
        turn=turn,
        clock=clock,
        observer=record,
        chance=lambda: 0.0,
    )
    process = Process(outbox, signing, courier, record, clock)
    if runs:
        process.running = asyncio.create_task(courier.deliver())
    try:
        yield process
    finally:
        await process.stop()
        await poster.aclose()
        turn.close()
        database.close()


def everything_is_here(host: str, port: int) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


def make_delivery(url: str, number: int = 1, **facts: Any) -> Delivery:
    now = facts.pop("now", None) or datetime.now(UTC)
    body = {"type": "prediction.completed", "timestamp": now.isoformat(), "data": {"number": number}}
    given = {
        "id": f"msg_{number}",
        "subject": f"pred_{number}",
        "url": url,
        "scope": "admin",
        "event": "prediction.completed",
        "body": body,
        "created_at": now,
        "due_at": now,
    }
    return Delivery(**given | facts)


async def until(
    condition: Callable[[], bool], *, clock: SteppedClock | None = None, step: float = 0.1
) -> None:
    """Until it holds; with a clock that is stepped, so many seconds of its time go by for each look."""
    async with asyncio.timeout(20):
        while not condition():
            if clock is not None:
                clock.advance(step)
            await asyncio.sleep(0.002)


async def say_ok(exchange: Exchange) -> None:
    await exchange.answer()


async def hang(exchange: Exchange) -> None:
    await asyncio.Event().wait()


def ids(server: RawServer) -> list[str]:
    return [each.headers["webhook-id"] for each in server.exchanges]


def verified(exchange: Exchange, secret: Secret) -> Any:
    return Webhook(secret.reveal()).verify(exchange.body, exchange.headers)


def is_signed_by(exchange: Exchange, secret: Secret) -> bool:
    """Whatever the time is there."""
    at = datetime.fromtimestamp(int(exchange.headers["webhook-timestamp"]), UTC)
    signature = Webhook(secret.reveal()).sign(exchange.headers["webhook-id"], at, exchange.body.decode())
    return signature in exchange.headers["webhook-signature"].split(" ")


async def newest(process: Process, scope: str = "admin") -> Secret:
    return (await process.signing.of(scope))[0].secret


# --- what arrives ---


async def test_an_event_arrives_as_the_specification_says(tmp_path: Path):
    async with delivering(tmp_path) as process, raw_server(say_ok) as server:
        one = make_delivery(f"{server.url}/hook?for=me")
        await process.put(one)
        await until(lambda: bool(process.record.outcomes))
        (came,) = server.exchanges
        assert came.path == "/hook?for=me"
        assert came.headers["content-type"] == "application/json"
        assert came.headers["webhook-id"] == "msg_1"
        assert abs(int(came.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 5
        assert verified(came, await newest(process)) == one.body
        (state,) = (await process.states()).values()
    assert (state.status, state.attempts, state.answer) == ("taken", 1, "status 200")
    assert process.record.outcomes == ["taken"]


async def test_the_secret_of_another_caller_verifies_nothing(tmp_path: Path):
    async with delivering(tmp_path) as process, raw_server(say_ok) as server:
        await process.put(make_delivery(server.url, scope="key:a"))
        await until(lambda: bool(server.exchanges))
        verified(server.exchanges[0], await newest(process, "key:a"))
        for other in ("key:b", "admin", "key:", ""):
            with pytest.raises(WebhookVerificationError):
                verified(server.exchanges[0], await newest(process, other))


async def test_a_changed_body_is_noticed(tmp_path: Path):
    async with delivering(tmp_path) as process, raw_server(say_ok) as server:
        await process.put(make_delivery(server.url))
        await until(lambda: bool(server.exchanges))
        (came,) = server.exchanges
        came.body = came.body.replace(b"completed", b"cancelled")
        with pytest.raises(WebhookVerificationError):
            verified(came, await newest(process))


# --- order ---


async def test_a_line_keeps_its_order_while_the_receiver_fails(tmp_path: Path):
    clock, failures = SteppedClock(), {"msg_1": 2, "msg_3": 1}

    async def sometimes(exchange: Exchange) -> None:
        message = exchange.headers["webhook-id"]
        failures[message] = failures.get(message, 0) - 1
        await exchange.answer(status=500 if failures[message] >= 0 else 200)

    async with delivering(tmp_path, clock) as process, raw_server(sometimes) as server:
        line = [make_delivery(server.url, number, subject="batch_1", now=clock.now()) for number in range(5)]
        await process.put(*line)
        await until(lambda: process.record.outcomes.count("taken") == 5, clock=clock)
        assert ids(server) == ["msg_0", "msg_1", "msg_1", "msg_1", "msg_2", "msg_3", "msg_3", "msg_4"]


async def test_a_long_line_goes_without_pauses(tmp_path: Path):
    async with delivering(tmp_path) as process, raw_server(say_ok) as server:
        await process.put(*(make_delivery(server.url, number, subject="batch_1") for number in range(300)))
        await until(lambda: len(server.exchanges) == 300)
        assert ids(server) == [f"msg_{number}" for number in range(300)]
        assert server.connections == 1


# --- again and again ---


async def test_after_a_day_of_failures_it_is_given_up_and_a_retry_begins_a_new_one(tmp_path: Path):
    clock = SteppedClock()
    status = 503

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(status=status)

    async with delivering(tmp_path, clock) as process, raw_server(answer) as server:
        began = clock.now()
        await process.put(make_delivery(server.url, now=began))
        async with asyncio.timeout(40):
            while (state := (await process.states())["msg_1"]).status == "waiting":
                if state.attempts == len(server.exchanges) and state.due_at is not None:
                    clock.advance(max(0.1, (state.due_at - clock.now()).total_seconds()))
                await asyncio.sleep(0.002)
        assert state.status == "given_up"
        assert timedelta(days=1) <= clock.now() - began < timedelta(days=1, minutes=30)
        assert 12 <= len(server.exchanges) <= 16
        assert set(ids(server)) == {"msg_1"}
        expected = ["failed"] * (len(server.exchanges) - 1) + ["given_up"]
        await until(lambda: process.record.outcomes == expected)

        status, tried = 204, len(server.exchanges)
        await process.outbox.retry("msg_1", now=clock.now())
        process.courier.wake()
        await until(lambda: process.record.outcomes[-1] == "taken", clock=clock)
        assert len(server.exchanges) == tried + 1
        assert ids(server)[-1] == "msg_1"


async def test_a_receiver_that_wants_no_more_is_left_alone(tmp_path: Path):
    async def gone(exchange: Exchange) -> None:
        await exchange.answer(status=410)

    async with delivering(tmp_path) as process, raw_server(gone) as server:
        await process.put(make_delivery(server.url))
        await until(lambda: process.record.outcomes == ["given_up"])
        assert (await process.states())["msg_1"].answer == "status 410"


async def test_a_receiver_may_ask_for_time(tmp_path: Path):
    async def busy(exchange: Exchange) -> None:
        await exchange.answer(status=429, retry_after="600")

    async with delivering(tmp_path) as process, raw_server(busy) as server:
        await process.put(make_delivery(server.url))
        await until(lambda: process.record.outcomes == ["failed"])
        state = (await process.states())["msg_1"]
        assert state.due_at is not None
        assert 570 < (state.due_at - datetime.now(UTC)).total_seconds() <= 600


async def test_a_redirect_is_a_failure_and_nobody_goes_there(tmp_path: Path):
    async with raw_server(say_ok) as other:

        async def send_away(exchange: Exchange) -> None:
            await exchange.answer(status=307, location=other.url)

        async with delivering(tmp_path) as process, raw_server(send_away) as server:
            await process.put(make_delivery(server.url))
            await until(lambda: process.record.outcomes == ["failed"])
            assert (await process.states())["msg_1"].answer == "status 307"
        assert other.connections == 0


async def test_a_receiver_that_breaks_off_is_tried_again(tmp_path: Path):
    clock = SteppedClock()

    async def rude(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.reset()
        elif exchange.number == 1:
            await exchange.send(b"this is no HTTP\r\n\r\n")
            exchange.writer.close()
        else:
            await exchange.answer()

    async with delivering(tmp_path, clock) as process, raw_server(rude) as server:
        await process.put(make_delivery(server.url, now=clock.now()))
        await until(lambda: process.record.outcomes == ["failed", "failed", "taken"], clock=clock)
        assert ids(server) == ["msg_1"] * 3


# --- beside each other ---


async def test_a_receiver_that_hangs_delays_no_other(tmp_path: Path):
    async with (
        delivering(tmp_path) as process,
        raw_server(hang) as slow,
        raw_server(say_ok) as good,
    ):
        there = f"http://slow.example:{slow.port}/"
        await process.put(*(make_delivery(f"{there}{number}", number) for number in range(400)))
        await until(lambda: len(slow.exchanges) == MOST_OF_ONE_HOST)
        here = f"http://good.example:{good.port}/"
        await process.put(*(make_delivery(here, number) for number in range(1000, 1050)))
        async with asyncio.timeout(8):  # less than a receiver has for its answer
            await until(lambda: len(good.exchanges) == 50)
        assert len(slow.exchanges) == MOST_OF_ONE_HOST


async def test_so_many_are_on_their_way_and_no_more(tmp_path: Path):
    async with delivering(tmp_path) as process, raw_server(hang) as server:
        await process.put(
            *(make_delivery(f"http://h{number % 40}.example:{server.port}/", number) for number in range(200))
        )
        await until(lambda: len(server.exchanges) == MOST_IN_FLIGHT)
        await asyncio.sleep(0.2)  # long enough for another look at the outbox
        hosts = [each.headers["host"].partition(":")[0] for each in server.exchanges]
        assert len(hosts) == MOST_IN_FLIGHT
        assert max(hosts.count(host) for host in hosts) <= MOST_OF_ONE_HOST
        assert len(set(hosts)) == MOST_IN_FLIGHT


# --- processes ---


async def test_what_was_on_its_way_when_the_process_died_is_sent_again_under_its_id(tmp_path: Path):
    async with raw_server(hang) as server:
        async with delivering(tmp_path) as process:
            one = make_delivery(server.url)
            await process.put(one)
            await until(lambda: len(server.exchanges) == 1)
        async with delivering(tmp_path) as process:
            await until(lambda: len(server.exchanges) == 2)
            first, second = server.exchanges
            assert ids(server) == ["msg_1", "msg_1"]
            assert first.body == second.body
            verified(second, await newest(process))


async def test_the_pauses_go_on_after_a_restart(tmp_path: Path):
    clock = SteppedClock()

    async def fail(exchange: Exchange) -> None:
        await exchange.answer(status=500)

    async with raw_server(fail) as server:
        async with delivering(tmp_path, clock) as process:
            await process.put(make_delivery(server.url, now=clock.now()))
            await until(lambda: process.record.outcomes == ["failed", "failed"], clock=clock, step=1)
        async with delivering(tmp_path, clock) as process:
            before = (await process.states())["msg_1"]
            assert before.due_at is not None
            clock.advance((before.due_at - clock.now()).total_seconds() - 1)
            await asyncio.sleep(0.05)
            assert len(server.exchanges) == 2
            await until(lambda: process.record.outcomes == ["failed"], clock=clock)
            after = (await process.states())["msg_1"]
    assert (before.attempts, after.attempts) == (2, 3)
    assert after.tried_since == before.tried_since


async def test_of_two_processes_one_delivers_and_the_other_when_it_ends(tmp_path: Path):
    clock = SteppedClock()
    async with raw_server(say_ok) as server:
        async with delivering(tmp_path, clock) as here, delivering(tmp_path, clock, runs=False) as there:
            await until((tmp_path / "deliveries.lock").exists, clock=clock)
            there.running = asyncio.create_task(there.courier.deliver())
            await there.put(*(make_delivery(server.url, number, now=clock.now()) for number in range(20)))
            await until(lambda: len(here.record.outcomes) == 20, clock=clock)
            assert there.record.outcomes == []
            assert sorted(ids(server)) == sorted(f"msg_{number}" for number in range(20))
            await here.stop()
            here.courier._turn.close()  # type: ignore[attr-defined]
            await there.put(make_delivery(server.url, 99, now=clock.now()))
            await until(lambda: there.record.outcomes == ["taken"], clock=clock)
        assert len(server.exchanges) == 21


async def test_what_was_taken_is_not_sent_again_though_the_database_was_busy(tmp_path: Path):
    clock = SteppedClock()
    async with delivering(tmp_path, clock) as process, raw_server(say_ok) as server:
        process.outbox.refusals = 5
        await process.put(make_delivery(server.url, now=clock.now()))
        await until(lambda: process.courier.trouble is not None, clock=clock)
        assert "another process" in str(process.courier.trouble)
        await until(lambda: process.record.outcomes == ["taken"], clock=clock)
        assert process.courier.trouble is None
        clock.advance(100)
        await asyncio.sleep(0.05)
        assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    ("where", "attempts"), [("before it is sent", 0), ("when it is written down that it was taken", 1)]
)
async def test_an_unexpected_fault_is_told_and_tried_again_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, attempts: int
):
    clock = SteppedClock()
    fault = RuntimeError("a secret fox")
    async with delivering(tmp_path, clock) as process, raw_server(say_ok) as server:
        asked, of = 0, process.signing.of

        async def broken(scope: str) -> Any:
            nonlocal asked
            asked += 1
            if not attempts and asked == 1:
                raise fault
            return await of(scope)

        monkeypatch.setattr(process.signing, "of", broken)
        process.outbox.refusals, process.outbox.refusal = attempts, fault
        await process.put(make_delivery(server.url, now=clock.now()))
        await until(lambda: process.courier.trouble is not None)
        assert process.courier.trouble == "unexpected fault (RuntimeError)"
        for _ in range(20):
            process.courier.wake()
            await asyncio.sleep(0.005)
        assert (asked, len(server.exchanges)) == (1, attempts)
        await until(lambda: process.record.outcomes == ["taken"], clock=clock)
        assert process.courier.trouble is None
        assert len(server.exchanges) == 1


async def test_one_whose_words_cannot_be_read_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def words(delivery: Delivery) -> Any:
        if delivery.id == "msg_1":
            raise ValueError("a secret fox")
        return delivery.body

    async with delivering(tmp_path) as process, raw_server(say_ok) as server:
        monkeypatch.setattr(process.courier, "_body_of", words)
        await process.put(make_delivery(server.url, 1), make_delivery(server.url, 2))
        await until(lambda: sorted(process.record.outcomes) == ["failed", "taken"])
        states = await process.states()
        assert states["msg_1"].answer == "what it says cannot be read (ValueError)"
        assert states["msg_1"].status == "waiting"
        assert states["msg_2"].status == "taken"
        assert process.courier.trouble is None


# --- secrets ---


async def test_after_the_key_was_lost_a_rotation_gets_events_going_again(tmp_path: Path):
    lost, other = (KeySealer(Secret(f"the {which} key of many characters")) for which in ("lost", "other"))
    async with delivering(tmp_path, sealer=lost, runs=False) as process:
        await newest(process)
    clock = SteppedClock()
    async with delivering(tmp_path, clock, sealer=other) as process, raw_server(say_ok) as server:
        await until(lambda: process.courier.trouble is not None)  # before there is anything to send
        assert "imagen deliveries secret rotate" in str(process.courier.trouble)
        await process.put(make_delivery(server.url, now=clock.now()))
        await process.signing.rotate(overlap_seconds=3600)
        (only,) = await process.signing.of("admin")
        assert only.retires_at is None
        await until(lambda: process.record.outcomes == ["taken"], clock=clock)
        assert is_signed_by(server.exchanges[0], only.secret)
        assert "IMAGEN_SECRET_KEY" in str(process.courier.trouble)  # those of before verify nothing now
        await process.signing.rotate(overlap_seconds=0)
        await until(lambda: process.courier.trouble is None, clock=clock)


@pytest.mark.parametrize("damaged", ["plain:abc", "plain:", "plain:YWJj", "sealed:v1:abc", "?"])
async def test_a_damaged_secret_signs_nothing_and_a_rotation_mends_that(tmp_path: Path, damaged: str):
    async with delivering(tmp_path, runs=False) as process:
        await newest(process)
    connection = sqlite3.connect(tmp_path / "imagen.db")
    with connection:
        connection.execute("update signing_secrets set secret = ?", [damaged])
    connection.close()
    clock = SteppedClock()
    async with delivering(tmp_path, clock) as process, raw_server(say_ok) as server:
        await process.put(make_delivery(server.url, now=clock.now()))
        await until(lambda: process.courier.trouble is not None)
        assert "rotate --overlap 0" in str(process.courier.trouble)
        with pytest.raises(ConfigError):
            await process.signing.of("admin")
        await process.signing.rotate(overlap_seconds=0)
        await until(lambda: process.record.outcomes == ["taken"], clock=clock)
        assert is_signed_by(server.exchanges[0], await newest(process))
        assert process.courier.trouble is None


async def test_while_a_new_secret_takes_over_both_verify_and_then_the_new_one_alone(tmp_path: Path):
    async with delivering(tmp_path) as process, raw_server(say_ok) as server:
        old = await newest(process)
        await process.signing.rotate(overlap_seconds=3600)
        new = await newest(process)
        await process.put(make_delivery(server.url, 1))
        await until(lambda: len(server.exchanges) == 1)
        assert verified(server.exchanges[0], old) == verified(server.exchanges[0], new)
        assert len(server.exchanges[0].headers["webhook-signature"].split(" ")) == 2

        await process.signing.rotate(overlap_seconds=0)
        await process.put(make_delivery(server.url, 2))
        await until(lambda: len(server.exchanges) == 2)
        verified(server.exchanges[1], await newest(process))
        for gone in (old, new):
            with pytest.raises(WebhookVerificationError):
                verified(server.exchanges[1], gone)


async def test_a_secret_stays_the_same_over_restarts_and_in_all_processes(tmp_path: Path):
    async with delivering(tmp_path, runs=False) as here, delivering(tmp_path, runs=False) as there:
        told = await asyncio.gather(*(newest(process, "key:a") for process in (here, there) * 5))
    async with delivering(tmp_path, runs=False) as process:
        assert {one.reveal() for one in told} == {(await newest(process, "key:a")).reveal()}


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_with_a_key_the_secret_lies_encrypted_and_waits_for_that_key(tmp_path: Path):
    sealer = KeySealer(Secret("a key of many characters"))
    async with delivering(tmp_path, sealer=sealer, runs=False) as process:
        told = await newest(process)
        (kept,) = await process.outbox.secrets(now=process.clock.now())
        (master,) = process.signing._opened.values()
        assert kept.secret.startswith("sealed:")
        assert files_with(tmp_path, "sealed:") != []
        assert files_with(tmp_path, base64.b64encode(master).decode()) == []
    clock = SteppedClock()
    async with raw_server(say_ok) as server:
        async with delivering(tmp_path, clock) as process:
            await process.put(make_delivery(server.url, now=clock.now()))
            await until(lambda: process.courier.trouble is not None, clock=clock)
            assert "secret_key" in str(process.courier.trouble)
            with pytest.raises(ConfigError, match="secret_key"):
                await process.signing.of("admin")
            assert (server.exchanges, (await process.states())["msg_1"].attempts) == ([], 0)
        async with delivering(tmp_path, sealer=sealer) as process:
            await until(lambda: process.record.outcomes == ["taken"])
            verified(server.exchanges[0], told)


async def test_a_secret_of_before_there_was_a_key_is_still_good(tmp_path: Path):
    async with delivering(tmp_path, runs=False) as process:
        told = await newest(process)
    sealer = KeySealer(Secret("a key of many characters"))
    async with delivering(tmp_path, sealer=sealer, runs=False) as process:
        assert await newest(process) == told
        await process.signing.rotate()
        kept = await process.outbox.secrets(now=process.clock.now())
        assert [one.secret.partition(":")[0] for one in kept] == ["sealed", "plain"]


# --- what is told of it ---


async def test_the_log_tells_host_and_id_and_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def refuse(exchange: Exchange) -> None:
        status = 410 if "gone" in exchange.path else 500
        await exchange.answer(b"the receiver's own words", status=status)

    with caplog.at_level(logging.DEBUG, logger="imagen"):
        async with delivering(tmp_path) as process, raw_server(refuse) as server:
            base = f"http://hooks.example:{server.port}"
            await process.put(
                make_delivery(f"{base}/gone/T0KEN?key=v4lue", 1), make_delivery(f"{base}/T0KEN?key=v4lue", 2)
            )
            await until(lambda: sorted(process.record.outcomes) == ["failed", "given_up"])
            secret = await newest(process)
            (signature,) = {each.headers["webhook-signature"] for each in server.exchanges[:1]}
    told = caplog.text
    assert "msg_1" in told
    assert "hooks.example" in told
    for hidden in ("T0KEN", "v4lue", "own words", secret.reveal(), signature, json.dumps("number")):
        assert hidden not in told


async def test_what_is_done_is_forgotten_after_a_week(tmp_path: Path):
    clock = SteppedClock()
    async with delivering(tmp_path, clock) as process, raw_server(say_ok) as server:
        await process.put(make_delivery(server.url, now=clock.now()))
        await until(lambda: process.record.outcomes == ["taken"], clock=clock)
        clock.advance(6 * 86_400)
        await asyncio.sleep(0.05)
        assert list(await process.states()) == ["msg_1"]
        clock.advance(86_400 + 7200)
        found: Sequence[str] = ["msg_1"]
        async with asyncio.timeout(10):
            while found:
                clock.advance(1)
                await asyncio.sleep(0.01)
                found = list(await process.states())
