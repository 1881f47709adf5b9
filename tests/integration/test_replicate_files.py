"""Files of Replicate's API: streamed both ways, each seen by whoever uploaded it, never held whole."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from gateway import ADMIN, ADMIN_KEY, Answer, RunningGateway, running_gateway
from starlette.requests import Request

from fakes.servers import Exchange, raw_server
from imagen.emulator import EmulatorThread
from imagen.errors import InvalidInput
from imagen.server.replicate.files import MOST_BYTES, upstream_addresses
from waiting import until

pytestmark = pytest.mark.anyio

OWN = {"Authorization": "Bearer r8_a_callers_own_token"}
PIECE = os.urandom(1 << 20)
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as one:
        yield one


async def key_of(gateway: RunningGateway, name: str = "shop") -> dict[str, str]:
    made = await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN)
    return {"Authorization": f"Bearer {made.json()['key']}"}


async def upload(
    gateway: RunningGateway,
    content: bytes = b"some bytes",
    headers: dict[str, str] = ADMIN,
    path: str = "/v1/files",
) -> Answer:
    form = aiohttp.FormData()
    form.add_field("content", content, filename="a.bin", content_type="image/png")
    form.add_field("metadata", '{"order": 7}', content_type="application/json")
    async with gateway.session.post(gateway.url + path, data=form, headers=headers) as answer:
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, found, await answer.read())


def form_around() -> tuple[bytes, bytes, str]:
    """What stands before and behind a file, and the type of all that."""
    head = (
        b'--b0und\r\nContent-Disposition: form-data; name="content"; filename="a.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    return head, b"\r\n--b0und--\r\n", "multipart/form-data; boundary=b0und"


async def body_of(size: int) -> AsyncIterator[bytes]:
    head, tail, _ = form_around()
    yield head
    for _ in range(size // MIB):
        yield PIECE
    yield PIECE[: size % MIB]
    yield tail


async def send(
    session: aiohttp.ClientSession, url: str, size: int, headers: dict[str, str], *, told: bool = True
) -> tuple[int, dict[str, Any]]:
    """Upload so many bytes, with their number told before or not."""
    head, tail, kind = form_around()
    length = {"Content-Length": str(len(head) + size + len(tail))} if told else {}
    async with session.post(
        url, data=body_of(size), headers={**headers, "Content-Type": kind, **length}
    ) as answer:
        return answer.status, await answer.json(content_type=None)


# --- one file after the other ------------------------------------------------------------------------------


async def test_a_file_goes_up_is_seen_comes_down_and_goes_away(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    content = os.urandom(300_000)
    for path in ("/v1/files", "/files"):
        made = await upload(gateway, content, path=path)
        assert made.status == 201
        file = made.json()
        assert file["checksums"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert (file["name"], file["content_type"], file["metadata"]) == ("a.bin", "image/png", {"order": 7})
        assert file["urls"]["get"] == f"{gateway.url}/v1/files/{file['id']}"
        at = urlsplit(file["urls"]["get"]).path
        assert (await gateway.request("GET", at, headers=ADMIN)).json() == file
        listed = (await gateway.request("GET", path, headers=ADMIN)).json()["results"]
        assert file in listed
        signed = urlsplit(replicate_emulator.download_url(file["id"]))
        got = await gateway.request("GET", f"{signed.path}?{signed.query}", headers=ADMIN)
        assert (got.status, got.body) == (200, content)
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["content-length"] == str(len(content))
        assert (await gateway.request("HEAD", f"{signed.path}?{signed.query}", headers=ADMIN)).status == 200
        assert (await gateway.request("DELETE", at, headers=ADMIN)).status == 204
        gone = await gateway.request("GET", at, headers=ADMIN)
        assert (gone.status, gone.json()["detail"]) == (404, "File not found")


async def test_a_link_that_nobody_signed_leads_nowhere(gateway: RunningGateway) -> None:
    file = (await upload(gateway)).json()["id"]
    got = await gateway.request(
        "GET", f"/v1/files/{file}/download?owner=x&expiry=9999999999&signature=x", headers=ADMIN
    )
    assert (got.status, got.headers["content-type"]) == (404, "application/problem+json")


async def test_with_a_key_one_sees_ones_own_files_and_no_others(gateway: RunningGateway) -> None:
    shop, rival = await key_of(gateway), await key_of(gateway, "rival")
    hers = (await upload(gateway, headers=shop)).json()
    other = (await upload(gateway, headers=rival)).json()
    admins = (await upload(gateway)).json()
    for headers, own, foreign in ((shop, hers, [other, admins]), (rival, other, [hers, admins])):
        listed = (await gateway.request("GET", "/v1/files", headers=headers)).json()["results"]
        assert [one["id"] for one in listed] == [own["id"]]
        assert (await gateway.request("GET", f"/v1/files/{own['id']}", headers=headers)).status == 200
        for one in foreign:
            for method in ("GET", "DELETE"):
                refused = await gateway.request(method, f"/v1/files/{one['id']}", headers=headers)
                assert (refused.status, refused.json()["detail"]) == (404, "File not found")
    every = (await gateway.request("GET", "/v1/files", headers=ADMIN)).json()["results"]
    assert {one["id"] for one in every} == {hers["id"], other["id"], admins["id"]}
    assert (await gateway.request("DELETE", f"/v1/files/{hers['id']}", headers=shop)).status == 204
    assert (await gateway.request("GET", "/v1/files", headers=shop)).json()["results"] == []


async def test_whose_a_file_is_is_remembered_as_long_as_the_file_is_there(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        shop = await key_of(gateway)
        file = (await upload(gateway, headers=shop)).json()
    async with running_gateway(tmp_path, replicate_emulator) as gateway:  # another process
        assert (await gateway.request("GET", f"/v1/files/{file['id']}", headers=shop)).status == 200
        files, later = gateway.app.relayed_files, datetime.now(UTC) + timedelta(hours=25)
        assert await files.owner(file["id"], now=later) is None


async def test_an_own_token_has_the_files_of_its_own_account(gateway: RunningGateway) -> None:
    theirs = (await upload(gateway, headers=OWN)).json()
    assert (await gateway.request("GET", f"/v1/files/{theirs['id']}", headers=OWN)).status == 200
    assert (await gateway.request("GET", f"/v1/files/{theirs['id']}", headers=ADMIN)).status == 404


# --- files as inputs ---------------------------------------------------------------------------------------


async def test_a_file_here_is_known_to_the_service_by_its_own_address(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    shop, rival = await key_of(gateway), await key_of(gateway, "rival")
    url = (await upload(gateway, headers=shop)).json()["urls"]["get"]
    file_id = url.rpartition("/")[2]
    told = f"{replicate_emulator.url}/v1/files/{file_id}"
    served = gateway.served.context

    def request_of(headers: dict[str, str]) -> Request:
        parts = urlsplit(gateway.url)
        pairs = [(b"host", parts.netloc.encode())] + [
            (name.lower().encode(), value.encode()) for name, value in headers.items()
        ]
        scope = {
            "type": "http",
            "scheme": "http",
            "server": (parts.hostname, parts.port),
            "path": "/",
            "headers": pairs,
        }
        return Request(scope | {"query_string": b"", "method": "POST", "imagen.route": "/v1/predictions"})

    request = request_of(shop)
    visitor = await served.enter(request)
    given = {
        "image": url,
        "images": [
            f"{gateway.url}/files/{file_id}",
            "https://example.com/v1/files/x",
            {"deep": url + "/download?x=1"},
        ],
        "prompt": f"see {url}",
        "steps": 4,
    }
    assert await upstream_addresses(served, request, visitor, given) == {
        "image": told,
        "images": [told, "https://example.com/v1/files/x", {"deep": told}],
        "prompt": f"see {url}",
        "steps": 4,
    }
    other = request_of(rival)
    with pytest.raises(InvalidInput) as refused:
        await upstream_addresses(served, other, await served.enter(other), given)
    assert refused.value.problems[0].field == "input.image"


async def test_a_file_here_is_known_under_every_name_of_this_machine(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    shop, rival = await key_of(gateway), await key_of(gateway, "rival")
    hers = (await upload(gateway, headers=shop)).json()["id"]
    admins = (await upload(gateway)).json()["id"]
    port = urlsplit(gateway.url).port
    here = [
        f"http://localhost:{port}/v1/files",
        f"http://127.0.0.1:{port}/v1/files",
        f"http://[::1]:{port}//v1/files",
        f"HTTP://LOCALHOST:{port}/v1/files",
    ]
    elsewhere = ["https://pictures.example.com/v1/files", f"http://gateway:{port}/v1/files"]

    async def sent(address: str, headers: dict[str, str]) -> tuple[int, str | None]:
        wish = {"input": {"prompt": "a fox", "input_image": address}}
        path = "/v1/models/black-forest-labs/flux-kontext-pro/predictions"
        made = await gateway.request("POST", path, json=wish, headers=headers)
        return made.status, made.json().get("input", {}).get("input_image")

    for beginning in here + elsewhere:
        for file_id, headers in ((hers, shop), (hers, ADMIN), (admins, ADMIN)):
            told = f"{replicate_emulator.url}/v1/files/{file_id}"
            assert await sent(f"{beginning}/{file_id}", headers) == (201, told), beginning
    for beginning in here:
        assert (await sent(f"{beginning}/{hers}", rival))[0] == 422
    for address in (
        f"{elsewhere[0]}/{hers}",
        f"{elsewhere[0]}/nobodysfile",
        "https://pictures.example.com/files/" + hers,
        f"http://localhost:{(port or 0) % 60_000 + 1}/files/{hers}",
    ):
        assert await sent(address, rival) == (201, address)


# --- sizes -------------------------------------------------------------------------------------------------


async def test_what_is_too_large_is_refused_at_once_where_that_is_told(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    _, _, kind = form_around()
    parts = urlsplit(gateway.url)
    for key, size, sentence in (
        (
            f"authorization: Bearer {ADMIN_KEY}\r\n",
            MOST_BYTES + 100_000,
            "Files must be less than 100MB in size",
        ),
        ("", 17 * MIB, "Files must be less than 16MB in size without a key"),
    ):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\n{key}content-type: {kind}\r\n"
            f"content-length: {size}\r\n\r\n".encode()
        )
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)  # nothing of the body was sent
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"application/problem+json" in answer
        assert sentence.encode() in answer
        writer.close()
    assert replicate_emulator.journal.entries(operation="files.create") == ()


async def test_what_turns_out_too_large_is_refused_when_it_does(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    async with aiohttp.ClientSession() as session:
        status, told = await send(session, f"{gateway.url}/v1/files", 20 * MIB, {}, told=False)
    assert (status, told["status"]) == (413, 413)
    listed = (await gateway.request("GET", "/v1/files", headers=ADMIN)).json()["results"]
    assert listed == []


async def test_an_upload_that_breaks_off_breaks_off_at_the_service(gateway: RunningGateway) -> None:
    head, _, kind = form_around()
    parts = urlsplit(gateway.url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
        f"content-type: {kind}\r\ncontent-length: 100000\r\n\r\n".encode()
        + head
    )
    await writer.drain()
    writer.close()
    await until(lambda: gateway.answered("POST", 400) or gateway.answered("POST", 499))
    assert (await gateway.request("GET", "/v1/files", headers=ADMIN)).json()["results"] == []


async def test_what_is_no_form_is_told_so(gateway: RunningGateway) -> None:
    answer = await gateway.request("POST", "/v1/files", json={"content": "x"}, headers=ADMIN)
    assert answer.status == 400
    assert "multipart/form-data" in answer.json()["detail"]


# --- memory and lines --------------------------------------------------------------------------------------


def resident(process: int) -> float:
    """MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE / MIB


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc"
)
async def test_a_hundred_megabytes_pass_without_being_held(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    environ = os.environ | {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
        "REPLICATE_API_TOKEN": "r8_the_servers_own_token",
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
    }
    serving = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imagen", "serve", "--port", "0", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environ,
    )
    try:
        assert serving.stdout is not None
        url = json.loads(await serving.stdout.readline())["url"]
        async with aiohttp.ClientSession() as session:
            await send(session, f"{url}/v1/files", 2 * MIB, ADMIN)  # what is loaded once is loaded
            before, most, over = resident(serving.pid), 0.0, False

            async def watch() -> None:
                nonlocal most
                while not over:
                    most = max(most, resident(serving.pid))
                    await asyncio.sleep(0.005)

            watching = asyncio.create_task(watch())
            for told in (True, False):
                status, file = await send(session, f"{url}/v1/files", 99 * MIB, ADMIN, told=told)
                assert (status, file["size"]) == (201, 99 * MIB)
            signed = urlsplit(replicate_emulator.download_url(file["id"]))
            count = 0
            async with session.get(f"{url}{signed.path}?{signed.query}", headers=ADMIN) as answer:
                async for piece in answer.content.iter_any():
                    count += len(piece)
            over = True
            await watching
        assert count == 99 * MIB
        assert most - before < 16
    finally:
        serving.send_signal(signal.SIGTERM)
        await serving.wait()


async def test_the_service_waits_for_a_reader_who_is_slow(tmp_path: Path) -> None:
    sent = 0

    async def play(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")
        for _ in range(64):
            await exchange.send(PIECE)
            sent += 1

    async with (
        raw_server(play) as server,
        running_gateway(tmp_path, None, IMAGEN_REPLICATE__API_BASE=server.url) as gateway,
    ):
        parts = urlsplit(gateway.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=64 * 1024)
        writer.write(
            f"GET /v1/files/abc/download HTTP/1.1\r\nhost: localhost\r\nx-admin-api-key: {ADMIN_KEY}\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        seen = -1
        while seen != sent:  # until nothing moves any more
            seen = sent
            await asyncio.sleep(0.2)
        assert 0 < sent < 40
        writer.transport.abort()
        await until(server.lines[0].transport.is_closing)


async def test_a_download_that_moves_to_another_host_goes_there_without_the_token(tmp_path: Path) -> None:
    async def store(exchange: Exchange) -> None:
        await exchange.answer(b"the bytes", content_type="image/png")

    async def api(exchange: Exchange) -> None:
        await exchange.answer(b"", 302, location=f"{elsewhere.url}/bucket/abc?sig=1")

    async with (
        raw_server(store) as elsewhere,
        raw_server(api) as server,
        running_gateway(tmp_path, None, IMAGEN_REPLICATE__API_BASE=server.url) as gateway,
    ):
        got = await gateway.request("GET", "/v1/files/abc/download?owner=o", headers=ADMIN)
    assert (got.status, got.body, got.headers["content-type"]) == (200, b"the bytes", "image/png")
    assert server.exchanges[0].headers["authorization"].startswith("Bearer r8_")
    assert "authorization" not in elsewhere.exchanges[0].headers
    assert elsewhere.exchanges[0].path == "/bucket/abc?sig=1"


async def test_a_download_that_breaks_off_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        exchange.reset()

    async with (
        raw_server(play) as server,
        running_gateway(tmp_path, None, IMAGEN_REPLICATE__API_BASE=server.url) as gateway,
    ):
        with pytest.raises(aiohttp.ClientError):
            await gateway.request("GET", "/v1/files/abc/download", headers=ADMIN)
