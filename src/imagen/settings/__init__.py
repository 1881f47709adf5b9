"""Rows of settings → frozen `Settings`: from a file and the environment, and where each value came from.

settings = load_settings(config=None, environ=os.environ, cwd=Path.cwd())
settings.replicate.read_timeout, settings.backends["emulator"].model, settings.sources["server.port"]
"""

from __future__ import annotations

from imagen.settings.folders import user_config_folder, user_data_folder
from imagen.settings.load import load_settings, read_server_url
from imagen.settings.rows import BACKEND_ROWS, ROWS, Row
from imagen.settings.sample import SAMPLE
from imagen.settings.shape import (
    BackendSettings,
    CacheSettings,
    DeliverySettings,
    Explained,
    LimitSettings,
    LogSettings,
    McpSettings,
    OpenAISettings,
    PictureSettings,
    PreviewSettings,
    RemoteSettings,
    ReplicateSettings,
    ServerSettings,
    Settings,
    SinkSettings,
    SupabaseSettings,
    TerminalSettings,
    choose_backend,
    choose_sink,
)
from imagen.settings.yaml_file import Place, choose_place, config_places

__all__ = [
    "BACKEND_ROWS",
    "ROWS",
    "SAMPLE",
    "BackendSettings",
    "CacheSettings",
    "DeliverySettings",
    "Explained",
    "LimitSettings",
    "LogSettings",
    "McpSettings",
    "OpenAISettings",
    "PictureSettings",
    "Place",
    "PreviewSettings",
    "RemoteSettings",
    "ReplicateSettings",
    "Row",
    "ServerSettings",
    "Settings",
    "SinkSettings",
    "SupabaseSettings",
    "TerminalSettings",
    "choose_backend",
    "choose_place",
    "choose_sink",
    "config_places",
    "load_settings",
    "read_server_url",
    "user_config_folder",
    "user_data_folder",
]
