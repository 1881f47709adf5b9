"""A prompt that occurs nowhere else, and whether something holds any of it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable

import msgspec

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_WORDS, _SYLLABLES = 6, 5
_LEAST_BASE64 = 8


def new_words(numbers: Iterable[int]) -> str:
    """Words of nonsense, the same for the same numbers; each is long enough to stand for the whole prompt.

    Args:
        numbers: without end, each from 0 to 65535, drawn at random.
    """
    drawn = iter(numbers)
    pairs = len(_CONSONANTS) * len(_VOWELS)
    return " ".join(
        "".join(
            _CONSONANTS[(number := next(drawn) % pairs) % len(_CONSONANTS)]
            + _VOWELS[number // len(_CONSONANTS)]
            for _ in range(_SYLLABLES)
        )
        for _ in range(_WORDS)
    )


class Canary(msgspec.Struct, frozen=True):
    """A text that must not be found where it does not belong.

    Attributes:
        text: as it was sent.
        words: of letters, digits, `_` and `-` alone, which no encoding for URLs or JSON changes. They count one by one, as
            texts are cut.
    """

    text: str
    words: tuple[str, ...]

    @classmethod
    def of_prompt(cls, text: str) -> Canary:
        """One whose every word would be a leak."""
        return cls(text, tuple(text.split()))

    @classmethod
    def of_secret(cls, text: str) -> Canary:
        """One that is a secret as a whole."""
        return cls(text, (text,))

    @property
    def plain_hash(self) -> str:
        """By which whoever guesses the text can tell that it was this one."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def is_in(self, data: bytes) -> bool:
        """Whether some word of it is there: plain, which it is in URLs and JSON too, in base64 or hex, or packed by zlib or gzip."""
        seen = data.lower()
        if any(form in seen for word in self.words for form in _forms(word)):
            return True
        if any(form in data for word in self.words for form in _in_base64(word)):
            return True
        unpacked = _unpacked(data)
        return unpacked is not None and self.is_in(unpacked)


def _forms(word: str) -> Iterable[bytes]:
    small = word.lower()
    yield small.encode()
    yield small.encode().hex().encode()
    yield small.encode("utf-16-le")


def _in_base64(word: str) -> Iterable[bytes]:
    """What of it base64 shows, wherever in a text it begins."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + word.encode())
        whole = encoded[(0, 2, 3)[before] : len(encoded) - 4]
        if len(whole) >= _LEAST_BASE64:
            yield whole
            yield whole.replace(b"+", b"-").replace(b"/", b"_")


def _unpacked(data: bytes) -> bytes | None:
    if not data.startswith((b"\x78", b"\x1f\x8b")):
        return None
    try:
        return zlib.decompressobj(wbits=47).decompress(data, 64 << 20)
    except zlib.error:
        return None
