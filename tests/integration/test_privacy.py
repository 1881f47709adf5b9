"""`imagen privacy verify`: it is content with this program, and finds what was planted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import imagen.assembly.app
import imagen.service.notices
from imagen.assembly import App
from imagen.cli.privacy_rehearsal import rehearse
from imagen.domain.canary import Canary
from imagen.domain.prediction import hash_prompt, prompt_hasher
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.service.audit import Auditor
from imagen.service.prepare import Preparation
from imagen.service.privacy import PrivacyReport, Sample, judge
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio


async def verified(tmp_path: Path, **environ: str) -> PrivacyReport:
    given = {"HOME": str(tmp_path), "IMAGEN_DATA_DIR": str(tmp_path / "data")} | environ
    return await rehearse(load_settings(environ=given, cwd=tmp_path))


def leaks(report: PrivacyReport) -> list[str]:
    return [place.place for place in report.leaks]


async def test_prompts_and_tokens_are_where_they_belong(tmp_path: Path):
    report = await verified(tmp_path, IMAGEN_PROMPT_HASH_KEY="a-key-of-the-ledger")
    assert leaks(report) == []
    assert report.keyed
    kept = {place.place for place in report.places if place.prompt}
    assert {
        "database: predictions.prompt",
        "database: predictions.input",
        "database: items.order",
        "pictures",
    } <= kept
    looked_at = {place.place: place.looked_at for place in report.places}
    for place in (
        "log", "metrics", "errors", "deliveries", "cache", "rows for sinks", "database: imagen_usage.prompt_hash",
        "database: cached.key", "database: deliveries.body", "names of other files",
    ):  # fmt: skip
        assert looked_at.get(place), place
    assert looked_at["deliveries"] >= 10
    assert looked_at["errors"] >= 20
    assert not (tmp_path / "data").exists()


async def test_a_prompt_in_the_log_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    intend = Preparation.intend

    async def telling(self: Preparation, backend: Any, request: Any, *args: Any, **more: Any) -> Any:
        logging.getLogger("imagen.planted").debug("about to make %s", request.prompt[:30])
        return await intend(self, backend, request, *args, **more)

    monkeypatch.setattr(Preparation, "intend", telling)
    assert leaks(await verified(tmp_path)) == ["log"]


async def test_a_prompt_in_an_event_is_found_there_and_in_the_outbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    item = imagen.service.notices.Notices._item

    def telling(self: Any, batch: Any, one: Any, predictions: Any) -> dict[str, Any]:
        return item(self, batch, one, predictions) | {"prompt": predictions[0].prompt if predictions else ""}

    monkeypatch.setattr(imagen.service.notices.Notices, "_item", telling)
    assert leaks(await verified(tmp_path)) == ["database: deliveries.body", "deliveries"]


async def test_a_plain_hash_in_spite_of_a_key_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imagen.assembly.app, "prompt_hasher", lambda _: hash_prompt)
    found = leaks(await verified(tmp_path, IMAGEN_PROMPT_HASH_KEY="k"))
    assert {"database: imagen_usage.prompt_hash", "rows for sinks"} <= set(found)


def test_the_command_tells_where_prompts_are_and_fails_for_a_leak(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    async def planted(_: Any) -> PrivacyReport:
        samples = [Sample("metrics", b"zzbadezz"), Sample("pictures", b"bade"), Sample("log", b"r8_x")]
        return judge(samples, prompts=[Canary.of_prompt("bade")], token=Canary.of_secret("r8_x"), keyed=False)

    monkeypatch.setattr("imagen.cli.privacy_rehearsal.rehearse", planted)
    said = invoke("privacy", "verify", fails=True)
    assert said.exit_code == 70
    assert "LEAK  log: the token" in said.stdout
    assert "LEAK  metrics: the prompt" in said.stdout
    assert "pictures  their metadata" in said.stdout
    told = json.loads(invoke("privacy", "verify", "--json", fails=True).stdout)
    assert (told["ok"], told["keyed"]) == (False, False)
    assert {place["place"] for place in told["places"] if place["leaks"]} == {"log", "metrics"}


async def test_what_an_audit_takes_over_from_others_is_hashed_with_the_key_too(
    tmp_path: Path, environ: dict[str, str], open_app: Callable[..., App]
):
    async with open_app(IMAGEN_PROMPT_HASH_KEY="k") as app:
        backend = app.backends.get("gateway")
        order = await app.gateway.prepare(
            GenerationRequest(prompt="a foreign fox", model=app.catalog.resolve("flux-schnell")),
            backend=backend,
        )
        ((intent, _),) = order.intents
        await backend.submit(intent, hold_seconds=5, secrets={})  # by a program that keeps no ledger
        auditor = Auditor(
            gateway=app.gateway, store=app.store, ledger=app.ledger, bookkeeper=app.bookkeeper, owners=app.owners,
            clock=app.clock, batches=app.batches, hash_prompt=app.hash_prompt,
        )  # fmt: skip

        async def entered() -> list[str]:
            since = app.clock.now() - timedelta(days=1)
            await auditor.run(backend, since=since, adopt_foreign=True)
            return [entry.prompt_hash for entry in await app.ledger.entries()]

        assert await until(entered) == [prompt_hasher(Secret("k"))("a foreign fox")]
