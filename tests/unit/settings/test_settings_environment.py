"""Settings from the environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.money import Usd
from imagen.domain.secret import Secret
from imagen.errors import ConfigError
from imagen.settings import BACKEND_ROWS, ROWS, Settings, load_settings

NOWHERE = Path("/nonexistent")


def load(cwd: Path = NOWHERE, /, **environ: str) -> Settings:
    return load_settings(environ={"HOME": "/nonexistent"} | environ, cwd=cwd)


def refusal(cwd: Path = NOWHERE, /, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(cwd, **environ)
    assert "\n" not in str(caught.value)
    return caught.value


def value_of(settings: object, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


TABLE: list[tuple[str, str, str, Any]] = [
    ("IMAGEN_DEFAULT_BACKEND", "emulator", "default_backend", "emulator"),
    ("IMAGEN_DATA_DIR", "/data", "data_dir", Path("/data")),
    ("IMAGEN_DATA_DIR", "data", "data_dir", NOWHERE / "data"),
    ("IMAGEN_OUTPUT", "out/{seed}.png", "output", "out/{seed}.png"),
    ("IMAGEN_METADATA", "off", "metadata", False),
    ("IMAGEN_LEARNING", "off", "learning", False),
    ("IMAGEN_MAX_PICTURE_MB", "7", "max_picture_mb", 7),
    ("IMAGEN_TIMEOUT", " 2.5 ", "timeout", timedelta(seconds=2.5)),
    ("IMAGEN_CALLER", "ada", "caller", "ada"),
    ("MAI_FROM_ID", "ada\x1b", "caller", "ada"),
    ("IMAGEN_ADMIN_API_KEY", "k", "admin_api_key", Secret("k")),
    ("CONCURRENT_DOCKER_ADMIN_API_KEY", "k", "admin_api_key", Secret("k")),
    ("IMAGEN_SECRET_KEY", "k", "secret_key", Secret("k")),
    ("IMAGEN_REPLICATE__API_BASE", "http://localhost:1/v1/", "replicate.api_base", "http://localhost:1"),
    ("IMAGEN_REPLICATE__API_TOKEN_ENV", "MINE", "replicate.api_token_env", "MINE"),
    ("IMAGEN_REPLICATE__LOST_ANSWER_GRACE", "0", "replicate.lost_answer_grace", timedelta()),
    ("IMAGEN_REPLICATE__CONNECT_TIMEOUT", "3", "replicate.connect_timeout", timedelta(seconds=3)),
    ("IMAGEN_REPLICATE__HELD_OPEN", "0", "replicate.held_open", 0),
    ("IMAGEN_REPLICATE__READ_TIMEOUT", "4", "replicate.read_timeout", timedelta(seconds=4)),
    ("IMAGEN_SERVER__HOST", "::", "server.host", "::"),
    ("FLASK_HOST", "0.0.0.0", "server.host", "0.0.0.0"),  # noqa: S104
    ("IMAGEN_SERVER__PORT", "80", "server.port", 80),
    ("FLASK_PORT", "81", "server.port", 81),
    ("IMAGEN_REMOTE__URL", "http://127.0.0.1:5003/", "remote.url", "http://127.0.0.1:5003"),
    ("IMAGEN_SERVER", "https://pictures.example/imagen", "remote.url", "https://pictures.example/imagen"),
    ("IMAGEN_REMOTE__API_KEY", "imk_1", "remote.api_key", Secret("imk_1")),
    ("IMAGEN_API_KEY", "imk_2", "remote.api_key", Secret("imk_2")),
    ("IMAGEN_LIMITS__CONCURRENT", "5", "limits.concurrent", 5),
    ("REPLICATE_CONCURRENT_LIMIT", "6", "limits.concurrent", 6),
    ("IMAGEN_LIMITS__CREATES_PER_MINUTE", "7", "limits.creates_per_minute", 7),
    ("REPLICATE_REQUESTS_PER_MINUTE", "8", "limits.creates_per_minute", 8),
    ("IMAGEN_LIMITS__CALLS_PER_MINUTE", "9", "limits.calls_per_minute", 9),
    ("IMAGEN_LIMITS__WAIT", "9.5", "limits.wait", timedelta(seconds=9.5)),
    ("IMAGEN_LIMITS__WAITING", "10", "limits.waiting", 10),
    ("IMAGEN_LIMITS__WAITING_PER_CALLER", "11", "limits.waiting_per_caller", 11),
    ("IMAGEN_SERVER__DRAIN", "12", "server.drain", timedelta(seconds=12)),
    ("IMAGEN_PUBLIC_URL", "https://pictures.example/", "public_url", "https://pictures.example"),
    ("IMAGEN_ALLOW_ENV_FALLBACK", "1", "allow_env_fallback", True),
    ("IMAGEN_PICTURES__KEEP", "yes", "pictures.keep", True),
    ("IMAGEN_PICTURES__FOLDER", "kept", "pictures.folder", NOWHERE / "kept"),
    ("IMAGEN_CACHE__KEEP", "on", "cache.keep", True),
    ("IMAGEN_CACHE__MAX_MB", "13", "cache.max_mb", 13),
    ("IMAGEN_DELIVERIES__PRIVATE", "true", "deliveries.private", True),
    ("IMAGEN_PREVIEW__MODEL", "sdxl", "preview.model", "sdxl"),
    ("IMAGEN_PREVIEW__EDIT_MODEL", "a/b", "preview.edit_model", "a/b"),
    ("IMAGEN_TERMINAL__PICTURES", "Never", "terminal.pictures", "never"),
    ("IMAGEN_MCP__CONFIRM_ABOVE", "0.5", "mcp.confirm_above", Usd(500_000)),
    ("IMAGEN_MCP__EDIT_MODEL", "a/b", "mcp.edit_model", "a/b"),
    ("IMAGEN_MCP__BUDGET", "$3", "mcp.budget", Usd(3_000_000)),
    (
        "IMAGEN_OPENAI__MODELS",
        "dall-e-3=flux-dev, x = a/b",
        "openai.models",
        {"dall-e-3": "flux-dev", "x": "a/b"},
    ),
    ("IMAGEN_OPENAI__MODEL", "sdxl", "openai.model", "sdxl"),
    ("IMAGEN_OPENAI__EDIT_MODEL", "a/b", "openai.edit_model", "a/b"),
    ("IMAGEN_PROMPT_HASH_KEY", "s", "prompt_hash_key", Secret("s")),
    ("IMAGEN_SINK__KIND", "SQLite", "sink.kind", "sqlite"),
    (
        "IMAGEN_SINK__POSTGRES_URL",
        "postgresql://a:b@c/d",
        "sink.postgres_url",
        Secret("postgresql://a:b@c/d"),
    ),
    ("IMAGEN_SUPABASE__URL", "https://x.supabase.co/", "supabase.url", "https://x.supabase.co"),
    ("SUPABASE_URL", "https://y.supabase.co", "supabase.url", "https://y.supabase.co"),
    ("IMAGEN_SUPABASE__SERVICE_ROLE_KEY", "s", "supabase.service_role_key", Secret("s")),
    ("SUPABASE_SERVICE_ROLE_KEY", "s", "supabase.service_role_key", Secret("s")),
    ("IMAGEN_LOG__LEVEL", "DEBUG", "log.level", "debug"),
    ("IMAGEN_LOG__FORMAT", "json", "log.format", "json"),
]


@pytest.mark.parametrize(("variable", "text", "name", "value"), TABLE)
def test_each_variable(variable: str, text: str, name: str, value: Any) -> None:
    settings = load(**{variable: text})
    assert value_of(settings, name) == value
    assert settings.sources[name] == f"environment {variable}"


def test_the_table_has_every_variable() -> None:
    assert {variable for variable, *_ in TABLE} == {name for row in ROWS for name in row.variables}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_empty_variable_sets_nothing(row: Any) -> None:
    settings = load(**dict.fromkeys(row.variables, "  "))
    assert settings.sources[row.name] == "default"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "imagen.yaml").write_text("server: {port: 1, host: a}")
    settings = load(tmp_path, FLASK_PORT="2")
    assert (settings.server.port, settings.server.host) == (2, "a")
    assert load(tmp_path, FLASK_PORT="2", IMAGEN_SERVER__PORT="3").server.port == 3


def test_null_takes_back_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "imagen.yaml").write_text("timeout: 3")
    settings = load(tmp_path, IMAGEN_TIMEOUT="null")
    assert settings.timeout is None
    assert settings.sources["timeout"] == "environment IMAGEN_TIMEOUT"


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("IMAGEN_TIMEOT", "IMAGEN_TIMEOUT"),
        ("IMAGEN_SERVER_PORT", "IMAGEN_SERVER__PORT"),
        ("IMAGEN_CONFG", "IMAGEN_CONFIG"),
        ("IMAGEN_SERVR", "IMAGEN_SERVER"),
        ("IMAGEN_APIKEY", "IMAGEN_API_KEY"),
        ("IMAGEN_REPLICATE__API_BAS", "IMAGEN_REPLICATE__API_BASE"),
    ],
)
def test_an_unknown_variable(variable: str, near: str) -> None:
    error = refusal(**{variable: "x-secret-x"})
    assert (error.setting, error.source) == (variable, f"environment {variable}")
    assert f"Did you mean {near}? Allowed: " in str(error)
    assert all(row.variable in str(error) for row in ROWS)
    assert "x-secret-x" not in str(error)


@pytest.mark.parametrize("variable", ["IMAGEN_TEST_X", "IMAGENX", "imagen_timeot", "XIMAGEN_TIMEOT"])
def test_variables_that_are_none_of_ours(variable: str) -> None:
    assert set(load(**{variable: "x"}).sources.values()) == {"default"}


@pytest.mark.parametrize(
    ("variable", "text", "name", "allowed"),
    [
        ("IMAGEN_TIMEOUT", "0", "timeout", "above 0"),
        ("FLASK_PORT", "70000", "server.port", "from 0 to 65535"),
        ("REPLICATE_CONCURRENT_LIMIT", "0", "limits.concurrent", "from 1"),
        ("IMAGEN_METADATA", "maybe", "metadata", "true or false"),
        ("IMAGEN_LOG__FORMAT", "xml", "log.format", "text or json"),
        ("IMAGEN_REPLICATE__LOST_ANSWER_GRACE", "601", "replicate.lost_answer_grace", "from 0 to 600"),
    ],
)
def test_a_wrong_value(variable: str, text: str, name: str, allowed: str) -> None:
    error = refusal(**{variable: text})
    assert (error.setting, error.source) == (name, f"environment {variable}")
    assert all(part in error.detail for part in (name, variable, allowed, repr(text)))


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CONCURRENT_DOCKER_ADMIN_API_KEY", "pass word"),
        ("SUPABASE_SERVICE_ROLE_KEY", "pass\nword"),
        ("IMAGEN_REPLICATE__API_BASE", "https://me:password@host"),
        ("IMAGEN_REPLICATE__API_TOKEN_ENV", "r8_password"),
        ("SUPABASE_URL", "https://host/?key=password"),
        ("IMAGEN_SERVER", "http://pictures.example/password"),
        ("IMAGEN_API_KEY", "pass word"),
    ],
)
def test_a_wrong_secret_is_not_repeated(variable: str, text: str) -> None:
    error = refusal(**{variable: text})
    assert variable in error.detail
    assert "word" not in str(error).replace("password, ? and #", "")
    assert error.__cause__ is None


# --- backends --------------------------------------------------------------------------------------------


def test_a_variable_meets_the_backend_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "imagen.yaml").write_text("backends: {My-fast.one: {type: replicate, model: a/b}}")
    settings = load(
        tmp_path, IMAGEN_BACKENDS__MY_FAST_ONE__MODEL="c/d", IMAGEN_BACKENDS__EMULATOR__STORE="on"
    )
    assert list(settings.backends) == ["My-fast.one", "emulator"]
    assert settings.backends["My-fast.one"].model == "c/d"
    assert settings.backends["emulator"].store
    assert settings.sources["backends.My-fast.one.model"] == "environment IMAGEN_BACKENDS__MY_FAST_ONE__MODEL"
    assert settings.sources["backends.My-fast.one.type"] == "imagen.yaml:1"


def test_a_variable_makes_a_backend() -> None:
    settings = load(
        IMAGEN_BACKENDS__MY_FAST__TYPE="replicate",
        IMAGEN_BACKENDS__MY_FAST__MODEL="a/b",
        IMAGEN_BACKENDS__MY_FAST__TIMEOUT="9",
        IMAGEN_DEFAULT_BACKEND="my_fast",
    )
    assert settings.backends["my_fast"].timeout == timedelta(seconds=9)
    assert "flux-schnell-replicate" in settings.backends


def test_variables_of_a_plugins_backend() -> None:
    settings = load(
        IMAGEN_BACKENDS__GPU__TYPE="diffusers",
        IMAGEN_BACKENDS__GPU__MODEL="/models/flux 1",
        IMAGEN_BACKENDS__GPU__DEVICE="cuda",
        IMAGEN_BACKENDS__GPU__WORKERS="2",
    )
    assert settings.backends["gpu"].model == "/models/flux 1"
    assert settings.backends["gpu"].extra == {"device": "cuda", "workers": 2}


@pytest.mark.parametrize("row", BACKEND_ROWS, ids=lambda row: row.name)
def test_every_key_of_a_backend_has_a_variable(row: Any) -> None:
    texts = {
        "type": "emulator",
        "model": "a/b",
        "api_base": "https://h",
        "api_token_env": "T",
        "default_steps": "3",
        "default_aspect_ratio": "3:2",
        "timeout": "3",
        "store": "on",
    }
    variable = f"IMAGEN_BACKENDS__EMULATOR__{row.name.upper()}"
    settings = load(**{variable: texts[row.name]})
    assert settings.sources[f"backends.emulator.{row.name}"] == f"environment {variable}"
    assert value_of(settings.backends["emulator"], row.name) not in {None, False}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"IMAGEN_BACKENDS__X": "1"}, "names no setting of a backend"),
        ({"IMAGEN_BACKENDS__": "1"}, "names no setting of a backend"),
        ({"IMAGEN_BACKENDS____MODEL": "1"}, "names no setting of a backend"),
        ({"IMAGEN_BACKENDS__X__MODEL": "a/b"}, "backends.x.type is required"),
        ({"IMAGEN_BACKENDS__X__TYPE": "replicate"}, "backends.x.model is required"),
        ({"IMAGEN_BACKENDS__EMULATOR__MODLE": "a/b"}, "Did you mean model?"),
        ({"IMAGEN_BACKENDS__EMULATOR__TYPE": "replicate"}, "backends.emulator.type must be emulator"),
        ({"IMAGEN_BACKENDS__EMULATOR__DEFAULT_STEPS": "0"}, "from 1 to 1000"),
    ],
)
def test_wrong_variables_of_backends(environ: dict[str, str], words: str) -> None:
    error = refusal(**environ)
    assert words in str(error)
    assert error.source == f"environment {next(iter(environ))}"


@pytest.mark.parametrize("name", ["\udc80", "É", "A B", "-", "x" * 65])
def test_a_backend_is_named_alike_in_variables_and_in_the_file(name: str) -> None:
    error = refusal(**{f"IMAGEN_BACKENDS__{name}__MODEL": "a/b"})
    assert "is no name" in str(error)
    assert str(error).encode()


def test_a_variable_that_could_mean_two_backends(tmp_path: Path) -> None:
    (tmp_path / "imagen.yaml").write_text("backends: {a-b: &x {type: emulator}, a_b: *x}")
    assert set(load(tmp_path).backends) == {"a-b", "a_b", "emulator"}
    assert "a-b, a_b" in str(refusal(tmp_path, IMAGEN_BACKENDS__A_B__STORE="on"))


# --- tokens ----------------------------------------------------------------------------------------------


def test_tokens_of_the_environment() -> None:
    settings = load(
        REPLICATE_API_TOKEN=" r8_main\n",
        OTHER="r8_other",
        EMPTY=" ",
        UNNAMED="r8_unnamed",
        IMAGEN_BACKENDS__A__TYPE="replicate",
        IMAGEN_BACKENDS__A__MODEL="a/b",
        IMAGEN_BACKENDS__A__API_TOKEN_ENV="OTHER",
        IMAGEN_BACKENDS__B__TYPE="replicate",
        IMAGEN_BACKENDS__B__MODEL="a/b",
        IMAGEN_BACKENDS__B__API_TOKEN_ENV="EMPTY",
    )
    assert settings.environ_token("REPLICATE_API_TOKEN") == Secret("r8_main")
    assert settings.environ_token("OTHER") == Secret("r8_other")
    assert settings.environ_token("EMPTY") is None
    assert settings.environ_token("UNNAMED") is None
    assert "r8_" not in repr(settings) + str(settings.explain())


def test_a_broken_token_is_refused_when_it_is_wanted() -> None:
    settings = load(REPLICATE_API_TOKEN="r8_two words")
    with pytest.raises(ConfigError, match="environment REPLICATE_API_TOKEN") as caught:
        settings.environ_token("REPLICATE_API_TOKEN")
    assert "r8_two" not in str(caught.value)


NAMES = st.sampled_from([name for row in ROWS for name in row.variables] + ["IMAGEN_CONFIG"]) | st.text(
    "ABEMODL_é\udc80", max_size=12
).map("IMAGEN_BACKENDS__".__add__)


@given(st.dictionaries(NAMES, st.text(max_size=30), max_size=5))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    try:
        assert load(**environ).explain()
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
        str(error).encode()
