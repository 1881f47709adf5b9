"""Which model to take: a rule of budget and quality first, then points for what else is known. Pure, and every point is told.

The rule: what the budget leaves for each iteration decides. With high quality wanted and $0.06 or more,
flux-1.1-pro-ultra; else from $0.025 on seedream-4; else flux-schnell.

What cannot do what is needed is left out. What costs more than an iteration may, or has no known price, comes last. Among
the rest the most points win:

| Part | Points |
| --- | --- |
| `rule` | 20 for the model that the rule takes; where that one costs too much today, for the next lower one of the three |
| `quality` | where high quality is wanted: 2 for each of the model's 1..5 |
| `complexity` | -15 for each step of quality that the prompt asks for and the model has not |
| `abilities` | -30 for each ability that the prompt's words ask for and the model is not known to have |
| `speed` | up to 5: `5 * (1 - seconds / 60)`, nothing where the time is not known |
| `price` | up to 5: `5 * (1 - price / what an iteration may cost)` |
| `kept` | -25 to 25: `50 * (chance that the caller keeps it - 0.5)` |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from imagen.domain.complexity import Complexity
from imagen.domain.money import MOST_BUDGET, Usd
from imagen.domain.preference import Preference
from imagen.errors import InvalidInput, Problem

ULTRA: Final = "black-forest-labs/flux-1.1-pro-ultra"
MIDDLE: Final = "bytedance/seedream-4"
QUICK: Final = "black-forest-labs/flux-schnell"
ULTRA_FROM, MIDDLE_FROM = Usd(60_000), Usd(25_000)
"""What an iteration may cost at least for these two."""
_BY_RULE: Final = (ULTRA, MIDDLE, QUICK)

ABILITIES: Final = (
    "edit",
    "mask",
    "negative_prompt",
    "photo",
    "seed",
    "several_outputs",
    "transparent_background",
    "typography",
    "vector",
)
"""What may be needed of a model."""
MOST_ITERATIONS: Final = 1_000_000
MOST_SECONDS: Final = 86_400.0

RULE, EACH_QUALITY, EACH_STEP, EACH_ABILITY, SPEED, PRICE, KEPT = 20.0, 2.0, 15.0, 30.0, 5.0, 5.0, 50.0
"""The weights of the table above."""
SLOW_SECONDS: Final = 60.0
UNTOLD_QUALITY: Final = 2
"""Counts for a model of whose quality nobody wrote anything."""
_STEP_POINTS = 25
_WORTH_TELLING = 2.0

Obstacle = Literal["slow", "dear", "unpriced"]
"""Why one comes last: it takes longer than it may or nobody knows how long, it costs too much, nobody knows what it costs."""
_ORDER: Final[tuple[Obstacle | None, ...]] = (None, "slow", "dear", "unpriced")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is wanted for.

    Attributes:
        budget: US dollars for all of it.
        iterations: how many pictures that is to pay for.
        high: high quality is wanted.
        needs: of `ABILITIES`, what the model must be able to do.
        within_seconds: how long a picture may take.
        complexity: of the prompt; None where none is known yet.
    """

    budget: Usd
    iterations: int
    high: bool = False
    needs: frozenset[str] = frozenset()
    within_seconds: float | None = None
    complexity: Complexity | None = None

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidInput: naming each field and what is allowed.
        """
        problems = []
        if not Usd(0) < self.budget <= MOST_BUDGET:
            problems.append(
                Problem(
                    "budget", f"{self.budget} is not allowed; it must be above $0 and at most {MOST_BUDGET}"
                )
            )
        if not 1 <= self.iterations <= MOST_ITERATIONS:
            problems.append(
                Problem(
                    "iterations", f"{self.iterations} is not allowed; it must be from 1 to {MOST_ITERATIONS}"
                )
            )
        if self.within_seconds is not None and not 0 < self.within_seconds <= MOST_SECONDS:
            problems.append(
                Problem(
                    "within",
                    f"{self.within_seconds:g} is not allowed; it must be above 0 and at most {MOST_SECONDS:g} seconds",
                )
            )
        problems += [
            Problem("needs", f"{need[:60]!r} must be one of {', '.join(ABILITIES)}")
            for need in sorted(self.needs - {*ABILITIES})
        ]
        if problems:
            raise InvalidInput(problems)

    @property
    def each(self) -> Usd:
        """What one iteration may cost, rounded down to whole micro-dollars."""
        return Usd(self.budget.micros // self.iterations)

    def pays(self, price: Usd) -> bool:
        """Whether the budget holds that price for all iterations. Exact."""
        return price * self.iterations <= self.budget

    @property
    def wanted_quality(self) -> int | None:
        """The quality, 1..5, that the prompt asks for: 1, and a step for each 25 of its points; None without a prompt."""
        return None if self.complexity is None else 1 + self.complexity.score // _STEP_POINTS


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can do what is needed.

    Attributes:
        model: `owner/name`.
        price: what a picture is likely to cost; None when nobody knows.
        seconds: what a picture takes as a rule; None when nobody knows.
        quality: 1..5; None when nobody wrote it down.
        abilities: of `ABILITIES`.
        preference: what the caller kept of it; None where nothing is learned.
    """

    model: str
    price: Usd | None = None
    seconds: float | None = None
    quality: int | None = None
    abilities: frozenset[str] = frozenset()
    preference: Preference | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate with its points.

    Attributes:
        obstacle: why it is no good choice; None where it is one.
        parts: the points by part, those that are not zero, rounded to a tenth.
    """

    candidate: Candidate
    obstacle: Obstacle | None
    parts: dict[str, float]

    @property
    def model(self) -> str:
        """`owner/name`."""
        return self.candidate.model

    @property
    def score(self) -> float:
        """All points together."""
        return round(sum(self.parts.values()), 1)


def choose_by_rule(asked: Asked) -> str:
    """What the rule of budget and quality takes."""
    if asked.high and asked.pays(ULTRA_FROM):
        return ULTRA
    return MIDDLE if asked.pays(MIDDLE_FROM) else QUICK


def rank(asked: Asked, candidates: Iterable[Candidate]) -> list[Choice]:
    """All candidates, the best first. Whatever order they come in, the order of the answer is the same."""
    found = [(one, _obstacle(asked, one)) for one in candidates]
    base = _base(asked, {one.model: obstacle for one, obstacle in found})
    ranked = [
        Choice(candidate=one, obstacle=obstacle, parts=_points(asked, one, is_base=one.model == base))
        for one, obstacle in found
    ]
    return sorted(ranked, key=_place)


def _base(asked: Asked, obstacles: Mapping[str, Obstacle | None]) -> str | None:
    """What the rule takes, or below that the first of its models that is there and can be paid; None where none is."""
    below = _BY_RULE[_BY_RULE.index(choose_by_rule(asked)) :]
    return next((one for one in below if obstacles.get(one, "dear") in {None, "slow"}), None)


def _place(choice: Choice) -> tuple[int, int, float, int, str]:
    """By obstacle, of the too dear ones by price, then by points, then by price."""
    price = 0 if choice.candidate.price is None else choice.candidate.price.micros
    dear = price if choice.obstacle == "dear" else 0
    return _ORDER.index(choice.obstacle), dear, -choice.score, price, choice.model


def _obstacle(asked: Asked, one: Candidate) -> Obstacle | None:
    if one.price is None:
        return "unpriced"
    if not asked.pays(one.price):
        return "dear"
    if asked.within_seconds is not None and (one.seconds is None or one.seconds > asked.within_seconds):
        return "slow"
    return None


def _points(asked: Asked, one: Candidate, *, is_base: bool) -> dict[str, float]:
    quality = UNTOLD_QUALITY if one.quality is None else one.quality
    wanted = asked.wanted_quality
    hinted = asked.complexity.needs if asked.complexity else frozenset()
    share = 1.0 if one.price is None else one.price.micros / max(asked.each.micros, 1)
    points = {
        "rule": RULE * is_base,
        "quality": EACH_QUALITY * quality * asked.high,
        "complexity": 0.0 if wanted is None else -EACH_STEP * max(0, wanted - quality),
        "abilities": -EACH_ABILITY * len(hinted - one.abilities),
        "speed": 0.0 if one.seconds is None else SPEED * max(0.0, 1 - one.seconds / SLOW_SECONDS),
        "price": PRICE * max(0.0, 1 - share),
        "kept": 0.0 if one.preference is None else KEPT * (one.preference.mean - 0.5),
    }
    return {name: rounded for name, number in points.items() if (rounded := round(number, 1))}


# --- in words --------------------------------------------------------------------------------------------


def explain(asked: Asked, ranked: Sequence[Choice]) -> str:
    """Why the first of `ranked` is recommended: one sentence, with the numbers. There is at least one."""
    best, rule = ranked[0], choose_by_rule(asked)
    many = "1 picture" if asked.iterations == 1 else f"{asked.iterations} pictures"
    left = f"{asked.budget} for {many} is {asked.each} each"
    name, price = _short(best.model), best.candidate.price
    if best.obstacle == "unpriced":
        return f"{name}: {left}, but no price is known of anything that can do this, so what {name} costs nobody knows."
    if best.obstacle == "dear" and price is not None:
        count = asked.budget.micros // price.micros
        return f"{name}: {left}, which nothing fits that has a known price; at {price} it comes nearest, and {asked.budget} pays for {count}."
    told = f"{name} at {price} a picture: {left}"
    if best.obstacle == "slow" and asked.within_seconds is not None:
        own = _takes(best.candidate)
        return f"{told}; nothing that fits is known to be done within {asked.within_seconds:g} s, and this one {own}."
    told += f", for which the rule of budget and quality takes {'it' if best.model == rule else _short(rule)}"
    found = {choice.model: choice for choice in ranked}
    base_name = _base(asked, {choice.model: choice.obstacle for choice in ranked})
    base = None if base_name is None else found[base_name]
    if base is None or base.model != rule:
        told += f", but {_missing(asked, found.get(rule))}"
    if base is None:
        return f"{told}."
    if base.model != rule:
        told += f", and next {_short(base.model)}"
    if best.model == base.model:
        return f"{told}{_listed(list(_about(asked, best)))}."
    return f"{told}; {_against(asked, best, base)}."


def _missing(asked: Asked, rule: Choice | None) -> str:
    """Why what the rule takes cannot be taken."""
    if rule is not None:
        price = rule.candidate.price
        return "nobody knows what that costs" if price is None else f"that costs {price}"
    if asked.needs:
        return f"that cannot do all of what is needed ({', '.join(sorted(asked.needs))})"
    return "that may not be used here"


def _against(asked: Asked, best: Choice, base: Choice) -> str:
    """Why it is not the one that the rule comes to."""
    if base.obstacle == "slow":
        return f"but {_short(base.model)} {_takes(base.candidate)}"
    reasons = " and ".join(_differences(asked, best, base)) or "it does better in small things"
    return f"but {reasons} ({best.score:g} points against {base.score:g})"


def _differences(asked: Asked, best: Choice, base: Choice) -> Iterator[str]:
    """What speaks for it, the weightiest first."""
    names = {*best.parts, *base.parts} - {"rule"}
    gains = {name: best.parts.get(name, 0.0) - base.parts.get(name, 0.0) for name in names}
    for name in sorted(gains, key=lambda each: (-gains[each], each)):
        if gains[name] >= _WORTH_TELLING:
            yield _difference(name, asked, best.candidate, base.candidate)


def _difference(name: str, asked: Asked, ours: Candidate, theirs: Candidate) -> str:
    other = _short(theirs.model)
    match name:
        case "kept":
            return f"you kept {_kept(ours.preference)} and of {other} {_kept(theirs.preference)}"
        case "complexity":
            score = asked.complexity.score if asked.complexity else 0
            has = theirs.quality or "none that is known"
            return f"a prompt of {score} of 100 points asks for quality {asked.wanted_quality} and {other} has {has}"
        case "abilities":
            hinted = asked.complexity.needs if asked.complexity else frozenset()
            return f"the prompt asks for {' and '.join(sorted(hinted - theirs.abilities))}"
        case "quality":
            return f"it has quality {ours.quality} of 5 and {other} {theirs.quality or 'none that is known'}"
        case "speed":
            return f"it {_takes(ours)} and {other} {_takes(theirs)}"
        case _:
            return f"it costs {ours.price} and {other} {theirs.price}"


def _about(asked: Asked, best: Choice) -> Iterator[str]:
    if asked.complexity is not None:
        yield f"the prompt has {asked.complexity.score} of 100 points of complexity ({asked.complexity.kind})"
    if best.candidate.preference is not None and best.candidate.preference.judged:
        yield f"you kept {_kept(best.candidate.preference)}"


def _kept(preference: Preference | None) -> str:
    if preference is None or not preference.judged:
        return "none, as you judged none"
    kind = "" if preference.kind is None else f" of kind {preference.kind}"
    return f"{preference.kept} of {preference.judged} pictures{kind}"


def _listed(reasons: Sequence[str]) -> str:
    return f"; {', and '.join(reasons)}" if reasons else ""


def _takes(one: Candidate) -> str:
    return "takes nobody knows how long" if one.seconds is None else f"takes {round(one.seconds, 2):g} s"


def _short(model: str) -> str:
    return model.rpartition("/")[2]
