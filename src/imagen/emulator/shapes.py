"""From what is remembered to the JSON of the API: predictions and trainings, with their output and logs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from imagen.emulator.clock import timestamp
from imagen.emulator.course import Prediction, Run, Status, Training

MASK = "*" * 10
"""Stands for the value of a secret input, whatever its length; the hosted mask was not recorded."""

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH = 10


def prediction_json(
    prediction: Prediction, now: float, api_url: str, data_uris: Sequence[str] = ()
) -> dict[str, Any]:
    """The prediction object as it looks at the instant `now`; times that have not come are left out."""
    removed = now >= prediction.removed_at
    status = prediction.status_at(now)
    body: dict[str, Any] = {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "input": {} if removed else _shown_input(prediction),
        "logs": "" if removed else logs_at(prediction, now),
        "output": _output(prediction, now, data_uris),
        "data_removed": removed,
        "error": prediction.course.error if status is Status.FAILED else None,
        "status": status.value,
        "source": "web" if prediction.kept else "api",
        "created_at": timestamp(prediction.created_at),
        "urls": _urls(prediction, api_url),
    }
    _add_times(body, prediction, now)
    if prediction.deployment is not None:
        body["deployment"] = prediction.deployment
    return _without(body, prediction.course.left_out)


def training_json(training: Training, now: float, api_url: str) -> dict[str, Any]:
    """The training object as it looks at the instant `now`."""
    status = training.status_at(now)
    own = f"{api_url}/v1/trainings/{training.id}"
    body: dict[str, Any] = {
        "id": training.id,
        "model": training.model,
        "version": training.made_by.version_id,
        "input": _shown_input(training),
        "logs": logs_at(training, now),
        "error": training.course.error if status is Status.FAILED else None,
        "status": status.value,
        "source": "api",
        "created_at": timestamp(training.created_at),
        "urls": {"web": f"{api_url}/p/{training.id}", "get": own, "cancel": f"{own}/cancel"},
    }
    if training.has_output(now):
        body["output"] = {
            "version": f"{training.destination}:{training.trained}",
            "weights": training.weights,
        }
    _add_times(body, training, now)
    return _without(body, training.course.left_out)


def logs_at(run: Run, now: float) -> str:
    """What has been printed so far: a model's seed, then progress as diffusers prints it (tqdm)."""
    if run.started_at(now) is None:
        return ""
    if run.course.logs is not None:
        return run.course.logs
    progress = run.progress_at(now)
    if isinstance(run, Training):
        return "Training...\n" + ("Trained\n" if progress == 1 else "")
    if not isinstance(run, Prediction) or run.steps is None:
        return _plain_logs(run, done=progress == 1)
    lines = [f"Using seed: {run.seed}"]
    rate = run.steps / max(run.course.run_seconds, 0.001)
    done = int(progress * run.steps + 1e-9)
    lines += [_tqdm(step, run.steps, rate) for step in range(done + 1)]
    return "\n".join(lines) + "\n"


def _plain_logs(run: Run, *, done: bool) -> str:
    if not run.made_by.makes_files:
        return ""
    return "Generating image...\n" + ("Generated image\n" if done else "")


def output_values(prediction: Prediction, data_uris: Sequence[str] = ()) -> Sequence[str]:
    """The files' addresses as the output has them; inside the answer where the course says so."""
    return data_uris if prediction.course.output == "data_uris" else prediction.files


def _add_times(body: dict[str, Any], run: Run, now: float) -> None:
    if (started_at := run.started_at(now)) is not None:
        body["started_at"] = timestamp(started_at)
    if (completed_at := run.completed_at(now)) is not None:
        body["completed_at"] = timestamp(completed_at)
        body["metrics"] = _metrics(run, started_at, completed_at)
    if run.deadline_at is not None:
        body["deadline"] = timestamp(run.deadline_at)


def _shown_input(run: Run) -> dict[str, Any]:
    hidden = run.made_by.secret_inputs
    return {
        name: MASK if name in hidden and value is not None else value for name, value in run.input.items()
    }


def _output(prediction: Prediction, now: float, data_uris: Sequence[str]) -> Any:
    """The output that can be seen; a model that prints piece by piece shows what is there already."""
    kind = prediction.course.output
    if prediction.made_by.output == "strings" and kind == "files":
        return list(prediction.pieces_at(now)) or None
    if not prediction.has_output(now) or kind == "null":
        return None
    if kind == "given":
        return prediction.course.given
    if kind == "empty":
        return []
    values = output_values(prediction, data_uris) or prediction.pieces
    return list(values) if prediction.made_by.makes_lists else values[0]


def _urls(prediction: Prediction, api_url: str) -> dict[str, str]:
    own = f"{api_url}/v1/predictions/{prediction.id}"
    urls = {"web": f"{api_url}/p/{prediction.id}", "get": own, "cancel": f"{own}/cancel"}
    if prediction.made_by.streams:
        # Pictures stream from below /v1/files/ (bodies of 2024 and 2025); clients make files of those (JS 1.4.0).
        kind = "files/" if prediction.made_by.makes_files else ""
        urls["stream"] = f"{api_url}/v1/{kind}stream/{prediction.key}"
    return urls


def _metrics(run: Run, started_at: float | None, completed_at: float) -> dict[str, float | int]:
    metrics: dict[str, float | int] = {"total_time": round(completed_at - run.created_at, 6)}
    if started_at is not None:
        metrics["predict_time"] = round(completed_at - started_at, 6)
    if not isinstance(run, Prediction) or run.status_at(completed_at) is not Status.SUCCEEDED:
        return metrics
    if run.made_by.makes_files and run.course.output in {"files", "data_uris"}:
        metrics["image_count"] = len(run.files)
    elif run.made_by.output == "strings":
        metrics["input_token_count"] = len(run.prompt.split())
        metrics["output_token_count"] = len(run.pieces)
    return metrics


def _without(body: dict[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    for name in left_out:
        outer, _, inner = name.partition(".")
        if inner:
            body[outer] = {key: value for key, value in body.get(outer, {}).items() if key != inner}
        elif not (outer == "output" and body.get("output")):  # an output that is there is never left out
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
