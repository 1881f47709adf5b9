"""Where tokens are kept: in a keyring that works, else in a file of the user's own."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keyring
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from keyring.backends import fail, null

from imagen.credentials import CredentialStore, Keyring, system_keyring
from imagen.domain.secret import Secret
from imagen.errors import ConfigError

NAME = "REPLICATE_API_TOKEN"
TOKEN = Secret("r8_swordfish")


class FakeKeyring(KeyringBackend):
    """A keyring in memory, of keyring's own kind."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[tuple[str, str], str] = {}
        self.broken = False
        self.forgetful = False

    def get_password(self, service: str, username: str) -> str | None:
        self._check()
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._check()
        if not self.forgetful:
            self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._check()
        del self.kept[service, username]

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("locked: r8_swordfish")


@pytest.fixture
def ring() -> FakeKeyring:
    return FakeKeyring()


@pytest.fixture
def with_ring(tmp_path: Path, ring: FakeKeyring) -> CredentialStore:
    return CredentialStore(tmp_path / "imagen", find_keyring=lambda: ring)


@pytest.fixture
def without_ring(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "imagen", find_keyring=lambda: None)


def path_of(tmp_path: Path) -> Path:
    return tmp_path / "imagen" / "credentials.json"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def forbidden() -> Keyring | None:
    raise AssertionError("the keyring was asked")


# --- the keyring -----------------------------------------------------------------------------------------


def test_a_token_in_the_keyring(tmp_path: Path, with_ring: CredentialStore, ring: FakeKeyring) -> None:
    assert with_ring.save(NAME, TOKEN) == "keyring"
    assert ring.kept == {("imagen", NAME): "r8_swordfish"}
    assert json.loads(path_of(tmp_path).read_text()) == {NAME: {"kept_in": "keyring"}}
    assert with_ring.load(NAME) == TOKEN
    assert with_ring.where(NAME) == "keyring"
    assert with_ring.delete(NAME)
    assert ring.kept == {}
    assert (with_ring.load(NAME), with_ring.where(NAME), with_ring.delete(NAME)) == (None, None, False)


def test_a_keyring_that_lost_it(with_ring: CredentialStore, ring: FakeKeyring) -> None:
    with_ring.save(NAME, TOKEN)
    ring.kept.clear()
    assert with_ring.load(NAME) is None
    assert with_ring.delete(NAME)


def test_a_keyring_that_breaks(tmp_path: Path, with_ring: CredentialStore, ring: FakeKeyring) -> None:
    with_ring.save(NAME, TOKEN)
    ring.broken = True
    with pytest.raises(ConfigError, match="cannot be asked here") as caught:
        with_ring.load(NAME)
    assert "swordfish" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert with_ring.where(NAME) == "keyring"
    with pytest.raises(ConfigError, match="may still hold it"):
        with_ring.delete(NAME)
    assert with_ring.load(NAME) is None
    assert with_ring.save(NAME, TOKEN) == str(path_of(tmp_path))
    assert with_ring.load(NAME) == TOKEN


def test_a_keyring_that_is_gone(tmp_path: Path, with_ring: CredentialStore) -> None:
    with_ring.save(NAME, TOKEN)
    later = CredentialStore(tmp_path / "imagen", find_keyring=lambda: None)
    with pytest.raises(ConfigError, match="auth login"):
        later.load(NAME)
    with pytest.raises(ConfigError, match="may still hold it"):
        later.delete(NAME)
    assert later.where(NAME) is None


def test_a_keyring_that_keeps_nothing(tmp_path: Path, with_ring: CredentialStore, ring: FakeKeyring) -> None:
    ring.forgetful = True
    assert with_ring.save(NAME, TOKEN) == str(path_of(tmp_path))
    ring.broken = True
    assert with_ring.load(NAME) == TOKEN


def test_a_token_moves_into_the_keyring(
    tmp_path: Path, without_ring: CredentialStore, with_ring: CredentialStore
) -> None:
    without_ring.save(NAME, TOKEN)
    with_ring.save(NAME, TOKEN)
    assert "swordfish" not in path_of(tmp_path).read_text()


def test_the_keyring_is_only_asked_for_what_it_holds(tmp_path: Path, without_ring: CredentialStore) -> None:
    store = CredentialStore(tmp_path / "imagen", find_keyring=forbidden)
    assert store.load(NAME) is None
    without_ring.save(NAME, TOKEN)
    assert (store.load(NAME), store.load("OTHER"), store.delete("OTHER")) == (TOKEN, None, False)
    assert store.where(NAME) == str(path_of(tmp_path))
    assert store.delete(NAME)


def test_nothing_is_imported_for_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from imagen.credentials import CredentialStore;"
        f"assert CredentialStore(pathlib.Path({str(tmp_path)!r})).load('X') is None;"
        "print('keyring' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_keyring() -> Iterator[None]:
    """Puts back whatever keyring there was."""
    before = keyring.get_keyring()
    yield
    keyring.set_keyring(before)


@pytest.mark.usefixtures("own_keyring")
def test_the_keyring_of_the_system(tmp_path: Path, ring: FakeKeyring) -> None:
    keyring.set_keyring(ring)
    assert system_keyring() is ring
    store = CredentialStore(tmp_path)
    assert store.save(NAME, TOKEN) == "keyring"
    assert store.load(NAME) == TOKEN
    for useless in (fail.Keyring(), null.Keyring()):  # type: ignore[no-untyped-call]
        keyring.set_keyring(useless)
        assert system_keyring() is None
    assert store.save(NAME, TOKEN) == str(tmp_path / "credentials.json")


def test_a_keyring_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no D-Bus")

    monkeypatch.setattr(keyring, "get_keyring", broken)
    assert system_keyring() is None
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert system_keyring() is None


# --- the file --------------------------------------------------------------------------------------------


def test_a_token_in_the_file(tmp_path: Path, without_ring: CredentialStore) -> None:
    path = path_of(tmp_path)
    assert without_ring.save(NAME, Secret(" r8_swordfish\n")) == str(path)
    assert without_ring.save("OTHER", Secret("x")) == str(path)
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert [entry.name for entry in path.parent.iterdir()] == ["credentials.json"]
    assert without_ring.load(NAME) == TOKEN
    assert without_ring.delete(NAME)
    assert (without_ring.load(NAME), without_ring.load("OTHER")) == (None, Secret("x"))


def test_an_open_folder_is_closed(tmp_path: Path, without_ring: CredentialStore) -> None:
    (tmp_path / "imagen").mkdir(mode=0o755)
    without_ring.save(NAME, TOKEN)
    assert mode_of(tmp_path / "imagen") == 0o700


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_file_open_to_others_is_refused(tmp_path: Path, without_ring: CredentialStore, mode: int) -> None:
    without_ring.save(NAME, TOKEN)
    path_of(tmp_path).chmod(mode)
    for use in (without_ring.load, without_ring.where, without_ring.delete):
        with pytest.raises(ConfigError, match="chmod 600") as caught:
            use(NAME)
        assert str(path_of(tmp_path)) in str(caught.value)
    with pytest.raises(ConfigError, match="chmod 600"):
        without_ring.save(NAME, TOKEN)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"A": 3}',
        b'{"A": {"kept_in": "moon-swordfish"}}',
        b'{"A": {"token": "swordfish"}}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_broken_file(tmp_path: Path, without_ring: CredentialStore, data: bytes) -> None:
    without_ring.save(NAME, TOKEN)
    path_of(tmp_path).write_bytes(data)
    with pytest.raises(ConfigError, match="is broken") as caught:
        without_ring.load(NAME)
    assert "swordfish" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=100))
def test_any_file_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "credentials.json"
    path.touch(mode=0o600)
    path.write_bytes(data)
    try:
        CredentialStore(tmp_path, find_keyring=forbidden).load(NAME)
    except ConfigError as error:
        assert "broken" in str(error)  # noqa: PT017


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = CredentialStore(tmp_path / "file" / "imagen", find_keyring=lambda: None)
    with pytest.raises(ConfigError, match="credentials cannot be"):
        store.save(NAME, TOKEN)


def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, without_ring: CredentialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ring.save(NAME, TOKEN)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: no space left on device"):
        without_ring.save(NAME, Secret("new"))
    assert without_ring.load(NAME) == TOKEN
    assert [entry.name for entry in (tmp_path / "imagen").iterdir()] == ["credentials.json"]


def test_a_linked_file_stays_a_link(tmp_path: Path, without_ring: CredentialStore) -> None:
    real = tmp_path / "real.json"
    real.touch(mode=0o600)
    real.write_text("{}")
    (tmp_path / "imagen").mkdir(mode=0o700)
    path_of(tmp_path).symlink_to(real)
    without_ring.save(NAME, TOKEN)
    assert path_of(tmp_path).is_symlink()
    assert without_ring.load(NAME) == TOKEN
    assert mode_of(real) == 0o600


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    names = [f"TOKEN_{number}" for number in range(24)]

    def save(name: str) -> None:
        CredentialStore(tmp_path / "imagen", find_keyring=lambda: None).save(name, Secret(name))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, names))
    store = CredentialStore(tmp_path / "imagen", find_keyring=forbidden)
    assert [store.load(name) for name in names] == [Secret(name) for name in names]


@pytest.mark.parametrize("text", ["", "  ", "two words", "a\nb", "é", "\x00"])
def test_what_is_no_token(tmp_path: Path, without_ring: CredentialStore, text: str) -> None:
    with pytest.raises(ConfigError, match="that is no token"):
        without_ring.save(NAME, Secret(text))
    assert not path_of(tmp_path).exists()
