"""What somebody thought of a picture: they kept it, or they rejected it."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """One judgement; the last one of a prediction counts.

    Attributes:
        prediction_id: ours.
        caller: whose preference it shapes: the one for whom it was made.
        model: `owner/name`.
        kind: of prompt, such as `text` or `photo`.
        kept: the pictures were wanted; else they were rejected.
        at: aware, UTC.
    """

    prediction_id: str
    caller: str
    model: str
    kind: str
    kept: bool
    at: datetime
