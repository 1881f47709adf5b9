"""Which model to take: the rule and the points of `domain.choice`, with what the catalog says and what was learned."""

from __future__ import annotations

from imagen.catalog.model import Model
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.choice import Asked, Candidate, choose_by_rule, explain, rank
from imagen.domain.complexity import judge
from imagen.domain.key import scope_of
from imagen.domain.money import Usd
from imagen.domain.preference import Taste
from imagen.domain.request import MAX_PROMPT_CHARACTERS
from imagen.errors import InvalidInput, NotFound, Problem
from imagen.service.choice_shapes import RecommendAnswer, model_choice, prompt_points
from imagen.service.prices import PriceBook
from imagen.service.quotes import makes_pictures
from imagen.service.taste import Tastes

MOST_ALTERNATIVES = 4
_EDITS = frozenset({"edit", "mask"})


class Recommender:
    """Recommends models. Buys nothing.

    Args:
        prices: knows models, prices and times.
        tastes: knows what callers kept.
    """

    def __init__(self, *, prices: PriceBook, tastes: Tastes) -> None:
        self._prices = prices
        self._tastes = tastes

    async def recommend(
        self,
        *,
        budget: Usd,
        iterations: int,
        high: bool = False,
        prompt: str | None = None,
        needs: frozenset[str] = frozenset(),
        within_seconds: float | None = None,
        caller: Caller = UNKNOWN,
        models: frozenset[str] = frozenset(),
    ) -> RecommendAnswer:
        """Which model to take.

        Args:
            budget: for all of it.
            iterations: how many pictures that is to pay for.
            high: high quality is wanted.
            prompt: what the pictures are to show, where that is known; it is kept nowhere.
            needs: what the model must be able to do.
            within_seconds: how long a picture may take.
            caller: whose taste counts.
            models: that the caller may use; empty for all.

        Raises:
            InvalidInput: naming the field and what is allowed.
            NotFound: no model can do what is needed.
        """
        if prompt is not None and not 0 < len(prompt) <= MAX_PROMPT_CHARACTERS:
            raise InvalidInput([Problem("prompt", f"it must have 1 to {MAX_PROMPT_CHARACTERS} characters")])
        asked = Asked(
            budget=budget,
            iterations=iterations,
            high=high,
            needs=needs,
            within_seconds=within_seconds,
            complexity=None if prompt is None else judge(prompt),
        )
        asked.check()
        await self._prices.recall()
        taste = await self._tastes.taste(caller.name)
        ranked = rank(asked, self._candidates(asked, taste, models))
        if not ranked:
            what = f"can do {' and '.join(sorted(needs))}" if needs else "makes pictures of a prompt"
            raise NotFound(
                f"no model {'that you may use' if models else 'of the catalog'} is known that {what}",
                hint="`imagen models` shows what each can do; ask for less.",
            )
        return RecommendAnswer(
            model=ranked[0].model,
            sentence=explain(asked, ranked),
            each_usd=asked.each.to_json(),
            rule=choose_by_rule(asked),
            choice=model_choice(ranked[0]),
            alternatives=[model_choice(one) for one in ranked[1 : 1 + MOST_ALTERNATIVES]],
            prompt=None if asked.complexity is None else prompt_points(asked.complexity),
            learning=self._tastes.learns,
        )

    def _candidates(self, asked: Asked, taste: Taste | None, models: frozenset[str]) -> list[Candidate]:
        allowed = {one.lower() for one in models}
        kind = None if asked.complexity is None else asked.complexity.kind
        edits = bool(asked.needs & _EDITS)
        return [
            self._candidate(model, taste, kind, edits=edits)
            for model in self._prices.catalog
            if (not allowed or scope_of(model.ref).lower() in allowed)
            and asked.needs <= model.abilities
            and makes_pictures(model, edits=edits)
        ]

    def _candidate(self, model: Model, taste: Taste | None, kind: str | None, *, edits: bool) -> Candidate:
        return Candidate(
            model=model.name,
            price=self._prices.picture(model, edits=edits).likely,
            seconds=self._prices.seconds_of(model),
            quality=model.quality,
            abilities=frozenset(model.abilities),
            preference=None if taste is None else taste.of(model.name, kind),
        )
