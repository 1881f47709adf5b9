"""Reading the service's list of an account beside our own books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from imagen.domain.audit import Foreigners
from imagen.domain.identifiers import new_id
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Sighting, Status, request_key
from imagen.ports import Backend, Clock, Listed, Lister, PredictionStore
from imagen.service.deliver import Destination, to_stored

FOREIGN = "foreign"
"""Whom the ledger names for predictions that other programs made."""
_BEFORE, _AFTER = timedelta(minutes=2), timedelta(minutes=10)
"""Around the moment of a create: what it bought was created then."""


class Comparison:
    """What the list says, taken down page by page.

    Args:
        backend: whose account it is.
        store: has our predictions.
        clock: tells the time.
        entered: ids of the predictions that the ledger has.
        collects: take down what other programs have made, and do not only count it.
        hash_prompt: what the ledger gets of a prompt.

    Attributes:
        listed: the upstream ids of all that are listed.
        ours: what the list says of predictions of ours that are not finished, by our id.
        claimed: listed ones that may be what a lost create of ours has bought, by our id.
        unwritten: ended ones of ours that the ledger ought to have and has not.
        strangers: ended ones of other programs, as if we had made them.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        store: PredictionStore,
        clock: Clock,
        entered: Collection[str],
        collects: bool,
        hash_prompt: Callable[[str], str],
    ) -> None:
        self._hash_prompt = hash_prompt
        self._backend = backend
        self._store = store
        self._clock = clock
        self._entered = entered
        self._collects = collects
        self._unheard: dict[str | None, list[Prediction]] = {}
        self._nameless: list[tuple[str, datetime]] = []
        self._counted: Counter[str] = Counter()
        self._cost, self._unpriced = Usd(0), 0
        self._since: datetime | None = None
        self.listed: set[str] = set()
        self.ours: dict[str, Sighting] = {}
        self.claimed: dict[str, Sighting] = {}
        self.unwritten: list[Prediction] = []
        self.strangers: list[Prediction] = []

    @property
    def foreign(self) -> Foreigners:
        """What other programs have made."""
        return Foreigners(by_status=dict(self._counted), cost=self._cost, unpriced=self._unpriced)

    async def read(self, lister: Lister, *, since: datetime) -> None:
        """Read the list to its end.

        What we are just buying is in the list before we know its upstream id, and must not be taken for somebody else's.
        So the intents are read after the first page, and what is known of the upstream ids of a page after both: what
        is not known by then, and fits no intent, was not ours when the first page was read. Later pages are older.

        Raises:
            BackendError: the list could not be read.
            StoreError: the store could not be read.
        """
        self._since = since
        first = True
        async for page in lister.history(since=since):
            if first:
                await self._note_intents()
                first = False
            ids = [listed.sighting.upstream_id for listed in page]
            known = await self._store.of_upstream(self._backend.account, ids)
            ours = {one.upstream_id: one for one in known}
            for listed in page:
                if listed.sighting.upstream_id not in self.listed:
                    self.listed.add(listed.sighting.upstream_id)
                    self._note(lister, listed, ours.get(listed.sighting.upstream_id))

    def could_have_bought(self, prediction: Prediction) -> bool:
        """Whether one whose create was lost may have bought something; not, where the list surely would have it."""
        sent, base = prediction.sent_at or prediction.created_at, _base(prediction.model)
        if prediction.id in self.claimed or self._since is None or sent - _BEFORE < self._since:
            return True
        return any(
            model in {base, ""} and sent - _BEFORE <= created <= sent + _AFTER
            for model, created in self._nameless
        )

    async def _note_intents(self) -> None:
        for one in await self._store.unfinished():
            if one.unheard and one.account == self._backend.account:
                self._unheard.setdefault(_prompt(one.input), []).append(one)

    def _note(self, lister: Lister, listed: Listed, ours: Prediction | None) -> None:
        sighting = listed.sighting
        if ours is not None:
            if not ours.finished:
                self.ours[ours.id] = sighting
            if ours.status.terminal and ours.settled_at is not None and ours.id not in self._entered:
                self.unwritten.append(ours)
            return
        alike = self._unheard.get(_prompt(sighting.input), ()) if sighting.input else ()
        claims = [one for one in alike if lister.could_be(listed, one)]
        for one in claims:
            self.claimed.setdefault(one.id, sighting)
        if not claims:
            self._note_stranger(listed)

    def _note_stranger(self, listed: Listed) -> None:
        sighting = listed.sighting
        self._counted[sighting.status.value] += 1
        if not sighting.input:
            # Our clock may be wrong now, or have been wrong then: both readings of the moment count.
            self._nameless += [
                (_base(listed.model), at) for at in (sighting.created_at, listed.made_at) if at is not None
            ]
        one = self._adopted(listed)
        if one.charged and one.cost is None:
            self._unpriced += 1
        self._cost += one.cost or Usd(0)
        if self._collects and one.status.terminal and listed.model:
            self.strangers.append(one)

    def _adopted(self, listed: Listed) -> Prediction:
        """What another program made, as if we had made it."""
        now, sighting = self._clock.now(), listed.sighting
        account, values = self._backend.account, sighting.input or {}
        created, ended = sighting.created_at or now, sighting.completed_at or now
        seed, prompt = values.get("seed"), _prompt(values) or ""
        one = Prediction(
            id=new_id("pred", created),
            backend=self._backend.name,
            backend_type=self._backend.type,
            account=account,
            model=listed.model,
            prompt=prompt,
            prompt_hash=self._hash_prompt(prompt),
            input=values,
            # Its own: nobody's wish is answered with what somebody else has asked for.
            request_key=request_key(account, listed.model, {"upstream_id": sighting.upstream_id}),
            caller=FOREIGN,
            created_at=created,
            sent_at=created,
            deadline_seconds=max((ended - created).total_seconds(), 1.0),
            seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
            destination=to_stored(Destination()),
        ).observe(sighting, now=ended)
        if one.charged is not None:
            priced = self._backend.price(one) if one.charged and listed.model else None
            one = msgspec.structs.replace(one, cost=priced if one.charged else Usd(0))
        if one.status is Status.SUCCEEDED and (sighting.data_removed or not one.output):
            gone = "its data was gone when it was written down" if sighting.data_removed else None
            one = msgspec.structs.replace(one, delivered_at=ended, error=gone)
        return one


def _prompt(values: Mapping[str, Any] | None) -> str | None:
    found = (values or {}).get("prompt")
    return found if isinstance(found, str) else None


def _base(model: str) -> str:
    return model.partition(":")[0].lower()
