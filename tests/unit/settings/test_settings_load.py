"""What settings come of a file, what is said of wrong ones, and what is told about them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import platformdirs
import pytest

from imagen.errors import ConfigError
from imagen.settings import (
    BACKEND_ROWS,
    ROWS,
    SAMPLE,
    BackendSettings,
    Settings,
    choose_backend,
    load_settings,
    user_config_folder,
    user_data_folder,
)
from imagen.settings.rows import BUILT_IN_BACKENDS, shown


def load(tmp_path: Path, text: str = "", **environ: str) -> Settings:
    (tmp_path / "imagen.yaml").write_text(text)
    return load_settings(environ={"HOME": str(tmp_path)} | environ, cwd=tmp_path)


def refusal(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    return caught.value


# --- defaults --------------------------------------------------------------------------------------------


def test_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(environ={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert settings.config_file is None
    assert set(settings.sources.values()) == {"default"}
    assert msgspec.structs.asdict(settings.replicate) == {
        "api_base": "https://api.replicate.com",
        "api_token_env": "REPLICATE_API_TOKEN",
        "lost_answer_grace": timedelta(seconds=20),
        "connect_timeout": timedelta(seconds=10),
        "held_open": 500,
        "read_timeout": timedelta(seconds=30),
    }
    assert msgspec.structs.asdict(settings.server) == {
        "host": "127.0.0.1",
        "port": 5003,
        "drain": timedelta(seconds=30),
    }
    assert msgspec.structs.asdict(settings.limits) == {
        "concurrent": 60,
        "creates_per_minute": 600,
        "calls_per_minute": 3000,
        "wait": timedelta(seconds=600),
        "waiting": 20_000,
        "waiting_per_caller": 10_000,
    }
    assert msgspec.structs.asdict(settings.cache) == {"keep": False, "max_mb": 1024}
    assert msgspec.structs.asdict(settings.deliveries) == {"private": False}
    assert msgspec.structs.asdict(settings.log) == {"level": "warning", "format": "text"}
    assert settings.data_dir == tmp_path / ".local/share/imagen"
    assert settings.metadata
    assert settings.max_picture_mb == 100
    absent = (settings.default_backend, settings.output, settings.timeout, settings.caller)
    assert absent == (None, None, None, None)
    assert (settings.admin_api_key, settings.secret_key, settings.public_url) == (None, None, None)
    assert (settings.supabase.url, settings.supabase.service_role_key) == (None, None)


def test_the_built_in_backends(tmp_path: Path) -> None:
    backends = load(tmp_path).backends
    assert list(backends) == [*BUILT_IN_BACKENDS, "emulator"]
    schnell, dev, emulator = backends.values()
    assert (schnell.type, schnell.model, schnell.default_steps, schnell.default_aspect_ratio) == (
        "replicate",
        "black-forest-labs/flux-schnell",
        4,
        "1:1",
    )
    assert (schnell.api_base, schnell.api_token_env) == ("https://api.replicate.com", "REPLICATE_API_TOKEN")
    assert (dev.model, dev.default_steps, dev.default_aspect_ratio) == (
        "black-forest-labs/flux-dev",
        None,
        "16:9",
    )
    assert (emulator.type, emulator.model, emulator.api_base, emulator.api_token_env) == (
        "emulator",
        "black-forest-labs/flux-schnell",
        None,
        None,
    )


def test_the_users_folders_are_those_of_platformdirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for environ in (
        {"HOME": str(tmp_path)},
        {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "/x/c", "XDG_DATA_HOME": "/x/d"},
    ):
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert user_config_folder(environ) == platformdirs.user_config_path("imagen")
        assert user_data_folder(environ) == platformdirs.user_data_path("imagen")
    assert user_config_folder({}) == platformdirs.user_config_path("imagen")
    assert user_data_folder({}) == platformdirs.user_data_path("imagen")
    relative = {"HOME": "/h", "XDG_CONFIG_HOME": "relative"}
    assert user_config_folder(relative).is_absolute()


# --- backends --------------------------------------------------------------------------------------------


def test_backends_of_the_file_replace_the_built_in_ones(tmp_path: Path) -> None:
    settings = load(tmp_path, "backends: {mine: {type: replicate, model: a/b}}")
    assert list(settings.backends) == ["mine", "emulator"]


def test_the_emulator_can_be_tuned_alone(tmp_path: Path) -> None:
    settings = load(tmp_path, "backends: {emulator: {default_steps: 2, model: a/b}}")
    assert list(settings.backends) == [*BUILT_IN_BACKENDS, "emulator"]
    assert (settings.backends["emulator"].default_steps, settings.backends["emulator"].model) == (2, "a/b")


def test_an_emulator_of_another_name_needs_no_model(tmp_path: Path) -> None:
    settings = load(tmp_path, "backends: {practice: {type: emulator}}")
    assert settings.backends["practice"].model == "black-forest-labs/flux-schnell"


def test_the_top_level_fills_in_what_a_backend_leaves_out(tmp_path: Path) -> None:
    text = """
timeout: 33
replicate:
  api_base: http://localhost:9/v1
  api_token_env: TOP
backends:
  a: {type: replicate, model: a/b}
  b:
    type: replicate
    model: a/b
    api_base: https://own.example/v1/
    api_token_env: OWN
    timeout: 44
    default_aspect_ratio: 16:9
    store: yes
  c: {type: diffusers, model: black-forest-labs/FLUX.1-schnell}
"""
    settings = load(tmp_path, text)
    a, b, c = (settings.backends[name] for name in "abc")
    assert (a.api_base, a.api_token_env, a.timeout) == ("http://localhost:9", "TOP", timedelta(seconds=33))
    assert (a.default_aspect_ratio, a.store, a.default_steps) == ("1:1", False, None)
    assert (b.api_base, b.api_token_env, b.timeout) == ("https://own.example", "OWN", timedelta(seconds=44))
    assert (b.default_aspect_ratio, b.store) == ("16:9", True)
    assert (c.api_base, c.api_token_env, c.timeout) == (None, None, timedelta(seconds=33))
    sources = settings.sources
    assert sources["backends.a.api_base"] == sources["replicate.api_base"] == "imagen.yaml:4"
    assert sources["backends.a.timeout"] == "imagen.yaml:2"
    assert sources["backends.a.store"] == "default"
    assert sources["backends.b.timeout"] == "imagen.yaml:13"


def test_other_types_keep_their_own_keys(tmp_path: Path) -> None:
    text = (
        "backends: {gpu: {type: diffusers, device: cuda, offload: true, lora: [a/b, {scale: 0.5}], n: '3'}}"
    )
    gpu = load(tmp_path, text).backends["gpu"]
    assert gpu.model == ""
    assert gpu.extra == {"device": "cuda", "offload": True, "lora": ["a/b", {"scale": 0.5}], "n": "3"}
    with pytest.raises(TypeError):
        gpu.extra["x"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "token_present", "chosen"),
    [
        ("", True, "flux-schnell-replicate"),
        ("", False, "emulator"),
        ("default_backend: flux-dev-replicate", False, "flux-dev-replicate"),
        ("default_backend: emulator", True, "emulator"),
        ("backends: {z: {type: replicate, model: a/b}, a: {type: replicate, model: a/b}}", False, "z"),
        ("backends: {emulator: {default_steps: 2}}", True, "flux-schnell-replicate"),
        ("backends:", True, "flux-schnell-replicate"),
    ],
)
def test_the_backend_that_is_chosen(tmp_path: Path, text: str, token_present: bool, chosen: str) -> None:
    assert choose_backend(load(tmp_path, text), token_present=token_present) == chosen


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "setting", "line", "words"),
    [
        ("timeot: 3", "timeot", 1, "Did you mean timeout? Allowed: backends, models, presets, replicate"),
        ("server.port: 3", "server.port", 1, "there is no setting 'server.port'"),
        ("server:\n  prot: 3", "server.prot", 2, "Did you mean port? Allowed: host, port, drain."),
        ("zzz: 3", "zzz", 1, "'zzz'. Allowed: "),
        ("server: 3", "server", 1, "server must be a mapping of host, port, drain, not '3'"),
        ("server: [3]", "server", 1, "not a list"),
        ("server:\n  port:", "server.port", 2, "from 0 to 65535, not empty"),
        ("server:\n  port: {a: b}", "server.port", 2, "not a mapping"),
        ("caller: ''", "caller", 1, "must be a name"),
        ("backends: fast", "backends", 1, "must be a mapping"),
        ("backends: {fast: x}", "backends.fast", 1, "must be a mapping of type, model"),
        ("backends:\n  fast:", "backends.fast.type", 2, "backends.fast.type is required"),
        ("backends:\n  fast: {model: a/b}", "backends.fast.type", 2, "is required. Write type: replicate"),
        ("backends:\n  f: {type: }", "backends.f.type", 2, "must be a backend's type"),
        ("backends:\n  f: {type: replicate}", "backends.f.model", 2, "model is required"),
        ("backends: {f: {type: replicate, model: x y}}", "backends.f.model", 1, "owner/name"),
        ("backends: {f: {type: emulator, modell: x}}", "backends.f.modell", 1, "Did you mean model?"),
        ("backends: {f: {type: gpu, 'a b': x}}", "backends.f.a b", 1, "is no name"),
        ('backends: {"a\\tb": {type: x}}', "backends.a\tb", 1, "'backends.a\\tb' is no name"),
        ("backends: {emulator: {type: replicate}}", "backends.emulator.type", 1, "must be emulator"),
        ("backends: {f: {type: gpu, default_steps: 0}}", "backends.f.default_steps", 1, "from 1 to 1000"),
        ("\ndefault_backend: flux-schnel", "default_backend", 2, "Did you mean flux-schnell-replicate?"),
        (
            "default_backend: nope",
            "default_backend",
            1,
            "Allowed: flux-schnell-replicate, flux-dev-replicate, emulator.",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, setting: str, line: int, words: str) -> None:
    error = refusal(tmp_path, text)
    assert (error.setting, error.source) == (setting, f"imagen.yaml:{line}")
    assert words in str(error)
    assert error.detail.startswith(f"imagen.yaml:{line}: ")


def test_secrets_of_the_file_are_not_repeated(tmp_path: Path) -> None:
    assert "hunter" not in str(refusal(tmp_path, "admin_api_key: hunter 2"))
    assert "hunter" not in str(refusal(tmp_path, "supabase: {url: 'https://a:hunter2@x'}"))
    settings = load(tmp_path, "admin_api_key: hunter2\nbackends: {x: {type: other, key: hunter3}}")
    assert "hunter2" not in repr(settings)
    assert "hunter" not in str(settings.explain())


def test_relative_folders_start_where_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/my.yaml").write_text("data_dir: ../data")
    settings = load_settings(config=Path("etc/my.yaml"), environ={"HOME": "/h"}, cwd=tmp_path)
    assert settings.data_dir.resolve() == tmp_path.resolve() / "data"
    assert settings.sources["data_dir"] == "etc/my.yaml:1"


# --- what is told ----------------------------------------------------------------------------------------


def test_explain_has_every_setting(tmp_path: Path) -> None:
    settings = load(tmp_path, "timeout: 5\nadmin_api_key: k\nmetadata: off\ncaller: ada", FLASK_PORT="81")
    lines = {line.name: line for line in settings.explain()}
    assert [name for name in lines if not name.startswith(("backends.", "presets."))] == [
        row.name for row in ROWS
    ]
    assert lines["timeout"][1:3] == ("5 s", "imagen.yaml:1")
    assert lines["admin_api_key"][1:3] == ("***", "imagen.yaml:2")
    assert lines["metadata"].value == "false"
    assert lines["server.port"][1:3] == ("81", "environment FLASK_PORT")
    assert lines["supabase.url"][1:3] == ("not set", "default")
    assert lines["backends.flux-schnell-replicate.default_steps"][1:3] == ("4", "default")
    assert "backends.flux-dev-replicate.default_steps" not in lines
    assert all(line.help for line in lines.values())


def test_shown() -> None:
    assert shown(("a", None, True)) == "a, not set, true"


def test_the_rows_are_the_fields(tmp_path: Path) -> None:
    settings = load(tmp_path)
    fields = set()
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        inner = value.__struct_fields__ if isinstance(value, msgspec.Struct) else None
        fields |= {f"{name}.{field}" for field in inner} if inner else {name}
    assert fields - {"backends", "models", "presets", "config_file", "sources", "environ_tokens"} == {
        row.name for row in ROWS
    }
    assert set(BackendSettings.__struct_fields__) - {"name", "extra"} == {row.name for row in BACKEND_ROWS}


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path)
    with pytest.raises(AttributeError):
        settings.metadata = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.backends["x"] = settings.backends["emulator"]  # type: ignore[index]


def test_the_sample_loads(tmp_path: Path) -> None:
    settings = load(tmp_path, SAMPLE)
    assert list(settings.backends) == ["flux-schnell-replicate", "flux-dev-replicate", "emulator"]
    assert settings.default_backend == "flux-schnell-replicate"
    built_in = load(tmp_path).backends
    assert dict(settings.backends) == dict(built_in)


def test_the_sample_loads_with_its_comments_off(tmp_path: Path) -> None:
    """Each commented example of the sample is right too."""
    lines = []
    for line in SAMPLE.splitlines():
        bare = line.lstrip().removeprefix("# ")
        example = (
            bare.partition(":")[0].strip().replace("-", "_").isidentifier()
            and " " not in bare.partition(":")[0].strip()
        )
        lines.append(line.replace("# ", "", 1) if line.lstrip().startswith("# ") and example else line)
    lines = [line for line in lines if not line.lstrip().startswith("imagen.yaml:")]
    settings = load(tmp_path, "\n".join(lines))
    assert settings.backends["flux-schnell-local"].type == "diffusers"
    assert settings.sources["limits.concurrent"].startswith("imagen.yaml:")
    assert settings.sources["server.port"].startswith("imagen.yaml:")
    assert settings.sources["output"].startswith("imagen.yaml:")


def test_what_is_not_needed_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from imagen.settings import load_settings;"
        "load_settings(environ={'HOME': '/nonexistent'}, cwd=pathlib.Path('/nonexistent'));"
        "print([m for m in ('yaml', 'platformdirs', 'difflib', 'keyring', 'subprocess') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
