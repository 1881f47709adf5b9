"""File and environment to `Settings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import imagen.settings.kinds as kinds  # noqa: PLR0402 - `from imagen.settings` would be a cycle
from imagen.domain.prediction import EMULATOR
from imagen.domain.secret import Secret
from imagen.errors import ConfigError, InvalidInput, Problem
from imagen.settings.environment import refuse_unknown, variables_of_backends, variables_of_settings
from imagen.settings.folders import user_config_folder, user_data_folder
from imagen.settings.models import KEY as MODELS
from imagen.settings.models import read_models
from imagen.settings.presets import KEY as PRESETS
from imagen.settings.presets import read_presets
from imagen.settings.rows import (
    BACKEND_KEYS,
    BACKEND_ROWS,
    BUILT_IN_BACKENDS,
    BY_NAME,
    EMULATOR_BACKEND,
    ROWS,
    SECTIONS,
    TOP_KEYS,
    Row,
)
from imagen.settings.shape import (
    BackendSettings,
    CacheSettings,
    DeliverySettings,
    LimitSettings,
    LogSettings,
    McpSettings,
    OpenAISettings,
    PictureSettings,
    PreviewSettings,
    RemoteSettings,
    ReplicateSettings,
    ServerSettings,
    Settings,
    SinkSettings,
    SupabaseSettings,
    TerminalSettings,
    choose_sink,
)
from imagen.settings.suggest import suggestion
from imagen.settings.yaml_file import ConfigFile, Node, find_config, shorten

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_TYPES = frozenset({"replicate", EMULATOR})
_ANY_MODEL = kinds.text("the name of a model")
_INHERITED: Mapping[str, str] = {
    "timeout": "timeout",
    "api_base": "replicate.api_base",
    "api_token_env": "replicate.api_token_env",
}
"""What a replicate backend takes from the top level when it says nothing itself."""


class Given(NamedTuple):
    """What somebody wrote for a setting: where, and in which folder its relative paths start."""

    node: Node
    source: str
    folder: Path


class _Written(NamedTuple):
    """What was written for one backend, and where that begins."""

    source: str
    keys: dict[str, Given]


_Backends = dict[str, _Written]


def load_settings(*, config: Path | None = None, environ: Mapping[str, str], cwd: Path) -> Settings:
    """The settings of the file that is found first, overruled by the environment.

    Args:
        config: the file that the user named; else `$IMAGEN_CONFIG`, `./imagen.yaml`, the user's own one.
        environ: as `os.environ`.
        cwd: the current folder.

    Raises:
        ConfigError: a file cannot be used, a name is unknown or a value is not allowed.
    """
    refuse_unknown(environ)
    file = find_config(config, environ, cwd, user_config_folder(environ))
    given, backends = _from_file(file) if file else ({}, {})
    for name, variable in variables_of_settings(environ).items():
        given[name] = _from_variable(variable.text, variable.source, cwd)
    backends = _with_built_in(backends, cwd)
    for name, keys in variables_of_backends(environ, backends).items():
        begins = next(iter(keys.values())).source
        if not _NAME.fullmatch(name):
            raise _ill_named(f"backends.{name}", begins)
        own = backends.setdefault(name, _Written(begins, {})).keys
        for key, variable in keys.items():
            own[key] = _from_variable(variable.text, variable.source, cwd)

    presets, preset_sources = read_presets(file)
    sources = {row.name: given[row.name].source if row.name in given else DEFAULT for row in ROWS}
    models, model_sources = read_models(file)
    sources |= preset_sources
    sources |= model_sources
    values = {row.name: _value(row, row.name, given.get(row.name)) for row in ROWS}
    resolved = {name: _backend(name, written, values, sources) for name, written in backends.items()}
    _check_default_backend(values["default_backend"], list(resolved), sources["default_backend"])
    variables = {str(values["replicate.api_token_env"]), *(b.api_token_env for b in resolved.values())}
    tokens = {name: Secret(text) for name in variables if name and (text := environ.get(name, "").strip())}
    settings = Settings(
        default_backend=values["default_backend"],
        backends=MappingProxyType(resolved),
        data_dir=values["data_dir"] or user_data_folder(environ),
        output=values["output"],
        metadata=values["metadata"],
        learning=values["learning"],
        max_picture_mb=values["max_picture_mb"],
        timeout=values["timeout"],
        caller=values["caller"],
        admin_api_key=values["admin_api_key"],
        secret_key=values["secret_key"],
        prompt_hash_key=values["prompt_hash_key"],
        public_url=values["public_url"],
        allow_env_fallback=values["allow_env_fallback"],
        replicate=ReplicateSettings(**_section("replicate", values)),
        server=ServerSettings(**_section("server", values)),
        remote=RemoteSettings(**_section("remote", values)),
        limits=LimitSettings(**_section("limits", values)),
        pictures=PictureSettings(**_section("pictures", values)),
        cache=CacheSettings(**_section("cache", values)),
        deliveries=DeliverySettings(**_section("deliveries", values)),
        presets=presets,
        preview=PreviewSettings(**_section("preview", values)),
        terminal=TerminalSettings(**_section("terminal", values)),
        mcp=McpSettings(**_section("mcp", values)),
        openai=OpenAISettings(**_section("openai", values)),
        sink=SinkSettings(**_section("sink", values)),
        supabase=SupabaseSettings(**_section("supabase", values)),
        log=LogSettings(**_section("log", values)),
        models=models,
        config_file=file.path if file else None,
        sources=MappingProxyType(sources),
        environ_tokens=MappingProxyType(tokens),
    )
    # A kind that lacks something is told now, and not when the first picture was bought.
    choose_sink(settings)
    return settings


def read_server_url(text: str) -> str:
    """An address as `remote.url` has it, from elsewhere than the settings.

    Raises:
        InvalidInput: for the field `server`, saying what is allowed.
    """
    kind = BY_NAME["remote.url"].kind
    try:
        return str(kind.read(text.strip(), Path()))
    except ValueError:
        hint = "Keys and prompts never travel in clear: use https, or `ssh -L 5003:127.0.0.1:5003 HOST` and http://127.0.0.1:5003."
        raise InvalidInput([Problem("server", f"it must be {kind.allowed}")], hint=hint) from None


# --- what was written where ------------------------------------------------------------------------------


def _from_variable(text: str, source: str, cwd: Path) -> Given:
    return Given(Node(text, line=0), source, cwd)


def _from_file(file: ConfigFile) -> tuple[dict[str, Given], _Backends]:
    given: dict[str, Given] = {}
    backends: _Backends = {}
    located = partial(_located, file)
    for key, node in file.root.items():
        if key == "backends":
            backends = _backends_from(file, node)
        elif key in {PRESETS, MODELS}:
            continue  # see `read_presets` and `read_models`
        elif key in SECTIONS:
            known = [row.name.partition(".")[2] for row in ROWS if row.name.startswith(f"{key}.")]
            for inner_key, value in _mapping(key, located(node), f"a mapping of {', '.join(known)}").items():
                if inner_key not in known:
                    raise _unknown(f"{key}.{inner_key}", inner_key, known, located(value).source)
                given[f"{key}.{inner_key}"] = located(value)
        elif key in BY_NAME and "." not in key:
            given[key] = located(node)
        else:
            raise _unknown(key, key, TOP_KEYS, located(node).source)
    return given, backends


def _backends_from(file: ConfigFile, node: Node) -> _Backends:
    backends: _Backends = {}
    what = "a mapping of names to backends"
    for name, keys in _mapping("backends", _located(file, node), what).items():
        begins = _located(file, keys)
        if not _NAME.fullmatch(name):
            raise _ill_named(f"backends.{name}", begins.source)
        inner = _mapping(f"backends.{name}", begins, f"a mapping of {', '.join(BACKEND_KEYS)}")
        own = {inner_key: _located(file, value) for inner_key, value in inner.items()}
        backends[name] = _Written(begins.source, own)
    return backends


def _located(file: ConfigFile, node: Node) -> Given:
    return Given(node, f"{file.shown}:{node.line}", file.path.parent)


def _mapping(name: str, given: Given, what: str) -> Mapping[str, Node]:
    """The mapping that was written there; an empty one when all behind the key is commented out."""
    if given.node.is_null:
        return {}
    if not isinstance(given.node.content, dict):
        raise _wrong(name, given, what)
    return given.node.content


def _with_built_in(backends: _Backends, cwd: Path) -> _Backends:
    """With the emulator, and all that is built in when the file configures nothing else."""

    def built_in(keys: Mapping[str, str]) -> _Written:
        return _Written(DEFAULT, {key: Given(Node(text, line=0), DEFAULT, cwd) for key, text in keys.items()})

    merged = dict(backends)
    if not backends.keys() - {EMULATOR}:
        merged = {name: built_in(keys) for name, keys in BUILT_IN_BACKENDS.items()} | merged
    emulator = built_in(EMULATOR_BACKEND)
    if EMULATOR in backends:
        emulator = _Written(backends[EMULATOR].source, emulator.keys | backends[EMULATOR].keys)
    return merged | {EMULATOR: emulator}


# --- what it means ---------------------------------------------------------------------------------------


def _value(row: Row, name: str, given: Given | None) -> Any:
    if given is None:
        return None if row.default is None else row.kind.read(row.default, Path())
    if given.node.is_null and row.may_be_absent:
        return None
    try:
        return row.kind.read((_pairs if row.kind.pairs else _text)(given.node), given.folder)
    except ValueError:
        raise _wrong(name, given, row.kind.allowed, hidden=row.kind.hidden, mapping=row.kind.pairs) from None


def _pairs(node: Node) -> str:
    """A mapping as it is written in one line."""
    if not isinstance(node.content, dict):
        return _text(node)
    return ", ".join(f"{name}={_text(value)}" for name, value in node.content.items())


def _text(node: Node) -> str:
    if not isinstance(node.content, str) or node.is_null or not (text := node.content.strip()):
        raise ValueError("no text")
    return text


def _backend(
    name: str, written: _Written, top: Mapping[str, Any], sources: dict[str, str]
) -> BackendSettings:
    """The backend of that name, with what the top level says where it says nothing; notes the `sources`."""
    prefix, keys = f"backends.{name}", written.keys
    kind = _type_of(name, written)
    read = {row.name: _value(row, f"{prefix}.{row.name}", keys.get(row.name)) for row in _rows_of(kind)}
    extra = {key: given for key, given in keys.items() if key not in BACKEND_KEYS}
    if kind in _OWN_TYPES:
        for key, given in extra.items():
            raise _unknown(f"{prefix}.{key}", key, list(BACKEND_KEYS), given.source)
    for key, given in extra.items():
        if not _NAME.fullmatch(key):
            raise _ill_named(f"{prefix}.{key}", given.source)
    sources.update({f"{prefix}.{key}": DEFAULT for key in read})
    sources.update({f"{prefix}.{key}": given.source for key, given in keys.items()})
    for key, name_at_top in (_INHERITED if kind == "replicate" else {"timeout": "timeout"}).items():
        if read[key] is None:
            read[key] = top[name_at_top]
            sources[f"{prefix}.{key}"] = sources[name_at_top]
    if read["model"] is None:
        if kind == "replicate":
            raise _missing(f"{prefix}.model", written.source, "black-forest-labs/flux-schnell")
        read["model"] = EMULATOR_BACKEND["model"] if kind == EMULATOR else ""
    plugin_values = {key: given.node.to_value() for key, given in extra.items()}
    return BackendSettings(name=name, extra=MappingProxyType(plugin_values), **read)


def _type_of(name: str, written: _Written) -> str:
    setting = f"backends.{name}.type"
    if (given := written.keys.get("type")) is None:
        raise _missing(setting, written.source, "replicate")
    kind = str(_value(BACKEND_KEYS["type"], setting, given))
    if name == EMULATOR and kind != EMULATOR:
        raise _wrong(setting, given, "emulator: that name is kept for practice without Replicate")
    return kind


def _rows_of(kind: str) -> tuple[Row, ...]:
    """The rows of a backend. Only our own types are sure to name models as Replicate does."""
    if kind in _OWN_TYPES:
        return BACKEND_ROWS
    return tuple(
        Row("model", _ANY_MODEL, row.default, row.help) if row.name == "model" else row
        for row in BACKEND_ROWS
    )


def _check_default_backend(name: str | None, known: list[str], source: str) -> None:
    if name is not None and name not in known:
        raise ConfigError(
            f"{source}: default_backend {shorten(name)} is no configured backend.",
            setting="default_backend",
            source=source,
            hint=suggestion(name, known),
        )


def _section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


# --- what is wrong with it -------------------------------------------------------------------------------


def _wrong(
    name: str, given: Given, allowed: str, *, hidden: bool = False, mapping: bool = False
) -> ConfigError:
    content = given.node.content
    if given.node.is_null:
        but = ", not empty"
    elif isinstance(content, dict) and mapping:
        but = ", which one in this mapping is not"
    elif isinstance(content, list | dict):
        but = ", not a list" if isinstance(content, list) else ", not a mapping"
    else:
        but = "" if hidden else f", not {shorten(content)}"
    return ConfigError(f"{given.source}: {name} must be {allowed}{but}.", setting=name, source=given.source)


def _ill_named(name: str, source: str) -> ConfigError:
    return ConfigError(
        f"{source}: {shorten(name)} is no name: it may have 64 letters, digits, `.`, `_` and `-`.",
        setting=name,
        source=source,
    )


def _missing(name: str, source: str, example: str) -> ConfigError:
    return ConfigError(
        f"{source}: {name} is required.",
        setting=name,
        source=source,
        hint=f"Write {name.rpartition('.')[2]}: {example}, for example.",
    )


def _unknown(name: str, key: str, known: list[str] | tuple[str, ...], source: str) -> ConfigError:
    return ConfigError(
        f"{source}: there is no setting {shorten(name)}.",
        setting=name,
        source=source,
        hint=suggestion(key, known),
    )
