"""All models we know, found by any name people use for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Self

from msgspec.structs import replace

from imagen.catalog.model import Model
from imagen.catalog.records import (
    CONFIGURATION,
    Family,
    ModelReader,
    ModelRecord,
    build_hardware,
    read_common,
    read_families,
)
from imagen.domain.model_ref import ModelRef
from imagen.domain.pricing import PriceFact
from imagen.errors import ConfigError, NotFound

_SHORT_PRICES = {
    "price": "per_image",
    "per_run": "per_run",
    "per_megapixel": "per_megapixel",
    "per_second": "per_second",
}
"""What our user may write for a single price, and what the price then is."""
_KNOWN_FACTS = (*_SHORT_PRICES, *ModelRecord.__struct_fields__)


class Catalog:
    """The models, sorted by name. It never changes: other facts make another catalog.

    Args:
        models: the models; a bare name that only one of them has becomes an alias of it.
        hardware: prices a second, by hardware.
    """

    def __init__(self, models: Iterable[Model], *, hardware: Mapping[str, PriceFact] | None = None) -> None:
        ordered = sorted(models, key=lambda model: model.name.lower())
        self._models = tuple(_with_bare_names(ordered))
        self._by_name = _index(self._models)
        self._schemas: dict[str, dict[str, Any] | None] = {}
        self.hardware: Mapping[str, PriceFact] = MappingProxyType(dict(hardware or {}))

    @classmethod
    def load(
        cls, overrides: Mapping[str, Mapping[str, Any]] | None = None, *, today: date | None = None
    ) -> Self:
        """The shipped catalog, with our user's own facts laid over it.

        Args:
            overrides: by model (`owner/name` or an alias), the facts that differ, as in the data files:
                `{"flux-dev": {"price": "0.02", "deadline_seconds": 300}}`. `price` is short for one price an
                image, and `per_run`, `per_megapixel` and `per_second` for one price of that kind; `prices`
                replaces all; `aliases`, `notes`, `strengths` and single `parameters` are added. An unknown
                `owner/name` is a new model.
            today: the day that counts as the one on which prices without a date were set.

        Raises:
            ConfigError: an override makes no sense; its `setting` begins with `models.` and the name that was used.
        """
        common = read_common()
        hardware = build_hardware(common)
        reader = ModelReader(common, hardware, today=today or datetime.now(UTC).date())
        homes: dict[str, Family] = {}
        for family in read_families():
            if twice := homes.keys() & family.models.keys():
                raise ConfigError("A model is described twice.", setting=f"models.{twice.pop()}")
            homes.update(dict.fromkeys(family.models, family))
        models = {name: reader.read(name, home.models[name], home) for name, home in homes.items()}
        shipped = cls(models.values(), hardware=hardware)
        if not overrides:
            return shipped
        written: dict[str, Mapping[str, Any]] = {}
        for text, facts in overrides.items():
            known = shipped.find(text)
            name = known.name if known else text
            home = homes.get(name, Family(name=CONFIGURATION, lists={}, models={}))
            written[name] = _laid_over(written.get(name) or home.models.get(name, {}), facts, text)
            prices = next((f".{short}" for short in _SHORT_PRICES if short in facts), ".prices")
            try:
                models[name] = reader.read(name, written[name], home, called=text)
            except ConfigError as error:
                place = (error.setting or "").removesuffix(".prices")
                setting = place + prices if place != error.setting else place
                raise ConfigError(error.detail, setting=setting, hint=error.hint) from error
        for text, facts in overrides.items():
            known = shipped.find(text)
            _check_aliases(
                facts.get("aliases") or (), models[known.name if known else text], models.values(), text
            )
        return cls(models.values(), hardware=hardware)

    # --- finding ---

    def find(self, text: str) -> Model | None:
        """The model of that name, `owner/name` or an alias, with or without version; case does not matter.

        A deployment is not found: it may run any version on any hardware.
        """
        return self._by_name.get(text.strip().lower().split(":", 1)[0])

    def input_schema(self, model: Model) -> dict[str, Any] | None:
        """`Model.input_schema`, made once; whoever gets it leaves it as it is."""
        if model.name not in self._schemas:
            self._schemas[model.name] = model.input_schema()
        return self._schemas[model.name]

    def resolve(self, text: str) -> ModelRef:
        """What `text` means: an alias becomes the ref of its model, an `owner/name` stays as it is.

        Both may have a `:version`.

        Raises:
            InvalidModelRef: the text is neither a ref nor a name.
            NotFound: it is a bare name that no model has; the hint says which names are near.
        """
        name = text.strip()
        if "/" in name or not name:
            return ModelRef.parse(name)
        asked = ModelRef.parse(f"unknown/{name}")
        if model := self.find(name):
            return ModelRef.parse(f"{model.name}:{asked.version}") if asked.version else model.ref
        near = self.suggest(name)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else "Write owner/name for a model that is not listed."
        )
        raise NotFound(
            f"No model is called {name[:120]!r}.", hint=f"{hint} `imagen models` lists the known models."
        )

    def suggest(self, name: str, *, limit: int = 3) -> tuple[str, ...]:
        """Names like `name`, the nearest first, each of another model."""
        near = get_close_matches(name.strip().lower(), list(self._by_name), n=limit * 4, cutoff=0.6)
        models = dict.fromkeys(self._by_name[key].name for key in near)
        return tuple(self._short_name(self._by_name[key.lower()]) for key in list(models)[:limit])

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.find(text) is not None

    def __repr__(self) -> str:
        return f"<Catalog of {len(self)} models>"

    def _short_name(self, model: Model) -> str:
        return model.ref.name if model.ref.name in model.aliases else model.name


def _check_aliases(aliases: Sequence[str], own: Model, models: Iterable[Model], called: str) -> None:
    """Refuse aliases that would take over what another model is called: by its bare name too, unless both have that.

    Raises:
        ConfigError: naming both.
    """
    wanted = {alias.lower() for alias in aliases}
    for other in models:
        bare = {other.ref.name.lower()} - {own.ref.name.lower()}
        if other is not own and (both := wanted & {*map(str.lower, other.aliases), *bare}):
            raise ConfigError(
                f"{min(both)} is a name of {other.name} already.",
                setting=f"models.{called}.aliases",
                hint="Choose an alias that no model is called by; `imagen models` lists them.",
            )


def _with_bare_names(models: list[Model]) -> Iterator[Model]:
    """The models, each with its bare name among its aliases where no other model claims that name."""
    claims = Counter(
        name for model in models for name in {model.ref.name.lower(), *map(str.lower, model.aliases)}
    )
    for model in models:
        bare = model.ref.name
        if claims[bare.lower()] == 1 and bare not in model.aliases:
            yield replace(model, aliases=(bare, *model.aliases))
        else:
            yield model


def _index(models: Iterable[Model]) -> dict[str, Model]:
    names: dict[str, Model] = {}
    for model in models:
        for name in (model.name, *model.aliases):
            other = names.setdefault(name.lower(), model)
            if other is not model:
                raise ConfigError(
                    f"{name} names both {other.name} and {model.name}.", setting=f"models.{model.name}"
                )
    return names


def _laid_over(written: Mapping[str, Any], facts: object, name: str) -> dict[str, Any]:
    """`written` with `facts`, what our user wrote about the model `name`, over it."""
    if not isinstance(facts, Mapping):
        raise ConfigError(
            "Facts about a model are written as a mapping.",
            setting=f"models.{name}",
            hint="Such as price: 0.02",
        )
    place = f"models.{name}"
    for key in facts:
        if key not in _KNOWN_FACTS:
            raise ConfigError(
                f"No fact about models is called {key!r}.",
                setting=f"{place}.{key}",
                hint=f"Known are {', '.join(_KNOWN_FACTS)}.",
            )
    merged: dict[str, Any] = {**written, **facts}
    short = [key for key in _SHORT_PRICES if key in facts]
    if len(short) + ("prices" in facts) > 1:
        raise ConfigError(
            f"Only one of prices, {', '.join(_SHORT_PRICES)} can be told of a model.",
            setting=f"{place}.{short[-1]}",
            hint="Write prices, a list, for one that depends on the input.",
        )
    for key in short:
        merged["prices"] = [{_SHORT_PRICES[key]: merged.pop(key)}]
    for added in ("aliases", "notes", "strengths"):
        if isinstance(facts.get(added), list | tuple):
            merged[added] = [*written.get(added, ()), *facts[added]]
    if isinstance(facts.get("parameters"), Mapping):
        merged["parameters"] = {**written.get("parameters", {}), **facts["parameters"]}
    return merged
