"""`imagen models`: what is known about models, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from imagen.assembly import App
    from imagen.catalog import Model
    from imagen.domain.model_ref import ModelRef
    from imagen.domain.pricing import Price, PriceFact
    from imagen.ports import ModelDescription, ModelSource

EXAMPLES = """\b
Examples:
  imagen models
  imagen models show flux-dev
  imagen models google/imagen-4 --json     (`show` may be left away)
  imagen models some-owner/some-model      (asks Replicate when a token is set)
"""

_COLUMNS = ("name", "price", "checked", "quality", "seconds", "abilities")
_SHOW = "show"
_HOW_TO_CORRECT = "`models:` in imagen.yaml corrects a price or sets one that is not known."
_PARAMETER_COLUMNS = ("parameter", "type", "default", "allowed", "about")
_OUTPUTS = {"uri": "one file", "uris": "a list of files", "unknown": ""}


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[show] NAME]", help="owner/name[:version] or a short name such as flux-dev."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output; money in dollars.")] = False,
    config: Config = None,
) -> None:
    """List the models of the catalog, or tell everything about one."""
    from imagen.cli.run import run_app

    async def command(app: App) -> None:
        name = _asked_for(names or [])
        if name is None:
            _show_list(app, json=json)
        elif (model := app.catalog.find(name)) is not None:
            _show_model(model, asked=name, today=app.clock.now().date(), json=json)
        else:
            ref = app.catalog.resolve(name)
            described = await _source(app, ref).describe(ref)
            _show_described(ref, described, json=json)

    run_app(command, config=config, json=json)


models.__doc__ = f"{models.__doc__}\n\n{EXAMPLES}"


def _asked_for(names: list[str]) -> str | None:
    """The model to tell about; None for the list of all.

    Raises:
        InvalidRequest: there is more than one.
    """
    from imagen.errors import InvalidRequest

    given = names[1:] if names[:1] == [_SHOW] else names
    if len(given) > 1 or (names and not given):
        raise InvalidRequest(
            "one model is told about at a time", hint="imagen models show NAME; `imagen models` lists all."
        )
    return given[0] if given else None


# --- the list --------------------------------------------------------------------------------------------


def _show_list(app: App, *, json: bool) -> None:
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.tables import format_table
    from imagen.domain.pricing import STALE_AFTER, is_stale

    today = app.clock.now().date()
    if json:
        print_json([_summary(model, today) for model in app.catalog])
        return
    rows = [
        (
            model.name,
            shown_price(model.price.rule) if model.price else "?",
            _checked(model, today),
            "?" if model.quality is None else str(model.quality),
            _seconds(model),
            _abilities(model),
        )
        for model in app.catalog
    ]
    print_table(format_table(_COLUMNS, rows, right=("quality", "seconds")))
    remark(
        "Prices are of one run with the model's own defaults; quality is a rank from 1 to 5; ? is unknown."
    )
    stale = sum(model.price is not None and is_stale(model.price, today) for model in app.catalog)
    unknown = sum(model.price is None for model in app.catalog)
    if stale or unknown:
        remark(
            f"Of {len(rows)} prices {stale} were last checked more than {STALE_AFTER.days} days ago (stale), and "
            f"{unknown} are not known. {_HOW_TO_CORRECT}"
        )


def _summary(model: Model, today: date) -> dict[str, Any]:
    return {
        "name": model.name,
        "aliases": model.aliases,
        "description": model.description,
        "official": model.official,
        "price": None if model.price is None else _price_facts(model.price, today),
        "quality": model.quality,
        "typical_seconds": model.typical_seconds,
        "abilities": sorted(model.abilities),
    }


def _checked(model: Model, today: date) -> str:
    from imagen.domain.pricing import is_stale

    if model.price is None:
        return "-"
    return f"{model.price.checked_on}{' stale' if is_stale(model.price, today) else ''}"


def _seconds(model: Model) -> str:
    return "?" if model.typical_seconds is None else f"{model.typical_seconds:g}"


def _abilities(model: Model) -> str:
    told = ", ".join(ability.replace("_", " ") for ability in sorted(model.abilities))
    return told or ("?" if model.parameters is None else "-")


# --- one model of the catalog ----------------------------------------------------------------------------


def _show_model(model: Model, *, asked: str, today: date, json: bool) -> None:
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.tables import format_facts

    if json:
        more = {
            "version": model.ref.version,
            "family": model.family,
            "deadline_seconds": model.deadline_seconds,
            "output": model.output,
            "prices": [_price_facts(fact, today) for fact in model.prices],
            "notes": model.notes,
            "input_schema": model.input_schema(),
        }
        print_json(_summary(model, today) | more)
        return
    notes = list(model.notes)
    if ":" in asked:
        notes.append("This is what the catalog knows; a version of its own may take other parameters.")
    facts = [
        ("model", str(model.ref)),
        ("about", model.description),
        ("also called", ", ".join(model.aliases)),
        ("official", {True: "yes", False: "no", None: "?"}[model.official]),
        ("price", "\n".join(line for fact in model.prices for line in _price_lines(fact, today)) or "?"),
        ("quality", "?" if model.quality is None else f"{model.quality} of 5"),
        ("usually takes", "?" if model.typical_seconds is None else f"{model.typical_seconds:g} s"),
        ("deadline", f"{model.deadline_seconds} s"),
        ("gives", _OUTPUTS[model.output]),
        ("abilities", _abilities(model)),
        ("notes", "\n".join(notes)),
    ]
    print_lines([*format_facts(facts), "", *_parameter_lines(model.input_schema())])


def _price_lines(fact: PriceFact, today: date) -> Sequence[str]:
    from imagen.domain.pricing import is_stale

    when = " and ".join(f"{name} = {' or '.join(map(_shown_value, values))}" for name, values in fact.when)
    stale = ", stale: check it before you rely on it" if is_stale(fact, today) else ""
    lines = [f"{shown_price(fact.rule)}{f' when {when}' if when else ''}"]
    lines.append(f"  {fact.confidence}, checked on {fact.checked_on}{stale}: {fact.source}")
    if fact.note:
        lines.append(f"  {fact.note}")
    return lines


# --- a model that only Replicate knows -------------------------------------------------------------------


def _source(app: App, ref: ModelRef) -> ModelSource:
    """A backend that can be asked about models.

    Raises:
        NotFound: there is none that has a token.
    """
    from imagen.errors import NotFound
    from imagen.ports import ModelSource

    names = sorted(app.backends.names(), key=lambda name: name != app.backends.default)
    for name in names:
        if app.settings.backends[name].type == "replicate":
            backend = app.backends.get(name)
            if isinstance(backend, ModelSource) and backend.readiness() == "ok":
                return backend
    near = app.catalog.suggest(ref.base)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    raise NotFound(
        f"{ref} is not in the catalog.",
        hint=f"{meant}With a token Replicate itself is asked: set {app.settings.replicate.api_token_env} "
        "or run `imagen auth login`.",
    )


def _show_described(ref: ModelRef, described: ModelDescription, *, json: bool) -> None:
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.tables import format_facts

    if json:
        unknown: dict[str, Any] = {
            "aliases": [],
            "description": "",
            "price": None,
            "prices": [],
            "quality": None,
            "typical_seconds": None,
        }
        print_json(
            {"name": ref.base, "runs_as": described.model, **unknown, "input_schema": described.input_schema}
        )
        return
    facts = [
        ("model", str(ref)),
        ("runs as", described.model if described.model != str(ref) else ""),
        ("price", "?"),
        (
            "notes",
            f"Not in the catalog: this is what Replicate tells, which tells no prices.\n{_HOW_TO_CORRECT}",
        ),
    ]
    print_lines([*format_facts(facts), "", *_parameter_lines(described.input_schema)])


# --- prices and parameters -------------------------------------------------------------------------------


def shown_price(rule: Price) -> str:
    """A price with its unit, such as `$0.003/image`."""
    from imagen.domain.pricing import PerImage, PerMegapixel, PerRun

    if isinstance(rule, PerImage):
        return f"{rule.usd}/image"
    if isinstance(rule, PerRun):
        return f"{rule.usd}/run"
    if isinstance(rule, PerMegapixel):
        parts = [f"{rule.output}/MP"]
        parts += [f"{rule.input}/MP given"] if rule.input else []
        parts += [f"{rule.per_run}/run"] if rule.per_run else []
        return " + ".join(parts)
    return f"{rule.usd_per_second}/s ({rule.hardware})"


def _price_facts(fact: PriceFact, today: date) -> dict[str, Any]:
    from imagen.domain.pricing import PerImage, PerMegapixel, PerRun, is_stale

    rule = fact.rule
    amounts: dict[str, Any]
    if isinstance(rule, PerImage):
        amounts = {"unit": "image", "usd": rule.usd.to_json()}
    elif isinstance(rule, PerRun):
        amounts = {"unit": "run", "usd": rule.usd.to_json()}
    elif isinstance(rule, PerMegapixel):
        amounts = {
            "unit": "megapixel",
            "usd": rule.output.to_json(),
            "usd_per_input_megapixel": rule.input.to_json(),
            "usd_per_run": rule.per_run.to_json(),
        }
    else:
        amounts = {"unit": "second", "usd": rule.usd_per_second.to_json(), "hardware": rule.hardware}
    return {
        "text": shown_price(rule),
        **amounts,
        "when": dict(fact.when),
        "source": fact.source,
        "checked_on": fact.checked_on,
        "confidence": fact.confidence,
        "note": fact.note,
        "stale": is_stale(fact, today),
    }


def _parameter_lines(schema: Mapping[str, Any] | None) -> list[str]:
    from imagen.cli.tables import format_table
    from imagen.domain.input_schema import property_schema

    if schema is None:
        return ["Its parameters are not known here; whatever is given goes to the model as it is."]
    required = set(schema.get("required", ()))
    found = {name: property_schema(schema, name) or {} for name in schema.get("properties", {})}
    rows = [
        (
            name,
            _shown_type(facts),
            "required" if name in required else _shown_value(facts.get("default")),
            _allowed(facts),
            str(facts.get("description") or ""),
        )
        for name, facts in sorted(found.items(), key=lambda item: item[1].get("x-order", 0))
    ]
    return format_table(_PARAMETER_COLUMNS, rows)


def _shown_type(facts: Mapping[str, Any]) -> str:
    kind = facts.get("type", "any")
    kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
    items = facts.get("items")
    if kind == "array" and isinstance(items, dict):
        return f"list of {'file' if items.get('format') == 'uri' else items.get('type', 'any')}s"
    return "file" if facts.get("format") == "uri" else kind


def _shown_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) or '""'


def _allowed(facts: Mapping[str, Any]) -> str:
    if "enum" in facts:
        return ", ".join(map(str, facts["enum"]))
    rules = [
        _between(facts.get("minimum"), facts.get("maximum"), ""),
        _between(facts.get("minLength"), facts.get("maxLength"), " characters"),
        _between(facts.get("minItems"), facts.get("maxItems"), " items"),
        "secret" if facts.get("writeOnly") else "",
        "deprecated" if facts.get("deprecated") else "",
    ]
    return ", ".join(filter(None, rules)) or "-"


def _between(low: float | None, high: float | None, unit: str) -> str:
    if low is None and high is None:
        return ""
    if low is None:
        return f"up to {high}{unit}"
    return f"from {low}{unit}" if high is None else f"{low} to {high}{unit}"
