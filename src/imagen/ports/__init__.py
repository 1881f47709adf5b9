"""The seams of imagen: what the service asks of the world, and what it may rely on. Read this package first.

Every protocol states its failure contract. Implementations live in `backends`, `store` and `instrumentation`; only
`assembly` chooses among them. Whoever implements a port passes its contract suite in `tests/contract`.

    backend.py         Backend, Backends           who makes pictures
    backend_extras.py  Relay, Lister, …            what one may do besides
    predictions.py     PredictionStore, RunTimes   what was bought, and is to be bought
    batches.py         BatchStore                  many of these, accepted together
    work.py            WorkQueue, Outbox, …        who does what waits, and what is left of it
    limits.py          Limits, Semaphores, …       who may go now
    money.py           Budgets, Ledger, UsageSink  what may be spent, and what was
    pictures.py        PictureShelf, CacheIndex, … files that are kept
    callers.py         Keys, Sealer, …             what is kept of those who call
    process.py         Clock, Owners, Pulse, …     this process and its surroundings

Everybody imports the names from here; the files are for reading.
"""

from __future__ import annotations

from imagen.ports.backend import Backend, Backends, Fetched, Glance, Plan
from imagen.ports.backend_extras import (
    Listed,
    Lister,
    ModelDescription,
    ModelSource,
    Passage,
    Relay,
    Reply,
    WebhookSource,
)
from imagen.ports.batches import BatchStore, OpenWork, TellsEnds
from imagen.ports.callers import FeedbackStore, Keys, Sealer
from imagen.ports.limits import CallBudget, Limits, Semaphores
from imagen.ports.money import Budgets, Ledger, UsageSink
from imagen.ports.pictures import CacheEntry, CacheIndex, PictureShelf, RelayedFiles, ShelvedPicture
from imagen.ports.predictions import PredictionStore, RunTimes, Sight, Stretch
from imagen.ports.process import Clock, Notify, Observer, Owners, Pulse, StoreCondition
from imagen.ports.work import Begun, Give, Outbox, Standings, Work, WorkQueue, WorkStanding

__all__ = [
    "Backend",
    "Backends",
    "BatchStore",
    "Begun",
    "Budgets",
    "CacheEntry",
    "CacheIndex",
    "CallBudget",
    "Clock",
    "FeedbackStore",
    "Fetched",
    "Give",
    "Glance",
    "Keys",
    "Ledger",
    "Limits",
    "Listed",
    "Lister",
    "ModelDescription",
    "ModelSource",
    "Notify",
    "Observer",
    "OpenWork",
    "Outbox",
    "Owners",
    "Passage",
    "PictureShelf",
    "Plan",
    "PredictionStore",
    "Pulse",
    "Relay",
    "RelayedFiles",
    "Reply",
    "RunTimes",
    "Sealer",
    "Semaphores",
    "ShelvedPicture",
    "Sight",
    "Standings",
    "StoreCondition",
    "Stretch",
    "TellsEnds",
    "UsageSink",
    "WebhookSource",
    "Work",
    "WorkQueue",
    "WorkStanding",
]
