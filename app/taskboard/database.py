"""The way to the database, and its schema."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

logger = logging.getLogger(__name__)

#: How long a writer waits for another one before the request fails, in seconds.
BUSY_SECONDS = 5


def connect(url: URL) -> Engine:
    """Make the engine. Called when the application starts, so that `opentelemetry-instrument` is there before it.

    The engine is looked up in `sqlalchemy` at call time: that is the name which the instrumentation replaces.
    """
    engine = sqlalchemy.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS},
        hide_parameters=True,  # an error's text goes into logs and spans; what people typed must not
    )

    @event.listens_for(engine, "connect")
    def readers_do_not_wait_for_writers(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.cursor().execute("PRAGMA journal_mode=WAL")

    return engine


def migrate(url: URL) -> None:
    """Bring the schema up to what this code needs. To be run by one process, before any worker starts.

    A schema that is newer than this code is left alone: migrations only ever add, so that the version before
    still works when a deploy has to be taken back.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    engine = connect(url)
    try:
        with engine.begin() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in known:
                logger.warning("The schema's revision %s is newer than this code; it is left as it is", current)
                return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
