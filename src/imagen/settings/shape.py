"""The settings as the program reads them: frozen, typed, complete."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import EMULATOR
from imagen.domain.preset import Preset
from imagen.domain.secret import Secret, is_secret_name
from imagen.errors import ConfigError
from imagen.settings.kinds import is_sendable
from imagen.settings.models import FACT, Facts
from imagen.settings.models import KEY as MODELS
from imagen.settings.rows import BACKEND_ROWS, FLUX_SCHNELL, ROWS, shown

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["text", "json"]
SinkKind = Literal["sqlite", "postgresql", "supabase"]


class Explained(NamedTuple):
    """One line of `imagen config show`."""

    name: str
    value: str
    source: str
    help: str


class BackendSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One configured backend, with the defaults of the top level filled in.

    Attributes:
        model: a model ref; for a type that needs none perhaps empty.
        api_base: without a slash or `/v1` at its end; None only for types other than replicate.
        api_token_env: the variable, and the name in the credential store, of its token; None as above.
        timeout: None leaves it to the model.
        extra: what a type of a plugin was given besides.
    """

    name: str
    type: str
    model: str = ""
    api_base: str | None = None
    api_token_env: str | None = None
    default_steps: int | None = None
    default_aspect_ratio: str
    timeout: timedelta | None = None
    store: bool
    extra: Mapping[str, Any]


class ReplicateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The account of the gateway, and how Replicate is spoken to."""

    api_base: str
    api_token_env: str
    lost_answer_grace: timedelta
    connect_timeout: timedelta
    held_open: int
    read_timeout: timedelta


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway listens, and how long it takes leave."""

    host: str
    port: int
    drain: timedelta


class RemoteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The running gateway that commands ask with `--server`, and the key that they show there."""

    url: str | None
    api_key: Secret | None


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one account may do, and how many wait how long for it."""

    concurrent: int
    creates_per_minute: int
    calls_per_minute: int
    wait: timedelta
    waiting: int
    waiting_per_caller: int


class PictureSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which pictures the gateway keeps, and where; no folder means `kept` in `data_dir`."""

    keep: bool
    folder: Path | None


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whether pictures are kept for whoever asks for them again, and how many."""

    keep: bool
    max_mb: int


class DeliverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where events are delivered."""

    private: bool


class SupabaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The project that the ledger is written to."""

    url: str | None
    service_role_key: Secret | None


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the ledger is written besides our own database; `choose_sink` answers where no kind is named."""

    kind: SinkKind | None
    postgres_url: Secret | None


class PreviewSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which cheap models make pictures to choose from: model refs or names of the catalog."""

    model: str
    edit_model: str


class TerminalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown in terminals besides text."""

    pictures: Literal["auto", "never"]


class McpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What agents may spend without asking, and on one connection; `budget` is None where that has none of its own."""

    confirm_above: Usd
    edit_model: str
    budget: Usd | None


class OpenAISettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which models the words of OpenAI's clients mean.

    Attributes:
        models: models by the names that clients ask for; None for none. `mapped` has them in any case.
        model: of requests that name none; None leaves it to the default backend.
        edit_model: of edits that name none.
    """

    models: Mapping[str, str] | None
    model: str | None
    edit_model: str

    @property
    def mapped(self) -> Mapping[str, str]:
        """Models by the names that clients ask for."""
        return self.models or {}


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged."""

    level: LogLevel
    format: LogFormat


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, and where each came from.

    Attributes:
        default_backend: as configured; `choose_backend` answers when it is not.
        output: None means `pictures` in `data_dir`.
        backends: what the user configured, in that order, else the built-in ones; always with `emulator`.
        presets: named sets of inputs, the built-in ones among them.
        models: our user's own facts about models by the name that he used; only the catalog knows whether they make sense.
        config_file: the file that was read, if any.
        sources: for each dotted name `default`, a file and line, or `environment` and a variable.
        environ_tokens: the tokens found in the environment by variable; read them with `environ_token`.
    """

    default_backend: str | None
    backends: Mapping[str, BackendSettings]
    data_dir: Path
    output: str | None
    metadata: bool
    learning: bool
    max_picture_mb: int
    timeout: timedelta | None
    caller: str | None
    admin_api_key: Secret | None
    secret_key: Secret | None
    prompt_hash_key: Secret | None
    public_url: str | None
    allow_env_fallback: bool
    replicate: ReplicateSettings
    server: ServerSettings
    remote: RemoteSettings
    limits: LimitSettings
    pictures: PictureSettings
    cache: CacheSettings
    deliveries: DeliverySettings
    presets: Mapping[str, Preset]
    preview: PreviewSettings
    terminal: TerminalSettings
    mcp: McpSettings
    openai: OpenAISettings
    sink: SinkSettings
    supabase: SupabaseSettings
    log: LogSettings
    models: Facts
    config_file: Path | None
    sources: Mapping[str, str]
    environ_tokens: Mapping[str, Secret]

    def environ_token(self, name: str) -> Secret | None:
        """The token in the environment variable `name`, if a setting names it and it is not empty.

        Raises:
            ConfigError: it holds something that no HTTP header can carry.
        """
        token = self.environ_tokens.get(name)
        if token is not None and not is_sendable(token.reveal()):
            source = f"environment {name}"
            raise ConfigError(
                f"{source}: the token has spaces, line breaks or other characters that no token has.",
                setting=name,
                source=source,
                hint="Copy it again, whole and alone.",
            )
        return token

    def explain(self) -> list[Explained]:
        """Every setting with its value, its source and its meaning. Secrets are masked."""
        lines = [
            Explained(row.name, shown(self._value(row.name)), self.sources[row.name], row.help)
            for row in ROWS
        ]
        for name, backend in self.backends.items():
            prefix = f"backends.{name}"
            lines += [
                Explained(
                    f"{prefix}.{row.name}", shown(value), self.sources[f"{prefix}.{row.name}"], row.help
                )
                for row in BACKEND_ROWS
                if (value := getattr(backend, row.name)) not in {None, ""}
            ]
            lines += [
                # What a plugin calls its key we cannot know: what it says may be secret, so it stays hidden.
                Explained(
                    f"{prefix}.{key}", "***", self.sources[f"{prefix}.{key}"], f"of the type {backend.type}"
                )
                for key in backend.extra
            ]
        lines += [
            Explained(
                f"{MODELS}.{name}.{key}", _shown_fact(value), self.sources[f"{MODELS}.{name}.{key}"], FACT
            )
            for name, facts in self.models.items()
            for key, value in facts.items()
        ]
        for name, preset in self.presets.items():
            source, about = self.sources[f"presets.{name}"], "of the preset"
            lines += [
                Explained(
                    f"presets.{name}.{key}", "***" if is_secret_name(key) else shown(value), source, about
                )
                for key, value in preset.fields.items()
            ]
        return lines

    def _value(self, name: str) -> Any:
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value


def _shown_fact(value: Any) -> str:
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else shown(value)


def choose_backend(settings: Settings, *, token_present: bool) -> str:
    """The backend that makes pictures when none is named.

    The configured one; else the first backend that the user configured; else, of the built-in ones, Replicate
    when there is a token for it and the emulator when there is none.
    """
    if settings.default_backend is not None:
        return settings.default_backend
    for name in settings.backends:
        if settings.sources[f"backends.{name}.type"] != "default":
            return name
    return FLUX_SCHNELL if token_present else EMULATOR


def choose_sink(settings: Settings) -> SinkKind:
    """Where the ledger is written besides our own database: as configured, else wherever there is an address for.

    Raises:
        ConfigError: a kind is named, and what it needs is missing.
    """
    supabase, sink = settings.supabase, settings.sink
    lacking: dict[SinkKind, list[str]] = {
        "sqlite": [],
        "postgresql": ["sink.postgres_url"] * (sink.postgres_url is None),
        "supabase": ["supabase.url"] * (supabase.url is None)
        + ["supabase.service_role_key"] * (supabase.service_role_key is None),
    }
    if sink.kind is None:
        return next((kind for kind in ("postgresql", "supabase") if not lacking[kind]), "sqlite")
    if missing := lacking[sink.kind]:
        source = settings.sources["sink.kind"]
        raise ConfigError(
            f"{source}: sink.kind is {sink.kind}, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set.",
            setting="sink.kind",
            source=source,
            hint="Set it, or leave sink.kind away.",
        )
    return sink.kind
