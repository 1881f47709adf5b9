"""What an ended prediction means for the one who asked: nothing, or one of our errors."""

from __future__ import annotations

from typing import TypedDict

from imagen.domain.prediction import Prediction, Status
from imagen.errors import (
    OutcomeUnknown,
    OutputDefective,
    PredictionAborted,
    PredictionCanceled,
    PredictionError,
    PredictionFailed,
)


class _Known(TypedDict):
    prediction_id: str
    charged: bool | None


_HINTS = {
    "safety": "The content filter refused it; another seed can pass, another prompt surely may.",
    "infrastructure": "The service interrupted it; run the same command again.",
    "model": None,
}


def error_of(prediction: Prediction) -> PredictionError | None:
    """The error of a prediction that ended without success, None for one that succeeded."""
    billing = "it was charged" if prediction.charged else "it was not charged"
    if prediction.charged is None:
        billing = "whether it was charged is not known"
    known: _Known = {"prediction_id": prediction.id, "charged": prediction.charged}
    name = f"prediction {prediction.upstream_id or prediction.id}"
    match prediction.status:
        case Status.FAILED:
            reason = _shown(prediction.error) or "the model gave no reason"
            category = prediction.category or "model"
            return PredictionFailed(
                f"{name} failed: {reason.rstrip('.')} ({billing})",
                reason=reason,
                category=category,
                hint=_HINTS[category],
                **known,
            )
        case Status.CANCELED:
            return PredictionCanceled(f"{name} {_stopped(prediction, 'was canceled')} ({billing})", **known)
        case Status.ABORTED:
            return PredictionAborted(
                f"{name} {_stopped(prediction, 'was aborted before it began')} ({billing})", **known
            )
        case Status.UNKNOWN:
            if prediction.charged is False:
                return OutcomeUnknown(
                    f"the create of {prediction.id} never arrived at the service; nothing was bought",
                    hint="Run the same command again to buy it.",
                    **known,
                )
            return OutcomeUnknown(
                f"the answer to the create of {prediction.id} was lost, and it can no longer be looked up: "
                "it may have been made and charged",
                hint="Run the same command again to buy a new one.",
                **known,
            )
        case _:
            return None


def empty_output(prediction: Prediction) -> OutputDefective:
    """The error of one that succeeded and made no picture."""
    made = "its output is empty" if prediction.answer is None else "its output is no picture"
    return OutputDefective(
        f"the prediction succeeded but {made}; it was charged",
        prediction_id=prediction.id,
        hint="Try again with another seed or prompt.",
    )


def _stopped(prediction: Prediction, otherwise: str) -> str:
    """A run that was stopped at or after its deadline did not complete; any other was stopped by somebody."""
    waited = (prediction.latency_ms or 0) / 1000
    if waited < prediction.deadline_seconds:
        return otherwise
    return f"did not complete within {prediction.deadline_seconds:g} s (waited {waited:.1f} s)"


def _shown(reason: str | None) -> str:
    line = " ".join((reason or "").split())
    return line if len(line) <= 300 else line[:299] + "…"
