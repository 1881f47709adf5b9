"""Values for tests, complete but for what a test is about."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fakes.clock import BEGINNING
from imagen.domain.prediction import Prediction, Sighting, Status
from imagen.domain.usage import UsageEntry

FLUX = "black-forest-labs/flux-schnell"


def make_prediction(number: int = 1, **facts: Any) -> Prediction:
    """An intent; `number` makes it another one, a minute later."""
    at = BEGINNING + timedelta(minutes=number)
    given: dict[str, Any] = {
        "id": f"pred_{number:026}",
        "backend": "fast",
        "backend_type": "replicate",
        "account": "account-a",
        "model": FLUX,
        "prompt": "a red fox in the snow",
        "input": {"prompt": "a red fox in the snow", "seed": 7},
        "request_key": "key-a",
        "caller": "kai",
        "created_at": at,
        "sent_at": at,
        "deadline_seconds": 120.0,
        "seed": 7,
    }
    return Prediction(**{**given, **facts})


def make_sighting(status: Status = Status.PROCESSING, **facts: Any) -> Sighting:
    """What upstream says."""
    return Sighting(**{"upstream_id": "up-1", "status": status, **facts})


def make_entry(number: int = 1, **facts: Any) -> UsageEntry:
    """One row of the ledger."""
    given: dict[str, Any] = {
        "id": f"pred_{number:026}",
        "created_at": BEGINNING + timedelta(minutes=number),
        "backend": "fast",
        "model": FLUX,
        "seed": 7,
        "prompt_hash": "ab" * 32,
        "latency_ms": 1200,
        "cost": None,
        "caller": "kai",
        "outcome": "succeeded",
        "images": 1,
    }
    return UsageEntry(**{**given, **facts})
