"""How `imagen.yaml` is found and read, and what is said of one that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.yaml_core import plain_value
from imagen.errors import ConfigError
from imagen.settings import SAMPLE, Settings, load_settings
from imagen.settings.rows import TOP_KEYS
from imagen.settings.yaml_file import parse_config


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose user folders are empty."""
    return {"HOME": str(tmp_path / "home")}


def load_text(tmp_path: Path, text: str | bytes) -> Settings:
    data = text.encode() if isinstance(text, str) else text
    (tmp_path / "imagen.yaml").write_bytes(data)
    return load_settings(environ={"HOME": str(tmp_path / "home")}, cwd=tmp_path)


def refusal(tmp_path: Path, text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    return caught.value


def write(path: Path, port: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"server: {{port: {port}}}")
    return path


# --- which file ------------------------------------------------------------------------------------------


def test_the_order_of_files(tmp_path: Path, home: dict[str, str]) -> None:
    def port(config: Path | None = None, **environ: str) -> int:
        return load_settings(config=config, environ=home | environ, cwd=tmp_path).server.port

    assert port() == 5003
    write(tmp_path / "home/.config/imagen/imagen.yaml", 4)
    assert port() == 4
    write(tmp_path / "imagen.yaml", 3)
    assert port() == 3
    write(tmp_path / "named.yaml", 2)
    assert port(IMAGEN_CONFIG="named.yaml") == 2
    assert port(IMAGEN_CONFIG=" ") == 3
    write(tmp_path / "given.yaml", 1)
    assert port(Path("given.yaml"), IMAGEN_CONFIG="named.yaml") == 1


def test_xdg_config_home(tmp_path: Path, home: dict[str, str]) -> None:
    write(tmp_path / "xdg/imagen/imagen.yaml", 7)
    settings = load_settings(environ=home | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}, cwd=tmp_path)
    assert settings.server.port == 7
    assert settings.config_file == tmp_path / "xdg/imagen/imagen.yaml"
    assert settings.sources["server.port"] == f"{tmp_path}/xdg/imagen/imagen.yaml:1"


@pytest.mark.parametrize("named", ["missing.yaml", "/nowhere/x.yaml", "~nobody-of-that-name/x", "a\0b", "."])
def test_a_named_file_must_be_there(tmp_path: Path, home: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(config=Path(named), environ=home, cwd=tmp_path)
    assert "\n" not in str(caught.value)
    assert "cannot be read" in caught.value.detail
    assert caught.value.hint == "It was named by --config."
    with pytest.raises(ConfigError, match="IMAGEN_CONFIG"):
        load_settings(environ=home | {"IMAGEN_CONFIG": named}, cwd=tmp_path)


def test_a_file_that_is_found_must_be_readable(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "imagen.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"imagen\.yaml: the configuration cannot be read: is a directory"):
        load_settings(environ=home, cwd=tmp_path)


def test_a_pipe_can_be_named(tmp_path: Path, home: dict[str, str]) -> None:
    read, write_end = os.pipe()
    os.write(write_end, b"timeout: 5")
    os.close(write_end)
    try:
        settings = load_settings(config=Path(f"/dev/fd/{read}"), environ=home, cwd=tmp_path)
    finally:
        os.close(read)
    assert settings.timeout is not None
    assert settings.timeout.total_seconds() == 5


# --- what is in it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "\n", "# only\n# comments\n", "---\n", "null", "{}", "\ufeff", "---\n...\n"]
)
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert set(load_text(tmp_path, text).sources.values()) == {"default"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("- a", 1, "must be a mapping"),
        ("\n\nword", 3, "must be a mapping"),
        ("'null'", 1, "must be a mapping"),
        ("a: [", 2, "is not YAML"),
        ("timeout: 1\n\tcaller: x", 2, "is not YAML"),
        ("timeout: 1\ncaller: é\x07", 2, "control characters"),
        (b"timeout: 1\ncaller: \xff", 2, "is not UTF-8"),
        ("timeout: 1\n\ntimeout: 2", 3, "'timeout' twice, first in line 1"),
        ("log: {level: info, level: info}", 1, "'level' twice"),
        ("caller: *who", 1, "alias"),
        ("caller: &who [*who]", 1, "alias"),
        ("caller: !!python/object:os.system x", 1, "tag"),
        ("caller: !mine x", 1, "tag"),
        ("? [a]\n: b", 1, "key that is a list"),
        ("timeout: 1\n---\ntimeout: 2", 2, "more than one document"),
        ("log:\n  <<: 3", 2, "merges"),
        ("a: " + "[" * 30, 1, "deeper"),
        ("a: [" + "1," * 20_000 + "]", 1, "more than 10000"),
        ("[" * 500_000, 1, "deeper"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str | bytes, line: int, words: str) -> None:
    error = refusal(tmp_path, text)
    assert error.source == f"imagen.yaml:{line}"
    assert words in error.detail
    assert error.detail.startswith(f"imagen.yaml:{line}: ")


def test_a_file_of_bounded_size(tmp_path: Path) -> None:
    assert load_text(tmp_path, "#" * (1024 * 1024)).server.port == 5003
    assert "larger than 1024 KiB" in refusal(tmp_path, "#" * (1024 * 1024 + 1)).detail


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    lines = ["backends:", " x:", "  type: plugin", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 10000 values" in refusal(tmp_path, "\n".join(lines)).detail
    chain = ["backends:", " x:", "  type: plugin", "  a0: &a0 [x]"]
    chain += [f"  a{n}: &a{n} [*a{n - 1}]" for n in range(1, 500)]
    assert "deeper" in refusal(tmp_path, "\n".join(chain)).detail


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = """
backends:
  fast: &fast
    type: replicate
    model: a/b
    default_steps: 4
  slow:
    <<: *fast
    default_steps: 40
  both: {<<: [{store: on}, *fast], type: emulator}
"""
    backends = load_text(tmp_path, text).backends
    assert (backends["slow"].model, backends["slow"].default_steps) == ("a/b", 40)
    assert (backends["both"].type, backends["both"].store, backends["both"].model) == (
        "emulator",
        True,
        "a/b",
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("-12", -12),
        ("012", 12),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("16:9", "16:9"),
        ("yes", "yes"),
        ("2024-01-01", "2024-01-01"),
        ("1" * 40, 1e39 * 1.1111111111111112),
        ("٣", "٣"),
    ],
)
def test_plain_words_of_plugins(text: str, value: object) -> None:
    assert plain_value(text) == (pytest.approx(value) if isinstance(value, float) else value)


def test_quotes_and_tags_of_plugins() -> None:
    root = parse_config("{a: 3, b: '3', c: !!str 3, d: !!int '3', e: [x, ~], f: {g: on}, h: , i: ''}", "x")
    values = {key: node.to_value() for key, node in root.items()}
    assert values == {
        "a": 3,
        "b": "3",
        "c": "3",
        "d": 3,
        "e": ["x", None],
        "f": {"g": "on"},
        "h": None,
        "i": "",
    }


def test_the_slow_parser_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = load_text(tmp_path, SAMPLE)
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert load_text(tmp_path, SAMPLE) == quick
    assert refusal(tmp_path, "timeout: 1\ncaller: é\x07").source == "imagen.yaml:2"
    assert load_text(tmp_path, "timeout:\nlog:").timeout is None


# --- whatever else may be in it --------------------------------------------------------------------------


def _load_any(data: bytes | str) -> None:
    try:
        parse_and_load(data)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
        str(error).encode()


def parse_and_load(data: bytes | str) -> None:
    read, write_end = os.pipe()
    try:
        os.set_blocking(write_end, False)
        os.write(write_end, data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        os.close(write_end)
        settings = load_settings(
            config=Path(f"/dev/fd/{read}"), environ={"HOME": "/nonexistent"}, cwd=Path("/nonexistent")
        )
        assert settings.explain()
    finally:
        os.close(read)


WORDS = [*TOP_KEYS, "x", "type", "model", "emulator", "replicate", "plugin", "null", "~", "3", "%"]
SIGNS = [
    "&a",
    "*a",
    "<<",
    "!!str",
    "!x",
    "|",
    ">",
    *"*:-,[]{}?# '\"\n\t",
    "\n  ",
    "\n    ",
    ": ",
    "- ",
    "---\n",
]
YAML_PIECES = st.sampled_from([*WORDS, *SIGNS])


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    _load_any(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _load_any(data)


@given(st.lists(YAML_PIECES, max_size=40).map("".join))
def test_anything_like_yaml_is_read_or_refused(text: str) -> None:
    _load_any(text)


KEYS = st.sampled_from([*TOP_KEYS, "port", "level", "x"]) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping_is_read_or_refused(mapping: dict[str, object]) -> None:
    _load_any(yaml.safe_dump(mapping, allow_unicode=True))
