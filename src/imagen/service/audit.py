"""Comparing what is written down here with what the service has made for the account, and mending what differs.

Nothing is bought. What is found is told once: when it was mended, or is lost for good, the next audit has nothing to say
about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from imagen.domain.audit import Audit, AuditFinding, Kind
from imagen.domain.prediction import Prediction, Sighting, Status, hash_prompt
from imagen.domain.usage import UsageEntry
from imagen.errors import (
    ImagenError,
    InvalidRequest,
    OutcomeUnknown,
    OutputDefective,
    PredictionError,
    StillFollowed,
    StoreError,
    WaitTimeout,
)
from imagen.ports import Backend, Clock, Ledger, Lister, Owners, PredictionStore
from imagen.service.adopt import is_remembered, outputs_live
from imagen.service.batches import Batches
from imagen.service.bookkeep import Bookkeeper
from imagen.service.compare import Comparison
from imagen.service.finish import Outcome
from imagen.service.gateway import NEVER_ARRIVED, Gateway

_MOST_AT_ONCE = 20
_PATIENCE_SECONDS = 300.0
"""So long one prediction is followed; what takes longer is told as left."""
_CLOCKS = timedelta(minutes=5)
"""Our clock and the service's, and an intent and its create, differ by less."""
_LATE = timedelta(days=1)
"""Between the instant when a prediction was made and that of its entry lies less."""
_CHUNK = 500

_Result = tuple[AuditFinding | None, ImagenError | None]
"""What is to be told of a prediction, None while somebody follows it; and why it is left, where it is."""
_Looked = Callable[[Prediction], Awaitable[_Result | None]]
"""Looks after one; None where by then nothing is wrong with it."""


class Auditor:
    """Audits the account of a backend.

    Args:
        gateway: finishes what was left unfinished.
        store: has what we know.
        ledger: has what it cost.
        bookkeeper: writes late entries.
        owners: tells the living from the dead.
        clock: tells the time.
        batches: know which predictions somebody was promised.
        hash_prompt: what the ledger gets of a prompt.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        store: PredictionStore,
        ledger: Ledger,
        bookkeeper: Bookkeeper,
        owners: Owners,
        clock: Clock,
        batches: Batches,
        hash_prompt: Callable[[str], str] = hash_prompt,
    ) -> None:
        self._hash_prompt = hash_prompt
        self._gateway = gateway
        self._store = store
        self._ledger = ledger
        self._bookkeeper = bookkeeper
        self._owners = owners
        self._clock = clock
        self._batches = batches

    async def run(
        self, backend: Backend, *, since: datetime, adopt_foreign: bool = False, dry_run: bool = False
    ) -> Audit:
        """Compare, mend, and tell.

        Args:
            backend: the one whose account is compared.
            since: how far back the list of the service is read; what is unfinished here is mended whatever its age.
            adopt_foreign: write down what other programs have made, and fetch its pictures.
            dry_run: change nothing.

        Raises:
            InvalidRequest: it has no account whose predictions could be listed.
            BackendError: the list could not be read.
            StoreError: the store could not be read.
        """
        if not isinstance(backend, Lister):
            raise InvalidRequest(
                f"{backend.name} has no list of predictions to compare with: it is practice, or cannot tell.",
                hint="Name another with --backend, or set the token of an account.",
            )
        left = [one for one in await self._store.unfinished() if one.account == backend.account]
        late = [one for one in await self._store.unsettled() if one.account == backend.account]
        entries = await self._ledger.entries(since=since - _LATE)
        seen = Comparison(
            backend,
            store=self._store,
            clock=self._clock,
            entered={entry.id for entry in entries},
            collects=adopt_foreign,
            hash_prompt=self._hash_prompt,
        )
        await seen.read(backend, since=since)
        lacking = await self._still_lacking(late, seen.unwritten, since=since)
        results = await self._enter(lacking, dry_run=dry_run)
        results += await self._each(left, lambda one: self._look_after(backend, one, seen, dry_run=dry_run))
        results += await self._each(seen.strangers, lambda one: self._adopt(one, dry_run=dry_run))
        results += await self._unlisted(backend, entries, seen.listed, since=since)
        return Audit(
            backend=backend.name,
            since=since,
            dry_run=dry_run,
            listed=len(seen.listed),
            under_way=sum(finding is None for finding, _ in results),
            findings=[finding for finding, _ in results if finding is not None],
            foreign=seen.foreign,
            errors=[error for _, error in results if error is not None],
        )

    # --- the ledger --------------------------------------------------------------------------------------

    async def _still_lacking(
        self, late: Sequence[Prediction], unwritten: Sequence[Prediction], *, since: datetime
    ) -> Sequence[Prediction]:
        """Those that the ledger lacks also after the list was read: meanwhile others have ended and settled theirs."""
        unsettled = {one.id for one in await self._store.unsettled()} if late else set()
        entered = set[str]()
        if unwritten:
            entered = {entry.id for entry in await self._ledger.entries(since=since - _LATE)}
        return [
            *(one for one in late if one.id in unsettled),
            *(one for one in unwritten if one.id not in entered),
        ]

    async def _enter(self, lacking: Sequence[Prediction], *, dry_run: bool) -> list[_Result]:
        """Write what the ledger lacks: ended predictions, and entries that were kept beside it."""
        ended = {one.id: one for one in lacking}
        kept = len(self._bookkeeper.kept() - {one.id for one in await self._store.unsettled()})
        findings = [AuditFinding.of("entered", one, detail="the ledger lacked it") for one in ended.values()]
        if kept > 0:
            findings.append(
                AuditFinding(kind="entered", detail=f"{kept} that had been kept beside the ledger")
            )
        if findings and not dry_run:
            now = self._clock.now()
            try:
                await self._ledger.record(
                    [UsageEntry.from_prediction(one, at=one.ended_at or now) for one in ended.values()]
                )
                await self._bookkeeper.catch_up()
            except StoreError as error:
                return [
                    (msgspec.structs.replace(one, kind="left", detail=error.detail), error)
                    for one in findings
                ]
        return [(one, None) for one in findings]

    async def _unlisted(
        self, backend: Backend, entries: Sequence[UsageEntry], listed: set[str], *, since: datetime
    ) -> list[_Result]:
        """Entries of the ledger for predictions that the service ought to list and does not."""
        asked = [
            entry.upstream_id for entry in entries if entry.upstream_id and entry.upstream_id not in listed
        ]
        found: list[_Result] = []
        for start in range(0, len(asked), _CHUNK):
            known = await self._store.of_upstream(backend.account, asked[start : start + _CHUNK])
            found += [
                (AuditFinding.of("unlisted", one, detail="the service does not list it"), None)
                for one in known
                if one.status.terminal and (one.sent_at or one.created_at) >= since + _CLOCKS
            ]
        return found

    # --- ours --------------------------------------------------------------------------------------------

    async def _look_after(
        self, backend: Backend, one: Prediction, seen: Comparison, *, dry_run: bool
    ) -> _Result | None:
        """Finish one of ours that nobody follows and that does not run any more, unless somebody has meanwhile."""
        try:
            current = await self._store.get(one.id)
        except ImagenError as error:
            return AuditFinding.of("left", one, detail=error.detail), error
        return None if current.finished else await self._mended(backend, current, seen, dry_run=dry_run)

    async def _mended(self, backend: Backend, one: Prediction, seen: Comparison, *, dry_run: bool) -> _Result:
        """What became of one that was left unfinished."""
        sighting = seen.ours.get(one.id)
        runs = sighting is not None and not sighting.status.terminal and not one.status.terminal
        if runs or (one.owner is not None and self._owners.alive(one.owner)):
            return None, None
        if one.unheard and one.id not in seen.claimed and await self._is_promised(one):
            return None, None  # whoever works on its batch looks for it, and buys it
        if dry_run:
            return self._foreseen(backend, one, sighting, seen), None
        outcome, error = await self._resumed(one)
        if outcome is None:
            return (None if error is None else AuditFinding.of("left", one, detail=error.detail)), error
        after = outcome.prediction
        files = tuple(str(picture.path) for picture in outcome.pictures)
        detail = "" if outcome.error is None else outcome.error.detail
        match outcome.error:
            case OutputDefective() as defect:
                kind: Kind = "expired" if defect.expired else "defective"
                missing = max(len(after.output) or after.image_count or 1, 1) - len(files)
                return AuditFinding.of(kind, after, images=missing, files=files, detail=detail), None
            case OutcomeUnknown() if after.status.terminal:
                return _unheard_of(after, seen), None
            case OutcomeUnknown():
                return await self._given_up(after)
            case None | PredictionError():
                kind = "fetched" if one.status is Status.SUCCEEDED else "finished"
                kind = "adopted" if one.upstream_id is None and after.upstream_id is not None else kind
                images = len(files) if after.destination is not None else len(after.output)
                return AuditFinding.of(kind, after, images=images, files=files, detail=detail), None
            case other:
                return AuditFinding.of("left", after, files=files, detail=detail), other

    async def _is_promised(self, one: Prediction) -> bool:
        """Whether it belongs to durable work that has not ended: that still wants it."""
        place = (await self._batches.places([one.id])).get(one.id)
        return place is not None and not place[1].status.terminal

    async def _given_up(self, one: Prediction) -> _Result:
        """One that stayed away for the whole grace is ended where that is sure, and so told once."""
        try:
            ended = await self._gateway.give_up(one.id)
        except ImagenError as error:
            return AuditFinding.of("left", one, detail=error.detail), error
        if ended is None:
            return AuditFinding.of("left", one, detail="whether its create arrived cannot be told yet"), None
        if ended.error != NEVER_ARRIVED:
            return None, None  # somebody was quicker, and follows it
        return AuditFinding.of("never_bought", ended, detail=NEVER_ARRIVED), None

    async def _resumed(self, one: Prediction) -> tuple[Outcome | None, ImagenError | None]:
        """How it went; neither when somebody alive has it."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._gateway.resume(one.id, leaves_running=True), None
        except StillFollowed:
            return None, None
        except TimeoutError:
            late = f"{one.id} did not end within {_PATIENCE_SECONDS:g} s"
            return None, WaitTimeout(late, prediction_id=one.id)
        except ImagenError as error:
            return None, error

    def _foreseen(
        self, backend: Backend, one: Prediction, sighting: Sighting | None, seen: Comparison
    ) -> AuditFinding:
        """What looking after it would do."""
        remembered = is_remembered(one, self._clock.now())
        sighting = seen.claimed.get(one.id) if one.unheard else sighting
        if one.unheard and sighting is None:
            status = one.status if remembered else Status.UNKNOWN
            return _unheard_of(msgspec.structs.replace(one, status=status), seen)
        after = one if sighting is None else one.observe(sighting, now=self._clock.now())
        if after.charged and after.cost is None:
            after = msgspec.structs.replace(after, cost=backend.price(after))
        gone = not outputs_live(one, self._clock.now()) if sighting is None else sighting.data_removed
        if after.status is Status.SUCCEEDED and gone:
            images = after.image_count or len(after.output) or 1
            return AuditFinding.of("expired", after, images=images, detail="its pictures are gone")
        kind: Kind = "adopted" if one.unheard else "fetched" if one.status.terminal else "finished"
        return AuditFinding.of(kind, after, images=len(after.output))

    # --- what others made --------------------------------------------------------------------------------

    async def _adopt(self, one: Prediction, *, dry_run: bool) -> _Result | None:
        """Write down what another program made, with its cost, and fetch its pictures while they exist."""
        if dry_run:
            return AuditFinding.of("foreign", one, images=len(one.output)), None
        entry = UsageEntry.from_prediction(one, at=one.ended_at or one.created_at)
        try:
            await self._store.add(msgspec.structs.replace(one, settled_at=entry.created_at), entry=entry)
        except StoreError as error:
            if await self._is_written(one):
                return None  # another audit was quicker, and tells it
            return AuditFinding.of("left", one, detail=error.detail), error
        if one.finished:
            return AuditFinding.of("foreign", one, detail=one.error or ""), None
        outcome, trouble = await self._resumed(one)
        if outcome is not None:
            trouble = outcome.error
        files = () if outcome is None else tuple(str(picture.path) for picture in outcome.pictures)
        detail = "" if trouble is None else trouble.detail
        if trouble is not None and not isinstance(trouble, PredictionError):
            return AuditFinding.of("left", one, images=len(files), files=files, detail=detail), trouble
        return AuditFinding.of("foreign", one, images=len(files), files=files, detail=detail), None

    async def _is_written(self, stranger: Prediction) -> bool:
        """Whether what another program made is written down by now."""
        if stranger.upstream_id is None:
            return False
        try:
            return bool(await self._store.of_upstream(stranger.account, [stranger.upstream_id]))
        except StoreError:
            return False

    async def _each(self, those: Sequence[Prediction], act: _Looked) -> list[_Result]:
        """Do it for each of them, some at the same time; the results in their order, of those that have one."""
        places = asyncio.Semaphore(_MOST_AT_ONCE)

        async def placed(one: Prediction) -> _Result | None:
            async with places:
                return await act(one)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(placed(one)) for one in those]
        return [result for task in tasks if (result := task.result()) is not None]


def _unheard_of(one: Prediction, seen: Comparison) -> AuditFinding:
    """One whose create nobody heard of: whether it may have been bought is known where the list goes back so far."""
    if one.status is Status.UNKNOWN and one.charged is not False and seen.could_have_bought(one):
        lost = "its create was lost, and what it bought can no longer be told from others"
        return AuditFinding.of("lost", one, detail=lost)
    return AuditFinding.of("never_bought", one, detail=NEVER_ARRIVED)
