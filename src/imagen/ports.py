"""The seams of imagen: what the service asks of the world, and what it may rely on. Read this file first.

Every protocol states its failure contract. Implementations live in `backends`, `store` and `instrumentation`; only
`assembly` chooses among them. Whoever implements a port passes its contract suite in `tests/contract`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from imagen.domain.events import Event
from imagen.domain.key import Key
from imagen.domain.limits import AccountState, LineReport, Need, Refusal, Verdict
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Allowance, Prediction, Sighting, Status
from imagen.domain.request import GenerationRequest
from imagen.domain.semaphore import Holder, Lease, Semaphore
from imagen.domain.usage import UsageEntry


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction that a backend would make for a request: checked, complete but for a seed of our choice.

    Attributes:
        model: ref as text, with version where one is pinned.
        input: the model's own input.
        identity: the same for the same wish: the input with files told by their content.
        seed_field: the parameter that takes a seed, None where the model has none; seed_maximum: its largest value.
        secrets: values that are sent but never written down; `input` has them hidden.
        deadline_seconds: when the run must have ended.
        typical_seconds: how long it usually takes, where that is known.
        expected_images: how many pictures one run gives.
    """

    model: str
    input: dict[str, Any]
    identity: dict[str, Any]
    seed_field: str | None
    deadline_seconds: float
    seed_maximum: int = 2**31 - 1
    typical_seconds: float | None = None
    secrets: dict[str, Any] = {}
    expected_images: int = 1


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What a download brought."""

    size_bytes: int
    media_type: str | None


class ShelvedPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture on the shelf.

    Attributes:
        id: `pic_…`, unguessable: whoever knows it may look at the picture.
        name: a file name for it, id and extension.
        media_type: such as `image/png`.
        size_bytes: its length.
        kept_at: when it was put there, aware, UTC.
        version: differs when the bytes under this id differ; printable, without quotes.
        path: the file that holds it.
    """

    id: str
    name: str
    media_type: str
    size_bytes: int
    kept_at: datetime
    version: str
    path: Path


class Backend(Protocol):
    """Makes predictions. One configured backend of `imagen.yaml`; safe to share between tasks.

    Every method raises a `BackendError` with `.backend` set when the service refuses, breaks or cannot be reached.
    """

    name: str
    type: str
    account: str
    model: str
    practice: bool

    async def check(self, request: GenerationRequest) -> Sequence[Plan]:
        """Translate and validate; one plan for each prediction that is needed. Buys nothing.

        Raises:
            InvalidInput, InvalidModelRef: the request does not fit the model.
            Unauthenticated: no token is configured; nothing was sent.
        """

    async def submit(
        self, prediction: Prediction, *, hold_seconds: float, secrets: Mapping[str, Any]
    ) -> Sighting:
        """Send its create, exactly once. The answer may be held back up to `hold_seconds` until the run has ended.

        Args:
            prediction: with its whole input, but for what is hidden in it.
            hold_seconds: 0 to 60.
            secrets: the values of the hidden parameters: sent, and kept nowhere.

        Raises:
            ExchangeFailed, InvalidResponse, BackendBroken: `.delivered` is not "no": it may have been bought. Look for it.
            BackendRejected: it was not bought.
        """

    async def look(self, prediction: Prediction) -> Sighting:
        """Where it stands now. Needs `upstream_id`; repeats itself on faults.

        Raises:
            ModelNotFound: no such prediction in this account.
        """

    async def find(self, prediction: Prediction, *, ignore: frozenset[str]) -> Sighting | None:
        """What a create bought whose answer was lost: the same input, created since it was sent.

        Args:
            prediction: with its exact input and `sent_at`.
            ignore: upstream ids that belong to other predictions of ours.

        Raises:
            GarbledResponse: the list could not be read to where it would be, or several could be it: that it was not
                found means nothing then.
        """

    async def cancel(self, prediction: Prediction) -> Sighting:
        """Stop it upstream and tell how it stands then. Canceling what has ended changes nothing."""

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        """Download one output into `target` (overwritten), never more than `limit_bytes`; no token leaves for file hosts.

        Raises:
            OutputDefective: it came inside the answer, and is broken or larger than the limit.
            InvalidResponse: larger than the limit, or at an address that is not fetched.
            TransportError, BackendError: it did not come, after one repeat.
        """

    async def probe(self) -> Mapping[str, Any]:
        """Ask the service who we are: proof that address and token are right. Costs nothing."""

    def readiness(self) -> str:
        """`ok`, or what is missing, told in a few words; looks at the configuration only."""

    def price(self, prediction: Prediction) -> Usd | None:
        """What a charged prediction costs; None when the price is not known. Never raises."""

    async def aclose(self) -> None:
        """Give back connections and processes."""


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a service itself tells about a model.

    Attributes:
        model: the ref by which it runs, with a version where it runs by version only.
        input_schema: JSON Schema of its input; None where the service tells none.
    """

    model: str
    input_schema: dict[str, Any] | None


@runtime_checkable
class ModelSource(Protocol):
    """What a backend may do besides making predictions: tell about models that the catalog does not have."""

    async def describe(self, model: ModelRef) -> ModelDescription:
        """What the service knows of it. Costs nothing.

        Raises:
            ModelNotFound: it does not know it.
            BackendError: it could not be asked.
        """


class Backends(Protocol):
    """The configured backends, each built when it is first asked for."""

    def get(self, name: str | None) -> Backend:
        """By name; None means the default one.

        Raises:
            NotFound: none is called so.
            ConfigError: its settings make no sense.
        """

    def names(self) -> Sequence[str]:
        """All of them, in the order of the configuration."""

    def tokenless(self) -> Backend:
        """One that can do what needs no account, such as fetching pictures."""


class PredictionStore(Protocol):
    """Remembers predictions. Each method is one durable transaction: when it returns, kill -9 changes nothing.

    Raises:
        StoreBusy: somebody else held the database too long.
        StoreError: disk full, no permission, damaged file.
    """

    async def add(self, prediction: Prediction) -> None:
        """Write down a new intent."""

    async def save(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> Prediction:
        """Write its present state. A stored terminal status is never left: the stored row wins and is returned.

        Whatever places it held are free from the moment in which its end is written down.

        Args:
            prediction: as it is now.
            entry: of the ledger, written in the same transaction; the prediction counts as settled then.

        Raises:
            UpstreamTaken: its upstream id belongs to another of our predictions.
        """

    async def get(self, prediction_id: str) -> Prediction:
        """By our id, its unique beginning, or the upstream id.

        Raises:
            NotFound: none, or several, begin like that.
        """

    async def unfinished(
        self, *, request_key: str | None = None, besides: str | None = None
    ) -> Sequence[Prediction]:
        """Predictions with something left to do, oldest first.

        Args:
            request_key: only those of one request.
            besides: leave out what this owner follows.
        """

    async def take(self, prediction_id: str, *, owner: str, was: str | None) -> bool:
        """Become the owner, if the owner still is `was`. False when somebody was quicker."""

    async def release(self, prediction_id: str, *, owner: str) -> None:
        """Stop being the owner."""

    async def list(self, *, limit: int, status: Status | None = None) -> Sequence[Prediction]:
        """Newest first."""

    async def unsettled(self) -> Sequence[Prediction]:
        """Ended predictions that the ledger does not have yet."""

    async def known_upstream_ids(self, account: str, *, since: datetime) -> frozenset[str]:
        """Upstream ids of this account that are ours already."""


class Semaphores(Protocol):
    """Named limits, shared by everything on one store. Their places are given by `Limits`.

    Raises:
        NotFound: no semaphore is called so.
        StoreError: the store could not be read or written.
    """

    async def register(self, name: str, limit: int) -> None:
        """Make one, or change its limit; places that are held stay held."""

    async def remove(self, name: str) -> None:
        """Remove one, with its leases."""

    async def list(self, *, now: float) -> Sequence[Semaphore]:
        """All of them by name, with the places that are held now and those who wait."""

    async def show(self, name: str, *, now: float) -> tuple[Semaphore, Sequence[Holder]]:
        """One of them with its holders, the oldest first."""

    async def renew(self, name: str, lease: str, *, now: float, lasts_seconds: float) -> Lease:
        """Let a lease that has not ended last longer.

        Raises:
            NotFound: there is none of that id, or it has ended.
        """

    async def release(self, name: str, lease: str) -> None:
        """Give a place back; one that has ended already is no mistake."""


class Limits(Protocol):
    """Who may go now: places and rates, counted exactly for all processes of one store.

    Instants are epoch seconds. A place that a prediction holds is given back by the store itself in the moment in which
    its end is written down, or when its lease ends; `give_back` is for everything else.

    Raises:
        StoreError: the store could not be read or written; nothing changed.
    """

    async def take(
        self, needs: Sequence[Need], *, now: float, line: str, waiting: Mapping[str, LineReport]
    ) -> Sequence[Verdict]:
        """Give each need all it asks for or nothing, in this order, in one transaction.

        Args:
            needs: those whose turn it is, the first first.
            now: the instant.
            line: the name of the line that asks; lines of all processes are served first come, first served.
            waiting: who else stands in that line, by limit.
        """

    async def give_back(self, lease: str, *, unsent: bool = False) -> None:
        """Free every place of a lease; with `unsent` also forget its intent, of which nothing was sent."""

    async def leave(self, line: str) -> None:
        """Nobody stands in that line any more."""

    async def refused(self, account: str, refusal: Refusal, *, now: float) -> None:
        """The service said 429: the account's gate is closed for everybody until its reset."""

    async def told(
        self, account: str, allowance: Allowance, *, sequence: int, age: float, now: float
    ) -> None:
        """The answer to the create `sequence`, sent `age` seconds ago, told what is left."""

    async def take_calls(self, account: str, count: int, *, now: float) -> float:
        """Take `count` calls that are not creates; seconds to wait when there are none now (then nothing is taken)."""

    async def show(self, account: str, *, now: float) -> AccountState:
        """How an account stands."""

    async def sweep(self, *, now: float) -> None:
        """Forget what has no meaning any more: ended leases, lines of the dead, rates that nobody used for a day."""


class CallBudget(Protocol):
    """Paces the calls of an account that are not creates. Shared between tasks."""

    async def enter(self, account: str) -> None:
        """Wait until one more call may be made."""

    async def refused(self, account: str, *, retry_after: float | None, detail: str) -> None:
        """The service said 429 to such a call."""


class PictureShelf(Protocol):
    """Keeps pictures under unguessable ids, for as long as nobody removes them. Safe to share between processes.

    Raises:
        StoreError: the shelf could not be read.
    """

    def check(self) -> None:
        """Find out whether a picture could be put here now. Quick; leaves nothing behind.

        Raises:
            ConfigError: it could not, saying why and what to do.
        """

    async def put(self, content: bytes, *, media_type: str, key: str | None = None) -> ShelvedPicture:
        """Keep a picture. When this returns it is there to stay; when it raises nothing of it is there.

        Args:
            content: the whole picture.
            media_type: one of those that `imagen.pictures` can check.
            key: a secret that names the picture: what was put under the same key before is replaced, so that
                putting twice is the same as putting once.

        Raises:
            InvalidRequest: a picture of that type is not kept.
            DeliveryError: no space, no permission, and the like.
        """

    async def locate(self, picture_id: str) -> ShelvedPicture:
        """The picture of that id. Any text may be asked for.

        Raises:
            NotFound: there is none.
        """

    async def at(self, path: Path) -> ShelvedPicture | None:
        """The picture that lies at `path`, as `ShelvedPicture.path` told it; None when this shelf has none there."""

    async def remove(self, picture_id: str) -> None:
        """Take a picture away for good; whoever reads it just now reads it to its end.

        Raises:
            NotFound: there is none.
        """


class Keys(Protocol):
    """Named keys of the gateway, kept by the hash of what is shown. Each method is one durable transaction.

    Raises:
        StoreError: they could not be read or written; nothing changed.
    """

    async def add(self, key: Key, *, digest: str) -> None:
        """Write down a new key.

        Args:
            key: the key.
            digest: sha256 of what its holder shows, in hex.

        Raises:
            IdempotencyConflict: a key that is not revoked has that name.
        """

    async def list(self) -> Sequence[Key]:
        """All that are not revoked, by name."""

    async def revoke(self, name: str, *, at: datetime) -> Key:
        """Let a key be good for nothing from now on; its name may be given again.

        Raises:
            NotFound: no key is called so, or it is revoked already.
        """

    async def find(self, digest: str) -> Key | None:
        """The key of that digest, as it is now; None when there is none, or it is revoked."""


class Ledger(Protocol):
    """Holds what everything cost. Writing an entry twice is the same as writing it once.

    Raises:
        StoreError: it could not be written; the caller keeps the entry and tries again.
    """

    async def record(self, entries: Sequence[UsageEntry]) -> None:
        """Write entries; mark their predictions as settled."""

    async def entries(
        self, *, since: datetime | None = None, limit: int | None = None
    ) -> Sequence[UsageEntry]:
        """Entries, newest first."""


class Owners(Protocol):
    """Tells living processes from dead ones, so that nobody takes up work that another still does."""

    @property
    def me(self) -> str:
        """The name of this process."""

    def alive(self, owner: str) -> bool:
        """Whether that process still runs. Exact on one machine, also after kill -9 and reused process ids."""


class Observer(Protocol):
    """Is told what happens on the way. Must not raise, must not block; what it raises is swallowed and logged."""

    def notify(self, event: Event) -> None:
        """Take note."""


class Clock(Protocol):
    """Time as an argument."""

    def now(self) -> datetime:
        """Aware, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""
