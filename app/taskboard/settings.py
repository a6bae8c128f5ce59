"""What the application is told from outside, and what it refuses to be told."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from taskboard import faults

DATABASE_URL = "TASKBOARD_DATABASE_URL"
#: How large a SQLite database may become, in MiB.
MAX_MIB = "TASKBOARD_MAX_MIB"
VERSION = "TASKBOARD_VERSION"
#: Path of a JSON file, see `taskboard.faults`.
FAULTS = "TASKBOARD_FAULTS"
#: The database's password: a file of this name below $CREDENTIALS_DIRECTORY, where systemd puts what it is to keep.
PASSWORD_CREDENTIAL = "database_password"  # noqa: S105 - a file's name

LARGEST_MIB = 10**6
POSTGRESQL = "postgresql+psycopg"
SQLITE_EXAMPLE = f"for example {DATABASE_URL}=sqlite:////var/lib/taskboard/tasks.db (four slashes)"
POSTGRESQL_EXAMPLE = f"for example {DATABASE_URL}={POSTGRESQL}://taskboard@127.0.0.1/taskboard"


class SettingsError(ValueError):
    """A setting cannot be used; the message names the variable and says what to write instead."""


@dataclass(frozen=True)
class Settings:
    """Everything that differs between two installations."""

    database_url: URL
    #: What a SQLite database may take on the disk, in MiB. PostgreSQL has limits of its own.
    max_mib: int = 100
    #: What /version answers: the deployed artifact's version, by which a deploy proves that the new code runs.
    version: str = "development"
    faults: tuple[faults.Fault, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raise SettingsError for a missing or unusable one."""
        try:
            switched_on = faults.load(environment.get(FAULTS, ""))
        except faults.FaultsError as error:
            raise SettingsError(f"{FAULTS}: {error}") from None
        return cls(
            database_url=database_url(environment.get(DATABASE_URL, ""), _password(environment)),
            max_mib=_max_mib(environment.get(MAX_MIB) or str(cls.max_mib)),
            version=environment.get(VERSION) or cls.version,
            faults=switched_on,
        )


def _max_mib(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_MIB):
        raise SettingsError(f"{MAX_MIB} is {text!r}; it must be a whole number from 1 to {LARGEST_MIB}")
    return int(text)


def _password(environment: Mapping[str, str]) -> str | None:
    directory = environment.get("CREDENTIALS_DIRECTORY")
    file = Path(directory, PASSWORD_CREDENTIAL) if directory else None
    return file.read_text().rstrip("\n") if file and file.exists() else None


def database_url(text: str, password: str | None = None) -> URL:
    """Parse a database address and put the password into it, which a URL's own text then hides.

    Raises SettingsError unless it is SQLite at an absolute path, or PostgreSQL without a password in the address and,
    unless it is on this host, with TLS. No message repeats the address: there may be a password in it.
    """
    if not text:
        raise SettingsError(f"{DATABASE_URL} is not set; {SQLITE_EXAMPLE}")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise SettingsError(f"{DATABASE_URL} is not a database address; {SQLITE_EXAMPLE}") from None
    if url.drivername == "sqlite":
        return _sqlite(url)
    if url.drivername == POSTGRESQL:
        return _postgresql(url, password)
    raise SettingsError(
        f"{DATABASE_URL} begins with {url.drivername}; sqlite and {POSTGRESQL} are supported, {POSTGRESQL_EXAMPLE}"
    )


def _sqlite(url: URL) -> URL:
    path = url.database or ""
    if path in ("", ":memory:") or path.startswith("file:"):
        raise SettingsError(
            f"{DATABASE_URL} names no file, so each worker would have tasks of its own; {SQLITE_EXAMPLE}"
        )
    if not Path(path).is_absolute():
        raise SettingsError(
            f"{DATABASE_URL} names the relative path '{path}': the tasks would be wherever the server happens to be "
            f"started. Give an absolute path, {SQLITE_EXAMPLE}"
        )
    return url


def _postgresql(url: URL, password: str | None) -> URL:
    if url.password is not None or "password" in url.query:
        raise SettingsError(
            f"{DATABASE_URL} holds a password, which everybody on the host could read. Leave it out, and give it as "
            f"the credential {PASSWORD_CREDENTIAL} (with Watchpost: the variable taskboard_database_password)"
        )
    if not url.username or not url.database:
        raise SettingsError(f"{DATABASE_URL} names no user or no database; {POSTGRESQL_EXAMPLE}")
    socket = url.query.get("host", "/")
    if not isinstance(socket, str) or not socket.startswith("/") or (url.host and "host" in url.query):
        raise SettingsError(f"{DATABASE_URL}: host= is for the directory of a socket; write a host before the path")
    if not _on_this_host(url.host) and url.query.get("sslmode") != "verify-full":
        raise SettingsError(
            f"{DATABASE_URL} leads to another host without proof of which: end it with "
            "?sslmode=verify-full&sslrootcert=system, or the path of the authority's certificate instead of system"
        )
    return url.set(password=password)


def _on_this_host(host: str | None) -> bool:
    if not host or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
