"""Types are read from any thread, also when several read one for the first time."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from imagen.decoding import convert, decode, decoder

THREADS_MEET = """
import sys
from threading import Barrier, Thread
import msgspec
from imagen.decoding import convert, decode, decoder

sys.setswitchinterval(1e-6)  # threads take turns as often as they can
READ = {
    "decode": lambda kind: decode(b'{"f5":{"a":1}}', kind),
    "convert": lambda kind: convert({"f5": {"a": 1}}, kind),
    "decoder": lambda kind: decoder(kind).decode(b'{"f5":{"a":1}}'),
}[sys.argv[1]]

def one_more(together, kind, seen):
    together.wait()
    seen.append(READ(kind).f5.a)

for _ in range(150):
    parts = [msgspec.defstruct(f"Part{i}", [("a", int), ("b", "int | None", None)]) for i in range(6)]
    whole = msgspec.defstruct("Whole", [(f"f{i}", part | None, None) for i, part in enumerate(parts)])
    together, seen = Barrier(3), []
    threads = [Thread(target=one_more, args=(together, kind, seen)) for kind in (whole, whole, whole | None)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert seen == [1, 1, 1], seen
"""
"""With msgspec alone this process dies of a segmentation fault in its first few rounds."""


class Part(msgspec.Struct):
    number: int


@pytest.mark.parametrize("how", ["decode", "convert", "decoder"])
def test_threads_that_meet_at_a_type_nobody_has_read_before_read_it(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS_MEET, how], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_read_is_what_was_asked_for() -> None:
    assert decode(b'{"number": 1}', Part) == Part(1)
    assert decode('[{"number": 1}]', list[Part]) == [Part(1)]
    assert convert({"number": 1}, Part) == Part(1)
    assert decoder(Part).decode(b'{"number": 1}') == Part(1)


def test_a_number_in_quotes_is_one_where_that_is_wished() -> None:
    assert convert({"number": "1"}, Part, strict=False) == Part(1)
    assert decoder(Part, strict=False).decode(b'{"number": "1"}') == Part(1)
    for read in (lambda: convert({"number": "1"}, Part), lambda: decode(b'{"number": "1"}', Part)):
        with pytest.raises(msgspec.ValidationError, match="number"):
            read()
