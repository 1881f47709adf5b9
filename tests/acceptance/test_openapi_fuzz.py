"""The gateway keeps what its OpenAPI document promises, whatever is asked of it: made-up requests, good and bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from imagen.emulator import EmulatorThread
from imagen.server.app import operations

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fuzz")]
ADMIN = {"X-Admin-API-Key": "an-admin-key-for-fuzzing"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Not among them: that good data are accepted and bad ones refused. JSON Schema knows neither models nor prices."""
OPERATIONS = [(one.method, one.path) for one in operations()]
MODELS = (
    "flux-dev",
    "flux-schnell",
    "flux-kontext-max",
    "qwen-image",
    "black-forest-labs/flux-dev",
    "no/such",
)
"""Texts that are made up never name a model."""
NEVER_GOOD = ("/webhooks/replicate", "/deliveries/{delivery_id}/retry")
"""What only the service can sign, and what there is none of here."""
FILES = {"text/csv": "prompt\na red fox\n", "application/x-ndjson": '"a red fox"\n'}
"""A file that is made up holds no tasks."""
EXAMPLES = 8


class Served:
    """A server process, its document, and a connection to it."""

    def __init__(self, url: str, emulator: EmulatorThread) -> None:
        self.url = url
        self.emulator = emulator
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy, no .netrc
        self.document = self.session.get(f"{url}/openapi.json", timeout=10).json()
        # Cases hold parts of what they are made of, and are changed.
        self.schema = schemathesis.openapi.from_dict(deepcopy(self.document))

    def post(self, path: str, body: Any) -> requests.Response:
        return self.session.post(self.url + path, json=body, headers=ADMIN, timeout=30)

    def make_what(self, path: str) -> dict[str, str]:
        """Something that exists for each parameter of a path."""
        made = {}
        if "{semaphore_id}" in path:
            made["semaphore_id"] = "s"
            self.post("/global-semaphores", {"semaphore_id": "s", "limit": 500})
        if "{lease_id}" in path:
            made["lease_id"] = self.post("/global-semaphores/s/leases", {"ttl": 20}).json()["lease_id"]
        if "{name}" in path:
            made["name"] = "k"
            self.post("/keys", {"name": "k"})
            self.post("/budgets", {"name": "k", "usd": 9, "per": "day", "all": True, "warn": True})
        if "{picture_id}" in path:
            wish = {"model_name": "flux-schnell", "prompt": "a red fox", "store": True}
            (picture,) = self.post("/generate", wish).json()["generated_files"]
            made["picture_id"] = picture["stored_url"].rpartition("/")[2]
        if "{batch_id}" in path:
            tasks = {"model_name": "flux-schnell", "tasks": [{"prompt": "a red fox"}]}
            made["batch_id"] = self.post("/batches", tasks).json()["id"]
        if "{prediction_id}" in path:
            wish = {"model_name": "flux-schnell", "prompt": "a red fox"}
            # only what has succeeded is judged, and made a final of
            if path.endswith(("/feedback", "/promote")):
                made["prediction_id"] = self.post("/generate", wish).json()["prediction_id"]
            else:
                made["prediction_id"] = self.post("/predictions", wish).json()["id"]
        if "{asset}" in path:
            made["asset"] = "swagger-ui.css"
        return made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("fuzzed")
    with EmulatorThread(run_seconds=0.02) as emulator, (root / "log").open("w+") as log:
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(root),
            "IMAGEN_DATA_DIR": str(root / "data"),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
            "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN["X-Admin-API-Key"],
            "REPLICATE_API_TOKEN": "r8_fuzzed",
            "IMAGEN_REPLICATE__API_BASE": emulator.url,
            "IMAGEN_LIMITS__WAIT": "2",
        }
        command = [sys.executable, "-m", "imagen", "serve", "--port", "0", "--json"]
        with subprocess.Popen(command, env=environ, cwd=root, stdout=subprocess.PIPE, stderr=log) as process:
            assert process.stdout is not None
            try:
                one = Served(json.loads(process.stdout.readline())["url"], emulator)
                yield one
                one.session.close()
            finally:
                process.terminate()
        log.seek(0)
        written = log.read()
        assert process.returncode == 0, written
        assert "unexpected fault" not in written
        assert "Traceback" not in written


def cases(served: Served, method: str, path: str) -> st.SearchStrategy[schemathesis.Case]:
    """Requests that fit the document, and such as do not, with names that exist among those that are made up."""
    operation = served.schema[path][method]
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (operation.body or operation.path_parameters or operation.headers or operation.query):
        return fitting
    unfitting = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    existing = {name: st.just(value) for name, value in served.make_what(path).items()}
    known = st.fixed_dictionaries(
        {
            "model_name": st.sampled_from(MODELS),
            "path": st.fixed_dictionaries({}, optional=existing),
            "wait": st.sampled_from((0, 0.01, 0.1)),
            "plain": st.booleans(),
        }
    )
    return st.builds(_with_known, st.one_of(fitting, fitting, unfitting), known)


def documented(served: Served, method: str, path: str) -> schemathesis.Case | None:
    """The request that the document shows, for something that exists; None where it shows none."""
    content = served.document["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    example = content.get("application/json", {}).get("example")
    if example is None:
        return None
    return served.schema[path][method].Case(
        method=method, body=example, media_type="application/json", path_parameters=served.make_what(path)
    )


def _with_known(case: schemathesis.Case, known: dict[str, Any]) -> schemathesis.Case:
    for name, value in known["path"].items():
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = value
    body = case.body
    if isinstance(body, dict):
        if {"prompt", "tasks", "prompts"} & body.keys():
            body["model_name"] = known["model_name"]
            if known["plain"]:  # a parameter that is made up is none of any model
                for name in body.keys() - {"model_name", "prompt", "tasks", "prompts", "store", "timeout"}:
                    del body[name]
                body["tasks"] = _plain(body["tasks"]) if "tasks" in body else None
        if "usd" in body:
            _make_harmless(body)
        if isinstance(body.get("wait"), int | float):
            # nobody here has the ten minutes that are allowed
            body["wait"] = min(body["wait"], known["wait"])
    if known["plain"]:
        _make_plain(case, known["model_name"])
    return case


def _make_harmless(budget: dict[str, Any]) -> None:
    """One that refuses would hold all that follows; and no schema says that exactly one of four is given."""
    budget["warn"] = True
    if str(budget.get("per")) in {"day", "month", "total"}:
        for name in ("key", "caller", "model"):
            budget.pop(name, None)
        budget |= {"usd": 9, "all": True}


def _make_plain(case: schemathesis.Case, model_name: str) -> None:
    """Without what is made up where only what exists is good."""
    # Keys that are made up stand in place of those that are good, and one idempotency key would come with many bodies.
    for name in ("X-Admin-API-Key", "X-API-Key", "Authorization", "Idempotency-Key"):
        (case.headers or {}).pop(name, None)
    if case.media_type in FILES:
        case.body = FILES[case.media_type]
        case.query = {"model_name": model_name}


def _plain(tasks: Any) -> Any:
    if not isinstance(tasks, list):
        return tasks
    return [
        {"prompt": task["prompt"]} if isinstance(task, dict) and "prompt" in task else task for task in tasks
    ]


@pytest.mark.parametrize("who", ["the admin", "somebody on this machine", "a web page of others"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
def test_every_answer_is_one_that_the_document_has(served: Served, method: str, path: str, who: str) -> None:
    headers = {
        "the admin": ADMIN,
        "somebody on this machine": {},
        "a web page of others": {"Origin": "https://somewhere.example"},
    }[who]
    statuses = set()

    def ask(case: schemathesis.Case) -> None:
        answer = case.call(base_url=served.url, session=served.session, headers=headers, timeout=30)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    @seed(20261122)
    @settings(
        max_examples=EXAMPLES if who != "a web page of others" else 5,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(served, method, path))
    def check(case: schemathesis.Case) -> None:
        ask(case)

    check()
    if (shown := documented(served, method, path)) is not None:
        ask(shown)
    if who == "the admin" and path not in NEVER_GOOD:
        assert {status for status in statuses if status < 400}, f"none of {statuses} was good"
    told = served.document["paths"][path][method.lower()]
    if who == "a web page of others" and "admin" in str(told["security"]):
        # Where credentials may stand in the body, that is read first.
        read_first = {400} if {} in told["security"] and "requestBody" in told else set()
        assert statuses <= {401, 404, 405} | read_first
    assert served.session.get(f"{served.url}/ready", timeout=10).json() == {"ready": True}


def test_practice_costs_nothing(cli: Any) -> None:
    """Without a token nothing that is asked for is bought anywhere."""
    started = cli.start("serve", "--port", "0", "--json")
    url = json.loads(started.read_line())["url"]
    with requests.Session() as session:
        session.trust_env = False
        wish = {"model_name": "flux-dev", "prompt": "a red fox"}
        one = session.post(f"{url}/generate", json=wish | {"store": True}, timeout=40)
        tasks = {"model_name": "qwen-image", "tasks": [{"prompt": "a red fox"}, {"prompt": "a hare"}]}
        many = session.post(f"{url}/generate-batch", json=tasks, timeout=40)
        for answer in (one, many):
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert (told["practice"], told["cost_usd"]) == (True, 0)
            assert float(answer.headers["x-imagen-cost-usd"]) == 0
        metrics = session.get(f"{url}/metrics", timeout=10).text
    assert [
        line
        for line in metrics.splitlines()
        if line.startswith("imagen_cost_usd_total") and not line.endswith(" 0.0")
    ] == []
    assert "practice" in started.stop().stderr
    total = cli("usage", "--json", code=0).json["total"]
    assert (total["predictions"], total["cost_usd"], total["unpriced"]) == (3, 0, 0)
