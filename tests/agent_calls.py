"""What stories about agents share: calls by the official client, and what their answers may hold."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from mcp.types import CallToolResult, ElicitRequestParams, ElicitResult
from PIL import Image

TOOLS = {
    "generate_image", "edit_image", "estimate_cost", "recommend_model", "list_models", "describe_model",
    "get_prediction", "cancel_prediction", "usage_report",
}  # fmt: skip
SCHNELL, DEV = "black-forest-labs/flux-schnell", "black-forest-labs/flux-dev"
NO_PICTURES = ("https://[x", "https:///x", "data:,", "data:text/plain;base64,aGk=", "data:image/png;base64,!")
"""Addresses behind which there is no picture, whoever looks."""


def text_of(answer: CallToolResult) -> str:
    """Its words."""
    return "\n".join(one.text for one in answer.content if one.type == "text")


def facts_of(answer: CallToolResult) -> Any:
    """What it says to programs."""
    assert not answer.is_error, text_of(answer)
    return answer.structured_content


def thumbnail_of(answer: CallToolResult) -> Image.Image:
    """Its only picture, which is small."""
    (shown,) = (one for one in answer.content if one.type == "image")
    assert shown.mime_type == "image/jpeg"
    data = base64.b64decode(shown.data)
    assert len(data) <= 16 * 1024
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert max(picture.size) <= 256
    return picture


def holds_picture(answer: CallToolResult, content: bytes) -> bool:
    """Whether the bytes of a picture are anywhere in an answer."""
    told = answer.model_dump_json()
    middle = len(content) // 2 // 3 * 3
    return (
        any(base64.b64encode(content[start : start + 48]).decode() in told for start in (0, middle))
        or len(told) > 40_000
    )


def picture_at(path: str | Path) -> bytes:
    """The bytes of a picture that is whole."""
    content = Path(path).read_bytes()
    Image.open(io.BytesIO(content)).load()
    return content


class Asked:
    """A user who is asked whether to buy, and says always the same; None: closes the question without an answer to it."""

    def __init__(self, *, agrees: bool | None) -> None:
        self._agrees = agrees
        self.questions: list[str] = []

    async def __call__(self, _: Any, params: ElicitRequestParams) -> ElicitResult:
        self.questions.append(params.message)
        if self._agrees is None:
            return ElicitResult(action="accept")
        if not self._agrees:
            return ElicitResult(action="decline")
        return ElicitResult(action="accept", content={"buy": True})


class Heard:
    """Progress that a client was told."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.messages: list[str] = []

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        assert total == 100
        self.values.append(progress)
        self.messages.append(message or "")
