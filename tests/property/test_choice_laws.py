"""What holds for all prompts and all tastes: points are bounded and never fall, order says nothing, the mean is in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.choice import Asked, Candidate, explain, rank
from imagen.domain.complexity import MOST, Kind, judge
from imagen.domain.feedback import Feedback
from imagen.domain.money import Usd
from imagen.domain.preference import PRIOR_WEIGHT, Taste

WORDS = st.sampled_from(
    [
        "a",
        "fox,",
        "three",
        "cats",
        "with",
        '"quoted',
        'words"',
        "moody",
        "photo",
        "logo",
        "sign",
        "says",
        "'",
        "“x”",
        ":",
        ";",
        "12",
        "windows",
        "svg",
        "50",
        "mm\n",
    ]
)
PROMPTS = st.one_of(st.text(max_size=300), st.lists(WORDS, max_size=60).map(" ".join))
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


@given(PROMPTS)
def test_each_part_stays_within_its_bounds_and_the_same_text_gives_the_same(prompt: str) -> None:
    found = judge(prompt)
    assert all(0 <= points <= MOST[name] for name, points in found.parts.items())
    assert 0 <= found.score <= 100
    assert found.kind in get_args(Kind)
    assert judge(prompt) == found


@given(PROMPTS, PROMPTS)
def test_saying_more_never_lowers_a_part(prompt: str, more: str) -> None:
    before, after = judge(prompt), judge(f"{prompt} {more}")
    assert {name: after.parts[name] >= points for name, points in before.parts.items()} == dict.fromkeys(
        MOST, True
    )
    assert before.needs <= after.needs


@pytest.mark.timeout(10)
@given(st.sampled_from(['"', "'", "“", "two ", "a, ", "with ", "the text ", "x'"]))
def test_a_long_prompt_is_judged_quickly(part: str) -> None:
    assert judge(part * 50_000).score <= 100


SAID = st.lists(
    st.tuples(st.sampled_from(["a/x", "a/y"]), st.sampled_from(["photo", "text", "other"]), st.booleans()),
    max_size=30,
)


def said(rows: list[tuple[str, str, bool]]) -> list[Feedback]:
    return [
        Feedback(
            prediction_id=f"pred_{number}",
            caller="me",
            model=model,
            kind=kind,
            kept=kept,
            at=BEGINNING + timedelta(seconds=number),
        )
        for number, (model, kind, kept) in enumerate(rows)
    ]


@given(SAID, st.randoms())
def test_the_order_of_judgements_says_nothing(rows: list[tuple[str, str, bool]], random: object) -> None:
    found = said(rows)
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Taste(found).all() == Taste(shuffled).all()


@given(SAID)
def test_the_posterior_is_the_prior_and_what_was_counted(rows: list[tuple[str, str, bool]]) -> None:
    taste = Taste(said(rows))
    for one in taste.all():
        here = [kept for model, kind, kept in rows if (model, kind) == (one.model, one.kind)]
        elsewhere = [kept for model, kind, kept in rows if model == one.model and kind != one.kind]
        prior = Fraction(1 + sum(elsewhere), 2 + len(elsewhere))
        mean = (int(PRIOR_WEIGHT) * prior + sum(here)) / (int(PRIOR_WEIGHT) + len(here))
        assert one.mean == pytest.approx(float(mean))
        assert (one.kept, one.rejected) == (sum(here), len(here) - sum(here))
        assert 0 < one.mean < 1
        assert 0 <= one.sureness < 1


@given(SAID, st.booleans())
def test_one_more_judgement_moves_the_mean_its_own_way(rows: list[tuple[str, str, bool]], kept: bool) -> None:
    before = Taste(said(rows)).of("a/x", "photo").mean
    after = Taste(said([*rows, ("a/x", "photo", kept)])).of("a/x", "photo").mean
    assert after > before if kept else after < before


def test_nothing_known_is_even_and_not_sure_at_all() -> None:
    nothing = Taste([]).of("a/x", "photo")
    assert (nothing.mean, nothing.sureness, nothing.judged) == (0.5, 0.0, 0)
    many = Taste(said([("a/x", "photo", True)] * 20)).of("a/x", "photo")
    assert many.mean == pytest.approx(21 / 22)
    assert many.sureness > 0.8


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        model=st.sampled_from([f"a/{name}" for name in "abcdefgh"]),
        price=st.none() | st.integers(0, 200_000).map(Usd),
        seconds=st.none() | st.floats(0.1, 300),
        quality=st.none() | st.integers(1, 5),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.model,
)


@given(
    CANDIDATES, st.integers(1, 10_000_000), st.integers(1, 500), st.none() | st.floats(1, 100), st.booleans()
)
def test_what_does_not_fit_is_never_recommended_while_something_does(
    candidates: list[Candidate], micros: int, iterations: int, within: float | None, high: bool
) -> None:
    asked = Asked(budget=Usd(micros), iterations=iterations, within_seconds=within, high=high)
    ranked = rank(asked, candidates)
    fits = {
        one.model
        for one in candidates
        if one.price is not None
        and one.price.micros * iterations <= micros
        and (within is None or (one.seconds is not None and one.seconds <= within))
    }
    assert {choice.model for choice in ranked[: len(fits)]} == fits
    sentence = explain(asked, ranked)
    assert sentence.endswith(".")
    assert "\n" not in sentence
