"""Which model is taken: the rule at its borders, what is left out, what turns the choice, and the sentence."""

from __future__ import annotations

import random
from typing import Any

import pytest

from imagen.domain.choice import MIDDLE, QUICK, ULTRA, Asked, Candidate, choose_by_rule, explain, rank
from imagen.domain.complexity import judge
from imagen.domain.money import Usd
from imagen.domain.preference import Preference
from imagen.errors import InvalidInput

OTHER = "acme/other"


def asked(budget: str = "5", iterations: int = 40, **facts: Any) -> Asked:
    return Asked(budget=Usd.parse(budget), iterations=iterations, **facts)


def one(model: str, price: str | None, **facts: Any) -> Candidate:
    return Candidate(model=model, price=None if price is None else Usd.parse(price), **facts)


THREE = [
    one(ULTRA, "0.06", quality=5),
    one(MIDDLE, "0.025", quality=4),
    one(QUICK, "0.003", quality=1, seconds=2),
]


@pytest.mark.parametrize(
    ("budget", "iterations", "high", "model"),
    [
        ("6", 100, True, ULTRA),
        ("5.999999", 100, True, MIDDLE),
        ("0.06", 1, True, ULTRA),
        ("0.059999", 1, True, MIDDLE),
        ("100", 1, True, ULTRA),
        ("6", 100, False, MIDDLE),
        ("100", 1, False, MIDDLE),
        ("2.5", 100, False, MIDDLE),
        ("2.5", 100, True, MIDDLE),
        ("2.499999", 100, False, QUICK),
        ("2.499999", 100, True, QUICK),
        ("0.025", 1, False, MIDDLE),
        ("0.024999", 1, False, QUICK),
        ("0.3", 100, False, QUICK),
        ("1", 3, False, MIDDLE),
    ],
)
def test_the_rule_at_its_borders(budget: str, iterations: int, high: bool, model: str) -> None:
    wish = asked(budget, iterations, high=high)
    assert choose_by_rule(wish) == model
    assert rank(wish, THREE)[0].model == model, "with nothing else known the rule decides"


def test_a_third_of_a_cent_is_compared_exactly() -> None:
    assert choose_by_rule(asked("0.18", 3, high=True)) == ULTRA
    assert choose_by_rule(asked("0.179999", 3, high=True)) == MIDDLE
    assert asked("1", 3).each == Usd(333_333)


def test_where_the_rules_model_costs_too_much_today_the_next_lower_one_counts() -> None:
    wish = asked("1", 40)
    today = [one(MIDDLE, "0.03"), one(QUICK, "0.003"), one(OTHER, "0.002", quality=5, seconds=1)]
    ranked = rank(wish, today)
    assert ranked[0].model == QUICK
    assert ranked[-1].obstacle == "dear"
    sentence = explain(wish, ranked)
    assert "$1.00 for 40 pictures is $0.025 each" in sentence
    assert "takes seedream-4, but that costs $0.03, and next flux-schnell" in sentence


def test_what_does_not_fit_or_has_no_price_comes_last() -> None:
    wish = asked("1", 40, within_seconds=10)
    candidates = [
        one("a/unpriced", None, quality=5, seconds=1),
        one("a/dear", "0.026", quality=5, seconds=1),
        one("a/slow", "0.001", quality=5, seconds=11),
        one("a/untold", "0.001", quality=5),
        one("a/good", "0.02", quality=1, seconds=10),
    ]
    ranked = rank(wish, candidates)
    assert [choice.model for choice in ranked] == ["a/good", "a/slow", "a/untold", "a/dear", "a/unpriced"]
    assert [choice.obstacle for choice in ranked] == [None, "slow", "slow", "dear", "unpriced"]


@pytest.mark.parametrize(
    ("candidate", "facts", "told"),
    [
        (one(OTHER, None), {}, "no price is known of anything that can do this"),
        (one(OTHER, "0.05"), {}, "at $0.05 it comes nearest, and $1.00 pays for 20"),
        (one(OTHER, "0.02", seconds=30), {"within_seconds": 5}, "within 5 s, and this one takes 30 s"),
        (one(OTHER, "0.02", seconds=20.206449), {"within_seconds": 5}, "this one takes 20.21 s"),
        (one(OTHER, "0.02"), {"within_seconds": 5}, "this one takes nobody knows how long"),
    ],
)
def test_what_is_recommended_for_want_of_better_is_said_so(
    candidate: Candidate, facts: dict[str, Any], told: str
) -> None:
    wish = asked("1", 40, **facts)
    sentence = explain(wish, rank(wish, [candidate]))
    assert told in sentence
    assert sentence.startswith("other")
    assert "\n" not in sentence
    assert sentence.count(". ") == 0


def test_words_to_be_written_turn_the_choice() -> None:
    wish = asked(complexity=judge('a sign that says "Open"'))
    writer = one(OTHER, "0.03", quality=4, abilities=frozenset({"typography"}))
    ranked = rank(wish, [*THREE, writer])
    assert ranked[0].model == OTHER
    assert "the prompt asks for typography" in explain(wish, ranked)


def test_a_prompt_that_asks_for_much_turns_the_choice() -> None:
    wish = asked(
        "0.2", 10, complexity=judge(", ".join(["two cats", "three dogs", "moody", "noir", "with rain"] * 6))
    )
    assert wish.wanted_quality == 3
    better = one(OTHER, "0.02", quality=4)
    ranked = rank(wish, [*THREE, better])
    assert ranked[0].model == OTHER
    assert "asks for quality 3 and flux-schnell has 1" in explain(wish, ranked)


def test_what_was_kept_turns_the_choice_and_the_sentence_says_so() -> None:
    wish = asked()
    loved = one(OTHER, "0.03", preference=Preference(model=OTHER, kind="photo", kept=6, alpha=7, beta=1))
    disliked = one(
        MIDDLE, "0.025", preference=Preference(model=MIDDLE, kind="photo", rejected=5, alpha=1, beta=6)
    )
    ranked = rank(wish, [disliked, loved])
    assert ranked[0].model == OTHER
    sentence = explain(wish, ranked)
    assert (
        "you kept 6 of 6 pictures of kind photo and of seedream-4 0 of 5 pictures of kind photo" in sentence
    )
    assert "points against" in sentence


def test_speed_and_price_alone_never_beat_the_rule() -> None:
    best_besides = one(OTHER, "0.000001", seconds=0.01)
    for wish in (asked("5", 40), asked("5", 40, high=True), asked("0.3", 100)):
        rule = choose_by_rule(wish)
        assert rank(wish, [*THREE, best_besides])[0].model == rule


def test_the_order_of_the_catalog_does_not_matter() -> None:
    candidates = [*THREE, *(one(f"a/m{number}", "0.01", quality=number % 5 + 1) for number in range(10))]
    wish = asked(complexity=judge("a fox, moody"))
    expected = rank(wish, candidates)
    for seed in range(5):
        shuffled = list(candidates)
        random.Random(seed).shuffle(shuffled)
        assert rank(wish, shuffled) == expected


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"budget": "0"}, "budget"),
        ({"budget": "-1"}, "budget"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 1_000_001}, "iterations"),
        ({"within_seconds": 0.0}, "within"),
        ({"needs": frozenset({"magic"})}, "needs"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(facts: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        asked(**facts).check()
    assert [problem.field for problem in raised.value.problems] == [field]
