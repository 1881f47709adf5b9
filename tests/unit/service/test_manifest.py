"""A file of many wishes becomes rows with their lines, in every form; what is wrong is told by line and field."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagen.errors import InvalidInput
from imagen.service.manifest import (
    LONGEST_ROW,
    MOST_ROWS,
    MOST_SHOWN,
    Form,
    Row,
    form_of,
    read_manifest,
)

FORMS: tuple[Form, ...] = ("jsonl", "json", "csv", "yaml", "txt")


def read(text: str | bytes, form: Form, **kinds: Any) -> list[Row]:
    return read_manifest(text.encode() if isinstance(text, str) else text, form=form, **kinds)


def refused(text: str | bytes, form: Form, **kinds: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(text, form, **kinds)
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------------


def test_lines_of_json_are_objects_or_prompts_and_keep_their_line() -> None:
    rows = read('{"prompt": "a fox", "seed": 7}\n\n"an owl"\n', "jsonl")
    assert rows == [
        Row(line=1, fields={"prompt": "a fox", "seed": 7}),
        Row(line=3, fields={"prompt": "an owl"}),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_marks_and_line_ends_of_other_systems_are_tolerated(newline: str, mark: bytes) -> None:
    texts: dict[Form, str] = {
        "jsonl": '{"prompt": "a"}\n{"prompt": "ü"}\n',
        "json": '["a",\n"ü"]\n',
        "csv": "prompt\na\nü\n",
        "yaml": "- a\n- ü\n",
        "txt": "a\nü\n",
    }
    for form, text in texts.items():
        rows = read(mark + text.replace("\n", newline).encode(), form)
        assert [row.fields["prompt"] for row in rows] == ["a", "ü"], form


def test_a_row_that_is_null_for_a_field_does_not_have_it() -> None:
    assert read('{"prompt": "a", "seed": null}', "jsonl")[0].fields == {"prompt": "a"}
    assert read("- {prompt: a, seed: ~}", "yaml")[0].fields == {"prompt": "a"}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("yaml", "model: flux-dev\nsteps: 4\ntasks:\n  - a fox\n  - prompt: an owl\n    steps: 8\n"),
        (
            "json",
            '{"model": "flux-dev", "steps": 4,\n "tasks": [\n"a fox",\n{"prompt": "an owl", "steps": 8}]}',
        ),
    ],
)
def test_what_stands_beside_tasks_holds_for_each_that_says_nothing_itself(form: Form, text: str) -> None:
    rows = read(text, form)
    assert [row.fields for row in rows] == [
        {"model": "flux-dev", "steps": 4, "prompt": "a fox"},
        {"model": "flux-dev", "steps": 8, "prompt": "an owl"},
    ]
    assert [row.line for row in rows] == ([4, 5] if form == "yaml" else [3, 4])


def test_cells_stay_text_and_empty_ones_are_absent() -> None:
    rows = read('prompt,seed,aspect_ratio\n"a fox, red",7,\n\nan owl,,16:9\n', "csv")
    assert rows == [
        Row(line=2, fields={"prompt": "a fox, red", "seed": "7"}, typed=False),
        Row(line=4, fields={"prompt": "an owl", "aspect_ratio": "16:9"}, typed=False),
    ]


def test_a_cell_of_several_lines_moves_the_lines_below_it() -> None:
    assert [row.line for row in read('prompt\n"a\nb"\nc\n', "csv")] == [2, 4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_may_be_separated_as_spreadsheets_do(delimiter: str) -> None:
    text = f"seed{delimiter}prompt\n7{delimiter}a fox\n"
    assert read(text, "csv")[0].fields == {"seed": "7", "prompt": "a fox"}


def test_rows_of_a_spreadsheet_that_hold_nothing_are_no_rows() -> None:
    assert len(read("prompt,seed\na,1\n,\n , \n", "csv")) == 1


def test_yaml_keeps_ratios_and_long_numbers_as_they_are_written() -> None:
    (row,) = read(
        "- {prompt: a, aspect_ratio: 16:9, seed: 9223372036854775807, x: 1.5, y: yes, z: true}", "yaml"
    )
    assert row.fields["aspect_ratio"] == "16:9"
    assert row.fields["seed"] == 2**63 - 1
    assert (row.fields["x"], row.fields["y"], row.fields["z"]) == (1.5, "yes", True)


def test_comments_are_known_in_yaml_alone() -> None:
    assert read("# mine\n- a fox # red\n", "yaml") == [Row(line=2, item=1, fields={"prompt": "a fox"})]
    assert read("# mine\n", "txt") == [Row(line=1, fields={"prompt": "# mine"})]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl", "jsonl"),
        ("B.CSV", "csv"),
        ("c.yml", "yaml"),
        ("d.ndjson", "jsonl"),
        ("e.txt", "txt"),
        ("f", None),
    ],
)
def test_the_end_of_a_name_tells_the_form(name: str, form: Form | None) -> None:
    assert form_of(name) == form


# --- what is refused -------------------------------------------------------------------------------------


def test_every_wrong_line_is_told_with_its_number_and_field() -> None:
    told = refused(
        '{"prompt": "a"}\n{"seed": 1}\nfox\n[1]\n{"prompt": " "}\n{"prompt": 7}\n', "jsonl", subject="x.jsonl"
    )
    assert told.startswith("x.jsonl: line 2, prompt: it is missing")
    for part in (
        "line 3: it is not JSON",
        "line 4: it must be an object",
        "line 5, prompt: it is empty",
        "line 6, prompt",
    ):
        assert part in told, told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", "seed": 1e400}', "line 2, seed: it is a number that is too large"),
        ('"\\ud800"', "line 2: it has half of a character"),
        ('{"prompt": "\\ud83d", "seed": 1}', "line 2: it has half of a character"),
        ('{"prompt": "\\udc00\\ud800"}', "line 2: it has half of a character"),
        ('{"prompt": "a', "line 2: it is not JSON (its end is missing)"),
        ('{"prompt": "\\ud83d', "line 2: it is not JSON (its end is missing)"),
    ],
)
def test_json_that_cannot_be_read_is_told_by_its_cause(line: str, told: str) -> None:
    error = refused(f'"a fox"\n{line}\n', "jsonl")
    assert told in error
    assert "$" not in error


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a fox", "prompt": "an owl"}', "line 2: it has 'prompt' twice"),
        ('{"prompt": "a", "seed": 1, "seed": 1}', "line 2: it has 'seed' twice"),
        ('{"prompt": "a", "seed": null, "seed": 1}', "line 2: it has 'seed' twice"),
        ('{"prompt": "a", "s\\u0065ed": 1, "seed" : 2}', "line 2: it has 'seed' twice"),
        ('{"prompt": "a", "lora": [{"scale": 1, "scale": 2}]}', "line 2: it has 'scale' twice"),
    ],
)
def test_a_name_that_an_object_has_twice_is_refused(line: str, told: str) -> None:
    assert told in refused(f'"a fox"\n{line}\n', "jsonl")
    assert told.replace(":", ", item 2:") in refused(f'["a fox",\n{line}]', "json")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"seed": 1, "tasks": ["a"], "seed": 2}', "seed"),
        ('{"tasks": ["a"], "tasks": ["b"]}', "tasks"),
        ('{"tasks": ["a"], "tasks": ["a"]}', "tasks"),
        ('{"lora": {"scale": 1, "scale": 2}, "tasks": ["a"]}', "scale"),
    ],
)
def test_a_name_that_stands_twice_beside_the_tasks_is_refused(text: str, name: str) -> None:
    assert f"it has '{name}' twice" in refused(text, "json")


def test_names_that_only_look_as_if_they_were_there_twice_are_read() -> None:
    line = '{"prompt": "\\"prompt\\": 1, \\"prompt\\": 2", "lora": {"prompt": "b"}, "loras": [{"x": 1}, {"x": 2}]}'
    assert read(line, "jsonl")[0].fields == json.loads(line)
    assert read(f'{{"seed": 1, "tasks": [{line}, {line}]}}', "json")[1].fields == {"seed": 1} | json.loads(
        line
    )


def test_looking_for_names_that_are_there_twice_takes_no_time_to_speak_of() -> None:
    row = {"prompt": "a fox: red, at dawn", "aspect_ratio": "16:9", "lora": {"scale": 1}, "seed": 7}
    began = time.process_time()
    assert len(read((json.dumps(row) + "\n") * MOST_ROWS, "jsonl")) == MOST_ROWS
    assert time.process_time() - began < 2


def test_items_of_one_line_are_told_apart() -> None:
    told = refused('[1,[2],"a",{"seed":1},{"prompt":"a","seed":1e400}]', "json")
    for part in (
        "line 1, item 1: it must be an object",
        "line 1, item 2: it must be an object",
        "line 1, item 4, prompt: it is missing",
        "line 1, item 5, seed: it is a number that is too large",
    ):
        assert part in told, told
    told = refused("[1, [2], {seed: 1}]", "yaml")
    for part in (
        "line 1, item 1: it must be a mapping",
        "line 1, item 2: it must be a mapping",
        "line 1, item 3, prompt: it is missing",
    ):
        assert part in told, told


def test_what_to_do_about_lines_that_are_no_json_is_for_the_caller_to_say() -> None:
    assert "`txt` takes each line" in refused("a fox\n", "jsonl")
    assert "`txt`" not in refused("a fox\n", "jsonl", hint="Write objects.")
    assert "`txt`" not in refused('{"prompt": "a", "prompt": "b"}\n', "jsonl")


def test_of_many_mistakes_the_first_are_told_and_the_others_counted() -> None:
    with pytest.raises(InvalidInput) as caught:
        read("{}\n" * 50, "jsonl")
    assert len(caught.value.problems) == MOST_SHOWN
    assert "And 30 more." in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_a_file_that_holds_nothing_is_refused(form: Form, text: str) -> None:
    assert "the file: " in refused(text, form)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_text_at_all_is_refused(form: Form) -> None:
    assert refused(b"prompt\n\xff\xfe\x00", form)
    assert refused(b"\x00\x01\x02\x03", form) if form != "txt" else True


@pytest.mark.parametrize("form", FORMS)
def test_no_more_rows_are_read_than_allowed(form: Form) -> None:
    text: dict[Form, str] = {
        "jsonl": '"a"\n' * 4,
        "json": '["a","a","a","a"]',
        "csv": "prompt\n" + "a\n" * 4,
        "yaml": "- a\n" * 4,
        "txt": "a\n" * 4,
    }
    assert len(read(text[form], form, most_rows=4)) == 4
    assert "more than 3 rows" in refused(text[form], form, most_rows=3)


def test_so_many_rows_are_read_as_a_batch_may_have() -> None:
    assert len(read('{"prompt": "a fox"}\n' * MOST_ROWS, "jsonl")) == MOST_ROWS
    assert "10,000 rows" in refused('"a"\n' * (MOST_ROWS + 1), "jsonl")


def test_a_line_of_a_megabyte_is_refused_and_not_read() -> None:
    assert "line 2: it is longer than 1 MiB" in refused('"a"\n"' + "a" * LONGEST_ROW + '"\n', "jsonl")
    assert "line 2" in refused("prompt,x\n" + '"' + "a" * LONGEST_ROW + '",b\n', "csv")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed,size\n1,2\n", "one of them `prompt`"),
        ("prompt,seed,seed\na,1,2\n", "seed: the column is there twice"),
        ("prompt,seed\na,1,2\n", "line 2: cell 3 stands in a column without a name"),
        ('prompt\n"a\nb\n', "line 2: it is not CSV"),
        ("prompt,seed\n,1\n", "line 2, prompt: it is missing"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str, part: str) -> None:
    assert part in refused(text, "csv")


def test_a_table_without_prompts_is_told_which_columns_it_has() -> None:
    assert "one of them `prompt`; it names 'Prompt', 'SEED'" in refused(" Prompt , SEED ,,\na,1\n", "csv")
    wide = ",".join(f"c{number}" for number in range(1, 16))
    told = refused(f"{wide}\na\n", "csv")
    assert "'c12' and 3 more" in told
    assert "c13" not in told
    told = refused(f"{'x' * 500},a\x1b[31m\u202eb\n1,2\n", "csv")
    assert f"'{'x' * 40}', 'a?[31m?b'" in told
    assert told.isprintable()


def test_a_table_of_very_many_columns_is_refused_at_once() -> None:
    began = time.process_time()
    many = ",".join(f"c{number}" for number in range(99_999))
    told = "line 1: it names 100,000 columns; at most 200 are read"
    assert told in refused(f"prompt,{many}\na\n", "csv")
    assert time.process_time() - began < 5
    assert "201 columns" in refused(f"prompt{',same' * 200}\na\n", "csv")


def test_columns_without_a_name_are_as_if_they_were_not_there() -> None:
    (row,) = read(f"prompt,seed{',' * 1000}\na,1{',' * 1000}\n", "csv")
    assert row.fields == {"prompt": "a", "seed": "1"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: b\n", "no list `tasks`"),
        ("fox\n", "must be a list of tasks"),
        ("- [a]\n", "line 1, item 1: it must be a mapping"),
        ("- 7\n", "line 1, item 1: it must be a mapping"),
        ("- !!python/object:os.system x\n", "it has a tag"),
        ("a: &a [1]\nb: *a\n", "line 2: it has an alias"),
        ("- {prompt: a, prompt: b}\n", "twice"),
        ("- a\n---\n- b\n", "more than one document"),
        ("- {prompt: a\n", "it is not YAML"),
        (
            "- {prompt: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[a]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}\n",
            "nested deeper",
        ),
        ("[" * 100_000, "nested deeper"),
        ("{? [a] : b}", "a name that is a list"),
    ],
)
def test_yaml_that_is_no_list_of_tasks_is_refused(text: str, part: str) -> None:
    assert part in refused(text, "yaml")


def test_a_small_file_cannot_become_something_huge() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "\n".join(
        f"{after}: &{after} [{','.join([f'*{before}'] * 8)}]"
        for before, after in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "alias" in refused(bomb, "yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"prompts": ["a"]}', "no list `tasks`"),
        ('{"tasks": {"a": 1}}', "no list `tasks`"),
        ('"a"', "not a JSON list"),
        ("[1]", "line 1, item 1: it must be an object"),
        ('["a",\n\n7]', "line 3, item 2: it must be an object"),
        ("[" * 100_000, "not a JSON list"),
    ],
)
def test_json_that_is_no_list_of_tasks_is_refused(text: str, part: str) -> None:
    assert part in refused(text, "json")


def test_values_nested_beyond_all_models_are_refused() -> None:
    deep = "[" * 40 + "]" * 40
    assert "line 1, lora: it is nested deeper than 32" in refused(
        f'{{"prompt": "a", "lora": {deep}}}', "jsonl"
    )
    endless = "[" * 100_000 + "]" * 100_000
    assert "line 1: it is" in refused(f'{{"prompt": "a", "lora": {endless}}}', "jsonl")


def test_names_that_are_none_and_too_many_of_them_are_refused() -> None:
    assert "is no name of a field" in refused(json.dumps({"prompt": "a", "x" * 200: 1}), "jsonl")
    assert "is no name of a field" in refused(json.dumps({"prompt": "a", "": 1}), "jsonl")
    many = {"prompt": "a"} | {f"x{number}": 1 for number in range(300)}
    assert "at most 200" in refused(json.dumps(many), "jsonl")


# --- for all inputs --------------------------------------------------------------------------------------

# 1e5 is left out: only older YAML takes it as text
_PROMPTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\u2028\u2029\x85")
).filter(lambda text: text.strip() and not re.fullmatch(r"[-+.0-9eE]+", text))
_NAMES = st.text("abcdefghij_", min_size=1, max_size=10).filter(lambda name: name != "tasks")
_VALUES = st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e9, 1e9), _PROMPTS)
_ROWS = st.lists(
    st.builds(
        lambda fields, prompt: fields | {"prompt": prompt},
        st.dictionaries(_NAMES, _VALUES, max_size=4),
        _PROMPTS,
    ),
    min_size=1,
    max_size=6,
)


@given(_ROWS)
def test_what_is_written_as_json_or_yaml_is_what_is_read(rows: list[dict[str, Any]]) -> None:
    lines = "\n".join(json.dumps(row) for row in rows)
    assert [row.fields for row in read(lines, "jsonl")] == rows
    assert [row.line for row in read(lines, "jsonl")] == list(range(1, len(rows) + 1))
    assert [row.fields for row in read(json.dumps({"tasks": rows}, indent=1), "json")] == rows
    assert [row.fields for row in read(yaml.safe_dump(rows, allow_unicode=True), "yaml")] == rows


@given(
    st.lists(st.dictionaries(st.sampled_from(["seed", "steps", "x y"]), _PROMPTS), min_size=1, max_size=6),
    _PROMPTS,
)
def test_what_a_table_says_is_what_is_read(rows: list[dict[str, str]], prompt: str) -> None:
    written = io.StringIO()
    writer = csv.DictWriter(written, ["seed", "prompt", "steps", "x y"])
    writer.writeheader()
    writer.writerows(row | {"prompt": prompt} for row in rows)
    assert [row.fields for row in read(written.getvalue(), "csv")] == [
        row | {"prompt": prompt} for row in rows
    ]


def read_or_refused(content: bytes, form: Form) -> list[Row]:
    with contextlib.suppress(InvalidInput):
        return read(content, form)
    return []


@given(st.binary(max_size=200), st.sampled_from(FORMS))
def test_whatever_the_bytes_are_they_are_read_or_refused(content: bytes, form: Form) -> None:
    assert all(row.fields["prompt"].strip() for row in read_or_refused(content, form))


@given(st.text(st.sampled_from('{}[]",:\n-&*!?|> promtaks#1'), max_size=60), st.sampled_from(FORMS))
def test_whatever_looks_like_a_file_is_read_or_refused(text: str, form: Form) -> None:
    assert all(1 <= row.line <= text.count("\n") + 1 for row in read_or_refused(text.encode(), form))
