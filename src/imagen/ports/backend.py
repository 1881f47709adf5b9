"""Who makes pictures: a backend, what it is asked and what it tells, and how one is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Sighting, Status
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret


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
        on_send: Callable[[], None] | None = None,
    ) -> Sighting:
        """Send its create, exactly once. The answer may be held back up to `hold_seconds` until the run has ended.

        Args:
            prediction: with its whole input, but for what is hidden in it.
            hold_seconds: 0 to 60.
            secrets: the values of the hidden parameters: sent, and kept nowhere.
            webhook: the https address that is told of its end; None for none.
            on_send: called right before the first byte is sent: what breaks off before that was not bought.

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
