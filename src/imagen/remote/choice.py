"""Estimates, recommendations and preferences of a running gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from imagen.decoding import convert
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.money import Usd
from imagen.domain.request import GenerationRequest
from imagen.remote.connection import Connection
from imagen.remote.generate import RemoteGateway
from imagen.remote.refusals import shown
from imagen.service.choice_shapes import (
    Erased,
    FeedbackState,
    PreferenceList,
    QuoteAnswer,
    RecommendAnswer,
)
from imagen.service.quotes import combined

T = TypeVar("T")
_PREFERENCES = "/preferences"


class RemoteEstimator:
    """What `service.quotes.Estimator` does, at a running gateway; it raises what `Connection.ask` raises besides.

    Args:
        connection: asks it.
        gateway: translates wishes as for `generate --server`.
    """

    def __init__(self, connection: Connection, gateway: RemoteGateway) -> None:
        self._connection = connection
        self._gateway = gateway

    async def estimate(
        self, request: GenerationRequest, *, backend: str | None = None, caller: Caller = UNKNOWN
    ) -> QuoteAnswer:
        """See `Estimator.estimate`. Runs that are alike are asked for together."""
        runs = await self._gateway.plan(request, backend=backend, caller=caller)
        alike = Counter(run.images for run in runs)
        bodies = {run.images: run.body for run in runs}
        left_out = [field for note in runs[0].notes for field in note.fields]
        told = combined(
            [
                await _ask(
                    self._connection, "POST", "/quote", QuoteAnswer, body=bodies[images] | {"runs": count}
                )
                for images, count in alike.items()
            ]
        )
        return msgspec.structs.replace(told, preset=request.preset, left_out=left_out)


class RemoteRecommender:
    """What `service.recommend.Recommender` does, at a running gateway; it raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def recommend(
        self,
        *,
        budget: Usd,
        iterations: int,
        high: bool = False,
        prompt: str | None = None,
        needs: frozenset[str] = frozenset(),
        within_seconds: float | None = None,
        caller: Caller = UNKNOWN,  # noqa: ARG002 - the gateway knows callers by their keys
    ) -> RecommendAnswer:
        """See `Recommender.recommend`."""
        body: dict[str, Any] = {
            "budget": f"{budget.to_decimal():f}",
            "iterations": iterations,
            "quality": "high" if high else "standard",
            "prompt": prompt,
            "needs": sorted(needs),
            "within": within_seconds,
        }
        return await _ask(self._connection, "POST", "/recommend", RecommendAnswer, body=body)


class RemoteTastes:
    """What `service.taste.Tastes` does, at a running gateway; it raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def judge(self, prediction_id: str, *, kept: bool, dry_run: bool = False) -> FeedbackState:
        """See `Tastes.judge`. The id is a whole one of the gateway's."""
        path = f"/predictions/{quote(prediction_id, safe='')}/feedback"
        body: dict[str, Any] = {"verdict": "keep" if kept else "reject"}
        if dry_run:
            body["dry_run"] = True
        return await _ask(self._connection, "POST", path, FeedbackState, body=body)

    async def show(self, caller: str | None) -> PreferenceList:
        """See `Tastes.show`; None means whoever holds the key."""
        return await _ask(self._connection, "GET", _path(caller), PreferenceList, admin=caller is not None)

    async def erase(self, caller: str | None) -> Erased:
        """See `Tastes.erase`; None means whoever holds the key."""
        return await _ask(self._connection, "DELETE", _path(caller), Erased, admin=caller is not None)


def _path(caller: str | None) -> str:
    return _PREFERENCES if caller is None else f"{_PREFERENCES}?caller={quote(caller, safe='')}"


async def quote_previews(connection: Connection, body: Mapping[str, Any], *, count: int) -> QuoteAnswer:
    """What `count` previews cost and the final of one of them, and which budget has no room for all.

    Args:
        connection: to a gateway.
        body: of one preview, as `POST /generate` takes it.
        count: how many there are.
    """
    asked = {**body, "runs": count, "final": True}
    return await _ask(connection, "POST", "/quote", QuoteAnswer, body=asked)


async def _ask(
    connection: Connection, method: str, path: str, kind: type[T], *, body: Any = None, admin: bool = False
) -> T:
    """An answer of which no text is more than a line: it is shown to people as it is."""
    told = await connection.ask(method, path, kind, body=body, admin=admin)
    return convert(_in_lines(msgspec.to_builtins(told)), kind)


def _in_lines(told: Any) -> Any:
    match told:
        case str():
            return shown(told)
        case list():
            return [_in_lines(one) for one in told]
        case dict():
            return {shown(name): _in_lines(value) for name, value in told.items()}
        case _:
            return told
