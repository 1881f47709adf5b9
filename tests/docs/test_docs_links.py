"""Links lead somewhere, and no page speaks of what readers do not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, anchors, name_of, without_blocks

LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
FORBIDDEN = {
    r"\.\./shared": "a folder outside the repository",
    r"(?<![\w.])/work/": "a folder of one machine",
    r"\bpypi\.org\b|\bfiles\.pythonhosted\b|\bpythonhosted\b|\bregistry\.npmjs\b|\bghcr\.io\b|\bdocker\.io\b": "a registry",
    r"\b(?:this|our|the|a|each|next|last) session\b": "whoever wrote it, not imagen",
    r"\bTODO\b|\bTBD\b|\bcoming soon\b": "what is not there",
    r"[“”]": "curly quotes",
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for found in LINK.finditer(without_blocks(page)):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (page.parent / target).resolve() if target else page
        if (
            not place.exists()
            or not place.is_relative_to(ROOT)
            or (anchor and place.suffix == ".md" and anchor not in anchors(place))
        ):
            broken.append(found["target"])
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_speak_of_what_readers_have(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [
        f"{match[0]!r}: {why}"
        for pattern, why in FORBIDDEN.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_begins_with_its_title(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith("# ")


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        targets = (found["target"].partition("#")[0] for found in LINK.finditer(without_blocks(page)))
        places = {
            (page.parent / target).resolve()
            for target in targets
            if target.endswith(".md") and ":" not in target
        }
        todo += sorted(places - reached)
    assert [name_of(page) for page in PAGES if page.resolve() not in reached] == []
