"""gunicorn's hooks; a configuration file takes them over by `from taskboard.server import *`."""

from __future__ import annotations

import os
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider

from taskboard import database, measures, telemetry
from taskboard.settings import Settings

__all__ = ["on_starting", "post_worker_init", "worker_exit"]

#: Made in the master, where gunicorn reads its configuration; every worker inherits it.
lead = measures.Lead()
#: In a worker: what it reports for all of them, when it has the lead.
shared: MeterProvider | None = None


def on_starting(server: object) -> None:
    """In the master, before any worker: the schema is brought up to date once, and a bad setting stops the start."""
    database.migrate(Settings.from_environment(os.environ).database_url)


def post_worker_init(worker: Any) -> None:  # noqa: ANN401 - gunicorn has no types
    """In a new worker, before its first request. Not in post_fork: until later, a signal to stop is not heard."""
    global shared
    if telemetry.start_in_worker():
        shared = measures.start(Settings.from_environment(os.environ).database_url, lead)
    worker.wsgi.extensions["taskboard.faults"].announce()


def worker_exit(server: object, worker: object) -> None:
    """In a worker that has answered its last request."""
    telemetry.stop_in_worker(shared)
