"""What the user writes stays; what the prompt brings is made safe."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from imagen.errors import InvalidInput
from imagen.pictures import NameFields, OutputPattern
from imagen.pictures.naming import slug

FIELDS = NameFields(
    "A cat, sitting!",
    "black-forest-labs/flux-1.1-pro:abc",
    7,
    "pred_01jabcdefgh",
    datetime(2026, 11, 22, 5, 6, 7, tzinfo=UTC),
)
HOME = Path("out")


def named(text: str | None, ext: str = "webp", index: int = 1, count: int = 1, **changes: object) -> str:
    fields = msgspec.structs.replace(FIELDS, **changes)
    return OutputPattern.parse(text, default_folder=HOME).path_for(index, count, fields, ext).as_posix()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (None, "out/a-cat-sitting-7.webp"),
        ("pictures/", "pictures/a-cat-sitting-7.webp"),
        ("cat.png", "cat.png"),
        ("cat", "cat.webp"),
        ("/tmp/x/cat.jpeg", "/tmp/x/cat.jpeg"),
        ("cat.PNG", "cat.PNG"),
        ("flux-1.1", "flux-1.1.webp"),
        (".hidden", ".hidden.webp"),
        ("{model}", "flux-1-1-pro.webp"),
        ("{model}.{ext}", "flux-1-1-pro.webp"),
        ("{model}{ext}", "flux-1-1-pro.webp"),
        ("{ext}/{seed}.{model}", "webp/7.flux-1-1-pro.webp"),
        ("{date}/{time}_{id}.png", "2026-11-22/05-06-07_pred_01jabcdefgh.png"),
        ("{date}/", "2026-11-22/a-cat-sitting-7.webp"),
        ("a/{seed:06}-{index:03}.png", "a/000007-001.png"),
        ("{{{seed}}}.png", "{7}.png"),
        ("{{x}}.png", "{x}.png"),
        ("../{prompt}.png", "../a-cat-sitting.png"),
        ("{ext}", "picture.webp"),
        ("x}.png", "x}.png"),
    ],
)
def test_patterns(text: str | None, path: str):
    assert named(text) == path


def test_an_existing_folder_takes_the_default_name(tmp_path: Path):
    assert named(str(tmp_path)) == f"{tmp_path.as_posix()}/a-cat-sitting-7.webp"
    braces = tmp_path / "{odd}"
    braces.mkdir()
    assert named(str(braces)) == f"{braces.as_posix()}/a-cat-sitting-7.webp"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert named("~/cat.png") == "/home/me/cat.png"
    assert named("~/{seed}.png") == "/home/me/7.png"
    pattern = OutputPattern.parse(None, default_folder=Path("~/pictures"))
    assert pattern.path_for(1, 1, FIELDS, "png").parent == Path("/home/me/pictures")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{promt}.png", "known: {prompt}, {model}, {seed}, {index}, {id}, {date}, {time}, {ext}"),
        ("{}.png", "known:"),
        ("{prompt.__class__}.png", "known:"),
        ("{prompt!r}.png", "takes no format"),
        ("{prompt:>10}.png", "takes no format"),
        ("{seed:999999999}.png", "takes no format"),
        ("{prompt.png", "lone brace"),
        ("a{.png", "lone brace"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\0b", "NUL"),
        ("nowhere-at-all/..", "names no file"),
        ("~no-such-user-anywhere/x.png", "home folder"),
    ],
)
def test_what_makes_no_sense_is_said(text: str, said: str):
    with pytest.raises(InvalidInput) as caught:
        OutputPattern.parse(text, default_folder=HOME)
    (problem,) = caught.value.problems
    assert problem.field == "output"
    assert said in problem.message


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("cat.png", ["cat_1.png", "cat_2.png"]),
        ("cat", ["cat_1.webp", "cat_2.webp"]),
        (None, ["out/a-cat-sitting-7_1.webp", "out/a-cat-sitting-7_2.webp"]),
        ("{index}.png", ["1.png", "2.png"]),
        ("{index}/cat.{ext}", ["1/cat.webp", "2/cat.webp"]),
    ],
)
def test_several_pictures_have_several_names(text: str | None, paths: list[str]):
    assert [named(text, index=index, count=2) for index in (1, 2)] == paths


def test_an_index_outside_of_the_count_is_a_mistake_of_ours():
    for index in (0, 3):
        with pytest.raises(ValueError, match="index"):
            named("cat.png", index=index, count=2)


@pytest.mark.parametrize(
    ("text", "format_"),
    [
        ("a.png", "png"), ("a.jpg", "jpg"), ("a.JPEG", "jpg"), ("{prompt}.webp", "webp"),
        ("a.gif", None), ("a", None), (None, None), ("f/", None), ("{prompt}.{ext}", None), (".png", None),
    ],
)  # fmt: skip
def test_the_extension_asks_for_a_format(text: str | None, format_: str | None):
    assert OutputPattern.parse(text, default_folder=HOME).wanted_format == format_


def test_without_a_seed_the_end_of_the_id_is_used():
    assert named(None, seed=None) == "out/a-cat-sitting-abcdefgh.webp"
    assert named(None, seed=None, id="") == "out/a-cat-sitting-0.webp"


@pytest.mark.parametrize("prompt", ["", "...", "///", "!?", "\0", "..", "-"])
def test_a_prompt_without_letters(prompt: str):
    assert named("{prompt}.png", prompt=prompt) == "picture.png"


@pytest.mark.parametrize("word", ["con", "NUL", "Com1", "lpt9", "aux"])
def test_names_that_windows_reserves_are_avoided(word: str):
    assert named("{prompt}.png", prompt=word) == f"{word.lower()}_.png"
    assert named("{prompt}/x.png", prompt=word) == f"{word.lower()}_/x.png"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"prompt": "../../etc/passwd"}, "etc-passwd-x.png"),
        ({"prompt": "-rf ~"}, "rf-x.png"),
        ({"prompt": "C:\\Windows"}, "c-windows-x.png"),
        ({"prompt": "℀ ﹒﹒\uff0f"}, "a-c-x.png"),
    ],
)
def test_a_prompt_cannot_lead_elsewhere(changes: dict[str, str], path: str):
    assert named("{prompt}-x.png", **changes) == path


def test_an_id_a_model_and_an_extension_cannot_lead_elsewhere():
    assert named("{id}.png", id="../../x") == "x.png"
    assert named("{model}.png", model="../..") == "model.png"
    assert named("x", ext="/../png") == "x.png"
    assert named("x", ext="") == "x.bin"


def test_names_made_from_fields_are_short_and_keep_their_number():
    long = "水" * 100
    name = Path(named("{prompt}{prompt}{prompt}-{index}.png", index=7, count=9, prompt=long)).name
    assert len(name.encode()) <= 200
    assert name.endswith("-7.png")
    literal = Path(named("é" * 120 + "{prompt}.png", index=7, count=9)).name
    assert len(literal.encode()) <= 200
    assert literal.endswith("_7.png")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Cat", "a-cat"),
        ("Ein Käfer!", "ein-käfer"),
        ("the cat's pyjamas", "the-cats-pyjamas"),
        ("猫が 座る", "猫が-座る"),
        ("एक बिल्ली", "एक-बिल्ली"),
        ("قطة جميلة", "قطة-جميلة"),
        ("e\u0301te\u0301", "été"),
        ("ﬁsh ²", "fish-2"),
        ("\u0301x", "x"),
        (
            "one two three four five six seven eight nine ten eleven",
            "one-two-three-four-five-six-seven-eight-nine-ten",
        ),
        ("x" * 60, "x" * 48),
        ("word " + "y" * 60, "word-" + "y" * 43),
    ],
)
def test_slugs(text: str, expected: str):
    assert slug(text) == expected
