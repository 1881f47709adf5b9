"""What the tests ask of `openai`, the client for Python."""

from __future__ import annotations

import base64
from importlib import metadata
from pathlib import Path
from typing import Any

from openai import OpenAI


def _client(to: dict[str, Any]) -> OpenAI:
    return OpenAI(api_key=to["token"], base_url=to["url"], max_retries=0, timeout=30)


def _shown(answer: Any) -> dict[str, Any]:
    return answer.model_dump(mode="json")


def version(to: dict[str, Any]) -> str:
    return metadata.version("openai")


def generate(to: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    raw = _client(to).images.with_raw_response.generate(**wanted)
    return {
        "answer": _shown(raw.parse()),
        "headers": {name.lower(): value for name, value in raw.headers.items()},
    }


def generate_streamed(to: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """Each event, with the first bytes of its picture instead of all."""
    return [_without_picture(event) for event in _client(to).images.generate(stream=True, **wanted)]


def edit(to: dict[str, Any], paths: list[str], **wanted: Any) -> dict[str, Any]:
    pictures = [Path(path) for path in paths]
    return _shown(_client(to).images.edit(image=pictures if len(pictures) > 1 else pictures[0], **wanted))


def edit_streamed(to: dict[str, Any], path: str, **wanted: Any) -> list[dict[str, Any]]:
    return [
        _without_picture(event) for event in _client(to).images.edit(image=Path(path), stream=True, **wanted)
    ]


def models(to: dict[str, Any]) -> list[dict[str, Any]]:
    return [_shown(each) for each in _client(to).models.list()]


def model(to: dict[str, Any], id: str) -> dict[str, Any]:
    return _shown(_client(to).models.retrieve(id))


def _without_picture(event: Any) -> dict[str, Any]:
    shown = _shown(event)
    return {**shown, "b64_json": None, "begins": base64.b64decode(shown["b64_json"])[:4].hex()}
