"""What happens to predictions, as numbers that only rise and a few words."""

from __future__ import annotations

from collections.abc import Mapping

from imagen.domain.events import (
    Adopted,
    AnswerLost,
    CacheHit,
    Ended,
    Event,
    Fetching,
    InLine,
    Progressed,
    Resumed,
    Saved,
    Submitted,
    Throttled,
    Waiting,
)

TOTAL = 100.0
_BEGUN, _RUN, _FETCHED = 5.0, 85.0, 95.0
_LEAST_STEP = 0.01
_NEARLY = 99.0


_WORDS: Mapping[type[Event], str] = {
    Submitted: "sent to the model",
    Resumed: "taking up what was left unfinished",
    Progressed: "the model runs",
    AnswerLost: "an answer was lost; what it bought is looked for",
    Adopted: "found what a lost answer had bought",
    CacheHit: "an equal picture was made before",
    Saved: "saved",
}


class Progress:
    """An observer that knows how far a call is.

    Args:
        runs: how many predictions it takes.

    Attributes:
        value: from 0 to 100; every event of note raises it, as the protocol wants.
        message: what happens now, for people.
        sent: ids of the predictions that are bought, or may be.
    """

    def __init__(self, runs: int = 1) -> None:
        self.runs = runs
        self.value = 0.0
        self.message = ""
        self.sent: list[str] = []
        self._at: dict[str, float] = {}

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, Submitted | Resumed):
            self.sent.append(event.prediction.id)
        if (told := _words(event)) is None:
            return
        stage = _stage(event)
        prediction = getattr(event, "prediction", None)
        if stage is not None and prediction is not None:
            self._at[prediction.id] = max(stage, self._at.get(prediction.id, 0.0))
        reached = sum(self._at.values()) / max(self.runs, len(self._at), 1)
        self.value = min(max(reached, self.value + _LEAST_STEP), max(_NEARLY, self.value + _LEAST_STEP / 100))
        self.message = told


def _stage(event: Event) -> float | None:
    match event:
        case Submitted() | Resumed():
            return _BEGUN
        case Progressed(fraction=fraction):
            return _BEGUN + _RUN * (fraction or 0.0)
        case Fetching(index=index, count=count):
            return _BEGUN + _RUN + (_FETCHED - _BEGUN - _RUN) * (index - 1) / count
        case Saved() | CacheHit():
            return _FETCHED
        case Ended():
            return _NEARLY
        case _:
            return None


def _words(event: Event) -> str | None:
    """What happens; None for what need not be told."""
    match event:
        case InLine(limit=limit, position=position):
            kind = limit.partition(":")[0]
            return f"number {position} in line for {'the limits' if kind in {'account', 'key'} else limit}"
        case Progressed(fraction=fraction) if fraction is not None:
            return f"the model runs: {fraction:.0%}"
        case Throttled(seconds=seconds) | Waiting(seconds=seconds):
            return f"the service asks for a pause of {seconds:.0f} s"
        case Fetching(index=index, count=count):
            return f"fetching picture {index} of {count}"
        case _:
            return _WORDS.get(type(event))
