"""Lines through pipes: in whatever pieces they come, and when the other side has gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from imagen.agents.lines import _Incoming, _Outgoing
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


async def test_pieces_become_lines(pipe: tuple[int, int]) -> None:
    incoming = _Incoming(pipe[0], asyncio.get_running_loop())
    for piece in (b'{"a', b'":1}\n\n{"b":2}\r\n{"c', b'":"\xc3', b'\xa4"}\nlast'):
        os.write(pipe[1], piece)
        await asyncio.sleep(0.01)
    os.close(pipe[1])
    assert [line.strip() async for line in incoming] == ['{"a":1}', '{"b":2}', '{"c":"ä"}', "last"]


async def test_it_ends_when_it_is_told_to_while_nothing_comes(pipe: tuple[int, int]) -> None:
    incoming = _Incoming(pipe[0], asyncio.get_running_loop())
    asyncio.get_running_loop().call_later(0.05, incoming.end)
    assert [line async for line in incoming] == []
    os.close(pipe[1])


async def test_a_large_message_goes_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    outgoing = _Outgoing(pipe[1], gone=lambda: None)
    sent = ["x" * 1_000_000 + "\n", "second\n"]
    for text in sent:
        await outgoing.write(text)
        await outgoing.flush()

    def read() -> str:
        found = b""
        while not found.endswith(b"second\n"):
            found += os.read(pipe[0], 1 << 16)
        return found.decode()

    assert await asyncio.to_thread(read) == "".join(sent)
    outgoing.close()


async def test_it_hears_that_the_other_side_has_gone(pipe: tuple[int, int]) -> None:
    gone: list[bool] = []
    outgoing = _Outgoing(pipe[1], gone=lambda: gone.append(True))
    os.close(pipe[0])
    await outgoing.write("anybody?\n")
    await until(lambda: gone)
    outgoing.close()
