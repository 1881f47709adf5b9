"""`@ai-sdk/replicate` against the emulator, and unchanged against the gateway."""

from __future__ import annotations

from typing import Any

import pytest
from pairs import target_of
from processes import Service
from worker_clients import Client, Raised, Target

SCHNELL = "black-forest-labs/flux-schnell"


@pytest.fixture
def ai(clients: dict[str, Client]) -> Client:
    return clients["ai-sdk"]


@pytest.fixture
def target(ai: Client, service: Service) -> Target:
    return target_of(ai, service)


def generate(ai: Client, target: Target, service: Service, **wanted: Any) -> Any:
    pictures = service.emulated.delivery_url
    return ai.step(
        "generate", target, **{"model": SCHNELL, "prompt": "a red fox", "pictures": pictures, **wanted}
    )


def test_generate(ai: Client, target: Target, service: Service) -> None:
    found = generate(ai, target, service, aspectRatio="16:9", seed=7)
    assert len(found["sizes"]) == 1
    assert found["sizes"][0] > 100
    assert found["types"] == ["image/webp"]


def test_several(ai: Client, target: Target, service: Service) -> None:
    assert len(generate(ai, target, service, n=3)["sizes"]) == 3


def test_what_a_model_has_of_its_own(ai: Client, target: Target, service: Service) -> None:
    found = generate(ai, target, service, options={"output_format": "png"})
    assert found["types"] == ["image/png"]


def test_it_polls_when_the_wait_is_over(ai: Client, target: Target, service: Service) -> None:
    prompt = "a slow fox [fault:slow run_seconds=2]"
    assert generate(ai, target, service, prompt=prompt, options={"maxWaitTimeInSeconds": 1})["sizes"]


def test_failure_comes_with_the_models_own_reason(ai: Client, target: Target, service: Service) -> None:
    with pytest.raises(Raised, match="NSFW content detected"):
        generate(ai, target, service, prompt="a fox [fault:fail preset=nsfw]")


def test_wrong_input_names_the_field(ai: Client, target: Target, service: Service) -> None:
    with pytest.raises(Raised, match=r"input\.num_inference_steps") as refused:
        generate(ai, target, service, options={"num_inference_steps": 99})
    assert refused.value.status == 422


def test_pictures_inside_the_answer(ai: Client, target: Target, service: Service) -> None:
    found = generate(ai, target, service, prompt="a fox [fault:data_uri_output]", pictures=None)
    assert found["sizes"][0] > 100


def test_the_sdk_takes_no_pictures_from_this_machine(ai: Client, target: Target, service: Service) -> None:
    """Pictures that an emulator hosts beside the service are refused by the SDK, before it asks for them."""
    with pytest.raises(Raised, match=r"IP address 127\.0\.0\.1 is not allowed"):
        generate(ai, target, service, pictures=None)


def test_a_deadline_before_the_start(ai: Client, target: Target, service: Service) -> None:
    if not service.is_gateway:
        pytest.skip("the SDK takes the status `aborted` for a broken answer")
    with pytest.raises(Raised, match="Replicate image generation canceled"):
        generate(ai, target, service, prompt="a fox [fault:never_starts]", headers={"Cancel-After": "5s"})


def test_eighty_at_once(ai: Client, target: Target, service: Service) -> None:
    """One call with so many pictures: the SDK makes a request of each."""
    found = generate(
        ai, target, service, prompt="a fox [fault:slow run_seconds=1.5]", n=80, maxImagesPerCall=1
    )
    assert len(found["sizes"]) == 80
    if service.is_gateway:
        assert service.emulated.state()["max_running"] <= 60
