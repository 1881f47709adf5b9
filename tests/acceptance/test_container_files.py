"""The container's files without a container: they are well formed, and what they would run runs."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BESIDE = Path(sys.executable).parent
ADMIN_KEY = "an-admin-key-for-tests"


# --- reading them ----------------------------------------------------------------------------------------


def instructions(name: str | None = None) -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined; all stages or the one of a name."""
    lines = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", lines)
    found = [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]
    if name is None:
        return found
    begin = next(
        index for index, (word, rest) in enumerate(found) if word == "FROM" and rest.endswith(f"AS {name}")
    )
    end = next((index for index in range(begin + 1, len(found)) if found[index][0] == "FROM"), len(found))
    return found[begin + 1 : end]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(index for index, (word, _) in enumerate(found) if word == "FROM") + 1 :]


def environment() -> dict[str, str]:
    """What ENV sets in the image."""
    words = [word for name, rest in last_stage() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def health_command() -> list[str]:
    (rest,) = (rest for name, rest in last_stage() if name == "HEALTHCHECK")
    found: list[str] = json.loads(rest[rest.index("[") :])
    return found


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


def is_ignored(name: str) -> bool:
    """Whether .dockerignore keeps a path out of the build; the last pattern that fits it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = name.split("/")
        begins = ["/".join(parts[: size + 1]) for size in range(len(parts))]
        if any(
            fnmatch.fnmatch(each, pattern.removeprefix("**/"))
            for each in (begins if "**" not in pattern else parts)
        ):
            ignored = not line.startswith("!")
    return ignored


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def check(command: list[str], port: int, python: Path) -> int:
    """The exit status of a health check, as the container would run it."""
    # a proxy of the container's is not asked
    env = {"FLASK_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    program = [str(python) if word == "python" else word for word in command]
    return subprocess.run(program, env=env, check=False, capture_output=True, timeout=30).returncode


# --- they are well formed --------------------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = subprocess.run(
        [BESIDE / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_compose_file_is_valid_by_the_specification():
    done = subprocess.run(
        [BESIDE / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"],
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_small_in_what_it_may():
    found = dict(last_stage())
    assert found["USER"] not in {"root", "0", "0:0"}
    assert found["EXPOSE"] == "5003"
    assert json.loads(found["CMD"]) == ["imagen", "serve"]
    assert found["VOLUME"] == environment()["IMAGEN_DATA_DIR"]
    assert environment()["FLASK_HOST"] == "0.0.0.0"  # noqa: S104 - nobody outside reaches a container's loopback
    assert environment()["FLASK_PORT"] == found["EXPOSE"]


def test_every_setting_of_the_image_is_one(cli: Any):
    given = {name: value for name, value in environment().items() if name.startswith(("IMAGEN_", "FLASK_"))}
    shown = cli("config", "show", env=given, code=0).stdout
    for name in given:
        assert f"environment {name}" in shown


def test_the_compose_file_runs_the_documented_service():
    service = compose()["services"]["replicate-generation"]
    assert service["ports"] == ["5003:5003"]
    assert service["restart"] == "unless-stopped"
    assert {"REPLICATE_API_TOKEN", "CONCURRENT_DOCKER_ADMIN_API_KEY", "FLASK_PORT"} <= set(
        service["environment"]
    )
    volume, _, place = service["volumes"][0].partition(":")
    assert volume in compose()["volumes"]
    assert place == environment()["IMAGEN_DATA_DIR"]
    assert service["healthcheck"]["interval"] == "30s"


def test_no_secret_stands_in_the_files():
    for name in ("Dockerfile", "compose.yaml"):
        assert not re.search(r"\br8_[A-Za-z0-9]{8,}", (ROOT / name).read_text(encoding="utf-8"))
    service = compose()["services"]["replicate-generation"]["environment"]
    for name in ("REPLICATE_API_TOKEN", "CONCURRENT_DOCKER_ADMIN_API_KEY"):
        assert service[name].startswith(f"${{{name}:?")


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        (".git/config", True),
        (".venv/bin/python", True),
        (".env", True),
        ("demo/imagen.db", True),
        ("imagen.yaml", True),
        ("tests/conftest.py", True),
        ("src/imagen/__pycache__/errors.cpython-311.pyc", True),
        ("src/imagen/errors.py", False),
        ("src/imagen/catalog/data/flux.toml", False),
        ("pyproject.toml", False),
    ],
)
def test_only_what_the_image_needs_gets_into_its_build(name: str, *, ignored: bool):
    assert is_ignored(name) is ignored


def test_whatever_is_copied_is_there_and_not_ignored():
    copied = [
        source for word, rest in instructions("build") if word == "COPY" for source in shlex.split(rest)[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "src"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists() or is_ignored(source)] == []


# --- what they would run runs ----------------------------------------------------------------------------


def test_the_health_check_of_both_files_is_the_same():
    test = compose()["services"]["replicate-generation"]["healthcheck"]["test"]
    assert [word.split() for word in test[1:]] == [word.split() for word in health_command()]


def test_the_health_check_tells_a_server_that_lives_from_one_that_does_not(cli: Any):
    port = free_port()
    assert check(health_command(), port, Path(sys.executable)) != 0
    served = cli.start("serve", "--port", str(port), "--json")
    assert json.loads(served.read_line())["url"].endswith(f":{port}")
    assert check(health_command(), port, Path(sys.executable)) == 0
    test = compose()["services"]["replicate-generation"]["healthcheck"]["test"]
    assert check(test[1:], port, Path(sys.executable)) == 0
    served.stop()
    assert check(health_command(), port, Path(sys.executable)) != 0


def test_the_health_check_takes_another_servers_answer_for_no_health(tmp_path: Path):
    program = (
        "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.BaseHTTPRequestHandler);"
        "print(s.server_port, flush=True); s.serve_forever()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as other:
        try:
            assert other.stdout is not None
            assert check(health_command(), int(other.stdout.readline()), Path(sys.executable)) != 0
        finally:
            other.kill()


def has_package_index() -> bool:
    """Whether packages can be installed here at all; an image cannot be built without either."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "hatchling", "--retries", "0", "--timeout", "5"],
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_the_build_installs_serves(tmp_path: Path):
    """The steps of the build in a folder of their own: all but the base image, the user and the file system."""
    build, installed, data = tmp_path / "build", tmp_path / "installed", tmp_path / "data"
    build.mkdir()
    clean = {"PATH": os.pathsep.join([str(BESIDE), "/usr/bin", "/bin"]), "HOME": str(tmp_path)}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for word, rest in instructions("build"):
        if word == "COPY":
            *sources, _ = shlex.split(rest)
            for source in sources:
                copy_into(ROOT / source, build)
        elif word == "RUN":
            step = rest.replace("/opt/imagen", str(installed))
            done = subprocess.run(
                ["/bin/sh", "-ec", step],
                cwd=build,
                env=clean,
                capture_output=True,
                text=True,
                check=False,
                timeout=200,
            )
            if done.returncode != 0 and not has_package_index():
                pytest.skip("no package index can be reached")
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    port = free_port()
    env = environment() | {
        "PATH": f"{installed / 'bin'}{os.pathsep}/usr/bin",
        "HOME": str(data),
        "IMAGEN_DATA_DIR": str(data),
        "FLASK_PORT": str(port),
        "REPLICATE_API_TOKEN": "r8_pretended",
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
    }
    (command,) = (json.loads(rest) for word, rest in last_stage() if word == "CMD")
    models = subprocess.run(
        [installed / "bin" / "imagen", "models", "flux-dev"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "black-forest-labs/flux-dev" in models.stdout, "the catalog's data are not installed"
    with subprocess.Popen(
        [installed / "bin" / command[0], *command[1:]],
        env=env,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as served:
        try:
            python = installed / "bin" / "python"
            until = time.monotonic() + 40
            while check(health_command(), port, python) != 0:
                assert served.poll() is None, served.stderr.read() if served.stderr else ""
                assert time.monotonic() < until, "it never got healthy"
            served.send_signal(signal.SIGTERM)
            assert served.wait(timeout=20) == 0
        finally:
            served.kill()


def copy_into(source: Path, folder: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    else:
        shutil.copy2(source, folder)
