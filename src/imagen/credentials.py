"""Where tokens are kept outside the environment: the keyring, else a file that only the user can read.

`credentials.json` in the user's configuration folder says for each name where its token is. Asking the
keyring costs a tenth of a second: it is neither asked nor imported unless that file names it for the token.

    {"REPLICATE_API_TOKEN": {"kept_in": "keyring"}, "OTHER_TOKEN": {"kept_in": "file", "token": "…"}}
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NoReturn, Protocol

import msgspec

from imagen.decoding import decode
from imagen.domain.secret import Secret
from imagen.errors import ConfigError

SERVICE = "imagen"
KEYRING = "keyring"
FILE_NAME = "credentials.json"

_LARGEST_FILE = 1024 * 1024


class Keyring(Protocol):
    """What we need of a keyring. Each method may raise anything."""

    def get_password(self, service: str, username: str) -> str | None: ...  # noqa: D102
    def set_password(self, service: str, username: str, password: str) -> None: ...  # noqa: D102
    def delete_password(self, service: str, username: str) -> None: ...  # noqa: D102


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    kept_in: Literal["keyring", "file"]
    token: str | None = None

    def __repr__(self) -> str:
        return f"_Entry({self.kept_in})"


class CredentialStore:
    """Tokens by name. The name is that of the environment variable that would hold the token.

    Args:
        folder: the user's configuration folder; made when something is saved.
        find_keyring: tells the keyring to use, None when there is none that works.
    """

    def __init__(self, folder: Path, *, find_keyring: Callable[[], Keyring | None] | None = None) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._find_keyring = find_keyring or system_keyring

    def save(self, name: str, token: Secret) -> str:
        """Keep a token in place of the last of that name, and tell where: `keyring` or the file's path.

        Raises:
            ConfigError: it is no token, or the file cannot be read or written.
        """
        text = token.reveal().strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ConfigError(
                f"{name}: that is no token: it is empty or has spaces, line breaks or other odd characters.",
                setting=name,
                hint="Copy it again, whole and alone.",
            )
        with self._locked():
            entries = self._read()
            entry = _Entry("keyring") if self._save_to_keyring(name, text) else _Entry("file", text)
            self._write({**entries, name: entry})
        return KEYRING if entry.kept_in == KEYRING else str(self._path)

    def load(self, name: str) -> Secret | None:
        """The token kept under that name.

        Raises:
            ConfigError: the file is open to others or broken, or the keyring that holds it does not answer.
        """
        entry = self._read().get(name)
        if entry is None:
            return None
        if entry.kept_in == "file":
            return Secret(entry.token) if entry.token else None
        try:
            keyring = self._find_keyring()
            text = keyring.get_password(SERVICE, name) if keyring else _no_keyring()
        except Exception as error:  # noqa: BLE001 - they raise what they like
            raise ConfigError(
                f"The token {name} is in the keyring, which cannot be asked here ({type(error).__name__}).",
                setting=name,
                source=KEYRING,
                hint=f"Unlock it, set {name} in the environment, or run `imagen auth login` again.",
            ) from None
        return Secret(text) if text else None

    def delete(self, name: str) -> bool:
        """Forget the token; tells whether one was kept.

        Raises:
            ConfigError: the file cannot be read or written, or the keyring may still hold it.
        """
        if name not in self._read():
            return False
        with self._locked():
            entries = self._read()
            entry = entries.pop(name, None)
            if entry is None:
                return False
            self._write(entries)
        if entry.kept_in == KEYRING:
            self._delete_from_keyring(name)
        return True

    def where(self, name: str) -> str | None:
        """Where the token is kept: `keyring`, the file's path, or None for nowhere. Asks no keyring.

        Raises:
            ConfigError: the file is open to others or broken.
        """
        entry = self._read().get(name)
        if entry is None:
            return None
        return KEYRING if entry.kept_in == KEYRING else str(self._path)

    def names(self) -> list[str]:
        """The names of all tokens that are kept. Asks no keyring.

        Raises:
            ConfigError: the file is open to others or broken.
        """
        return list(self._read())

    def _save_to_keyring(self, name: str, text: str) -> bool:
        try:
            keyring = self._find_keyring()
            if keyring is None:
                return False
            keyring.set_password(SERVICE, name, text)
            # Some say nothing and keep nothing.
            return keyring.get_password(SERVICE, name) == text
        except Exception:  # noqa: BLE001 - a keyring that fails in whatever way is none
            return False

    def _delete_from_keyring(self, name: str) -> None:
        try:
            keyring = self._find_keyring() or _no_keyring()
            if keyring.get_password(SERVICE, name) is not None:
                keyring.delete_password(SERVICE, name)
        except Exception as error:  # noqa: BLE001 - as in load
            raise ConfigError(
                f"imagen has forgotten {name}, but the keyring cannot be asked here ({type(error).__name__})"
                " and may still hold it.",
                setting=name,
                source=KEYRING,
                hint=f"Delete the entry {SERVICE} / {name} in the keyring itself.",
            ) from None

    def _read(self) -> dict[str, _Entry]:
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(_LARGEST_FILE + 1) if not mode & (stat.S_IRWXG | stat.S_IRWXO) else None
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._failed("read", error) from error
        if data is None:
            raise ConfigError(
                f"{self._path}: others on this machine may read its tokens (mode {stat.S_IMODE(mode):o}).",
                source=str(self._path),
                hint=f"Run: chmod 600 '{self._path}'",
            )
        try:
            return decode(data, dict[str, _Entry])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ConfigError(
                f"{self._path}: the file is broken.",
                source=str(self._path),
                hint="Delete it and run `imagen auth login` again.",
            ) from None

    def _write(self, entries: Mapping[str, _Entry]) -> None:
        target = self._path.resolve()  # some keep their configuration elsewhere and link it
        temporary = target.with_name(f".{FILE_NAME}.{os.getpid()}-{os.urandom(6).hex()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._failed("written", error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder, made and closed to others, with nobody else changing the file meanwhile."""
        import fcntl  # noqa: PLC0415 - not on every system, and only those who log in need it

        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                self._folder.chmod(0o700)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._failed("written", error) from error
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _failed(self, done: str, error: OSError) -> ConfigError:
        reason = error.strerror or type(error).__name__
        return ConfigError(
            f"{self._path}: the credentials cannot be {done}: {reason[0].lower()}{reason[1:]}.",
            source=str(self._path),
        )


def system_keyring() -> Keyring | None:
    """The keyring of this system, None when there is none. Slow: it imports and probes what is there."""
    try:
        import keyring  # noqa: PLC0415 - see above
        from keyring.backends import fail, null  # noqa: PLC0415

        found = keyring.get_keyring()
    except Exception:  # noqa: BLE001 - a keyring that fails in whatever way is none
        return None
    return None if isinstance(found, fail.Keyring | null.Keyring) else found


def _no_keyring() -> NoReturn:
    raise LookupError("no keyring")
