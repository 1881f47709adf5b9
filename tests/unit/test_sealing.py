"""What is sealed is read with the right key, and by nobody and nothing else."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagen.domain.secret import Secret
from imagen.errors import ConfigError
from imagen.sealing import SHORTEST_KEY, KeySealer

KEY = Secret("a key that is long enough")
OTHER = Secret("another key, long enough")
TOKEN = Secret("r8_0123456789abcdefABCDEF0123456789abcdef")
LENGTH = 143
"""Characters of `TOKEN` when it is sealed."""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@cache
def sealer_of(*keys: Secret) -> KeySealer:
    """Deriving a key is slow on purpose, so the tests share it."""
    return KeySealer(*keys)


@given(TEXTS)
def test_what_was_sealed_is_unsealed(text: str) -> None:
    assert sealer_of(KEY).unseal(sealer_of(KEY).seal(Secret(text))) == Secret(text)


def test_nothing_of_the_secret_is_seen_in_what_is_sealed() -> None:
    sealed = sealer_of(KEY).seal(TOKEN)

    assert sealed.startswith("v1:")
    assert len(sealed) == LENGTH
    assert TOKEN.reveal()[3:12] not in sealed
    assert KEY.reveal() not in repr(sealer_of(KEY))


def test_the_same_secret_sealed_twice_does_not_look_the_same() -> None:
    assert sealer_of(KEY).seal(TOKEN) != sealer_of(KEY).seal(TOKEN)


def test_another_sealer_with_the_same_key_unseals() -> None:
    assert KeySealer(KEY).unseal(sealer_of(KEY).seal(TOKEN)) == TOKEN


def test_another_key_unseals_nothing_and_is_told_so() -> None:
    sealed = sealer_of(KEY).seal(TOKEN)

    with pytest.raises(ConfigError, match="another key") as refused:
        sealer_of(OTHER).unseal(sealed)

    assert refused.value.setting == "secret_key"
    assert sealed not in str(refused.value)
    assert TOKEN.reveal() not in str(refused.value)


@given(place=st.integers(0, LENGTH - 1), put=st.characters())
def test_a_change_of_any_character_is_noticed(place: int, put: str) -> None:
    sealed = sealer_of(KEY).seal(TOKEN)
    assume(put != sealed[place])

    with pytest.raises(ConfigError):
        sealer_of(KEY).unseal(sealed[:place] + put + sealed[place + 1 :])


@given(cut=st.integers(0, LENGTH - 1), more=st.text(min_size=1))
def test_what_was_cut_or_lengthened_is_noticed(cut: int, more: str) -> None:
    sealed = sealer_of(KEY).seal(TOKEN)

    for changed in (sealed[:cut], sealed + more, more + sealed):
        with pytest.raises(ConfigError):
            sealer_of(KEY).unseal(changed)


@given(st.text())
def test_any_text_that_was_never_sealed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        sealer_of(KEY).unseal(text)


def test_after_a_rotation_the_new_key_seals_and_the_old_one_still_unseals() -> None:
    before = sealer_of(KEY).seal(TOKEN)
    rotated = KeySealer.from_setting(Secret(f"{OTHER.reveal().replace(',', '')}, {KEY.reveal()}"))
    after = rotated.seal(TOKEN)

    assert rotated.unseal(before) == TOKEN
    assert rotated.unseal(after) == TOKEN
    with pytest.raises(ConfigError):
        sealer_of(KEY).unseal(after)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x" * (SHORTEST_KEY - 1), "the key has fewer than 16 characters"),
        ("", "the key has fewer than 16 characters"),
        (f"{'x' * SHORTEST_KEY},short", "key 2 of 2 has fewer than 16 characters"),
        (f"{'x' * SHORTEST_KEY},", "key 2 of 2 has fewer than 16 characters"),
    ],
)
def test_a_short_key_is_refused_without_being_shown(value: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        KeySealer.from_setting(Secret(value))

    assert refused.value.setting == "secret_key"
    assert "xxx" not in str(refused.value)
    assert "short" not in str(refused.value).replace("shorter", "")


def test_a_key_of_sixteen_characters_is_taken() -> None:
    sealer = KeySealer.from_setting(Secret("x" * SHORTEST_KEY))

    assert sealer.unseal(sealer.seal(TOKEN)) == TOKEN


def test_no_key_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no key"):
        KeySealer()


def test_the_library_is_loaded_when_something_is_sealed_and_not_before() -> None:
    program = (
        "import sys; from imagen.sealing import KeySealer; from imagen.domain.secret import Secret\n"
        "sealer = KeySealer(Secret('x' * 16)); before = 'cryptography' in sys.modules\n"
        "sealer.seal(Secret('t')); print(before, 'cryptography' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert told.stdout.split() == ["False", "True"]
