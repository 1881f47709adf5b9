"""`tier: preview`, promotion and presets over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, RunningGateway, running_gateway

from imagen.client import AsyncClient
from imagen.domain.events import LeftOut
from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.anyio
PRESETS = "presets:\n  poster:\n    model: flux-dev\n    aspect_ratio: 16:9\n    guidance: 2.5\n"


def bought(emulator: EmulatorThread) -> list[tuple[str, dict[str, Any]]]:
    entries = emulator.journal.entries(operation="predictions.create")
    return [
        (entry.path.removesuffix("/predictions").rpartition("/")[2], entry.body["input"]) for entry in entries
    ]


async def promote(
    gateway: RunningGateway, prediction_id: str, *, headers: dict[str, str] = ADMIN, **body: Any
) -> Any:
    return await gateway.request("POST", f"/predictions/{prediction_id}/promote", json=body, headers=headers)


async def key(gateway: RunningGateway, name: str) -> dict[str, str]:
    made = await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN)
    return {"X-API-Key": made.json()["key"]}


async def test_previews_and_their_final(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        previews = [
            (await gateway.generate(tier="preview", draft="foxes", seed=seed, aspect_ratio="16:9", guidance=2.5)).json()
            for seed in (5, 6)
        ]  # fmt: skip
        assert [one["model"] for one in previews] == ["black-forest-labs/flux-schnell"] * 2
        assert [one["model_name"] for one in previews] == ["flux-dev"] * 2
        assert [one["seed"] for one in previews] == [5, 6]
        assert {one["draft"] for one in previews} == {"foxes"}
        assert [one["generated_files"][0]["filename"][-4:] for one in previews] == [".jpg"] * 2
        parent = previews[1]["prediction_id"]

        dry = (await promote(gateway, parent, dry_run=True)).json()
        assert dry["quote"] == {"low_usd": 0.025, "likely_usd": 0.025, "high_usd": 0.025}
        assert dry["input"]["guidance"] == 2.5
        assert len(bought(replicate_emulator)) == 2

        answer = await promote(gateway, parent, wait=True)
        final = answer.json()
        assert answer.status == 200
        assert (final["tier"], final["parent"], final["draft"]) == ("final", parent, "foxes")
        assert final["saved_usd"] == pytest.approx(2 * 0.025 - 2 * 0.003 - 0.025)
        assert final["generated_files"][0]["stored_url"].startswith(gateway.url)
        name, given = bought(replicate_emulator)[-1]
        assert name == "flux-dev"
        assert (given["seed"], given["aspect_ratio"], given["guidance"]) == (6, "16:9", 2.5)

        other = (await promote(gateway, parent, wait=True, model_name="nano-banana")).json()
        assert "seed" in other["left_out"]
        assert "guidance" in other["left_out"]
        rows = (await gateway.request("GET", "/usage?raw=1", headers=ADMIN)).json()
        assert rows


async def test_it_is_taken_on_durably_and_once(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        parent = (await gateway.generate(tier="preview")).json()["prediction_id"]
        headers = {**ADMIN, "Idempotency-Key": "once"}
        first = await promote(gateway, parent, headers=headers)
        again = await promote(gateway, parent, headers=headers)
        assert (first.status, again.status) == (202, 202)
        assert first.json() == again.json()
        assert first.json()["parent"] == parent
        assert first.json()["saved_usd"] == pytest.approx(-0.003)
        conflict = await promote(gateway, parent, headers=headers, seed=9)
        assert conflict.status == 409
        whole = await promote(gateway, parent, headers={**ADMIN, "Idempotency-Key": "waits"}, wait=True)
        same = await promote(gateway, parent, headers={**ADMIN, "Idempotency-Key": "waits"}, wait=True)
        assert whole.json()["prediction_id"] == same.json()["prediction_id"]
        state = await gateway.request("GET", f"/predictions/{first.json()['id']}", headers=ADMIN)
        assert (state.json()["tier"], state.json()["parent"]) == ("final", parent)
    assert [name for name, _ in bought(replicate_emulator)].count("flux-dev") == 2


async def test_only_its_owner_and_the_admin_promote_a_preview(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        mine, yours = await key(gateway, "mine"), await key(gateway, "yours")
        parent = (await gateway.generate(headers=mine, tier="preview")).json()["prediction_id"]
        assert (await promote(gateway, parent, headers=yours)).status == 404
        assert (await promote(gateway, parent[:12], headers=mine)).status == 404
        assert (await promote(gateway, parent, headers={})).status in {401, 404}
        assert len(bought(replicate_emulator)) == 1
        assert (await promote(gateway, parent, headers=mine, wait=True)).status == 200
        assert (await promote(gateway, parent, wait=True)).json()["saved_usd"] is not None


async def test_whose_a_prediction_is_both_faces_judge_alike(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    def own(token: str) -> dict[str, str]:
        return {"X-Replicate-Api-Token": token}

    async def told(headers: dict[str, str]) -> list[tuple[int, int]]:
        """Of each prediction: what its promotion and a judgement of it are answered."""
        found = []
        for parent in made:
            final = await promote(gateway, parent, headers=headers, dry_run=True)
            verdict = await gateway.request(
                "POST", f"/predictions/{parent}/feedback", json={"verdict": "keep"}, headers=headers
            )
            found.append((final.status, verdict.status))
        return found

    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        mine, yours = await key(gateway, "mine"), await key(gateway, "yours")
        callers: list[dict[str, str]] = [mine, yours, {}, own("r8_of_one_stranger")]
        made = [
            (await gateway.generate(headers=one, tier="preview")).json()["prediction_id"] for one in callers
        ]
        for index, one in enumerate(callers):
            wanted = [(200, 200) if index == other else (404, 404) for other in range(len(callers))]
            assert await told(one) == wanted
        assert await told(own("r8_of_another")) == [(404, 404)] * 4
        assert await told(ADMIN) == [(200, 200)] * 4
    # Without a key it is whoever pays with the same account.
    async with running_gateway(
        tmp_path, replicate_emulator, REPLICATE_API_TOKEN="r8_of_somebody_else"
    ) as gateway:
        assert await told({}) == [(404, 404)] * 4


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tier": "draft"}, "tier"),
        ({"tier": "preview", "model_name": "flux-schnell"}, "makes the previews"),
        ({"tier": "preview", "gidance": 3}, "gidance"),
        ({"tier": "preview", "seed": "many"}, "seed"),
        ({"draft": "foxes"}, "draft"),
        ({"tier": "preview", "draft": "a b"}, "draft"),
        ({"preset": "pods"}, "no preset is called 'pods'"),
        ({"preset": "pod", "model_name": ""}, "the preset 'pod' names no model"),
        ({"preset": 3}, "preset"),
    ],
)
async def test_what_makes_no_sense_is_told(
    tmp_path: Path, replicate_emulator: EmulatorThread, fields: dict[str, Any], told: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await gateway.generate(**fields)
    assert answer.status == 400
    assert told in answer.json()["error"]
    assert replicate_emulator.purchases == 0


async def test_previews_and_their_final_are_quoted_together(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        wish = {"model_name": "flux-dev", "prompt": "a fox", "tier": "preview", "runs": 2, "seed": 3}

        async def quoted(**more: Any) -> Any:
            return (await gateway.request("POST", "/quote", json=wish | more, headers=ADMIN)).json()

        alone, told = await quoted(), await quoted(final=True)
        assert (alone["final"], alone["quote"]["high_usd"]) == (None, 0.006)
        assert told["final"]["model"] == "black-forest-labs/flux-dev"
        assert (told["quote"]["high_usd"], told["final"]["quote"]["high_usd"]) == (0.006, 0.025)
        assert "it belongs to tier: preview" in (await quoted(final=True, tier=None))["error"]
        assert "runs" in (await quoted(runs=0))["error"]
    assert replicate_emulator.purchases == 0


async def test_what_has_no_picture_is_not_promoted(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await promote(gateway, "pred_01kamx30000000000000000000")).status == 404
        plain = (await gateway.generate()).json()["prediction_id"]
        answer = await promote(gateway, plain)
        assert answer.status == 400
        assert "is no preview" in answer.json()["error"]
        named = await promote(gateway, plain, model_name="flux-1.1-pro", wait=True)
        assert named.json()["parent"] == plain
        assert named.json()["seed"] == bought(replicate_emulator)[0][1]["seed"]


async def test_tasks_are_chosen_from_together(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        body = {
            "model_name": "flux-1.1-pro",
            "tier": "preview",
            "tasks": [{"prompt": "a fox", "seed": seed} for seed in (1, 2, 3, 4)],
        }
        answer = (await gateway.request("POST", "/generate-batch", json=body, headers=ADMIN)).json()
        results = answer["results"]
        assert len({one["draft"] for one in results}) == 1
        final = (await promote(gateway, results[3]["prediction_id"], wait=True)).json()
    assert (final["seed"], final["saved_usd"]) == (4, pytest.approx(0.108))


async def test_presets_in_every_face(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    (tmp_path / "imagen.yaml").write_text(PRESETS)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = (await gateway.generate(preset="pod")).json()
        assert (made["preset"], made["left_out"]) == ("pod", ["negative_prompt"])
        made = (await gateway.generate(model_name=None, preset="poster", guidance=4)).json()
        name, given = bought(replicate_emulator)[-1]
        assert name == "flux-dev"
        assert (given["guidance"], given["aspect_ratio"]) == (4, "16:9")

        taken = await gateway.request(
            "POST", "/predictions", json={"prompt": "a fox", "preset": "poster"}, headers=ADMIN
        )
        assert (taken.status, taken.json()["preset"]) == (202, "poster")
        body = {
            "model_name": "flux-dev",
            "tasks": [{"prompt": "a fox", "preset": "pod"}, {"prompt": "a hare"}],
        }
        answer = (await gateway.request("POST", "/generate-batch", json=body, headers=ADMIN)).json()
        assert [one["preset"] for one in answer["results"]] == ["pod", None]
        assert answer["results"][0]["left_out"] == ["negative_prompt"]
        batch = (await gateway.request("POST", "/batches", json=body, headers=ADMIN)).json()
        items = (await gateway.request("GET", f"/batches/{batch['id']}/items", headers=ADMIN)).json()["items"]
        assert [one["preset"] for one in items] == ["pod", None]
        assert items[0]["left_out"] == ["negative_prompt"]


async def test_the_preset_wins_over_what_is_documented_for_a_model(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    (tmp_path / "imagen.yaml").write_text("presets:\n  quick:\n    steps: 20\n    guidance: 3\n")
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await gateway.generate(model_name="qwen-image", preset="quick")
        given = bought(replicate_emulator)[-1][1]
        assert (given["num_inference_steps"], given["guidance"]) == (20, 3)
        await gateway.generate(model_name="qwen-image", preset="quick", num_inference_steps=30)
        assert bought(replicate_emulator)[-1][1]["num_inference_steps"] == 30


async def test_the_library_takes_presets_and_tells_what_is_left_out(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    environ = {
        "HOME": str(tmp_path),
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
        "REPLICATE_API_TOKEN": "r8_a_token_of_the_tests",
    }
    told: list[object] = []
    async with AsyncClient(data_dir=tmp_path / "data", environ=environ) as client:
        made = await client.generate("a fox", model="flux-dev", preset="pod", on_event=told.append)
    assert made.records[0].preset == "pod"
    assert bought(replicate_emulator)[-1][1]["aspect_ratio"] == "4:3"
    (note,) = [event for event in told if isinstance(event, LeftOut)]
    assert (note.preset, note.fields) == ("pod", ("negative_prompt",))
