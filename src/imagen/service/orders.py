"""Orders as they are kept: what was checked and chosen when durable work was accepted, exactly as it is to be bought."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

import msgspec

from imagen.decoding import decoder
from imagen.domain.batch import Batch, Control
from imagen.domain.draft import FinalWish
from imagen.domain.identifiers import new_id
from imagen.domain.limits import Patience
from imagen.domain.prediction import Prediction, Tier
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.errors import InvalidInput, Problem
from imagen.ports import Backend, Plan, Sealer
from imagen.service.prepare import Order

PATIENT = Patience(line_seconds=30 * 86_400.0, refusals=1_000_000, refusal_seconds=86_400.0)
"""Work that outlives its caller waits as long as it takes."""


class StoredIntent(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction of an order.

    Attributes:
        seed_field, seed_maximum: the parameter that takes a seed; seed_ours: whether we chose it.
        secrets: parameters that are kept encrypted, as JSON.
    """

    id: str
    model: str
    input: dict[str, Any]
    request_key: str
    created_at: datetime
    deadline_seconds: float
    seed: int | None = None
    destination: dict[str, Any] | None = None
    seed_field: str | None = None
    seed_maximum: int = 2**31 - 1
    seed_ours: bool = False
    typical_seconds: float | None = None
    expected_images: int = 1
    secrets: str | None = None
    quote: Quote = UNKNOWN_PRICE
    prompt_hash: str | None = None


class StoredOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order without what its batch says of all of them: backend, account, caller and lane.

    Attributes:
        interruptions: so often the service itself broke a run of it off since somebody asked for it.
    """

    prompt: str
    intents: tuple[StoredIntent, ...]
    semaphore: str | None = None
    repeat_lost: bool = True
    cache: bool | None = None
    preset: str | None = None
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None
    wished: FinalWish | None = None
    interruptions: int = 0


class SeenIntent(msgspec.Struct, frozen=True):
    """What is shown of a prediction that may not have been bought yet."""

    model: str = ""
    seed: int | None = None
    quote: Quote = UNKNOWN_PRICE


class SeenOrder(msgspec.Struct, frozen=True):
    """What faces show of an order."""

    prompt: str = ""
    intents: tuple[SeenIntent, ...] = (SeenIntent(),)
    preset: str | None = None
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None

    @property
    def model(self) -> str:
        """Of its first prediction."""
        return self.intents[0].model

    @property
    def seed(self) -> int | None:
        """Of its first prediction."""
        return self.intents[0].seed

    @property
    def quote(self) -> Quote:
        """Of all its predictions together."""
        return Quote.total(intent.quote for intent in self.intents)


_ORDERS = decoder(StoredOrder, strict=False)
_SEEN = decoder(SeenOrder, strict=False)


def to_stored(order: Order, *, sealer: Sealer | None) -> bytes:
    """An order as an item keeps it.

    Raises:
        InvalidInput: it has secret parameters, and there is no key to encrypt them with.
    """
    request = order.request
    return msgspec.json.encode(
        StoredOrder(
            prompt=request.prompt,
            intents=tuple(_stored(intent, plan, sealer) for intent, plan in order.intents),
            semaphore=request.semaphore,
            repeat_lost=request.repeat_lost,
            cache=request.cache,
            preset=request.preset,
            tier=request.tier,
            parent=request.parent,
            draft=request.draft,
            wished=request.wished,
        )
    )


def read_order(stored: bytes) -> StoredOrder:
    """What `to_stored` kept.

    Raises:
        ValueError: it is no order.
    """
    return _ORDERS.decode(stored)


def from_stored(stored: bytes, *, batch: Batch, backend: Backend, owner: str, sealer: Sealer | None) -> Order:
    """The order that an item keeps, to be carried out by this process.

    Raises:
        ConfigError: its secrets were encrypted with another key.
        ValueError: it is no order.
    """
    kept = read_order(stored)
    return Order(
        request=GenerationRequest(
            prompt=kept.prompt,
            semaphore=kept.semaphore,
            repeat_lost=kept.repeat_lost,
            cache=kept.cache,
            preset=kept.preset,
            tier=kept.tier,
            parent=kept.parent,
            draft=kept.draft,
            wished=kept.wished,
            resume=False,
            plain=True,
        ),
        backend=backend,
        intents=tuple(
            (_restored(one, order=kept, batch=batch, backend=backend, owner=owner), _plan(one, sealer))
            for one in kept.intents
        ),
        caller=batch.caller,
        lane=batch.lane,
        patience=PATIENT,
        watched=batch.remembered.watched,
        accepted=True,
        paused=batch.control is Control.PAUSE,
    )


def see_order(stored: bytes) -> SeenOrder:
    """As much of a stored order as is shown."""
    return _SEEN.decode(stored)


def prediction_ids(stored: bytes) -> tuple[str, ...]:
    """The ids of the predictions that a stored order takes."""
    return tuple(intent.id for intent in read_order(stored).intents)


def renewed(
    stored: bytes, *, now: datetime, besides: frozenset[str] = frozenset(), reseed: bool = False
) -> bytes:
    """The same order for another attempt: every prediction has a new id, so that it may be bought once more.

    Args:
        stored: as `to_stored` made it.
        now: the moment.
        besides: ids of predictions that have what they should have, and stay.
        reseed: somebody asked for it once more: other seeds are chosen where we chose them, and what the service broke
            off before no longer counts.
    """
    kept = read_order(stored)
    intents = tuple(
        intent if intent.id in besides else _renewed(intent, now, reseed=reseed) for intent in kept.intents
    )
    interruptions = 0 if reseed else kept.interruptions
    return msgspec.json.encode(msgspec.structs.replace(kept, intents=intents, interruptions=interruptions))


def once_more_interrupted(stored: bytes) -> tuple[bytes, int]:
    """The same order after the service itself has broken a run of it off; and how often that has happened by now."""
    kept = read_order(stored)
    count = kept.interruptions + 1
    return msgspec.json.encode(msgspec.structs.replace(kept, interruptions=count)), count


def _stored(intent: Prediction, plan: Plan, sealer: Sealer | None) -> StoredIntent:
    sealed = None
    if plan.secrets:
        if sealer is None:
            raise InvalidInput(
                [
                    Problem(name, "it is a secret, which is kept with the work only encrypted")
                    for name in plan.secrets
                ],
                hint="Set IMAGEN_SECRET_KEY, or ask for this one picture without a batch.",
            )
        sealed = sealer.seal(Secret(msgspec.json.encode(plan.secrets).decode()))
    return StoredIntent(
        id=intent.id,
        model=intent.model,
        input=intent.input,
        request_key=intent.request_key,
        created_at=intent.created_at,
        deadline_seconds=intent.deadline_seconds,
        seed=intent.seed,
        destination=intent.destination,
        seed_field=plan.seed_field,
        seed_maximum=plan.seed_maximum,
        seed_ours=plan.seed_field is not None and plan.input.get(plan.seed_field) is None,
        typical_seconds=plan.typical_seconds,
        expected_images=plan.expected_images,
        secrets=sealed,
        quote=intent.quote,
        prompt_hash=intent.prompt_hash,
    )


def _restored(
    kept: StoredIntent, *, order: StoredOrder, batch: Batch, backend: Backend, owner: str
) -> Prediction:
    return Prediction(
        id=kept.id,
        backend=backend.name,
        backend_type=backend.type,
        account=backend.account if backend.practice else batch.account,
        model=kept.model,
        prompt=order.prompt,
        input=kept.input,
        request_key=kept.request_key,
        caller=batch.caller.name,
        created_at=kept.created_at,
        deadline_seconds=kept.deadline_seconds,
        seed=kept.seed,
        owner=owner,
        destination=kept.destination,
        key=batch.caller.key,
        quote=kept.quote,
        tier=order.tier,
        parent=order.parent,
        preset=order.preset,
        draft=order.draft,
        wished=order.wished,
        prompt_hash=kept.prompt_hash,
    )


def _plan(kept: StoredIntent, sealer: Sealer | None) -> Plan:
    hidden: dict[str, Any] = {}
    if kept.secrets is not None and sealer is not None:
        hidden = msgspec.json.decode(sealer.unseal(kept.secrets).reveal())
    return Plan(
        model=kept.model,
        # As it was checked: a seed of ours is none that was asked for.
        input={
            name: value
            for name, value in kept.input.items()
            if not (kept.seed_ours and name == kept.seed_field)
        },
        identity={},  # it is in the request key, which is kept
        seed_field=kept.seed_field,
        seed_maximum=kept.seed_maximum,
        secrets=hidden,
        deadline_seconds=kept.deadline_seconds,
        typical_seconds=kept.typical_seconds,
        expected_images=kept.expected_images,
    )


def _renewed(kept: StoredIntent, now: datetime, *, reseed: bool) -> StoredIntent:
    renewed_one = msgspec.structs.replace(kept, id=new_id("pred", now), created_at=now)
    if not (reseed and kept.seed_ours and kept.seed_field is not None):
        return renewed_one
    seed = secrets.randbelow(kept.seed_maximum) + 1
    return msgspec.structs.replace(
        renewed_one, input=kept.input | {kept.seed_field: seed}, seed=seed if kept.seed is not None else None
    )
