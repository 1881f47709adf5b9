"""What an audit has found: where our books and the service's list differ, and what became of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction
from imagen.errors import ImagenError

Kind = Literal[
    "finished",
    "adopted",
    "fetched",
    "entered",
    "foreign",
    "expired",
    "defective",
    "lost",
    "never_bought",
    "unlisted",
    "left",
]
MENDED: frozenset[Kind] = frozenset({"finished", "adopted", "fetched", "entered", "foreign"})
LOST: frozenset[Kind] = frozenset({"expired", "defective", "lost"})


class AuditFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction about which the two sides differed.

    Attributes:
        kind: what was done, or what is the matter.
            finished: it had ended at the service. adopted: so it had, and its create's answer was lost. fetched: its
            pictures were still to be fetched. entered: the ledger lacked it. foreign: another program made it, and now
            it is written down here. expired: it was paid for and its pictures are gone. defective: it was paid for and
            has no good picture. lost: nobody can tell whether it was made. never_bought: the service has never heard
            of it. unlisted: the ledger has it and the service does not list it. left: it could not be mended now.
        id: ours; empty where an entry of the ledger is meant that was kept beside it.
        images: pictures that were recovered, or that are lost.
        files: where the recovered ones are.
        cost: what it costs; None when that is not known.
        detail: one sentence, where there is more to say.
    """

    kind: Kind
    id: str = ""
    upstream_id: str | None = None
    model: str = ""
    status: str = ""
    images: int = 0
    files: tuple[str, ...] = ()
    cost: Usd | None = Usd(0)
    detail: str = ""

    @classmethod
    def of(
        cls,
        kind: Kind,
        prediction: Prediction,
        *,
        images: int = 0,
        files: tuple[str, ...] = (),
        detail: str = "",
    ) -> AuditFinding:
        """About a prediction as it stands; what it costs is told as far as that is certain."""
        cost = prediction.cost
        if prediction.charged is False or kind == "never_bought":
            cost = Usd(0)
        elif prediction.charged is None:
            cost = None
        return cls(
            kind=kind,
            id=prediction.id,
            upstream_id=prediction.upstream_id,
            model=prediction.model,
            status=prediction.status.value,
            images=images,
            files=files,
            cost=cost,
            detail=detail,
        )


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Findings added up; `unpriced` of them cost what nobody knows."""

    predictions: int = 0
    images: int = 0
    cost: Usd = Usd(0)
    unpriced: int = 0


class Foreigners(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions that other programs made on the same account.

    Attributes:
        by_status: how many have which status at the service.
        cost: what they cost, as far as a price is known; unpriced: of how many it is not.
    """

    by_status: Mapping[str, int]
    cost: Usd
    unpriced: int

    @property
    def predictions(self) -> int:
        """How many there are."""
        return sum(self.by_status.values())


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit has found, and done.

    Attributes:
        backend: the name of the backend whose account it was.
        since: predictions created from then on were compared; unfinished ones of any age.
        dry_run: nothing was changed; `findings` tell what would be done.
        listed: how many predictions the service listed.
        under_way: how many of ours run, or are followed by a living process.
        errors: why findings of the kind `left` are left.
    """

    backend: str
    since: datetime
    dry_run: bool
    listed: int
    under_way: int
    findings: Sequence[AuditFinding]
    foreign: Foreigners
    errors: Sequence[ImagenError] = ()

    def total(self, kinds: Iterable[Kind]) -> Totals:
        """The findings of some kinds, added up."""
        wanted = frozenset(kinds)
        found = [one for one in self.findings if one.kind in wanted]
        return Totals(
            predictions=len(found),
            images=sum(one.images for one in found),
            cost=Usd.total(one.cost for one in found if one.cost is not None),
            unpriced=sum(one.cost is None for one in found),
        )
