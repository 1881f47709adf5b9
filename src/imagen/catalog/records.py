"""The written form of the catalog (TOML, or our user's configuration) and how models are read from it.

`data/common.toml` holds what all families share: sources of prices, prices of hardware, and what parameters
of a usual name mean. Every other file in `data/` is one family of models; the head of `data/flux.toml`
explains the keys.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import msgspec

from imagen.catalog.model import DEFAULT_DEADLINE_SECONDS, Model, Output, Parameter, Quality, Strength
from imagen.decoding import convert
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import MOST_BUDGET, Usd, read_decimal
from imagen.domain.plain_words import place_of, what_is_allowed
from imagen.domain.pricing import (
    Confidence,
    PerImage,
    PerMegapixel,
    PerRun,
    PerSecond,
    Price,
    PriceFact,
    Scalar,
)
from imagen.errors import ConfigError, InvalidModelRef

T = TypeVar("T")

_LONGEST_SECONDS = 86_400
COMMON = "common"
CONFIGURATION = "configuration"
OWN = "your configuration"
"""The source of a price that our user set without saying where it is from."""

Dollars = str | int | float
"""An amount as people write it. A float of a YAML file is taken for the decimal that was typed."""


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the written forms: a key that nobody knows is a mistake."""


class Source(Written, frozen=True):
    """Where prices were read."""

    title: str
    checked_on: date
    confidence: Confidence


class HardwareRecord(Written, frozen=True):
    """What a second on some hardware costs."""

    per_second: Dollars
    sources: tuple[str, ...]


class PerMegapixelRecord(Written, frozen=True):
    """Prices a megapixel."""

    output: Dollars
    input: Dollars = 0
    run: Dollars = 0


class PerSecondRecord(Written, frozen=True):
    """Price of a second on hardware that the catalog has no price for."""

    hardware: str
    usd: Dollars


class PriceRecord(Written, frozen=True):
    """One price: exactly one of those that begin with `per_`.

    `per_second` is the name of a hardware whose price is known, or both. `sources` name those of `data/common.toml`;
    `source` says in words where somebody else read it. `when` gives of each parameter the value, or the values, under
    which the price holds.
    """

    per_image: Dollars | None = None
    per_run: Dollars | None = None
    per_megapixel: PerMegapixelRecord | None = None
    per_second: str | PerSecondRecord | None = None
    sources: tuple[str, ...] = ()
    source: str | None = None
    checked_on: date | None = None
    confidence: Confidence | None = None
    note: str = ""
    when: dict[str, Scalar | tuple[Scalar, ...]] = {}


class ParameterRecord(Written, frozen=True):
    """One parameter; `enum` may name a list of the family's `[lists]`."""

    type: str
    description: str = ""
    required: bool = False
    default: Scalar | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    enum: str | tuple[str | int | float, ...] | None = None
    items: str | None = None
    format: str | None = None
    max_length: int | None = None
    max_items: int | None = None
    needs: tuple[str, ...] = ()
    secret: bool = False
    deprecated: bool = False


class ModelRecord(Written, frozen=True):
    """One model. Not written `parameters` or `prices` means that nobody knows them."""

    description: str = ""
    aliases: tuple[str, ...] = ()
    official: bool | None = None
    version: str | None = None
    output: Output = "unknown"
    deadline_seconds: int = DEFAULT_DEADLINE_SECONDS
    typical_seconds: int | float | None = None
    prices: tuple[PriceRecord, ...] = ()
    notes: tuple[str, ...] = ()
    strengths: tuple[Strength, ...] = ()
    quality: Quality | None = None
    parameters: dict[str, ParameterRecord] | None = None


class Common(Written, frozen=True):
    """`data/common.toml`."""

    sources: dict[str, Source]
    hardware: dict[str, HardwareRecord]
    words: dict[str, str]


class Family(Written, frozen=True):
    """One family's file. Its models stay as written until our user's own facts have been laid over them."""

    name: str
    lists: dict[str, tuple[str | int | float, ...]]
    models: dict[str, dict[str, Any]]


@cache
def read_common() -> Common:
    """The shipped facts that all families share."""
    return _convert(_parse(_data().joinpath(f"{COMMON}.toml")), Common, COMMON)


@cache
def read_families() -> tuple[Family, ...]:
    """The shipped families, sorted by name."""
    files = sorted(_data().iterdir(), key=lambda file: file.name)
    names = (file.name.removesuffix(".toml") for file in files)
    return tuple(
        _convert({"name": name, "lists": {}, **_parse(file)}, Family, name)
        for name, file in zip(names, files, strict=True)
        if name not in (file.name, COMMON)
    )


def build_hardware(common: Common) -> dict[str, PriceFact]:
    """Prices a second, by hardware."""
    return {
        name: PriceFact(
            rule=PerSecond(hardware=name, usd_per_second=_usd(record.per_second)),
            **_provenance(record.sources, None, None, common.sources, f"hardware.{name}"),
        )
        for name, record in common.hardware.items()
    }


class ModelReader:
    """Makes models of what is written.

    Args:
        common: what the families share.
        hardware: prices a second, by hardware.
        today: the day that counts as the one on which our user wrote his own prices.
    """

    def __init__(self, common: Common, hardware: Mapping[str, PriceFact], *, today: date) -> None:
        self._common = common
        self._hardware = hardware
        self._today = today

    def read(
        self, name: str, written: Mapping[str, Any], family: Family, *, called: str | None = None
    ) -> Model:
        """The model `name`.

        Args:
            name: `owner/name`.
            written: all that is written about it.
            family: where its lists are.
            called: what our user calls it; errors name the setting by that.

        Raises:
            ConfigError: what is written about it makes no sense.
        """
        place = f"models.{called or name}"
        record = _convert(dict(written), ModelRecord, place)
        for alias in record.aliases:
            if _ref(f"unknown/{alias}", place).version:
                raise ConfigError(f"{alias!r} cannot be an alias: it has a version.", setting=place)
        _check_seconds(record, place)
        parameters = self._parameters(record, family, place)
        for price in record.prices:
            _check_when(price.when, parameters, f"{place}.prices")
        return Model(
            ref=_ref(f"{name}:{record.version}" if record.version else name, place),
            family=family.name,
            description=record.description,
            aliases=record.aliases,
            official=record.official,
            deadline_seconds=record.deadline_seconds,
            typical_seconds=record.typical_seconds,
            output=record.output,
            prices=tuple(self._price(price, f"{place}.prices") for price in record.prices),
            parameters=parameters,
            notes=record.notes,
            strengths=record.strengths,
            quality=record.quality,
        )

    def _price(self, record: PriceRecord, place: str) -> PriceFact:
        try:
            rules = list(self._rules(record, place))
        except ValueError as error:
            raise ConfigError(f"{error}.", setting=place) from error
        if len(rules) != 1:
            raise ConfigError(
                "A price is one of per_image, per_run, per_megapixel and per_second.", setting=place
            )
        provenance = (
            _provenance(record.sources, record.checked_on, record.confidence, self._common.sources, place)
            if record.sources
            else {
                "source": record.source or OWN,
                "checked_on": record.checked_on or self._today,
                "confidence": record.confidence or "configured",
            }
        )
        when = {name: told if isinstance(told, tuple) else (told,) for name, told in record.when.items()}
        return PriceFact(rule=rules[0], note=record.note, when=tuple(when.items()), **provenance)

    def _rules(self, record: PriceRecord, place: str) -> Iterator[Price]:
        if record.per_image is not None:
            yield PerImage(_usd(record.per_image))
        if record.per_run is not None:
            yield PerRun(_usd(record.per_run))
        if (size := record.per_megapixel) is not None:
            yield PerMegapixel(output=_usd(size.output), input=_usd(size.input), per_run=_usd(size.run))
        match record.per_second:
            case PerSecondRecord(hardware=hardware, usd=usd):
                yield PerSecond(hardware=hardware, usd_per_second=_usd(usd))
            case str(hardware) if hardware in self._hardware:
                yield self._hardware[hardware].rule
            case str(hardware):
                raise ConfigError(
                    f"No hardware is called {hardware!r}; known are {', '.join(self._hardware)}.",
                    setting=place,
                    hint="Say what it costs: per_second: {hardware: NAME, usd: 0.001}",
                )

    def _parameters(self, record: ModelRecord, family: Family, place: str) -> tuple[Parameter, ...] | None:
        if record.parameters is None:
            return None
        return tuple(
            self._parameter(name, parameter, family, f"{place}.parameters.{name}")
            for name, parameter in record.parameters.items()
        )

    def _parameter(self, name: str, record: ParameterRecord, family: Family, place: str) -> Parameter:
        written = {**msgspec.structs.asdict(record), "name": name}
        written["description"] = record.description or self._common.words.get(name, "")
        if isinstance(record.enum, str):
            if record.enum not in family.lists:
                raise ConfigError(f"No list is called {record.enum!r}.", setting=place)
            written["enum"] = family.lists[record.enum]
        return _convert(written, Parameter, place)


def _check_seconds(record: ModelRecord, place: str) -> None:
    for name in ("typical_seconds", "deadline_seconds"):
        seconds = getattr(record, name)
        if seconds is not None and not 0 < seconds <= _LONGEST_SECONDS:
            raise ConfigError(
                f"{seconds} is not allowed; it must be a number of seconds above 0, {_LONGEST_SECONDS} at most.",
                setting=f"{place}.{name}",
            )


def _check_when(
    when: Mapping[str, Scalar | tuple[Scalar, ...]], parameters: tuple[Parameter, ...] | None, place: str
) -> None:
    """Refuse conditions that no input fulfils. Of a model whose parameters nobody knows there is nothing to say."""
    if parameters is None:
        return
    known = {parameter.name: parameter for parameter in parameters}
    for name, told in when.items():
        if name not in known:
            raise ConfigError(
                f"when: the model has no parameter {name!r}; it has {', '.join(known)}.", setting=place
            )
        for value in told if isinstance(told, tuple) else (told,):
            if allowed := _what_it_takes(known[name], value):
                raise ConfigError(
                    f"when.{name}: {value!r} is not allowed; it must be {allowed}.", setting=place
                )


def _what_it_takes(parameter: Parameter, value: Scalar) -> str | None:
    """What a parameter may be; None when the value is that."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    kinds = {
        "string": (isinstance(value, str), "text"),
        "boolean": (isinstance(value, bool), "true or false"),
        "integer": (is_number and value == int(value), "a whole number"),
        "number": (is_number, "a number"),
        "array": (True, "a list"),
    }
    if parameter.enum is not None and value not in parameter.enum:
        return f"one of {', '.join(map(str, parameter.enum))}"
    fits, allowed = kinds[parameter.type]
    if not fits:
        return allowed
    if not isinstance(value, str):
        if parameter.minimum is not None and value < parameter.minimum:
            return f"{parameter.minimum} or more"
        if parameter.maximum is not None and value > parameter.maximum:
            return f"{parameter.maximum} or less"
    return None


def _provenance(
    names: tuple[str, ...],
    checked_on: date | None,
    confidence: Confidence | None,
    sources: Mapping[str, Source],
    place: str,
) -> dict[str, Any]:
    """Source, date and confidence of a price; of several sources the first is the best and dates it."""
    unknown = [name for name in names if name not in sources]
    if unknown or not names:
        raise ConfigError(f"No source is called {', '.join(unknown)!r}.", setting=place)
    found = [sources[name] for name in names]
    return {
        "source": "; ".join(source.title for source in found),
        "checked_on": checked_on or found[0].checked_on,
        "confidence": confidence or found[0].confidence,
    }


def _ref(text: str, place: str) -> ModelRef:
    try:
        ref = ModelRef.parse(text)
    except InvalidModelRef as error:
        raise ConfigError(error.detail, setting=place, hint=error.hint) from error
    if ref.deployment:
        raise ConfigError(f"{text} is a deployment and no model.", setting=place)
    return ref


def _usd(amount: Dollars) -> Usd:
    parsed = Usd.parse(str(amount))
    if not Usd(0) <= parsed <= MOST_BUDGET:
        raise ValueError(f"a price cannot be {amount}; from $0 to {MOST_BUDGET} is allowed")
    if not parsed and read_decimal(str(amount)):
        raise ValueError(f"{amount} is less than a micro-dollar, the smallest price there is")
    return parsed


def _data() -> Traversable:
    return resources.files(__package__).joinpath("data")


def _parse(file: Traversable) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _convert(written: Any, form: type[T], place: str) -> T:
    try:
        return convert(written, form)
    except msgspec.ValidationError as error:
        raise _refusal(error, form, place) from error


def _refusal(error: msgspec.ValidationError, form: Any, place: str) -> ConfigError:
    """What is wrong, at the fact of that model as it is written."""
    where = place_of(error)
    fact = re.split(r"[.\[]", where, maxsplit=1)[0]
    is_money = fact == _PRICES and where.rpartition(".")[2] in _AMOUNTS
    allowed = "it must be an amount in dollars such as 0.02" if is_money else what_is_allowed(error, form)
    inner = f"{where}: " if fact not in {where, _PRICES} else ""
    return ConfigError(f"{inner}{allowed}.", setting=f"{place}.{fact}" if fact in _FACTS else place)


_PRICES = "prices"
_FACTS = frozenset(ModelRecord.__struct_fields__)
_AMOUNTS = frozenset({"per_image", "per_run", "output", "input", "run", "usd"})
