"""What the tests ask of `replicate` 1.x, the stable client for Python."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import replicate
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret


def _client(to: dict[str, Any], **options: Any) -> replicate.Client:
    client = replicate.Client(api_token=to["token"], base_url=to["url"], **options)
    client.poll_interval = 0.05
    return client


def _shown(prediction: Any) -> dict[str, Any]:
    return {
        name: getattr(prediction, name)
        for name in (
            "id",
            "model",
            "version",
            "status",
            "input",
            "output",
            "error",
            "logs",
            "metrics",
            "urls",
        )
    }


def _addresses(output: Any) -> list[str]:
    return [str(each) for each in (output if isinstance(output, list) else [output])]


def version(to: dict[str, Any]) -> str:
    return metadata.version("replicate")


def run(to: dict[str, Any], ref: str, input: dict[str, Any], **options: Any) -> list[str]:
    return _addresses(_client(to).run(ref, input=input, **options))


def run_async(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[str]:
    return _addresses(asyncio.run(_client(to).async_run(ref, input=input)))


def run_and_read(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[int]:
    """How many bytes each picture has, read by the client's own `FileOutput`."""
    return [len(each.read()) for each in _client(to).run(ref, input=input)]


def create(
    to: dict[str, Any],
    model: str,
    input: dict[str, Any],
    headers: dict[str, str] | None = None,
    **options: Any,
) -> Any:
    client = _client(to, headers=headers) if headers else _client(to)
    return _shown(client.predictions.create(model=model, input=input, **options))


def create_and_wait(to: dict[str, Any], model: str, input: dict[str, Any], wait: int | bool = True) -> Any:
    return _shown(_client(to).models.predictions.create(model, input, wait=wait))


def create_by_version(to: dict[str, Any], version: str, input: dict[str, Any]) -> Any:
    return _shown(_client(to).predictions.create(version=version, input=input, wait=True))


def create_by_deployment(to: dict[str, Any], deployment: str, input: dict[str, Any]) -> Any:
    return _shown(_client(to).deployments.predictions.create(deployment, input=input, wait=True))


def get(to: dict[str, Any], id: str) -> Any:
    return _shown(_client(to).predictions.get(id))


def wait(to: dict[str, Any], id: str) -> Any:
    prediction = _client(to).predictions.get(id)
    prediction.wait()
    return _shown(prediction)


def cancel(to: dict[str, Any], id: str) -> Any:
    return _shown(_client(to).predictions.cancel(id))


def pages(to: dict[str, Any]) -> list[list[str]]:
    client = _client(to)
    found = [client.predictions.list()]
    while found[-1].next:
        found.append(client.predictions.list(found[-1].next))
    return [[each.id for each in page.results] for page in found]


def files(to: dict[str, Any], text: str) -> dict[str, Any]:
    client = _client(to)
    made = client.files.create(io.BytesIO(text.encode()), filename="note.txt", metadata={"of": "a test"})
    found = client.files.get(made.id)
    listed = [each.id for each in client.files.list()]
    deleted = client.files.delete(made.id)
    return {"made": made.dict(), "found": found.dict(), "listed": listed, "deleted": deleted}


def get_file(to: dict[str, Any], id: str) -> Any:
    return _client(to).files.get(id).dict()


def run_with_file(to: dict[str, Any], ref: str, name: str, path: str, input: dict[str, Any]) -> list[str]:
    with Path(path).open("rb") as opened:
        return _addresses(_client(to).run(ref, input={**input, name: opened}))


def stream(to: dict[str, Any], ref: str, input: dict[str, Any]) -> list[list[str]]:
    return [[each.event.value, str(each.data)] for each in _client(to).stream(ref, input=input)]


def many(to: dict[str, Any], ref: str, inputs: list[dict[str, Any]]) -> list[list[str]]:
    client = _client(to, timeout=60)
    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(lambda each: _addresses(client.run(ref, input=each)), inputs))


def models(to: dict[str, Any], model: str) -> dict[str, Any]:
    client = _client(to)
    found = client.models.get(model)
    return {
        "name": f"{found.owner}/{found.name}",
        "listed": [f"{each.owner}/{each.name}" for each in client.models.list()],
        "schema": found.latest_version.openapi_schema,
        "versions": [each.id for each in found.versions.list()],
    }


def search(to: dict[str, Any], words: str) -> list[str]:
    return [f"{each.owner}/{each.name}" for each in _client(to).models.search(words).results]


def account(to: dict[str, Any]) -> Any:
    return _client(to).accounts.current().dict()


def hardware(to: dict[str, Any]) -> list[str]:
    return [each.sku for each in _client(to).hardware.list()]


def collections(to: dict[str, Any]) -> list[str]:
    return [each.slug for each in _client(to).collections.list()]


def webhook_is_valid(to: dict[str, Any], headers: dict[str, str], body: str) -> bool:
    secret: WebhookSigningSecret = _client(to).webhooks.default.secret()
    try:
        Webhooks.validate(headers=headers, body=body, secret=secret, tolerance=60)
    except InvalidSignatureError:
        return False
    return True
