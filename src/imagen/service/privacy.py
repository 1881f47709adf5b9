"""Whether prompts and tokens stay where they belong: what was found of a canary, place by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from imagen.domain.canary import Canary

BY_DESIGN: Mapping[str, str] = {
    "database: predictions.prompt": "what was asked for, so that a lost answer is found and a picture can be made again",
    "database: predictions.input": "the exact input that was sent, for the same reason",
    "database: items.order": "durable work that is still to be done, or was done",
    "database: predictions.files": "where its pictures were saved, under such names",
    "pictures": "their metadata, as the setting `metadata` says",
    "names of saved pictures": "the pattern {prompt} has its first words, and is the default of the command line",
    "answers": "to whoever asked, about what they asked for",
}
"""The places that have prompts, and why. Everywhere else a prompt is a leak."""


class Sample(msgspec.Struct, frozen=True):
    """Something that was looked through: where it lies, and its bytes."""

    place: str
    data: bytes


class PlaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at one place.

    Attributes:
        place: such as `database: imagen_usage.caller`, `log` or `metrics`.
        looked_at: how many things were looked through there.
        prompt: how many of them hold some of the prompt.
        token: how many of them hold the caller's token.
        plain_hash: how many of them hold the prompt's plain sha256, where a key was to hide it.
        why: why a prompt belongs there; None where it does not.
    """

    place: str
    looked_at: int
    prompt: int
    token: int
    plain_hash: int
    why: str | None

    @property
    def leaks(self) -> bool:
        """Whether something is there that must not be."""
        return bool(self.token or self.plain_hash or (self.prompt and self.why is None))


class PrivacyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every place that was looked at, by name. `keyed`: prompts are hashed with a key."""

    places: tuple[PlaceReport, ...]
    keyed: bool

    @property
    def leaks(self) -> tuple[PlaceReport, ...]:
        """The places at which something is that must not be there."""
        return tuple(place for place in self.places if place.leaks)


def judge(
    samples: Iterable[Sample], *, prompts: Iterable[Canary], token: Canary, keyed: bool
) -> PrivacyReport:
    """Look through everything.

    Args:
        samples: what there is, any number of each place.
        prompts: those that were sent.
        token: that was sent with them.
        keyed: prompts are hashed with a key, so their plain hash is a leak as well.
    """
    prompts = tuple(prompts)
    hashes = tuple(Canary.of_secret(prompt.plain_hash) for prompt in prompts) if keyed else ()
    counts: dict[str, list[int]] = {}
    for sample in samples:
        found = counts.setdefault(sample.place, [0, 0, 0, 0])
        found[0] += 1
        found[1] += any(prompt.is_in(sample.data) for prompt in prompts)
        found[2] += token.is_in(sample.data)
        found[3] += any(one.is_in(sample.data) for one in hashes)
    return PrivacyReport(
        places=tuple(
            PlaceReport(
                place=place, looked_at=looked_at, prompt=prompt, token=tokens, plain_hash=plain, why=BY_DESIGN.get(place)
            )
            for place, (looked_at, prompt, tokens, plain) in sorted(counts.items())
        ),
        keyed=keyed,
    )  # fmt: skip
