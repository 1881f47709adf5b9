"""Everything the handlers work with, in one place; `server.py` makes it, `reset` renews its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from imagen.emulator.clock import Clock
from imagen.emulator.course import Course, Prediction, Run
from imagen.emulator.fault_book import FaultBook
from imagen.emulator.journal import Journal
from imagen.emulator.limits import Mode
from imagen.emulator.models import Model
from imagen.emulator.pictures import PictureSpec, PictureStudio
from imagen.emulator.register import Register
from imagen.emulator.sizes import frame_of
from imagen.emulator.state import State

DEFAULT_RUN_SECONDS = 0.2
DEFAULT_QUEUE_SECONDS = 0.0


class World:
    """One emulated Replicate: clock, models, state, faults, limits, journal and pictures.

    `run_seconds` and `queue_seconds` go before a model's own; None leaves them to it, or else to 0.2 and 0.
    `accepted_tokens` are the tokens that are let in; None: every token without "invalid" in it.
    `changed` is told of each prediction and training that was created or canceled.
    """

    def __init__(
        self,
        models: Iterable[Model],
        deployments: Mapping[str, str],
        *,
        mode: Mode,
        run_seconds: float | None,
        queue_seconds: float | None,
        accepted_tokens: Iterable[str] | None,
    ) -> None:
        self.clock = Clock()
        self.models = Register(models, deployments, self.clock.time)
        self.first_mode = self.mode = mode
        self.run_seconds = run_seconds
        self.queue_seconds = queue_seconds
        self.accepted_tokens = None if accepted_tokens is None else frozenset(accepted_tokens)
        self.faults = FaultBook()
        self.journal = Journal()
        self.studio = PictureStudio()
        self.changed: Callable[[Run], None] = _nobody_told
        self.api_url = ""
        self.delivery_url = ""
        self.state = State(self.clock, self.delivery_url)

    def open(self, api_url: str, delivery_url: str) -> None:
        """Learn the addresses, once the ports are known."""
        self.api_url = api_url
        self.delivery_url = delivery_url
        self.state = State(self.clock, delivery_url)

    def reset(self) -> None:
        """Forget what was made, planted, asked and posted; the clock and added models stay."""
        self.models.reset()
        self.mode = self.first_mode
        self.faults.clear()
        self.journal.clear()
        self.state = State(self.clock, self.delivery_url)
        self.clock.wake()

    def lets_in(self, token: str) -> bool:
        """Whether a token is known."""
        if self.accepted_tokens is not None:
            return token in self.accepted_tokens
        return bool(token) and "invalid" not in token

    def course_of(self, model: Model) -> Course:
        """The course a prediction of this model takes when nothing goes wrong."""
        return Course(
            queue_seconds=_first(self.queue_seconds, model.queue_seconds, DEFAULT_QUEUE_SECONDS),
            run_seconds=_first(self.run_seconds, model.run_seconds, DEFAULT_RUN_SECONDS),
        )

    def picture_of(self, prediction: Prediction, index: int) -> PictureSpec | None:
        """What file number `index` of a prediction shows; None when there is no such file."""
        if not 0 <= index < len(prediction.files):
            return None
        model = prediction.made_by
        frame = frame_of(model, prediction.input)
        values = model.with_defaults(prediction.input)
        return PictureSpec(
            model=prediction.model,
            prompt=str(values.get("prompt", "")),
            seed=prediction.seed,
            index=index,
            width=frame.width,
            height=frame.height,
            format=frame.format,
            quality=int(values.get("output_quality", 80)),
        )


def _nobody_told(_: Run) -> None:
    """Nothing: nobody wants to know."""


def _first(*seconds: float | None) -> float:
    return next(value for value in seconds if value is not None)
