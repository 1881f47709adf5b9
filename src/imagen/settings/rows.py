"""Every setting: its name, what it may be, its default, what it does. The docs repeat this table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

import imagen.settings.kinds as kinds  # noqa: PLR0402 - `from imagen.settings` would be a cycle
from imagen.domain.aspect_ratio import ASPECT_RATIOS
from imagen.domain.prediction import EMULATOR
from imagen.settings.kinds import Kind

DAY = 24 * 60 * 60
REQUIRED = "required"
PREFIX = "IMAGEN_"
SINKS = ("sqlite", "postgresql", "supabase")


class Row(msgspec.Struct, frozen=True):
    """One setting.

    Attributes:
        name: dotted, as in the file.
        kind: what it may be.
        default: its text, read like any other text; None when it may be absent.
        help: what it does, one sentence without a full stop.
        aliases: environment variables that set it besides `IMAGEN_…`; the latter wins.
        absent: what an absent value means, for people.
    """

    name: str
    kind: Kind
    default: str | None
    help: str
    aliases: tuple[str, ...] = ()
    absent: str = "not set"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper().replace(".", "__")

    @property
    def variables(self) -> tuple[str, ...]:
        """All its environment variables, the one that wins first."""
        return (self.variable, *self.aliases)

    @property
    def may_be_absent(self) -> bool:
        """Whether the value may be None."""
        return self.default is None and self.absent != REQUIRED


FLUX_SCHNELL_MODEL = "black-forest-labs/flux-schnell"

ROWS: tuple[Row, ...] = (
    Row(
        "default_backend",
        kinds.text(),
        None,
        "the backend that makes pictures when none is named",
        absent="the first configured; with none flux-schnell-replicate, or emulator without a token",
    ),
    Row(
        "data_dir",
        kinds.folder(),
        None,
        "the folder of the database and the pictures; relative to the file that names it",
        absent="the user's data folder",
    ),
    Row(
        "output",
        kinds.place(),
        None,
        "where the command line saves pictures: a folder or a template of file names",
        absent="pictures in data_dir",
    ),
    Row("metadata", kinds.flag(), "true", "write model, prompt and seed into the pictures"),
    Row(
        "learning",
        kinds.flag(),
        "true",
        "learn from what callers keep and reject, and recommend models by it",
    ),
    Row("max_picture_mb", kinds.whole(1, 10_000), "100", "the largest picture that is fetched, in megabytes"),
    Row(
        "timeout",
        kinds.seconds(DAY),
        None,
        "seconds after which a prediction is given up, whatever its model, unless its backend says otherwise",
        absent="by model",
    ),
    Row(
        "caller",
        kinds.caller(),
        None,
        "whom the ledger attributes pictures to",
        aliases=("MAI_FROM_ID",),
        absent="the name of the tmux pane, else unknown",
    ),
    Row(
        "admin_api_key",
        kinds.secret(),
        None,
        "the key that clients send as X-Admin-API-Key",
        aliases=("CONCURRENT_DOCKER_ADMIN_API_KEY",),
        absent="not set: admits nobody",
    ),
    Row(
        "secret_key",
        kinds.secret(),
        None,
        "encrypts what must be kept secret on the disk, such as tokens of callers while their batches run",
        absent="not set: durable work on a caller's own token is refused",
    ),
    Row(
        "public_url",
        kinds.base_url(),
        None,
        "the address under which callers, and with https the webhooks of Replicate, reach the gateway; addresses of "
        "kept pictures begin with it",
        absent="as callers name it",
    ),
    Row(
        "allow_env_fallback",
        kinds.flag(),
        "false",
        "let callers without credentials use the server's own Replicate account, also beyond this machine",
    ),
    Row(
        "replicate.api_base",
        kinds.base_url(without="/v1"),
        "https://api.replicate.com",
        "the address of the API; a trailing /v1 is trimmed",
    ),
    Row(
        "replicate.api_token_env",
        kinds.variable(),
        "REPLICATE_API_TOKEN",
        "the environment variable that holds the token of the account",
    ),
    Row(
        "replicate.lost_answer_grace",
        kinds.seconds(600, zero=True),
        "20",
        "seconds for which a create whose answer was lost is looked for before it is sent again",
    ),
    Row("replicate.connect_timeout", kinds.seconds(600), "10", "seconds until a connection must be made"),
    Row(
        "replicate.held_open",
        kinds.whole(0, 100_000),
        "500",
        "creates of one process whose answer is held back until the run has ended; the others are looked at together",
    ),
    Row("replicate.read_timeout", kinds.seconds(600), "30", "seconds until an answer must come"),
    Row(
        "server.host",
        kinds.host(),
        "127.0.0.1",
        "the address that the gateway listens on",
        aliases=("FLASK_HOST",),
    ),
    Row(
        "server.port",
        kinds.whole(0, 65_535),
        "5003",
        "the port that the gateway listens on; 0 takes a free one",
        aliases=("FLASK_PORT",),
    ),
    Row(
        "server.drain",
        kinds.seconds(3600, zero=True),
        "30",
        "seconds that the gateway, told to stop, gives what is under way before it hands it over",
    ),
    Row(
        "remote.url",
        kinds.base_url(),
        None,
        "the running gateway that commands with --server ask when they are not told another",
        aliases=("IMAGEN_SERVER",),
        absent="they work by themselves",
    ),
    Row(
        "remote.api_key",
        kinds.secret(),
        None,
        "the key that they show to that gateway, as X-API-Key",
        aliases=("IMAGEN_API_KEY",),
        absent="not set: admin_api_key is shown",
    ),
    Row(
        "limits.concurrent",
        kinds.whole(1, 100_000),
        "60",
        "predictions of one account that run at the same time",
        aliases=("REPLICATE_CONCURRENT_LIMIT",),
    ),
    Row(
        "limits.creates_per_minute",
        kinds.whole(1, 1_000_000),
        "600",
        "predictions of one account that are created in a minute",
        aliases=("REPLICATE_REQUESTS_PER_MINUTE",),
    ),
    Row(
        "limits.calls_per_minute",
        kinds.whole(1, 1_000_000),
        "3000",
        "other calls of one account in a minute",
    ),
    Row(
        "limits.wait",
        kinds.seconds(DAY),
        "600",
        "seconds that a request to the gateway waits for its turn before it is refused",
    ),
    Row(
        "limits.waiting",
        kinds.whole(1, 1_000_000),
        "20000",
        "predictions that may wait for their turn in one process",
    ),
    Row(
        "limits.waiting_per_caller",
        kinds.whole(1, 1_000_000),
        "10000",
        "predictions of one caller that may wait",
    ),
    Row(
        "pictures.keep",
        kinds.flag(),
        "false",
        "keep every picture that the gateway makes, so that its address outlives the hour",
    ),
    Row(
        "pictures.folder",
        kinds.folder(),
        None,
        "where the gateway keeps pictures; relative to the file that names it",
        absent="kept in data_dir",
    ),
    Row(
        "cache.keep",
        kinds.flag(),
        "false",
        "keep a copy of every picture whose request says its seed, so that the same request costs nothing",
    ),
    Row(
        "cache.max_mb",
        kinds.whole(1, 10_000_000),
        "1024",
        "the size of that cache in megabytes; what was not asked for the longest goes first",
    ),
    Row(
        "deliveries.private",
        kinds.flag(),
        "false",
        "deliver events also to addresses that are not public, such as those of this machine and its network",
    ),
    Row(
        "preview.model",
        kinds.model(),
        FLUX_SCHNELL_MODEL,
        "the cheap model that makes previews",
    ),
    Row(
        "preview.edit_model",
        kinds.model(),
        "black-forest-labs/flux-2-klein-4b",
        "the cheap model that makes previews of wishes with an input image, where preview.model takes none",
    ),
    Row(
        "terminal.pictures",
        kinds.one_of("auto", "never"),
        "auto",
        "show pictures in terminals that can, with the extra `terminal` installed; or never",
    ),
    Row(
        "mcp.confirm_above",
        kinds.dollars(),
        "0.10",
        "an agent's call that may cost more than so many US dollars, or nobody knows how much, buys only once it is confirmed",
    ),
    Row(
        "mcp.edit_model",
        kinds.model(),
        "black-forest-labs/flux-kontext-pro",
        "the model with which agents edit pictures when they name none, where the usual one takes no picture",
    ),
    Row(
        "mcp.budget",
        kinds.dollars(),
        None,
        "US dollars that `imagen mcp` may spend from its start to its end; what would pass them is refused",
        absent="no limit of its own",
    ),
    Row(
        "openai.models",
        kinds.models_by_name(),
        None,
        "models by the names that clients of OpenAI's API ask for, such as dall-e-3: flux-dev",
        absent="no other names than those of the catalog",
    ),
    Row(
        "openai.model",
        kinds.model(),
        None,
        "the model of a request of OpenAI's API that names none",
        absent="that of the default backend",
    ),
    Row(
        "openai.edit_model",
        kinds.model(),
        "google/nano-banana",
        "the model of an edit of OpenAI's API that names none",
    ),
    Row(
        "prompt_hash_key",
        kinds.secret(),
        None,
        "the ledger gets HMAC-SHA256 of each prompt with this key, which nobody can guess prompts by, in place of sha256",
        absent="not set: sha256",
    ),
    Row(
        "sink.kind",
        kinds.one_of(*SINKS),
        None,
        "where the ledger is written besides imagen's own database; sqlite means nowhere",
        absent="postgresql with sink.postgres_url, supabase with supabase.url and its key, else sqlite",
    ),
    Row(
        "sink.postgres_url",
        kinds.database_url(),
        None,
        "the PostgreSQL database that the ledger is written to",
    ),
    Row(
        "supabase.url",
        kinds.base_url(),
        None,
        "the Supabase project that the ledger is written to",
        aliases=("SUPABASE_URL",),
    ),
    Row(
        "supabase.service_role_key",
        kinds.secret(),
        None,
        "the key of that project's service role",
        aliases=("SUPABASE_SERVICE_ROLE_KEY",),
    ),
    Row(
        "log.level",
        kinds.one_of("debug", "info", "warning", "error", "critical"),
        "warning",
        "how much is logged",
    ),
    Row("log.format", kinds.one_of("text", "json"), "text", "how log lines are written"),
)

BACKEND_ROWS: tuple[Row, ...] = (
    Row(
        "type",
        kinds.backend_type(),
        None,
        "what makes the pictures: replicate or emulator",
        absent=REQUIRED,
    ),
    Row("model", kinds.model(), None, "the model it runs", absent="required for replicate"),
    Row(
        "api_base",
        kinds.base_url(without="/v1"),
        None,
        "the address of the API; a trailing /v1 is trimmed",
        absent="replicate.api_base",
    ),
    Row(
        "api_token_env",
        kinds.variable(),
        None,
        "the environment variable that holds its token",
        absent="replicate.api_token_env",
    ),
    Row(
        "default_steps", kinds.whole(1, 1000), None, "steps when none are asked for", absent="the model's own"
    ),
    Row(
        "default_aspect_ratio", kinds.aspect_ratio(), ASPECT_RATIOS[0], "aspect ratio when none is asked for"
    ),
    Row(
        "timeout",
        kinds.seconds(DAY),
        None,
        "seconds after which its predictions are given up",
        absent="timeout, else by model",
    ),
    Row("store", kinds.flag(), "false", "keep its finished pictures, so that the same request costs nothing"),
)

BY_NAME: Mapping[str, Row] = {row.name: row for row in ROWS}
BACKEND_KEYS: Mapping[str, Row] = {row.name: row for row in BACKEND_ROWS}
BY_VARIABLE: Mapping[str, Row] = {
    name: row for row in ROWS for name in row.variables if name.startswith(PREFIX)
}
"""The rows by their variables that begin with `IMAGEN_`: any other variable that does is none of ours."""

SECTIONS: tuple[str, ...] = tuple(
    dict.fromkeys(row.name.partition(".")[0] for row in ROWS if "." in row.name)
)
"""The mappings of the file that hold settings: `replicate`, `server`, …."""

TOP_KEYS: tuple[str, ...] = (
    "backends",
    "models",
    "presets",
    *SECTIONS,
    *(row.name for row in ROWS if "." not in row.name),
)
"""All that may stand at the top of the file."""

FLUX_SCHNELL = "flux-schnell-replicate"

BUILT_IN_BACKENDS: Mapping[str, Mapping[str, str]] = {
    FLUX_SCHNELL: {"type": "replicate", "model": FLUX_SCHNELL_MODEL, "default_steps": "4"},
    "flux-dev-replicate": {
        "type": "replicate",
        "model": "black-forest-labs/flux-dev",
        "default_aspect_ratio": "16:9",
    },
}
"""What exists while no file configures backends."""

EMULATOR_BACKEND: Mapping[str, str] = {"type": EMULATOR, "model": FLUX_SCHNELL_MODEL}
"""What always exists, under the name `emulator`."""


def shown(value: Any) -> str:
    """A value as `imagen config show` prints it; a secret prints as asterisks by itself."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, tuple | list):
        return ", ".join(map(shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={shown(each)}" for name, each in value.items())
    return str(value)
