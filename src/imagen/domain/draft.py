"""Cheap pictures to choose from: what their final is going to be, and what choosing among them saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from imagen.domain.money import Usd
from imagen.domain.secret import is_secret_name

MOST_PREVIEWS = 16
"""Of one call; more than that nobody compares."""


class FinalWish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for when previews were made instead: all that is kept of it, besides prompt and seed.

    Attributes:
        model: `owner/name`, with a version where one was asked for.
        width, height, aspect_ratio, steps, negative_prompt, output_format: as in `GenerationRequest`.
        input_image: an address or a data URI; input_file: a file of the user's own, absolute.
        options, text_options: the model's own parameters, without those that are secret.
        preset: the named set of inputs; offers: what it said then.
        plain: as in `GenerationRequest`.
    """

    model: str
    width: int | None = None
    height: int | None = None
    aspect_ratio: str | None = None
    steps: int | None = None
    negative_prompt: str | None = None
    output_format: str | None = None
    input_image: str | None = None
    input_file: str | None = None
    options: dict[str, Any] = {}
    text_options: dict[str, str] = {}
    preset: str | None = None
    offers: dict[str, Any] = {}
    plain: bool = False


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What previews and the finals made of them came to.

    Attributes:
        previews, finals: how many pictures; previews_cost, finals_cost: all of them; None where a price is not known.
        each: what one final costs.
    """

    previews: int
    finals: int
    previews_cost: Usd | None
    finals_cost: Usd | None
    each: Usd | None

    @property
    def instead(self) -> Usd | None:
        """What as many finals as there are previews would have cost; None where nobody knows."""
        return None if self.each is None else self.each * self.previews

    @property
    def saved(self) -> Usd | None:
        """The difference; below zero where choosing cost more than it saved, None where a price is not known."""
        if self.instead is None or self.previews_cost is None or self.finals_cost is None:
            return None
        return self.instead - self.previews_cost - self.finals_cost

    def __str__(self) -> str:
        made = f"{_count(self.previews, 'preview')} {_cost(self.previews_cost)} + {_count(self.finals, 'final')} {_cost(self.finals_cost)}"
        if self.saved is None:
            return made
        many = f"{_count(self.previews, 'final')} would have cost {self.instead}"
        return f"{made}; {many}: {saving_line(self.saved)}"


def saving_line(saved: Usd) -> str:
    """What choosing did to the cost: `saved $0.03`, or `cost $0.02 more` where it is below zero."""
    return f"saved {saved}" if saved >= Usd(0) else f"cost {saved * -1} more"


def without_secrets(options: Mapping[str, Any], *, secret: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Parameters that may be written down: none that is called like a secret, or is known as one."""
    return {name: value for name, value in options.items() if name not in secret and not is_secret_name(name)}


def _count(number: int, what: str) -> str:
    if number == 1:
        return what if what == "final" else f"1 {what}"
    return f"{number} {what}s"


def _cost(cost: Usd | None) -> str:
    return "of unknown price" if cost is None else str(cost)
