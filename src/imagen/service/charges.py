"""What purchases ask of the budgets."""

from __future__ import annotations

from imagen.domain.budget import Charge, model_of
from imagen.domain.prediction import Prediction
from imagen.service.prepare import Order


def charge_of(order: Order, prediction: Prediction) -> Charge | None:
    """What is reserved for a purchase; nothing for what our account does not pay."""
    if order.caller.stranger or order.backend.practice:
        return None
    return Charge(
        amount=prediction.quote.high,
        key=prediction.key,
        caller=prediction.caller,
        model=model_of(prediction.model),
    )
