"""Predictions at Replicate: the wire's messages, carried by the client, repeated as the policy allows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from cachetools import FIFOCache

from imagen.backends.registry import BackendContext
from imagen.backends.replicate.data_uri import decode_data_uri
from imagen.backends.replicate.expect import expect_images, expect_inputs, expect_output, expect_seconds
from imagen.backends.replicate.refusals import retry_after, tell_wait, without_quotes
from imagen.backends.replicate.relay import ReplicateRelay
from imagen.backends.replicate.schema import SchemaBook
from imagen.backends.replicate.translate import Defaults, translate
from imagen.backends.replicate.wire import (
    MAX_FILE_BYTES,
    ModelFacts,
    Page,
    Wire,
    operation_of,
    read_allowance,
    read_sighting,
    read_time,
)
from imagen.catalog.model import DEFAULT_DEADLINE_SECONDS, Model
from imagen.domain.events import Called
from imagen.domain.inside import is_inside
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import HIDDEN, Prediction, Sighting, Status
from imagen.domain.pricing import Expected, PerMegapixel, Price, cost, quote_run
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.errors import (
    BackendBroken,
    BackendError,
    BackendRateLimited,
    GarbledResponse,
    InvalidInput,
    InvalidModelRef,
    InvalidResponse,
    Problem,
    Unauthenticated,
)
from imagen.pictures import read_size
from imagen.ports import Fetched, Glance, Listed, ModelDescription, Passage, Plan, Reply
from imagen.transport.message import HttpRequest, HttpResponse, origin
from imagen.transport.retry import RetryPolicy, call_with_retry

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
INLINE_BYTES = 256 * 1024
"""Input files up to this size travel inside the request as a data URI; the spec advises no more."""
_MOST_SIZES = 1000
"""Of so many uploaded pictures the size is remembered, for their price."""
_CLOCK_MARGIN = timedelta(minutes=2)
_MOST_PAGES = 400
_GONE = frozenset({403, 404, 410})
_ONCE = RetryPolicy(rate_limited=0, unconnected=0)
"""A create is sent once; whoever buys decides about another, and writes down when that was sent."""
_NEVER_AGAIN = RetryPolicy(rate_limited=0, unconnected=0, repeatable=0)
"""Whoever watches many predictions looks again anyhow."""
_PROBE_POLICY = RetryPolicy(rate_limited=1, repeatable=1)
"""Whoever asks whether the service answers wants to know soon."""
_UNPACED = frozenset({"create", "cancel"})
"""Creates are paced where they are admitted; a cancel that waits would be paid for."""
_THROTTLED, _FIRST_REFUSAL, _FIRST_FAULT = 429, 300, 500
_PASSING = frozenset({408, 425})
"""Refusals that another try may not meet."""


class _Reader(Protocol[T_co]):
    """Makes a value of an answer, or raises what the answer means."""

    def __call__(self, response: HttpResponse, *, subject: str) -> T_co: ...


class ReplicateBackend:
    """One configured backend of type `replicate`."""

    practice = False

    def __init__(self, context: BackendContext) -> None:
        self.name = context.name
        self.type = context.type
        self.model = context.model
        # The same token elsewhere is another account: its predictions are not found here.
        self.account = (
            f"{context.token.fingerprint()}@{origin(context.api_base)}" if context.token else "none"
        )
        self._context = context
        self._client = context.client
        self._clock = context.clock
        self._wire = Wire(
            api_base=context.api_base,
            token=context.token,
            token_env=context.token_env,
            read_seconds=context.read_seconds,
        )
        self._schemas = SchemaBook(
            catalog=context.catalog,
            folder=context.cache_folder / "schemas",
            ask=self._ask_facts,
            clock=context.clock,
        )
        self._relay = ReplicateRelay(context, self._wire)
        self._defaults = Defaults(steps=context.default_steps, aspect_ratio=context.default_aspect_ratio)
        self._ahead = timedelta(0)
        self._sizes: FIFOCache[str, tuple[int, int]] = FIFOCache(_MOST_SIZES)

    # --- before anything is bought -----------------------------------------------------------------------

    async def check(self, request: GenerationRequest) -> Sequence[Plan]:
        """See `ports.Backend.check`."""
        request.check()
        ref = request.model or self._context.catalog.resolve(self.model)
        if self._wire.token is None:
            raise Unauthenticated(
                f"{self.name}: no Replicate API token is set; nothing was sent",
                hint=f"Set {self._wire.token_env} or run `imagen auth login`. Without a token, `-b emulator` practises.",
            )
        model = await self._schemas.resolve(ref)
        image, image_identity = await self._input_image(request.input_image)
        made = translate(
            request, model=model.ref.base, schema=model.input_schema, image=image, defaults=self._defaults
        )
        known = None if ref.deployment else self._context.catalog.find(model.ref.base)
        deadline = request.deadline_seconds or self._context.deadline_seconds
        return [
            Plan(
                model=str(model.ref),
                input=values,
                identity={
                    name: image_identity if value in (image, [image]) and image else value
                    for name, value in values.items()
                },
                seed_field=made.seed_field,
                seed_maximum=made.seed_maximum,
                secrets=made.secrets,
                deadline_seconds=deadline or (known.deadline_seconds if known else DEFAULT_DEADLINE_SECONDS),
                typical_seconds=known.typical_seconds if known else None,
                expected_images=images,
                left_out=made.left_out,
            )
            for values, images in zip(made.inputs, made.images, strict=True)
        ]

    async def _input_image(self, image: str | Path | None) -> tuple[str | None, str | None]:
        """The image as the model gets it, and what stays the same when the same file is given again."""
        if image is None or isinstance(image, str):
            return image, image
        try:
            content = await asyncio.to_thread(_read_file, image)
        except OSError as error:
            raise InvalidInput(
                [Problem("input_image", f"{image} cannot be read: {error.strerror}")]
            ) from error
        if not content:
            raise InvalidInput([Problem("input_image", f"{image} is empty or larger than 100 MiB")])
        media_type = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
        identity = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if len(content) <= INLINE_BYTES:
            return f"data:{media_type};base64,{base64.b64encode(content).decode()}", identity
        subject = f"the upload of {image.name}"
        request = self._wire.build_upload(image.name, content, media_type)
        urls = (await self._call(request, self._wire.parse_json, subject)).get("urls")
        url = urls.get("get") if isinstance(urls, dict) else None
        if not isinstance(url, str):
            raise InvalidResponse(f"{subject}: Replicate told no address for it", backend=self.name)
        self._remember_size(url, content)
        return url, identity

    def _remember_size(self, url: str, content: bytes) -> None:
        """Note how large an uploaded picture is, which its address does not tell."""
        if (size := read_size(content)) is not None:
            self._sizes[url] = size

    def quote(self, prediction: Prediction, *, typical_seconds: float | None = None) -> Quote:
        """See `ports.Backend.quote`. A run that fails costs nothing; the least is that of one that succeeds."""
        model, rule = self._rule_of(prediction)
        if model is None or rule is None:
            return UNKNOWN_PRICE
        typical = model.typical_seconds if typical_seconds is None else typical_seconds
        return quote_run(rule, self._expected(prediction, model, rule, typical))

    def price(self, prediction: Prediction) -> Usd | None:
        """See `ports.Backend.price`. What the end does not tell counts as it was asked for."""
        model, rule = self._rule_of(prediction)
        if model is None or rule is None:
            return None
        asked = self._expected(prediction, model, rule, None)
        images = prediction.image_count or len(prediction.output) or asked.images.high or 1
        sizes = [span.exact for span in asked.input_megapixels]
        known = [size for size in sizes if size is not None]
        return cost(
            rule,
            images=max(int(images), 0),
            output_megapixels=asked.output_megapixels.exact,
            input_megapixels=known if len(known) == len(sizes) else None,
            predict_seconds=_told_seconds(prediction),
        )

    def _rule_of(self, prediction: Prediction) -> tuple[Model | None, Price | None]:
        """The model, and how a run of it with this input is charged. A deployment is charged in another way."""
        ref = ModelRef.parse(prediction.model)
        if ref.nameless and prediction.ran_as is not None:
            ref = ModelRef.parse(prediction.ran_as)
        model = None if ref.deployment else self._context.catalog.find(ref.base)
        fact = model.price_for(prediction.input) if model else None
        return model, fact.rule if fact else None

    def _expected(
        self, prediction: Prediction, model: Model, rule: Price, typical_seconds: float | None
    ) -> Expected:
        values = prediction.input
        # Pictures are looked into only where their size is charged.
        given = expect_inputs(values, model, self._sizes.get) if isinstance(rule, PerMegapixel) else ()
        return Expected(
            images=expect_images(values, model),
            output_megapixels=expect_output(values, model, given),
            input_megapixels=given,
            predict_seconds=expect_seconds(typical=typical_seconds, deadline=prediction.deadline_seconds),
        )

    # --- the prediction ----------------------------------------------------------------------------------

    async def submit(
        self,
        prediction: Prediction,
        *,
        hold_seconds: float,
        secrets: Mapping[str, Any],
        webhook: str | None = None,
        on_send: Callable[[], None] | None = None,
    ) -> Sighting:
        """See `ports.Backend.submit`."""
        model = ModelRef.parse(prediction.model)
        request = self._wire.build_create(
            model,
            prediction.input | dict(secrets),
            hold_seconds=hold_seconds,
            deadline_seconds=prediction.deadline_seconds,
            webhook=webhook,
        )
        request = msgspec.structs.replace(request, on_send=on_send)

        def read(response: HttpResponse, *, subject: str) -> Sighting:
            hidden = [value for value in secrets.values() if isinstance(value, str)]
            told = without_quotes(response, prediction.prompt, secrets=hidden)
            sighting = self._wire.parse_prediction(told, subject=subject)
            if model.nameless and sighting.model is not None:
                self._schemas.learn(model.base, sighting.model)
            return msgspec.structs.replace(sighting, allowance=read_allowance(response))

        return await self._call(request, read, str(model), policy=_ONCE)

    async def look(self, prediction: Prediction) -> Sighting:
        """See `ports.Backend.look`."""
        request = self._wire.build_get(_known_id(prediction))
        subject = f"prediction {prediction.upstream_id}"
        sighting = await self._call(request, self._wire.parse_prediction, subject)
        return msgspec.structs.replace(sighting, told_at=self._clock.now() + self._ahead)

    async def look_many(
        self, known: Mapping[str, Status | None], *, before: datetime | None = None
    ) -> Glance:
        """See `ports.Backend.look_many`."""
        request = self._wire.build_list(created_before=before)
        read = partial(self._wire.parse_glance, known=known)
        return await self._call(request, read, "the list of predictions", policy=_NEVER_AGAIN)

    async def cancel(self, prediction: Prediction) -> Sighting:
        """See `ports.Backend.cancel`."""
        request = self._wire.build_cancel(_known_id(prediction))
        subject = f"prediction {prediction.upstream_id}"
        return await self._call(request, self._wire.parse_prediction, subject)

    async def find(self, prediction: Prediction, *, ignore: frozenset[str]) -> Sighting | None:
        """See `ports.Backend.find`.

        The list is read newest first, in Replicate's own time as its `Date` header tells it. For an older intent the
        pages in between are jumped over.
        """
        subject = "the list of predictions"
        page = await self._call(self._wire.build_list(), self._wire.parse_page, subject)
        sent_at = prediction.sent_at or prediction.created_at
        # Our clock may be wrong now, or have been wrong then: both readings of the moment count.
        earliest = min(sent_at, sent_at + self._ahead) - _CLOCK_MARGIN
        latest = max(sent_at, sent_at + self._ahead) + timedelta(minutes=10)
        if page.next and (oldest := _oldest(page)) and oldest > latest:
            request = self._wire.build_list(created_before=latest)
            page = await self._call(request, self._wire.parse_page, subject)
        found: dict[str, Sighting] = {}
        seen: set[str] = set()
        while True:
            for item in page.results:
                if _is_same(item, prediction) and item["id"] not in ignore:
                    sighting = read_sighting(item, subject=subject)
                    if sighting.created_at is None or sighting.created_at >= earliest:
                        found[sighting.upstream_id] = sighting
            oldest = _oldest(page)
            if page.next is None or (oldest is not None and oldest < earliest):
                break
            following = self._wire.build_next(page)
            if following is None or following.url in seen or len(seen) >= _MOST_PAGES:
                raise GarbledResponse(
                    f"{subject} does not come to an end; nothing is concluded from it", backend=self.name
                )
            seen.add(following.url)
            page = await self._call(following, self._wire.parse_page, subject)
        if len(found) > 1 and prediction.seed is None and any(map(_holds_file, prediction.input.values())):
            raise GarbledResponse(
                f"{len(found)} predictions at the service could be {prediction.id}, and nothing tells them apart",
                backend=self.name,
            )
        return next(reversed(found.values()), None)

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        """See `ports.Backend.fetch`."""
        if is_inside(url):
            content, media_type = decode_data_uri(url, limit_bytes=limit_bytes)
            await asyncio.to_thread(target.write_bytes, content)
            return Fetched(size_bytes=len(content), media_type=media_type)
        request = self._wire.build_file(url, limit_bytes=limit_bytes)

        async def once() -> Fetched:
            got = await self._client.download(request, target)
            if got.status in _GONE:
                gone = BackendBroken(f"{got.status}: the file host does not have the picture")
                gone.status = got.status
                raise gone
            if got.status == _THROTTLED:
                headers = HttpResponse(got.status, got.headers, b"")
                raise BackendRateLimited(
                    "429: the file host throttles us", retry_after=retry_after(headers, {})
                )
            if got.status >= _FIRST_FAULT or got.status in _PASSING:
                raise BackendBroken(f"{got.status}: the file host failed", hint="Try again in a moment.")
            if got.status >= _FIRST_REFUSAL:
                raise InvalidResponse(f"{got.status}: the file host refused the picture")
            return Fetched(size_bytes=got.size_bytes, media_type=got.headers.get("content-type"))

        return await self._repeated(once, repeatable=True, policy=RetryPolicy(repeatable=1))

    # --- the account -------------------------------------------------------------------------------------

    async def probe(self) -> Mapping[str, Any]:
        """See `ports.Backend.probe`. Also tells by how many seconds our clock differs, as `clock_ahead_seconds`."""
        subject = "the account"
        request = self._wire.build_account()
        # Unpaced: what paces an account is written down, and this is how a made-up token is found out.
        account = await self._call(request, self._wire.parse_json, subject, policy=_PROBE_POLICY, paced=False)
        return {**account, "clock_ahead_seconds": -self._ahead.total_seconds()}

    async def describe(self, model: ModelRef) -> ModelDescription:
        """See `ports.ModelSource.describe`."""
        known = await self._schemas.resolve(model)
        return ModelDescription(model=str(known.ref), input_schema=known.input_schema)

    async def webhook_secret(self) -> Secret:
        """See `ports.WebhookSource.webhook_secret`."""
        request = self._wire.build_webhook_secret()
        subject = "the webhook secret"
        return await self._call(request, self._wire.parse_webhook_secret, subject, policy=_NEVER_AGAIN)

    async def relay(self, call: Passage) -> Reply:
        """See `ports.Relay.relay`."""
        return await self._relay.relay(call, account=self.account)

    async def address_of(self, path: str) -> str:
        """See `ports.Relay.address_of`."""
        return f"{self._wire.api_base}/v1{path}"

    async def history(self, *, since: datetime) -> AsyncIterator[Sequence[Listed]]:
        """See `ports.Lister.history`. As `find` does it goes by Replicate's own time."""
        subject = "the list of predictions"
        following: HttpRequest | None = self._wire.build_list()
        asked: set[str] = set()
        while following is not None:
            if following.url in asked:
                raise GarbledResponse(f"{subject} does not come to an end", backend=self.name)
            asked.add(following.url)
            page = await self._call(following, self._wire.parse_page, subject)
            earliest = min(since, since + self._ahead)
            found = [_listed(item, subject, ahead=self._ahead) for item in page.results]
            yield [
                one for one in found if one.sighting.created_at is None or one.sighting.created_at >= earliest
            ]
            oldest = _oldest(page)
            following = self._wire.build_next(page)
            if page.next is None or (oldest is not None and oldest < earliest):
                return
        raise GarbledResponse(f"{subject} names no page to go on with", backend=self.name)

    def could_be(self, listed: Listed, prediction: Prediction) -> bool:
        """See `ports.Lister.could_be`."""
        return _is_same({"model": listed.model, "input": listed.sighting.input}, prediction)

    def readiness(self) -> str:
        """See `ports.Backend.readiness`."""
        return "ok" if self._wire.token else f"not configured (set {self._wire.token_env})"

    async def aclose(self) -> None:
        """Nothing of its own: the client belongs to the assembly."""

    # --- calls -------------------------------------------------------------------------------------------

    async def _ask_facts(self, ref: ModelRef) -> ModelFacts:
        if ref.deployment:
            request = self._wire.build_deployment(ref)
            release = await self._call(request, self._wire.parse_release, str(ref))
            request = self._wire.build_version(release)
        else:
            request = self._wire.build_version(ref) if ref.version else self._wire.build_model(ref)
        return await self._call(request, self._wire.parse_model, str(ref))

    async def _call(
        self,
        request: HttpRequest,
        read: _Reader[T],
        subject: str,
        *,
        policy: RetryPolicy | None = None,
        paced: bool = True,
    ) -> T:
        """One call with its repeats, and its answer as `read` understands it."""
        operation = operation_of(request)

        async def once() -> T:
            if paced and operation not in _UNPACED:
                await self._context.calls.enter(self.account)
            response = await self._sent(request, operation)
            self._note_time(response)
            if self._wire.token is not None:
                response = without_quotes(response, "", secrets=[self._wire.token.reveal()])
            try:
                return read(response, subject=subject)
            except BackendRateLimited as error:
                if operation != "create":
                    await self._context.calls.refused(
                        self.account, retry_after=error.retry_after, detail=error.detail
                    )
                raise

        policy = policy or self._context.policy
        return await self._repeated(once, repeatable=request.repeatable, policy=policy)

    async def _sent(self, request: HttpRequest, operation: str) -> HttpResponse:
        status = None
        try:
            response = await self._client.send(request)
            status = response.status
        finally:
            self._context.observer.notify(Called(operation, status))
        return response

    async def _repeated(
        self, once: Callable[[], Awaitable[T]], *, repeatable: bool, policy: RetryPolicy
    ) -> T:
        try:
            return await call_with_retry(
                once,
                repeatable=repeatable,
                policy=policy,
                clock=self._clock,
                on_wait=partial(tell_wait, self._context.observer),
            )
        except BackendError as error:
            error.backend = self.name
            raise

    def _note_time(self, response: HttpResponse) -> None:
        try:
            theirs = parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
        except (KeyError, ValueError, TypeError, OverflowError):
            return
        self._ahead = theirs - self._clock.now()


def _read_file(path: Path) -> bytes:
    return path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else b""


def _known_id(prediction: Prediction) -> str:
    if prediction.upstream_id is None:
        raise ValueError(f"{prediction.id} has no upstream id yet")
    return prediction.upstream_id


def _listed(item: Mapping[str, Any], subject: str, *, ahead: timedelta) -> Listed:
    deployment, model = item.get("deployment"), item.get("model")
    named = f"deployments/{deployment}" if isinstance(deployment, str) and deployment else model
    try:
        ref = str(ModelRef.parse(named)) if isinstance(named, str) else ""
    except InvalidModelRef:
        ref = ""
    sighting = msgspec.structs.replace(read_sighting(item, subject=subject), logs="")
    made_at = None if sighting.created_at is None else sighting.created_at - ahead
    return Listed(model=ref, sighting=sighting, made_at=made_at)


def _oldest(page: Page) -> datetime | None:
    instants = [
        instant for item in page.results if (instant := read_time(item.get("created_at"))) is not None
    ]
    return min(instants, default=None)


def _is_same(item: Mapping[str, Any], prediction: Prediction) -> bool:
    """Whether a listed prediction has our model and our exact input; what the service adds does not matter.

    Secrets are not compared: neither we nor the service keep them. A file inside the request is, unless the service
    shows an address of its own in its place.
    """
    theirs = item.get("input")
    if not isinstance(theirs, dict) or not theirs:
        return False
    ref = ModelRef.parse(prediction.model)
    model, version = item.get("model"), item.get("version")
    if ref.nameless and isinstance(version, str) and version != ref.version:
        return False
    if (
        isinstance(model, str)
        and model
        and not (ref.deployment or ref.nameless)
        and model.split(":")[0].lower() != ref.base.lower()
    ):
        return False
    return all(
        theirs.get(name) == value
        or value == HIDDEN
        or (_holds_file(value) and not _holds_file(theirs.get(name)))
        for name, value in prediction.input.items()
        if value is not None
    )


def _holds_file(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_file, value))
    return isinstance(value, str) and is_inside(value)


def _told_seconds(prediction: Prediction) -> Decimal | None:
    seconds = prediction.predict_seconds
    return None if seconds is None or not 0 <= seconds < math.inf else Decimal(str(seconds))
