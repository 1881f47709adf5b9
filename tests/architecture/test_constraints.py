"""constraints.txt pins every package that pyproject.toml asks for, by version alone."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
ASKED = [
    *PROJECT["project"]["dependencies"],
    *(line for group in PROJECT["dependency-groups"].values() for line in group),
]


def test_lines_are_name_and_version() -> None:
    assert [
        line for line in LINES if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!]*", line)
    ] == []
    names = [canonicalize_name(line.partition("==")[0]) for line in LINES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("asked", ASKED)
def test_a_pin_fits_what_is_asked_for(asked: str) -> None:
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
    requirement = Requirement(asked)
    pinned = pins.get(canonicalize_name(requirement.name))
    assert pinned is not None, "run `make constraints`"
    assert requirement.specifier.contains(pinned, prereleases=True)
