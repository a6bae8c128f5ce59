"""What the application is told from outside, and what it refuses to be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DATABASE_URL = "TASKBOARD_DATABASE_URL"
VERSION = "TASKBOARD_VERSION"


class SettingsError(ValueError):
    """A setting cannot be used; the message names the variable and says what to write instead."""


@dataclass(frozen=True)
class Settings:
    """Everything that differs between two installations."""

    database_url: URL
    #: What /version answers: the deployed artifact's version, by which a deploy proves that the new code runs.
    version: str = "development"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raise SettingsError for a missing or unusable one."""
        return cls(
            database_url=database_url(environment.get(DATABASE_URL, "")),
            version=environment.get(VERSION) or cls.version,
        )


def database_url(text: str) -> URL:
    """Parse a database address; raise SettingsError unless it is SQLite at an absolute path."""
    example = f"for example {DATABASE_URL}=sqlite:////var/lib/taskboard/tasks.db (four slashes)"
    if not text:
        raise SettingsError(f"{DATABASE_URL} is not set; {example}")
    try:
        url = make_url(text)
    except ArgumentError:
        raise SettingsError(f"{DATABASE_URL} is not a database address; {example}") from None
    if url.get_backend_name() != "sqlite":
        raise SettingsError(f"{DATABASE_URL} names a {url.get_backend_name()} database; only sqlite is supported")
    path = url.database or ""
    if path in ("", ":memory:") or path.startswith("file:"):
        raise SettingsError(f"{DATABASE_URL} names no file, so each worker would have tasks of its own; {example}")
    if not Path(path).is_absolute():
        raise SettingsError(
            f"{DATABASE_URL} names the relative path '{path}': the tasks would be wherever the server happens to be "
            f"started. Give an absolute path, {example}"
        )
    return url
