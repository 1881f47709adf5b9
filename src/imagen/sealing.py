"""Encrypting what must be kept and read by nobody else, with keys out of the settings."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from imagen.domain.secret import Secret
from imagen.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

SHORTEST_KEY = 16
"""Characters that a key must have."""
SETTING = "secret_key"
_PREFIX = "v1:"
"""Before everything sealed: by it another way of sealing could be told from this one."""
_SALT = b"imagen sealing v1"
# The key may be a sentence that a person made up, so guessing it is made dear: 16 MiB and some 50 ms for each guess.
_COST, _BLOCK, _LANES, _KEY_BYTES = 1 << 14, 8, 1, 32


class KeySealer:
    """`ports.Sealer` with keys that are any text: the first one seals, each of them unseals.

    What it makes is `v1:` and a Fernet token: AES-128 in CBC mode, authenticated with HMAC-SHA256. The keys for that
    are derived with scrypt, when something is sealed or unsealed for the first time.

    Args:
        keys: the newest first.

    Raises:
        ConfigError: there is none, or one has fewer than `SHORTEST_KEY` characters.
    """

    def __init__(self, *keys: Secret) -> None:
        if not keys:
            raise _refused("no key is given")
        for place, key in enumerate(keys, 1):
            if len(key.reveal()) < SHORTEST_KEY:
                which = "the key" if len(keys) == 1 else f"key {place} of {len(keys)}"
                raise _refused(f"{which} has fewer than {SHORTEST_KEY} characters")
        self._keys = keys
        self._fernets: dict[int, Fernet] = {}

    @classmethod
    def from_setting(cls, value: Secret) -> KeySealer:
        """With the key of the setting `secret_key`, or with several, separated by commas.

        Raises:
            ConfigError: one of them is too short.
        """
        return cls(*(Secret(part.strip()) for part in value.reveal().split(",")))

    def seal(self, secret: Secret) -> str:
        """See `ports.Sealer.seal`. Sealing the same twice makes two different texts."""
        return _PREFIX + self._fernet(0).encrypt(secret.reveal().encode()).decode()

    def unseal(self, sealed: str) -> Secret:
        """See `ports.Sealer.unseal`. Any text may be given."""
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - few processes seal anything

        token = sealed.removeprefix(_PREFIX)
        if token != sealed and _is_exact(token):
            for index in range(len(self._keys)):
                try:
                    return Secret(self._fernet(index).decrypt(token).decode())
                except InvalidToken:
                    continue
        raise ConfigError(
            f"{SETTING}: what was encrypted cannot be read: that was done with another key, or it was changed since.",
            setting=SETTING,
            hint="Set IMAGEN_SECRET_KEY to the key of then, or to the new and the old one, separated by a comma.",
        )

    def _fernet(self, index: int) -> Fernet:
        if index not in self._fernets:
            from cryptography.fernet import Fernet  # noqa: PLC0415 - few processes seal anything

            derived = hashlib.scrypt(
                self._keys[index].reveal().encode(),
                salt=_SALT,
                n=_COST,
                r=_BLOCK,
                p=_LANES,
                dklen=_KEY_BYTES,
            )
            self._fernets[index] = Fernet(base64.urlsafe_b64encode(derived))
        return self._fernets[index]

    def __repr__(self) -> str:
        return f"KeySealer({len(self._keys)} {'key' if len(self._keys) == 1 else 'keys'})"


def _is_exact(token: str) -> bool:
    """Whether it is base64 as we write it: a lenient reader takes other texts for the same bytes."""
    try:
        return base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)).decode() == token
    except (binascii.Error, ValueError):
        return False


def _refused(reason: str) -> ConfigError:
    return ConfigError(
        f"{SETTING}: {reason}.",
        setting=SETTING,
        hint='Make one with `python3 -c "import secrets; print(secrets.token_urlsafe(32))"` and set IMAGEN_SECRET_KEY.',
    )
