"""Finds and reads `imagen.yaml`, and remembers the line of everything in it.

The events of the parser are put together here rather than by PyYAML: no depth of nesting can exhaust
the stack, no alias can blow up, no tag can make an object, and a scalar stays the text that was written
(`16:9` is a ratio, and not the number 969 that YAML 1.1 sees there).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from imagen.domain.yaml_core import CORE_TAGS, NULLS, TYPED_TAGS, plain_value
from imagen.errors import ConfigError

LARGEST_FILE = 1024 * 1024
MOST_NODES = 10_000
DEEPEST = 20

Content: TypeAlias = "str | list[Node] | dict[str, Node]"


class Node(NamedTuple):
    """One value of the file.

    Attributes:
        line: where it, or the key it belongs to, stands.
        plain: it was written without quotes, so `null` means nothing and `3` is a number.
        size: how many nodes it holds with itself, each alias counted in full.
        depth: how deep they nest.
    """

    content: Content
    line: int
    plain: bool = True
    size: int = 1
    depth: int = 1

    @property
    def is_null(self) -> bool:
        """Whether nothing was written."""
        return self.plain and isinstance(self.content, str) and self.content in NULLS

    def to_value(self) -> Any:
        """What it means in YAML's core schema, for keys whose type only a plugin knows."""
        if isinstance(self.content, list):
            return [node.to_value() for node in self.content]
        if isinstance(self.content, dict):
            return {key: node.to_value() for key, node in self.content.items()}
        return plain_value(self.content) if self.plain else self.content


class ConfigFile(NamedTuple):
    """A file that was read: `shown` is how messages name it."""

    path: Path
    shown: str
    root: Mapping[str, Node]


def mapping_at(file: ConfigFile, name: str, node: Node, what: str) -> Mapping[str, Node]:
    """The mapping that stands at a name of the file; an empty one when all behind the key is commented out.

    Args:
        file: for messages.
        name: dotted, for messages.
        node: what stands there.
        what: what must stand there, worded to follow "must be".

    Raises:
        ConfigError: something else does.
    """
    if node.is_null:
        return {}
    if not isinstance(node.content, dict):
        source = f"{file.shown}:{node.line}"
        raise ConfigError(f"{source}: {name[:200]} must be {what}.", setting=name, source=source)
    return node.content


class Place(NamedTuple):
    """Somewhere a configuration may be: `shown` is how messages name it, `asked_for_by` who insists on it.

    Attributes:
        name: what kind of place it is.
        path: None when nobody named one.
    """

    name: str
    path: Path | None
    shown: str
    asked_for_by: str | None = None


def config_places(
    config: Path | None, environ: Mapping[str, str], cwd: Path, user_folder: Path
) -> tuple[Place, ...]:
    """All places in the order in which they are looked at."""
    named = environ.get("IMAGEN_CONFIG", "").strip()
    own = user_folder / "imagen.yaml"
    return (
        Place("--config", cwd / _expanded(config) if config else None, str(config or ""), "--config"),
        Place(
            "IMAGEN_CONFIG",
            cwd / _expanded(Path(named)) if named else None,
            named,
            "environment IMAGEN_CONFIG",
        ),
        Place("current folder", cwd / "imagen.yaml", "imagen.yaml"),
        Place("user's folder", own, str(own)),
    )


def choose_place(places: Iterable[Place]) -> Place | None:
    """The place whose file is read: the first that was asked for or has one."""
    for place in places:
        if place.path is None:
            continue
        if place.asked_for_by:
            return place
        try:
            place.path.stat()
        except OSError:  # not there, or in a folder that is closed to us: a service with somebody else's home
            continue
        return place
    return None


def find_config(
    config: Path | None, environ: Mapping[str, str], cwd: Path, user_folder: Path
) -> ConfigFile | None:
    """The first of `config`, `$IMAGEN_CONFIG`, `./imagen.yaml` and the user's own that there is, read.

    Raises:
        ConfigError: a file that was asked for is missing, or the one that was found cannot be used.
    """
    place = choose_place(config_places(config, environ, cwd, user_folder))
    if place is None or place.path is None:
        return None
    return read_config(place.path, shown=place.shown, asked_for_by=place.asked_for_by)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not there: no such file, then
        return path


def read_config(path: Path, *, shown: str, asked_for_by: str | None = None) -> ConfigFile:
    """The mapping that a file holds.

    Raises:
        ConfigError: it cannot be read, or is no such mapping; the message says which file and why.
    """
    shown = shown if shown.isprintable() else ascii(shown)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or "that is no path"
        raise ConfigError(
            f"{shown}: the configuration cannot be read: {reason[0].lower()}{reason[1:]}.",
            source=shown,
            hint=f"It was named by {asked_for_by}." if asked_for_by else None,
        ) from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(
            f"{shown}: the configuration is larger than {LARGEST_FILE // 1024} KiB.", source=shown
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown}:{line}: the configuration is not UTF-8.", source=f"{shown}:{line}"
        ) from None
    return ConfigFile(path, shown, parse_config(text, shown))


def parse_config(text: str, shown: str) -> Mapping[str, Node]:
    """The mapping that a text holds; empty when it holds nothing but comments.

    Raises:
        ConfigError: as `read_config`.
    """
    import yaml  # noqa: PLC0415 - a quarter of all the time it takes to load settings, and often there is no file

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    build = _Tree(shown)
    try:
        for event in yaml.parse(text, Loader=loader):
            build.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise build.wrong(
            f"is not YAML: {error.problem or error.context}", mark.line + 1 if mark else 1
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1  # a position in bytes
        raise build.wrong(f"is not YAML: {error.reason}", line) from None
    except yaml.YAMLError:
        raise build.wrong("is not YAML", 1) from None
    root = build.root
    if root is None or root.is_null:
        return {}
    if not isinstance(root.content, dict):
        raise build.wrong("must be a mapping of settings, such as `default_backend: emulator`", root.line)
    return root.content


class _Open(NamedTuple):
    """A list or mapping that has not ended. A mapping's items are keys and values by turns."""

    kind: Literal["list", "mapping"]
    line: int
    anchor: str | None
    items: list[Node]


class _Tree:
    """Puts events together to nodes."""

    def __init__(self, shown: str) -> None:
        self.root: Node | None = None
        self._shown = shown
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def wrong(self, why: str, line: int) -> ConfigError:
        """The error that says so."""
        source = f"{self._shown}:{line}"
        return ConfigError(f"{source}: the configuration {why}.", source=source)

    def take(self, event: Any) -> None:
        """The next event of `yaml.parse`."""
        name, line = type(event).__name__, event.start_mark.line + 1
        tag = getattr(event, "tag", None)
        if tag not in {None, "!"} and tag not in CORE_TAGS:
            raise self.wrong("has a tag (!…); only plain values are allowed", line)
        match name:
            case "ScalarEvent":
                plain = event.implicit[0] or tag in TYPED_TAGS
                self._add(Node(event.value, line, plain), event.anchor)
            case "AliasEvent":
                if (node := self._anchors.get(event.anchor)) is None:
                    raise self.wrong(
                        "has an alias (*…) to something that does not stand complete above it", line
                    )
                self._add(node._replace(line=line), None)
            case "MappingStartEvent" | "SequenceStartEvent":
                kind: Literal["list", "mapping"] = "mapping" if name == "MappingStartEvent" else "list"
                self._open.append(_Open(kind, line, event.anchor, []))
                if len(self._open) > DEEPEST:
                    raise self.wrong(f"nests deeper than {DEEPEST} levels", line)
            case "MappingEndEvent" | "SequenceEndEvent":
                ended = self._open.pop()
                self._add(self._closed(ended), ended.anchor)
            case "DocumentStartEvent" if self.root is not None:
                raise self.wrong("holds more than one document (---)", line)

    def _add(self, node: Node, anchor: str | None) -> None:
        self._count += 1
        if self._count > MOST_NODES or node.size > MOST_NODES:
            raise self.wrong(f"holds more than {MOST_NODES} values", node.line)
        if node.depth + len(self._open) > DEEPEST:
            raise self.wrong(f"nests deeper than {DEEPEST} levels", node.line)
        if anchor is not None:
            self._anchors[anchor] = node
        if self._open:
            self._open[-1].items.append(node)
        else:
            self.root = node

    def _closed(self, ended: _Open) -> Node:
        items = ended.items
        content: Content = items if ended.kind == "list" else self._mapping(items)
        inner = list(content.values()) if isinstance(content, dict) else items
        size = 1 + sum(node.size for node in inner)
        return Node(content, ended.line, size=size, depth=1 + max((node.depth for node in inner), default=0))

    def _mapping(self, items: list[Node]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key.content, str):
                raise self.wrong("has a key that is a list or a mapping", key.line)
            if key.plain and key.content == "<<":
                merged = self._merged(value) | merged
                continue
            if key.content in own:
                first = own[key.content].line
                raise self.wrong(f"has the key {shorten(key.content)} twice, first in line {first}", key.line)
            own[key.content] = value._replace(line=key.line)
        return merged | own

    def _merged(self, value: Node) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        for node in value.content if isinstance(value.content, list) else [value]:
            if not isinstance(node.content, dict):
                raise self.wrong("merges (<<) something that is no mapping", node.line)
            merged = node.content | merged
        return merged


def shorten(text: str) -> str:
    """`text` in quotes, in one line and not too long."""
    return repr(text if len(text) <= 80 else text[:77] + "…")
