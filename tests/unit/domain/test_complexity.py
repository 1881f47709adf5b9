"""How much a prompt asks for: each part by its own words, and what sort of picture it is."""

from __future__ import annotations

from typing import get_args

import pytest

from imagen.domain.complexity import MOST, Complexity, Kind, judge, kind_of


@pytest.mark.parametrize(
    ("prompt", "part", "points"),
    [
        ("", "length", 0),
        ("fox", "length", 0),
        ("a red fox in the snow", "length", 3),
        (" ".join(["word"] * 50), "length", 25),
        (" ".join(["word"] * 500), "length", 25),
        ("a fox", "clauses", 0),
        ("a fox, at night; in the rain", "clauses", 8),
        ("a fox with a hat behind a tree", "clauses", 8),
        ("a, b, c, d, e, f, g, h", "clauses", 20),
        ("a fox", "text", 0),
        ('a sign "Open"', "text", 13),
        ("a sign that says hello", "text", 10),
        ("a sign “Open all night”", "text", 19),
        ("it's the fox's den", "text", 0),
        ("three cats", "counts", 5),
        ("12 windows and two doors", "counts", 10),
        ("a 50 mm lens", "counts", 0),
        ("a car of the 1920s", "counts", 0),
        ("two cats, three dogs, four birds, five mice", "counts", 15),
        ("a fox", "style", 0),
        ("Moody moody MOODY", "style", 3),
        ("cinematic noir film, moody, grainy, vintage", "style", 15),
    ],
)
def test_points_by_part(prompt: str, part: str, points: int) -> None:
    assert judge(prompt).parts[part] == points


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("a red fox in the snow", "other"),
        ("a photo of a red fox", "photo"),
        ("a fox, 35mm, bokeh", "photo"),
        ("a watercolour of a fox", "illustration"),
        ("a fox as an anime hero", "illustration"),
        ('a neon sign that says "Open"', "text"),
        ('a logo that says "Acme"', "logo"),
        ('a poster with the words "Summer Jazz"', "design"),
        ("photo for a book cover", "design"),
    ],
)
def test_kinds(prompt: str, kind: str) -> None:
    assert kind_of(prompt) == kind
    assert kind in get_args(Kind)


@pytest.mark.parametrize(
    ("prompt", "needs"),
    [
        ("a red fox", set()),
        ('a mug that reads "Hi"', {"typography"}),
        ("a vector logo of a fox on a transparent background", {"vector", "transparent_background"}),
        ("a fox as svg", {"vector"}),
    ],
)
def test_what_the_words_ask_for(prompt: str, needs: set[str]) -> None:
    assert judge(prompt).needs == needs


def test_the_score_is_the_sum_of_its_parts_and_a_hundred_at_most() -> None:
    most = Complexity(**MOST)
    assert most.score == 100
    found = judge('a poster that says "Jazz", moody, with three saxophones')
    assert found.score == sum(found.parts.values()) == 4 + 12 + 13 + 5 + 3
