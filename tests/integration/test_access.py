"""Who comes in, on whose account, and what is left of their secrets: nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import ADMIN, ADMIN_KEY, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from imagen.emulator.journal import fingerprint
from imagen.emulator.models import Model
from imagen.errors import ConfigError
from imagen.server.access import NO_CREDENTIALS, WRONG_ADMIN_KEY, WRONG_KEY, WRONG_TOKEN
from imagen.server.run import check_safe
from imagen.settings import load_settings

pytestmark = pytest.mark.anyio

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what others than this machine can reach
PUBLIC = {"FLASK_HOST": EVERYWHERE}
OPEN = PUBLIC | {"IMAGEN_ALLOW_ENV_FALLBACK": "1"}
OWN = "r8_the_servers_own_token"
QUICK = "acme/quick"


@pytest.fixture
def emulator(replicate_emulator: EmulatorThread) -> EmulatorThread:
    replicate_emulator.add_model(Model(name=QUICK, run_seconds=0.01))
    return replicate_emulator


def payers(emulator: EmulatorThread) -> dict[str, str]:
    """The account that each prompt was bought on."""
    creates = emulator.journal.entries(operation="predictions.create", status=201)
    return {entry.body["input"]["prompt"]: str(entry.authorization) for entry in creates}


def of(token: str) -> str:
    return f"bearer:{fingerprint(token)}"


async def make_key(gateway: RunningGateway, name: str, **scope: Any) -> str:
    answer = await gateway.request("POST", "/keys", json={"name": name} | scope, headers=ADMIN)
    return str(answer.json()["key"])


async def ask(
    gateway: RunningGateway, prompt: str, headers: Mapping[str, str] | None = None, **fields: Any
) -> Answer:
    wish = {"model_name": QUICK, "prompt": prompt} | fields
    return await gateway.request("POST", "/generate", json=wish, headers=dict(headers or {}))


# --- the tiers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, PUBLIC, OPEN], ids=["local", "public", "open"])
async def test_every_combination_of_credentials_is_served_by_the_highest_or_by_none(
    tmp_path: Path, emulator: EmulatorThread, settings: dict[str, str]
) -> None:
    async with running_gateway(tmp_path, emulator, **settings) as gateway:
        good, revoked = await make_key(gateway, "good"), await make_key(gateway, "revoked")
        await gateway.request("DELETE", "/keys/revoked", headers=ADMIN)
        admins = {
            None: None,
            "right": ADMIN_KEY,
            "wrong": ADMIN_KEY + "x",
            "empty": "",
            "case": ADMIN_KEY.upper(),
        }
        keys = {None: None, "good": good, "revoked": revoked, "unknown": "imk_" + "0" * 32, "empty": ""}
        tokens: dict[str | None, Any] = {
            None: None,
            "good": {"replicate_api_token": "r8_their_own"},
            "empty": {"replicate_api_token": ""},
            "none": {},
        }
        wanted: dict[str, tuple[int, str | None, str | None]] = {}
        asked = []
        for admin, key, token in itertools.product(admins, keys, tokens):
            prompt = f"{admin} {key} {token}"
            headers = {}
            if admin is not None:
                headers["X-Admin-API-Key"] = admins[admin] or ""
            if key is not None:
                headers["X-API-Key"] = keys[key] or ""
            asked.append(ask(gateway, prompt, headers, credentials=tokens[token]))
            wanted[prompt] = expected(admin, key, token, fallback=settings is not PUBLIC)
        answers = await asyncio.gather(*asked)
        stored = {one.prompt: one.caller for one in await gateway.app.store.list(limit=200)}
        for (prompt, (status, _, caller)), answer in zip(wanted.items(), answers, strict=True):
            assert answer.status == status, (prompt, answer.json())
            assert stored.get(prompt) == (caller if caller != "token" else stored.get(prompt)), prompt
            assert (answer.status == 401) == ("www-authenticate" in answer.headers)
    bought = {prompt: account for prompt, (_, account, _) in wanted.items() if account is not None}
    assert payers(emulator) == bought
    assert len(bought) >= 19


def expected(
    admin: str | None, key: str | None, token: str | None, *, fallback: bool
) -> tuple[int, str | None, str | None]:
    """Status, who pays, and whom the ledger names."""
    refused = (401, None, None)
    if admin is not None:
        # What has no sense is refused also where nobody needs it.
        served = (400, None, None) if token == "none" else (200, of(OWN), "admin")
        return served if admin == "right" else refused
    if key is not None:
        served = (400, None, None) if token == "none" else (200, of(OWN), "good")
        return served if key == "good" else refused
    if token is not None:
        return (200, of("r8_their_own"), "token") if token == "good" else refused
    return (200, of(OWN), "unknown") if fallback else refused


async def test_without_an_admin_key_nobody_is_the_admin(tmp_path: Path, emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, emulator, CONCURRENT_DOCKER_ADMIN_API_KEY="") as gateway:
        for shown in ("", " ", "None", "null", ADMIN_KEY, "***"):
            headers = {"X-Admin-API-Key": shown}
            answers = [
                await ask(gateway, "x", headers),
                await gateway.request("GET", "/keys", headers=headers),
                await gateway.request("POST", "/keys", json={"name": "x"}, headers=headers),
                await gateway.request("DELETE", "/pictures/pic_x", headers=headers),
                await gateway.request("GET", "/metrics", headers=headers),
            ]
            assert [(one.status, one.json()["error"]) for one in answers] == [(401, WRONG_ADMIN_KEY)] * 5
        assert (await gateway.request("GET", "/keys")).json()["error"] == NO_CREDENTIALS
    assert emulator.purchases == 0


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        "bearer imk_" + "0" * 32,
        "Bearer imk_",
        "Bearer imk_" + "0" * 100_0,
        "Bearer \xff\xfe",
        "BEARER imk_ü",
        "imk_" + "0" * 32,
        "Basic YTpi",
        "Digest",
    ],
)
async def test_a_bearer_that_is_no_key_is_refused(
    tmp_path: Path, emulator: EmulatorThread, shown: str
) -> None:
    async with running_gateway(tmp_path, emulator, **OPEN) as gateway:
        answer = await ask(gateway, "x", {"Authorization": shown})
        assert (answer.status, answer.json()["error"]) == (401, WRONG_KEY)
        assert emulator.purchases == 0


async def test_a_token_header_that_is_empty_is_refused(tmp_path: Path, emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, emulator, **OPEN) as gateway:
        answer = await ask(gateway, "x", {"X-Replicate-Api-Token": ""})
        assert (answer.status, answer.json()["error"]) == (401, WRONG_TOKEN)
        assert emulator.purchases == 0


@pytest.mark.parametrize(
    "credentials",
    [
        7,
        True,
        "r8_their_own",
        [],
        ["r8_their_own"],
        {},
        {"token": "r8_their_own"},
        {"Replicate_API_Token": "r8_their_own"},
        {"replicate_api_token": None},
        {"replicate_api_token": ""},
        {"replicate_api_token": " "},
        {"replicate_api_token": 7},
        {"replicate_api_token": ["r8_their_own"]},
        {"replicate_api_token": "two words"},
        {"replicate_api_token": "r8_a\r\nX-Evil: 1"},
        {"replicate_api_token": "r8_a\tb"},
        {"replicate_api_token": "r8_\0"},
        {"replicate_api_token": "r8_ü"},
        {"replicate_api_token": "r8_" + "x" * 600},
        {"replicate_api_token": " r8_their_own"},
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_credentials_that_are_none_never_fall_back_to_the_server_s_account(
    tmp_path: Path, emulator: EmulatorThread, credentials: Any
) -> None:
    async with running_gateway(tmp_path, emulator) as gateway:
        answer = await ask(gateway, "x", credentials=credentials)
        assert answer.status == 401
        assert answer.json()["error"] in {NO_CREDENTIALS, WRONG_TOKEN}
        batch = {"model_name": QUICK, "tasks": [{"prompt": "x"}], "credentials": credentials}
        assert (await gateway.request("POST", "/generate-batch", json=batch)).status == 401
        inside = {"model_name": QUICK, "tasks": [{"prompt": "x", "credentials": credentials}]}
        assert (await gateway.request("POST", "/generate-batch", json=inside)).status == 400
    assert emulator.purchases == 0


async def test_a_token_that_the_service_refuses_is_the_caller_s_fault_alone(
    tmp_path: Path, emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, emulator) as gateway:
        theirs = {"replicate_api_token": "r8_invalid_one"}
        answer = await ask(gateway, "theirs", credentials=theirs)
        assert (answer.status, answer.json()["error"]) == (401, WRONG_TOKEN)
        assert (await ask(gateway, "ours")).status == 200
    assert payers(emulator) == {"ours": of(OWN)}


# --- keys ------------------------------------------------------------------------------------------------


async def test_a_key_is_good_for_its_models_by_every_name_and_for_no_other(
    tmp_path: Path, emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, emulator, **PUBLIC) as gateway:
        key = {"X-API-Key": await make_key(gateway, "narrow", models=["flux-schnell"])}
        for name in ("flux-schnell", "black-forest-labs/flux-schnell", " FLUX-Schnell "):
            assert (await ask(gateway, "good", key, model_name=name)).status == 200, name
        bought = emulator.purchases
        for name in (
            "flux-dev",
            "black-forest-labs/flux-dev",
            QUICK,
            "acme/flux-schnell",
            "deployments/black-forest-labs/flux-schnell",
            "deployments/emulated/flux-deployment",
        ):
            answer = await ask(gateway, "bad", key, model_name=name)
            assert (answer.status, answer.json()["code"]) == (403, "permission_denied"), name
        tasks = [{"prompt": "good"}, {"prompt": "bad", "model_name": "flux-dev"}]
        batch = {"model_name": "flux-schnell", "tasks": tasks}
        answer = await gateway.request("POST", "/generate-batch", json=batch, headers=key)
        assert answer.status == 403
    assert emulator.purchases == bought


async def test_a_key_is_good_for_its_paths_and_never_administers(
    tmp_path: Path, emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, emulator, **PUBLIC) as gateway:
        await gateway.request(
            "POST", "/global-semaphores", json={"semaphore_id": "s", "limit": 1}, headers=ADMIN
        )
        calls: dict[str, list[tuple[str, str, Any]]] = {
            "/generate": [("POST", "/generate", {"model_name": QUICK, "prompt": "x"})],
            "/generate-batch": [
                ("POST", "/generate-batch", {"model_name": QUICK, "tasks": [{"prompt": "x"}]})
            ],
            "/global-semaphores": [
                ("GET", "/global-semaphores", None),
                ("GET", "/global-semaphores/s", None),
                ("POST", "/global-semaphores/s/leases", {}),
                ("DELETE", "/global-semaphores/s/leases/lease_x", None),
            ],
        }
        for scope in [[], *([route] for route in calls), [*calls]]:
            key = {
                "Authorization": f"Bearer {await make_key(gateway, f'key{len(scope)}{scope[:1]}'.translate(_PLAIN), routes=scope)}"
            }
            for route, requests in calls.items():
                for method, path, body in requests:
                    answer = await gateway.request(method, path, json=body, headers=key)
                    good = not scope or route in scope
                    assert (answer.status in {200, 201, 429}) == good, (scope, path, answer.body)
                    assert good or answer.json()["code"] == "permission_denied"
            for method, path, body in (
                ("GET", "/keys", None),
                ("POST", "/keys", {"name": "mine"}),
                ("DELETE", "/keys/key", None),
                ("POST", "/global-semaphores", {"semaphore_id": "mine", "limit": 1}),
                ("DELETE", "/global-semaphores/s", None),
                ("DELETE", "/pictures/pic_x", None),
                ("GET", "/metrics", None),
            ):
                answer = await gateway.request(method, path, json=body, headers=key)
                assert (answer.status, answer.json()["error"]) == (401, NO_CREDENTIALS), path


_PLAIN = str.maketrans("", "", "/[]'")


async def test_a_key_that_is_shown_beside_another_is_the_only_one_that_counts(
    tmp_path: Path, emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, emulator, **PUBLIC) as gateway:
        good = await make_key(gateway, "good")
        both = {"X-API-Key": "imk_wrong", "Authorization": f"Bearer {good}"}
        assert (await ask(gateway, "x", both)).status == 401
        # A key never pays with a token, nor is it a token.
        theirs = {"replicate_api_token": "r8_their_own"}
        assert (await ask(gateway, "by key", {"X-API-Key": good}, credentials=theirs)).status == 200
        assert (await ask(gateway, "x", credentials={"replicate_api_token": good})).status == 200
    assert payers(emulator) == {"by key": of(OWN), "x": of(good)}


# --- web pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, {"Origin": "https://evil.example"}),
        ({}, {"Origin": "null"}),
        ({}, {"Origin": ""}),
        ({}, {"Origin": "file://"}),
        ({}, {"Origin": "http://localhost.evil.example"}),
        ({}, {"Origin": "http://127.0.0.1.evil.example"}),
        ({}, {"Origin": "http://evil.example#127.0.0.1"}),
        ({}, {"Origin": "http://127.0.0.1@evil.example"}),
        ({}, {"Origin": "http://[::1"}),
        # Another program of this machine shows it.
        ({}, {"Host": "localhost:5003", "Origin": "http://localhost:3000"}),
        # A proxy has passed it on: it may come from anywhere.
        ({}, {"X-Forwarded-For": "203.0.113.9"}),
        ({}, {"X-Real-IP": "203.0.113.9"}),
        ({}, {"Forwarded": "for=203.0.113.9"}),
        ({}, {"Via": "1.1 proxy"}),
        # DNS rebinding: their name leads to this machine.
        ({}, {"Host": "evil.example"}),
        ({}, {"Host": "evil.example:5003", "Origin": "http://evil.example:5003"}),
        ({}, {"Host": "127.0.0.1.evil.example"}),
        ({}, {"Host": "localhost.evil.example"}),
        ({}, {"Host": "127.0.0.1." + "1" * 5000}),
        ({}, {"Host": ""}),
        ({}, {"Host": "[::1"}),
        ({}, {"Host": EVERYWHERE, "Origin": f"http://{EVERYWHERE}"}),
        (OPEN, {"Origin": "https://evil.example"}),
        (OPEN, {"Origin": "null"}),
        (OPEN, {"Host": "evil.example", "Origin": "http://evil.example"}),
        (OPEN, {"Host": "", "Origin": "null"}),
        (OPEN, {"Host": "10.0.0.1", "Origin": "http://10.0.0.2"}),
        (
            OPEN | {"IMAGEN_PUBLIC_URL": "https://ours.example"},
            {"Host": "ours.example", "Origin": "https://evil.example"},
        ),
        (
            OPEN | {"IMAGEN_PUBLIC_URL": "https://ours.example"},
            {"Host": "evil.example", "Origin": "https://evil.example"},
        ),
    ],
    ids=repr,
)
async def test_what_a_web_page_or_a_proxy_passes_on_never_uses_the_server_s_account(
    tmp_path: Path, emulator: EmulatorThread, settings: dict[str, str], headers: dict[str, str]
) -> None:
    async with running_gateway(tmp_path, emulator, **settings) as gateway:
        await gateway.request(
            "POST", "/global-semaphores", json={"semaphore_id": "s", "limit": 1}, headers=ADMIN
        )
        batch = {"model_name": QUICK, "tasks": [{"prompt": "x"}]}
        for method, path, body in (
            ("POST", "/generate", {"model_name": QUICK, "prompt": "x"}),
            ("POST", "/generate-batch", batch),
            ("GET", "/global-semaphores", None),
            ("POST", "/global-semaphores/s/leases", {}),
            ("GET", "/metrics", None),
        ):
            answer = await gateway.request(method, path, json=body, headers=headers)
            assert answer.status == 401, (path, answer.body)
            assert "access-control-allow-origin" not in answer.headers
        assert "account" not in (await gateway.request("GET", "/health", headers=headers)).json()
        preflight = await gateway.request("OPTIONS", "/generate", headers=headers)
        assert preflight.status == 405
        assert not [name for name in preflight.headers if name.startswith("access-control")]
        # With credentials of its own a page is a caller like any other.
        assert (await ask(gateway, "admin's", headers | ADMIN)).status == 200
    assert payers(emulator) == {"admin's": of(OWN)}


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, {}),
        ({}, {"Host": "localhost"}),
        ({}, {"Host": "localhost:5003", "Origin": "http://localhost:5003"}),
        ({}, {"Host": "[::1]:5003", "Origin": "http://[::1]:5003"}),
        ({}, {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}),
        ({"IMAGEN_ALLOW_ENV_FALLBACK": "1"}, {"X-Forwarded-For": "203.0.113.9"}),
        (OPEN, {}),
        (OPEN, {"Host": "gateway.lan"}),
        (OPEN, {"Host": "10.0.0.1:5003", "Origin": "http://10.0.0.1:5003"}),
        (
            OPEN | {"IMAGEN_PUBLIC_URL": "https://ours.example"},
            {"Host": "ours.example", "Origin": "https://ours.example"},
        ),
    ],
    ids=repr,
)
async def test_programs_and_our_own_pages_use_it_where_that_is_allowed(
    tmp_path: Path, emulator: EmulatorThread, settings: dict[str, str], headers: dict[str, str]
) -> None:
    async with running_gateway(tmp_path, emulator, **settings) as gateway:
        assert (await ask(gateway, "x", headers)).status == 200


# --- where others can reach it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", [EVERYWHERE, "::", "192.168.1.5", "gateway.example", "127.0.0.1.example", "LOCALHOST"]
)
@pytest.mark.parametrize("key", [None, "", "x" * 15])
def test_others_are_not_served_behind_a_key_that_can_be_guessed(
    tmp_path: Path, host: str, key: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_safe(load_settings(environ=environ_of(tmp_path, host, key), cwd=tmp_path))
    assert caught.value.setting == "admin_api_key"
    assert "16" in caught.value.detail
    check_safe(load_settings(environ=environ_of(tmp_path, host, "x" * 16), cwd=tmp_path))
    for at_home in ("127.0.0.1", "localhost", "::1"):
        check_safe(load_settings(environ=environ_of(tmp_path, at_home, key), cwd=tmp_path))


def environ_of(tmp_path: Path, host: str, key: str | None) -> dict[str, str]:
    given = {"HOME": str(tmp_path), "FLASK_HOST": host}
    return given if key is None else given | {"CONCURRENT_DOCKER_ADMIN_API_KEY": key}


@pytest.mark.parametrize("key", [None, "x" * 15])
@pytest.mark.parametrize("by", ["option", "environment"])
async def test_the_command_says_so_in_one_line_and_leaves_with_status_2(
    tmp_path: Path, key: str | None, by: str
) -> None:
    env = process_environ(tmp_path) | ({} if key is None else {"CONCURRENT_DOCKER_ADMIN_API_KEY": key})
    command = [sys.executable, "-m", "imagen", "serve", "--port", "0"]
    if by == "option":
        command += ["--host", EVERYWHERE]
    else:
        env["FLASK_HOST"] = EVERYWHERE
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert "CONCURRENT_DOCKER_ADMIN_API_KEY" in line
    assert "Traceback" not in line
    assert key is None or key not in line


# --- whose token -----------------------------------------------------------------------------------------


async def test_each_caller_s_token_pays_for_its_own_and_for_nothing_else(
    tmp_path: Path, emulator: EmulatorThread
) -> None:
    """Fifty requests of five tokens at once, of models that are looked up with the token first among them."""
    emulator.add_model(Model(name="acme/community", official=False, run_seconds=0.05))
    tokens = [f"r8_caller_number_{number}" for number in range(5)]
    async with running_gateway(tmp_path, emulator, **OPEN, REPLICATE_CONCURRENT_LIMIT="3") as gateway:
        chance = random.Random(5)

        async def one(number: int) -> None:
            token = tokens[number % 5]
            prompt = f"{token} {number}"
            await asyncio.sleep(chance.uniform(0, 0.2))
            wish: dict[str, Any] = {
                "model_name": chance.choice(["flux-schnell", "acme/community", QUICK]),
                "credentials": {"replicate_api_token": token},
            }
            if number % 7 == 0:
                wish["store"] = True
            if number % 4:
                answer = await gateway.request("POST", "/generate", json=wish | {"prompt": prompt})
                assert answer.status == 200, answer.body
                return
            if number % 3 == 0:  # a create whose answer is lost is looked for on the same account
                prompt += " [fault:drop_after]"
            tasks = [{"prompt": prompt}, {"prompt": f"{prompt} again"}]
            answer = await gateway.request("POST", "/generate-batch", json=wish | {"tasks": tasks})
            assert answer.json()["successful_count"] == 2, answer.body

        await asyncio.gather(*map(one, range(50)))
        assert (await ask(gateway, "the server's")).status == 200
        callers = {one.account for one in await gateway.app.store.list(limit=200)}
        assert len(callers) == 6
    paid = payers(emulator) | {
        entry.body["input"]["prompt"]: str(entry.authorization)
        for entry in emulator.journal.entries(operation="predictions.create", status=0)
    }
    assert len(paid) == 64
    for prompt, account in paid.items():
        assert account == of(OWN if prompt == "the server's" else prompt.split()[0]), prompt
    # Whatever was done with a prediction was done with the token that bought it.
    owners: dict[str, set[str | None]] = {}
    for entry in emulator.journal.entries(server="api"):
        if entry.prediction_id is not None:
            owners.setdefault(entry.prediction_id, set()).add(entry.authorization)
    assert {len(accounts) for accounts in owners.values()} == {1}
    # Files are fetched without any.
    assert {entry.authorization for entry in emulator.journal.entries(server="delivery")} <= {None}


@pytest.mark.timeout(120)
async def test_after_the_requests_the_secrets_are_nowhere(tmp_path: Path, emulator: EmulatorThread) -> None:
    """Of a form that no filter of the log knows: what hides them is that nobody writes them down."""
    theirs, refused, own = (f"secret-{word}-0123456789abcdef" for word in ("theirs", "invalid", "servers"))
    admin = "secret-admin-0123456789abcdef"
    env = process_environ(tmp_path) | {
        "IMAGEN_REPLICATE__API_BASE": emulator.url,
        "REPLICATE_API_TOKEN": own,
        "CONCURRENT_DOCKER_ADMIN_API_KEY": admin,
        "IMAGEN_LOG__LEVEL": "debug",
        "IMAGEN_LOG__FORMAT": "json",
        "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1",
        "PYTHONASYNCIODEBUG": "1",
    }
    seen: list[bytes] = []
    async with a_process(tmp_path, env) as (url, session, log):

        async def call(
            method: str, path: str, headers: dict[str, str], body: Any = None
        ) -> tuple[int, bytes]:
            async with session.request(method, url + path, json=body, headers=headers) as answer:
                content = await answer.read()
                seen.append(content + repr(answer.headers).encode())
                return answer.status, content

        as_admin = {"X-Admin-API-Key": admin}
        made = await call("POST", "/keys", as_admin, {"name": "shop"})
        key = json.loads(made[1])["key"]
        seen.clear()
        for prompt, model, token, wanted in (
            ("fine", "flux-schnell", theirs, 200),
            ("kept", "flux-schnell", theirs, 200),
            ("[fault:drop_after] lost", "flux-schnell", theirs, 200),
            ("[fault:fail] fails", "flux-schnell", theirs, 422),
            ("[fault:garbage_after] garbled", "flux-schnell", theirs, 200),
            ("x", "no/such-model", theirs, 404),
            ("x", "flux-schnell", refused, 401),
            ("x", "no such model", theirs, 400),
            ("x", "flux-dev", theirs + " ", 401),
        ):
            wish = {"model_name": model, "prompt": prompt, "store": prompt == "kept"}
            status, content = await call(
                "POST", "/generate", {}, wish | {"credentials": {"replicate_api_token": token}}
            )
            assert status == wanted, (prompt, status, content)
        tasks = [{"prompt": "a"}, {"prompt": "[fault:fail] b"}]
        batch = {"model_name": "flux-schnell", "tasks": tasks, "credentials": {"replicate_api_token": theirs}}
        assert (await call("POST", "/generate-batch", {}, batch))[0] == 200
        for headers in (as_admin, {"X-API-Key": key}, {"Authorization": f"Bearer {key}"}, {}):
            wish = {"model_name": "flux-schnell", "prompt": "by others"}
            assert (await call("POST", "/generate", headers, wish))[0] == 200
        for headers in (
            {"X-API-Key": theirs},
            {"Authorization": f"Bearer {theirs}"},
            {"X-Admin-API-Key": theirs},
        ):
            assert (await call("POST", "/generate", headers, wish))[0] == 401
        assert (await call("POST", "/generate", {"X-Request-Id": f"{theirs} "}, {"prompt": 1}))[0] == 400
        # Whoever knows the id of a lease may end it.
        await call("DELETE", f"/global-semaphores/s/leases/{theirs}", as_admin)
        assert theirs.encode() in seen.pop()
        for path in (
            "/metrics",
            "/health",
            "/ready",
            "/keys",
            "/openapi.json",
            "/global-semaphores",
            "/nothing",
        ):
            await call("GET", path, as_admin)
            await call("GET", path, {})
    assert emulator.purchases >= 10
    wrote = log.read_bytes()
    assert b'"level":"debug"' in wrote
    assert b"/generate" in wrote
    for secret in (theirs, refused, own, admin, key):
        for part in (secret, secret[-16:]):
            assert part.encode() not in wrote, part
            assert [answer for answer in seen if part.encode() in answer] == [], part
            assert files_with(tmp_path / "data", part) == []
            assert files_with(tmp_path / "home", part) == []


def files_with(root: Path, text: str) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def process_environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "home" / "config"),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        "LANG": "C.UTF-8",
    }


@asynccontextmanager
async def a_process(
    tmp_path: Path, env: Mapping[str, str]
) -> AsyncIterator[tuple[str, aiohttp.ClientSession, Path]]:
    """The real command; its log is in a file."""
    log = tmp_path / "log"
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "imagen", "serve", "--port", "0", "--json"),
            env=env,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=written,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            url = json.loads(await process.stdout.readline())["url"]
        async with aiohttp.ClientSession() as session:
            yield url, session, log
    finally:
        process.terminate()
        async with asyncio.timeout(40):
            assert await process.wait() == 0


async def test_clients_of_replicate_show_who_they_are_as_a_bearer(
    tmp_path: Path, emulator: EmulatorThread
) -> None:
    """A token of the caller's own, the admin key, or a key of this gateway; older clients say `Token`."""
    async with running_gateway(tmp_path, emulator, **PUBLIC) as gateway:
        key = await make_key(gateway, "shop")
        for scheme in ("Bearer", "Token"):
            for shown in (f"r8_theirs_{scheme}", ADMIN_KEY, key):
                answer = await ask(gateway, f"{scheme} {shown[:4]}", {"Authorization": f"{scheme} {shown}"})
                assert answer.status == 200, answer.text
        keys = await gateway.request("GET", "/keys", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        assert keys.status == 200
        wrong = await ask(gateway, "x", {"Authorization": f"Bearer {ADMIN_KEY}x"})
        assert (wrong.status, wrong.json()["error"]) == (401, WRONG_KEY)
    paid = payers(emulator)
    assert paid["Bearer r8_t"] == of("r8_theirs_Bearer")
    assert paid["Token r8_t"] == of("r8_theirs_Token")
    assert len({paid[f"Bearer {ADMIN_KEY[:4]}"], paid[f"Bearer {key[:4]}"], paid["Bearer r8_t"]}) == 2
