"""What `ports.Backend` promises, of the backend for Replicate, against the emulator over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from fakes.clock import ManualClock
from fakes.make import make_prediction
from fakes.servers import Exchange, raw_server
from imagen.backends.emulated import EmulatedBackend
from imagen.backends.registry import BackendContext, build_backend, known_types
from imagen.backends.replicate.backend import INLINE_BYTES, ReplicateBackend
from imagen.catalog import Catalog
from imagen.domain.events import Event, Waiting
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import HIDDEN, Prediction, Status
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.emulator import Emulator, Model
from imagen.errors import (
    BackendBroken,
    BackendError,
    BackendRateLimited,
    BackendUnauthenticated,
    ConfigError,
    ConnectFailed,
    ExchangeFailed,
    GarbledResponse,
    InputRejected,
    InvalidInput,
    InvalidResponse,
    ModelNotFound,
    OutputDefective,
    PaymentRequired,
    Unauthenticated,
)
from imagen.ports import Backend, Plan
from imagen.transport.client import HttpClient

pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"
CATALOG = Catalog.load()
COMMUNITY = Model(
    name="someone/hobby-model",
    official=False,
    parameters={
        "prompt": {"type": "string"},
        "size": {"type": "string", "enum": ["small", "large"]},
        "seed": {"type": "integer"},
    },
)
MakeContext = Callable[..., BackendContext]


class Heard:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)


class Unpaced:
    """A call budget that lets everything pass."""

    async def enter(self, account: str) -> None:
        """At once."""

    async def refused(self, account: str, *, retry_after: float | None, detail: str) -> None:
        """And takes no note."""


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def emulator(anyio_backend: str) -> AsyncIterator[Emulator]:
    async with Emulator(run_seconds=0.0, models=[COMMUNITY]) as running:
        yield running


@pytest.fixture
async def context(
    anyio_backend: str, emulator: Emulator, clock: ManualClock, heard: Heard, tmp_path: Path
) -> AsyncIterator[MakeContext]:
    async with HttpClient() as client:

        def make(**changes: Any) -> BackendContext:
            given_: dict[str, Any] = {
                "name": "fast",
                "type": "replicate",
                "model": SCHNELL,
                "api_base": emulator.url,
                "token": Secret("r8_contract"),
                "token_env": "REPLICATE_API_TOKEN",
                "default_steps": None,
                "default_aspect_ratio": "1:1",
                "deadline_seconds": None,
                "read_seconds": 10.0,
                "extra": {},
                "cache_folder": tmp_path / "cache",
                "client": client,
                "catalog": CATALOG,
                "clock": clock,
                "observer": heard,
                "calls": Unpaced(),
            }
            return BackendContext(**{**given_, **changes})

        yield make


@pytest.fixture
def backend(context: MakeContext) -> ReplicateBackend:
    return ReplicateBackend(context())


async def plan_for(backend: Backend, prompt: str = "a fox", **fields: Any) -> Plan:
    (plan,) = await backend.check(GenerationRequest(prompt=prompt, **fields))
    return plan


async def intend(backend: Backend, clock: ManualClock, *, number: int = 1, **fields: Any) -> Prediction:
    plan = await plan_for(backend, **fields)
    values = {**plan.input, **({plan.seed_field: number} if plan.seed_field else {})}
    return make_prediction(
        number,
        account=backend.account,
        model=plan.model,
        input=values,
        prompt=str(values.get("prompt")),
        created_at=clock.now(),
        sent_at=clock.now(),
        deadline_seconds=plan.deadline_seconds,
    )


def creates(emulator: Emulator) -> int:
    return len(emulator.journal.entries(operation="predictions.create"))


# --- the port, for both implementations ---


@pytest.fixture(params=["replicate", "emulator"])
async def any_backend(request: pytest.FixtureRequest, context: MakeContext) -> AsyncIterator[Backend]:
    built = build_backend(context(type=request.param))
    assert isinstance(built, ReplicateBackend if request.param == "replicate" else EmulatedBackend)
    yield built
    await built.aclose()


async def test_a_prediction_from_wish_to_picture(any_backend: Backend, clock: ManualClock, tmp_path: Path):
    intent = await intend(any_backend, clock)
    bought = await any_backend.submit(intent, hold_seconds=10, secrets={})
    assert bought.status is Status.SUCCEEDED
    known = intent.observe(bought, now=clock.now())
    seen = await any_backend.look(known)
    assert (seen.upstream_id, seen.status, seen.input) == (bought.upstream_id, Status.SUCCEEDED, intent.input)
    assert (await any_backend.cancel(known)).status is Status.SUCCEEDED, "what has ended stays as it is"
    got = await any_backend.fetch(seen.output[0], tmp_path / "x.png", limit_bytes=10_000_000)
    content = (tmp_path / "x.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert (got.size_bytes, got.media_type) == (len(content), "image/png")


async def test_what_was_bought_is_found_again_but_not_what_is_known(any_backend: Backend, clock: ManualClock):
    intent = await intend(any_backend, clock)
    bought = await any_backend.submit(intent, hold_seconds=0, secrets={})
    found = await any_backend.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == bought.upstream_id
    assert await any_backend.find(intent, ignore=frozenset({bought.upstream_id})) is None
    other = replace(intent, input={**intent.input, "seed": 99})
    assert await any_backend.find(other, ignore=frozenset()) is None


async def test_who_we_are_and_whether_we_are_ready(any_backend: Backend):
    assert (await any_backend.probe())["username"].startswith("emulated-")
    assert any_backend.readiness() == "ok"
    assert any_backend.name == "fast"
    assert "r8_contract" not in any_backend.account


async def test_an_unknown_prediction_is_not_found(any_backend: Backend):
    for ask in (any_backend.look, any_backend.cancel):
        with pytest.raises(ModelNotFound) as told:
            await ask(make_prediction(upstream_id="a" * 26))
        assert told.value.backend == "fast"


async def test_practice_costs_nothing(context: MakeContext):
    practice = EmulatedBackend(context(type="emulator"))
    assert practice.price(make_prediction()) == Usd(0)
    assert practice.practice
    await practice.aclose()


async def test_unknown_types_are_refused_with_those_that_are_known(context: MakeContext):
    assert {"replicate", "emulator"} <= set(known_types())
    with pytest.raises(
        ConfigError,
        match=r"backends\.fast\.type 'replicat' is not known; known types are emulator, replicate",
    ):
        build_backend(context(type="replicat"))


# --- before anything is bought ---


async def test_checking_a_model_of_the_catalog_asks_nobody(backend: ReplicateBackend, emulator: Emulator):
    plan = await plan_for(backend)
    assert (plan.model, plan.seed_field, plan.expected_images) == (SCHNELL, "seed", 1)
    assert plan.deadline_seconds == 60
    assert len(emulator.journal) == 0


async def test_without_a_token_nothing_is_sent(context: MakeContext, emulator: Emulator):
    backend = ReplicateBackend(context(token=None))
    with pytest.raises(Unauthenticated, match=r"REPLICATE_API_TOKEN.*imagen auth login"):
        await plan_for(backend)
    assert backend.readiness() == "not configured (set REPLICATE_API_TOKEN)"
    assert len(emulator.journal) == 0


async def test_a_wish_that_makes_no_sense_is_refused_before_anything_else(context: MakeContext):
    backend = ReplicateBackend(context(token=None))
    with pytest.raises(InvalidInput):
        await plan_for(backend, prompt="")


@pytest.mark.parametrize(
    ("of_request", "of_backend", "deadline"), [(None, None, 60), (None, 7.0, 7.0), (9.0, 7.0, 9.0)]
)
async def test_the_deadline_is_the_requests_then_the_backends_then_the_models(
    context: MakeContext, of_request: float | None, of_backend: float | None, deadline: float
):
    backend = ReplicateBackend(context(deadline_seconds=of_backend))
    assert (await plan_for(backend, deadline_seconds=of_request)).deadline_seconds == deadline


async def test_a_community_model_gets_its_version_pinned_and_runs(
    context: MakeContext, emulator: Emulator, clock: ManualClock
):
    backend = ReplicateBackend(context(model=COMMUNITY.name))
    intent = await intend(backend, clock, options={"size": "small"})
    assert intent.model == f"{COMMUNITY.name}:{COMMUNITY.version_id}"
    assert set(intent.input) == {"prompt", "size", "seed"}
    assert (await backend.submit(intent, hold_seconds=5, secrets={})).status is Status.SUCCEEDED
    with pytest.raises(InvalidInput, match="small, large"):
        await plan_for(backend, options={"size": "huge"})


@pytest.mark.parametrize("version", [None, COMMUNITY.version_id])
async def test_what_replicate_told_of_a_model_is_remembered_also_by_the_next_process(
    context: MakeContext, emulator: Emulator, clock: ManualClock, version: str | None
):
    ref = ModelRef("someone", "hobby-model", version)
    for _ in range(2):
        for _ in range(2):
            await plan_for(ReplicateBackend(context()), model=ref)
    backend = ReplicateBackend(context())
    await plan_for(backend, model=ref)
    assert len(emulator.journal) == 1
    clock.advance(25 * 3600)
    await plan_for(backend, model=ref)
    await plan_for(ReplicateBackend(context()), model=ref)
    assert len(emulator.journal) == (2 if version is None else 1), "a version never changes"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"asked_at": 5}', b"\xff"])
async def test_a_broken_cache_is_asked_again(context: MakeContext, tmp_path: Path, content: bytes):
    ref = ModelRef("someone", "hobby-model")
    await plan_for(ReplicateBackend(context()), model=ref)
    (kept,) = (tmp_path / "cache" / "schemas").iterdir()
    kept.write_bytes(content)
    assert (await plan_for(ReplicateBackend(context()), model=ref)).model.endswith(COMMUNITY.version_id)


async def test_a_cache_that_cannot_be_written_is_only_slower(
    context: MakeContext, tmp_path: Path, emulator: Emulator
):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        backend = ReplicateBackend(context(cache_folder=tmp_path / "file"))
        assert await plan_for(backend, model=ModelRef("someone", "hobby-model"))
    assert len(emulator.journal) == 2


async def test_a_model_that_nobody_knows_is_named(backend: ReplicateBackend):
    with pytest.raises(ModelNotFound, match=r"^fast: 404: nobody/nothing was not found"):
        await plan_for(backend, model=ModelRef("nobody", "nothing"))


async def test_a_deployment_runs_what_it_deploys(
    backend: ReplicateBackend, clock: ManualClock, emulator: Emulator
):
    intent = make_prediction(model="deployments/emulated/flux-deployment", sent_at=clock.now())
    sighting = await backend.submit(intent, hold_seconds=5, secrets={})
    assert sighting.status is Status.SUCCEEDED
    (entry,) = emulator.journal.entries(operation="predictions.create")
    assert entry.path == "/v1/deployments/emulated/flux-deployment/predictions"
    found = await backend.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == sighting.upstream_id
    assert backend.price(intent) is None


async def test_what_a_deployment_takes_is_asked_of_the_version_that_it_runs(
    backend: ReplicateBackend, emulator: Emulator
):
    ref = ModelRef.parse("deployments/emulated/flux-deployment")
    plan = await plan_for(backend, model=ref)
    assert (plan.model, plan.seed_field) == (str(ref), "seed")
    assert [entry.operation for entry in emulator.journal.entries()] == [
        "deployments.get",
        "models.versions.get",
    ]
    with pytest.raises(InvalidInput, match="stepz"):
        await plan_for(backend, model=ref, options={"stepz": 4})
    with pytest.raises(ModelNotFound, match="deployments/nobody/nothing"):
        await plan_for(backend, model=ModelRef.parse("deployments/nobody/nothing"))


async def test_a_deployment_that_tells_no_release_is_garbled(backend: ReplicateBackend, emulator: Emulator):
    emulator.add_fault(
        "status", operation="deployments.get", status=200, body={"current_release": None}, times=None
    )
    with pytest.raises(GarbledResponse, match="no release") as told:
        await plan_for(backend, model=ModelRef.parse("deployments/emulated/flux-deployment"))
    assert told.value.backend == "fast"


async def test_the_same_token_elsewhere_is_another_account(context: MakeContext, emulator: Emulator):
    token = Secret("r8_contract")
    bases = (
        emulator.url,
        "https://api.replicate.com",
        "https://API.replicate.com:443/",
        "https://proxy.example",
    )
    here, there, again, proxy = (ReplicateBackend(context(api_base=base)).account for base in bases)
    assert here == f"{token.fingerprint()}@{emulator.url}"
    assert there == again == f"{token.fingerprint()}@https://api.replicate.com:443"
    assert len({here, there, proxy}) == 3
    assert ReplicateBackend(context(token=Secret("r8_other"))).account != here
    assert ReplicateBackend(context(token=None)).account == "none"


# --- secrets that go in ---


KEYED = Model(
    name="someone/keyed-model",
    official=True,
    parameters={
        "prompt": {"type": "string"},
        "openai_api_key": {"type": "string"},
        "pin": {"type": "string", "x-cog-secret": True},
        "seed": {"type": "integer"},
    },
)


async def test_secrets_are_sent_and_written_down_nowhere(
    context: MakeContext, emulator: Emulator, clock: ManualClock
):
    emulator.add_model(KEYED)
    backend = ReplicateBackend(context(model=KEYED.name))
    secrets = {"openai_api_key": "sk-canary", "pin": "1234-canary"}
    plan = await plan_for(backend, options=secrets)
    assert plan.secrets == secrets
    assert "canary" not in repr(plan.input) + repr(plan.identity)
    intent = await intend(backend, clock, options=secrets)
    assert "canary" not in repr(intent)
    bought = await backend.submit(intent, hold_seconds=0, secrets=plan.secrets)
    (entry,) = emulator.journal.entries(operation="models.predictions.create")
    assert entry.body["input"] == {"prompt": "a fox", "seed": 1, **secrets}
    assert intent.input["pin"] == HIDDEN, "what is written down is left as it is"
    found = await backend.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == bought.upstream_id


async def test_a_refusal_that_quotes_a_secret_is_told_without_it(context: MakeContext):
    async def play(exchange: Exchange) -> None:
        key = msgspec.json.decode(exchange.body)["input"]["openai_api_key"]
        fault = {"field": "input.openai_api_key", "description": f"{key} is no key, nor is {key[:20]}…"}
        await exchange.answer(msgspec.json.encode({"detail": key, "invalid_fields": [fault]}), 422)

    async with raw_server(play) as host:
        backend = ReplicateBackend(context(api_base=host.url))
        with pytest.raises(InputRejected) as told:
            await backend.submit(
                make_prediction(input={"openai_api_key": HIDDEN}),
                hold_seconds=0,
                secrets={"openai_api_key": "sk-canary-0123456789-0123456789", "n": 5},
            )
    assert "canary" not in str(told.value) + repr(told.value.problems)
    assert told.value.problems[0].message == f"{HIDDEN} is no key, nor is {HIDDEN}…"


# --- files that go in ---


async def test_a_small_picture_travels_inside_and_a_large_one_is_uploaded(
    context: MakeContext, emulator: Emulator, tmp_path: Path
):
    backend = ReplicateBackend(context(model="black-forest-labs/flux-kontext-pro"))
    small, large = tmp_path / "small.png", tmp_path / "large.jpg"
    small.write_bytes(b"\x89PNG" + b"s" * 1000)
    large.write_bytes(b"\xff\xd8" + b"l" * INLINE_BYTES)
    inside = await plan_for(backend, input_image=small)
    assert inside.input["input_image"].startswith("data:image/png;base64,iVBOR")
    assert emulator.journal.entries(operation="files.create") == ()
    uploaded = await plan_for(backend, input_image=large)
    assert uploaded.input["input_image"].startswith(f"{emulator.url}/v1/files/")
    for plan, path in ((inside, small), (uploaded, large)):
        assert plan.identity["input_image"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    again = await plan_for(backend, input_image=large)
    assert again.identity == uploaded.identity
    assert again.input != uploaded.input


async def test_the_size_of_an_uploaded_picture_is_in_its_quote(
    context: MakeContext, clock: ManualClock, tmp_path: Path
):
    backend = ReplicateBackend(context(model="black-forest-labs/flux-2-pro"))
    picture, other = tmp_path / "noise.png", tmp_path / "no.png"
    Image.effect_noise((1536, 1536), 100).save(picture)
    other.write_bytes(b"x" * (INLINE_BYTES + 1))
    assert picture.stat().st_size > INLINE_BYTES
    intent = await intend(backend, clock, input_image=picture)
    assert intent.input["input_images"][0].startswith("http")
    # 2.25 megapixels in count as 3, besides the run and the megapixel that comes out
    assert backend.quote(intent) == Quote.exactly(Usd.parse("0.075"))
    assert backend.price(intent) == Usd.parse("0.075")
    unknown = await intend(backend, clock, number=2, input_image=other)
    assert backend.quote(unknown).high is None


@pytest.mark.parametrize("what", ["missing", "empty", "folder"])
async def test_a_picture_that_cannot_be_read_is_named(context: MakeContext, tmp_path: Path, what: str):
    backend = ReplicateBackend(context(model="black-forest-labs/flux-kontext-pro"))
    path = {"missing": tmp_path / "no.png", "empty": tmp_path / "empty.png", "folder": tmp_path}[what]
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match="input_image"):
        await plan_for(backend, input_image=path)


# --- the create ---


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (("rate_limit", {"retry_after": 0}), (BackendRateLimited, "no")),
        (("payment_required", {}), (PaymentRequired, "no")),
        (("status", {"status": 500}), (BackendBroken, "unknown")),
        (("status_after", {"status": 502}), (BackendBroken, "unknown")),
        (("drop", {}), (ExchangeFailed, "unknown")),
        (("drop_after", {}), (ExchangeFailed, "unknown")),
        (("cut", {}), (ExchangeFailed, "unknown")),
        (("garbage", {"kind": "html"}), (GarbledResponse, "unknown")),
        (("garbage_after", {"kind": "half_json"}), (GarbledResponse, "unknown")),
        (("garbage_after", {"kind": "empty"}), (GarbledResponse, "unknown")),
        (("redirect", {"location": "https://elsewhere.example/"}), (InvalidResponse, "unknown")),
    ],
    ids=str,
)
async def test_a_create_is_sent_exactly_once_whatever_comes_back(
    backend: ReplicateBackend,
    emulator: Emulator,
    clock: ManualClock,
    fault: tuple[str, dict[str, Any]],
    outcome: tuple[type[BackendError], str],
):
    kind, delivered = outcome
    intent = await intend(backend, clock)
    emulator.add_fault(fault[0], operation="predictions.create", times=None, **fault[1])
    with pytest.raises(kind) as told:
        await backend.submit(intent, hold_seconds=0, secrets={})
    assert creates(emulator) == 1
    assert clock.slept == []
    assert (told.value.delivered, told.value.backend) == (delivered, "fast")
    assert str(told.value).startswith("fast: ")
    found = await backend.find(intent, ignore=frozenset())
    assert (found is not None) == (emulator.purchases == 1)


async def test_a_create_that_finds_no_host_is_sent_by_nobody(context: MakeContext, clock: ManualClock):
    backend = ReplicateBackend(context(api_base="http://127.0.0.1:9"))
    with pytest.raises(ConnectFailed) as told:
        await backend.submit(await intend(backend, clock), hold_seconds=0, secrets={})
    assert (told.value.delivered, told.value.backend) == ("no", "fast")


async def test_a_wrong_token_is_told_with_the_variable(context: MakeContext, clock: ManualClock):
    backend = ReplicateBackend(context(token=Secret("r8_invalid"), token_env="MY_TOKEN"))
    with pytest.raises(BackendUnauthenticated, match=r"MY_TOKEN.*imagen auth login") as told:
        await backend.submit(await intend(backend, clock), hold_seconds=0, secrets={})
    assert "r8_invalid" not in repr(told.value) + str(told.value)


async def test_what_the_service_refuses_is_told_by_field_and_without_the_prompt(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    prompt = "a very  secret\nwish"
    intent = await intend(backend, clock, prompt=prompt)
    body = {
        "title": "Input validation failed",
        "detail": f"- input.prompt: '{prompt}' is not nice",
        "invalid_fields": [{"field": "input.prompt", "description": f"'{prompt}' is not nice"}],
    }
    emulator.add_fault("status", operation="predictions.create", status=422, body=body)
    with pytest.raises(InputRejected) as told:
        await backend.submit(intent, hold_seconds=0, secrets={})
    assert "secret" not in str(told.value) + repr(told.value) + repr(told.value.problems)
    assert [problem.field for problem in told.value.problems] == ["prompt"]
    assert SCHNELL in str(told.value)


@pytest.mark.parametrize("fault", ["loose", "early_output", "data_uri_output"])
async def test_answers_of_every_recorded_form_are_understood(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock, tmp_path: Path, fault: str
):
    emulator.add_fault(fault)
    sighting = await backend.submit(await intend(backend, clock), hold_seconds=5, secrets={})
    assert sighting.status is Status.SUCCEEDED
    got = await backend.fetch(sighting.output[0], tmp_path / "x", limit_bytes=10_000_000)
    assert got.media_type == "image/png"


# --- everything else is repeated ---


@pytest.mark.parametrize(
    "fault",
    [("status", {"status": 503}), ("drop", {}), ("rate_limit", {"retry_after": 2}), ("cut", {})],
    ids=str,
)
async def test_looking_is_repeated_until_it_is_answered(
    backend: ReplicateBackend,
    emulator: Emulator,
    clock: ManualClock,
    heard: Heard,
    fault: tuple[str, dict[str, Any]],
):
    intent = await intend(backend, clock)
    known = intent.observe(await backend.submit(intent, hold_seconds=5, secrets={}), now=clock.now())
    emulator.add_fault(fault[0], operation="predictions.get", times=2, **fault[1])
    assert (await backend.look(known)).status is Status.SUCCEEDED
    told = [event.seconds for event in heard.events if isinstance(event, Waiting)]
    assert clock.slept == told
    assert told in ([0.5, 1.0], [2.0, 2.0], [0.5])  # aiohttp repeats a dropped GET once by itself


@pytest.mark.parametrize("kind", ["html", "half_json", "empty"])
async def test_a_garbled_look_is_repeated_and_names_the_backend_in_the_end(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock, kind: str
):
    intent = await intend(backend, clock)
    known = intent.observe(await backend.submit(intent, hold_seconds=5, secrets={}), now=clock.now())
    emulator.add_fault("garbage", operation="predictions.get", kind=kind)
    assert (await backend.look(known)).status is Status.SUCCEEDED
    assert clock.slept == [0.5]
    emulator.add_fault("garbage", operation="predictions.get", kind=kind, times=None)
    with pytest.raises(GarbledResponse, match="after 6 attempts") as told:
        await backend.look(known)
    assert told.value.backend == "fast"


async def test_an_answer_that_leads_elsewhere_is_not_asked_for_again(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    emulator.add_fault("redirect", operation="predictions.get", location="https://elsewhere.example/")
    with pytest.raises(InvalidResponse) as told:
        await backend.look(make_prediction(upstream_id="a" * 26))
    assert (type(told.value), told.value.retryable, clock.slept) == (InvalidResponse, False, [])


async def test_canceling_stops_what_runs(backend: ReplicateBackend, emulator: Emulator, clock: ManualClock):
    emulator.add_fault("slow", run_seconds=60)
    intent = await intend(backend, clock)
    running = intent.observe(await backend.submit(intent, hold_seconds=0, secrets={}), now=clock.now())
    assert not running.status.terminal
    emulator.add_fault("drop_after", operation="predictions.cancel")
    assert (await backend.cancel(running)).status is Status.CANCELED
    assert (await backend.cancel(running)).status is Status.CANCELED


async def test_looking_needs_an_upstream_id(backend: ReplicateBackend):
    with pytest.raises(ValueError, match="has no upstream id yet"):
        await backend.look(make_prediction())


# --- finding what a lost answer bought ---


async def buy_others(backend: ReplicateBackend, like: Prediction, count: int) -> None:
    for first in range(0, count, 50):
        await asyncio.gather(
            *(
                backend.submit(
                    replace(like, input={**like.input, "seed": 1000 + number}), hold_seconds=0, secrets={}
                )
                for number in range(first, min(first + 50, count))
            )
        )


async def test_it_is_found_among_hundreds_on_a_later_page(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    await buy_others(backend, intent, 30)
    bought = await backend.submit(intent, hold_seconds=0, secrets={})
    await buy_others(backend, intent, 230)
    found = await backend.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == bought.upstream_id
    assert len(emulator.journal.entries(operation="predictions.list")) == 3


async def test_for_an_older_one_the_pages_in_between_are_jumped_over(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    bought = await backend.submit(intent, hold_seconds=0, secrets={})
    emulator.clock.advance(1800)
    clock.advance(1800)
    await buy_others(backend, intent, 330)
    found = await backend.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == bought.upstream_id
    assert len(emulator.journal.entries(operation="predictions.list")) == 2


@pytest.mark.parametrize("hours", [-30, -3, 3, 30])
async def test_a_wrong_clock_of_ours_does_not_hide_it(context: MakeContext, emulator: Emulator, hours: int):
    wrong = ManualClock(datetime.now(UTC) + timedelta(hours=hours))
    backend = ReplicateBackend(context(clock=wrong))
    intent = await intend(backend, wrong)
    bought = await backend.submit(intent, hold_seconds=0, secrets={})
    await buy_others(backend, intent, 110)
    found = await backend.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == bought.upstream_id
    assert abs((await backend.probe())["clock_ahead_seconds"] - hours * 3600) < 5


async def test_one_from_long_before_is_not_taken_for_it(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    await backend.submit(intent, hold_seconds=0, secrets={})
    later = replace(intent, sent_at=clock.now() + timedelta(minutes=5))
    assert await backend.find(later, ignore=frozenset()) is None


async def test_of_equal_ones_the_first_that_is_not_known_is_taken(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    bought = [(await backend.submit(intent, hold_seconds=0, secrets={})).upstream_id for _ in range(3)]

    async def found(*ignored: str) -> str | None:
        sighting = await backend.find(intent, ignore=frozenset(ignored))
        return sighting.upstream_id if sighting else None

    assert await found() == bought[0]
    assert await found(bought[0]) == bought[1]
    assert await found(bought[0], bought[1]) == bought[2]
    assert await found(*bought) is None


async def test_another_model_with_the_same_input_is_another_prediction(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    await backend.submit(intent, hold_seconds=0, secrets={})
    other = replace(intent, model="black-forest-labs/flux-dev")
    assert await backend.find(other, ignore=frozenset()) is None


async def test_after_an_hour_it_can_no_longer_be_recognised(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    await backend.submit(intent, hold_seconds=5, secrets={})
    emulator.clock.advance(3700)
    assert await backend.find(intent, ignore=frozenset()) is None


async def test_a_list_that_is_none_is_not_taken_for_an_empty_one(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    intent = await intend(backend, clock)
    nonsense: dict[str, Any] = {"status": 200, "body": {"detail": "maintenance"}}
    emulator.add_fault("status", operation="predictions.list", **nonsense)
    assert await backend.find(intent, ignore=frozenset()) is None, "the second answer is a list"
    emulator.add_fault("status", operation="predictions.list", times=None, **nonsense)
    with pytest.raises(GarbledResponse) as told:
        await backend.find(intent, ignore=frozenset())
    assert told.value.backend == "fast"


class Listed:
    """A service that lists what it is told, page by page; `following` makes the address after a page."""

    def __init__(
        self, *pages: list[dict[str, Any]], following: Callable[[int], str | None] | None = None
    ) -> None:
        self._pages = pages
        self._following = following or self._until_the_last
        self.asked: list[str] = []

    def _until_the_last(self, page: int) -> str | None:
        return (
            f"https://elsewhere.example/v1/predictions?cursor={page + 1}" if page < len(self._pages) else None
        )

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.path)
        page = len(self.asked)
        results = self._pages[page - 1] if page <= len(self._pages) else []
        await exchange.answer(
            msgspec.json.encode({"results": results, "next": self._following(page)}),
            authorization=exchange.headers["authorization"],
        )


def listed(prediction: Prediction, identity: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "model": prediction.model,
        "input": prediction.input,
        "status": "succeeded",
        "created_at": prediction.created_at.isoformat(),
        **changes,
    }


async def find_among(
    context: MakeContext, service: Listed, prediction: Prediction, **more: Any
) -> str | None:
    async with raw_server(service) as host:
        backend = ReplicateBackend(context(api_base=host.url, **more))
        found = await backend.find(prediction, ignore=frozenset({"known"}))
        assert all(one.headers["authorization"] == "Bearer r8_contract" for one in host.exchanges)
        return found.upstream_id if found else None


async def test_further_pages_are_asked_at_home_whatever_their_address_is(context: MakeContext):
    ours = make_prediction()
    service = Listed([], [listed(ours, "known")], [listed(ours, "up-1")])
    assert await find_among(context, service, ours) == "up-1"
    assert service.asked == ["/v1/predictions", "/v1/predictions?cursor=2", "/v1/predictions?cursor=3"]


@pytest.mark.parametrize(
    ("following", "asked"),
    [
        (lambda page: "/v1/predictions?cursor=same", 2),
        (lambda page: f"/v1/predictions?cursor={page % 3}", 4),
        (lambda page: f"/v1/predictions?cursor={page}", 401),
        (lambda page: "https://[", 1),
        (lambda page: "https://a.b/c", 1),
    ],
    ids=["itself", "a circle", "endless", "no address", "no page"],
)
async def test_nothing_is_concluded_from_a_list_that_does_not_end(
    context: MakeContext, following: Callable[[int], str | None], asked: int
):
    ours = make_prediction()
    service = Listed([listed(ours, "up-1", input={"prompt": "another"})], following=following)
    with pytest.raises(GarbledResponse, match="does not come to an end") as told:
        await find_among(context, service, ours)
    assert (told.value.backend, told.value.delivered) == ("fast", "unknown")
    assert len(service.asked) == asked


async def test_where_it_would_be_the_list_need_not_end(context: MakeContext):
    ours = make_prediction()
    old = listed(ours, "old", created_at=(ours.created_at - timedelta(hours=1)).isoformat())
    assert await find_among(context, Listed([old], following=lambda page: "https://["), ours) is None


IMAGE, OTHER_IMAGE = "data:image/png;base64,AAAA", "data:image/png;base64,BBBB"


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ({"image": IMAGE}, {"image": IMAGE}, True),
        ({"image": IMAGE}, {"image": OTHER_IMAGE}, False),
        ({"image": IMAGE}, {"image": "https://replicate.delivery/in.png"}, True),
        ({"images": [IMAGE]}, {"images": ["https://replicate.delivery/in.png"]}, True),
        ({"images": [IMAGE]}, {"images": [OTHER_IMAGE]}, False),
        ({"image": "https://a.b/c"}, {"image": "https://a.b/d"}, False),
        ({"api_key": HIDDEN}, {"api_key": "sk-1"}, True),
        ({"api_key": HIDDEN}, {"api_key": None}, True),
        ({"api_key": HIDDEN}, {}, True),
        ({"steps": 4}, {}, False),
        ({"steps": None}, {}, True),
        ({}, {"go_fast": True}, True),
    ],
)
async def test_what_makes_an_input_the_same(
    context: MakeContext, ours: dict[str, Any], theirs: dict[str, Any], same: bool
):
    base = {"prompt": "a fox", "seed": 7}
    wanted = make_prediction(input={**base, **ours})
    service = Listed([listed(wanted, "up-1", input={**base, **theirs})])
    assert await find_among(context, service, wanted) == ("up-1" if same else None)


async def test_of_several_with_a_file_and_no_seed_none_is_taken(context: MakeContext):
    shown = {"prompt": "a fox", "image": "https://replicate.delivery/in.png"}
    ours = make_prediction(seed=None, input={**shown, "image": IMAGE})
    both = [listed(ours, "up-2", input=shown), listed(ours, "up-1", input=shown)]
    with pytest.raises(GarbledResponse, match=r"^fast: 2 predictions .* nothing tells them apart"):
        await find_among(context, Listed(both), ours)
    assert await find_among(context, Listed(both[1:]), ours) == "up-1"
    known = [listed(ours, "known", input=shown), both[1]]
    assert await find_among(context, Listed(known), ours) == "up-1"
    assert await find_among(context, Listed(both), replace(ours, seed=7)) == "up-1"
    assert await find_among(context, Listed(both), replace(ours, input={"prompt": "a fox"})) == "up-1"


@pytest.mark.parametrize("hours", [-5, 5])
async def test_a_clock_that_was_set_right_after_sending_does_not_hide_it(
    context: MakeContext, emulator: Emulator, hours: int
):
    """Both readings of the moment count: the one that was right then, and the one that is right now."""
    now = datetime.now(UTC)
    right = ManualClock(now)
    backend = ReplicateBackend(context(clock=right))
    intent = await intend(backend, right)
    bought = await backend.submit(intent, hold_seconds=0, secrets={})
    wrong = ReplicateBackend(context(clock=ManualClock(now + timedelta(hours=hours))))
    found = await wrong.find(intent, ignore=frozenset())
    assert found is not None
    assert found.upstream_id == bought.upstream_id


# --- pictures ---


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_picture_that_is_there_at_the_second_look_is_fetched(
    backend: ReplicateBackend, tmp_path: Path, status: int
):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"whole", 200 if exchange.number else status)

    async with raw_server(play) as host:
        await backend.fetch(f"{host.url}/a.png", tmp_path / "x", limit_bytes=1000)
    assert (tmp_path / "x").read_bytes() == b"whole"


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_picture_that_is_gone_is_told_with_its_status(
    backend: ReplicateBackend, tmp_path: Path, status: int
):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"gone", status)

    async with raw_server(play) as host:
        with pytest.raises(BackendBroken, match="does not have the picture") as told:
            await backend.fetch(f"{host.url}/a.png", tmp_path / "x", limit_bytes=1000)
    assert (told.value.status, told.value.backend) == (status, "fast")
    assert told.value.retryable
    assert len(host.exchanges) == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (408, BackendBroken),
        (425, BackendBroken),
        (429, BackendRateLimited),
        (500, BackendBroken),
        (503, BackendBroken),
    ],
)
async def test_a_host_in_trouble_is_asked_once_more_and_the_picture_is_not_given_up(
    backend: ReplicateBackend, tmp_path: Path, clock: ManualClock, status: int, kind: type[BackendError]
):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"busy", status, retry_after="1")

    async with raw_server(play) as host:
        with pytest.raises(kind) as told:
            await backend.fetch(f"{host.url}/a.png", tmp_path / "x", limit_bytes=1000)
    assert told.value.retryable
    assert told.value.backend == "fast"
    assert len(host.exchanges) in {2, 4}


async def test_a_cut_download_is_made_again_from_the_beginning(
    backend: ReplicateBackend, tmp_path: Path, clock: ManualClock
):
    async def play(exchange: Exchange) -> None:
        if exchange.number == 0:
            await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 50)
            exchange.writer.close()
        else:
            await exchange.answer(b"whole", content_type="image/png")

    async with raw_server(play) as host:
        got = await backend.fetch(f"{host.url}/a.png", tmp_path / "x", limit_bytes=1000)
    assert (got.size_bytes, (tmp_path / "x").read_bytes()) == (5, b"whole")


async def test_a_picture_that_is_too_large_is_not_fetched(backend: ReplicateBackend, tmp_path: Path):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"x" * 2000)

    async with raw_server(play) as host:
        with pytest.raises(InvalidResponse):
            await backend.fetch(host.url, tmp_path / "x", limit_bytes=1000)


@pytest.mark.parametrize(
    ("uri", "content", "media_type"),
    [
        ("data:image/png;base64,aGVsbG8=", b"hello", "image/png"),
        ("data:;base64,aGVsbG8=", b"hello", None),
        ("data:text/plain,a%20b", b"a b", "text/plain"),
        ("data:image/svg+xml;charset=utf-8;base64,PHN2Zy8+", b"<svg/>", "image/svg+xml"),
    ],
)
async def test_pictures_inside_the_answer_are_unpacked(
    backend: ReplicateBackend, tmp_path: Path, uri: str, content: bytes, media_type: str | None
):
    got = await backend.fetch(uri, tmp_path / "x", limit_bytes=1000)
    assert ((tmp_path / "x").read_bytes(), got.media_type) == (content, media_type)


@pytest.mark.parametrize(
    "uri",
    ["data:", "data:image/png;base64", "data:image/png;base64,a", "data:image/png;base64,ä===", f"data:;base64,{'A' * 4000}", f"data:,{'A' * 4000}"],
    ids=lambda uri: uri[:26],
)  # fmt: skip
async def test_broken_or_large_pictures_inside_the_answer_are_defective(
    backend: ReplicateBackend, tmp_path: Path, uri: str
):
    with pytest.raises(OutputDefective):
        await backend.fetch(uri, tmp_path / "x", limit_bytes=1000)


@pytest.mark.parametrize(
    "url", ["", "hello", "https://[", "ftp://a.b/c", "http://a.b/c", "file:///etc/passwd"]
)
async def test_outputs_that_are_no_safe_address_are_refused(
    backend: ReplicateBackend, tmp_path: Path, url: str
):
    with pytest.raises(InvalidResponse):
        await backend.fetch(url, tmp_path / "x", limit_bytes=1000)


async def test_the_token_is_not_shown_to_file_hosts(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock, tmp_path: Path
):
    sighting = await backend.submit(await intend(backend, clock), hold_seconds=5, secrets={})
    await backend.fetch(sighting.output[0], tmp_path / "x", limit_bytes=10_000_000)
    (entry,) = emulator.journal.entries(operation="delivery")
    assert entry.authorization is None


# --- what it costs ---


@pytest.mark.parametrize(
    ("model", "facts", "dollars"),
    [
        (SCHNELL, {}, "0.003"),
        (SCHNELL, {"input": {"num_outputs": 4}}, "0.012"),
        (SCHNELL, {"input": {"num_outputs": 4}, "output": ("a", "b")}, "0.006"),
        (SCHNELL, {"input": {"num_outputs": 4}, "output": ("a", "b"), "image_count": 3}, "0.009"),
        (f"{SCHNELL}:{'a' * 64}", {}, "0.003"),
        ("black-forest-labs/flux-2-pro", {}, "0.03"),
        ("black-forest-labs/flux-2-pro", {"input": {"resolution": "2 MP"}}, "0.045"),
        ("black-forest-labs/flux-2-pro", {"input": {"input_images": ["https://a.b/c"]}}, None),
        ("black-forest-labs/flux-2-pro", {"input": {"resolution": "match_input_image"}}, None),
        ("someone/hobby-model", {}, None),
        ("deployments/acme/flux-schnell", {}, None),
    ],
)
def test_the_price_of_a_prediction(
    context: MakeContext, model: str, facts: dict[str, Any], dollars: str | None
):
    price = ReplicateBackend(context()).price(make_prediction(model=model, **{"input": {}, **facts}))
    assert price == (None if dollars is None else Usd.parse(dollars))


odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["²", "1 MP", "٣", "-1", "."])  # fmt: skip
NAMES = [
    "width",
    "height",
    "megapixels",
    "resolution",
    "num_outputs",
    "number_of_images",
    "input_images",
    "go_fast",
]


class Nowhere:
    """A backend that only tells prices."""

    def __init__(self) -> None:
        given_ = dict.fromkeys(BackendContext.__struct_fields__)
        settings = {
            "name": "x",
            "api_base": "https://api.replicate.com",
            "token_env": "T",
            "catalog": CATALOG,
        }
        values: dict[str, Any] = {
            **given_,
            **settings,
            "cache_folder": Path("x"),
            "default_aspect_ratio": "1:1",
        }
        self.price = ReplicateBackend(BackendContext(**values)).price


@given(
    st.sampled_from([model.name for model in CATALOG]),
    st.dictionaries(st.sampled_from(NAMES), odd),
    st.none() | st.floats(0, 1e9),
)
def test_telling_a_price_never_fails(model: str, values: dict[str, Any], seconds: float | None):
    price = Nowhere().price(make_prediction(model=model, input=values, predict_seconds=seconds))
    assert price is None or price >= Usd(0)


# --- many at once ---


async def many(backend: Backend, clock: ManualClock, count: int, **fields: Any) -> list[Prediction]:
    """So many that run at the service."""
    made = []
    for number in range(1, count + 1):
        intent = await intend(backend, clock, number=number, **fields)
        made.append(intent.observe(await backend.submit(intent, hold_seconds=0, secrets={}), now=clock.now()))
    return made


async def test_a_page_tells_of_those_that_have_moved_and_names_the_others(
    any_backend: Backend, clock: ManualClock
):
    made = await many(any_backend, clock, 4)
    stood = {str(one.upstream_id): Status.PROCESSING for one in made[:3]}
    glance = await any_backend.look_many(stood)
    while len(glance.moved) < 3:
        glance = await any_backend.look_many(stood)
    assert set(glance.shown) == set(stood), "the fourth is of no interest"
    seen = await any_backend.look(made[0])
    assert seen.told_at is not None
    assert glance.moved[seen.upstream_id] == msgspec.structs.replace(seen, told_at=None)
    ended: dict[str, Status | None] = dict.fromkeys(stood)
    assert set((await any_backend.look_many(ended)).moved) == set(stood), "None asks for all that is told"
    assert (glance.last, len((await any_backend.look_many({})).shown)) == (True, 0)


async def test_those_that_stand_as_they_stood_are_not_read(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    emulator.add_fault("slow", run_seconds=60, times=None)
    made = await many(backend, clock, 3)
    stood = {str(one.upstream_id): Status.PROCESSING for one in made}
    glance = await backend.look_many(stood)
    assert (len(glance.shown), glance.moved) == (3, {})
    stood[str(made[0].upstream_id)] = Status.STARTING
    assert list((await backend.look_many(stood)).moved) == [made[0].upstream_id]


async def test_a_list_is_read_from_any_instant_of_the_services_clock(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    made = []
    for _ in range(3):
        made += await many(backend, clock, 1)
        emulator.clock.advance(60)
    known: dict[str, Status | None] = {str(one.upstream_id): None for one in made}
    whole = await backend.look_many(known)
    assert list(whole.shown) == [one.upstream_id for one in reversed(made)]
    middle = whole.shown[str(made[1].upstream_id)]
    assert middle is not None
    assert (whole.newest, whole.oldest) == (
        whole.shown[str(made[2].upstream_id)],
        whole.shown[str(made[0].upstream_id)],
    )
    part = await backend.look_many(known, before=middle + timedelta(milliseconds=20))
    assert list(part.shown) == [made[1].upstream_id, made[0].upstream_id]


async def test_a_page_holds_a_hundred_and_says_whether_more_follow(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    emulator.set_mode(creates_per_minute=0)
    made = await many(backend, clock, 101)
    known: dict[str, Status | None] = {str(one.upstream_id): None for one in made}
    glance = await backend.look_many(known)
    assert (len(glance.shown), glance.last) == (100, False)
    assert made[0].upstream_id not in glance.shown


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"name": "garbage"}, GarbledResponse),
        ({"name": "status", "status": 500}, BackendBroken),
        ({"name": "status", "status": 200, "body": {"results": {}}}, GarbledResponse),
        ({"name": "status", "status": 200, "body": []}, GarbledResponse),
        ({"name": "status", "status": 401}, BackendUnauthenticated),
        ({"name": "rate_limit", "retry_after": 7}, BackendRateLimited),
        ({"name": "drop"}, ExchangeFailed),
    ],
)
async def test_a_page_that_cannot_be_read_is_asked_for_once(
    fault: dict[str, Any],
    kind: type[BackendError],
    backend: ReplicateBackend,
    emulator: Emulator,
    clock: ManualClock,
):
    attributes = {**fault, "operation": "predictions.list", "times": None}
    emulator.add_fault(attributes.pop("name"), **attributes)
    with pytest.raises(kind) as told:
        await backend.look_many({"a": None})
    assert told.value.backend == "fast"
    assert told.value.retry_after == fault.get("retry_after")
    assert len(emulator.journal.entries(operation="predictions.list")) == 1
    assert clock.slept == []


async def test_entries_of_a_page_that_make_no_sense_are_left_out(
    backend: ReplicateBackend, emulator: Emulator, clock: ManualClock
):
    entries = [
        7,
        None,
        {"id": 7},
        {"status": "succeeded"},
        {"id": "b", "status": ["odd"], "created_at": "2026-11-22T10:00:00Z", "metrics": 3},
        {"id": "a", "status": "succeeded", "created_at": "yesterday", "output": "https://x/y.png"},
    ]
    emulator.add_fault(
        "status", operation="predictions.list", status=200, body={"results": entries, "next": 7}, times=None
    )
    glance = await backend.look_many({"a": Status.PROCESSING, "b": Status.PROCESSING})
    assert set(glance.shown) == {"a", "b"}
    assert (glance.moved["a"].status, glance.moved["a"].output) == (Status.SUCCEEDED, ("https://x/y.png",))
    assert glance.moved["b"].status is Status.STARTING
    assert glance.shown["a"] is None
    assert glance.last
