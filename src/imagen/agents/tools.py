"""The tools: what they are called, what they do, and what agents may expect of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from imagen.agents import answers, arguments
from imagen.agents.answers import Made, ModelFacts, ModelList, ModelSheet, PredictionState, UsageAnswer
from imagen.agents.money import Purse, needs_consent
from imagen.agents.progress import Progress
from imagen.agents.workshop import Offer, Workshop
from imagen.catalog.model import Model
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd, read_dollars
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.pictures import thumbnail
from imagen.service.choice_shapes import QuoteAnswer, RecommendAnswer
from imagen.service.finish import Outcome


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """One caller's tools.

    Attributes:
        workshop: makes the pictures.
        confirm_above: so much is bought without asking.
        purse: of the connection.
        local: pictures are files on the caller's machine.
        resumes: an unfinished prediction of the very same request is taken up before a new one is bought.
    """

    workshop: Workshop
    confirm_above: Usd
    purse: Purse
    local: bool
    resumes: bool


class Call(Protocol):
    """One call of a tool, and whoever made it.

    Attributes:
        watched: whether somebody looks at its progress.
    """

    watched: bool

    @property
    def progress(self) -> Progress:
        """What is told of it on the way."""

    async def consents(self, question: str, quote: Quote) -> bool | None:
        """Whether the user agrees to pay that; None where they cannot be asked from here."""


class Answer(msgspec.Struct, frozen=True):
    """What a tool returns: words, facts of the type that it announces, and perhaps a small picture (JPEG)."""

    text: str
    facts: msgspec.Struct
    thumbnail: bytes | None = None


Run = Callable[[Desk, Any, Call], Awaitable[Answer]]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool.

    Attributes:
        arguments, answer: what it takes and returns.
        run: does it.
        reads: it changes nothing and costs nothing.
        destroys: it undoes something.
        again: a second call with the same arguments changes nothing more.
        outside: it reaches services beyond this program.
    """

    name: str
    title: str
    description: str
    arguments: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    run: Run
    reads: bool = True
    destroys: bool = False
    again: bool = True
    outside: bool = False


_GENERATE, _EDIT = "generate_image", "edit_image"


# --- pictures --------------------------------------------------------------------------------------------


async def generate_image(desk: Desk, asked: arguments.Generate, call: Call) -> Answer:
    """Make pictures of words."""
    return await _make(desk, asked, call, image=None)


async def edit_image(desk: Desk, asked: arguments.Edit | arguments.EditHere, call: Call) -> Answer:
    """Make pictures of a picture and words."""
    return await _make(desk, asked, call, image=asked.image)


async def _make(desk: Desk, asked: arguments.Generate, call: Call, *, image: str | None) -> Answer:
    request = await _request(desk, asked, image=image)
    output = asked.output if isinstance(asked, arguments.GenerateHere) else None
    offer = await desk.workshop.offer(request, output=output, watched=call.watched)
    if refused := await _unconfirmed(desk, asked, offer, call, tool=_EDIT if image else _GENERATE):
        return refused
    call.progress.runs = offer.runs
    with desk.purse.charge(offer.quote) as charge:
        outcomes = await desk.workshop.carry_out(offer, progress=call.progress)
        charge.cost = Usd.total_or_none(outcome.prediction.spent for outcome in outcomes)
    found = answers.made(desk.workshop, offer, outcomes, left=desk.purse.left, local=desk.local)
    if not found.pictures:
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        if errors:
            raise errors[0]
    small = await _small(outcomes) if asked.thumbnail else None
    return Answer(answers.told_made(found), found, small)


async def _unconfirmed(
    desk: Desk, asked: arguments.Generate, offer: Offer, call: Call, *, tool: str
) -> Answer | None:
    """The answer where something is to be confirmed first and was not; None: it is bought."""
    told = asked.confirm_cost_usd
    consented = None if told is None else read_dollars(told, field="confirm_cost_usd")
    above = desk.confirm_above
    if not needs_consent(offer.quote, is_estimate=offer.is_estimate, above=above, consented=consented):
        return None
    question = f"{answers.why_asked(offer, above=above)} Buy it?"
    agreed = await call.consents(question, offer.quote)
    if agreed:
        return None
    status: Any = "confirmation_needed" if agreed is None else "declined"
    found = answers.unbought(offer, status=status, tool=tool, left=desk.purse.left)
    return Answer(answers.told_unbought(found, offer, above=above), found)


async def _request(desk: Desk, asked: arguments.Picture, *, image: str | None) -> GenerationRequest:
    most = asked.max_cost_usd
    return GenerationRequest(
        prompt=asked.prompt,
        model=desk.workshop.model(asked.model, edits=image is not None),
        width=asked.width,
        height=asked.height,
        aspect_ratio=asked.aspect_ratio,
        seed=asked.seed,
        negative_prompt=asked.negative_prompt,
        count=asked.count,
        input_image=None if image is None else await desk.workshop.image(image),
        options=asked.options,
        output_format=asked.output_format,
        max_cost=None if most is None else read_dollars(most, field="max_cost_usd"),
        resume=desk.resumes,
    )


async def _small(outcomes: Sequence[Outcome]) -> bytes | None:
    """The first picture made small; None where there is none that can be."""
    kept = next((picture for outcome in outcomes for picture in outcome.pictures), None)
    return None if kept is None else await asyncio.to_thread(thumbnail, kept.path)


# --- before ----------------------------------------------------------------------------------------------


async def estimate_cost(desk: Desk, asked: arguments.Estimate) -> Answer:
    """Quote a picture."""
    found = await desk.workshop.estimate(await _request(desk, asked, image=asked.image))
    return Answer(answers.told_estimate(found), found)


async def recommend_model(desk: Desk, asked: arguments.Recommend) -> Answer:
    """Choose a model."""
    found = await desk.workshop.recommend(
        budget=read_dollars(asked.budget_usd, field="budget_usd"),
        iterations=asked.iterations,
        high=asked.quality == "high",
        prompt=asked.prompt,
        needs=frozenset(asked.needs),
        within_seconds=asked.within_seconds,
    )
    return Answer(answers.told_recommendation(found), found)


async def list_models(desk: Desk, asked: arguments.ListModels) -> Answer:
    """Find models."""
    words = (asked.search or "").lower().replace("_", " ").split()
    usable = [model for model in desk.workshop.catalog if desk.workshop.permits(model.ref)]
    found = [model for model in usable if all(word in _text_of(model) for word in words)]
    listed = ModelList(
        models=[await _facts(desk, model) for model in found], found=len(found), total=len(usable)
    )
    return Answer(answers.told_models(listed), listed)


async def describe_model(desk: Desk, asked: arguments.DescribeModel) -> Answer:
    """Tell a model's parameters."""
    ref: ModelRef = desk.workshop.model(asked.model, edits=False)
    known = None if ref.deployment else desk.workshop.catalog.find(ref.base)
    found = ModelSheet(
        name=str(ref),
        facts=None if known is None else await _facts(desk, known),
        parameters=await desk.workshop.describe(ref),
    )
    return Answer(answers.told_sheet(found), found)


def _text_of(model: Model) -> str:
    abilities = " ".join(sorted(model.abilities)).replace("_", " ")
    return " ".join((model.name, *model.aliases, model.description, abilities)).lower()


async def _facts(desk: Desk, model: Model) -> ModelFacts:
    return ModelFacts(
        name=model.name,
        aliases=list(model.aliases),
        description=model.description,
        price_usd=answers.likely(await desk.workshop.price(model.ref)),
        seconds=model.typical_seconds,
        quality=model.quality,
        abilities=sorted(model.abilities),
    )


# --- after -----------------------------------------------------------------------------------------------


async def get_prediction(desk: Desk, asked: arguments.OnePrediction) -> Answer:
    """Look at a prediction."""
    found = answers.state(desk.workshop, await desk.workshop.look(asked.checked_id()), local=desk.local)
    return Answer(answers.told_state(found), found)


async def cancel_prediction(desk: Desk, asked: arguments.OnePrediction) -> Answer:
    """Stop a prediction."""
    found = answers.state(desk.workshop, await desk.workshop.cancel(asked.checked_id()), local=desk.local)
    return Answer(answers.told_state(found), found)


async def usage_report(desk: Desk, asked: arguments.Usage) -> Answer:
    """Add up what was spent."""
    report = await desk.workshop.usage(since=asked.since, until=asked.until, by=asked.by)
    found = answers.usage_answer(report)
    return Answer(answers.told_usage(found), found)


_COSTS = (
    "Costs money. Above a price that is set, or where the price is an estimate or not known, nothing is bought: the "
    "answer then says what it would cost and how to confirm it."
)
_PATHS, _LINKS = "saves them as files and returns their paths", "keeps them and returns links"


def _heedless(run: Callable[[Desk, Any], Awaitable[Answer]]) -> Run:
    """A tool that has nothing to tell or to ask on the way."""

    async def called(desk: Desk, asked: Any, _: Call) -> Answer:
        return await run(desk, asked)

    return called


def _makers(kept: str, generates: type[msgspec.Struct], edits: type[msgspec.Struct]) -> tuple[Tool, Tool]:
    """The tools that buy pictures: what becomes of those, and what the two take."""

    def maker(name: str, title: str, makes: str, takes: type[msgspec.Struct], run: Run) -> Tool:
        return Tool(
            name=name,
            title=title,
            description=f"{makes} {_COSTS}",
            arguments=takes,
            answer=Made,
            run=run,
            reads=False,
            again=False,
            outside=True,
        )

    return (
        maker(
            _GENERATE,
            "Generate an image",
            f"Makes pictures from a prompt, {kept}, with model, seed and price.",
            generates,
            generate_image,
        ),
        maker(
            _EDIT,
            "Edit an image",
            f"Makes pictures from a picture and a prompt that says what to change, {kept}.",
            edits,
            edit_image,
        ),
    )


_EVERYWHERE = (
    Tool(
        name="estimate_cost",
        title="Estimate the cost",
        description="What generate_image or edit_image would cost with these arguments, when it would be ready, and "
        "which models are cheaper. Buys nothing.",
        arguments=arguments.Estimate,
        answer=QuoteAnswer,
        run=_heedless(estimate_cost),
        outside=True,
    ),
    Tool(
        name="recommend_model",
        title="Recommend a model",
        description="Which model to take for a budget and a number of pictures, and why. Buys nothing.",
        arguments=arguments.Recommend,
        answer=RecommendAnswer,
        run=_heedless(recommend_model),
    ),
    Tool(
        name="list_models",
        title="List models",
        description="Models with price, speed, quality and abilities.",
        arguments=arguments.ListModels,
        answer=ModelList,
        run=_heedless(list_models),
    ),
    Tool(
        name="describe_model",
        title="Describe a model",
        description="One model with the parameters that it takes in options.",
        arguments=arguments.DescribeModel,
        answer=ModelSheet,
        run=_heedless(describe_model),
        outside=True,
    ),
    Tool(
        name="get_prediction",
        title="Look at a prediction",
        description="How a prediction stands: status, price, error, where its pictures are.",
        arguments=arguments.OnePrediction,
        answer=PredictionState,
        run=_heedless(get_prediction),
    ),
    Tool(
        name="cancel_prediction",
        title="Cancel a prediction",
        description="Stops a prediction that is under way. What ran so far may be billed. One that has ended stays.",
        arguments=arguments.OnePrediction,
        answer=PredictionState,
        run=_heedless(cancel_prediction),
        reads=False,
        destroys=True,
        outside=True,
    ),
    Tool(
        name="usage_report",
        title="Report usage",
        description="What was made and what it cost, added up for a period.",
        arguments=arguments.Usage,
        answer=UsageAnswer,
        run=_heedless(usage_report),
    ),
)
_LOCAL = (*_makers(_PATHS, arguments.GenerateHere, arguments.EditHere), *_EVERYWHERE)
_OVER_HTTP = (*_makers(_LINKS, arguments.Generate, arguments.Edit), *_EVERYWHERE)


def tools(*, local: bool) -> tuple[Tool, ...]:
    """All tools. `local`: pictures are files on the caller's machine, and may be taken from there."""
    return _LOCAL if local else _OVER_HTTP
