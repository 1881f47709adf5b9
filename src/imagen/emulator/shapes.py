"""From what is remembered to the JSON of the API: predictions, their logs, pages of lists."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlencode

from imagen.emulator.clock import timestamp
from imagen.emulator.course import Prediction, Status
from imagen.emulator.problems import not_found

Item = TypeVar("Item")

PAGE_SIZE = 100
"""Predictions on one page; the API has no parameter for it."""

MASK = "*" * 10
"""Stands for the value of a secret input, whatever its length; the hosted mask was not recorded."""

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH = 10


def prediction_json(
    prediction: Prediction, now: float, api_url: str, data_uris: Sequence[str] = ()
) -> dict[str, Any]:
    """The prediction object as it looks at the instant `now`; times that have not come are left out."""
    status = prediction.status_at(now)
    removed = now >= prediction.removed_at
    body: dict[str, Any] = {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "input": {} if removed else _shown_input(prediction),
        "logs": "" if removed else logs_at(prediction, now),
        "output": _output(prediction, data_uris) if prediction.has_output(now) else None,
        "data_removed": removed,
        "error": prediction.course.error if status is Status.FAILED else None,
        "status": status.value,
        "source": "api",
        "created_at": timestamp(prediction.created_at),
        "urls": _urls(prediction, api_url),
    }
    if (started_at := prediction.started_at(now)) is not None:
        body["started_at"] = timestamp(started_at)
    if (completed_at := prediction.completed_at(now)) is not None:
        body["completed_at"] = timestamp(completed_at)
        body["metrics"] = _metrics(prediction, started_at, completed_at, status)
    if prediction.deadline_at is not None:
        body["deadline"] = timestamp(prediction.deadline_at)
    if prediction.deployment is not None:
        body["deployment"] = prediction.deployment
    return _without(body, prediction.course.left_out)


def logs_at(prediction: Prediction, now: float) -> str:
    """What the model has printed so far: its seed, then progress as diffusers prints it (tqdm)."""
    if prediction.started_at(now) is None:
        return ""
    progress = prediction.progress_at(now)
    if prediction.steps is None:
        return "Generating image...\n" + ("Generated image\n" if progress == 1 else "")
    lines = [f"Using seed: {prediction.seed}"]
    rate = prediction.steps / max(prediction.course.run_seconds, 0.001)
    done = int(progress * prediction.steps + 1e-9)
    lines += [_tqdm(step, prediction.steps, rate) for step in range(done + 1)]
    return "\n".join(lines) + "\n"


def page_json(
    items: Sequence[Item],
    cursor: str | None,
    *,
    key: Callable[[Item], int],
    link: Callable[[Mapping[str, str]], str],
) -> dict[str, Any]:
    """One page of `items`, which are newest first; `key` is larger the newer an item is.

    The cursor is opaque: `o<key>` asks for what is older than a key, `n<key>` for what is newer.

    Raises:
        Problem: 404 for a cursor that this server did not make.
    """
    side, edge = read_cursor(cursor)
    if side == "n":
        page = [item for item in items if key(item) > edge][-PAGE_SIZE:]
    else:
        page = [item for item in items if side == "" or key(item) < edge][:PAGE_SIZE]
    older = bool(page) and key(items[-1]) < key(page[-1])
    newer = bool(page) and key(items[0]) > key(page[0])
    return {
        "next": link({"cursor": _cursor("o", key(page[-1]))}) if older else None,
        "previous": link({"cursor": _cursor("n", key(page[0]))}) if newer else None,
        "results": page,
    }


def link_to(url: str, query: Mapping[str, str]) -> Callable[[Mapping[str, str]], str]:
    """How a page's links are written: the same address and filters, another cursor."""
    return lambda changed: f"{url}?{urlencode({**query, **changed})}"


def _shown_input(prediction: Prediction) -> dict[str, Any]:
    hidden = prediction.secret_inputs
    return {
        name: MASK if name in hidden and value is not None else value
        for name, value in prediction.input.items()
    }


def _output(prediction: Prediction, data_uris: Sequence[str]) -> Any:
    kind = prediction.course.output
    if kind == "null":
        return None
    if kind == "empty":
        return []
    urls = list(data_uris) if kind == "data_uris" else list(prediction.files)
    return urls if prediction.many else urls[0]


def _urls(prediction: Prediction, api_url: str) -> dict[str, str]:
    own = f"{api_url}/v1/predictions/{prediction.id}"
    return {
        "web": f"{api_url}/p/{prediction.id}",
        "get": own,
        "cancel": f"{own}/cancel",
        "stream": f"{api_url}/v1/stream/{prediction.id}",
    }


def _metrics(
    prediction: Prediction, started_at: float | None, completed_at: float, status: Status
) -> dict[str, float | int]:
    metrics: dict[str, float | int] = {"total_time": round(completed_at - prediction.created_at, 6)}
    if started_at is not None:
        metrics["predict_time"] = round(completed_at - started_at, 6)
    if status is Status.SUCCEEDED and prediction.course.output in {"files", "data_uris"}:
        metrics["image_count"] = len(prediction.files)
    return metrics


def _without(body: dict[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    for name in left_out:
        outer, _, inner = name.partition(".")
        if inner:
            body[outer] = {key: value for key, value in body.get(outer, {}).items() if key != inner}
        elif not (outer == "output" and body["output"]):  # an output that is there is never left out
            body.pop(outer, None)
    return body


@lru_cache(maxsize=16_384)  # lists show the logs of a hundred runs again and again
def _tqdm(step: int, total: int, rate: float) -> str:
    share = step / total
    eighths = round(share * _BAR_WIDTH * 8)
    bar = "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
    speed = f"{rate:5.2f}it/s" if step else "?it/s"
    left = _minutes((total - step) / rate) if step else "?"
    return (
        f"{share:4.0%}|{bar:<{_BAR_WIDTH}}| {step}/{total} [{_minutes(step / rate)}<{left}, {speed.strip()}]"
    )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def _cursor(side: str, key: int) -> str:
    return base64.urlsafe_b64encode(f"{side}{key}".encode()).decode()


def read_cursor(cursor: str | None) -> tuple[str, int]:
    """On which side of which key the page lies; no side for the first page.

    Raises:
        Problem: 404 for a cursor that this server did not make.
    """
    if cursor is None:
        return "", 0
    try:
        text = base64.urlsafe_b64decode(cursor.encode()).decode()
        side, edge = text[:1], int(text[1:])
    except (ValueError, binascii.Error) as problem:
        raise not_found("Invalid cursor") from problem
    if side not in {"o", "n"}:
        raise not_found("Invalid cursor")
    return side, edge
