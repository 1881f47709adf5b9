"""What the tests ask of `replicate` 2.x, the beta client for Python."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import replicate
from replicate import AsyncReplicate, Replicate


def _client(to: dict[str, Any], **options: Any) -> Replicate:
    client = Replicate(bearer_token=to["token"], base_url=to["url"], max_retries=0, **options)
    client.poll_interval = 0.05
    return client


def _shown(prediction: Any) -> dict[str, Any]:
    return prediction.model_dump(mode="json")


def _addresses(output: Any) -> list[str]:
    found = output if isinstance(output, list) else [output]
    return [getattr(each, "url", str(each)) for each in found]


def _owner_name(model: str) -> dict[str, str]:
    owner, _, name = model.partition("/")
    return {"model_owner": owner, "model_name": name}


def version(to: dict[str, Any]) -> str:
    return replicate.__version__


def run(to: dict[str, Any], ref: str, input: dict[str, Any], **options: Any) -> list[str]:
    return _addresses(_client(to).run(ref, input=input, **options))


def run_impatiently(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[str]:
    """Give up the create after a while, and send it a second time, as it does without being told to."""
    client = Replicate(bearer_token=to["token"], base_url=to["url"], max_retries=1, timeout=1.5)
    return _addresses(client.run(ref, input=input))


def run_async(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[str]:
    client = AsyncReplicate(bearer_token=to["token"], base_url=to["url"], max_retries=0)
    return _addresses(asyncio.run(client.run(ref, input=input)))


def run_and_read(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[int]:
    return [len(each.read()) for each in _client(to).run(ref, input=input)]


def create(
    to: dict[str, Any],
    model: str,
    input: dict[str, Any],
    headers: dict[str, str] | None = None,
    **options: Any,
) -> Any:
    return _shown(
        _client(to).predictions.create(version=model, input=input, extra_headers=headers, **options)
    )


def create_and_wait(to: dict[str, Any], model: str, input: dict[str, Any], wait: int | bool = True) -> Any:
    prefer = "wait" if wait is True else f"wait={wait}"
    return _shown(_client(to).models.predictions.create(**_owner_name(model), input=input, prefer=prefer))


def create_by_version(to: dict[str, Any], version: str, input: dict[str, Any]) -> Any:
    return _shown(_client(to).predictions.create(version=version, input=input, prefer="wait"))


def create_by_deployment(to: dict[str, Any], deployment: str, input: dict[str, Any]) -> Any:
    owner, _, name = deployment.partition("/")
    return _shown(
        _client(to).deployments.predictions.create(
            deployment_owner=owner, deployment_name=name, input=input, prefer="wait"
        )
    )


def get(to: dict[str, Any], id: str) -> Any:
    return _shown(_client(to).predictions.get(prediction_id=id))


def wait(to: dict[str, Any], id: str) -> Any:
    return _shown(_client(to).predictions.wait(id))


def cancel(to: dict[str, Any], id: str) -> Any:
    return _shown(_client(to).predictions.cancel(prediction_id=id))


def pages(to: dict[str, Any]) -> list[list[str]]:
    found = _client(to).predictions.list()
    return [[each.id for each in page.results] for page in found.iter_pages()]


def files(to: dict[str, Any], text: str) -> dict[str, Any]:
    client = _client(to)
    made = client.files.create(
        content=("note.txt", text.encode(), "text/plain"),
        metadata={"of": "a test"},
        filename="note.txt",
        type="text/plain",
    )
    found = client.files.get(file_id=made.id)
    listed = [each.id for each in client.files.list()]
    client.files.delete(file_id=made.id)
    return {"made": _shown(made), "found": _shown(found), "listed": listed, "deleted": True}


def keep_file(to: dict[str, Any], text: str) -> str:
    return _client(to).files.create(content=("note.txt", text.encode(), "text/plain")).id


def get_file(to: dict[str, Any], id: str) -> Any:
    return _shown(_client(to).files.get(file_id=id))


def download(to: dict[str, Any], id: str, owner: str, expiry: int, signature: str) -> str:
    return (
        _client(to)
        .files.download(file_id=id, owner=owner, expiry=expiry, signature=signature)
        .read()
        .decode()
    )


def run_with_file(to: dict[str, Any], ref: str, name: str, path: str, input: dict[str, Any]) -> list[str]:
    with Path(path).open("rb") as opened:
        return _addresses(_client(to).run(ref, input={**input, name: opened}))


def stream(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[list[str]]:
    # It goes by the environment alone, whatever its client was given.
    os.environ.update(REPLICATE_API_TOKEN=to["token"], REPLICATE_BASE_URL=to["url"])
    return [["output", str(each)] for each in _client(to).stream(ref, input=input)]


def many(to: dict[str, Any], ref: str, inputs: list[dict[str, Any]]) -> list[list[str]]:
    limits = httpx.Limits(max_connections=len(inputs))
    client = _client(to, timeout=60, http_client=httpx.Client(limits=limits, timeout=60))
    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(lambda each: _addresses(client.run(ref, input=each)), inputs))


def models(to: dict[str, Any], model: str) -> dict[str, Any]:
    client = _client(to)
    found = client.models.get(**_owner_name(model))
    return {
        "name": f"{found.owner}/{found.name}",
        "listed": [f"{each.owner}/{each.name}" for each in client.models.list()],
        "schema": found.latest_version.openapi_schema,
        "versions": [each.id for each in client.models.versions.list(**_owner_name(model))],
    }


def search(to: dict[str, Any], words: str) -> list[str]:
    return [f"{each.owner}/{each.name}" for each in _client(to).models.search(body=words)]


def account(to: dict[str, Any]) -> Any:
    return _shown(_client(to).account.get())


def hardware(to: dict[str, Any]) -> list[str]:
    return [each.sku for each in _client(to).hardware.list()]


def collections(to: dict[str, Any]) -> list[str]:
    return [each.slug for each in _client(to).collections.list()]


def webhook_secret(to: dict[str, Any]) -> str:
    return _client(to).webhooks.default.secret.get().key
