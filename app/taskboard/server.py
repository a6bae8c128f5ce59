"""gunicorn's hooks; a configuration file takes them over by `from taskboard.server import *`."""

from __future__ import annotations

import os

from taskboard import database, telemetry
from taskboard.settings import Settings

__all__ = ["on_starting", "post_worker_init", "worker_exit"]


def on_starting(server: object) -> None:
    """In the master, before any worker: the schema is brought up to date once, and a bad setting stops the start."""
    database.migrate(Settings.from_environment(os.environ).database_url)


def post_worker_init(worker: object) -> None:
    """In a new worker, before its first request. Not in post_fork: until later, a signal to stop is not heard."""
    telemetry.start_in_worker()


def worker_exit(server: object, worker: object) -> None:
    """In a worker that has answered its last request."""
    telemetry.stop_in_worker()
