"""How models are named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.model_ref import ModelRef
from imagen.errors import InvalidModelRef

VERSION = "c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("black-forest-labs/flux-schnell", ModelRef("black-forest-labs", "flux-schnell")),
        ("black-forest-labs/flux-1.1-pro", ModelRef("black-forest-labs", "flux-1.1-pro")),
        (" a/b\n", ModelRef("a", "b")),
        (f"stability-ai/sdxl:{VERSION}", ModelRef("stability-ai", "sdxl", VERSION)),
        ("owner/name:v1.2_b-3", ModelRef("owner", "name", "v1.2_b-3")),
        ("deployments/acme/fast-flux", ModelRef("acme", "fast-flux", None, deployment=True)),
        ("deployments/acme", ModelRef("deployments", "acme")),
        ("A_1/B.2", ModelRef("A_1", "B.2")),
        (f"{'o' * 100}/{'n' * 100}", ModelRef("o" * 100, "n" * 100)),
    ],
)
def test_refs_that_are_understood(text: str, ref: ModelRef):
    assert ModelRef.parse(text) == ref
    assert ModelRef.parse(str(ref)) == ref
    assert ref.base == f"{ref.owner}/{ref.name}"


def test_a_version_alone_is_of_a_model_that_only_the_service_knows():
    ref = ModelRef.parse(f" {VERSION} ")
    assert (ref.nameless, ref.version, ref.base, str(ref)) == (True, VERSION, VERSION, VERSION)
    assert ModelRef.parse(str(ref)) == ref
    assert not ModelRef.parse(f"a/b:{VERSION}").nameless
    for text in (VERSION[1:], VERSION.upper(), f":{VERSION}"):
        with pytest.raises(InvalidModelRef):
            ModelRef.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flux-schnell",
        "/flux",
        "flux/",
        "a/b/c",
        "a//b",
        "a/b:",
        ":v",
        "a/b:c:d",
        "a b/c",
        "a/b c",
        "../etc",
        "a/..",
        "a..b/c",
        "a/b:..",
        "-a/b",
        "a/b-",
        "a/.b",
        "a/b?x=1",
        "a/b#c",
        "a/b%2f",
        "ä/b",
        "a/b\0",
        "a/b\nc",
        "https://replicate.com/a/b",
        f"{'o' * 101}/n",
        f"a/b:{'v' * 129}",
        "deployments/a/b:v",
        "\uff41/b",
    ],
)
def test_refs_that_are_refused_with_the_form_that_is_wanted(text: str):
    with pytest.raises(InvalidModelRef, match="must be of the form owner/name or owner/name:version") as told:
        ModelRef.parse(text)
    assert told.value.hint


def test_a_very_long_ref_is_not_repeated_whole():
    with pytest.raises(InvalidModelRef) as told:
        ModelRef.parse("x" * 10_000)
    assert len(str(told.value)) < 400


part = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,20}[A-Za-z0-9])?", fullmatch=True)


@given(part, part, st.none() | st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_every_ref_reads_back(owner: str, name: str, version: str | None):
    ref = ModelRef(owner, name, version)
    assert ModelRef.parse(str(ref)) == ref


@given(st.text(st.sampled_from("ab/:.-_ é\n%?#")))
def test_any_text_is_a_ref_that_reads_back_or_refused(text: str):
    try:
        ref = ModelRef.parse(text)
    except InvalidModelRef:
        return
    assert str(ref) == text.strip()
    assert set(str(ref)) <= set("ab/:.-_")
