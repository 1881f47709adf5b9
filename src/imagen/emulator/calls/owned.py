"""What belongs to the account that asks, or may be seen by it."""

from __future__ import annotations

from imagen.emulator import problems
from imagen.emulator.course import Run
from imagen.emulator.exchange import Exchange
from imagen.emulator.models import Model
from imagen.emulator.register import Listing


def run_in_path(exchange: Exchange) -> Run | None:
    """The prediction or training that the path names, if there is one and it is this account's."""
    state, parts = exchange.world.state, exchange.request.match_info
    run: Run | None = state.predictions.get(parts.get("prediction_id", "")) or state.trainings.get(
        parts.get("training_id", "")
    )
    if run is None or exchange.account is None or run.account != exchange.account.key:
        return None
    return run


def owned_run(exchange: Exchange) -> Run:
    """The prediction or training that the path names.

    Raises:
        Problem: 404, it is not there or another account's.
    """
    run = run_in_path(exchange)
    if run is None:
        raise problems.not_found()
    return run


def is_own(exchange: Exchange, owner: str) -> bool:
    """Whether a name is the account's own, or an organization's of which every account is a member."""
    account = exchange.account
    return owner in exchange.world.models.owners or (account is not None and owner == account.username)


def visible_listing(exchange: Exchange, name: str) -> Listing | None:
    """The model `owner/name`; a private one is there for its owner only."""
    listing = exchange.world.models.listings.get(name)
    if listing is None or (listing.visibility == "private" and not is_own(exchange, listing.owner)):
        return None
    return listing


def listing_in_path(exchange: Exchange) -> Listing:
    """The model that the path names.

    Raises:
        Problem: 404, it is not there or another account's private one.
    """
    listing = visible_listing(exchange, exchange.name)
    if listing is None:
        raise problems.not_found()
    return listing


def own_listing(exchange: Exchange) -> Listing:
    """The model that the path names, to change it.

    Raises:
        Problem: 404, it is not there; 403, it is somebody else's.
    """
    listing = listing_in_path(exchange)
    if not is_own(exchange, listing.owner):
        raise problems.forbidden(f"You do not own {listing.name}")
    return listing


def model_in_path(exchange: Exchange) -> Model | None:
    """The newest version of the model that the path names, if this account may see it."""
    listing = visible_listing(exchange, exchange.name)
    latest = None if listing is None else listing.latest(exchange.world.clock.time())
    return None if latest is None else latest.model


def model_of_version(exchange: Exchange, version: str) -> Model | None:
    """What `owner/name`, `owner/name:<version>` or `<version>` means, if this account may see it."""
    model = exchange.world.models.meant_by(version)
    return None if model is None or visible_listing(exchange, model.name) is None else model
