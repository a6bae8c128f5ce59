"""The way to the database, and its schema."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, Pool, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

logger = logging.getLogger(__name__)

#: How long a writer waits for another one, or for a connection, before the request fails, in seconds.
BUSY_SECONDS = 5
#: How long a migration waits for another one to end, in seconds.
MIGRATION_SECONDS = 60
#: PostgreSQL's advisory locks are told apart by a number: this one is for the migrations of the task manager.
MIGRATION_LOCK = 7305


def connect(url: URL, poolclass: type[Pool] | None = None, max_mib: int | None = None) -> Engine:
    """Make the engine. Called when the application starts, so that `opentelemetry-instrument` is there before it.

    `max_mib` is how large a SQLite database may become through it, in MiB. What finds no room fails: see `is_full`.
    The engine is looked up in `sqlalchemy` at call time: that is the name which the instrumentation replaces.
    """
    sqlite = url.get_backend_name() == "sqlite"
    engine = sqlalchemy.create_engine(
        url,
        poolclass=poolclass,
        connect_args={"timeout": BUSY_SECONDS}
        if sqlite
        else {"connect_timeout": BUSY_SECONDS, "options": f"-c lock_timeout={BUSY_SECONDS}s"},
        pool_pre_ping=not sqlite,  # the first request after a restart of the database must not pay for it
        pool_logging_name="taskboard",  # `pool.name` of the connection metrics, which would be the address otherwise
        hide_parameters=True,  # an error's text goes into logs and spans; what people typed must not
    )
    if sqlite:

        @event.listens_for(engine, "connect")
        def set_up(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for writers
            if max_mib:
                cursor.execute("PRAGMA page_size")
                [(page_size,)] = cursor.fetchall()
                cursor.execute(f"PRAGMA max_page_count={max_mib * 2**20 // page_size}")

    return engine


def is_full(error: OperationalError) -> bool:
    """Tell whether a statement failed for lack of room: the database's own limit is reached, or its disk is full."""
    disk_full = getattr(error.orig, "sqlstate", "") == "53100"  # PostgreSQL's
    return disk_full or getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def migrate(url: URL) -> None:
    """Bring the schema up to what this code needs, before any worker starts. Two at the same time wait for each other.

    A schema that is newer than this code is left alone: migrations only ever add, so that the version before
    still works when a deploy has to be taken back.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    engine = connect(url)
    try:
        with engine.begin() as connection:
            _wait_for_other_migrations(connection)
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in known:
                logger.warning("The schema's revision %s is newer than this code; it is left as it is", current)
                return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _wait_for_other_migrations(connection: Connection) -> None:
    """Take a lock that ends with the transaction."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA busy_timeout={MIGRATION_SECONDS * 1000}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
