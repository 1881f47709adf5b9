"""The documented service, word for word: its commands run as they stand against a real `imagen serve`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_calls import Answered, call, curl

from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.xdist_group("port 5003")

ADMIN = {"X-Admin-API-Key": "your_admin_key", "Content-Type": "application/json"}

HEALTH = "curl http://localhost:5003/health"

ADMIN_TEST = r"""curl -X POST http://localhost:5003/generate \
  -H "X-Admin-API-Key: your_admin_key" \
  -H "Content-Type: application/json" \
  -d '{
    "model_name": "flux-dev",
    "prompt": "Test admin auth",
    "output_filename": "admin_test"
  }'"""

USER_TEST = r"""curl -X POST http://localhost:5003/generate \
  -H "Content-Type: application/json" \
  -d '{
    "model_name": "flux-dev",
    "prompt": "Test user auth",
    "output_filename": "user_test",
    "credentials": {
      "replicate_api_token": "user_r8_token_here"
    }
  }'"""

BATCH_TEST = r"""curl -X POST http://localhost:5003/generate-batch \
  -H "X-Admin-API-Key: your_admin_key" \
  -H "Content-Type: application/json" \
  -d '{
    "model_name": "flux-dev",
    "tasks": [
      {"prompt": "Red car", "output_filename": "red_car.jpg"},
      {"prompt": "Blue house", "output_filename": "blue_house"}
    ]
  }'"""

REGISTER_TEST = r"""curl -X POST http://localhost:5003/global-semaphores \
  -H "X-Admin-API-Key: your_admin_key" \
  -H "Content-Type: application/json" \
  -d '{
    "semaphore_id": "test-global",
    "limit": 5
  }'"""

SEMAPHORE_TEST = r"""curl -X POST http://localhost:5003/generate \
  -H "X-Admin-API-Key: your_admin_key" \
  -H "Content-Type: application/json" \
  -d '{
    "model_name": "flux-dev",
    "prompt": "Test with global semaphore",
    "external_semaphore_id": "test-global"
  }'"""


@pytest.fixture
def gateway(cli: Any, replicate_emulator: EmulatorThread) -> Iterator[str]:
    """At the documented port, or at a free one where somebody has it."""
    cli.use(replicate_emulator.url)
    cli.env["CONCURRENT_DOCKER_ADMIN_API_KEY"] = "your_admin_key"
    started = cli.start("serve", "--json")
    line = started.read_line()
    if "url" not in line:
        refused = started.stop()
        assert "5003" in refused.stderr, refused
        assert "address already in use" in refused.stderr.lower(), refused
        started = cli.start("serve", "--json", env={"FLASK_PORT": "0"})
        line = started.read_line()
    yield json.loads(line)["url"]
    done = started.stop()
    assert done.code == 0, done
    assert "Traceback" not in done.stderr


@pytest.fixture
def port(gateway: str) -> int:
    return int(gateway.rpartition(":")[2])


@pytest.fixture
def run(gateway: str, port: int) -> Callable[[str], Answered]:
    def run_one(command: str) -> Answered:
        return curl(command.replace(":5003", f":{port}"))

    return run_one


def fields(answer: Answered) -> set[str]:
    return set(answer.json())


def test_health(run: Callable[[str], Answered]) -> None:
    answer = run(HEALTH)
    shown = {
        "status": "healthy",
        "service": "replicate-concurrent-generation",
        "version": "3.0 (External Semaphore Pattern + URL-Direct-Return)",
        "supported_models": ["flux-dev", "flux-kontext-max", "qwen-image"],
    }
    assert answer.status == 200
    assert answer.json() | shown == answer.json()
    status = answer.json()["concurrency_status"]
    assert (status["concurrent_limit"], status["requests_per_minute_limit"]) == (60, 600)


def test_admin_and_user_each_on_an_account_of_their_own(
    run: Callable[[str], Answered], replicate_emulator: EmulatorThread
) -> None:
    admin = run(ADMIN_TEST).json()
    assert admin["success"] is True
    assert admin["model_name"] == "flux-dev"
    assert admin["prompt"] == "Test admin auth"
    assert admin["output_filename"] == "admin_test"
    (file,) = admin["generated_files"]
    assert file["filename"] == "admin_test.jpg"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/xezq/[\w-]+/out-0\.webp", file["url"])
    assert admin["count"] == 1
    assert admin["external_semaphore_used"] is False
    assert admin["semaphore_id"] is None
    assert call("GET", file["url"]).body[:4] == b"RIFF"
    user = run(USER_TEST).json()
    assert user["success"] is True
    assert user["generated_files"][0]["filename"] == "user_test.jpg"
    creates = [one for one in replicate_emulator.journal.entries() if one.operation.endswith("create")]
    assert len({one.authorization for one in creates}) == 2


def test_batch(run: Callable[[str], Answered]) -> None:
    answer = run(BATCH_TEST).json()
    shown = {
        "success": True,
        "model_name": "flux-dev",
        "total_tasks": 2,
        "successful_count": 2,
        "failed_count": 0,
        "failed_results": [],
        "external_semaphore_used": False,
        "semaphore_id": None,
    }
    assert answer | shown == answer
    assert [one["task_index"] for one in answer["successful_results"]] == [0, 1]
    assert answer["results"] == answer["successful_results"]
    names = [one["generated_files"][0]["filename"] for one in answer["results"]]
    assert names == ["red_car.jpg", "blue_house.jpg"]
    assert {"prompt", "output_filename", "generated_files", "count"} <= set(answer["results"][0])


def test_semaphore(run: Callable[[str], Answered], gateway: str) -> None:
    missing = run(SEMAPHORE_TEST)
    assert missing.status == 404
    assert missing.json()["error"] == "External semaphore 'test-global' not found"
    assert run(REGISTER_TEST).status == 200
    answer = run(SEMAPHORE_TEST).json()
    assert answer["external_semaphore_used"] is True
    assert answer["semaphore_id"] == "test-global"
    listed = call("GET", f"{gateway}/global-semaphores", headers=ADMIN).json()
    assert (listed["count"], listed["global_semaphores"]) == (1, ["test-global"])


def test_the_shell_s_own_curl_agrees(gateway: str, port: int) -> None:
    if shutil.which("curl") is None:
        assert curl(HEALTH.replace(":5003", f":{port}")).status == 200
        return
    done = subprocess.run(
        ["bash", "-c", ADMIN_TEST.replace(":5003", f":{port}")],
        capture_output=True, check=True, encoding="utf-8", timeout=40,
    )  # fmt: skip
    assert json.loads(done.stdout)["success"] is True


def test_the_documented_examples(gateway: str) -> None:
    def ask(path: str, **body: Any) -> Any:
        answer = call("POST", gateway + path, body=body, headers=ADMIN)
        assert answer.status == 200, answer.json()
        return answer.json()

    ask("/global-semaphores", semaphore_id="my-global-semaphore", limit=20)
    single = ask(
        "/generate",
        model_name="flux-dev",
        prompt="A serene mountain landscape at sunset",
        output_filename="mountain_sunset",
        aspect_ratio="16:9",
        external_semaphore_id="my-global-semaphore",
    )
    assert single["generated_files"][0]["filename"] == "mountain_sunset.jpg"
    assert single["semaphore_id"] == "my-global-semaphore"
    batch = ask(
        "/generate-batch",
        model_name="flux-dev",
        tasks=[
            {"prompt": "A red sports car", "output_filename": "red_car.jpg", "aspect_ratio": "16:9"},
            {"prompt": "A blue ocean wave", "output_filename": "blue_wave", "num_outputs": 2},
            {"prompt": "A green forest path", "output_filename": "forest_path.png", "guidance": 5.0},
        ],
        external_semaphore_id="my-global-semaphore",
    )
    names = [[file["filename"] for file in one["generated_files"]] for one in batch["successful_results"]]
    assert names == [["red_car.jpg"], ["blue_wave_1.jpg", "blue_wave_2.jpg"], ["forest_path.png"]]
    assert [one["count"] for one in batch["results"]] == [1, 2, 1]
    legacy = ask(
        "/generate-batch",
        model_name="flux-dev",
        prompts=["A red car", "A blue house"],
        custom_filenames=["red_car", "blue_house"],
    )
    assert [one["output_filename"] for one in legacy["results"]] == ["red_car", "blue_house"]
    several = ask(
        "/generate",
        model_name="flux-dev",
        prompt="Generate variations",
        output_filename="variations",
        num_outputs=4,
    )
    assert [file["filename"] for file in several["generated_files"]] == [
        f"variations_{number}.jpg" for number in (1, 2, 3, 4)
    ]


FLUX_DEV = {
    "model_name": "flux-dev", "prompt": "Required text prompt", "output_filename": "my_image", "aspect_ratio": "16:9",
    "megapixels": "1", "output_format": "webp", "output_quality": 80, "seed": 42, "guidance": 3.0,
    "num_inference_steps": 28, "prompt_strength": 0.8, "num_outputs": 1, "go_fast": True,
    "disable_safety_checker": False,
}  # fmt: skip
KONTEXT = {
    "model_name": "flux-kontext-max", "prompt": "Transform this image...", "output_filename": "edited_image",
    "input_image": "https://example.com/image.jpg", "aspect_ratio": "match_input_image", "output_format": "png",
    "seed": 42, "safety_tolerance": 2, "prompt_upsampling": False,
}  # fmt: skip
QWEN = {
    "model_name": "qwen-image", "prompt": "A beautiful landscape", "output_filename": "qwen_artwork",
    "aspect_ratio": "16:9", "output_format": "webp", "output_quality": 80, "image_size": "optimize_for_quality",
    "guidance": 4.0, "num_inference_steps": 50, "lora_scale": 1.0, "enhance_prompt": False, "negative_prompt": "",
    "go_fast": True,
}  # fmt: skip


def test_every_documented_parameter_is_sent_as_it_is(
    gateway: str, replicate_emulator: EmulatorThread
) -> None:
    for wish in (FLUX_DEV, KONTEXT, QWEN):
        answer = call("POST", f"{gateway}/generate", body=wish, headers=ADMIN)
        assert answer.status == 200, answer.json()
        own = {name: value for name, value in wish.items() if name not in {"model_name", "output_filename"}}
        sent = call(
            "GET",
            f"{replicate_emulator.url}/v1/predictions/{answer.json()['replicate_id']}",
            headers={"Authorization": "Bearer r8_acceptance_test_token"},
        ).json()["input"]
        assert own.items() <= sent.items()


@pytest.mark.parametrize(
    ("wish", "field", "allowed"),
    [
        (FLUX_DEV | {"guidance": 10.5}, "guidance", "from 0 to 10"),
        (FLUX_DEV | {"num_inference_steps": 0}, "num_inference_steps", "from 1 to 50"),
        (FLUX_DEV | {"prompt_strength": 2}, "prompt_strength", "from 0 to 1"),
        (FLUX_DEV | {"num_outputs": 5}, "num_outputs", "from 1 to 4"),
        (FLUX_DEV | {"output_quality": 101}, "output_quality", "from 0 to 100"),
        (FLUX_DEV | {"megapixels": "2"}, "megapixels", "1, 0.25"),
        (FLUX_DEV | {"aspect_ratio": "7:5"}, "aspect_ratio", "16:9"),
        (FLUX_DEV | {"output_format": "bmp"}, "output_format", "webp, jpg, png"),
        (FLUX_DEV | {"go_fast": "yes"}, "go_fast", "true or false"),
        (FLUX_DEV | {"seed": "many"}, "seed", "a whole number"),
        (FLUX_DEV | {"turbo": True}, "turbo", "no such parameter"),
        (KONTEXT | {"safety_tolerance": 7}, "safety_tolerance", "from 0 to 6"),
        (KONTEXT | {"output_format": "webp"}, "output_format", "jpg, png"),
        (KONTEXT | {"input_image": "/etc/passwd"}, "input_image", "https"),
        (KONTEXT | {"input_image": None}, "input_image", "required"),
        (QWEN | {"lora_scale": 2.5}, "lora_scale", "from 0 to 2"),
        (QWEN | {"num_inference_steps": 101}, "num_inference_steps", "from 1 to 50"),
        (QWEN | {"image_size": "huge"}, "image_size", "optimize_for_quality, optimize_for_speed"),
        (FLUX_DEV | {"output_filename": "../../etc/cron"}, "output_filename", "without /"),
        (FLUX_DEV | {"max_cost": "cheap"}, "max_cost", "amount"),
        (FLUX_DEV | {"timeout": -1}, "timeout", "above 0"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_is_bought(
    shared_gateway: tuple[str, EmulatorThread], wish: dict[str, Any], field: str, allowed: str
) -> None:
    gateway, emulator = shared_gateway
    answer = call("POST", f"{gateway}/generate", body=wish, headers=ADMIN)
    assert answer.status == 400, answer.json()
    (problem,) = answer.json()["problems"]
    assert problem["field"] == field
    assert allowed in problem["message"]
    assert emulator.purchases == 0


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "text"),
    [
        ("/generate", {"model_name": "invalid-model", "prompt": "x"}, ADMIN, 400, "Model 'invalid-model' not supported"),
        ("/generate", {"model_name": "flux-dev"}, ADMIN, 400, "Missing required field: prompt"),
        ("/generate", {"prompt": "x"}, ADMIN, 400, "Missing required field: model_name"),
        ("/generate", {"model_name": "flux-dev", "prompt": "x", "external_semaphore_id": "nonexistent-semaphore"}, ADMIN, 404,
         "External semaphore 'nonexistent-semaphore' not found"),
        ("/generate-batch", {"model_name": "flux-dev", "tasks": [{"output_filename": "a"}]}, ADMIN, 400,
         "Task 0 missing required field: prompt"),
        ("/generate-batch", {"model_name": "flux-dev"}, ADMIN, 400, "Missing required field: tasks"),
        ("/generate", {"model_name": "flux-dev", "prompt": "x"}, {"X-Admin-API-Key": "wrong"}, 401, "Invalid admin API key"),
        ("/global-semaphores", {"semaphore_id": "a", "limit": 1}, {}, 401,
         "Authentication failed. Provide 'X-Admin-API-Key' in headers or complete credentials in payload."),
        ("/generate", {"model_name": "flux-dev", "prompt": "x", "credentials": {"replicate_api_token": "not a token"}}, {}, 401,
         "Invalid Replicate API token in credentials"),
        ("/generate", {"model_name": "flux-dev", "prompt": "x", "credentials": {}}, {}, 401,
         "Authentication failed. Provide 'X-Admin-API-Key' in headers or complete credentials in payload."),
    ],
)  # fmt: skip
def test_error_texts(
    shared_gateway: tuple[str, EmulatorThread],
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
    status: int,
    text: str,
) -> None:
    gateway, emulator = shared_gateway
    answer = call("POST", gateway + path, body=body, headers=headers)
    assert (answer.status, answer.json()["error"]) == (status, text)
    assert emulator.purchases == 0
    if "invalid-model" in text:
        assert answer.json()["supported_models"] == ["flux-dev", "flux-kontext-max", "qwen-image"]


def test_a_token_that_replicate_refuses_is_the_caller_s(
    shared_gateway: tuple[str, EmulatorThread],
) -> None:
    gateway, emulator = shared_gateway
    emulator.add_fault("status", status=401, operation="predictions.create")
    wish = {"model_name": "flux-dev", "prompt": "x", "credentials": {"replicate_api_token": "r8_expired"}}
    answer = call("POST", f"{gateway}/generate", body=wish)
    assert (answer.status, answer.json()["error"]) == (401, "Invalid Replicate API token in credentials")


def test_a_wrong_task_is_refused_before_its_batch_buys(
    shared_gateway: tuple[str, EmulatorThread],
) -> None:
    gateway, emulator = shared_gateway
    tasks = [{"prompt": "good"}, {"prompt": "bad", "guidance": 99}, {"prompt": "also bad", "nonsense": 1}]
    answer = call(
        "POST", f"{gateway}/generate-batch", body={"model_name": "flux-dev", "tasks": tasks}, headers=ADMIN
    )
    assert answer.status == 400
    assert [one["field"] for one in answer.json()["problems"]] == ["tasks[1].guidance", "tasks[2].nonsense"]
    assert emulator.purchases == 0


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, EmulatorThread]]:
    """One server for all that buys nothing."""
    root = tmp_path_factory.mktemp("shared")
    with EmulatorThread() as emulator:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "IMAGEN_DATA_DIR": str(root / "data"),
            "IMAGEN_REPLICATE__API_BASE": emulator.url,
            "REPLICATE_API_TOKEN": "r8_shared",
            "CONCURRENT_DOCKER_ADMIN_API_KEY": "your_admin_key",
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "imagen", "serve", "--port", "0", "--json"],
            env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], emulator
        finally:
            process.terminate()
            process.communicate(timeout=20)
