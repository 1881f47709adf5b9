"""Placeholder, about to be written."""


def doctor() -> None:
    """Soon."""
