"""The user's own folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def user_config_folder(environ: Mapping[str, str]) -> Path:
    """Where `imagen.yaml` and `credentials.json` of this user are."""
    if folder := _xdg(environ, "XDG_CONFIG_HOME", ".config"):
        return folder
    import platformdirs  # noqa: PLC0415 - importing it takes longer than reading the file

    return platformdirs.user_config_path("imagen")


def user_data_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's database and pictures are."""
    if folder := _xdg(environ, "XDG_DATA_HOME", ".local/share"):
        return folder
    import platformdirs  # noqa: PLC0415 - as above

    return platformdirs.user_data_path("imagen")


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """The folder by the rule of freedesktop.org where it can be told from `environ`, else None.

    A relative path in the variable is to be ignored, says the rule. Without it the rule holds on Linux only.
    """
    folder = Path(environ.get(variable, "").strip())
    if folder.is_absolute():
        return folder / "imagen"
    home = Path(environ.get("HOME", "").strip())
    if sys.platform == "linux" and home.is_absolute():
        return home / below_home / "imagen"
    return None
