"""Models by the names that OpenAI's clients ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.errors import ConfigError
from imagen.settings import Settings, load_settings


def loaded(tmp_path: Path, file: str, **environ: str) -> Settings:
    (tmp_path / "imagen.yaml").write_text(file, encoding="utf-8")
    return load_settings(environ={"HOME": str(tmp_path), **environ}, cwd=tmp_path)


def test_the_file_has_a_mapping_and_the_environment_wins(tmp_path: Path) -> None:
    file = "openai:\n  models:\n    dall-e-3: flux-dev\n    gpt-image-1: black-forest-labs/flux-2-pro\n"
    found = loaded(tmp_path, file)
    assert found.openai.mapped == {"dall-e-3": "flux-dev", "gpt-image-1": "black-forest-labs/flux-2-pro"}
    (line,) = (each for each in found.explain() if each.name == "openai.models")
    assert line.value == "dall-e-3=flux-dev, gpt-image-1=black-forest-labs/flux-2-pro"
    assert line.source == "imagen.yaml:2"
    over = loaded(tmp_path, file, IMAGEN_OPENAI__MODELS="dall-e-3=sdxl")
    assert over.openai.mapped == {"dall-e-3": "sdxl"}
    assert loaded(tmp_path, "").openai.mapped == {}


@pytest.mark.parametrize(
    "models",
    ["{dall-e-3: [flux-dev]}", "{dall-e-3: no such model}", "{a b: flux-dev}", "[flux-dev]", "dall-e-3", "{A: x, a: y}"],
)  # fmt: skip
def test_what_names_no_models_is_refused_with_its_line(tmp_path: Path, models: str) -> None:
    with pytest.raises(ConfigError, match=r"imagen\.yaml:2: openai\.models must be names with a model"):
        loaded(tmp_path, f"openai:\n  models: {models}\n")
