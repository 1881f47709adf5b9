"""Both ways in which clients are given an address, and everything that lets in."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from between import Between
from pairs import Pair, target_of
from processes import OTHER_TOKEN, TOKEN, Service
from worker_clients import Client, Raised, Target

SCHNELL = "black-forest-labs/flux-schnell"
FOX = {"prompt": "a red fox in the snow"}

GATEWAY = pytest.mark.xdist_group("clients gateway")


@pytest.fixture
def gateway(pairs: dict[str, Pair]) -> Service:
    pairs["gateway"].seen.passed.clear()
    return pairs["gateway"].service


@pytest.fixture
def between_it(pairs: dict[str, Pair], gateway: Service) -> Between:
    return pairs["gateway"].seen


@GATEWAY
def test_the_other_convention_of_the_base_url_works_too(
    client: Client, gateway: Service, between_it: Between
) -> None:
    """1.x adds `/v1` to what it is given, the others do not; both read `REPLICATE_BASE_URL`."""
    wrong = Target(gateway.url + ("/v1" if client.name == "replicate-1" else ""), gateway.token)
    (found,) = client.step("run", wrong, ref=SCHNELL, input=FOX)
    assert found
    made = client.step("create", wrong, model=SCHNELL, input=FOX)
    assert made["urls"]["get"] == f"{gateway.url}/v1/predictions/{made['id']}"
    assert client.step("get", wrong, id=made["id"])["id"] == made["id"]
    assert client.step("wait", wrong, id=made["id"])["status"] == "succeeded"
    assert client.step("cancel", wrong, id=made["id"])["status"] == "succeeded"
    assert made["id"] in client.step("pages", wrong)[0]
    assert client.step("models", wrong, model=SCHNELL)["name"] == SCHNELL
    assert client.step("account", wrong)["username"]
    assert client.step("files", wrong, text="a note")["deleted"]
    prefix = "/v1/v1/" if client.name == "replicate-1" else "/"
    assert between_it.passed[0].path.startswith(f"{prefix}models/{SCHNELL}/predictions")
    assert between_it.complaints() == []


@GATEWAY
def test_a_key_of_the_gateway(client: Client, gateway: Service) -> None:
    made = gateway.ask("POST", "/keys", {"name": f"clients-{uuid.uuid4().hex[:8]}"})
    assert made.status == 201, made.body
    mine = target_of(client, gateway, token=made.json()["key"])
    (found,) = client.step("run", mine, ref=SCHNELL, input=FOX)
    assert found
    others = client.step("create", target_of(client, gateway), model=SCHNELL, input=FOX)
    with pytest.raises(Raised) as refused:
        client.step("get", mine, id=others["id"])
    assert refused.value.status == 404
    assert others["id"] not in [one for page in client.step("pages", mine) for one in page]


@GATEWAY
def test_a_token_of_replicates_is_the_callers_own_account(client: Client, gateway: Service) -> None:
    mine = target_of(client, gateway, token=OTHER_TOKEN)
    (found,) = client.step("run", mine, ref=SCHNELL, input=FOX)
    assert found
    made = client.step("create", mine, model=SCHNELL, input=FOX)
    assert client.step("wait", mine, id=made["id"])["status"] == "succeeded"
    theirs = {
        entry["authorization"]
        for entry in gateway.emulated.journal(operation="models.predictions.create")[-2:]
    } | {entry["authorization"] for entry in gateway.emulated.journal(operation="predictions.create")[-2:]}
    assert len(theirs) >= 1
    assert (
        client.step("account", mine)["username"]
        != client.step("account", target_of(client, gateway))["username"]
    )


@GATEWAY
def test_without_a_good_token_nobody_comes_in(client: Client, gateway: Service) -> None:
    with pytest.raises(Raised) as refused:
        client.step("run", target_of(client, gateway, token="imk_nobody_knows_this"), ref=SCHNELL, input=FOX)
    assert refused.value.status == 401


@pytest.mark.xdist_group("clients direct")
def test_the_emulator_wants_a_token_too(client: Client, pairs: dict[str, Pair]) -> None:
    target = replace(target_of(client, pairs["direct"].service), token="invalid")
    with pytest.raises(Raised) as refused:
        client.step("run", target, ref=SCHNELL, input=FOX)
    assert refused.value.status == 401
    assert TOKEN not in str(refused.value)
