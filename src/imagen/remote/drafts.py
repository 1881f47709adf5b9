"""Tiered work at a running gateway: its cheap model makes previews, and it makes the finals of those that are picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote as quoted

import msgspec

from imagen.catalog import Catalog
from imagen.catalog.model import DEFAULT_DEADLINE_SECONDS, STEPS_KEYS
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.events import LeftOut
from imagen.domain.identifiers import new_id
from imagen.domain.input_schema import read_text
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd, from_dollars
from imagen.domain.prediction import Prediction
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.errors import GarbledResponse, InvalidInput, InvalidModelRef, Problem
from imagen.ports import Clock
from imagen.remote.choice import quote_previews
from imagen.remote.connection import Connection
from imagen.remote.generate import BACKEND, Name, RemoteGateway, Run
from imagen.service.choice_shapes import QuoteAnswer, QuoteRange
from imagen.service.deliver import Destination

_SAME_WORDS = ("aspect_ratio", "width", "height", "negative_prompt", "output_format", "seed")
_QUOTE_SECONDS = 60.0


class _Quoted(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the gateway's answer to a dry run."""

    model: str
    prompt: str
    quote: QuoteRange
    seed: int | None = None
    input: dict[str, Any] = {}
    images: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    saved_usd: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)] | None = None
    preset: Name | None = None
    left_out: Annotated[list[Name], msgspec.Meta(max_length=300)] = []


class RemoteFinal(msgspec.Struct, frozen=True, kw_only=True):
    """A final that the gateway would make.

    Attributes:
        run: asks for it.
        quote: what it would cost; saved: what choosing was likely to save, None where a price is not known.
    """

    run: Run
    quote: Quote
    saved: Usd | None


class RemoteDrafts:
    """Previews and finals, asked of a running gateway.

    Args:
        connection: asks it.
        gateway: plans wishes, and fetches pictures.
        catalog: knows what models call their parameters.
        clock: tells the time.
    """

    def __init__(
        self, connection: Connection, *, gateway: RemoteGateway, catalog: Catalog, clock: Clock
    ) -> None:
        self._connection = connection
        self._gateway = gateway
        self._catalog = catalog
        self._clock = clock

    def new_draft(self) -> str:
        """A name for what the previews of one wish have in common."""
        return new_id("draft", self._clock.now())

    async def plan_previews(
        self,
        request: GenerationRequest,
        *,
        backend: str | None,
        caller: Caller = UNKNOWN,
        seeds: Sequence[int],
        draft: str,
        places: Sequence[Destination],
    ) -> list[Run]:
        """One run for each preview; the gateway chooses the cheap model.

        Args:
            request: the wish for the final.
            backend: as of `RemoteGateway.generate`.
            caller: likewise.
            seeds: one for each preview.
            draft: what they have in common.
            places: where each goes.

        Raises:
            InvalidInput: the wish cannot be carried out.
        """
        wish = msgspec.structs.replace(request, seed=None, count=1, max_cost=None)
        runs = []
        for seed, place in zip(seeds, places, strict=True):
            (run,) = await self._gateway.plan(wish, backend=backend, caller=caller, destination=place)
            body = {**run.body, "tier": "preview", "draft": draft, "seed": seed}
            intent = msgspec.structs.replace(run.intent, seed=seed, tier="preview", draft=draft)
            runs.append(msgspec.structs.replace(run, body=body, intent=intent))
        return runs

    async def quote_previews(self, runs: Sequence[Run]) -> QuoteAnswer:
        """What these previews cost and a final of one of them, as the gateway tells; nothing is bought.

        Raises:
            InvalidRequest, Refused, BackendError: they cannot be made, or nobody answers.
        """
        return await quote_previews(self._connection, runs[0].body, count=len(runs))

    async def plan_final(
        self, preview_id: str, said: GenerationRequest, *, caller: Caller, destination: Destination | None
    ) -> RemoteFinal:
        """What the final of a preview would be, as the gateway tells; nothing is bought.

        Args:
            preview_id: the whole id of the preview.
            said: what is said anew; its prompt may be empty.
            caller: whom our own records name.
            destination: where its pictures go.

        Raises:
            InvalidRequest, Refused, BackendError: it cannot be made, or nobody answers.
        """
        path = f"/predictions/{quoted(preview_id, safe='')}/promote"
        body = self._body(said)
        told = await self._connection.ask(
            "POST", path, _Quoted, body={**body, "dry_run": True}, answer_seconds=_QUOTE_SECONDS
        )
        try:
            ref = ModelRef.parse(told.model)
        except InvalidModelRef:
            raise GarbledResponse(f"{self._connection.url} tells no model that can be") from None
        known = self._catalog.find(ref.base)
        now = self._clock.now()
        intent = Prediction(
            id=new_id("pred", now),
            backend=BACKEND,
            backend_type="replicate",
            account=self._connection.url,
            model=str(ref),
            prompt=told.prompt,
            input=told.input,
            request_key="",
            caller=caller.name,
            created_at=now,
            deadline_seconds=said.deadline_seconds
            or (known.deadline_seconds if known else DEFAULT_DEADLINE_SECONDS),
            seed=told.seed,
            quote=told.quote.to_quote(),
            tier="final",
            parent=preview_id,
            preset=told.preset,
        )
        run = Run(
            intent=intent,
            images=told.images,
            body={**body, "wait": True, "store": False},
            place=None
            if destination is None
            else msgspec.structs.replace(destination, total=max(told.images, destination.total)),
            typical_seconds=known.typical_seconds if known else None,
            notes=[LeftOut(str(ref), tuple(told.left_out))] if told.left_out else (),
            path=path,
        )
        return RemoteFinal(run=run, quote=intent.quote, saved=from_dollars(told.saved_usd))

    def _body(self, said: GenerationRequest) -> dict[str, Any]:
        """What `POST …/promote` takes.

        Raises:
            InvalidInput: something is said that cannot be told to a gateway.
        """
        problems = [
            Problem(name, "it cannot be said anew at a gateway")
            for name, value in (
                ("input_image", said.input_image),
                ("count", None if said.count == 1 else said.count),
            )
            if value is not None
        ]
        if not said.repeat_lost:
            problems.append(
                Problem("never_repeat", "a gateway decides itself about creates whose answer was lost")
            )
        if problems:
            raise InvalidInput(problems, hint="Leave it away, or work without --server.")
        known = None if said.model is None else self._catalog.find(said.model.base)
        schema = None if known is None else self._catalog.input_schema(known)
        body: dict[str, Any] = {
            **said.carried,
            **{name: read_text(schema, name, text) for name, text in said.text_options.items()},
            **said.options,
        }
        body |= {name: value for name in _SAME_WORDS if (value := getattr(said, name)) is not None}
        if said.steps is not None:
            body[(known.steps_key if known else None) or STEPS_KEYS[0]] = said.steps
        told = {
            "prompt": said.prompt or None,
            "model_name": None if said.model is None else str(said.model),
            "max_cost": None if said.max_cost is None else f"{said.max_cost.to_decimal():f}",
            "timeout": said.deadline_seconds,
            "external_semaphore_id": said.semaphore,
            "cache": said.cache,
        }
        # Presets are of this configuration, so the gateway gets what they say.
        offers = {name: value for name, value in said.offers.items() if name not in body}
        return {**offers, **body, **{name: value for name, value in told.items() if value is not None}}
