"""Estimates, recommendations and preferences as faces show them: the same JSON over HTTP and on the command line."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from imagen.domain.choice import Choice
from imagen.domain.complexity import Complexity, Kind
from imagen.domain.feedback import Feedback
from imagen.domain.money import from_dollars, to_dollars
from imagen.domain.preference import Preference
from imagen.domain.quote import Quote
from imagen.errors import BudgetExceeded

Verdict = Literal["keep", "reject"]
_Dollars = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class QuoteRange(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars. What is not known is null, never zero.

    Attributes:
        low_usd: it costs at least that.
        likely_usd: what it costs as a rule.
        high_usd: it costs at most that; so much is reserved.
    """

    low_usd: _Dollars | None
    likely_usd: _Dollars | None
    high_usd: _Dollars | None

    def to_quote(self) -> Quote:
        """The same in whole micro-dollars."""
        return Quote(
            low=from_dollars(self.low_usd),
            likely=from_dollars(self.likely_usd),
            high=from_dollars(self.high_usd),
        )


class BudgetRefusal(msgspec.Struct, frozen=True, kw_only=True):
    """A budget that has no room.

    Attributes:
        budget: its name.
        left_usd: what is left of it now, what is reserved counted as spent.
        renews_at: when it renews; null where it does not.
        waits: it may fit when what is under way has cost less than was reserved: it would wait, and not be refused.
        detail: a sentence for people; hint: what to do next.
    """

    budget: str
    left_usd: float
    renews_at: datetime | None
    waits: bool
    detail: str
    hint: str | None

    def to_error(self, quote: Quote) -> BudgetExceeded:
        """The refusal of what would cost `quote`."""
        return BudgetExceeded(
            self.detail,
            hint=self.hint,
            budget=self.budget,
            quote_micros=None if quote.high is None else quote.high.micros,
            renews_at=self.renews_at,
        )


class CheaperModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that does the same for less.

    Attributes:
        model: `owner/name`.
        quote: for as many pictures.
        seconds: how long a run takes as a rule; null where nobody knows.
        quality: 1 to 5; null where nobody wrote it down.
        lost: what is lost with it, in words.
    """

    model: str
    quote: QuoteRange
    seconds: float | None
    quality: int | None
    lost: list[str]


class FinalQuote(msgspec.Struct, frozen=True, kw_only=True):
    """The final that is to be made of one of the previews.

    Attributes:
        model: as it would be run.
        quote: what it would cost here.
    """

    model: str
    quote: QuoteRange


class QuoteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a wish would cost and when it would be ready, if it came now. Nothing was bought.

    Attributes:
        model: as it would be run.
        quote: what it would cost here: nothing where it would be practice.
        listed: what it costs with an account, by the catalog's prices.
        images: how many pictures it gives; predictions: in how many runs.
        position: its place in line, from 1; 0: it would go at once.
        limit: what it would wait for: `account`, `key`, `semaphore:NAME` or `budget:NAME`; null: nothing.
        seconds: how long one run takes as a rule; null where nobody knows.
        starts_in, ends_in: seconds until its first run would be sent, and until the last would have ended; null where nobody
            can tell.
        starts_at, ends_at: the same as instants.
        short_of: the first budget that has no room for it; null: all have.
        cheaper: models that do it for less, the least loss first, three at most.
        preset: the named set of inputs that is laid under it.
        left_out: what that preset offers and the model does not take.
        practice: it would be practice, and no model is run.
        final: with `final`, the final that comes after these previews; it is no part of the numbers above, and
            `short_of` looks for room for all.
    """

    model: str
    quote: QuoteRange
    listed: QuoteRange
    images: int
    predictions: int
    position: int
    limit: str | None
    seconds: float | None
    starts_in: float | None
    ends_in: float | None
    starts_at: datetime | None
    ends_at: datetime | None
    short_of: BudgetRefusal | None
    cheaper: list[CheaperModel]
    preset: str | None = None
    left_out: list[str] = []
    practice: bool = False
    final: FinalQuote | None = None


class PromptPoints(msgspec.Struct, frozen=True, kw_only=True):
    """How much a prompt asks of a model.

    Attributes:
        score: 0 to 100.
        parts: its points by part.
        kind: what sort of picture it is.
        needs: abilities that its words ask for.
    """

    score: int
    parts: dict[str, int]
    kind: Kind
    needs: list[str]


class ModelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A model and what speaks for it.

    Attributes:
        model: `owner/name`.
        price_usd: what a picture is likely to cost; null where nobody knows.
        seconds: how long a picture takes as a rule; null where nobody knows.
        quality: 1 to 5; null where nobody wrote it down.
        score: its points; parts: by part.
        obstacle: `dear`, `slow` or `unpriced` for one that does not fit; null for one that does.
        kept, judged: how many pictures of it the caller kept, of how many, for this kind of prompt.
    """

    model: str
    price_usd: float | None
    seconds: float | None
    quality: int | None
    score: float
    parts: dict[str, float]
    obstacle: str | None
    kept: int
    judged: int


class RecommendAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Which model to take, and why.

    Attributes:
        model: the one that is recommended.
        sentence: why, with the numbers.
        each_usd: what the budget leaves for each iteration.
        rule: what the rule of budget and quality takes, whatever else is known.
        choice: the recommended one with its points.
        alternatives: the next ones.
        prompt: how much the prompt asks for; null without one.
        learning: whether what the caller kept is looked at.
    """

    model: str
    sentence: str
    each_usd: float
    rule: str
    choice: ModelChoice
    alternatives: list[ModelChoice]
    prompt: PromptPoints | None
    learning: bool


class FeedbackState(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of one prediction.

    Attributes:
        prediction_id: ours.
        verdict: the last one.
        caller: whose preference it shapes.
        model: `owner/name`.
        kind: of its prompt.
        at: when it was said.
    """

    prediction_id: str
    verdict: Verdict
    caller: str
    model: str
    kind: str
    at: datetime


class PreferenceState(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of one model and one kind of prompt.

    Attributes:
        kind: of prompt.
        model: `owner/name`.
        kept, rejected: how many pictures were.
        chance: that the next one is kept, above 0 and below 1.
        sureness: how sure that is, from 0, where nothing is known, towards 1.
    """

    kind: str
    model: str
    kept: int
    rejected: int
    chance: float
    sureness: float


class PreferenceList(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of a caller.

    Attributes:
        caller: whose preferences they are.
        learning: false: nothing more is written, and recommendations do not look at it.
        count: how many there are.
        preferences: what is liked best first.
        feedback: every judgement behind them, the newest first.
    """

    caller: str
    learning: bool
    count: int
    preferences: list[PreferenceState]
    feedback: list[FeedbackState]


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """Judgements were forgotten.

    Attributes:
        success: always true.
        caller: whose they were.
        erased: how many.
    """

    success: bool
    caller: str
    erased: int


def quote_range(quote: Quote) -> QuoteRange:
    """A quote in dollars."""
    return QuoteRange(
        low_usd=to_dollars(quote.low), likely_usd=to_dollars(quote.likely), high_usd=to_dollars(quote.high)
    )


def prompt_points(complexity: Complexity) -> PromptPoints:
    """A prompt's points."""
    return PromptPoints(
        score=complexity.score, parts=complexity.parts, kind=complexity.kind, needs=sorted(complexity.needs)
    )


def model_choice(choice: Choice) -> ModelChoice:
    """A choice with its points."""
    one = choice.candidate
    return ModelChoice(
        model=one.model,
        price_usd=to_dollars(one.price),
        seconds=None if one.seconds is None else round(one.seconds, 2),
        quality=one.quality,
        score=choice.score,
        parts=choice.parts,
        obstacle=choice.obstacle,
        kept=0 if one.preference is None else one.preference.kept,
        judged=0 if one.preference is None else one.preference.judged,
    )


def feedback_state(said: Feedback) -> FeedbackState:
    """One judgement."""
    return FeedbackState(
        prediction_id=said.prediction_id,
        verdict="keep" if said.kept else "reject",
        caller=said.caller,
        model=said.model,
        kind=said.kind,
        at=said.at,
    )


def preference_state(one: Preference) -> PreferenceState:
    """What was learned of one model and kind."""
    return PreferenceState(
        kind=one.kind or "",
        model=one.model,
        kept=one.kept,
        rejected=one.rejected,
        chance=round(one.mean, 4),
        sureness=round(one.sureness, 4),
    )
