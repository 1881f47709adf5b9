"""What somebody likes: how often they kept what a model made, by kind of prompt. Beta-Bernoulli, nothing more.

Of one kind of prompt the chance that a picture of a model is kept has a Beta distribution. Before anything was said of
that kind it is `Beta(2m, 2(1-m))`, two judgements' worth, where `m = (1 + kept) / (2 + said)` over all *other* kinds of
that caller and model: one half where nothing was said at all. Each picture that was kept adds one to the first number,
each that was rejected one to the second. What counts is how many there were, not their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from imagen.domain.feedback import Feedback

PRIOR_WEIGHT = 2.0
"""What is known of other kinds of prompts weighs as much as so many judgements of this one."""
_WIDEST = math.sqrt(1 / 12)
"""The standard deviation where nothing is known."""


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one caller, one kind of prompt and one model.

    Attributes:
        model: `owner/name`.
        kind: of prompt; None for all kinds together.
        kept, rejected: pictures that were judged.
        alpha, beta: of the Beta distribution of the chance that one is kept.
    """

    model: str
    kind: str | None
    kept: int = 0
    rejected: int = 0
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def judged(self) -> int:
        """How many pictures were judged."""
        return self.kept + self.rejected

    @property
    def mean(self) -> float:
        """The chance that the next one is kept, above 0 and below 1."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def deviation(self) -> float:
        """How far that may be off: the standard deviation."""
        both = self.alpha + self.beta
        return math.sqrt(self.alpha * self.beta / (both * both * (both + 1)))

    @property
    def sureness(self) -> float:
        """From 0, where nothing is known, towards 1."""
        return max(0.0, 1 - self.deviation / _WIDEST)


class Taste:
    """All that one caller has said.

    Args:
        said: their judgements, one for each prediction, in any order.
    """

    def __init__(self, said: Iterable[Feedback]) -> None:
        self._counts: dict[str, dict[str, tuple[int, int]]] = {}
        for one in said:
            kinds = self._counts.setdefault(one.model, {})
            kept, rejected = kinds.get(one.kind, (0, 0))
            kinds[one.kind] = (kept + one.kept, rejected + (not one.kept))

    def of(self, model: str, kind: str | None) -> Preference:
        """What is known of a model.

        Args:
            model: `owner/name`.
            kind: of prompt; None where no prompt is known: then all kinds count as one.
        """
        kinds: Mapping[str, tuple[int, int]] = self._counts.get(model, {})
        kept, rejected = kinds.get(kind, (0, 0)) if kind is not None else _total(kinds.values())
        others = _total(counts for other, counts in kinds.items() if kind is not None and other != kind)
        expected = (1 + others[0]) / (2 + sum(others))
        return Preference(
            model=model,
            kind=kind,
            kept=kept,
            rejected=rejected,
            alpha=PRIOR_WEIGHT * expected + kept,
            beta=PRIOR_WEIGHT * (1 - expected) + rejected,
        )

    def all(self) -> list[Preference]:
        """Every model and kind of which anything was said, what is liked best first."""
        found = [self.of(model, kind) for model, kinds in self._counts.items() for kind in kinds]
        return sorted(found, key=lambda one: (-one.mean, one.model, one.kind or ""))


def _total(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    kept = rejected = 0
    for one in counts:
        kept, rejected = kept + one[0], rejected + one[1]
    return kept, rejected
