"""Where a picture comes from, as answers tell it: its preset, and of tiered work its tier, its parent and its draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from imagen.domain.prediction import Tier


class Made(Protocol):
    """Anything that was made of a wish: a prediction, an order for one, or what is told of them."""

    @property
    def preset(self) -> str | None:
        """As in `Prediction`."""

    @property
    def tier(self) -> Tier | None:
        """As in `Prediction`."""

    @property
    def parent(self) -> str | None:
        """As in `Prediction`."""

    @property
    def draft(self) -> str | None:
        """As in `Prediction`."""


def lineage_of(made: Made, left_out: Sequence[str]) -> dict[str, Any]:
    """The fields of an answer: `preset`, `left_out`, `tier`, `parent` and `draft`."""
    return {
        "preset": made.preset,
        "left_out": list(left_out),
        "tier": made.tier,
        "parent": made.parent,
        "draft": made.draft,
    }
