"""The seams of imagen: what the service asks of the world, and what it may rely on. Read this file first.

Every protocol states its failure contract. Implementations live in `backends`, `store` and `instrumentation`; only
`assembly` chooses among them. Whoever implements a port passes its contract suite in `tests/contract`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from imagen.domain.batch import Batch, Control, Idempotency, Item, ItemStatus, Tally
from imagen.domain.budget import Balance, Budget, Charge, Shortage
from imagen.domain.delivery import Delivery, SigningSecret
from imagen.domain.events import Event
from imagen.domain.feedback import Feedback
from imagen.domain.key import Key
from imagen.domain.limits import AccountState, LineReport, Need, Refusal, Verdict
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.outlook import LimitStanding
from imagen.domain.prediction import Allowance, Prediction, Sighting, Status
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.domain.semaphore import Holder, Lease, Semaphore
from imagen.domain.usage import UsageEntry, UsageQuery, UsageSummary


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
        left_out: what was offered or carried over and is not sent, as the model has no such parameter or does not
            allow the value.
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
    left_out: tuple[str, ...] = ()


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


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """One page of what an account has made, newest first. Instants are those of the service's own clock.

    Attributes:
        shown: those of interest that are on the page, by upstream id, and when they were created, where that is told.
        moved: of these, the ones that do not stand as they were known.
        oldest: when the last one on the page was created; newest: the first one.
        last: whether the list ends here.
    """

    shown: Mapping[str, datetime | None]
    moved: Mapping[str, Sighting]
    newest: datetime | None
    oldest: datetime | None
    last: bool


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
        self,
        prediction: Prediction,
        *,
        hold_seconds: float,
        secrets: Mapping[str, Any],
        webhook: str | None = None,
    ) -> Sighting:
        """Send its create, exactly once. The answer may be held back up to `hold_seconds` until the run has ended.

        Args:
            prediction: with its whole input, but for what is hidden in it.
            hold_seconds: 0 to 60.
            secrets: the values of the hidden parameters: sent, and kept nowhere.
            webhook: the https address that is told of its end; None for none.

        Raises:
            ExchangeFailed, InvalidResponse, BackendBroken: `.delivered` is not "no": it may have been bought. Look for it.
            BackendRejected: it was not bought.
        """

    async def look(self, prediction: Prediction) -> Sighting:
        """Where it stands now. Needs `upstream_id`; repeats itself on faults.

        Raises:
            ModelNotFound: no such prediction in this account.
        """

    async def look_many(
        self, known: Mapping[str, Status | None], *, before: datetime | None = None
    ) -> Glance:
        """One page of the account's list, in one call that is not repeated. What is not on it may exist all the same.

        Args:
            known: the predictions of interest, by upstream id, and how they stood at the last look; those of None are
                told whether they have moved or not.
            before: only what was created before that instant of the service's clock; None means the newest.
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

    def quote(self, prediction: Prediction, *, typical_seconds: float | None = None) -> Quote:
        """What a prediction will cost, told before it is bought. `price` of its end lies within. Never raises.

        Args:
            prediction: the intent, with its whole input.
            typical_seconds: how long such a run was seen to take; None leaves that to the catalog.
        """

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


@runtime_checkable
class WebhookSource(Protocol):
    """What a backend may do besides making predictions: sign what it tells to the `webhook` of a create."""

    async def webhook_secret(self) -> Secret:
        """What the webhooks of this account are signed with, as it is now: `whsec_…`. One call, which costs nothing.

        Raises:
            BackendError: it could not be asked.
        """


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction as the service lists it, whoever made it.

    Attributes:
        model: `owner/name` or `deployments/owner/name`; empty where the service names none that could be run.
        sighting: what the list says of it, without its logs, its instants by the service's clock.
        made_at: when it was created by our own clock, as far as that goes right; None where the list does not tell.
    """

    model: str
    sighting: Sighting
    made_at: datetime | None = None


@runtime_checkable
class Lister(Protocol):
    """What a backend may do besides making predictions: tell what its account has made, by whatever program."""

    def history(self, *, since: datetime) -> AsyncIterator[Sequence[Listed]]:
        """The account's predictions created since an instant, newest first, page by page. Costs nothing.

        Raises:
            GarbledResponse: the list does not come to an end.
            BackendError: it could not be read.
        """

    def could_be(self, listed: Listed, prediction: Prediction) -> bool:
        """Whether that may be what the create of a prediction has bought: the same model, exactly its input."""


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is passed on to the service's API as it is.

    Attributes:
        method: of HTTP.
        path: below the version of the API, with its query, percent-encoded: `/models?cursor=…`.
        headers: those that matter to the service, names in lower case; who calls is told by nobody but the backend.
        body: all of it, or piece by piece.
        size_bytes: of a body in pieces; None where nobody knows yet.
        hurried: whoever asks has another answer ready, and does not wait for a service that is down.
    """

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes | AsyncIterator[bytes] | None = None
    size_bytes: int | None = None
    hurried: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the service answered, whatever it was. Whoever has it reads or closes it.

    Attributes:
        status: of HTTP.
        headers: all of them, names in lower case.
        pieces: the body as it comes; no more is taken from the service than is read here. Raises a `BackendError` when
            it breaks off.
        close: ends it, and with it what is not read yet. Harmless when it is at its end, and twice.
    """

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]]


@runtime_checkable
class Relay(Protocol):
    """What a backend may do besides making predictions: pass calls on to its API, on its account and within its limits."""

    async def relay(self, call: Passage) -> Reply:
        """Make a call. What only reads is made again when the service fails; anything else is sent once.

        A refusal is an answer like any other. An error that the body raises while it is read ends the call, and is
        raised here as it is.

        Raises:
            Unauthenticated: there is no token.
            BackendError: no answer came.
        """

    async def address_of(self, path: str) -> str:
        """The whole address of a path below the version of the API, as the service itself knows it."""


class Backends(Protocol):
    """The configured backends, each built when it is first asked for."""

    def get(self, name: str | None) -> Backend:
        """By name; None means the default one.

        Raises:
            NotFound: none is called so.
            ConfigError: its settings make no sense.
        """

    def of(self, token: Secret) -> Backend:
        """That of a caller's own token.

        Raises:
            Unauthenticated: no token looks like that.
        """

    def names(self) -> Sequence[str]:
        """All of them, in the order of the configuration."""

    def tokenless(self) -> Backend:
        """One that can do what needs no account, such as fetching pictures."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """Whose predictions are meant: those of which all holds that is said here; everybody's where nothing is.

    Attributes:
        account: who pays.
        key: the id of the key that asked for them.
        caller: who asked for them without a key.
    """

    account: str | None = None
    key: str | None = None
    caller: str | None = None


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a long list of predictions, whose ids rise with time.

    Attributes:
        above, below: ids between which it lies; None for no bound.
        limit: how many at most: the newest, or with `rising` the oldest of them.
    """

    above: str | None = None
    below: str | None = None
    limit: int
    rising: bool = False


class PredictionStore(Protocol):
    """Remembers predictions. Each method is one durable transaction: when it returns, kill -9 changes nothing.

    Raises:
        StoreBusy: somebody else held the database too long.
        StoreError: disk full, no permission, damaged file.
    """

    async def add(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> None:
        """Write down a new intent, or one that ended without being bought, with its entry of the ledger.

        Raises:
            StoreError: one of that id is written down already.
        """

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

    async def status(self, prediction_id: str) -> Status | None:
        """Where the one of exactly this id of ours stands; None when there is none. Cheap, however large its input is."""

    async def unfinished(
        self, *, request_key: str | None = None, besides: str | None = None
    ) -> Sequence[Prediction]:
        """Predictions with something left to do, oldest first.

        Args:
            request_key: only those of one request.
            besides: leave out what this owner follows, and what belongs to batches that have not ended.
        """

    async def promised(self, request_key: str) -> Sequence[Prediction]:
        """Unfinished ones of one request that items of batches are made of which have not ended, oldest first."""

    async def take(self, prediction_id: str, *, owner: str, was: str | None) -> bool:
        """Become the owner, if the owner still is `was`. False when somebody was quicker."""

    async def release(self, prediction_id: str, *, owner: str) -> None:
        """Stop being the owner."""

    async def list(self, *, limit: int, status: Status | None = None) -> Sequence[Prediction]:
        """Newest first."""

    async def stretch(self, sight: Sight, stretch: Stretch) -> Sequence[str]:
        """The ids of a part of those that somebody may see, newest first; with `rising` oldest first."""

    async def of_draft(self, draft: str) -> Sequence[Prediction]:
        """The previews of one wish and the finals made of them, oldest first, 1000 at most. Whose they are, the caller checks."""

    async def unsettled(self) -> Sequence[Prediction]:
        """Ended predictions that the ledger does not have yet."""

    async def known_upstream_ids(self, account: str, *, since: datetime) -> frozenset[str]:
        """Upstream ids of this account that are ours already."""

    async def of_upstream(self, account: str, upstream_ids: Sequence[str]) -> Sequence[Prediction]:
        """Those of ours, in any order, that have one of these upstream ids: some hundreds at most."""

    async def unreadable(self) -> Sequence[str]:
        """Ids of predictions that the other methods left out because their rows are damaged, as far as that was noticed."""


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

    async def standing(
        self, need: Need, *, count: int, now: float, line: str, waiting: Mapping[str, int]
    ) -> Sequence[LimitStanding]:
        """How each limit stands that a need asks for, if it came now. Nothing is taken, nobody stands in line for it.

        Args:
            need: what would be asked for.
            count: so many times at once.
            now: the instant.
            line: the name of the line that it would stand in.
            waiting: how many stand in that line before it, by limit; those of other lines are known here.
        """

    async def sweep(self, *, now: float) -> None:
        """Forget what has no meaning any more: ended leases, lines of the dead, rates that nobody used for a day."""


class Budgets(Protocol):
    """Limits on spending, with how each of them stands. What is reserved and settled goes through `Limits` and `PredictionStore`.

    Raises:
        StoreError: the store could not be read or written; nothing changed.
    """

    async def set(self, budget: Budget, *, now: datetime) -> None:
        """Make one, or change it. What was spent before in its present period counts; what is reserved stays so.

        Raises:
            InvalidInput: there are too many.
        """

    async def remove(self, name: str) -> None:
        """Remove one.

        Raises:
            NotFound: none is called so.
        """

    async def list(self, *, now: datetime) -> Sequence[Balance]:
        """How each stands in its present period, by name; of `*` one for each subject that has spent anything.

        Where nobody has, one with the subject `*` itself.
        """

    async def heal(self, *, now: datetime) -> int:
        """Close what is reserved for purchases that have ended already, as a process of an older release does not; how many.

        What stands in the ledger is settled, what ended free of charge or was deleted is voided.
        """

    async def shortage(self, charges: Sequence[Charge], *, now: datetime) -> Shortage | None:
        """The first hard budget that has no room now for all of these together. Reserves nothing."""


class FeedbackStore(Protocol):
    """What callers thought of their pictures.

    Raises:
        StoreError: the store could not be read or written.
    """

    async def put(self, feedback: Feedback) -> Feedback:
        """Write one down in the place of an earlier one of the same prediction, unless that said the same.

        Returns:
            The one that counts.
        """

    async def list(self, *, caller: str | None = None) -> Sequence[Feedback]:
        """Of one caller or of all, the newest first."""

    async def erase(self, *, caller: str | None = None) -> int:
        """Forget all of one caller, or everything; how many that were."""


class UsageSink(Protocol):
    """Another place that has the ledger's entries besides our own database. Writing the same twice changes nothing.

    Attributes:
        name: the same for the same place: the kind and a fingerprint of where it is, without secrets.

    Raises:
        SinkError: it refused, broke, or could not be reached.
    """

    name: str

    async def write(self, entries: Sequence[UsageEntry]) -> None:
        """Write entries, some hundreds at most; those that are there stay as they are. All of them, or an error."""

    async def read(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[UsageEntry]:
        """Entries since an instant, the newest first. None has `kept`, which is told later and stays with us."""

    async def migrate(self) -> None:
        """Make the table, or add what an older one lacks. Doing it again changes nothing."""

    async def aclose(self) -> None:
        """Give back connections."""


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


class RelayedFiles(Protocol):
    """Knows who has uploaded files to the gateway's own account. Each method is one durable transaction.

    Raises:
        StoreError: it could not be written or read.
    """

    async def add(self, file_id: str, *, scope: str, expires_at: datetime, now: datetime) -> None:
        """Remember whose a file is, until it expires. What has expired by `now` is forgotten."""

    async def owner(self, file_id: str, *, now: datetime) -> str | None:
        """The scope that has uploaded a file; None when nobody did, or it has expired."""

    async def of(self, scope: str, *, now: datetime) -> frozenset[str]:
        """The ids of all that a scope has uploaded and that have not expired."""

    async def remove(self, file_id: str) -> None:
        """Forget a file."""


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

    async def ever(self) -> Sequence[Key]:
        """All that there ever were, the revoked ones too, oldest first."""

    async def revoke(self, name: str, *, at: datetime) -> Key:
        """Let a key be good for nothing from now on; its name may be given again.

        Raises:
            NotFound: no key is called so, or it is revoked already.
        """

    async def find(self, digest: str) -> Key | None:
        """The key of that digest, as it is now; None when there is none, or it is revoked."""


class OpenWork(msgspec.Struct, frozen=True):
    """As much of an open batch as whoever works on batches asks for each second, of all of them.

    Attributes:
        batch_id: of the batch.
        owner: who works on it.
        control: what is wanted of it.
        waits: `claim` would find something: of a paused one only what is left to finish.
        left: an item has not ended.
        sealed_token: as in `Batch`; besides what is wanted of it that alone changes.
    """

    batch_id: str
    owner: str | None
    control: Control
    waits: bool
    left: bool
    sealed_token: str | None = None


class BatchStore(Protocol):
    """Remembers batches and their items. Each method is one durable transaction.

    Raises:
        StoreBusy: somebody else held the database too long.
        StoreError: disk full, no permission, damaged file; nothing changed.
    """

    async def add(self, batch: Batch) -> None:
        """Write down a batch that is not accepted yet: nobody sees it, nobody works on it."""

    async def add_items(self, items: Sequence[Item]) -> None:
        """Write down items of one that is not accepted yet.

        Raises:
            StoreError: their batch is not there, or accepted; or one of them was written down before.
        """

    async def accept(
        self, batch: Batch, *, mark: Idempotency | None = None, items: Sequence[Item] | None = None
    ) -> str:
        """From now on it is done, once. The id of the batch that counts.

        With `items`, all that it has, it is written down in the same transaction, and was not added before.

        Its `total`, `quoted`, `unpriced`, `images`, `owner` and `details` are written as they are given here: nobody knew
        them while its items were being written down.

        That is another one when a request with the same idempotency key was quicker; then this one is forgotten.

        Raises:
            IdempotencyConflict: the key came with another body before; this batch is forgotten.
            StoreError: it has fewer or more items than `total` says.
            NotFound: it was never added, or is forgotten.
        """

    async def known(self, scope: str, key: str, *, since: datetime) -> Idempotency | None:
        """What a request with that idempotency key became, if it came after `since`."""

    async def get(self, batch_id: str) -> Batch:
        """An accepted batch by its id, or by a unique beginning of it.

        Raises:
            NotFound: none, or several, begin like that.
        """

    async def of_prediction(self, prediction_id: str) -> Item:
        """The item that a prediction belongs to, or belonged to in an earlier attempt.

        Raises:
            NotFound: it belongs to none.
        """

    async def waiting(self, stretch: Stretch, *, scope: str | None = None) -> Sequence[str]:
        """A part of the predictions of open batches that are not written down yet, by their ids, newest first.

        With `rising` oldest first.

        Args:
            stretch: which part.
            scope: only those of one caller.
        """

    async def places(self, prediction_ids: Sequence[str]) -> Mapping[str, tuple[Batch, Item]]:
        """The batches and items that some predictions belong to, by their ids; those that belong to none are left out."""

    async def list(
        self, *, limit: int, scope: str | None = None, kind: str = "batch", before: str | None = None
    ) -> Sequence[Batch]:
        """Accepted ones, newest first, by their ids.

        Args:
            limit: how many at most.
            scope: only those of one caller.
            kind: `batch` or `single`.
            before: the id after which to go on, towards older ones.
        """

    async def open(self) -> Sequence[Batch]:
        """Accepted ones of every kind that have not ended, oldest first."""

    async def open_work(self) -> Sequence[OpenWork]:
        """What is left to do of accepted ones, oldest first. Cheap, also where thousands are open."""

    async def tally(self, batch_id: str, *, recent_since: datetime) -> Tally:
        """Its items, counted; `recent` are those that ended since then. Who asks knows the `recent_seconds`."""

    async def items(
        self, batch_id: str, *, after: int = -1, limit: int = 100, status: ItemStatus | None = None
    ) -> Sequence[Item]:
        """Its items in their order, those with a larger index than `after`."""

    async def ended_since(self, batch_id: str, sequence: int, *, limit: int) -> Sequence[Item]:
        """Its items that have ended, in the order of their ends, those with a larger sequence."""

    async def take(self, batch_id: str, *, owner: str, was: str | None) -> bool:
        """Become the one who works on it, if that still is `was`. What `was` had claimed is queued again."""

    async def release(self, batch_id: str, *, owner: str) -> None:
        """Stop working on it. What was claimed is queued again; what runs at the service goes on there."""

    async def claim(
        self, batch_id: str, *, owner: str, limit: int, to_finish: bool = False
    ) -> Sequence[Item]:
        """The next queued items, running from now on; none when `owner` does not work on it, or it is not to run.

        Args:
            batch_id: the batch.
            owner: who asks.
            limit: how many at most.
            to_finish: rather what a batch that is not to run has still to do: of a paused one the items of which
                something runs at the service or is to be fetched, of a canceled one all that are queued. None of one
                that is to run.
        """

    async def requeue(self, item: Item) -> None:
        """Queue a running item again, the same attempt of it or another: wish, attempt and cost are as they are given.

        One that does not run, or runs in a later attempt, stays as it is.
        """

    async def end(self, item: Item, *, deliveries: Sequence[Delivery] = ()) -> Item | None:
        """Write down the end of an item, and what is to be told of it, in one transaction. An item ends once.

        The batch ends with `close`, not with its last item.

        Returns:
            The item with its `sequence`; None when it, or this attempt of it, had ended before: then nothing is written.
        """

    async def close(self, batch_id: str, *, at: datetime, deliveries: Sequence[Delivery] = ()) -> bool:
        """End a batch of which no item is left, and write down what is to be told of that.

        Its token is forgotten, and nobody works on it any more. After the last end somebody has to call this, also when
        that was the end of another process.

        Returns:
            True once for each time that it ends: again only when items were tried again. False when an item is left.
        """

    async def control(
        self,
        batch_id: str,
        wanted: Control,
        *,
        at: datetime,
        reason: str | None = None,
        code: str | None = None,
    ) -> Batch:
        """Pause it, let it run, or cancel it. An ended one stays as it is, and a canceled one stays canceled.

        The code of the error that is the reason is kept in its details, as `Remembered.stopped_by`.

        With `CANCEL` its queued items end as canceled, but for those of which something may have been bought, by somebody
        who then died: `claim` hands those out, so that they are stopped.

        Raises:
            NotFound: no accepted one has that id.
        """

    async def cancel_queued(self, batch_id: str, *, at: datetime) -> int:
        """End what is queued, as `control` does, if the batch still is to be canceled; how many items that were."""

    async def retry(self, batch_id: str, items: Sequence[Item], *, mark: Idempotency | None = None) -> int:
        """Queue ended items again; how many that were. Wish, attempt and cost are as they are given; the end is forgotten.

        Only items that failed, expired or were canceled, and only with a higher attempt than they had; the others stay
        as they are. The batch is open again then, and is to run. With a mark that came before nothing happens again.

        Raises:
            NotFound: no accepted batch has that id.
            IdempotencyConflict: the key came with another body before.
        """

    async def seal(self, batch_id: str, sealed_token: str) -> None:
        """Write down the encrypted token of an open batch: its caller has brought it once more. An ended one needs none."""

    async def load(self, scope: str) -> tuple[int, int]:
        """How many accepted batches of every kind a caller has that have not ended, and how many items are left in them."""

    async def sweep(self, *, before: datetime) -> None:
        """Forget batches that were never accepted and idempotency keys, both of before then."""


Give = Callable[[Batch, Sequence[Item]], None]
"""Hands a batch over that is accepted, with all its items, as they are written down."""


class WorkQueue(Protocol):
    """Hands out the items of batches, to one worker each, until they have ended."""

    def wake(self) -> None:
        """There is new work, or something else is wanted of it."""

    def reserved(self, batch: Batch) -> AbstractContextManager[Give | None]:
        """Keep a place for a batch that is being accepted, so that nobody has to look for it afterwards.

        Gives None where it is not for this process, or has no room here. Else it may be written down as this process's own,
        with all its items running, and has to be handed over then, within the block.
        """

    async def run(
        self,
        work: Callable[[Batch, Item], Coroutine[Any, Any, float | None]],
        *,
        emptied: Callable[[Batch], Awaitable[bool]],
    ) -> None:
        """Hand out items until cancelled.

        Args:
            work: does what an item needs; it may have to do that again, after a crash. Cancelled, it leaves what runs
                at the service to go on there, unless the batch is to be canceled. What it returns, where that is
                something, are seconds for which nothing more of the batch is handed out.
            emptied: told when nothing of a batch waits or is being worked on here; says whether it has ended.
        """


class Outbox(Protocol):
    """Deliveries that wait, and those of the past. Each method is one durable transaction.

    Raises:
        NotFound: no delivery has that id.
        StoreError: the store could not be read or written.
    """

    async def put(self, deliveries: Sequence[Delivery]) -> None:
        """Write down deliveries that are due."""

    async def due(self, *, now: datetime, limit: int) -> Sequence[Delivery]:
        """Those whose turn it is, a few of each host: of each subject and address only the first that is not done."""

    async def done(self, delivery: Delivery, *, now: datetime) -> Delivery | None:
        """Write down what came of an attempt. One that was taken before stays so.

        What failed before somebody asked for it to be sent again says nothing about the new day, and is not written.

        Returns:
            The one whose turn it is now in the same line, if it is due.
        """

    async def list(self, *, limit: int, scope: str | None = None, failed: bool = False) -> Sequence[Delivery]:
        """Newest first; with `failed` only those that were given up or have failed at least once and wait."""

    async def retry(self, delivery_id: str, *, now: datetime) -> Delivery:
        """Let one be sent again now, also one that was given up; its day begins anew."""

    async def waiting(self) -> int:
        """How many are still to be taken."""

    async def secrets(self, *, now: datetime) -> Sequence[SigningSecret]:
        """Those that sign now, the newest first; empty before the first rotation."""

    async def rotate(
        self, secret: str, *, now: datetime, overlap_seconds: float, first: bool = False
    ) -> SigningSecret:
        """Add a new one; the others retire after the overlap at the latest.

        Args:
            secret: as it is kept.
            now: since when it signs.
            overlap_seconds: how long the others sign beside it.
            first: only when there is none.

        Returns:
            The one that signs from now on.
        """

    async def sweep(self, *, before: datetime) -> None:
        """Forget deliveries that were done before then."""


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a prediction made that may be asked for again.

    Attributes:
        key: of the request: account, model and canonical input.
        prediction_id: the one that was paid for; seed: its own.
        pictures: file names in the folder of the cache, in order.
        media_types, size_bytes: of the pictures.
        created_at, used_at: when it was made, and last asked for.
    """

    key: str
    prediction_id: str
    model: str
    version: str | None
    seed: int | None
    pictures: tuple[str, ...]
    media_types: tuple[str, ...]
    size_bytes: int
    created_at: datetime
    used_at: datetime


class CacheIndex(Protocol):
    """Knows what is in the cache of pictures. Each method is one durable transaction.

    Raises:
        StoreError: the store could not be read or written.
    """

    async def find(self, key: str, *, now: datetime) -> CacheEntry | None:
        """The entry under that key; it counts as used now."""

    async def put(self, entry: CacheEntry) -> None:
        """Write down an entry; one of the same key is replaced."""

    async def remove(self, key: str) -> None:
        """Forget an entry."""

    async def oldest(self, *, above_bytes: int) -> Sequence[CacheEntry]:
        """The least recently used ones, as many as have to go so that the rest has at most that size."""

    async def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""


class RunTimes(Protocol):
    """What was learned about how long models run. Each method is one durable transaction."""

    async def recall(self) -> Mapping[str, Mapping[str, float]]:
        """What is known, by model: names and numbers as `remember` had them."""

    async def remember(self, learned: Mapping[str, Mapping[str, float]]) -> None:
        """Replace what is known of these models."""


class Sealer(Protocol):
    """Encrypts what must be kept and read by nobody else."""

    def seal(self, secret: Secret) -> str:
        """Encrypted, and sure to be noticed when somebody changes it."""

    def unseal(self, sealed: str) -> Secret:
        """What was sealed.

        Raises:
            ConfigError: it was sealed with another key, or changed since.
        """


class StoreCondition(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the store takes what is to be written down.

    Attributes:
        state: ok. busy: another process holds it. full: its disk, or its quota, has no room. failing: it fails for another
            reason.
        since: when that was noticed first.
        detail: one sentence, where it is not well.
    """

    state: Literal["ok", "busy", "full", "failing"]
    since: datetime
    detail: str | None = None


class Pulse(Protocol):
    """Knows how the store is: from what is written anyway, and from a write of its own where that was too long ago."""

    @property
    def last(self) -> StoreCondition:
        """How it was when it was used last. Asks nothing."""

    async def feel(self, *, within_seconds: float) -> StoreCondition:
        """How it is now. A write that has no answer within that time counts as one that waits for another process."""


class WorkStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Durable work that is not done, counted over all processes.

    Attributes:
        batches_running, batches_paused: batches that have not ended, without predictions that were asked for by themselves.
        items_queued, items_running: of those and of these.
        deliveries_waiting: events that are still to be taken; deliveries_failing: those of them that failed before.
    """

    batches_running: int = 0
    batches_paused: int = 0
    items_queued: int = 0
    items_running: int = 0
    deliveries_waiting: int = 0
    deliveries_failing: int = 0


class Standings(Protocol):
    """Counts what is left to do.

    Raises:
        StoreError: the store could not be read.
    """

    async def count_left(self) -> WorkStanding:
        """As it is now."""


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
        """Entries, newest first, with what their callers thought of the pictures."""

    async def page(self, query: UsageQuery, *, before: str | None = None, limit: int) -> Sequence[UsageEntry]:
        """Some of the entries that a query takes, newest first, with what their callers thought of the pictures.

        Args:
            query: which; how they are added up means nothing here.
            before: the id of the last one of the page before; None begins with the newest.
            limit: so many at most.

        Raises:
            NotFound: there is no entry `before`.
        """

    async def summary(self, query: UsageQuery) -> UsageSummary:
        """The entries that a query takes, added up as `domain.usage.summarize` does, without holding them in memory."""

    async def unsunk(self, sink: str, *, limit: int) -> Sequence[UsageEntry]:
        """Entries that a sink does not have yet, the oldest first; then those that only another sink has.

        Without those that it refused.
        """

    async def count_unsunk(self, sink: str) -> int:
        """How many entries a sink does not have yet, with those that it refused."""

    async def sunk(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        """It has these now."""

    async def refused(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        """It refuses these: they are passed over until they are offered again."""

    async def count_refused(self, sink: str) -> int:
        """How many entries a sink refused."""

    async def offer_again(self, sink: str) -> None:
        """Pass over nothing any more that a sink refused."""


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
