"""A small task manager whose every request can be followed: traces, metrics and logs by OpenTelemetry."""

from taskboard.application import create_app
from taskboard.settings import Settings, SettingsError

__all__ = ["Settings", "SettingsError", "create_app"]
