"""What each tool returns: facts for programs, and a few lines of the same for whoever reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from imagen.agents.words import in_words_of_tools
from imagen.agents.workshop import Offer, Sight, Workshop
from imagen.domain.money import Usd, to_dollars
from imagen.domain.quote import Quote
from imagen.service.choice_shapes import QuoteAnswer, QuoteRange, RecommendAnswer, quote_range
from imagen.service.finish import Outcome
from imagen.service.usage import GroupFacts, UsageReport

_MOST_GROUPS = 20


class MadePicture(msgspec.Struct, frozen=True, kw_only=True):
    """One picture; `path` where it is a file of the caller's, else `url`."""

    path: str | None = None
    url: str | None = None
    width: int
    height: int
    format: str
    bytes: int
    prediction_id: str


class MadePrediction(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction that a call took; `error` tells why it has no picture."""

    id: str
    seed: int | None
    cost_usd: float | None
    seconds: float | None
    error: str | None = None


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be confirmed: the quote, and what to send to confirm it. Nobody knows the price where it is null."""

    quote_usd: float | None
    confirm_cost_usd: float
    how: str


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What came of `generate_image` and `edit_image`; null where something is not known, never zero.

    Attributes:
        status: `made`; with `confirmation_needed` and `declined` nothing was bought.
        model: as it was run.
        pictures: in order.
        predictions: that it took; `prediction_id` and `seed` are those of the first.
        cost_usd: all of it; quoted_usd: the most that it could cost, told before.
        seconds: from sending the first to having the last.
        practice: the emulator painted it, and no model was run.
        cached: the pictures are those of an equal request, and nothing was bought.
        budget_left_usd: what may still be spent on this connection, where it has a budget of its own.
        confirmation: what to confirm, where that is needed.
    """

    status: Literal["made", "confirmation_needed", "declined"]
    model: str
    pictures: list[MadePicture] = []
    predictions: list[MadePrediction] = []
    prediction_id: str | None = None
    seed: int | None = None
    cost_usd: float | None = None
    quoted_usd: float | None = None
    seconds: float | None = None
    practice: bool = False
    cached: bool = False
    budget_left_usd: float | None = None
    confirmation: Confirmation | None = None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model: `price_usd` is what a picture costs as a rule, `quality` a rank from 1 to 5; null is not known."""

    name: str
    aliases: list[str]
    description: str
    price_usd: float | None
    seconds: float | None
    quality: int | None
    abilities: list[str]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Models of the catalog; `found` of `total`."""

    models: list[ModelFacts]
    found: int
    total: int


class ModelSheet(msgspec.Struct, frozen=True, kw_only=True):
    """One model, with the JSON Schema of its own parameters; null where nobody tells it."""

    name: str
    facts: ModelFacts | None
    parameters: dict[str, Any] | None


class PredictionState(msgspec.Struct, frozen=True, kw_only=True):
    """How a prediction stands.

    Attributes:
        status: `queued`, `starting` and `processing` can change.
        pictures: those at hand; links: addresses of those that are elsewhere.
    """

    id: str
    status: str
    model: str
    seed: int | None
    cost_usd: float | None
    charged: bool | None
    error: str | None
    pictures: list[MadePicture]
    links: list[str]


class UsageGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What predictions with something in common came to; `unpriced` of them have no known cost."""

    name: str
    predictions: int
    succeeded: int
    images: int
    cost_usd: float | None
    unpriced: int
    saved_usd: float


class UsageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent."""

    since: str | None
    until: str | None
    by: str
    groups: list[UsageGroup]
    total: UsageGroup


# --- pictures --------------------------------------------------------------------------------------------


def made(
    workshop: Workshop, offer: Offer, outcomes: Sequence[Outcome], *, left: Usd | None, local: bool
) -> Made:
    """What a call came to."""
    first = outcomes[0].prediction
    spent = Usd.total_or_none(outcome.prediction.spent for outcome in outcomes)
    return Made(
        status="made",
        model=first.model,
        pictures=[picture for outcome in outcomes for picture in pictures_of(workshop, outcome)],
        predictions=[
            MadePrediction(
                id=outcome.prediction.id,
                seed=outcome.prediction.seed,
                cost_usd=to_dollars(outcome.prediction.spent),
                seconds=_seconds(outcome.prediction.latency_ms),
                error=None if outcome.error is None else in_words_of_tools(str(outcome.error), local=local),
            )
            for outcome in outcomes
        ],
        prediction_id=first.id,
        seed=first.seed,
        cost_usd=to_dollars(spent),
        quoted_usd=to_dollars(offer.quote.high),
        seconds=max((_seconds(outcome.prediction.latency_ms) or 0.0 for outcome in outcomes), default=None),
        practice=first.practice,
        cached=all(outcome.prediction.reused for outcome in outcomes),
        budget_left_usd=to_dollars(left),
    )


def pictures_of(workshop: Workshop, outcome: Outcome) -> list[MadePicture]:
    """The pictures of one prediction that are at hand."""
    return [
        MadePicture(
            **workshop.place(kept),
            width=kept.facts.width,
            height=kept.facts.height,
            format=kept.facts.format,
            bytes=kept.facts.size_bytes,
            prediction_id=outcome.prediction.id,
        )
        for kept in outcome.pictures
    ]


def told_made(found: Made) -> str:
    """The same in words."""
    return "\n".join(_told_made(found))


def _told_made(found: Made) -> Iterator[str]:
    many = _many(len(found.pictures), "picture")
    price = "for nothing: it was made before" if found.cached else f"for {_dollars(found.cost_usd)}"
    if found.practice:
        price = "as practice: the emulator painted it"
    took = "" if found.seconds is None else f" in {found.seconds:g} s"
    yield f"Made {many} with {found.model} {price}{took}."
    for picture in found.pictures:
        where = picture.path or picture.url
        yield f"{where} ({picture.width}x{picture.height} {picture.format}, {_size(picture.bytes)})"
    for one in found.predictions:
        seed = "no seed" if one.seed is None else f"seed {one.seed}"
        yield f"Prediction {one.id}, {seed}{'' if one.error is None else f': {one.error}'}"
    if found.budget_left_usd is not None:
        yield f"{_dollars(found.budget_left_usd)} may still be spent on this connection."


def unbought(
    offer: Offer, *, status: Literal["confirmation_needed", "declined"], tool: str, left: Usd | None
) -> Made:
    """Nothing was bought, as it was not confirmed."""
    quote = offer.quote.high
    amount = 0.0 if quote is None else quote.to_json()
    how = f"Ask the user. With their consent call {tool} again with the same arguments and confirm_cost_usd: {amount:g}"
    return Made(
        status=status,
        model=offer.model,
        quoted_usd=to_dollars(quote),
        budget_left_usd=to_dollars(left),
        confirmation=None
        if status == "declined"
        else Confirmation(quote_usd=to_dollars(quote), confirm_cost_usd=amount, how=f"{how}."),
    )


def told_unbought(found: Made, offer: Offer, *, above: Usd) -> str:
    """The same in words."""
    if found.confirmation is None:
        return "Nothing was bought: the user declined."
    return f"Nothing was bought yet. {why_asked(offer, above=above)} {found.confirmation.how}"


def why_asked(offer: Offer, *, above: Usd) -> str:
    """Why something is not bought without asking."""
    model, quote = offer.model, offer.quote
    if quote.high is None:
        return f"Nobody knows what {model} costs, so it is not bought without asking."
    least = "" if quote.low == quote.high else "up to "
    if offer.is_estimate:
        return (
            f"With {model} this costs {least}{quote.high} by an estimate, and may cost more; "
            "that is not bought without asking."
        )
    return f"With {model} this costs {least}{quote.high}; more than {above} is not bought without asking."


def state(workshop: Workshop, sight: Sight, *, local: bool) -> PredictionState:
    """How a prediction stands."""
    return PredictionState(
        id=sight.id,
        status=sight.status,
        model=sight.model,
        seed=sight.seed,
        cost_usd=sight.cost_usd,
        charged=sight.charged,
        error=None if sight.error is None else in_words_of_tools(sight.error, local=local),
        pictures=[] if sight.outcome is None else pictures_of(workshop, sight.outcome),
        links=list(sight.links),
    )


def told_state(found: PredictionState) -> str:
    """The same in words."""
    lines = [f"{found.id}: {found.status}, {found.model}"]
    if found.seed is not None:
        lines[0] += f", seed {found.seed}"
    if found.cost_usd is not None:
        lines[0] += f", {_dollars(found.cost_usd)}"
    lines += [str(picture.path or picture.url) for picture in found.pictures]
    lines += found.links
    if found.error is not None:
        lines.append(found.error)
    return "\n".join(lines)


# --- before it is bought ---------------------------------------------------------------------------------


def told_estimate(found: QuoteAnswer) -> str:
    """A quote in words."""
    return "\n".join(_told_estimate(found))


def _told_estimate(found: QuoteAnswer) -> Iterator[str]:
    many = _many(found.images, "picture")
    price = "nothing, as it would be practice; " if found.practice else ""
    listed = found.listed.to_quote()
    cost = "nobody knows" if listed.high is None and listed.likely is None else str(listed)
    yield f"{many} with {found.model}: {price}{f'with a token {cost}' if found.practice else cost}."
    if found.short_of is not None:
        verdict = "it would wait" if found.short_of.waits else "it would be refused"
        yield f"The budget {found.short_of.budget} has no room: {verdict}; {found.short_of.detail}"
    elif found.ends_in is not None:
        line = f", number {found.position} in line" if found.position else ""
        yield f"Ready in about {found.ends_in:g} s{line}."
    for one in found.cheaper:
        lost = f" ({', '.join(one.lost)})" if one.lost else ""
        yield f"Cheaper: {one.model} for {one.quote.to_quote()}{lost}"


def told_recommendation(found: RecommendAnswer) -> str:
    """A recommendation in words."""
    lines = [f"{found.model}: {found.sentence}"]
    lines += [
        f"Or {one.model}: {_dollars(one.price_usd)} each"
        + ("" if one.quality is None else f", quality {one.quality} of 5")
        for one in found.alternatives
    ]
    return "\n".join(lines)


def told_models(found: ModelList) -> str:
    """Models in words, a line each."""
    if not found.models:
        return f"None of {found.total} models is like that."
    return "\n".join(_told_model(one) for one in found.models)


def _told_model(one: ModelFacts) -> str:
    facts = [_dollars(one.price_usd)]
    if one.seconds is not None:
        facts.append(f"{one.seconds:g} s")
    if one.quality is not None:
        facts.append(f"quality {one.quality} of 5")
    return f"{one.name}: {', '.join(facts + one.abilities)}"


def told_sheet(found: ModelSheet) -> str:
    """A model and its parameters in words."""
    lines = [found.name if found.facts is None else f"{_told_model(found.facts)}. {found.facts.description}"]
    if found.parameters is None:
        return f"{lines[0]}\nIts parameters are not known."
    required = set(found.parameters.get("required", ()))
    for name, told in found.parameters.get("properties", {}).items():
        lines.append(f"- {name}{' (required)' if name in required else ''}: {_told_parameter(told)}")
    return "\n".join(lines)


def _told_parameter(told: dict[str, Any]) -> str:
    parts = [str(told.get("type", "any"))]
    if choices := told.get("enum"):
        parts.append("one of " + ", ".join(map(str, choices)))
    if "minimum" in told or "maximum" in told:
        parts.append(f"{told.get('minimum', '…')} to {told.get('maximum', '…')}")
    if "default" in told:
        parts.append(f"default {told['default']}")
    return "; ".join(parts)


# --- what was spent --------------------------------------------------------------------------------------


def usage_answer(report: UsageReport) -> UsageAnswer:
    """A report with what agents need of it."""
    return UsageAnswer(
        since=None if report.since is None else report.since.isoformat(),
        until=None if report.until is None else report.until.isoformat(),
        by=report.by,
        groups=[_group(one) for one in report.groups],
        total=_group(report.total),
    )


def _group(one: GroupFacts) -> UsageGroup:
    return UsageGroup(
        name=one.name,
        predictions=one.predictions,
        succeeded=one.succeeded,
        images=one.images,
        cost_usd=one.cost_usd,
        unpriced=one.unpriced,
        saved_usd=one.saved_usd,
    )


def told_usage(found: UsageAnswer) -> str:
    """What was spent, in words."""
    shown = found.groups[:_MOST_GROUPS]
    more = len(found.groups) - len(shown)
    lines = [f"{one.name}: {_counted(one)}" for one in shown]
    if more:
        lines.append(f"and {more} more")
    return "\n".join([f"Total: {_counted(found.total)}", *lines])


def _counted(one: UsageGroup) -> str:
    unpriced = f", {one.unpriced} without a known price" if one.unpriced else ""
    made = f"{_many(one.predictions, 'prediction')}, {_many(one.images, 'picture')}"
    return f"{_dollars(one.cost_usd)}, {made}{unpriced}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- words -----------------------------------------------------------------------------------------------


def likely(quote: Quote) -> float | None:
    """What something costs as a rule."""
    found: QuoteRange = quote_range(quote)
    return found.likely_usd


def _dollars(amount: float | None) -> str:
    return "an unknown price" if amount is None else str(Usd.parse(str(amount)))


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else round(milliseconds / 1000, 2)


def _size(count: int) -> str:
    return f"{count / 1024:.0f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:.1f} MiB"
