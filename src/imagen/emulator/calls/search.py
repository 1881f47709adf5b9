"""The two searches: `QUERY /models` and `GET /search`.

A model is found when its name, description or tags hold every word of the query; the more of its name they make up,
the higher it stands. The hosted search understands more.
"""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from imagen.emulator.exchange import Exchange
from imagen.emulator.paging import numbered_page
from imagen.emulator.register import Listing
from imagen.emulator.shelves import Collection

_MOST_RESULTS = 50
_USUAL_RESULTS = 20


async def search_models(exchange: Exchange) -> web.Response:
    """`QUERY /models`: the body is the query, as text or as a JSON string (Python 2.0 beta)."""
    world, now = exchange.world, exchange.world.clock.time()
    found = [listing for _, listing in _found(exchange, str(exchange.body or ""))]
    return exchange.json(
        numbered_page(
            found,
            exchange.request.query,
            url=f"{world.api_url}/v1/models",
            shown=lambda listing: listing.to_json(now),
        )
    )


async def search(exchange: Exchange) -> web.Response:
    """`GET /search?query&limit`: models, collections and pages; there are no pages here."""
    query, limit = exchange.request.query.get("query", ""), exchange.request.query.get("limit", "")
    if not query.strip():
        return exchange.json({"detail": 'Query parameter "query" is required'}, 400)
    most = int(limit) if re.fullmatch(r"[0-9]{1,3}", limit) else _USUAL_RESULTS if not limit else 0
    if not 1 <= most <= _MOST_RESULTS:
        detail = f'Query parameter "limit" must be a whole number from 1 to {_MOST_RESULTS}'
        return exchange.json({"detail": detail}, 400)
    now, words = exchange.world.clock.time(), _words(query)
    return exchange.json(
        {
            "query": query,
            "models": [
                {"model": listing.to_json(now), "metadata": _metadata(listing, score)}
                for score, listing in _found(exchange, query)[:most]
            ],
            "collections": [
                {**collection.to_json(), "models": list(collection.models)}
                for collection in exchange.world.models.collections.values()
                if _holds(words, _text_of(collection))
            ],
            "pages": [],
        }
    )


def _found(exchange: Exchange, query: str) -> list[tuple[float, Listing]]:
    """Public models that fit, with their score, best first."""
    words = _words(query)
    public = (one for one in exchange.world.models.listings.values() if one.visibility == "public")
    fitting = [listing for listing in public if words and _holds(words, _text_of(listing))]
    scored = [(_score(words, listing), listing) for listing in fitting]
    return sorted(scored, key=lambda pair: -pair[0])


def _score(words: list[str], listing: Listing) -> float:
    name = " ".join(_words(listing.name))
    return round(sum(len(word) for word in words if word in name) / len(name), 3)


def _holds(words: list[str], text: str) -> bool:
    return all(word in text for word in words)


def _text_of(found: Listing | Collection) -> str:
    if isinstance(found, Listing):
        parts = [found.name, found.description or "", *found.tags]
    else:
        parts = [found.slug, found.name, found.description]
    return " ".join(_words(" ".join(parts)))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", text.lower())


def _metadata(listing: Listing, score: float) -> dict[str, Any]:
    return {"generated_description": listing.description, "tags": list(listing.tags), "score": score}
