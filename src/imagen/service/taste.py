"""What callers keep and reject: written down, shown, exported, erased, and read where a model is recommended."""

from __future__ import annotations

from imagen.domain import preference
from imagen.domain.budget import model_of
from imagen.domain.complexity import kind_of
from imagen.domain.feedback import Feedback
from imagen.domain.prediction import Prediction, Status
from imagen.errors import InvalidRequest, PermissionDenied
from imagen.ports import Clock, FeedbackStore, PredictionStore
from imagen.service.choice_shapes import (
    Erased,
    FeedbackState,
    PreferenceList,
    feedback_state,
    preference_state,
)

_SHORTEST_ID = 4


class Tastes:
    """Learns from callers, unless that is switched off.

    Args:
        feedback: where judgements are kept.
        store: has the predictions.
        clock: tells the time.
        learns: False: nothing is written, and nothing is read for recommendations. What is there can still be shown,
            exported and erased.
    """

    def __init__(
        self, *, feedback: FeedbackStore, store: PredictionStore, clock: Clock, learns: bool
    ) -> None:
        self._feedback = feedback
        self._store = store
        self._clock = clock
        self.learns = learns

    async def judge(self, prediction_id: str, *, kept: bool, dry_run: bool = False) -> FeedbackState:
        """Write down that the pictures of a prediction were kept or rejected; the last word counts.

        Args:
            prediction_id: ours, or its unique beginning, or the service's.
            kept: else they were rejected.
            dry_run: check it, and write nothing down.

        Raises:
            PermissionDenied: learning is switched off; nothing was written.
            NotFound: there is no such prediction.
            InvalidRequest: it did not succeed, so there is nothing to keep; or that is too little of an id.
        """
        self.check_learns()
        if len(prediction_id.strip()) < _SHORTEST_ID:
            raise InvalidRequest(
                f"{prediction_id[:40]!r} is too short for an id: give {_SHORTEST_ID} characters of it at least",
                hint="`imagen predictions list` shows them.",
            )
        return await self.note(await self._store.get(prediction_id), kept=kept, dry_run=dry_run)

    async def note(self, prediction: Prediction, *, kept: bool, dry_run: bool = False) -> FeedbackState:
        """As `judge`, of a prediction that is at hand."""
        self.check_learns()
        if prediction.status is not Status.SUCCEEDED:
            raise InvalidRequest(
                f"{prediction.id} is {prediction.status}: only pictures of one that succeeded can be kept or rejected",
                hint="`imagen predictions list --status succeeded` shows those.",
            )
        said = Feedback(
            prediction_id=prediction.id,
            caller=prediction.caller,
            model=model_of(prediction.model),
            kind=kind_of(prediction.prompt),
            kept=kept,
            at=self._clock.now(),
        )
        return feedback_state(said if dry_run else await self._feedback.put(said))

    async def taste(self, caller: str) -> preference.Taste | None:
        """What a caller likes, for recommendations; None where learning is switched off: then nothing is read."""
        return preference.Taste(await self._feedback.list(caller=caller)) if self.learns else None

    async def show(self, caller: str) -> PreferenceList:
        """What was learned of a caller, what they like best first, and every judgement behind it."""
        said = await self._feedback.list(caller=caller)
        found = [preference_state(one) for one in preference.Taste(said).all()]
        return PreferenceList(
            caller=caller,
            learning=self.learns,
            count=len(found),
            preferences=found,
            feedback=[feedback_state(one) for one in said],
        )

    async def erase(self, caller: str) -> Erased:
        """Forget everything that a caller said."""
        return Erased(success=True, caller=caller, erased=await self._feedback.erase(caller=caller))

    def check_learns(self) -> None:
        """Refuse to write anything while learning is switched off.

        Raises:
            PermissionDenied: it is.
        """
        if not self.learns:
            raise PermissionDenied(
                "learning from feedback is switched off here; nothing was written",
                hint="The setting `learning: true` (IMAGEN_LEARNING) switches it on.",
            )
