"""What a key is, what it may be good for, and how it is kept."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from fakes.clock import BEGINNING
from imagen.domain.caller import Caller
from imagen.domain.identifiers import new_secret
from imagen.domain.key import (
    PREFIX,
    ROUTES,
    Key,
    check_key,
    check_route,
    check_scope,
    hash_key,
    looks_like_key,
    unknown_key,
)
from imagen.domain.model_ref import ModelRef
from imagen.errors import InvalidInput, PermissionDenied


def test_a_key_names_a_caller_with_its_limits():
    key = Key(id="key_1", name="shop", concurrent=4, per_minute=60, created_at=BEGINNING)
    assert key.caller == Caller(name="shop", key="key_1", concurrent=4, per_minute=60)
    assert key.caller.turn == "key_1"


# --- what makes sense ---


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "a"},
        {"name": "9.to_five:web-shop"},
        {"name": "x" * 100},
        {"name": "a", "concurrent": 1, "per_minute": 1},
        {"name": "a", "concurrent": 100_000, "per_minute": 1_000_000},
        {"name": "a", "routes": ROUTES},
        {"name": "a", "models": [f"a/m{number}" for number in range(100)]},
    ],
)
def test_facts_that_make_sense_are_taken(facts: dict[str, Any]):
    check_key(**facts)


@pytest.mark.parametrize(
    ("facts", "field", "allowed"),
    [
        ({"name": ""}, "name", "1 to 100 letters"),
        ({"name": "x" * 101}, "name", "1 to 100 letters"),
        ({"name": "web shop"}, "name", "1 to 100 letters"),
        ({"name": "a\n"}, "name", "1 to 100 letters"),
        ({"name": "../a"}, "name", "begin with a letter or digit"),
        ({"name": ".."}, "name", "begin with a letter or digit"),
        ({"name": "-x"}, "name", "begin with a letter or digit"),
        ({"name": "straße"}, "name", "1 to 100 letters"),
        ({"name": "a", "concurrent": 0}, "concurrent", "from 1 to 100000"),
        ({"name": "a", "concurrent": 100_001}, "concurrent", "from 1 to 100000"),
        ({"name": "a", "per_minute": 0}, "rpm", "from 1 to 1000000"),
        ({"name": "a", "per_minute": 1_000_001}, "rpm", "from 1 to 1000000"),
        ({"name": "a", "routes": ["/keys"]}, "routes", "/generate-batch"),
        ({"name": "a", "routes": ["generate"]}, "routes", "'generate' must be one of"),
        ({"name": "a", "models": [str(number) for number in range(101)]}, "models", "at most 100"),
    ],
)
def test_facts_that_make_no_sense_are_refused_by_field(facts: dict[str, Any], field: str, allowed: str):
    with pytest.raises(InvalidInput) as raised:
        check_key(**facts)
    (problem,) = raised.value.problems
    assert problem.field == field
    assert allowed in problem.message


def test_all_wrong_fields_are_named_at_once_and_nothing_long_comes_back():
    with pytest.raises(InvalidInput) as raised:
        check_key(name="!" * 10_000, routes=["/" + "x" * 10_000], concurrent=-1, per_minute=-1)
    assert {problem.field for problem in raised.value.problems} == {"name", "concurrent", "rpm", "routes"}
    assert len(str(raised.value)) < 1000


# --- how it is kept ---


def test_a_plain_key_has_160_random_bits_and_is_kept_as_its_sha256():
    plain = new_secret(PREFIX)
    assert re.fullmatch(r"imk_[0-9a-z]{32}", plain)
    assert looks_like_key(plain)
    assert hash_key(plain) == hashlib.sha256(plain.encode()).hexdigest()
    assert len({new_secret(PREFIX) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "shown", ["", "imk_", "imk_" + "0" * 31, "imk_" + "0" * 33, "imk_" + "u" * 32, "IMK_" + "0" * 32]
)
@pytest.mark.parametrize("end", ["", "\n", "\udcff"])
def test_what_is_no_key_does_not_look_like_one(shown: str, end: str):
    assert not looks_like_key(shown + end)


# --- which models ---

SCOPE = frozenset({"black-forest-labs/flux-dev", "deployments/acme/fox"})


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        (frozenset(), "anyone/anything"),
        (frozenset(), "deployments/anyone/anything"),
        (SCOPE, "black-forest-labs/flux-dev"),
        (SCOPE, "black-forest-labs/flux-dev:abc123"),
        (SCOPE, "Black-Forest-Labs/FLUX-dev"),
        (SCOPE, "deployments/acme/fox"),
    ],
)
def test_models_of_the_key_may_be_used(models: frozenset[str], asked: str):
    check_scope(models, ModelRef.parse(asked))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("black-forest-labs/flux-pro", "black-forest-labs/flux-pro"),
        ("black-forest-labs/flux-dev-lora:abc123", "black-forest-labs/flux-dev-lora"),
        ("deployments/black-forest-labs/flux-dev", "deployments/black-forest-labs/flux-dev"),
        ("acme/fox", "acme/fox"),
    ],
)
def test_other_models_are_refused_with_what_the_key_may_use(asked: str, named: str):
    with pytest.raises(PermissionDenied) as raised:
        check_scope(SCOPE, ModelRef.parse(asked))
    assert raised.value.detail == (
        f"this key is not good for {named}; it may use black-forest-labs/flux-dev, deployments/acme/fox"
    )


def test_a_long_scope_is_cut_short():
    with pytest.raises(PermissionDenied, match=r"a/m00, a/m01, .*a/m09 and 90 more"):
        check_scope({f"a/m{number:02}" for number in range(100)}, ModelRef.parse("b/other"))


# --- which paths ---

LEASES = "/global-semaphores/{semaphore_id}/leases"


@pytest.mark.parametrize(
    ("routes", "asked"),
    [
        ([], "/anything"),
        (["/generate"], "/generate"),
        (["/generate", "/global-semaphores"], "/global-semaphores"),
        (["/global-semaphores"], LEASES),
    ],
)
def test_paths_of_the_key_and_what_is_under_them_may_be_used(routes: list[str], asked: str):
    check_route(routes, asked)


@pytest.mark.parametrize(
    ("routes", "asked"),
    [(["/generate"], "/generate-batch"), (["/generate-batch"], "/generate"), (ROUTES, "/")],
)
def test_other_paths_are_refused_with_what_the_key_may_use(routes: list[str], asked: str):
    with pytest.raises(PermissionDenied) as raised:
        check_route(routes, asked)
    assert raised.value.detail == f"this key is not good for {asked}; it may use {', '.join(routes)}"


# --- names ---


def test_an_unknown_name_is_quoted_in_part():
    error = unknown_key("x" * 10_000)
    assert len(str(error)) < 250
    assert error.hint
