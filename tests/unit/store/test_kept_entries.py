"""Entries that wait for the ledger in a plain file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.make import make_entry
from imagen.domain.money import Usd
from imagen.store.kept_entries import KeptEntries

HERE = Path(__file__).parents[2]
ADDER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes.make import make_entry
from imagen.store.kept_entries import KeptEntries
kept = KeptEntries(Path(sys.argv[2]))
for number in range(int(sys.argv[3]), int(sys.argv[3]) + 50):
    kept.add(make_entry(number))
    if number % 10 == 0:
        kept.forget([make_entry(number)])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kept.jsonl"


def test_nothing_is_kept_before_something_is_added(path: Path):
    kept = KeptEntries(path)
    assert list(kept.read()) == []
    kept.forget([make_entry()])
    assert not path.exists()


def test_what_is_kept_comes_back_in_order_also_to_another_process(path: Path):
    entries = [make_entry(1, cost=Usd(3)), make_entry(2, caller="größer\n\u2028水"), make_entry(3)]
    for entry in entries:
        KeptEntries(path).add(entry)
    assert list(KeptEntries(path).read()) == entries


def test_forgotten_is_what_was_written_and_nothing_else(path: Path):
    kept = KeptEntries(path)
    for number in (1, 2, 3):
        kept.add(make_entry(number))
    kept.forget([make_entry(2), make_entry(9)])
    assert list(kept.read()) == [make_entry(1), make_entry(3)]
    kept.forget(kept.read())
    assert path.read_bytes() == b""
    kept.add(make_entry(4))
    assert list(kept.read()) == [make_entry(4)]


@given(cut=st.integers(1, 400))
def test_a_line_cut_by_a_crash_costs_no_other_entry(tmp_path_factory: pytest.TempPathFactory, cut: int):
    path = tmp_path_factory.mktemp("kept") / "kept.jsonl"
    kept = KeptEntries(path)
    kept.add(make_entry(1))
    whole = path.stat().st_size
    kept.add(make_entry(2))
    with path.open("r+b") as file:
        file.truncate(max(whole, path.stat().st_size - cut))
    kept.add(make_entry(3))
    assert [entry.id for entry in kept.read() if entry != make_entry(2)] == [
        make_entry(1).id,
        make_entry(3).id,
    ]


def test_lines_that_are_no_entries_are_left_out(path: Path):
    path.parent.mkdir()
    path.write_bytes(b'\n{}\n[]\nnull\n\xff\xfe\n{"id": 3}\n')
    KeptEntries(path).add(make_entry())
    assert list(KeptEntries(path).read()) == [make_entry()]


def test_where_nothing_can_be_kept_adding_fails_and_reading_does_not(tmp_path: Path):
    kept = KeptEntries(tmp_path)
    with pytest.raises(OSError, match="directory"):
        kept.add(make_entry())
    assert list(kept.read()) == []


def test_several_processes_add_and_forget_at_once(path: Path):
    processes = [
        subprocess.Popen([sys.executable, "-c", ADDER, str(HERE), str(path), str(first)])
        for first in (0, 1000, 2000)
    ]
    assert [process.wait(timeout=50) for process in processes] == [0, 0, 0]
    wanted = {make_entry(first + n).id for first in (0, 1000, 2000) for n in range(50) if n % 10}
    assert {entry.id for entry in KeptEntries(path).read()} == wanted
