from __future__ import annotations

import hashlib
import hmac

from imagen.domain.prediction import hash_prompt, prompt_hasher
from imagen.domain.secret import Secret


def test_without_a_key_it_is_the_sha256():
    assert prompt_hasher(None)("a fox") == hash_prompt("a fox") == hashlib.sha256(b"a fox").hexdigest()


def test_with_a_key_it_is_its_hmac():
    keyed = prompt_hasher(Secret("k1"))
    assert keyed("a fox") == hmac.new(b"k1", b"a fox", "sha256").hexdigest()
    assert (
        len({keyed("a fox"), keyed("a wolf"), prompt_hasher(Secret("k2"))("a fox"), hash_prompt("a fox")})
        == 4
    )
