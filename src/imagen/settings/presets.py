"""`presets:` of the file: named sets of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from imagen.domain.preset import BUILT_IN, Preset
from imagen.errors import ConfigError
from imagen.settings.yaml_file import ConfigFile, mapping_at

KEY = "presets"
_WHAT = "a mapping of names to presets, each a mapping of inputs such as aspect_ratio: 4:3"


def read_presets(file: ConfigFile | None) -> tuple[Mapping[str, Preset], dict[str, str]]:
    """Those that are built in, and those of the file, which win; and where each was written.

    Raises:
        ConfigError: one makes no sense; it names the line, the preset and the field.
    """
    presets: dict[str, Preset] = dict(BUILT_IN)
    sources = {f"{KEY}.{name}": "default" for name in presets}
    if file is not None and KEY in file.root:
        for name, node in mapping_at(file, KEY, file.root[KEY], _WHAT).items():
            fields = mapping_at(file, f"{KEY}.{name}", node, _WHAT)
            preset = Preset(name=name, fields={field: value.to_value() for field, value in fields.items()})
            for problem in preset.problems():
                line = fields[problem.field].line if problem.field in fields else node.line
                raise _wrong(file, f"{KEY}.{name}.{problem.field}", line, f": {problem.message}")
            presets[name] = preset
            sources[f"{KEY}.{name}"] = f"{file.shown}:{node.line}"
    return MappingProxyType(presets), sources


def _wrong(file: ConfigFile, name: str, line: int, why: str) -> ConfigError:
    source = f"{file.shown}:{line}"
    return ConfigError(f"{source}: {name[:200]}{why}.", setting=name, source=source)
