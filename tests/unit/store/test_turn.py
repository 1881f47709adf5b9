"""One process of a data folder does what is done once for all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imagen.errors import StoreError
from imagen.store.turn import FileTurn

HOLDER = """
import sys
from pathlib import Path
from imagen.store.turn import FileTurn
turn = FileTurn(Path(sys.argv[1]))
print(turn.mine(), flush=True)
sys.stdin.read()
"""


def test_the_first_has_it_and_the_next_when_it_lets_go(tmp_path: Path):
    first, second = FileTurn(tmp_path / "data" / "lock"), FileTurn(tmp_path / "data" / "lock")
    assert first.mine()
    assert first.mine()
    assert not second.mine()
    first.close()
    assert second.mine()
    assert not first.mine()
    second.close()


def test_a_killed_process_has_let_go(tmp_path: Path):
    here = FileTurn(tmp_path / "lock")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as there:
        assert there.stdout is not None
        assert there.stdout.readline() == "True\n"
        assert not here.mine()
        there.kill()
        there.wait()
    assert here.mine()
    here.close()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StoreError) as raised:
        FileTurn(tmp_path / "data" / "lock").mine()
    assert raised.value.hint
