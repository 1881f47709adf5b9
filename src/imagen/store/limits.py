"""Places and rates in SQL: who may go now, decided in one transaction for all processes of one database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeGuard

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select
from sqlalchemy.dialects.sqlite import insert

from imagen.decoding import decode
from imagen.domain.budget import Charge, Shortage
from imagen.domain.limits import (
    AccountRules,
    AccountState,
    Admitted,
    Blocked,
    LineReport,
    Missing,
    Need,
    Refusal,
    Unaffordable,
    Verdict,
    account_limit,
    key_limit,
    semaphore_limit,
)
from imagen.domain.outlook import LimitStanding
from imagen.domain.prediction import Allowance, Status
from imagen.limits.gate import Gate
from imagen.store.budgets import Reserving, void
from imagen.store.database import Database
from imagen.store.predictions import write_intents
from imagen.store.statement import Statement
from imagen.store.tables import gates, leases, lines, predictions, semaphores

LINE_LIVES_SECONDS = 3.0
"""A line that was not seen for so long belongs to a process that died."""
_UNUSED_SECONDS = 86_400.0

_HELD = Statement(
    select(func.count()).where(
        leases.c.resource == bindparam("resource"), leases.c.expires_at > bindparam("now")
    )
)
_HELD_BY = Statement(
    select(leases.c.resource).where(
        leases.c.lease == bindparam("this_lease"), leases.c.expires_at > bindparam("now")
    )
)
_SWEEP = Statement(
    delete(leases).where(
        leases.c.resource == bindparam("this_resource"), leases.c.expires_at <= bindparam("now")
    )
)
_PLACE = insert(leases)
_HOLD = Statement(
    _PLACE.on_conflict_do_update(set_={name: _PLACE.excluded[name] for name in ("expires_at", "holder")}),
    columns=[column.name for column in leases.columns],
)
_FREE = Statement(delete(leases).where(leases.c.lease == bindparam("this_lease")))
_FORGET = Statement(
    delete(predictions).where(
        predictions.c.id == bindparam("this_lease"),
        predictions.c.status == Status.QUEUED,
        predictions.c.upstream_id.is_(None),
    )
)
_LIMIT = Statement(select(semaphores.c.limit).where(semaphores.c.name == bindparam("this_name")))
_AHEAD = Statement(
    select(func.count()).where(
        lines.c.resource == bindparam("this_resource"),
        lines.c.line != bindparam("this_line"),
        lines.c.seen_at > bindparam("alive"),
        or_(
            lines.c.lane < bindparam("this_lane"),
            and_(lines.c.lane == bindparam("this_lane"), lines.c.since < bindparam("this_since")),
        ),
    )
)
_WAITING_ELSEWHERE = Statement(
    select(func.coalesce(func.sum(lines.c.count), 0)).where(
        lines.c.resource == bindparam("this_resource"),
        lines.c.line != bindparam("this_line"),
        lines.c.seen_at > bindparam("alive"),
        lines.c.lane <= bindparam("this_lane"),
    )
)
_OTHERS = Statement(select(func.count()).where(lines.c.line != bindparam("this_line")))
_ROW = insert(lines)
_STAND = Statement(
    _ROW.on_conflict_do_update(
        set_={name: _ROW.excluded[name] for name in ("lane", "since", "count", "seen_at")}
    ),
    columns=[column.name for column in lines.columns],
)
_GO = Statement(
    delete(lines).where(
        lines.c.resource == bindparam("this_resource"), lines.c.line == bindparam("this_line")
    )
)
_LEAVE = Statement(delete(lines).where(lines.c.line == bindparam("this_line")))
_LEFT = Statement(delete(lines).where(lines.c.seen_at < bindparam("alive")))
_GATE = Statement(select(gates.c.state).where(gates.c.name == bindparam("this_name")))
_STATE = insert(gates)
_KEEP_GATE = Statement(
    _STATE.on_conflict_do_update(set_={"state": _STATE.excluded.state, "used_at": _STATE.excluded.used_at}),
    columns=["name", "state", "used_at"],
)
_ENDED = Statement(delete(leases).where(leases.c.expires_at <= bindparam("now")))
_UNUSED = Statement(delete(gates).where(gates.c.used_at < bindparam("unused_since")))


class SqlLimits:
    """`ports.Limits` on one database.

    Args:
        database: shared by all who share the limits.
        rules: what every account may do.
    """

    def __init__(self, database: Database, rules: AccountRules) -> None:
        self._database = database
        self._rules = rules
        self._standing: dict[str, set[str]] = {}

    async def take(
        self, needs: Sequence[Need], *, now: float, line: str, waiting: Mapping[str, LineReport]
    ) -> Sequence[Verdict]:
        """See the port."""
        return await self._database.write(
            lambda connection: _Taking(
                connection, self._rules, now, line, self._standing.setdefault(line, set())
            ).take(needs, waiting)
        )

    async def give_back(self, lease: str, *, unsent: bool = False) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            _FREE.run(connection, {"this_lease": lease})
            if unsent and _FORGET.run(connection, {"this_lease": lease}).rowcount:
                void(connection, lease, datetime.now(UTC))

        await self._database.write(job)

    async def leave(self, line: str) -> None:
        """See the port."""
        if self._standing.pop(line, None):
            await self._database.write(lambda connection: _LEAVE.run(connection, {"this_line": line}))

    async def refused(self, account: str, refusal: Refusal, *, now: float) -> None:
        """See the port."""

        def change(gate: Gate) -> bool:
            gate.refused(
                now, retry_after=refusal.retry_after, detail=refusal.detail, sequence=refusal.sequence
            )
            return True

        await self._change(account, creates=refusal.creates, change=change, now=now)

    async def note_allowance(
        self, account: str, allowance: Allowance, *, sequence: int, age: float, now: float
    ) -> None:
        """See the port."""

        def change(gate: Gate) -> bool:
            return gate.note_allowance(now, remaining=allowance.remaining, sequence=sequence, age=age)

        await self._change(account, creates=True, change=change, now=now)

    async def take_calls(self, account: str, count: int, *, now: float) -> float:
        """See the port."""

        def job(connection: Connection) -> float:
            rates = _Rates(connection, self._rules, now)
            gate = rates.calls(account)
            wait = gate.ready_at(now, count) - now
            if wait <= 0:
                gate.sent(now, count)
                rates.keep()
            return max(wait, 0.0)

        return await self._database.write(job)

    async def show(self, account: str, *, now: float) -> AccountState:
        """See the port."""

        def job(connection: Connection) -> AccountState:
            rates = _Rates(connection, self._rules, now)
            return AccountState(
                concurrent=self._rules.concurrent,
                running=_held(connection, account_limit(account), now),
                creates=rates.creates(account).summary(now),
                calls=rates.calls(account).summary(now),
                spare_creates=rates.creates(account).spare(now),
                spare_calls=rates.calls(account).spare(now),
            )

        return await self._database.read(job)

    async def standing(
        self, need: Need, *, count: int, now: float, line: str, waiting: Mapping[str, int]
    ) -> Sequence[LimitStanding]:
        """See the port."""
        return await self._database.read(
            lambda connection: _Taking(connection, self._rules, now, line, set()).standings(
                need, count, waiting
            )
        )

    async def sweep(self, *, now: float) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            _ENDED.run(connection, {"now": now})
            _LEFT.run(connection, {"alive": now - 10 * LINE_LIVES_SECONDS})
            _UNUSED.run(connection, {"unused_since": now - _UNUSED_SECONDS})

        await self._database.write(job)

    async def _change(
        self, account: str, *, creates: bool, change: Callable[[Gate], bool], now: float
    ) -> None:
        def job(connection: Connection) -> None:
            rates = _Rates(connection, self._rules, now)
            if change(rates.creates(account) if creates else rates.calls(account)):
                rates.keep()

        await self._database.write(job)


class _Rates:
    """The gates that one transaction looks at, and writes down again."""

    def __init__(self, connection: Connection, rules: AccountRules, now: float) -> None:
        self._connection = connection
        self._rules = rules
        self._now = now
        self._gates: dict[str, Gate] = {}

    def creates(self, account: str) -> Gate:
        return self._gate(f"creates:{account}", self._rules.creates_per_minute)

    def calls(self, account: str) -> Gate:
        return self._gate(f"calls:{account}", self._rules.calls_per_minute)

    def key(self, key: str, per_minute: int) -> Gate:
        return self._gate(key_limit(key), per_minute)

    def keep(self) -> None:
        """Write down every gate that was looked at."""
        for name, gate in self._gates.items():
            state = msgspec.json.encode(gate).decode()
            _KEEP_GATE.run(self._connection, {"name": name, "state": state, "used_at": self._now})

    def _gate(self, name: str, per_minute: float) -> Gate:
        if name not in self._gates:
            row = _GATE.run(self._connection, {"this_name": name}).fetchone()
            try:
                gate = Gate.opened(per_minute) if row is None else decode(row[0], Gate)
            except msgspec.MsgspecError:
                gate = Gate.opened(per_minute)  # of another release: it learns anew
            gate.configure(per_minute)
            self._gates[name] = gate
        return self._gates[name]


class _Taking:
    """One transaction of `take`: what it has counted, and who cannot go."""

    def __init__(
        self, connection: Connection, rules: AccountRules, now: float, line: str, standing: set[str]
    ) -> None:
        self._connection = connection
        self._rules = rules
        self._now = now
        self._line = line
        self._standing = standing
        self._rates = _Rates(connection, rules, now)
        self._free: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._blocked: dict[str, Blocked] = {}
        self._missing: set[str] = set()
        self._held: list[dict[str, Any]] = []
        self._changed = False
        self._money = Reserving(connection, datetime.fromtimestamp(now, UTC))
        others = _OTHERS.run(connection, {"this_line": line}).fetchone()[0]
        self._alone = others == 0

    def take(self, needs: Sequence[Need], waiting: Mapping[str, LineReport]) -> list[Verdict]:
        """The verdict on each need."""
        verdicts = [self._judge(need) for need in needs]
        if self._held:
            _HOLD.run_many(self._connection, self._held)
        intents = [one.intent for one in verdicts if isinstance(one, Admitted) and one.intent is not None]
        if intents:
            write_intents(self._connection, intents)
        if self._changed:
            self._rates.keep()
        self._stand_in_line(needs, verdicts, waiting)
        return verdicts

    def standings(self, need: Need, count: int, waiting: Mapping[str, int]) -> list[LimitStanding]:
        """How each limit stands that a need asks for. Writes nothing."""
        found = []
        for limit in need.limits():
            places = self._most(limit, need)
            found.append(
                LimitStanding(
                    limit=limit,
                    places=places,
                    missing=places is None,
                    held=_held(self._connection, limit, self._now),
                    ahead=self._waiting_elsewhere(limit, need) + waiting.get(limit, 0),
                )
            )
        for name, gate in self._gates(need):
            ahead = self._waiting_elsewhere(name, need) + waiting.get(name, 0)
            first, last = (gate.ready_at(self._now, ahead + each) - self._now for each in (1, count))
            found.append(LimitStanding(limit=name, ahead=ahead, first_in=first, last_in=last))
        return found

    def _waiting_elsewhere(self, limit: str, need: Need) -> int:
        """How many of all other lines wait for a limit and go before."""
        values = {
            "this_resource": limit,
            "this_line": self._line,
            "alive": self._now - LINE_LIVES_SECONDS,
            "this_lane": int(need.lane),
        }
        return int(_WAITING_ELSEWHERE.run(self._connection, values).fetchone()[0])

    def _judge(self, need: Need) -> Verdict:
        limits = list(need.limits())
        own = self._own(need)
        if need.running:
            self._hold(need, limits, own)
            return Admitted()
        passed = () if need.charge is None else self._judge_money(need, need.charge)
        if not isinstance(passed, tuple):
            return passed
        for limit in limits:
            blocked = None if limit in own else self._blocked.get(limit) or self._full(limit, need)
            if limit in self._missing:
                return Missing(need.semaphore or "")
            if blocked is not None:
                self._blocked[limit] = blocked
                return blocked
        if (closed := self._closed(need)) is not None:
            return closed
        sequence = self._send(need)
        self._hold(need, limits, own)
        if need.charge is not None:
            self._money.reserve(need.charge, need.lease)
        intent = need.intent
        if intent is not None:
            intent = replace(intent, sent_at=datetime.fromtimestamp(self._now, UTC))
        return Admitted(sequence, intent, passed)

    def _judge_money(self, need: Need, charge: Charge) -> tuple[Shortage, ...] | Blocked | Unaffordable:
        if need.intent is None:
            return self._money.judge_left(charge, need.lease)
        return self._money.judge(charge)

    def _closed(self, need: Need) -> Blocked | None:
        """The rate that lets nobody through now."""
        for name, gate in self._gates(need):
            at = gate.ready_at(self._now, 1 + self._before.get(name, 0))
            if at > self._now:
                return self._blocked.setdefault(name, Blocked(name, at))
        return None

    def _send(self, need: Need) -> int:
        """Take a turn in each rate; the number of the account's create."""
        sequence = 0
        for name, gate in self._gates(need):
            number = gate.sent(self._now)
            self._changed = True
            if need.account is not None and name == account_limit(need.account):
                sequence = number
        return sequence

    def _hold(self, need: Need, limits: Sequence[str], own: frozenset[str]) -> None:
        if own:
            # It holds what it asks for now, and no more.
            _FREE.run(self._connection, {"this_lease": need.lease})
        for limit in limits:
            if limit in self._free and limit not in own:
                self._free[limit] -= 1
            self._held.append(
                {
                    "resource": limit,
                    "lease": need.lease,
                    "holder": need.holder,
                    "since": self._now,
                    "expires_at": self._now + need.lasts_seconds,
                }
            )

    def _gates(self, need: Need) -> list[tuple[str, Gate]]:
        found = []
        if need.caller.key is not None and need.caller.per_minute is not None and need.account is not None:
            name = key_limit(need.caller.key)
            found.append((name, self._rates.key(need.caller.key, need.caller.per_minute)))
        if need.account is not None:
            found.append((account_limit(need.account), self._rates.creates(need.account)))
        return found

    def _full(self, limit: str, need: Need) -> Blocked | None:
        """Whether no place is left in `limit` for us, those before us in other lines counted in."""
        if limit not in self._free:
            most = self._most(limit, need)
            if most is None:
                self._missing.add(limit)
                return None
            _SWEEP.run(self._connection, {"this_resource": limit, "now": self._now})
            taken = _held(self._connection, limit, self._now)
            self._before[limit] = self._ahead(limit, need)
            self._free[limit] = most - taken - self._before[limit]
        return Blocked(limit) if self._free[limit] <= 0 else None

    def _own(self, need: Need) -> frozenset[str]:
        """The limits in which a prediction that was left behind holds a place still."""
        if need.intent is not None or need.account is None:
            return frozenset()
        rows = _HELD_BY.run(self._connection, {"this_lease": need.lease, "now": self._now}).fetchall()
        return frozenset(row[0] for row in rows)

    def _most(self, limit: str, need: Need) -> int | None:
        if need.account is not None and limit == account_limit(need.account):
            return self._rules.concurrent
        if need.semaphore is not None and limit == semaphore_limit(need.semaphore):
            row = _LIMIT.run(self._connection, {"this_name": need.semaphore}).fetchone()
            return None if row is None else int(row[0])
        return need.caller.concurrent

    def _ahead(self, limit: str, need: Need) -> int:
        if self._alone:
            return 0
        values = {
            "this_resource": limit,
            "this_line": self._line,
            "alive": self._now - LINE_LIVES_SECONDS,
            "this_lane": int(need.lane),
            "this_since": need.since or self._now,
        }
        return int(_AHEAD.run(self._connection, values).fetchone()[0])

    def _stand_in_line(
        self, needs: Sequence[Need], verdicts: Sequence[Verdict], waiting: Mapping[str, LineReport]
    ) -> None:
        """Tell the other lines where we wait, and where no longer."""
        heads = {limit: (report.lane, report.since, report.count) for limit, report in waiting.items()}
        for need, verdict in zip(needs, verdicts, strict=True):
            if _is_in_line(verdict):
                lane, since, count = heads.get(verdict.limit, (need.lane, need.since or self._now, 0))
                lane, since = min((lane, since), (need.lane, need.since or self._now))
                heads[verdict.limit] = (lane, since, count + 1)
        blocked = {one.limit for one in verdicts if _is_in_line(one)}
        standing = (blocked | self._standing) & heads.keys()
        for limit in standing:
            lane, since, count = heads[limit]
            values = {"lane": int(lane), "since": since, "count": count}
            _STAND.run(
                self._connection, values | {"resource": limit, "line": self._line, "seen_at": self._now}
            )
        for limit in self._standing - standing:
            _GO.run(self._connection, {"this_resource": limit, "this_line": self._line})
        self._standing.clear()
        self._standing.update(standing)
        if not self._alone:
            _LEFT.run(self._connection, {"alive": self._now - 10 * LINE_LIVES_SECONDS})


def _is_in_line(verdict: Verdict) -> TypeGuard[Blocked]:
    """Whether somebody waits for a place or a turn. Money has no line: whoever fits goes."""
    return isinstance(verdict, Blocked) and verdict.shortage is None


def _held(connection: Connection, limit: str, now: float) -> int:
    return int(_HELD.run(connection, {"resource": limit, "now": now}).fetchone()[0])
