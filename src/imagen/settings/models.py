"""`models:` of the file: our user's own facts about models. What they may be, the catalog checks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from imagen.settings.yaml_file import ConfigFile, mapping_at

KEY = "models"
FACT = "your own fact about this model, in the place of the catalog's"
"""What `imagen config show` says of each."""

Facts = Mapping[str, Mapping[str, Any]]


def read_models(file: ConfigFile | None) -> tuple[Facts, Mapping[str, str]]:
    """The facts by the name that the file gives a model, as `Catalog.load` takes them; and where each was written.

    Raises:
        ConfigError: something that must be a mapping is none.
    """
    models: dict[str, Mapping[str, Any]] = {}
    sources: dict[str, str] = {}
    if file is not None and KEY in file.root:
        what = "a mapping of names to models, each a mapping of facts such as price: 0.02"
        for name, node in mapping_at(file, KEY, file.root[KEY], what).items():
            place = f"{KEY}.{name}"
            facts = mapping_at(file, place, node, what)
            models[name] = MappingProxyType({key: fact.to_value() for key, fact in facts.items()})
            sources[place] = f"{file.shown}:{node.line}"
            sources |= {f"{place}.{key}": f"{file.shown}:{fact.line}" for key, fact in facts.items()}
    return MappingProxyType(models), sources
