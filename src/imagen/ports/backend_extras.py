"""What a backend may do besides making predictions. Which of these one does, `isinstance` tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import msgspec

from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction, Sighting
from imagen.domain.secret import Secret


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
