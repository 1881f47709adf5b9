"""Replicate's own clients against the emulator, and unchanged against the gateway: whatever works there works here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from between import Between
from hooks import receiving
from http_calls import call
from pairs import target_of
from PIL import Image
from processes import Service
from worker_clients import Client, Raised, Target

import replicate_document

SCHNELL = "black-forest-labs/flux-schnell"
LLAMA = "meta/meta-llama-3-8b-instruct"
PRO = "black-forest-labs/flux-1.1-pro"
SDXL = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"
FOX = {"prompt": "a red fox in the snow"}
DONE = {"succeeded", "failed", "canceled"}


def with_fault(*faults: str, prompt: str = "a red fox") -> dict[str, str]:
    """An input whose prompt tells the emulator what shall go wrong."""
    return {"prompt": " ".join([prompt, *(f"[fault:{fault}]" for fault in faults)])}


def is_picture(address: str) -> bool:
    answer = call("GET", address)
    return (
        answer.status == 200
        and answer.headers["content-type"].startswith("image/")
        and len(answer.body) > 100
    )


def test_run(client: Client, target: Target) -> None:
    found = client.step("run", target, ref=SCHNELL, input={**FOX, "num_outputs": 2})
    assert len(found) == 2
    assert all(map(is_picture, found))


def test_run_by_the_asynchronous_half(client: Client, target: Target) -> None:
    if client.name == "replicate-js":
        pytest.skip("all of it is asynchronous")
    (found,) = client.step("run_async", target, ref=SCHNELL, input=FOX)
    assert is_picture(found)


def test_run_of_a_model_with_one_output(client: Client, target: Target) -> None:
    (found,) = client.step("run", target, ref=PRO, input=FOX)
    assert is_picture(found)


def test_pictures_inside_the_answer_are_files_of_the_clients(client: Client, target: Target) -> None:
    """What is neither `https:` nor `data:` stays a text, so that here only the latter is a file for a client."""
    (size,) = client.step("run_and_read", target, ref=SCHNELL, input=with_fault("data_uri_output"))
    assert size > 100


def test_run_of_a_version(client: Client, target: Target) -> None:
    (found,) = client.step("run", target, ref=f"stability-ai/sdxl:{SDXL}", input=FOX)
    assert is_picture(found)


def test_run_that_polls(client: Client, target: Target) -> None:
    (found,) = client.step("run", target, ref=SCHNELL, input=FOX, wait=False)
    assert is_picture(found)


def test_create_and_wait_is_held_until_there_is_output(client: Client, target: Target) -> None:
    made = client.step("create_and_wait", target, model=SCHNELL, input=FOX)
    assert made["status"] in {"processing", "succeeded"}
    assert is_picture(made["output"][0])
    assert made["input"]["prompt"] == FOX["prompt"]
    assert made["model"] == SCHNELL


def test_create_then_get_until_it_is_done(client: Client, target: Target, service: Service) -> None:
    made = client.step("create", target, model=SCHNELL, input=FOX)
    assert made["status"] in {"starting", "processing"}
    assert made["urls"]["get"] == f"{service.url}/v1/predictions/{made['id']}"
    assert made["urls"]["cancel"] == f"{service.url}/v1/predictions/{made['id']}/cancel"
    done = client.step("wait", target, id=made["id"])
    assert done["id"] == made["id"]
    assert done["status"] == "succeeded"
    assert is_picture(done["output"][0])
    assert done["metrics"]["predict_time"] > 0
    again = client.step("get", target, id=made["id"])
    assert again == done


def test_by_version_and_by_deployment(client: Client, target: Target) -> None:
    by_version = client.step("create_by_version", target, version=SDXL, input=FOX)
    by_deployment = client.step(
        "create_by_deployment", target, deployment="emulated/flux-deployment", input=FOX
    )
    assert is_picture(by_version["output"][0])
    assert is_picture(by_deployment["output"][0])


def test_list_goes_through_all_pages(client: Client, target: Target, service: Service) -> None:
    made = [client.step("create", target, model=SCHNELL, input=FOX)["id"] for _ in range(3)]
    known = [one for page in client.step("pages", target) for one in page]
    fill(service, 101 - len(known))
    pages = client.step("pages", target)
    assert len(pages) >= 2
    assert len(pages[0]) == 100
    ids = [one for page in pages for one in page]
    assert len(ids) == len(set(ids))
    places = [ids.index(one) for one in made]
    assert places == sorted(places, reverse=True), "newest first"


def fill(service: Service, missing: int) -> None:
    """Have so many predictions more."""
    for _ in range(missing):
        answer = service.ask("POST", f"/v1/models/{SCHNELL}/predictions", {"input": FOX})
        assert answer.status in {201, 202}, answer.body


def test_cancel(client: Client, target: Target, service: Service) -> None:
    made = client.step("create", target, model=SCHNELL, input=with_fault("slow run_seconds=60"))
    canceled = client.step("cancel", target, id=made["id"])
    assert canceled["id"] == made["id"]
    assert client.step("wait", target, id=made["id"])["status"] == "canceled"
    until(lambda: service.emulated.state()["running"] == 0)


def until(holds: Callable[[], Any], *, seconds: float = 20) -> Any:
    """What it gives, once that is something."""
    ends = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found


def test_files(client: Client, target: Target, service: Service) -> None:
    found = client.step("files", target, text="a note")
    made = found["made"]
    assert found["found"]["id"] == made["id"]
    assert made["name"] == "note.txt"
    assert made["content_type"] == "text/plain"
    assert made["size"] == 6
    # The beta sends what it is given as `metadata[of]`, which is no part that the API knows.
    assert made["metadata"] == ({} if client.name == "replicate-2" else {"of": "a test"})
    assert made["checksums"]["sha256"] == hashlib.sha256(b"a note").hexdigest()
    assert made["urls"]["get"] == f"{service.url}/v1/files/{made['id']}"
    assert made["id"] in found["listed"]
    assert found["deleted"]
    with pytest.raises(Raised) as gone:
        client.step("get_file", target, id=made["id"])
    assert gone.value.status == 404


def test_download_of_a_file(clients: dict[str, Client], service: Service) -> None:
    """By a link that its owner has signed; only the beta has a method for it."""
    beta = clients["replicate-2"]
    target = target_of(beta, service)
    kept = beta.step("keep_file", target, text="a note")
    username = beta.step("account", target)["username"]
    accounts = service.emulated.state()["accounts"]
    secret = next(one["files_secret"] for one in accounts if one["username"] == username)
    expiry = int(time.time()) + 600
    signed = hmac.digest(secret.encode(), f"{username} {kept} {expiry}".encode(), "sha256")
    text = beta.step(
        "download",
        target,
        id=kept,
        owner=username,
        expiry=expiry,
        signature=base64.b64encode(signed).decode(),
    )
    assert text == "a note"
    with pytest.raises(Raised) as refused:
        beta.step("download", target, id=kept, owner=username, expiry=expiry, signature="of somebody else")
    assert refused.value.status == 404


def test_run_with_a_picture_of_the_callers_own(
    client: Client, target: Target, service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    (found,) = client.step(
        "run_with_file", target, ref="black-forest-labs/flux-dev", name="image", path=str(path), input=FOX
    )
    assert is_picture(found)


def png() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, "PNG")
    return written.getvalue()


def test_stream(client: Client, target: Target) -> None:
    events = client.step("stream", target, ref=LLAMA, input={"prompt": "Say something", "seed": 7})
    pieces = [data for event, data in events if event == "output"]
    assert len(pieces) > 3
    whole = client.step("run", target, ref=LLAMA, input={"prompt": "Say something", "seed": 7})
    assert "".join(pieces) == "".join(whole)
    if client.name != "replicate-2":  # which asks again and again instead of listening
        assert events[-1][0] == "done"


def test_a_stream_of_what_fails(client: Client, target: Target) -> None:
    with pytest.raises(Raised, match="NSFW content detected"):
        client.step("stream", target, ref=LLAMA, input=with_fault("fail preset=nsfw"))


def test_run_of_a_model_that_takes_no_prompt(client: Client, target: Target) -> None:
    source = client.step("create_and_wait", target, model=SCHNELL, input=FOX)["output"][0]
    (found,) = client.step("run", target, ref="nightmareai/real-esrgan", input={"image": source, "scale": 2})
    assert is_picture(found)


def test_failure_comes_with_the_models_own_reason(client: Client, target: Target) -> None:
    with pytest.raises(Raised, match="NSFW content detected"):
        client.step("run", target, ref=SCHNELL, input=with_fault("fail preset=nsfw"))
    made = client.step("create", target, model=SCHNELL, input=with_fault("fail preset=E005"))
    done = ended(client, target, made["id"])
    assert done["status"] == "failed"
    assert "(E005)" in done["error"]


def ended(client: Client, target: Target, prediction_id: str) -> dict[str, Any]:
    """A prediction once it has ended; 2.x and Node have a way to wait that raises when it failed."""
    found: dict[str, Any] = until(lambda: has_ended(client.step("get", target, id=prediction_id)))
    return found


def has_ended(prediction: dict[str, Any]) -> dict[str, Any] | None:
    return prediction if prediction["status"] in DONE else None


def test_wrong_input_names_the_field(client: Client, target: Target, service: Service) -> None:
    before = service.emulated.state()["purchases"]
    with pytest.raises(Raised, match=r"input\.num_outputs") as refused:
        client.step("run", target, ref=SCHNELL, input={**FOX, "num_outputs": 9})
    assert refused.value.status == 422
    assert service.emulated.state()["purchases"] == before


def test_no_such_model(client: Client, target: Target) -> None:
    with pytest.raises(Raised) as refused:
        client.step("run", target, ref="nobody/no-such-model", input=FOX)
    assert refused.value.status == 404


def test_no_such_prediction(client: Client, target: Target) -> None:
    with pytest.raises(Raised) as refused:
        client.step("get", target, id="nosuchprediction0123456789")
    assert refused.value.status == 404


def test_output_before_the_end(client: Client, target: Target) -> None:
    (found,) = client.step("run", target, ref=SCHNELL, input=with_fault("early_output seconds=3"))
    assert is_picture(found)


@pytest.mark.parametrize(
    ("faults", "wait"),
    [
        (["hold_returns_starting status=processing"], 60),
        (["slow run_seconds=2"], 1),
        (["hold_returns_starting status=processing", "slow run_seconds=2"], 1),
    ],
    ids=["told early", "slow", "slow and told early"],
)
def test_a_wait_that_ends_before_the_picture(
    client: Client, service: Service, target: Target, seen: Between, faults: list[str], wait: int
) -> None:
    """Replicate then says `processing` without output, which every client of its own takes for the end."""
    found = client.step("run", target, ref=SCHNELL, input=with_fault(*faults), wait=wait)
    if service.is_gateway:
        assert is_picture(found[0])
        assert seen.passed[0].headers.get("x-imagen-adapted") in {None, "status=processing->starting"}
    else:
        assert found in (["None"], ["null"])


def test_a_wait_that_ends_before_the_start(client: Client, target: Target) -> None:
    prompt = with_fault("slow queue_seconds=2 run_seconds=0.1")
    (found,) = client.step("run", target, ref=SCHNELL, input=prompt, wait=1)
    assert is_picture(found)


def test_a_deadline_before_the_start(client: Client, service: Service, target: Target, seen: Between) -> None:
    """Replicate then says `aborted`, which none of its clients knows: one crashes, the others ask for ever."""
    if not service.is_gateway:
        pytest.skip("what they do then without a gateway is to hang")
    headers = {"Cancel-After": "5s"}
    made = client.step("create", target, model=SCHNELL, input=with_fault("never_starts"), headers=headers)
    done = ended(client, target, made["id"])
    assert done["status"] == "canceled"
    adapted = [one.headers.get("x-imagen-adapted") for one in seen.passed if one.method == "GET"]
    assert "status=aborted->canceled" in (adapted[-1] or "")
    exact = call(
        "GET",
        made["urls"]["get"],
        headers={"Authorization": f"Bearer {service.token}", "X-Imagen-Exact": "1"},
    )
    assert exact.json()["status"] == "aborted"
    assert "x-imagen-adapted" not in exact.headers


def test_webhooks_are_signed_as_the_client_checks_it(
    client: Client, service: Service, target: Target
) -> None:
    with receiving() as hooks:
        if not service.is_gateway:
            service.emulated.control("POST", "mode", {"webhooks_via": hooks.url})
        address = hooks.url if service.is_gateway else "https://hooks.example"
        made = client.step(
            "create", target, model=SCHNELL, input=FOX,
            webhook=f"{address}/of/mine?a=b", webhook_events_filter=["start", "completed"],
        )  # fmt: skip
        first, last = hooks.next(), hooks.next()
        if not service.is_gateway:
            service.emulated.control("POST", "mode", {"webhooks_via": None})
    told = [json.loads(one.body) for one in (first, last)]
    assert [one["id"] for one in told] == [made["id"]] * 2
    assert told[0]["status"] in {"starting", "processing"}
    assert told[1]["status"] == "succeeded"
    assert is_picture(told[1]["output"][0])
    assert told[1]["urls"]["get"].endswith(f"/v1/predictions/{made['id']}")
    if client.name != "replicate-2":  # it has no way to check
        assert client.step("webhook_is_valid", target, headers=last.headers, body=last.body)
        forged = last.body.replace("succeeded", "failed")
        assert client.step("webhook_is_valid", target, headers=last.headers, body=forged) is False


def test_what_a_client_sends_again_is_bought_once(clients: dict[str, Client], service: Service) -> None:
    beta = clients["replicate-2"]
    target, before = target_of(beta, service), service.emulated.state()["purchases"]
    slow = with_fault("slow run_seconds=2.3", prompt=f"a fox at {time.time()}")
    if service.is_gateway:
        (found,) = beta.step("run_impatiently", target, ref=SCHNELL, input=slow)
        assert is_picture(found)
        assert service.emulated.state()["purchases"] == before + 1
    else:
        with pytest.raises(Raised, match="timed out"):
            beta.step("run_impatiently", target, ref=SCHNELL, input=slow)
        assert service.emulated.state()["purchases"] == before + 2


def test_models(client: Client, target: Target) -> None:
    found = client.step("models", target, model=SCHNELL)
    assert found["name"] == SCHNELL
    assert SCHNELL in found["listed"]
    assert "num_outputs" in found["schema"]["components"]["schemas"]["Input"]["properties"]
    assert re.fullmatch("[0-9a-f]{64}", found["versions"][0])


def test_what_else_there_is(client: Client, target: Target) -> None:
    assert "cpu" in client.step("hardware", target)
    assert client.step("collections", target)
    assert SCHNELL in client.step("search", target, words="flux-schnell")


def test_account(client: Client, target: Target) -> None:
    assert client.step("account", target)["username"]


def test_eighty_at_once(client: Client, target: Target, service: Service) -> None:
    inputs = [with_fault("slow run_seconds=1.5", prompt=f"fox {number}") for number in range(80)]
    before = service.emulated.state()["purchases"]
    found = client.step("many", target, ref=SCHNELL, inputs=inputs)
    assert len({address for addresses in found for address in addresses}) == 80
    state = service.emulated.state()
    assert state["purchases"] == before + 80
    if service.is_gateway:
        assert 40 < state["max_running"] <= 60


def test_who_stands_between_finds_fault(service: Service, seen: Between) -> None:
    if replicate_document.find_document() is None:
        pytest.skip(replicate_document.MISSING)
    assert service.ask("GET", "/v1/predictions").status == 200
    (passed,) = seen.passed
    assert passed.complaints == []
    spoiled = passed.body.replace(b'"previous"', b'"before"').replace(b'"results":[', b'"results":[5,')
    found = replicate_document.complaints(
        method="get", template="/predictions", status=200, kind="application/json", raw=spoiled
    )
    assert found
    assert replicate_document.complaints(
        method="get", template="/predictions", status=500, kind="application/json", raw=b"{}"
    ) == ["an error 500 of media type 'application/json', not application/problem+json"]
