"""Settings from environment variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from imagen.errors import ConfigError
from imagen.settings.rows import BY_VARIABLE, PREFIX, ROWS
from imagen.settings.suggest import suggestion

BACKENDS_PREFIX = "IMAGEN_BACKENDS__"
NO_SETTINGS = frozenset({"IMAGEN_CONFIG"})
FOR_TESTS = "IMAGEN_TEST_"


class Variable(NamedTuple):
    """A variable that holds something."""

    name: str
    text: str

    @property
    def source(self) -> str:
        """How messages name it."""
        return f"environment {self.name if self.name.isprintable() else ascii(self.name)}"


def variables_of_settings(environ: Mapping[str, str]) -> dict[str, Variable]:
    """The variables that set something, by the dotted name of the setting. An empty variable sets nothing."""
    found: dict[str, Variable] = {}
    for row in ROWS:
        for name in row.variables:
            if text := environ.get(name, "").strip():
                found[row.name] = Variable(name, text)
                break
    return found


def variables_of_backends(environ: Mapping[str, str], known: Iterable[str]) -> dict[str, dict[str, Variable]]:
    """The variables that set something of a backend, by its name and key.

    Raises:
        ConfigError: a variable names no key, or could mean either of two of the `known` backends.
    """
    by_form: dict[str, list[str]] = {}
    for backend in known:
        by_form.setdefault(_form(backend), []).append(backend)
    found: dict[str, dict[str, Variable]] = {}
    for name in sorted(environ):
        if not name.startswith(BACKENDS_PREFIX):
            continue
        variable = Variable(name, environ[name].strip())
        segment, _, key = name.removeprefix(BACKENDS_PREFIX).rpartition("__")
        if not segment or not key:
            raise ConfigError(
                f"{variable.source}: names no setting of a backend.",
                setting=name,
                source=variable.source,
                hint=f"Write {BACKENDS_PREFIX}<NAME>__<KEY>, such as {BACKENDS_PREFIX}FAST__MODEL.",
            )
        if variable.text:
            backend = _backend(segment, by_form, variable)
            found.setdefault(backend, {})[key.lower()] = variable
    return found


def refuse_unknown(environ: Mapping[str, str]) -> None:
    """Refuse a variable that begins with `IMAGEN_` and is none of ours: most likely it is misspelt.

    Raises:
        ConfigError: there is one.
    """
    for name in sorted(environ):
        if (
            name.startswith(PREFIX)
            and name not in BY_VARIABLE
            and name not in NO_SETTINGS
            and not name.startswith((BACKENDS_PREFIX, FOR_TESTS))
        ):
            known = [*BY_VARIABLE, *NO_SETTINGS, f"{BACKENDS_PREFIX}<NAME>__<KEY>"]
            source = Variable(name, "").source
            raise ConfigError(
                f"{source}: there is no such setting.",
                setting=name,
                source=source,
                hint=suggestion(name, known),
            )


def _backend(segment: str, by_form: Mapping[str, list[str]], variable: Variable) -> str:
    names = by_form.get(_form(segment), [segment.lower()])
    if len(names) > 1:
        raise ConfigError(
            f"{variable.source}: could mean any of the backends {', '.join(names)}.",
            setting=variable.name,
            source=variable.source,
            hint="Give one of them another name.",
        )
    return names[0]


def _form(backend: str) -> str:
    """What names of a backend have in common that a variable cannot tell apart."""
    return backend.lower().replace("-", "_").replace(".", "_")
