"""The documentation as text: what the tests in this folder read."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_FENCE = re.compile(
    r"(?P<marked><!-- run(?: with (?:a gateway|an emulator))? -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[bool, str, str]]:
    """Every fenced block: whether it is marked to be run, its language, its text."""
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        yield bool(found["marked"]), found["language"], found["body"]


def needs_gateway(page: Path) -> bool:
    """Whether blocks of a page speak to a gateway on port 5003."""
    return "<!-- run with a gateway -->" in page.read_text(encoding="utf-8")


def needs_emulator(page: Path) -> bool:
    """Whether blocks of a page speak to an emulator on port 5055."""
    return "<!-- run with an emulator -->" in page.read_text(encoding="utf-8")


def without_blocks(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What `#…` may point to in a page, by the rule of the usual viewers."""
    headings = re.findall(r"^#{1,6} (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("imagen_docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
