"""Puts the parts together: the only room that names concrete classes."""

from imagen.assembly.app import App, build, load_catalog
from imagen.assembly.backends import GATEWAY, ConfiguredBackends, Tokens
from imagen.assembly.elsewhere import Remote

__all__ = ["GATEWAY", "App", "ConfiguredBackends", "Remote", "Tokens", "build", "load_catalog"]
