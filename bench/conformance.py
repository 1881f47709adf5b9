"""How much of the 2.0 beta client's own test suite passes against the emulator, and against the gateway in front of one.

    make conformance CHECKOUT=/path/to/replicate-python-beta

The suite (`tests/api_resources` of https://github.com/replicate/replicate-python-beta) was made for a mock of Replicate's
OpenAPI document that knows every id. Here a copy of it, without the marks that skip its tests, meets servers that remember
what they did: before each test the emulator is given what the suite's made-up ids name (`prediction_id`, `model_owner/model_name`
and so on). What then fails is named, and docs/reference/compatibility.md tells why. Nothing of the checkout is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/clients"), str(ROOT / "tests/acceptance")]

from processes import TOKEN, Service, running_emulator, running_gateway  # noqa: E402 - it is beside the tests

PYTHON = ROOT / ".venv-clients/conformance/bin/python"
SKIPPED = re.compile(r"^ *@pytest\.mark\.skip\(\s*reason=\"Prism[^\"]*\"\s*\)\n", re.MULTILINE)
BEARER = re.compile(r'^bearer_token = ".*"$', re.MULTILINE)
"""What the suite's client shows. It has spaces, which no key of a gateway may have, so that another takes its place."""

PLANTING = '''"""Before each test the server is given what its made-up ids name."""

import json
import os
import urllib.request

import pytest

URL = os.environ["PLANT_URL"]
PLANTS, EMPTY = os.environ["PLANTS"].encode(), os.environ["PLANT_EMPTY"].encode()


MAKERS = ("test_models", "test_deployments")


@pytest.fixture(autouse=True)
def planted(request):
    if request.path.stem in MAKERS:  # they make the same model and the same deployment again and again
        control("reset", b"{}")
    # A model is deleted after its versions, and the other tests want it with some.
    control("plant", EMPTY if request.path.stem == "test_models" and "delete" in request.node.name else PLANTS)


def control(what, body):
    asked = urllib.request.Request(f"{URL}/_emulator/{what}", body, {"Content-Type": "application/json"}, method="POST")
    urllib.request.urlopen(asked).close()
'''
MODEL = "model_owner/model_name"
PLANTS = {
    "token": TOKEN,
    "owners": ["alice", "owner"],
    "hardware": {"hardware": "Hardware", "cpu": "CPU"},
    "models": [
        {
            "name": MODEL,
            "versions": ["version_id"],
            "visibility": "private",
            "readme": "Planted",
            "takes": {"official": True},
        },
        {"name": "model", "versions": ["version"]},
        {"name": "planted/model", "versions": ["version"]},
        {"name": "destination"},
    ],
    "deployments": [{"name": "deployment_owner/deployment_name", "model": "planted/model"}],
    "collections": [{"slug": "collection_slug", "models": [MODEL]}],
    "files": [{"id": "file_id"}],
    "predictions": [{"id": "prediction_id", "model": MODEL}],
    "trainings": [{"id": "training_id", "model": "model", "destination": "destination"}],
}
"""What the suite's made-up ids name, as the body of the emulator's `POST plant`."""


def prepared(checkout: Path, folder: Path) -> Path:
    """A copy of the suite that skips nothing and plants before each test."""
    copy = folder / "suite"
    shutil.copytree(checkout / "tests", copy / "tests")
    for path in (copy / "tests/api_resources").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(SKIPPED.sub("", text), encoding="utf-8")
    (copy / "tests/api_resources/conftest.py").write_text(PLANTING, encoding="utf-8")
    shared = copy / "tests/conftest.py"
    told = BEARER.sub('bearer_token = os.environ["BEARER"]', shared.read_text(encoding="utf-8"))
    shared.write_text(told, encoding="utf-8")
    shutil.copy(checkout / "pyproject.toml", copy)
    return copy


def judged(service: Service, suite: Path, chosen: list[str]) -> bool:
    """Run it against one server, tell how it went, and say whether all passed."""
    report = suite / f"{service.name}.xml"
    env: Mapping[str, str] = {
        "PATH": os.environ.get("PATH", ""),
        "LANG": "C.UTF-8",
        "TEST_API_BASE_URL": f"{service.url}/v1",
        "BEARER": service.token,
        "PLANT_URL": service.emulated.url,
        "PLANTS": json.dumps(PLANTS),
        "PLANT_EMPTY": json.dumps({"models": [{"name": MODEL, "versions": [], "visibility": "private"}]}),
    }
    command = [
        PYTHON,
        "-m",
        "pytest",
        "tests/api_resources",
        "-q",
        "-n",
        "0",
        "--tb=short",
        f"--junit-xml={report}",
        *chosen,
    ]
    finished = subprocess.run(command, cwd=suite, env=env, capture_output=True, text=True, check=False)
    (ROOT / "bench-out").mkdir(exist_ok=True)
    (ROOT / "bench-out" / f"conformance-{service.name}.txt").write_text(
        finished.stdout + finished.stderr, encoding="utf-8"
    )
    if not report.exists():
        print(finished.stdout[-3000:], finished.stderr[-3000:])
        return False
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - pytest has just written it
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    passed = len(cases) - len(skipped) - len(failed)
    print(f"{service.name}: {passed} passed, {len(failed)} failed, {len(skipped)} skipped, of {len(cases)}")
    for case in failed:
        print(f"  failed: {case.get('classname', '').rpartition('api_resources.')[2]}::{case.get('name')}")
    for case in skipped:
        print(f"  skipped: {case.get('classname', '').rpartition('api_resources.')[2]}::{case.get('name')}")
    return not failed


def main() -> int:
    """Run it against both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "checkout", type=Path, help="a checkout of replicate-python-beta, outside this repository"
    )
    parser.add_argument("chosen", nargs="*", help="further arguments of pytest, such as -k files")
    asked, rest = parser.parse_known_args()
    if not (asked.checkout / "tests/api_resources").is_dir():
        parser.error(f"{asked.checkout} has no tests/api_resources: give a checkout of replicate-python-beta")
    chosen = [*asked.chosen, *rest]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        suite = prepared(asked.checkout, folder)
        with running_emulator(folder / "alone") as emulated:
            direct = judged(Service("direct", emulated.url, TOKEN, emulated), suite, chosen)
        with (
            running_emulator(folder / "behind") as emulated,
            running_gateway(folder / "gateway", emulated) as gateway,
        ):
            through = judged(gateway, suite, chosen)
    return 0 if direct and through else 1


if __name__ == "__main__":
    sys.exit(main())
