"""What the gateway counts, for Prometheus. docs/reference/metrics.md lists every name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.caller import OWN_TOKEN, is_stranger
from imagen.domain.events import Called, Delivered, Ended, Event, LetIn, Throttled
from imagen.domain.limits import AccountState
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction
from imagen.domain.semaphore import Semaphore
from imagen.errors import ImagenError
from imagen.instrumentation.analytics import Once, processing_ms
from imagen.server.context import Context
from imagen.server.health import check_insider
from imagen.server.operation import Operation

OTHER = "other"
"""The label of all that is too much to be named."""
MOST_MODELS = 200
MOST_ROUTES = 200
MOST_SEMAPHORES = 200
MOST_PAIRS = 500
"""Each name is a time series in Prometheus for good, and callers choose names."""
_LONGEST_NAME = 200
_STRANGERS = OWN_TOKEN.removesuffix(":")
"""All of them together, as a label."""
"""Whoever comes with a Replicate token of their own; the ledger tells them apart."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LOOK_SECONDS = 2.0
"""How long a scrape waits for the database."""

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_WAIT_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PREDICTION_SECONDS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)

Kind = TypeVar("Kind", Counter, Histogram)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is not counted but looked up when somebody asks.

    Attributes:
        account: how the gateway's own account stands; None when the database could not tell.
        semaphores: all of them; empty as above.
        waiting: predictions in line in this process.
        under_way: requests that this process works on.
        deliveries: events for callers that are still to be taken; None when the database could not tell.
    """

    account: AccountState | None
    semaphores: Sequence[Semaphore]
    waiting: int
    under_way: int
    deliveries: int | None = None


class Metrics:
    """`ports.Observer` that counts. One per server; it shares nothing with others in the process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._began = time.monotonic()
        self._take: dict[type, Callable[[Any], None]] = {
            Called: self._called,
            LetIn: self._let_in,
            Throttled: self._throttled,
            Ended: self._ended,
            Delivered: self._delivered,
        }
        self._model = _Names(MOST_MODELS)
        self._route = _Names(MOST_ROUTES)
        self._pair = _Pairs(MOST_PAIRS)
        self._once = Once()

        self._requests = self._counter(
            "imagen_requests_total", "Requests that were answered.", "route", "method", "status"
        )
        self._request_seconds = self._histogram(
            "imagen_request_seconds",
            "Seconds from a request to the end of its answer.",
            _REQUEST_SECONDS,
            "route",
        )
        self._calls = self._counter(
            "imagen_upstream_calls_total",
            "Calls to the service that makes the pictures; status is none when no answer came.",
            "operation",
            "status",
        )
        self._refusals = self._counter("imagen_throttled_total", "Answers of the service that said 429.")
        self._waits = self._histogram(
            "imagen_wait_seconds", "Seconds that predictions waited for a place and a turn.", _WAIT_SECONDS
        )
        self._predictions = self._counter(
            "imagen_predictions_total", "Predictions that ended, by how they ended.", "model", "outcome"
        )
        self._prediction_seconds = self._histogram(
            "imagen_prediction_seconds",
            "Seconds from the moment a prediction was sent until its end was known.",
            _PREDICTION_SECONDS,
            "model",
        )
        self._unpriced = self._counter(
            "imagen_unpriced_predictions_total",
            "Predictions that are billed at a price that is not known; imagen_cost_usd_total lacks them.",
            "model",
        )
        self._deliveries = self._counter(
            "imagen_deliveries_total",
            "Attempts to tell a caller of an event: taken, failed for now, or given up.",
            "outcome",
        )
        self._webhooks = self._counter(
            "imagen_webhooks_total",
            "Webhooks that arrived: taken, repeated, forged, stale, malformed, unverified or unexpected.",
            "outcome",
        )
        self._generations = self._counter(
            "imagen_generations_total",
            "Predictions that ended, by whom they were made for: the event generation_completed.",
            "caller",
            "model",
            "outcome",
        )
        self._processing_seconds = self._histogram(
            "imagen_processing_seconds",
            "Seconds that a model ran, where the service tells them, else until the end of the prediction.",
            _PREDICTION_SECONDS,
            "model",
            "outcome",
        )
        self._cost_micros: dict[str, int] = {}
        self._cost_of_pairs: dict[tuple[str, str], int] = {}
        ProcessCollector(registry=self._registry)

    @property
    def uptime_seconds(self) -> float:
        """How long this has been counting: since the server began."""
        return time.monotonic() - self._began

    # --- told as it happens ------------------------------------------------------------------------------

    def notify(self, event: Event) -> None:
        """See `ports.Observer`. One event takes a microsecond or two."""
        take = self._take.get(type(event))
        if take is not None:
            take(event)

    def request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the template of its path; None, or `other`, for a path that is none of ours.
            method: as it came.
            status: of the answer; 0 when none was sent.
            seconds: how long it took, the answer's body included.
        """
        route = OTHER if route is None else self._route(route)
        self._requests(route, method if method in _METHODS else OTHER, status).inc()
        self._request_seconds(route).observe(seconds)

    def webhook(self, outcome: str) -> None:
        """A webhook arrived; `outcome` is one of a few words, never a stranger's."""
        self._webhooks(outcome).inc()

    def _called(self, event: Called) -> None:
        self._calls(event.operation, "none" if event.status is None else event.status).inc()

    def _throttled(self, _: Throttled) -> None:
        self._refusals().inc()

    def _let_in(self, event: LetIn) -> None:
        self._waits().observe(event.waited_seconds)

    def _delivered(self, event: Delivered) -> None:
        self._deliveries(event.outcome).inc()

    def _ended(self, event: Ended) -> None:
        """Count it once, however often it is told: a repeated request says again that its prediction has ended."""
        prediction = event.prediction
        if not self._once.is_new(prediction):
            return
        model = self._model(prediction.model.partition(":")[0])
        self._predictions(model, prediction.status.value).inc()
        if (milliseconds := prediction.latency_ms) is not None:
            self._prediction_seconds(model).observe(max(0, milliseconds) / 1000)
        pair = self._pair(_caller(prediction), model)
        self._generations(*pair, prediction.status.value).inc()
        if (milliseconds := processing_ms(prediction)) is not None:
            self._processing_seconds(model, prediction.status.value).observe(max(0, milliseconds) / 1000)
        self._add_cost(pair, prediction)

    def _add_cost(self, pair: tuple[str, str], prediction: Prediction) -> None:
        _, model = pair
        if not prediction.charged:  # by `spent` a lost one would be unpriced, and perhaps it was never bought
            return
        if prediction.cost is None:
            self._unpriced(model).inc()
        else:
            self._cost_micros[model] = self._cost_micros.get(model, 0) + prediction.cost.micros
            self._cost_of_pairs[pair] = self._cost_of_pairs.get(pair, 0) + prediction.cost.micros

    # --- told to whoever asks ----------------------------------------------------------------------------

    def text(self, standing: Standing, *, accept: str = "") -> tuple[bytes, str]:
        """Everything as text, and its media type.

        Args:
            standing: what was looked up just now.
            accept: the header of whoever asks: OpenMetrics for those who can read it.
        """
        encode, media_type = choose_encoder(accept)
        return encode(_All(lambda: self._families(standing))), media_type

    def _families(self, standing: Standing) -> Iterator[Metric]:
        for family in self._registry.collect():
            # The instants at which each series was begun would be half of the text.
            family.samples = [one for one in family.samples if not one.name.endswith("_created")]
            yield family
        cost = CounterMetricFamily(
            "imagen_cost_usd_total",
            "Dollars that predictions cost by the price book. Counted in whole micro-dollars.",
            labels=["model"],
        )
        for model, micros in self._cost_micros.items():
            cost.add_metric([model], Usd(micros).to_json())
        yield cost
        cost_of_pairs = CounterMetricFamily(
            "imagen_generation_cost_usd_total",
            "The same dollars, by whom they were spent for.",
            labels=["caller", "model"],
        )
        for pair, micros in self._cost_of_pairs.items():
            cost_of_pairs.add_metric(pair, Usd(micros).to_json())
        yield cost_of_pairs
        yield from _gauges(standing)

    # --- making them -------------------------------------------------------------------------------------

    def _counter(self, name: str, told: str, *labels: str) -> _Family[Counter]:
        return _Family(Counter(name, told, labels, registry=self._registry))

    def _histogram(self, name: str, told: str, buckets: Sequence[float], *labels: str) -> _Family[Histogram]:
        return _Family(Histogram(name, told, labels, registry=self._registry, buckets=buckets))


class _Family(Generic[Kind]):
    """A metric whose series are found quickly: `family("GET", 200)`. The values of its labels must be bounded."""

    __slots__ = ("_metric", "_series")

    def __init__(self, metric: Kind) -> None:
        self._metric: Kind = metric
        self._series: dict[tuple[str | int, ...], Kind] = {}

    def __call__(self, *values: str | int) -> Kind:
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = self._metric.labels(*values) if values else self._metric
        return found


class _Names:
    """The first so many names as they are, the rest as `other`."""

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self._seen:
            return name
        if len(self._seen) >= self._most or len(name) > _LONGEST_NAME:
            return OTHER
        self._seen.add(name)
        return name


class _Pairs:
    """Callers with their models: the first so many as they are, of the rest only the model."""

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, caller: str, model: str) -> tuple[str, str]:
        pair = (caller, model)
        if pair in self._seen:
            return pair
        if len(self._seen) >= self._most or len(caller) > _LONGEST_NAME:
            return (OTHER, model)
        self._seen.add(pair)
        return pair


def _caller(prediction: Prediction) -> str:
    """Whom it was made for. Of callers with tokens of their own there can be any number, so they are one."""
    return _STRANGERS if is_stranger(prediction.key, prediction.caller) else prediction.caller


class _All(Collector):
    """What an encoder takes."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _gauges(standing: Standing) -> Iterator[Metric]:
    """What was looked up. What the database did not tell has no sample, which is not the same as zero."""
    account = standing.account
    held = GaugeMetricFamily("imagen_permits_held", "Places that are taken now.", labels=["limit"])
    limit = GaugeMetricFamily("imagen_permits_limit", "Places that there are.", labels=["limit"])
    closed = GaugeMetricFamily(
        "imagen_gate_closed_seconds", "Seconds until the account may go on after a 429.", labels=["gate"]
    )
    low = GaugeMetricFamily(
        "imagen_low_credit", "1 while the service lets the account do less because its credit runs out."
    )
    if account is not None:
        held.add_metric(["account"], account.running)
        limit.add_metric(["account"], account.concurrent)
        for gate, facts in (("creates", account.creates), ("calls", account.calls)):
            closed.add_metric([gate], facts.get("closed_for_seconds", 0.0))
        low.add_metric([], account.creates.get("low_credit") is not None)
    for semaphore in standing.semaphores[:MOST_SEMAPHORES]:
        held.add_metric([f"semaphore:{semaphore.name}"], semaphore.held)
        limit.add_metric([f"semaphore:{semaphore.name}"], semaphore.limit)
    if rest := standing.semaphores[MOST_SEMAPHORES:]:
        held.add_metric([OTHER], sum(semaphore.held for semaphore in rest))
        limit.add_metric([OTHER], sum(semaphore.limit for semaphore in rest))
    yield from (held, limit, closed, low)
    yield GaugeMetricFamily(
        "imagen_waiting", "Predictions that wait in line in this process.", standing.waiting
    )
    yield GaugeMetricFamily(
        "imagen_under_way", "Requests for pictures that this process works on.", standing.under_way
    )
    deliveries = GaugeMetricFamily(
        "imagen_deliveries_waiting", "Events for callers that are still to be taken."
    )
    if standing.deliveries is not None:
        deliveries.add_metric([], standing.deliveries)
    yield deliveries
    yield GaugeMetricFamily(
        "imagen_database_up", "Whether the database could be read just now.", account is not None
    )


async def look(context: Context) -> Standing:
    """How things stand now. Never raises for a database that fails; it has two seconds to answer."""
    app = context.app
    now = app.clock.now().timestamp()
    account: AccountState | None = None
    semaphores: Sequence[Semaphore] = ()
    deliveries: int | None = None
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            account = await app.limits.show(app.backends.own().account, now=now)
            semaphores = await app.semaphores.list(now=now)
            deliveries = await app.outbox.waiting()
    except (ImagenError, TimeoutError):
        account, semaphores, deliveries = None, (), None
    return Standing(
        account=account,
        semaphores=semaphores,
        waiting=app.line.waiting,
        under_way=len(context.under_way),
        deliveries=deliveries,
    )


async def show_metrics(context: Context, request: Request) -> Response:
    """All of it as text."""
    await check_insider(context, request.headers, route="/metrics")
    body, media_type = context.metrics.text(await look(context), accept=request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type, "cache-control": "no-store"})


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/metrics",
        handler=show_metrics,
        summary="What the gateway counts, for Prometheus",
        description=(
            "Text in the format of Prometheus, or OpenMetrics for those who accept it. Needs no key where the gateway "
            "serves this machine only."
        ),
        tag="operations",
        access="admin",
        answers={200: None},
        media_type="text/plain",
        any_query=True,
    ),
)
