"""Budgets in SQL: reserved, settled and voided in the transactions that write down the intents and the ends.

For every budget, subject and period there is one balance. `reserved` in it is the sum of the open reservations that stand
in it, and `settled` what the ledger says of it; nothing but the functions here changes either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    func,
    literal,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from imagen.decoding import decoder
from imagen.domain.budget import EACH, MOST_BUDGETS, Balance, Budget, Charge, Shortage, model_of
from imagen.domain.caller import OWN_TOKEN, is_stranger
from imagen.domain.limits import Blocked, Unaffordable, budget_limit
from imagen.domain.money import Usd
from imagen.domain.prediction import EMULATOR, TERMINAL, Status
from imagen.domain.usage import UsageEntry
from imagen.errors import ImagenError, InvalidInput, NotFound, Problem
from imagen.store.database import Database
from imagen.store.statement import Statement
from imagen.store.tables import RESERVED, UNFINISHED, balances, budgets, predictions, reservations, usage

_FIELDS = Budget.__struct_fields__
_COLUMNS = [budgets.c[name] for name in _FIELDS]
_WHAT_IT_COUNTS = ("per", "scope", "subject", "counts")
_MARGIN = timedelta(days=1)
"""An entry is written later than its reservation; so much earlier entries are looked at as well, whatever the clocks say."""

Standing = tuple[str, str, str]
"""Where something is counted: budget, subject, period."""
_STANDINGS = decoder(list[Standing])

_ANY = Statement(select(literal(1)).select_from(budgets).limit(1))
_COUNTING = Statement(
    select(*_COLUMNS)
    .where(
        or_(
            budgets.c.scope == "all",
            *(
                (budgets.c.scope == scope)
                & or_(budgets.c.subject == EACH, budgets.c.subject == bindparam(f"this_{scope}"))
                for scope in ("key", "caller", "model")
            ),
        )
    )
    .order_by(budgets.c.name)
)
_COUNTS = Statement(select(budgets.c.counts).where(budgets.c.name == bindparam("this_budget")))
_HERE = (
    balances.c.budget == bindparam("this_budget"),
    balances.c.subject == bindparam("this_subject"),
    balances.c.period == bindparam("this_period"),
)
_BALANCE = Statement(select(balances.c.settled, balances.c.reserved).where(*_HERE))
_NEW = insert(balances)
_ADD = Statement(
    _NEW.on_conflict_do_update(
        set_={name: balances.c[name] + _NEW.excluded[name] for name in ("settled", "reserved")}
    ),
    columns=[column.name for column in balances.columns],
)
_END = Statement(
    update(balances)
    .where(*_HERE)
    .values(
        settled=balances.c.settled + bindparam("spent"), reserved=balances.c.reserved - bindparam("freed")
    )
)
_ROW = insert(reservations)
_WRITE = Statement(
    _ROW.on_conflict_do_update(
        set_={c.name: _ROW.excluded[c.name] for c in reservations.columns if c.name != "prediction_id"}
    ),
    columns=[column.name for column in reservations.columns],
)
_FIND = Statement(
    select(reservations.c.state, reservations.c.amount, reservations.c.counted).where(
        reservations.c.prediction_id == bindparam("this_id")
    )
)
_CLOSE = Statement(
    update(reservations)
    .where(reservations.c.prediction_id == bindparam("this_id"), RESERVED)
    .values(state=bindparam("this_state"), settled=bindparam("this_settled"), ended_at=bindparam("this_end"))
    .returning(reservations.c.amount, reservations.c.counted)
)
_LOST = Statement(
    select(reservations.c.amount, reservations.c.counted)
    .join(predictions, predictions.c.id == reservations.c.prediction_id)
    .where(RESERVED, predictions.c.status == Status.UNKNOWN)
)

_ENDED_OPEN = (
    select(
        reservations.c.prediction_id,
        reservations.c.amount,
        usage.c.id.label("entry"),
        usage.c.cost,
        usage.c.outcome,
    )
    .outerjoin(usage, usage.c.id == reservations.c.prediction_id)
    .outerjoin(predictions, predictions.c.id == reservations.c.prediction_id)
    .where(
        RESERVED,
        or_(
            usage.c.id.is_not(None),
            predictions.c.id.is_(None),
            predictions.c.status.in_(sorted(TERMINAL)) & predictions.c.charged.is_(False),
        ),
    )
)
"""Reservations whose purchases have ended without closing them, or that nobody knows any more."""


class SqlBudgets:
    """`ports.Budgets` on one database.

    Args:
        database: that of the ledger and the limits.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set(self, budget: Budget, *, now: datetime) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            before = _named(connection, budget.name)
            if before is None and _count(connection) >= MOST_BUDGETS:
                raise InvalidInput(
                    [Problem("name", f"there are {MOST_BUDGETS} budgets, which is as many as there may be")],
                    subject="the budget",
                    hint="Remove one first, or use one with the subject *, which counts for each by itself.",
                )
            row = insert(budgets).values({name: getattr(budget, name) for name in _FIELDS})
            kept = {name: row.excluded[name] for name in _FIELDS if name not in {"name", "created_at"}}
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=kept))
            if before is None or any(
                getattr(before, name) != getattr(budget, name) for name in _WHAT_IT_COUNTS
            ):
                _recount(connection, budget, now)

        await self._database.write(job)

    async def remove(self, name: str) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            if not connection.execute(delete(budgets).where(budgets.c.name == name)).rowcount:
                raise NotFound(
                    f"no budget is called {name[:80]!r}", hint="`imagen budget list` shows those that are."
                )
            _forget(connection, name)

        await self._database.write(job)

    async def list(self, *, now: datetime) -> Sequence[Balance]:
        """See the port."""

        def job(connection: Connection) -> list[Balance]:
            found = connection.execute(select(*_COLUMNS).order_by(budgets.c.name)).all()
            return [
                balance
                for row in found
                for balance in _balances(connection, Budget(**row._mapping), now)  # noqa: SLF001
            ]

        return await self._database.read(job)

    async def heal(self, *, now: datetime) -> int:
        """See the port."""
        if not await self._database.read(_left_open):  # as a rule: then nobody waits for the right to write
            return 0
        return await self._database.write(lambda connection: _heal(connection, now))

    async def shortage(self, charges: Sequence[Charge], *, now: datetime) -> Shortage | None:
        """See the port."""
        return await self._database.read(lambda connection: _shortage(connection, charges, now))


class Reserving:
    """What one transaction asks of the budgets: each purchase sees what those before it have reserved.

    Args:
        connection: in its transaction.
        now: the moment.
    """

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now
        self._found: dict[tuple[str | None, str, str], list[tuple[Budget, str]]] = {}
        self._any: bool | None = None

    def judge(self, charge: Charge) -> tuple[Shortage, ...] | Blocked | Unaffordable:
        """Whether a purchase fits; the budgets that only warn and have no room for it, where it does."""
        passed, blocked, short = [], None, []
        for budget, subject in self._counting(charge):
            balance = _balance(self._connection, budget, subject, self._now)
            shortage = Shortage(balance=balance, quote=charge.amount, caller=charge.caller)
            if charge.amount is None:
                if budget.hard:
                    short.append(shortage)
            elif balance.has_room_for(charge.amount):
                continue
            elif not budget.hard:
                passed.append(shortage)
            elif self._may_fit(balance, charge.amount):
                blocked = blocked or Blocked(budget_limit(budget.name), shortage=shortage)
            else:
                short.append(shortage)
        if short:
            return Unaffordable(max(short, key=lambda one: (one.lasting, _renewal(one))))
        return blocked or tuple(passed)

    def judge_left(self, charge: Charge, prediction_id: str) -> tuple[Shortage, ...] | Blocked | Unaffordable:
        """The same of one that was left behind, perhaps bought and perhaps not.

        Where money is reserved for it that has to fit still: it may have been reserved when the budget was made or made
        smaller, and not been bought. To wait would not help, as others may wait for what it has reserved itself.
        """
        if not self._is_reserved(prediction_id):
            return self.judge(charge)
        for budget, subject in self._counting(charge):
            balance = _balance(self._connection, budget, subject, self._now)
            if budget.hard and (charge.amount is None or balance.left < Usd(0)):
                return Unaffordable(Shortage(balance=balance, quote=charge.amount, caller=charge.caller))
        return ()

    def reserve(self, charge: Charge, prediction_id: str) -> None:
        """Put the most that a purchase can cost aside, wherever it counts; once for each purchase."""
        if not self._counting(charge) or self._is_reserved(prediction_id):
            return
        amount = 0 if charge.amount is None else charge.amount.micros
        counted = [
            (budget.name, subject, budget.period(self._now)) for budget, subject in self._counting(charge)
        ]
        for standing in counted:
            _add(self._connection, standing, reserved=amount)
        _write(self._connection, prediction_id, "open", amount=amount, counted=counted, at=self._now)

    def _is_reserved(self, prediction_id: str) -> bool:
        row = _FIND.run(self._connection, {"this_id": prediction_id}).fetchone()
        return row is not None and row[0] == "open"

    def _counting(self, charge: Charge) -> list[tuple[Budget, str]]:
        if self._any is None:
            self._any = _ANY.run(self._connection, {}).fetchone() is not None
        if not self._any:
            return []
        who = (charge.key, charge.caller, charge.model)
        if who not in self._found:
            self._found[who] = _counting(self._connection, charge)
        return self._found[who]

    def _may_fit(self, balance: Balance, amount: Usd) -> bool:
        """Whether it may fit when what is under way has ended. What ended without a word of its cost stays reserved."""
        if not balance.may_have_room_for(amount):
            return False
        here = _standing(balance, self._now)
        lost = sum(
            micros
            for micros, counted in _LOST.run(self._connection, {}).fetchall()
            if here in _STANDINGS.decode(counted)
        )
        return balance.may_have_room_for(amount + Usd(lost))


def settle(connection: Connection, entry: UsageEntry) -> None:
    """Turn what was reserved for a prediction into what it came to, in the transaction that writes its entry first.

    What nobody has reserved anything for, as it was bought before there was a budget or found later, counts from now on.
    """
    row = _FIND.run(connection, {"this_id": entry.id}).fetchone()
    if row is None or row[0] == "voided":
        _settle_unreserved(connection, entry)
    elif row[0] == "open":
        cost = row[1] if entry.cost is None else entry.cost.micros
        _close(connection, entry.id, "settled", cost=cost, outcome=entry.outcome, at=entry.created_at)


def void(connection: Connection, prediction_id: str, at: datetime) -> None:
    """Give back what was reserved for a prediction that is not charged; nothing where nothing is reserved any more."""
    _close(connection, prediction_id, "voided", cost=0, outcome="", at=at)


# --- the steps -------------------------------------------------------------------------------------------


def _close(
    connection: Connection, prediction_id: str, state: str, *, cost: int, outcome: str, at: datetime
) -> None:
    values = {"this_id": prediction_id, "this_state": state, "this_settled": cost, "this_end": at}
    row = _CLOSE.run(connection, values).fetchone()
    if row is None:
        return
    amount, counted = row
    for standing in _STANDINGS.decode(counted):
        counts = _COUNTS.run(connection, {"this_budget": standing[0]}).fetchone()
        if counts is not None:  # else the budget was removed meanwhile
            spent = _spent(counts[0], cost, outcome)
            _END.run(connection, _place(standing) | {"spent": spent, "freed": amount})


def _settle_unreserved(connection: Connection, entry: UsageEntry) -> None:
    if not entry.cost or is_stranger(entry.key, entry.caller) or _ANY.run(connection, {}).fetchone() is None:
        return
    cost = entry.cost.micros
    charge = Charge(amount=entry.cost, key=entry.key, caller=entry.caller, model=_model_of(entry.model))
    counted = []
    for budget, subject in _counting(connection, charge):
        standing = (budget.name, subject, budget.period(entry.created_at))
        _add(connection, standing, settled=_spent(budget.counts, cost, entry.outcome))
        counted.append(standing)
    if counted:
        _write(connection, entry.id, "settled", amount=0, settled=cost, counted=counted, at=entry.created_at)


def _spent(counts: str, cost: int, outcome: str) -> int:
    return cost if counts == "charged" or outcome == Status.SUCCEEDED else 0


def _add(connection: Connection, standing: Standing, *, settled: int = 0, reserved: int = 0) -> None:
    budget, subject, period = standing
    values = {"budget": budget, "subject": subject, "period": period}
    _ADD.run(connection, values | {"settled": settled, "reserved": reserved})


def _write(
    connection: Connection,
    prediction_id: str,
    state: str,
    *,
    amount: int,
    counted: Sequence[Standing],
    at: datetime,
    settled: int | None = None,
) -> None:
    row = {
        "prediction_id": prediction_id,
        "state": state,
        "amount": amount,
        "settled": settled,
        "counted": counted,
        "created_at": at,
        "ended_at": None if state == "open" else at,
    }
    _WRITE.run(connection, row)


def _place(standing: Standing) -> dict[str, str]:
    return dict(zip(("this_budget", "this_subject", "this_period"), standing, strict=True))


def _standing(balance: Balance, now: datetime) -> Standing:
    return balance.budget.name, balance.subject, balance.budget.period(now)


def _renewal(shortage: Shortage) -> datetime:
    """When there can be room again: of several the one that takes longest counts."""
    return shortage.balance.renews_at or datetime.max.replace(tzinfo=UTC)


# --- healing ---------------------------------------------------------------------------------------------


def _left_open(connection: Connection) -> bool:
    return connection.execute(_ENDED_OPEN.limit(1)).first() is not None


def _heal(connection: Connection, now: datetime) -> int:
    found = connection.execute(_ENDED_OPEN).all()
    for row in found:
        if row.entry is None:
            void(connection, row.prediction_id, now)
        else:
            cost = row.amount if row.cost is None else row.cost.micros
            _close(connection, row.prediction_id, "settled", cost=cost, outcome=row.outcome, at=now)
    return len(found)


# --- reading ---------------------------------------------------------------------------------------------


def _counting(connection: Connection, charge: Charge) -> list[tuple[Budget, str]]:
    """The budgets that count a purchase, by name, each with the subject under which it does."""
    who = {"this_key": charge.key, "this_caller": charge.caller, "this_model": charge.model}
    found = [_from_driver(row) for row in _COUNTING.run(connection, who).fetchall()]
    return [(one, subject) for one in found if (subject := one.counts_for(charge)) is not None]


def _from_driver(row: Sequence[Any]) -> Budget:
    facts: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
    at = datetime.fromisoformat(facts["created_at"]).replace(tzinfo=UTC)
    return Budget(**facts | {"limit": Usd(facts["limit"]), "hard": bool(facts["hard"]), "created_at": at})


def _balance(connection: Connection, budget: Budget, subject: str, now: datetime) -> Balance:
    place = _place((budget.name, subject, budget.period(now)))
    settled, reserved = _BALANCE.run(connection, place).fetchone() or (0, 0)
    return Balance(
        budget=budget,
        subject=subject,
        settled=Usd(settled),
        reserved=Usd(reserved),
        renews_at=budget.renews_at(now),
    )


def _balances(connection: Connection, budget: Budget, now: datetime) -> Iterable[Balance]:
    """Of each subject in the present period; with nothing in it one of the budget itself."""
    if budget.subject != EACH:
        return [_balance(connection, budget, budget.subject, now)]
    found = connection.execute(
        select(balances.c.subject)
        .where(
            balances.c.budget == budget.name,
            balances.c.period == budget.period(now),
            balances.c.settled + balances.c.reserved > 0,
        )
        .order_by(balances.c.subject)
    ).scalars()
    return [_balance(connection, budget, subject, now) for subject in found.all() or [EACH]]


def _shortage(connection: Connection, charges: Sequence[Charge], now: datetime) -> Shortage | None:
    wanted: dict[tuple[str, str], tuple[Budget, list[Usd | None]]] = {}
    alike: dict[tuple[str | None, str, str], list[Charge]] = {}
    for charge in charges:
        alike.setdefault((charge.key, charge.caller, charge.model), []).append(charge)
    for same in alike.values():
        for budget, subject in _counting(connection, same[0]):
            if budget.hard:
                _, amounts = wanted.setdefault((budget.name, subject), (budget, []))
                amounts.extend(charge.amount for charge in same)
    for (_, subject), (budget, amounts) in sorted(wanted.items()):
        quote = Usd.total_or_none(amounts)
        balance = _balance(connection, budget, subject, now)
        if quote is None or not balance.has_room_for(quote):
            caller = next((charge.caller for charge in charges if charge.key == subject), "")
            return Shortage(balance=balance, quote=quote, caller=caller)
    return None


def _named(connection: Connection, name: str) -> Budget | None:
    row = connection.execute(select(*_COLUMNS).where(budgets.c.name == name)).one_or_none()
    return None if row is None else Budget(**row._mapping)  # noqa: SLF001 - its public name


def _count(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(budgets)).scalar_one())


# --- counting anew ---------------------------------------------------------------------------------------


def _recount(connection: Connection, budget: Budget, now: datetime) -> None:
    """Count what the ledger says of the present period, and what is reserved for purchases that it counts."""
    _forget(connection, budget.name)
    period = budget.period(now)
    for charge in _spent_since(connection, budget, budget.begins_at(now)):
        if charge.amount and (subject := budget.counts_for(charge)) is not None:
            _add(connection, (budget.name, subject, period), settled=charge.amount.micros)
    for row in connection.execute(
        select(reservations, predictions.c.key, predictions.c.caller, predictions.c.model)
        .join(predictions, predictions.c.id == reservations.c.prediction_id)
        .where(RESERVED)
    ):
        charge = Charge(amount=None, key=row.key, caller=row.caller, model=_model_of(row.model))
        if (subject := budget.counts_for(charge)) is not None:
            standing = (budget.name, subject, budget.period(row.created_at))
            _add(connection, standing, reserved=row.amount)
            _stand(connection, row.prediction_id, [*row.counted, standing])
    _reserve_what_is_under_way(connection, budget, now)


def _reserve_what_is_under_way(connection: Connection, budget: Budget, now: datetime) -> None:
    """Reserve for purchases that no budget has counted yet; nothing where nobody knows what they will cost."""
    under_way = (
        select(*(predictions.c[name] for name in ("id", "key", "caller", "model", "quote")))
        .outerjoin(reservations, reservations.c.prediction_id == predictions.c.id)
        .where(
            UNFINISHED,
            predictions.c.status.not_in(sorted(TERMINAL)),
            predictions.c.backend_type != EMULATOR,
            or_(predictions.c.key.is_not(None), ~predictions.c.caller.startswith(OWN_TOKEN)),
            reservations.c.prediction_id.is_(None),
        )
    )
    for row in connection.execute(under_way).all():
        charge = Charge(amount=row.quote.high, key=row.key, caller=row.caller, model=_model_of(row.model))
        if (subject := budget.counts_for(charge)) is not None:
            standing = (budget.name, subject, budget.period(now))
            amount = 0 if charge.amount is None else charge.amount.micros
            _add(connection, standing, reserved=amount)
            _write(connection, row.id, "open", amount=amount, counted=[standing], at=now)


def _spent_since(connection: Connection, budget: Budget, since: datetime | None) -> Iterable[Charge]:
    """What was spent in purchases that began since then, by everybody who may be a subject."""
    cost: ColumnElement[int] = func.coalesce(type_coerce(usage.c.cost, BigInteger), reservations.c.settled, 0)
    if budget.counts == "succeeded":
        cost = case((usage.c.outcome == Status.SUCCEEDED.value, cost), else_=0)
    who = (usage.c.key, usage.c.caller, usage.c.model)
    statement = (
        select(*who, func.sum(cost).label("micros"))
        .outerjoin_from(usage, reservations, reservations.c.prediction_id == usage.c.id)
        .where(or_(usage.c.key.is_not(None), ~usage.c.caller.startswith(OWN_TOKEN)))
        .group_by(*who)
    )
    if since is not None:
        began = func.coalesce(reservations.c.created_at, usage.c.created_at)
        statement = statement.where(usage.c.created_at >= since - _MARGIN, began >= since)
    for row in connection.execute(statement):
        yield Charge(amount=Usd(row.micros), key=row.key, caller=row.caller, model=_model_of(row.model))


def _model_of(ref: str) -> str:
    """As budgets count it. What is no name of a model, in an entry of another program, counts under its own words."""
    try:
        return model_of(ref)
    except ImagenError:
        return ref.lower()


def _forget(connection: Connection, name: str) -> None:
    """Forget what a budget has counted."""
    connection.execute(delete(balances).where(balances.c.budget == name))
    for row in connection.execute(
        select(reservations.c.prediction_id, reservations.c.counted).where(RESERVED)
    ).all():
        left = [standing for standing in row.counted if standing[0] != name]
        if len(left) < len(row.counted):
            _stand(connection, row.prediction_id, left)


def _stand(connection: Connection, prediction_id: str, counted: Sequence[Sequence[str]]) -> None:
    connection.execute(
        update(reservations).where(reservations.c.prediction_id == prediction_id).values(counted=counted)
    )
