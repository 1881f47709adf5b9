"""Tiered work: cheap previews of a wish, and finals made of those that somebody picks.

What a preview takes over from the wish, and a final from its preview, is said here; nothing else knows these rules.
Whatever is taken over is `GenerationRequest.carried`: sent where the other model takes it, else left out and told.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from imagen.catalog import Catalog
from imagen.catalog.model import EDIT_KEYS, GUIDE_KEYS, STEPS_KEYS
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.draft import FinalWish, Spent, without_secrets
from imagen.domain.identifiers import new_id
from imagen.domain.limits import Lane, Patience
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.deliver import Destination
from imagen.service.gateway import Gateway
from imagen.service.prepare import Order

_SHAPE = ("width", "height", "aspect_ratio")
_LOOKS = ("negative_prompt", "output_format")
_COMMON = (*_SHAPE, *_LOOKS, "steps")
_IMAGES = EDIT_KEYS + GUIDE_KEYS
_LARGEST_SEED = 2**31 - 1


# --- the rules, pure -------------------------------------------------------------------------------------


def seeds_for(count: int, first: int | None) -> list[int]:
    """The seeds of `count` previews, all different: from `first` on, or by chance."""
    if first is not None:
        return [first + index for index in range(count)]
    found: dict[int, None] = {}
    while len(found) < count:
        found[secrets.randbelow(_LARGEST_SEED) + 1] = None
    return list(found)


def wish_of(request: GenerationRequest, model: ModelRef, *, secret: frozenset[str]) -> FinalWish:
    """What is kept of a wish with its previews, so that its final can be made of one.

    Args:
        request: the wish.
        model: of the final.
        secret: parameters of that model that must not be written down.
    """
    image = request.input_image
    return FinalWish(
        model=str(model),
        input_image=image if isinstance(image, str) else None,
        input_file=str(image.absolute()) if isinstance(image, Path) else None,
        options=without_secrets(request.options, secret=secret),
        text_options=without_secrets(request.text_options, secret=secret),
        preset=request.preset,
        offers=without_secrets(request.offers, secret=secret),
        plain=request.plain,
        **{name: getattr(request, name) for name in _COMMON},
    )


def preview_of(
    request: GenerationRequest,
    *,
    model: ModelRef,
    wished: FinalWish,
    shape: Mapping[str, Any],
    draft: str,
    seed: int | None,
) -> GenerationRequest:
    """A cheap picture of a wish: the same words, the same shape, the same image, the seed that is given.

    Args:
        request: the wish.
        model: the cheap one.
        wished: the wish as it is kept.
        shape: of the picture that the final is going to be.
        draft: what all previews of the wish have in common.
        seed: None lets one be chosen where nothing says it.
    """
    said = {**request.offers, **request.text_options, **request.options}
    said |= {name: value for name in _LOOKS if (value := getattr(request, name)) is not None}
    carried: dict[str, Any] = {name: said[name] for name in _LOOKS if name in said}
    if seed is None:
        seed = request.seed if request.seed is not None else said.get("seed")
    if seed is not None:
        carried["seed"] = seed
    return GenerationRequest(
        prompt=request.prompt,
        model=model,
        input_image=image_of(request),
        carried={**carried, **shape},
        max_cost=request.max_cost,
        deadline_seconds=request.deadline_seconds,
        semaphore=request.semaphore,
        repeat_lost=request.repeat_lost,
        resume=request.resume,
        cache=request.cache,
        plain=request.plain,
        preset=request.preset,
        tier="preview",
        draft=draft,
        wished=wished,
    )


def final_of(preview: Prediction, said: GenerationRequest) -> GenerationRequest:
    """The final of a preview.

    What is said now wins; then what the wish said, as far as it is for the same model; then the preview itself: its
    shape, its negative prompt, its seed.

    Args:
        preview: the picture that was picked.
        said: what is said now; its prompt may be empty, and is the preview's then.

    Raises:
        InvalidInput: nobody said which model makes the final.
    """
    wish = preview.wished
    if said.model is None and wish is None:
        raise InvalidInput(
            [Problem("model", f"{preview.id} is no preview, so it is not known which model makes its final")],
            hint="Name the model.",
        )
    model = said.model or ModelRef.parse(wish.model if wish else "")
    same = wish is not None and ModelRef.parse(wish.model).base == model.base
    kept = {} if wish is None else {name: getattr(wish, name) for name in _COMMON}
    kept = {name: value for name, value in kept.items() if value is not None}
    carried = {
        name: preview.input[name] for name in (*_SHAPE, *_LOOKS) if preview.input.get(name) is not None
    }
    if preview.seed is not None:
        carried["seed"] = preview.seed
    common = {name: value for name in _COMMON if (value := getattr(said, name)) is not None}
    own: dict[str, Any] = {}
    options: dict[str, Any] = {}
    texts: dict[str, str] = {}
    if wish is not None and same:
        gone = _overruled_by(said, common, seeded=preview.seed is not None)
        own, options, texts = (
            {name: value for name, value in values.items() if name not in gone}
            for values in (kept, wish.options, wish.text_options)
        )
    elif wish is not None:
        # Of another model's own words only what this one knows too holds for it.
        words = {**_as_values(wish.text_options), **wish.options, **kept}
        carried |= {name: value for name, value in words.items() if name not in {*_IMAGES, "seed"}}
    options = {name: value for name, value in options.items() if name not in said.text_options}
    options |= said.options
    offers = said.offers if said.preset is not None else {} if wish is None else wish.offers
    return msgspec.structs.replace(
        said,
        **{**own, **common},
        prompt=said.prompt or preview.prompt,
        model=model,
        input_image=said.input_image if said.input_image is not None else _image_of_preview(preview, options),
        options=options,
        text_options={name: text for name, text in texts.items() if name not in options} | dict(said.text_options),
        preset=said.preset if said.preset is not None else None if wish is None else wish.preset,
        offers={name: value for name, value in offers.items() if name != "seed"},
        carried=carried,
        plain=wish.plain if wish is not None and said.plain is False else said.plain,
        tier="final",
        parent=preview.id,
        draft=preview.draft,
        wished=None,
    )  # fmt: skip


def image_of(request: GenerationRequest) -> str | Path | None:
    """The picture that a wish starts from, in whichever way it says so."""
    if request.input_image is not None:
        return request.input_image
    return _first_image({**request.text_options, **request.options})


def spent_on(predictions: Sequence[Prediction], *, each: Usd | None) -> Spent:
    """What a draft came to so far. `each` is what one final costs, where it was made already or is quoted."""
    previews = [one for one in predictions if one.tier == "preview"]
    finals = [one for one in predictions if one.tier == "final"]
    return Spent(
        previews=sum(map(_pictures_of, previews)),
        finals=sum(map(_pictures_of, finals)),
        previews_cost=Usd.total_or_none(one.spent for one in previews),
        finals_cost=Usd.total_or_none(one.spent for one in finals),
        each=each,
    )


def check_picked(prediction: Prediction) -> None:
    """Refuse what shows nobody anything.

    Raises:
        InvalidRequest: it has no picture.
    """
    if prediction.status is not Status.SUCCEEDED:
        raise InvalidRequest(
            f"{prediction.id} has no picture ({prediction.status}), so there is nothing to make a final of",
            hint="Pick one that has succeeded.",
        )


# --- with the world --------------------------------------------------------------------------------------


class Drafts:
    """Makes orders of previews and of finals; tells what a draft has cost. Safe to share between tasks.

    Args:
        store: remembers predictions.
        gateway: prepares orders.
        catalog: knows models.
        clock: tells the time.
        preview_model: the cheap model, by any of its names.
        edit_model: the cheap model for wishes with an input image, where the other takes none.
    """

    def __init__(
        self,
        *,
        store: PredictionStore,
        gateway: Gateway,
        catalog: Catalog,
        clock: Clock,
        preview_model: str,
        edit_model: str,
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._catalog = catalog
        self._clock = clock
        self._preview_model = preview_model
        self._edit_model = edit_model

    def new_draft(self) -> str:
        """A name for what the previews of one wish have in common."""
        return new_id("draft", self._clock.now())

    async def check_final(self, request: GenerationRequest, *, backend: Backend, caller: Caller) -> Order:
        """The final that a wish would be without previews; nothing of it is bought, or written down.

        Raises:
            InvalidRequest, Refused: it cannot be carried out, so that previews of it would be in vain.
        """
        plain = msgspec.structs.replace(request, max_cost=None, resume=False)
        return await self._gateway.prepare(plain, backend=backend, caller=caller)

    def cheap_model(self, request: GenerationRequest, final: ModelRef, *, field: str = "tier") -> ModelRef:
        """The model that makes previews of a wish.

        Args:
            request: the wish.
            final: the model of its final.
            field: how an error names what asked for previews.

        Raises:
            InvalidInput: there is none, or it makes the final too.
        """
        cheap = self._catalog.resolve(self._preview_model)
        if image_of(request) is not None and not self._takes_image(cheap):
            cheap = self._catalog.resolve(self._edit_model)
            if not self._takes_image(cheap):
                problem = Problem(
                    field, f"the wish has an input image, and {cheap} (preview.edit_model) takes none"
                )
                raise InvalidInput([problem], hint="Set preview.edit_model to a cheap model that edits.")
        if cheap.base == final.base:
            raise InvalidInput(
                [Problem(field, f"{final} makes the previews, so it would make the same again as the final")],
                hint="Name a better model for the final, such as flux-dev.",
            )
        return cheap

    async def prepare_preview(
        self,
        request: GenerationRequest,
        final: Order,
        *,
        caller: Caller = UNKNOWN,
        lane: Lane = Lane.INTERACTIVE,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        destination: Destination | None = None,
        draft: str,
        seed: int | None = None,
        watched: bool = False,
        field: str = "tier",
    ) -> Order:
        """One preview of a wish, checked; nothing of it is bought yet.

        `final` is the wish as `check_final` made it; the others are as in `preview_of`, `cheap_model` and
        `Gateway.prepare`.

        Raises:
            InvalidRequest, Refused, ConfigError: it cannot be carried out.
        """
        picture = final.intents[0][0]
        model = ModelRef.parse(picture.model)
        wanted = request.model or model
        known = self._catalog.find(model.base)
        secret = frozenset(one.name for one in (known.parameters if known else None) or () if one.secret)
        preview = preview_of(
            request,
            model=self.cheap_model(request, model, field=field),
            wished=wish_of(request, wanted, secret=secret),
            shape=self._shape_of(picture),
            draft=draft,
            seed=seed,
        )
        return await self._gateway.prepare(
            preview,
            backend=final.backend,
            caller=caller,
            lane=lane,
            patience=patience,
            destination=destination,
            watched=watched,
        )

    async def spent(self, prediction: Prediction) -> Spent | None:
        """What the draft of a prediction has cost, and saved; None for one that is of none, and for practice."""
        if prediction.draft is None or prediction.practice:
            return None
        found = await self._of_draft(prediction)
        bought = [one for one in found if one.tier == "final" and one.cost is not None and _pictures_of(one)]
        each = next((_each(one) for one in reversed(bought) if one.charged and not one.reused), None)
        return spent_on(found, each=each or _likely(prediction))

    async def expected(self, preview: Prediction, quote: Quote, count: int) -> Spent | None:
        """The same, when `count` finals for `quote` together will have been made besides."""
        if preview.draft is None or preview.practice:
            return None
        each = None if quote.likely is None else _part(quote.likely, count)
        so_far = spent_on(await self._of_draft(preview), each=each)
        total = Usd.total_or_none([so_far.finals_cost, quote.likely])
        return msgspec.structs.replace(so_far, finals=so_far.finals + count, finals_cost=total)

    async def finals(self, preview: Prediction) -> Sequence[Prediction]:
        """What was made of a preview, oldest first."""
        if preview.draft is None:
            return []
        return [one for one in await self._of_draft(preview) if one.parent == preview.id]

    async def _of_draft(self, prediction: Prediction) -> Sequence[Prediction]:
        """The previews of whoever asked for the one that all began with, and the finals made of them."""
        found = await self._store.of_draft(prediction.draft or "")
        root = next((one for one in found if one.id == prediction.parent), prediction)
        previews = {
            one.id: one
            for one in found
            if one.tier == "preview"
            and (one.caller, one.key) == (root.caller, root.key)
            # Each process practises on an account of its own.
            and (one.account == root.account or one.practice)
        }
        return [one for one in found if one.id in previews or one.parent in previews]

    def _takes_image(self, ref: ModelRef) -> bool:
        """Whether a model takes a picture, and needs nothing else with it; of one that nobody knows that is believed."""
        known = self._catalog.find(ref.base)
        if known is None or known.parameters is None:
            return True
        return known.image_input is not None and not known.image_input.needs

    def _shape_of(self, picture: Prediction) -> Mapping[str, Any]:
        """The shape that a picture is going to have: as it is asked for, else as its model has it by default."""
        shape = {name: picture.input[name] for name in _SHAPE if picture.input.get(name) is not None}
        known = self._catalog.find(picture.model)
        ratio = known.parameter("aspect_ratio") if known else None
        if shape or ratio is None or ratio.default is None:
            return shape
        return {"aspect_ratio": ratio.default}


def _image_of_preview(preview: Prediction, options: Mapping[str, Any]) -> str | Path | None:
    """The picture that a preview started from, unless the final's own parameters have it."""
    if not options.keys().isdisjoint(_IMAGES):
        return None
    wish = preview.wished
    if wish is not None and wish.input_image is not None:
        return wish.input_image
    if wish is not None and wish.input_file is not None:
        return Path(wish.input_file)
    return _first_image(preview.input)


def _first_image(values: Mapping[str, Any]) -> str | None:
    for name in _IMAGES:
        value = values.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value:
            return value
    return None


def _overruled_by(said: GenerationRequest, common: Mapping[str, Any], *, seeded: bool) -> frozenset[str]:
    """What of a wish no longer holds: what is said anew, in whichever way, and its seed where another one was picked."""
    gone = {*common, *said.options, *said.text_options}
    if not gone.isdisjoint(_SHAPE):
        gone |= {*_SHAPE}
    if not gone.isdisjoint({"steps", *STEPS_KEYS}):
        gone |= {"steps", *STEPS_KEYS}
    if seeded or said.seed is not None:
        gone.add("seed")
    return frozenset(gone)


def _as_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """What was typed, as JSON where it is any."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def _likely(prediction: Prediction) -> Usd | None:
    return prediction.quote.likely if prediction.tier == "final" else None


def _pictures_of(prediction: Prediction) -> int:
    return len(prediction.output) if prediction.status is Status.SUCCEEDED else 0


def _each(prediction: Prediction) -> Usd | None:
    return None if prediction.cost is None else _part(prediction.cost, _pictures_of(prediction))


def _part(cost: Usd, pictures: int) -> Usd:
    return Usd(cost.micros // max(pictures, 1))
