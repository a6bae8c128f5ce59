"""What is measured of the tasks themselves: how many there are in each state.

Every worker would report the same of one database, and a sum over workers would count each task several times. So one
worker at a time reports it, and under an identity that is no worker's: there is one series a state, whoever writes it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator

from opentelemetry.environment_variables import OTEL_METRICS_EXPORTER
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from sqlalchemy import URL, NullPool, func, select

from taskboard import database
from taskboard.models import State, Task

#: `service.instance.id` of what all workers share.
SHARED_INSTANCE = "shared"


class Lead:
    """Held by one process at a time, of those that the maker has forked; the kernel frees it when its holder ends."""

    def __init__(self) -> None:
        """Make it in the parent, before the fork."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives

    def taken(self) -> bool:
        """Take the lead if nobody has it; return whether this process has it now."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: of the process, not of the open file
        except OSError:
            return False
        return True


def start(url: URL, lead: Lead) -> MeterProvider | None:
    """Report the tasks by state from the process that has the lead; return what is to be shut down at the end."""
    if os.environ.get(OTEL_METRICS_EXPORTER, "otlp") != "otlp":
        return None
    return provide(PeriodicExportingMetricReader(OTLPMetricExporter()), url, lead.taken)


def provide(reader: MetricReader, url: URL, reports: Callable[[], bool]) -> MeterProvider:
    """Give a reader the number of tasks by state, whenever it asks and `reports` says yes."""
    with suppress_instrumentation():  # its questions are no part of any request, nor of the pool's figures
        engine = database.connect(url, poolclass=NullPool)

    def count(_: CallbackOptions) -> Iterator[Observation]:
        if not reports():
            return
        with suppress_instrumentation(), engine.connect() as connection:
            found = connection.execute(select(Task.state, func.count()).group_by(Task.state))
            counts = dict.fromkeys(State, 0) | {row[0]: row[1] for row in found}
        for state, number in counts.items():
            yield Observation(number, {"task.state": state.value})

    resource = Resource.create({"service.instance.id": SHARED_INSTANCE})
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    provider.get_meter(__name__).create_observable_gauge(
        "taskboard.tasks", [count], "{task}", "Tasks in the database, by state"
    )
    return provider
