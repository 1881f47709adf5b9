"""What a model takes: from the catalog, from the cache on disk, else from Replicate itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from imagen.backends.replicate.wire import ModelFacts
from imagen.catalog import Catalog
from imagen.decoding import decode
from imagen.domain.model_ref import ModelRef
from imagen.errors import InvalidModelRef
from imagen.ports import Clock

LATEST_LIVES = timedelta(hours=24)
"""How long a model's latest schema is trusted; a version's schema never changes and is kept for good."""
_MOST_NAMES = 100_000


class CachedFacts(msgspec.Struct, frozen=True):
    """Facts with the moment at which they were asked for."""

    asked_at: datetime
    facts: ModelFacts


class KnownModel(msgspec.Struct, frozen=True):
    """A model ready to run: the ref to buy by, and its input schema where one is known."""

    ref: ModelRef
    input_schema: dict[str, Any] | None


class SchemaBook:
    """Resolves model refs of one account; remembers what it learned, in memory and on disk.

    Args:
        catalog: known models, answered without any call.
        folder: where facts are kept between runs.
        ask: fetches facts from Replicate.
        clock: tells the age of facts.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        folder: Path,
        ask: Callable[[ModelRef], Awaitable[ModelFacts]],
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._ask = ask
        self._clock = clock
        self._memory: dict[str, CachedFacts] = {}
        self._names: dict[str, str] = {}

    async def resolve(self, ref: ModelRef) -> KnownModel:
        """The model behind `ref`.

        An unpinned community model gets its latest version pinned, because Replicate runs those by version only.

        Raises:
            ModelNotFound: Replicate does not know it.
        """
        if ref.nameless:
            named = self._named(ref)
            if named is None:
                return KnownModel(ref, None)  # it runs all the same, and the service checks its input
            ref = named
        known = None if ref.version or ref.deployment else self._catalog.find(ref.base)
        if (
            known is not None
            and known.official is not False
            and (schema := self._catalog.input_schema(known)) is not None
        ):
            return KnownModel(ref, schema)
        facts = await self._facts(ref)
        if ref.version or ref.deployment or facts.official or facts.version is None:
            return KnownModel(ref, facts.input_schema)
        return KnownModel(msgspec.structs.replace(ref, version=facts.version), facts.input_schema)

    def learn(self, version: str, model: str) -> None:
        """The service has told whose version that is."""
        if len(self._names) < _MOST_NAMES:
            self._names[version] = model

    def _named(self, ref: ModelRef) -> ModelRef | None:
        """A version alone as a version of its model; None while nobody has told us of which."""
        version = ref.version or ""
        name = self._names.get(version)
        if name is None:
            kept = next(self._folder.glob(f"*__*@{version}.json"), None)
            name = None if kept is None else kept.name.partition("@")[0].replace("__", "/", 1)
        try:
            return None if name is None else ModelRef.parse(f"{name}:{version}")
        except InvalidModelRef:
            return None

    async def _facts(self, ref: ModelRef) -> ModelFacts:
        cached = self._memory.get(str(ref)) or self._read(ref)
        now = self._clock.now()
        if cached is not None and (ref.version or now - cached.asked_at < LATEST_LIVES):
            self._memory[str(ref)] = cached
            return cached.facts
        fresh = CachedFacts(now, await self._ask(ref))
        self._memory[str(ref)] = fresh
        self._keep(ref, fresh)
        return fresh.facts

    def _path(self, ref: ModelRef) -> Path:
        return self._folder / f"{str(ref).replace('/', '__').replace(':', '@')}.json"

    def _read(self, ref: ModelRef) -> CachedFacts | None:
        try:
            return decode(self._path(ref).read_bytes(), CachedFacts)
        except (OSError, msgspec.MsgspecError):
            return None

    def _keep(self, ref: ModelRef, facts: CachedFacts) -> None:
        """A cache that cannot be written is only slower."""
        path = self._path(ref)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".part")
            beside.write_bytes(msgspec.json.encode(facts))
            beside.replace(path)
        except OSError:
            return
