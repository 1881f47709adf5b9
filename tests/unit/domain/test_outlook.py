"""What would become of somebody who comes now: position, the limit that binds, and when."""

from __future__ import annotations

from imagen.domain.outlook import LimitStanding, look_ahead


def places(limit: str, places: int, *, held: int = 0, ahead: int = 0) -> LimitStanding:
    return LimitStanding(limit=limit, places=places, held=held, ahead=ahead)


def rate(limit: str, *, first: float = 0.0, last: float = 0.0, ahead: int = 0) -> LimitStanding:
    return LimitStanding(limit=limit, ahead=ahead, first_in=first, last_in=last)


def test_with_free_places_it_goes_at_once() -> None:
    found = look_ahead([places("account:a", 10, held=9), rate("account:a")], count=1, typical_seconds=8)
    assert (found.limit, found.position, found.starts_in, found.ends_in) == (None, 0, 0.0, 8.0)


def test_a_full_limit_keeps_it_for_one_share_of_a_run() -> None:
    found = look_ahead([places("semaphore:gpu", 4, held=4)], count=1, typical_seconds=8)
    assert (found.limit, found.position, found.starts_in, found.ends_in) == ("semaphore:gpu", 1, 2.0, 10.0)


def test_those_ahead_go_first() -> None:
    found = look_ahead([places("semaphore:gpu", 2, held=2, ahead=5)], count=1, typical_seconds=4)
    assert (found.position, found.starts_in) == (6, 12.0)


def test_several_start_with_the_first_and_end_with_the_last() -> None:
    found = look_ahead([places("account:a", 2, held=1)], count=3, typical_seconds=10)
    assert (found.limit, found.position, found.starts_in, found.ends_in) == (None, 0, 0.0, 20.0)


def test_the_longest_wait_binds() -> None:
    standings = [places("semaphore:gpu", 1, held=1), rate("account:a", first=60, last=60, ahead=3)]
    found = look_ahead(standings, count=1, typical_seconds=5)
    assert (found.limit, found.position, found.starts_in, found.ends_in) == ("account:a", 4, 60.0, 65.0)


def test_where_nobody_knows_how_long_a_run_takes_nobody_can_tell() -> None:
    found = look_ahead([places("account:a", 1, held=1)], count=1, typical_seconds=None)
    assert (found.limit, found.position, found.starts_in, found.ends_in) == ("account:a", 1, None, None)
    free = look_ahead([places("account:a", 1)], count=1, typical_seconds=None)
    assert (free.limit, free.starts_in, free.ends_in) == (None, 0.0, None)
