"""Kept pictures by their address: types, parts, what callers have already, and what they must not reach."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gateway import ADMIN, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from imagen.pictures import MEDIA_TYPES
from imagen.ports import ShelvedPicture
from imagen.server.pictures import ranges_of
from waiting import until

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 1200  # more than one chunk
SIZE = len(CONTENT)


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as one:
        yield one


@pytest.fixture
async def kept(gateway: RunningGateway) -> ShelvedPicture:
    return await gateway.app.shelf.put(CONTENT, media_type="image/png")


def address(picture: ShelvedPicture) -> str:
    return f"/pictures/{picture.id}"


async def raw(gateway: RunningGateway, request: str) -> bytes:
    """What comes back for these very bytes: clients tidy up paths before they send them."""
    parts = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request.encode())
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


# --- the picture -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "media_type"), MEDIA_TYPES.items())
async def test_each_type_is_told_and_nobody_may_guess_another(
    gateway: RunningGateway, extension: str, media_type: str
) -> None:
    picture = await gateway.app.shelf.put(CONTENT, media_type=media_type)
    answer = await gateway.request("GET", address(picture))
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-disposition"] == f'inline; filename="{picture.id}.{extension}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert re.fullmatch(r'"[!-~]+"', answer.headers["etag"])
    assert parsedate_to_datetime(answer.headers["last-modified"]) == picture.kept_at.replace(microsecond=0)


async def test_an_svg_is_no_page_of_ours(gateway: RunningGateway) -> None:
    script = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    picture = await gateway.app.shelf.put(script, media_type="image/svg+xml")
    for answer in (
        await gateway.request("GET", address(picture)),
        await gateway.request("GET", address(picture), headers={"Range": "bytes=0-9"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy == "sandbox; default-src 'none'; style-src 'unsafe-inline'"


async def test_head_tells_the_same_without_the_picture(gateway: RunningGateway, kept: ShelvedPicture) -> None:
    got = await gateway.request("GET", address(kept))
    head = await gateway.request("HEAD", address(kept), headers={"Range": "bytes=0-9"})
    assert (head.status, head.body) == (200, b"")
    changing = {"date", "x-request-id"}
    assert {name: value for name, value in head.headers.items() if name not in changing} == {
        name: value for name, value in got.headers.items() if name not in changing
    }


# --- parts of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=5-{SIZE + 100}", 5, SIZE),
        ("bytes=5-18446744073709551615", 5, SIZE),
        ("bytes=262000-262300", 262_000, 262_301),  # over the edge of a chunk
        ("Bytes = 1-2", 1, 3),
        ("bytes=0-9,10-19", 0, 20),  # adjacent: one part
        ("bytes=, 5-9 ,7-20,", 5, 21),
        (f"bytes=0-9,{SIZE}-", 0, 10),  # what is beyond the end is left out
    ],
)
async def test_one_part(
    gateway: RunningGateway, kept: ShelvedPicture, asked: str, first: int, end: int
) -> None:
    answer = await gateway.request("GET", address(kept), headers={"Range": asked})
    assert answer.status == 206
    assert answer.body == CONTENT[first:end]
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - first)
    assert answer.headers["content-type"] == "image/png"


async def test_several_parts_come_with_their_places(gateway: RunningGateway, kept: ShelvedPicture) -> None:
    answer = await gateway.request("GET", address(kept), headers={"Range": "bytes=-3, 0-1, 262100-262200"})
    assert answer.status == 206
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "content-range" not in answer.headers
    before, *parts, after = answer.body.split(f"--{boundary}".encode())
    assert (before, after) == (b"", b"--\r\n")
    found = {}
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        assert b"Content-Type: image/png" in head
        place = re.search(rb"Content-Range: bytes (\d+)-(\d+)/(\d+)", head)
        assert place is not None
        assert int(place[3]) == SIZE
        found[int(place[1]), int(place[2])] = body.removesuffix(b"\r\n")
    assert found == {
        (first, end - 1): CONTENT[first:end] for first, end in [(0, 2), (262_100, 262_201), (SIZE - 3, SIZE)]
    }


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE + 1}-{SIZE + 9},-0"])
async def test_what_lies_beyond_the_end_is_416(
    gateway: RunningGateway, kept: ShelvedPicture, asked: str
) -> None:
    answer = await gateway.request("GET", address(kept), headers={"Range": asked})
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"
    assert f"{SIZE} bytes" in answer.json()["error"]


@pytest.mark.parametrize(
    "asked",
    [
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=0x1-2",
        "bytes=1_0-20",
        "bytes=+1-2",
        "bytes=1 - 2",
        "bytes=0-1;2-3",
        "items=0-9",
        "bytes=" + "9" * 400 + "-",
        "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 400, 4)),
    ],
)
async def test_a_range_that_makes_no_sense_is_ignored(
    gateway: RunningGateway, kept: ShelvedPicture, asked: str
) -> None:
    answer = await gateway.request("GET", address(kept), headers={"Range": asked})
    assert (answer.status, answer.body) == (200, CONTENT)


def test_ranges_of_nothing() -> None:
    assert ranges_of("bytes=0-0", 0) == ()
    assert ranges_of("bytes=-5", 0) == ()
    assert ranges_of("", 10) is None


# --- what the caller has already -------------------------------------------------------------------------


async def test_who_has_it_gets_it_no_second_time(gateway: RunningGateway, kept: ShelvedPicture) -> None:
    told = (await gateway.request("GET", address(kept))).headers
    later = "Thu, 01 Jan 2099 00:00:00 GMT"
    for method in ("GET", "HEAD"):
        for header in (
            {"If-None-Match": told["etag"]},
            {"If-None-Match": f'"other", W/{told["etag"]}'},
            {"If-None-Match": "*"},
            {"If-Modified-Since": told["last-modified"]},
            {"If-Modified-Since": later},
        ):
            answer = await gateway.request(method, address(kept), headers=header)
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["etag"] == told["etag"]
            assert "cache-control" in answer.headers


@pytest.mark.parametrize(
    "header",
    [
        {"If-None-Match": '"other"'},
        {"If-None-Match": ""},
        {"If-None-Match": '"other"', "If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"},
        {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"If-Modified-Since": "yesterday"},
        {"If-Modified-Since": "Thu, 99 Jan 2099 99:99:99 GMT"},
        {"If-Modified-Since": "9" * 5000},
    ],
)
async def test_who_has_another_gets_it(
    gateway: RunningGateway, kept: ShelvedPicture, header: dict[str, str]
) -> None:
    answer = await gateway.request("GET", address(kept), headers=header)
    assert (answer.status, answer.body) == (200, CONTENT)


async def test_the_rest_is_sent_only_while_it_is_the_same_picture(
    gateway: RunningGateway, kept: ShelvedPicture
) -> None:
    told = (await gateway.request("HEAD", address(kept))).headers
    for condition, status in [
        (told["etag"], 206),
        (told["last-modified"], 206),
        ('"other"', 200),
        (f"W/{told['etag']}", 200),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
    ]:
        answer = await gateway.request(
            "GET", address(kept), headers={"Range": "bytes=0-9", "If-Range": condition}
        )
        assert answer.status == status, condition


# --- what is not there -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/pictures/pic_" + "0" * 32,
        "/pictures/..%2f..%2fetc%2fpasswd",
        "/pictures/%2e%2e",
        "/pictures/..",
        "/pictures/../../../etc/passwd",
        "/pictures/%2fetc%2fpasswd",
        "/pictures//etc/passwd",
        "/pictures/..%5c..%5cimagen.db",
        "/pictures/pic_" + "0" * 32 + "%00.png",
        "/pictures/pic_%0d%0aSet-Cookie:%20a=b",
        "/pictures/%ff%fe",
        "/pictures/" + "x" * 5000,
        "/pictures/",
    ],
)
async def test_nothing_else_can_be_reached(gateway: RunningGateway, kept: ShelvedPicture, path: str) -> None:
    answer = await raw(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"set-cookie" not in head.lower()
    assert b"root:" not in body
    assert len(body) < 500


async def test_an_unknown_id_is_an_error_that_does_not_repeat_it(gateway: RunningGateway) -> None:
    asked = "pic_" + "0" * 32
    answer = await gateway.request("GET", f"/pictures/{asked}")
    assert answer.status == 404
    assert answer.json()["code"] == "not_found"
    assert asked not in answer.body.decode()
    head = await gateway.request("HEAD", f"/pictures/{asked}")
    assert (head.status, head.body) == (404, b"")


# --- taking it away --------------------------------------------------------------------------------------


async def test_only_the_admin_removes_a_picture(gateway: RunningGateway, kept: ShelvedPicture) -> None:
    assert (await gateway.request("DELETE", address(kept))).status == 401
    wrong = {"X-Admin-API-Key": "wrong"}
    assert (await gateway.request("DELETE", address(kept), headers=wrong)).status == 401
    assert (await gateway.request("GET", address(kept))).status == 200
    removed = await gateway.request("DELETE", address(kept), headers=ADMIN)
    assert (removed.status, removed.body) == (204, b"")
    assert (await gateway.request("GET", address(kept))).status == 404
    assert (await gateway.request("DELETE", address(kept), headers=ADMIN)).status == 404


async def test_a_caller_who_leaves_in_the_middle_leaves_no_file_open(
    gateway: RunningGateway, kept: ShelvedPicture
) -> None:
    large = await gateway.app.shelf.put(bytes(64 << 20), media_type="image/png")
    parts = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {address(large)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await writer.drain()
    await reader.read(1000)
    assert _is_open(large.path)
    writer.transport.abort()
    await until(lambda: not _is_open(large.path))
    assert (await gateway.request("GET", address(kept))).status == 200


def _is_open(path: Path) -> bool:
    links = Path("/proc/self/fd")
    if not links.exists():
        pytest.skip("this system does not tell which files are open")
    return any(_target(link) == str(path) for link in links.iterdir())


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


# --- from a request to its address -----------------------------------------------------------------------


async def test_a_picture_that_was_asked_to_be_kept_is_seen_at_its_address(gateway: RunningGateway) -> None:
    made = await gateway.generate(store=True)
    assert made.status == 200
    (told,) = re.findall(r"pictures/(pic_[0-9a-z]+)", made.body.decode())
    picture = await gateway.app.shelf.locate(told)
    answer = await gateway.request("GET", address(picture))
    assert answer.body == picture.path.read_bytes()
    assert answer.headers["content-type"] == picture.media_type


@pytest.mark.parametrize("keep", ["no", "yes"])
async def test_the_settings_may_keep_every_picture(
    tmp_path: Path, replicate_emulator: EmulatorThread, keep: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_PICTURES__KEEP=keep) as gateway:
        made = await gateway.generate()
        assert made.status == 200
        assert (b"/pictures/pic_" in made.body) is (keep == "yes")


async def test_a_folder_that_cannot_be_written_is_said_before_anything_is_bought(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = str(tmp_path / "file")
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_PICTURES__FOLDER=folder) as gateway:
        made = await gateway.generate(store=True)
    assert made.status == 500
    assert made.json()["code"] == "config_error"
    assert "pictures cannot be kept" in made.json()["error"]
    assert folder not in made.body.decode()
    assert replicate_emulator.purchases == 0
