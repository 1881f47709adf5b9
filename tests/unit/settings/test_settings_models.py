"""`models:` of the file: facts of our user's own, checked where the catalog is put together."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fakes.clock import ManualClock
from imagen.assembly import load_catalog
from imagen.domain.money import Usd
from imagen.domain.pricing import PerImage, PerMegapixel, PerRun, PerSecond
from imagen.errors import ConfigError
from imagen.settings import Settings, load_settings

FILE = """\
models:
  flux-dev: {price: 0.02}
  someone/hobby:
    per_second: gpu-a100-large
    typical_seconds: 9
    aliases: [hobby]
  someone/by-run: {per_run: "0.05"}
  someone/by-size: {per_megapixel: {output: 0.01, run: 0.002}}
  someone/odd-hardware: {per_second: {hardware: gpu-a40, usd: 0.000725}}
  nano-banana-2:
    prices:
      - {per_image: 0.134, when: {resolution: [1K, 2K]}, checked_on: 2026-11-01, source: my invoice}
      - {per_image: 0.24, when: {resolution: 4K}}
"""


def load(folder: Path, text: str) -> Settings:
    (folder / "imagen.yaml").write_text(text)
    return load_settings(environ={"HOME": str(folder)}, cwd=folder)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 11, 22, 12, tzinfo=UTC))


def test_facts_of_the_file_lie_over_those_of_the_catalog(tmp_path: Path, clock: ManualClock) -> None:
    catalog = load_catalog(load(tmp_path, FILE), clock)

    def rule_of(name: str, **values: object) -> object:
        model = catalog.find(name)
        assert model is not None
        fact = model.price_for(values)
        return None if fact is None else fact.rule

    assert rule_of("flux-dev") == PerImage(Usd(20_000))
    assert rule_of("hobby") == PerSecond("gpu-a100-large", Usd(1400))
    assert rule_of("by-run") == PerRun(Usd(50_000))
    assert rule_of("by-size") == PerMegapixel(output=Usd(10_000), per_run=Usd(2000))
    assert rule_of("odd-hardware") == PerSecond("gpu-a40", Usd(725))
    assert rule_of("nano-banana-2", resolution="2K") == PerImage(Usd(134_000))
    assert rule_of("nano-banana-2", resolution="4K") == PerImage(Usd(240_000))
    banana, hobby = catalog.find("nano-banana-2"), catalog.find("hobby")
    assert banana is not None
    assert hobby is not None
    assert hobby.typical_seconds == 9
    told = [(fact.source, str(fact.checked_on)) for fact in banana.prices]
    assert told == [("my invoice", "2026-11-01"), ("your configuration", "2026-11-22")]


def test_every_fact_is_explained_with_its_line(tmp_path: Path) -> None:
    lines = {line.name: line for line in load(tmp_path, FILE).explain()}
    assert lines["models.flux-dev.price"][1:3] == ("0.02", "imagen.yaml:2")
    assert lines["models.someone/hobby.typical_seconds"][1:3] == ("9", "imagen.yaml:5")
    assert lines["models.someone/by-size.per_megapixel"].value == '{"output":0.01,"run":0.002}'
    assert lines["models.someone/hobby.aliases"].value == '["hobby"]'
    assert all(line.help for line in lines.values())


def test_nothing_behind_the_key_is_nothing(tmp_path: Path, clock: ManualClock) -> None:
    settings = load(tmp_path, "models:\n")
    assert settings.models == {}
    assert len(load_catalog(settings, clock)) > 50


@pytest.mark.parametrize(
    ("text", "setting", "line", "told"),
    [
        ("models: 5", "models", 1, "must be a mapping"),
        ("models:\n  flux-dev: 0.02", "models.flux-dev", 2, "must be a mapping"),
        ("models:\n  flux-dev:\n    price: cheap", "models.flux-dev.price", 3, "is not an amount"),
        ("models:\n  flux-dev:\n    price: -1", "models.flux-dev.price", 3, "cannot be"),
        (
            "models:\n  flux-dev:\n    price: 0.0000001",
            "models.flux-dev.price",
            3,
            "less than a micro-dollar",
        ),
        ("models:\n  flux-dev:\n    prize: 1", "models.flux-dev.prize", 3, "No fact about models"),
        ("models:\n  flux-dev:\n    price: 1\n    per_run: 2", "models.flux-dev.per_run", 4, "Only one of"),
        ("models:\n  flux-dev:\n    per_second: abacus", "models.flux-dev.per_second", 3, "gpu-l40s"),
        ("models:\n  flux-dev:\n    quality: 9", "models.flux-dev.quality", 3, "from 1 to 5"),
        (
            "models:\n  flux-dev:\n    aliases: [seeDream4]",
            "models.flux-dev.aliases",
            3,
            "is a name of bytedance/seedream-4",
        ),
        ("models:\n  flux dev:\n    price: 1", "models.flux dev", 2, "flux dev"),
        ("models:\n  deployments/a/b:\n    price: 1", "models.deployments/a/b", 2, "is a deployment"),
    ],
)
def test_mistakes_name_the_line_and_the_fact(
    tmp_path: Path, clock: ManualClock, text: str, setting: str, line: int, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_catalog(load(tmp_path, text), clock)
    assert caught.value.setting == setting
    assert caught.value.source == f"imagen.yaml:{line}"
    assert caught.value.detail.startswith(f"imagen.yaml:{line}: ")
    assert told in caught.value.detail
