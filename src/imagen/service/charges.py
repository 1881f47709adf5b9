"""What purchases ask of the budgets."""

from __future__ import annotations

from imagen.domain.budget import Charge, model_of
from imagen.domain.prediction import Prediction
from imagen.ports import Plan
from imagen.service.prepare import Order


def charge_of(order: Order, prediction: Prediction, plan: Plan) -> Charge | None:
    """What is reserved for a purchase; nothing for what our account does not pay.

    Work that was accepted without a quote, by an older release or when no price was known, is quoted now.
    """
    if order.caller.stranger or order.backend.practice:
        return None
    quote = prediction.quote
    if quote.high is None:
        quote = order.backend.quote(prediction, typical_seconds=plan.typical_seconds)
    return Charge(
        amount=quote.high,
        key=prediction.key,
        caller=prediction.caller,
        model=model_of(prediction.model),
    )
