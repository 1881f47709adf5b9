"""What strangers may send: each of it is refused by name, nothing of it is bought, and the gateway serves on."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from gateway import ADMIN, ADMIN_KEY, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from imagen.emulator.models import Model
from imagen.server import bodies
from imagen.server.answers import ErrorBody
from waiting import until

pytestmark = pytest.mark.anyio
SLOW = "acme/slow"
WISH = {"model_name": "flux-dev", "prompt": "a red fox"}
BATCH = {"model_name": "flux-dev", "tasks": [{"prompt": "a red fox"}]}
OF_NO_TYPE = {"x": 1}
NUMBERS = ("7", True, [7], OF_NO_TYPE)
TEXTS = (7, 1.5, True, ["x"], OF_NO_TYPE)
HUGE_NUMBER = 10**400


# One gateway for all of them: it has to survive each.


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorThread]:
    with EmulatorThread() as one:
        one.add_model(Model(name=SLOW, run_seconds=60.0))
        yield one


@pytest.fixture(scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, emulator: EmulatorThread
) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path_factory.mktemp("gateway"), emulator) as one:
        await one.request("POST", "/global-semaphores", json={"semaphore_id": "s", "limit": 1}, headers=ADMIN)
        yield one


@pytest.fixture
async def gateway(served: RunningGateway, emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    """It has bought nothing, holds nothing and is well when the test ends."""
    bought = emulator.purchases
    yield served
    assert emulator.purchases == bought
    await nothing_is_held(served)
    assert (await served.request("GET", "/ready")).json() == {"ready": True}


async def nothing_is_held(gateway: RunningGateway) -> None:
    async with asyncio.timeout(10):
        while True:
            health = (await gateway.request("GET", "/health")).json()
            shown = (await gateway.request("GET", "/global-semaphores/s", headers=ADMIN)).json()
            standing = (health["under_way"], health["concurrency_status"]["running"], shown["held"])
            if standing == (0, 0, 0):
                assert health["concurrency_status"]["waiting"] == 0
                return
            await asyncio.sleep(0.05)


def refused(answer: Answer, *, field: str = "", status: int = 400) -> str:
    """The error's sentence, in the one shape that errors have."""
    assert answer.status == status, (answer.status, answer.body[:500])
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.body) < 20_000
    told = answer.json()
    assert told.pop("success") is False
    error = msgspec.convert(told, ErrorBody)
    assert set(told) <= set(ErrorBody.__struct_fields__)
    assert error.error
    assert "fault" not in error.error
    if field:
        named = [problem["field"] for problem in error.problems or ()]
        assert field in error.error or field in named, error
    return error.error


async def post(gateway: RunningGateway, path: str, body: Any) -> Answer:
    return await send(gateway, path, json.dumps(body).encode())


async def send(gateway: RunningGateway, path: str, body: bytes) -> Answer:
    # aiohttp warns of large bytes, and not of a large file.
    return await gateway.request("POST", path, data=io.BytesIO(body), headers=ADMIN)  # type: ignore[arg-type]


# --- not what it should be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"7",
        b'"text"',
        b"[]",
        b'[{"model_name": "flux-dev", "prompt": "x"}]',
        b"model_name=flux-dev&prompt=x",
        b'{"model_name": "flux-dev", "prompt": "x"',
        b'{"model_name": "flux-dev", "prompt": "x"} {}',
        b"{'model_name': 'flux-dev', 'prompt': 'x'}",
        b'{"model_name": "flux-dev", "prompt": "x", "guidance": NaN}',
        b'{"model_name": "flux-dev", "prompt": "x", "guidance": Infinity}',
        b'{"model_name": "flux-dev", "prompt": "x", "guidance": -Infinity}',
        b'{"model_name": "flux-dev", "prompt": "x", "guidance": 1e999}',
        b'{"model_name": "flux-dev", "prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model_name": "flux-dev", "prompt": "\\ud800"}',
        b'{"model_name": "flux-dev", "prompt": "\\udc00\\ud800"}',
        b'{"model_name": "flux-dev", "prompt": "\xff\xfe"}',
        b'\xef\xbb\xbf{"model_name": "flux-dev", "prompt": "x"}',
        '{"model_name": "flux-dev", "prompt": "x"}'.encode("utf-16"),
        b'{"model_name": "flux-dev", "prompt": "x", "extra": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000,
    ],
    ids=lambda body: f"{body[:48]!r}",
)
@pytest.mark.parametrize("path", ["/generate", "/generate-batch"])
async def test_what_is_no_json_object_is_refused(gateway: RunningGateway, path: str, body: bytes) -> None:
    refused(await send(gateway, path, body))


@pytest.mark.parametrize("path", ["/global-semaphores", "/global-semaphores/s/leases", "/keys"])
@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b"{", b"[" * 100_000, b'{"\\ud800": 1}', b"\xff"])
async def test_the_small_bodies_are_no_different(gateway: RunningGateway, path: str, body: bytes) -> None:
    refused(await send(gateway, path, body))


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", b'{"model_name": "flux-dev", "prompt": "x", "prompt": 7}', "prompt"),
        ("/generate", b'{"model_name": "flux-dev", "prompt": "x", "seed": 1, "seed": "x"}', "seed"),
        ("/generate", b'{"model_name": "flux-dev", "credentials": null, "credentials": {}}', ""),
        (
            "/generate-batch",
            b'{"model_name": "flux-dev", "tasks": [{"prompt": "x", "prompt": ""}]}',
            "prompt",
        ),
        ("/global-semaphores", b'{"semaphore_id": "t", "limit": 1, "limit": 0}', "limit"),
        ("/keys", b'{"name": "t", "models": ["flux-dev"], "models": 7}', "models"),
    ],
)
async def test_of_a_name_that_comes_twice_the_last_counts_and_is_checked(
    gateway: RunningGateway, path: str, body: bytes, field: str
) -> None:
    refused(await send(gateway, path, body), field=field)


def wrong(fields: dict[str, tuple[Any, ...]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in fields.items() for value in values]


@pytest.mark.parametrize(
    ("field", "value"),
    wrong(
        {
            "model_name": (*TEXTS, "", " ", "no/such/model", "../etc", "owner/" + "x" * 5_000_000, "x\0y"),
            "prompt": (*TEXTS, "", "   ", "x" * 200_000, "nul \0 character"),
            "output_filename": TEXTS,
            "external_semaphore_id": TEXTS,
            "store": ("yes", 1, [], OF_NO_TYPE),
            "timeout": (*NUMBERS, 0, -1, 1e300, HUGE_NUMBER),
            "max_cost": (True, [1], OF_NO_TYPE, "free", "NaN", "-1", "1e999999", -0.5, HUGE_NUMBER),
            "credentials": (7, "r8_token", [], {}, {"replicate_api_token": 7}),
            # Of the model.
            "seed": (*NUMBERS, 1.5, HUGE_NUMBER, -HUGE_NUMBER),
            "num_outputs": (*NUMBERS, 0, 5, 1e300, HUGE_NUMBER),
            "guidance": (*NUMBERS, 1e300, HUGE_NUMBER),
            "aspect_ratio": (*TEXTS, "1:0", "x" * 1_000_000, "nul\0"),
            "disable_safety_checker": ("yes", 1, [], OF_NO_TYPE),
            "image": (*TEXTS, "", "nul\0"),
        }
    ),
    ids=lambda value: repr(value)[:24],
)
async def test_a_field_of_generate_that_makes_no_sense_is_named(
    gateway: RunningGateway, field: str, value: Any
) -> None:
    answer = await post(gateway, "/generate", WISH | {field: value})
    refused(answer, field=field.partition("_")[0])
    as_task = {"prompt": "a red fox", field: value}
    tasks = [{"prompt": "good"}, as_task]
    refused(await post(gateway, "/generate-batch", BATCH | {"tasks": tasks}), field="1")


@pytest.mark.parametrize(
    ("field", "value"),
    wrong(
        {
            "model_name": (*TEXTS, "", "no/such/model"),
            "tasks": (7, "x", OF_NO_TYPE, [], [7], [None], [[]], [{}], [{"prompt": 7}], [{"prompt": None}]),
            "external_semaphore_id": TEXTS,
            "store": ("yes", 1, []),
            "timeout": (*NUMBERS, 0),
            "max_cost": (True, [1], "free"),
            "credentials": (7, "r8_token", [], {}),
            "prompts": (["both"], 7),
            "custom_filenames": (["x.png"], 7),
        }
    ),
    ids=lambda value: repr(value)[:24],
)
async def test_a_field_of_a_batch_that_makes_no_sense_is_named(
    gateway: RunningGateway, field: str, value: Any
) -> None:
    told = refused(await post(gateway, "/generate-batch", BATCH | {field: value}))
    names = {"tasks": "task|prompt", "model_name": "model"}
    assert re.search(names.get(field, field), told, re.IGNORECASE)


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        (7, None),
        ([], None),
        ([7], None),
        ([None], None),
        ([""], None),
        ([["x"]], None),
        (["x"], "x"),
        (["x"], []),
        (["x"], ["a", "b"]),
        (["x"], [7]),
        (["x"], ["../x"]),
        (["x"], [{}]),
    ],
)
async def test_the_older_form_of_a_batch_is_checked_the_same(
    gateway: RunningGateway, prompts: Any, names: Any
) -> None:
    body = {"model_name": "flux-dev", "prompts": prompts, "custom_filenames": names}
    refused(await post(gateway, "/generate-batch", body))


@pytest.mark.parametrize(
    ("path", "good", "field", "value"),
    [
        (path, good, field, value)
        for path, good, fields in (
            (
                "/global-semaphores",
                {"semaphore_id": "t", "limit": 1},
                {
                    "semaphore_id": (*TEXTS, None, "", "a b", "x" * 101, "../s", "nul\0", "ü"),
                    "limit": (*NUMBERS, None, 1.5, 0, -1, 10_001, HUGE_NUMBER),
                    "x" * 500_000: (1,),
                },
            ),
            (
                "/global-semaphores/s/leases",
                {},
                {
                    "wait": (*NUMBERS, None, -1, 601, 1e300, HUGE_NUMBER),
                    "ttl": (*NUMBERS, None, 0, -1, 86_401, 1e300, HUGE_NUMBER),
                    "holder": (*TEXTS, "", "x" * 101, "nul\0", "two\nlines", "\u202eright to left"),
                    "unknown": (1,),
                },
            ),
            (
                "/global-semaphores/s/leases/lease_x/renew",
                {},
                {"ttl": (*NUMBERS, None, 0, 86_401, HUGE_NUMBER), "unknown": (1,)},
            ),
            (
                "/keys",
                {"name": "t"},
                {
                    "name": (*TEXTS, None, "", "a b", "x" * 101, "../t", "nul\0", "ü"),
                    "models": (
                        7,
                        "flux-dev",
                        [7],
                        [None],
                        ["no such"],
                        ["a/b/c"],
                        [f"x/{n}" for n in range(1000)],
                        OF_NO_TYPE,
                    ),
                    "routes": (7, "/generate", [7], ["/"], ["/keys"], ["x" * 100_000], OF_NO_TYPE),
                    "concurrent": (*NUMBERS, 0, -1, 1.5, HUGE_NUMBER),
                    "rpm": (*NUMBERS, 0, -1, 1.5, HUGE_NUMBER),
                    "unknown": (1,),
                },
            ),
        )
        for field, values in fields.items()
        for value in values
    ],
    ids=lambda value: repr(value)[:24],
)
async def test_a_field_of_semaphores_leases_and_keys_that_makes_no_sense_is_named(
    gateway: RunningGateway, path: str, good: dict[str, Any], field: str, value: Any
) -> None:
    refused(await post(gateway, path, good | {field: value}), field=field[:50])
    listed = (await gateway.request("GET", "/global-semaphores", headers=ADMIN)).json()
    assert listed["global_semaphores"] == ["s"]
    assert (await gateway.request("GET", "/keys", headers=ADMIN)).json()["count"] == 0


# --- too much --------------------------------------------------------------------------------------------


async def test_ten_thousand_and_one_tasks_are_too_many(gateway: RunningGateway) -> None:
    for body in (
        BATCH | {"tasks": [{"prompt": "x"}] * 10_001},
        {"model_name": "flux-dev", "prompts": ["x"] * 10_001},
    ):
        assert "1 to 10000" in refused(await post(gateway, "/generate-batch", body))


async def test_parameters_that_no_model_has_are_refused_without_a_search_for_each(
    gateway: RunningGateway,
) -> None:
    async with asyncio.timeout(10):
        refused(await post(gateway, "/generate", WISH | {f"parameter_{n}": n for n in range(50_000)}))
        refused(await post(gateway, "/generate", WISH | {"x" * 5_000_000: 1}))
        nested: Any = 1
        for _ in range(200):
            nested = {"x": [nested]}
        refused(await post(gateway, "/generate", WISH | {"nested": nested}), field="nested")
        refused(await post(gateway, "/generate-batch", BATCH | {"nested": nested}))


async def test_tasks_with_very_many_mistakes_are_refused_at_the_first_of_them(
    gateway: RunningGateway,
) -> None:
    names = [f"unknown{number}" for number in range(190)]
    table = "\n".join([",".join(["prompt", *names]), *["a" + ",1" * 190] * 3000]).encode()
    task = {"prompt": "a"} | dict.fromkeys(names, 1)
    began = time.process_time()
    for path, body, media_type in (
        ("/batches?model_name=flux-schnell", table, "text/csv"),
        ("/batches", {"model_name": "flux-schnell", "tasks": [task] * 1000}, "application/json"),
        ("/generate-batch", {"model_name": "flux-schnell", "tasks": [task] * 1000}, "application/json"),
    ):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = ADMIN | {"Content-Type": media_type}
        answer = await gateway.request("POST", path, data=io.BytesIO(content), headers=headers)  # type: ignore[arg-type]
        told = refused(answer)
        assert told.count("no such parameter") == 20
        assert "more mistakes" in answer.json()["hint"]
    assert time.process_time() - began < 8


async def test_a_batch_does_not_multiply_a_large_picture_by_its_tasks(gateway: RunningGateway) -> None:
    picture = "data:image/png;base64," + "A" * 3_000_000
    body = BATCH | {"image": picture, "tasks": [{"prompt": f"fox {n}"} for n in range(200)]}
    async with asyncio.timeout(10):
        assert "MiB" in refused(await post(gateway, "/generate-batch", body), field="tasks")


async def test_json_that_would_fill_the_memory_is_not_read(gateway: RunningGateway) -> None:
    names = b"{%s}" % b",".join(b'"%d":1' % number for number in range(500_001))
    assert "500,000 names" in refused(await send(gateway, "/generate", names))
    for body in (b"[" + b"{}," * 1_000_000 + b"{}]", b'{"prompt": [' + b"1," * 2_500_000 + b"1]}"):
        async with asyncio.timeout(10):
            refused(await send(gateway, "/generate", body))


@pytest.mark.parametrize("path", ["/generate", "/generate-batch", "/keys"])
async def test_a_body_that_is_told_to_be_huge_is_not_waited_for(gateway: RunningGateway, path: str) -> None:
    async with connected(gateway) as (reader, writer):
        writer.write(head("POST", path, f"X-Admin-API-Key: {ADMIN_KEY}", "Content-Length: 99999999999"))
        assert "MiB" in refused(await read_answer(reader))


@pytest.mark.parametrize("path", ["/generate", "/keys"])
async def test_a_body_in_chunks_without_end_is_cut_off(gateway: RunningGateway, path: str) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    async with asyncio.timeout(30), connected(gateway) as (reader, writer):
        writer.write(head("POST", path, f"X-Admin-API-Key: {ADMIN_KEY}", "Transfer-Encoding: chunked"))
        try:
            for _ in range(80):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        assert "MiB" in refused(await read_answer(reader))


async def test_a_body_of_another_length_than_was_told_is_refused(gateway: RunningGateway) -> None:
    body = json.dumps(WISH).encode()
    admin = f"X-Admin-API-Key: {ADMIN_KEY}"
    async with connected(gateway) as (reader, writer):
        writer.write(head("POST", "/generate", admin, f"Content-Length: {len(body) - 5}") + body)
        assert (await read_answer(reader)).status == 400
    async with connected(gateway) as (reader, writer):
        writer.write(head("POST", "/generate", admin, f"Content-Length: {len(body) + 5}") + body)
        writer.write_eof()
        assert await reader.read() == b""  # it broke off: nobody is there to be told
    for told in ("-1", "x", "1, 2", "9" * 40):
        async with connected(gateway) as (reader, writer):
            writer.write(head("POST", "/generate", admin, f"Content-Length: {told}") + body)
            assert (await read_answer(reader)).status == 400
    async with connected(gateway) as (reader, writer):  # both, as request smuggling has it
        lengths = ("Content-Length: 4", "Transfer-Encoding: chunked")
        writer.write(head("POST", "/generate", admin, *lengths) + b"0\r\n\r\n")
        assert (await read_answer(reader)).status == 400


# --- too slow --------------------------------------------------------------------------------------------


async def test_who_falls_silent_in_the_middle_of_a_body_is_not_waited_for(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.3)
    async with asyncio.timeout(10), connected(gateway) as (reader, writer):
        writer.write(
            head("POST", "/generate", f"X-Admin-API-Key: {ADMIN_KEY}", "Content-Length: 1000") + b"{"
        )
        for _ in range(4):  # as long as something comes it is heard
            await asyncio.sleep(0.15)
            writer.write(b" ")
        assert "did not come in time" in refused(await read_answer(reader))


async def test_those_who_send_slowly_hold_no_places_and_keep_nobody_waiting(
    tmp_path: Path, gateway: RunningGateway, emulator: EmulatorThread
) -> None:
    """A gateway of its own: it also has to stop while they are there."""
    async with running_gateway(tmp_path, emulator, REPLICATE_CONCURRENT_LIMIT="2") as one:
        await one.request("POST", "/global-semaphores", json={"semaphore_id": "s", "limit": 1}, headers=ADMIN)
        admin = f"X-Admin-API-Key: {ADMIN_KEY}"
        beginnings = [
            b"",
            b"POST",
            b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Slow: ",
            head("POST", "/generate", admin, "Content-Length: 1000") + b'{"model_name"',
            head("POST", "/generate-batch", admin, "Transfer-Encoding: chunked") + b'5\r\n{"mod',
            head("POST", "/global-semaphores/s/leases", admin, "Content-Length: 30") + b"{",
        ]
        slow = [await asyncio.open_connection(*address(one)) for _ in range(10 * len(beginnings))]
        for number, (_, writer) in enumerate(slow):
            writer.write(beginnings[number % len(beginnings)])
        await asyncio.sleep(0.2)
        async with asyncio.timeout(15):
            taken = await post(one, "/global-semaphores/s/leases", {"ttl": 60})
            assert taken.status == 201
            lease = f"/global-semaphores/s/leases/{taken.json()['lease_id']}"
            assert (await one.request("DELETE", lease, headers=ADMIN)).status == 200
            await nothing_is_held(one)
            refused(await post(one, "/generate", WISH | {"seed": "x"}), field="seed")
    async with asyncio.timeout(15):
        for reader, writer in slow:
            await reader.read()
            writer.close()


@pytest.mark.parametrize("leaving", ["half closed", "closed", "reset"])
async def test_who_has_left_holds_nothing(
    served: RunningGateway, emulator: EmulatorThread, leaving: str
) -> None:
    body = json.dumps(
        {"model_name": SLOW, "prompt": f"left {leaving}", "external_semaphore_id": "s"}
    ).encode()
    admin = f"X-Admin-API-Key: {ADMIN_KEY}"
    request = head("POST", "/generate", admin, f"Content-Length: {len(body)}") + body
    bought = emulator.purchases
    async with connected(served) as (_, first), connected(served) as (_, second):
        first.write(request)
        await until(lambda: emulator.purchases == bought + 1)
        second.write(request)  # waits for the place of the first
        health = served.app.line
        await until(lambda: health.waiting == 1)
        for writer in (second, first):
            if leaving == "half closed":
                writer.write_eof()
            elif leaving == "closed":
                writer.close()
            else:
                writer.transport.abort()
        await nothing_is_held(served)
    assert emulator.purchases == bought + 1  # the second never got its turn
    statuses = {one.prompt: one.status for one in await served.app.store.list(limit=5)}
    assert statuses[f"left {leaving}"] == "canceled"


# --- tricks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        ". .",
        "../x.png",
        "..\\x.png",
        "/etc/passwd",
        "C:\\x.png",
        "a/b",
        "~/x",
        "nul\0.png",
        "two\nlines.png",
        "\x1b[2Jx.png",
        "gnp.\u202eexe",
        "\u200b",
        "\u2028x",
        "x" * 201,
    ],
)
async def test_a_name_that_could_lead_elsewhere_is_refused(gateway: RunningGateway, name: str) -> None:
    refused(await post(gateway, "/generate", WISH | {"output_filename": name}), field="output_filename")
    tasks = [{"prompt": "x"}, {"prompt": "x", "output_filename": name}]
    refused(
        await post(gateway, "/generate-batch", BATCH | {"tasks": tasks}), field="tasks[1].output_filename"
    )


@pytest.mark.parametrize(
    "image",
    [
        "/etc/passwd",
        "etc/passwd",
        "./picture.png",
        "../picture.png",
        "~/picture.png",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "\\\\server\\share\\x.png",
        "C:\\picture.png",
        "ftp://somewhere.example/x.png",
        "javascript:alert(1)",
        "//somewhere.example/x.png",
        " https://somewhere.example/x.png",
        "",
        ["/etc/passwd"],
        {"path": "/etc/passwd"},
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("model", "field"), [("flux-kontext-max", "input_image"), ("flux-dev", "image"), ("qwen-image", "image")]
)
async def test_an_input_image_is_an_address_and_never_a_file_of_the_server(
    gateway: RunningGateway, model: str, field: str, image: Any
) -> None:
    wish = {"model_name": model, "prompt": "x", field: image}
    told = refused(await post(gateway, "/generate", wish), field=field)
    assert "root:" not in told
    batch = {"model_name": model, field: image, "tasks": [{"prompt": "x"}]}
    refused(await post(gateway, "/generate-batch", batch), field=field)


@pytest.mark.parametrize(
    "told", ["a b", "x" * 65, "ü", "a\tb", "a;b", "<b>", "%0d%0aX-Evil: 1", "${x}", "a\x0bb", ""]
)
async def test_a_request_id_that_is_none_is_replaced(gateway: RunningGateway, told: str) -> None:
    async with connected(gateway) as (reader, writer):
        writer.write(head("GET", "/ready").removesuffix(b"\r\n") + f"X-Request-Id: {told}\r\n\r\n".encode())
        answer = await read_answer(reader)
    if answer.status == 400:  # the parser of HTTP itself takes no such header
        assert b"told" not in answer.body
        return
    assert answer.status == 200
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
    assert "x-evil" not in answer.headers


async def test_a_request_id_is_kept_and_told_once(gateway: RunningGateway) -> None:
    async with connected(gateway) as (reader, writer):
        ids = ("X-Request-Id: first-1", "X-Request-Id: second-2")
        writer.write(head("GET", "/ready", *ids))
        raw = await reader.readuntil(b"\r\n\r\n")
    assert raw.lower().count(b"x-request-id: ") == 1
    assert b"first-1" in raw


@pytest.mark.parametrize(
    "target",
    [
        b"/\xff\xfe",
        b"/%ff%fe%00",
        b"//evil.example/health",
        b"/" + b"x" * 20_000,
        b"/docs/..%2f..%2fpyproject.toml",
        b"/docs/..%5c..%5cpyproject.toml",
        b"/docs/%2e%2e/%2e%2e/etc/passwd",
        b"/pictures/..%2f..%2fimagen.db",
        b"/pictures/%00",
        b"/global-semaphores/%00%0d%0aX-Evil:1",
        b"/global-semaphores/" + b"%ff" * 5_000,
        b"/generate/",
        b"/health/",
        b"*",
        b"evil.example:443",
    ],
    ids=lambda target: repr(target)[:40],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "X"])
async def test_a_path_that_is_none_is_not_found_and_leads_nowhere(
    gateway: RunningGateway, method: str, target: bytes
) -> None:
    async with connected(gateway) as (reader, writer):
        admin = f"X-Admin-API-Key: {ADMIN_KEY}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        writer.write(method.encode() + b" " + target + b" HTTP/1.1\r\n" + admin.encode())
        raw = await reader.read()
    status = int(raw.split(b" ", 2)[1])
    assert status in {400, 404, 405}, raw[:300]
    assert b"location:" not in raw.lower()
    assert b"x-evil" not in raw.lower().partition(b"\r\n\r\n")[0]


# --- HTTP by hand ----------------------------------------------------------------------------------------


def address(gateway: RunningGateway) -> tuple[str, int]:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@asynccontextmanager
async def connected(
    gateway: RunningGateway,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address(gateway))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    async with asyncio.timeout(10):
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name
        }
        length = headers.get("content-length")
        body = await (reader.read() if length is None else reader.readexactly(int(length)))
    return Answer(int(first.split()[1]), headers, body)


@pytest.mark.parametrize("path", ["/generate", "/batches", "/predictions"])
async def test_half_of_a_character_is_said_to_be_one(gateway: RunningGateway, path: str) -> None:
    body = b'{"model_name": "flux-dev", "prompt": "a \\ud800 fox"}'
    assert "half of a character" in refused(await send(gateway, path, body))
