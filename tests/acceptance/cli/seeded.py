"""Predictions and entries of the ledger as earlier runs may have left them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from imagen.domain.identifiers import new_id
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.usage import UsageEntry

SCHNELL = "black-forest-labs/flux-schnell"


def now() -> datetime:
    return datetime.now(UTC)


def entry(**facts: Any) -> UsageEntry:
    """An entry of the ledger; `ago` is how long before now."""
    at = now() - facts.pop("ago", timedelta(0))
    usual = {
        "id": new_id("pred", at),
        "created_at": at,
        "backend": "flux-schnell-replicate",
        "model": SCHNELL,
        "seed": 7,
        "prompt_hash": "ab" * 32,
        "latency_ms": 1500,
        "cost": Usd(3000),
        "caller": "ada",
        "outcome": "succeeded",
        "images": 1,
    }
    return UsageEntry(**usual | facts)


def prediction(**facts: Any) -> Prediction:
    """A prediction; `ago` is how long before now it was made."""
    at = now() - facts.pop("ago", timedelta(0))
    usual = {
        "id": new_id("pred", at),
        "backend": "flux-schnell-replicate",
        "backend_type": "replicate",
        "account": "none",
        "model": SCHNELL,
        "prompt": "a red fox in the snow",
        "input": {"prompt": "a red fox in the snow", "seed": 7},
        "request_key": "k" * 64,
        "caller": "ada",
        "created_at": at,
        "sent_at": at,
        "deadline_seconds": 60.0,
        "seed": 7,
    }
    return Prediction(**usual | facts)


def succeeded(**facts: Any) -> Prediction:
    """A prediction that ended well and was delivered."""
    at = now() - facts.get("ago", timedelta(0))
    usual = {
        "status": Status.SUCCEEDED,
        "upstream_id": new_id("up", at),
        "output": ("https://replicate.delivery/x/out-0.png",),
        "started_at": at,
        "ended_at": at + timedelta(seconds=2),
        "predict_seconds": 1.2,
        "charged": True,
        "cost": Usd(3000),
        "files": ("/nowhere/fox.png",),
        "delivered_at": at + timedelta(seconds=3),
        "settled_at": at + timedelta(seconds=2),
    }
    return prediction(**usual | facts)
