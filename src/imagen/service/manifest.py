"""Reads a file of many wishes: JSONL, JSON, CSV, YAML or plain lines become rows, each with the line it stands in.

Nothing is known here about models: a row is what somebody wrote, checked for its form alone. Whoever asks gives the
bytes; their size, the rows, the values and the depth are bounded, and no tag or alias of YAML is followed.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from imagen.decoding import decode
from imagen.domain.nesting import is_shallow
from imagen.domain.yaml_core import CORE_TAGS, TYPED_TAGS, plain_value
from imagen.errors import InvalidInput, Problem

Form = Literal["jsonl", "json", "csv", "yaml", "txt"]
"""How a file is written. `json` is one list, or one object with `tasks`; of `txt` each line is a prompt."""

FORMS: Mapping[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".txt": "txt",
}
"""What the end of a file's name says about it."""

MOST_ROWS = 10_000
MOST_BYTES = 64 << 20
"""Of a whole file."""
LONGEST_ROW = 1 << 20
"""Bytes of one line, or of all that one row says."""
MOST_FIELDS, LONGEST_NAME, DEEPEST = 200, 100, 32
"""No model has so many parameters, such long names or such nested values. A table has no more columns with a name."""
MOST_SHOWN, MOST_KEPT = 20, 1_000
"""So many mistakes are told to people, and to programs; of the others their number."""

_MOST_VALUES = 500_000
_MOST_DIGITS = 40
"""A whole number this long is still told by its own mistake; a model takes none."""
_TASKS = "tasks"
_SHOWN = 60
_MOST_COLUMNS_SHOWN, _COLUMN_SHOWN = 12, 40
_ENDS_EARLY = "Input data was truncated"
_BOM = b"\xef\xbb\xbf"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One wish, as it was written.

    Attributes:
        line: where it begins in its file, from 1.
        fields: names and values; `prompt` is among them and is text that is not blank. What is null is left out.
        item: its number in the list that it stands in, from 1; several may stand in one line. None where each
            row has lines of its own.
        typed: the values have types of their own. False for CSV: there every value is text, whatever it means.
    """

    line: int
    item: int | None = None
    fields: dict[str, Any]
    typed: bool = True

    @property
    def place(self) -> str:
        """Where it stands, in a sentence."""
        return place_of(self.line, self.item)


class Mistakes:
    """What is wrong with a file, told all at once and in the order of its lines.

    Args:
        subject: how sentences name the file.

    Attributes:
        count: how many there are; of very many only the first are kept.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._kept: list[tuple[int, int, Problem]] = []
        self.count = 0

    def add(self, line: int, message: str, *, item: int | None = None, field: str = "") -> None:
        """One more; `item` and `field` name what of the line is wrong. Line 0 is none: the field alone is named."""
        self.count += 1
        named = ", ".join(filter(None, (place_of(line, item), field)))
        self._kept.append((line, item or 0, Problem(named, message)))
        if len(self._kept) >= 2 * MOST_KEPT:
            self._trim()

    def add_error(self, row: Row, error: InvalidInput) -> None:
        """The problems of one row that somebody else found."""
        for problem in error.problems:
            self.add(row.line, problem.message, item=row.item, field=problem.field)

    def first(self, most: int) -> list[Problem]:
        """So many of them at most, those of the first lines; `MOST_KEPT` are known."""
        self._trim()
        return [problem for _, _, problem in self._kept[:most]]

    def error(self, *, hint: str | None = None, most: int = MOST_SHOWN) -> InvalidInput:
        """The first of them, and the number of the others, as an error."""
        first = self.first(most)
        more = self.count - len(first)
        told = [f"And {more:,} more."] if more else []
        return InvalidInput(first, subject=self._subject, hint=" ".join([*told, hint or ""]).strip() or None)

    def _trim(self) -> None:
        self._kept.sort(key=lambda one: one[:2])
        del self._kept[MOST_KEPT:]


def place_of(line: int, item: int | None) -> str:
    """Where a row stands, in a sentence; empty for line 0."""
    return ", ".join([*([f"line {line}"] if line else []), *([f"item {item}"] if item else [])])


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """What a file comes to.

    Attributes:
        rows: those that can be read, in order.
        mistakes: what is wrong with the others, and may be added to.
        hint: what to do about them, where that is the same for all.
    """

    rows: list[Row]
    mistakes: Mistakes
    hint: str | None = None


def form_of(name: str) -> Form | None:
    """The form that the end of a file's name tells; None when it tells none."""
    return next((form for ending, form in FORMS.items() if name.lower().endswith(ending)), None)


def read_manifest(
    content: bytes,
    *,
    form: Form,
    subject: str = "the file",
    most_rows: int = MOST_ROWS,
    hint: str = "`txt` takes each line as a prompt.",
) -> list[Row]:
    """The rows of a file, in order, where nothing is wrong with any.

    Args: see `gather_rows`.

    Raises:
        InvalidInput: it is not of that form, holds nothing or too much; with the line and field of each mistake.
    """
    found = gather_rows(content, form=form, subject=subject, most_rows=most_rows, hint=hint)
    if found.mistakes.count:
        raise found.mistakes.error(hint=found.hint)
    return found.rows


def gather_rows(
    content: bytes,
    *,
    form: Form,
    subject: str = "the file",
    most_rows: int = MOST_ROWS,
    hint: str = "`txt` takes each line as a prompt.",
) -> Gathered:
    """The rows of a file that can be read, and what is wrong with the others. Blank lines count as lines and make no row.

    Args:
        content: the whole file, UTF-8 with or without a mark at its beginning.
        form: how it is written.
        subject: how sentences name it.
        most_rows: how many it may have.
        hint: what to do about JSONL in which no line is any.

    Raises:
        InvalidInput: it is not of that form as a whole, holds nothing or too much.
    """
    if len(content) > MOST_BYTES:
        raise _refused(subject, f"it is larger than {MOST_BYTES >> 20} MiB; split it")
    mistakes = Mistakes(subject)
    rows: list[Row] = []
    reader = _Reader(content.removeprefix(_BOM), subject, mistakes)
    found: Callable[[], Iterator[Row]] = {
        "jsonl": reader.json_lines,
        "json": reader.json,
        "csv": reader.csv,
        "yaml": reader.yaml,
        "txt": reader.text_lines,
    }[form]
    for number, row in enumerate(found(), start=1):
        if number > most_rows:
            raise _refused(subject, f"it has more than {most_rows:,} rows; split it")
        before = mistakes.count
        _check_row(row, mistakes)
        if mistakes.count == before:
            rows.append(row)
    if not rows and not mistakes.count:
        raise _refused(subject, "it holds no prompt")
    is_none = form == "jsonl" and not reader.found_json
    return Gathered(rows=rows, mistakes=mistakes, hint=hint if is_none else None)


class _Reader:
    """The forms of one file.

    Attributes:
        found_json: a piece that was read as JSON was some, whether or not it makes a row.
    """

    def __init__(self, content: bytes, subject: str, mistakes: Mistakes) -> None:
        self._content = content
        self._subject = subject
        self._mistakes = mistakes
        self.found_json = False

    # --- lines -------------------------------------------------------------------------------------------

    def text_lines(self) -> Iterator[Row]:
        for line, raw in self._lines():
            try:
                yield Row(line=line, fields={"prompt": raw.decode()})
            except UnicodeDecodeError:
                self._mistakes.add(line, "it is not UTF-8")

    def json_lines(self) -> Iterator[Row]:
        for line, raw in self._lines():
            row = self._row(line, raw)
            if row is not None:
                yield row

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines that are not blank. They end in LF, CR LF or, as of old, CR."""
        newline = b"\r" if b"\r" in self._content and b"\n" not in self._content else b"\n"
        start, line = 0, 0
        while start < len(self._content):
            end = self._content.find(newline, start)
            end = len(self._content) if end < 0 else end
            line += 1
            if end - start > LONGEST_ROW:
                self._mistakes.add(line, f"it is longer than {LONGEST_ROW >> 20} MiB")
            elif raw := self._content[start:end].strip():
                yield line, raw
            start = end + 1

    def _row(self, line: int, raw: bytes, item: int | None = None) -> Row | None:
        """One row of a piece of JSON."""
        value = self._value(line, raw, item)
        if isinstance(value, str):
            return Row(line=line, item=item, fields={"prompt": value})
        if isinstance(value, dict):
            return Row(line=line, item=item, fields=_present(value))
        if value is not _WRONG:
            told = "it must be an object or, for a prompt alone, a text in quotes"
            self._mistakes.add(line, told, item=item)
        return None

    def _value(self, line: int, raw: bytes, item: int | None = None) -> Any:
        told, field = "", ""
        try:
            value = msgspec.json.decode(raw)
            self.found_json = True
            # Each name has a colon behind it: where there are no more of them than names, none is there twice.
            if not isinstance(value, dict) or raw.count(b":") == len(value) or not (told := _twice(raw)):
                return value
        except msgspec.DecodeError as error:
            told = _told_apart(error, raw) or ""
            field = _culprit(raw) if told else ""
            told = told or f"it is not JSON ({_reason(error)})"
        except RecursionError:
            told = "it is nested too deeply"
        except UnicodeDecodeError:
            told = "it is not UTF-8"
        self._mistakes.add(line, told, item=item, field=field)
        return _WRONG

    # --- one document ------------------------------------------------------------------------------------

    def json(self) -> Iterator[Row]:
        """One list, or one object with `tasks`. What stands beside them holds for every task that says nothing itself."""
        try:
            whole = decode(self._content, dict[str, msgspec.Raw] | list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _refused(self._subject, f"it is not a JSON list of tasks ({_reason(error)})") from None
        common: dict[str, Any] = {}
        start = 0
        if isinstance(whole, dict):
            tasks = bytes(whole.pop(_TASKS, b"null"))
            start = max(self._content.find(tasks), 0)
            common = {name: self._value(1, bytes(raw)) for name, raw in whole.items()}
            try:
                whole = decode(tasks, list[msgspec.Raw])
            except msgspec.DecodeError:
                raise _refused(self._subject, f"it has no list `{_TASKS}`") from None
            if told := _twice(self._content[:start] + b"0" + self._content[start + len(tasks) :]):
                raise _refused(self._subject, told)
        common = _present(common)
        counted, line = 0, 1
        for item, one in enumerate(whole, 1):
            raw = bytes(one)
            start = max(self._content.find(raw, start), start)
            line += self._content.count(b"\n", counted, start)
            counted = start
            row = self._row(line, raw, item)
            start += len(raw)
            if row is not None:
                yield msgspec.structs.replace(row, fields=common | row.fields)

    def yaml(self) -> Iterator[Row]:
        """The same in YAML."""
        root = _read_yaml(self._text(), self._subject)
        common: dict[str, Any] = {}
        tasks = root
        if isinstance(root.content, dict):
            if not isinstance(self._tasks(root).content, list):
                raise _refused(self._subject, f"it has no list `{_TASKS}`")
            tasks = self._tasks(root)
            common = _present({name: node.value() for name, node in root.content.items() if name != _TASKS})
        if not isinstance(tasks.content, list):
            raise _refused(self._subject, f"it must be a list of tasks, or hold one as `{_TASKS}`")
        for item, node in enumerate(tasks.content, 1):
            value = node.value()
            if isinstance(value, str):
                value = {"prompt": value}
            if isinstance(value, dict):
                yield Row(line=node.line, item=item, fields=common | _present(value))
            else:
                told = "it must be a mapping or, for a prompt alone, a text"
                self._mistakes.add(node.line, told, item=item)

    @staticmethod
    def _tasks(root: _Node) -> _Node:
        content = root.content
        return content.get(_TASKS, root) if isinstance(content, dict) else root

    # --- tables ------------------------------------------------------------------------------------------

    def csv(self) -> Iterator[Row]:
        """A header with `prompt`, and a row for each line below it. An empty cell is as if it were not there."""
        text = self._text()
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        line = 1
        names: list[str] | None = None
        try:
            for cells in rows:
                begins, line = line, rows.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if names is None:
                    names = self._header(begins, cells)
                else:
                    yield from self._table_row(begins, names, cells)
        except csv.Error as error:
            self._mistakes.add(line, f"it is not CSV ({error})")

    def _header(self, line: int, cells: Sequence[str]) -> list[str]:
        names = [cell.strip() for cell in cells]
        count = Counter(filter(None, names))
        if count.total() > MOST_FIELDS:
            raise InvalidInput(
                [
                    Problem(
                        f"line {line}", f"it names {count.total():,} columns; at most {MOST_FIELDS} are read"
                    )
                ],
                subject=self._subject,
            )
        if "prompt" not in names:
            told = f"the header must name the columns, and one of them `prompt`; it names {_columns(list(count))}"
            raise InvalidInput([Problem(f"line {line}", told)], subject=self._subject)
        for name, times in count.items():
            if times > 1:
                self._mistakes.add(line, "the column is there twice", field=name[:_SHOWN])
        return names

    def _table_row(self, line: int, names: Sequence[str], cells: Sequence[str]) -> Iterator[Row]:
        nameless = [
            index + 1
            for index, cell in enumerate(cells)
            if cell.strip() and (index >= len(names) or not names[index])
        ]
        if nameless:
            self._mistakes.add(line, f"cell {nameless[0]} stands in a column without a name")
            return
        fields = {name: cell for name, cell in zip(names, cells, strict=False) if name and cell.strip()}
        yield Row(line=line, fields=fields, typed=False)

    def _text(self) -> str:
        try:
            return self._content.decode()
        except UnicodeDecodeError as error:
            line = self._content.count(b"\n", 0, error.start) + 1
            raise InvalidInput(
                [Problem(f"line {line}", "it is not UTF-8")],
                subject=self._subject,
                hint="Save the file as UTF-8.",
            ) from None


_WRONG = object()


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value is not _WRONG}


def _reason(error: Exception) -> str:
    """What is wrong with JSON, without the place in a value that nobody sees."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        return "it is neither a list nor an object"
    text = str(error).partition(" - at `")[0].removeprefix("JSON is malformed: ")
    return "its end is missing" if _ENDS_EARLY in text else text[:1].lower() + text[1:]


def _told_apart(error: msgspec.DecodeError, raw: bytes) -> str | None:
    """What is wrong with a value that is JSON by its form, None where it is none."""
    text = str(error)
    if "out of range" in text:
        return "it is a number that is too large"
    if "surrogate" in text or (_ENDS_EARLY in text and _is_json(raw)):
        return "it has half of a character (\\ud800 to \\udfff without the other half)"
    return None


class _Twice(Exception):
    """An object of JSON has this name twice."""


def _each_once(pairs: Sequence[tuple[str, Any]]) -> None:
    """Raises `_Twice` for the first name that was there before."""
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise _Twice(name)
        names.add(name)


# What the values mean is not asked here: numbers, which may be very long, stay text.
_NAMES_ONLY = json.JSONDecoder(object_pairs_hook=_each_once, parse_int=str, parse_float=str)


def _twice(raw: bytes) -> str:
    """Tells a name that an object anywhere in a piece of JSON has twice; empty where none has.

    What cannot be read, or is nested too deeply, is told by whoever takes the values.
    """
    try:
        _NAMES_ONLY.decode(raw.decode())
    except _Twice as twice:
        return f"it has {str(twice)[:_SHOWN]!r} twice"
    except (ValueError, RecursionError):
        pass
    return ""


def _columns(names: Sequence[str]) -> str:
    """The columns of a table in a sentence. They may be anything, as where a table has no header."""
    shown = ", ".join(f"'{_printable(name[:_COLUMN_SHOWN])}'" for name in names[:_MOST_COLUMNS_SHOWN])
    more = len(names) - _MOST_COLUMNS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _is_json(raw: bytes) -> bool:
    """Whether it is JSON for a reader that takes half characters."""
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _culprit(raw: bytes) -> str:
    """The field of an object whose number is too large; empty where that is not known."""
    try:
        fields = decode(raw, dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    for name, value in fields.items():
        try:
            msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return name[:_SHOWN]
    return ""


def _refused(subject: str, message: str) -> InvalidInput:
    return InvalidInput([Problem("file", message)], subject=subject)


def _check_row(row: Row, mistakes: Mistakes) -> None:
    """Note what no row may be, whatever model it is for."""
    fields, wrong = row.fields, partial(mistakes.add, row.line, item=row.item)
    prompt = fields.get("prompt")
    if prompt is None:
        wrong("it is missing; every row needs one", field="prompt")
    elif not isinstance(prompt, str):
        wrong("it must be text; put it in quotes", field="prompt")
    elif not prompt.strip():
        wrong("it is empty; say what the picture shall show", field="prompt")
    if len(fields) > MOST_FIELDS:
        wrong(f"it has {len(fields)} fields; at most {MOST_FIELDS} are read")
    for name, value in fields.items():
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            wrong(f"{name[:_SHOWN]!r} is no name of a field")
        elif not is_shallow(value, DEEPEST):
            wrong(f"it is nested deeper than {DEEPEST} levels", field=name)
    if not row.typed and sum(map(len, fields.values())) > LONGEST_ROW:
        wrong(f"it is longer than {LONGEST_ROW >> 20} MiB")


def _delimiter(text: str) -> str:
    """What stands between the cells: spreadsheets of some countries write semicolons, some programs tabs."""
    header = next((line for line in text[:LONGEST_ROW].splitlines() if line.strip()), "")
    for delimiter in ",;\t":
        if "prompt" in (cell.strip().strip('"') for cell in header.split(delimiter)):
            return delimiter
    return ","


# --- YAML ------------------------------------------------------------------------------------------------


class _Node(NamedTuple):
    """A value and the line in which it begins. `plain`: it was written without quotes, so that `3` is a number."""

    content: str | list[_Node] | dict[str, _Node]
    line: int
    plain: bool = False

    def value(self) -> Any:
        """What it means in YAML's core schema; `16:9` is text, and not a number as of old."""
        if isinstance(self.content, list):
            return [node.value() for node in self.content]
        if isinstance(self.content, dict):
            return {name: node.value() for name, node in self.content.items()}
        return plain_value(self.content, most_digits=_MOST_DIGITS) if self.plain else self.content


def _read_yaml(text: str, subject: str) -> _Node:
    """The one document of a text.

    The events of the parser are put together here: no depth can exhaust the stack, no tag can make an object, and an
    alias, which could make something huge of a small file, is refused.
    """
    import yaml  # noqa: PLC0415 - most files are not YAML

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tree = _Tree(subject)
    try:
        for event in yaml.parse(text, Loader=loader):
            tree.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise tree.wrong(
            f"it is not YAML ({error.problem or error.context})", mark.line + 1 if mark else 1
        ) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", None) or "it cannot be read"
        raise tree.wrong(f"it is not YAML ({reason})", 1) from None
    root = tree.root
    return _Node([], 1) if root is None or root.value() is None else root


class _Tree:
    """Puts the events of YAML together."""

    def __init__(self, subject: str) -> None:
        self.root: _Node | None = None
        self._subject = subject
        self._open: list[tuple[bool, int, list[_Node]]] = []
        self._count = 0

    def wrong(self, message: str, line: int) -> InvalidInput:
        """The error that says so."""
        return InvalidInput([Problem(f"line {line}", message)], subject=self._subject)

    def take(self, event: Any) -> None:
        """The next event."""
        name, line = type(event).__name__, event.start_mark.line + 1
        tag = getattr(event, "tag", None)
        if tag not in {None, "!"} and tag not in CORE_TAGS:
            raise self.wrong("it has a tag (!…); only plain values are allowed", line)
        match name:
            case "ScalarEvent":
                self._add(_Node(event.value, line, event.implicit[0] or tag in TYPED_TAGS))
            case "AliasEvent":
                raise self.wrong(
                    f"it has an alias (*…); write what tasks have in common beside `{_TASKS}`", line
                )
            case "MappingStartEvent" | "SequenceStartEvent":
                self._open.append((name == "MappingStartEvent", line, []))
                if len(self._open) > DEEPEST:
                    raise self.wrong(f"it is nested deeper than {DEEPEST} levels", line)
            case "MappingEndEvent" | "SequenceEndEvent":
                is_mapping, begun, nodes = self._open.pop()
                self._add(_Node(self._mapping(nodes) if is_mapping else nodes, begun))
            case "DocumentStartEvent" if self.root is not None:
                raise self.wrong("it holds more than one document (---)", line)

    def _add(self, node: _Node) -> None:
        self._count += 1
        if self._count > _MOST_VALUES:
            raise self.wrong(f"it holds more than {_MOST_VALUES:,} values", node.line)
        if self._open:
            self._open[-1][2].append(node)
        else:
            self.root = node

    def _mapping(self, nodes: Sequence[_Node]) -> dict[str, _Node]:
        mapping: dict[str, _Node] = {}
        for key, value in zip(nodes[::2], nodes[1::2], strict=True):
            if not isinstance(key.content, str):
                raise self.wrong("it has a name that is a list or a mapping", key.line)
            if key.content in mapping:
                raise self.wrong(f"it has {key.content[:_SHOWN]!r} twice", key.line)
            mapping[key.content] = value
        return mapping
