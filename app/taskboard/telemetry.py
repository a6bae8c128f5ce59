"""OpenTelemetry under a server that forks: one SDK a worker, started after the fork and emptied before the exit.

`opentelemetry-instrument` runs in gunicorn's master. An SDK started there would be inherited by every worker: all
would report under one `service.instance.id`, and their cumulative counters would overwrite each other. So the
instrumentation is loaded in the master, through the API's proxies, and the SDK behind it is started in each worker.
"""

from __future__ import annotations

import logging
import uuid

from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider
from opentelemetry.distro import OpenTelemetryConfigurator
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
from opentelemetry.sdk._configuration import _BaseConfigurator

#: What a worker reports of itself. The host's own figures are node_exporter's work.
PROCESS_METRICS: dict[str, list[str] | None] = {
    "process.cpu.time": ["user", "system"],
    "process.memory.usage": None,
    "process.thread.count": None,
    "process.open_file_descriptor.count": None,
    "cpython.gc.collections": None,
}


class WorkerConfigurator(_BaseConfigurator):
    """What `opentelemetry-instrument` calls in the master to start the SDK: it only remembers what it was told."""

    arguments: dict[str, object] | None = None

    def _configure(self, **kwargs: object) -> None:
        WorkerConfigurator.arguments = kwargs


def start_in_worker() -> None:
    """Start the SDK, from the environment as usual, under an identity of this process's own."""
    # Warnings go to the journal too, where they are found when no telemetry leaves the host.
    journal = logging.StreamHandler()
    journal.setLevel(logging.WARNING)
    journal.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(journal)
    logging.getLogger().setLevel(logging.INFO)
    if (arguments := WorkerConfigurator.arguments) is None:
        return  # not under `opentelemetry-instrument`
    sdk = OpenTelemetryConfigurator()  # type: ignore[no-untyped-call]
    sdk.configure(**arguments, resource_attributes={"service.instance.id": str(uuid.uuid4())})  # type: ignore[no-untyped-call]
    # Not loaded in the master: it would measure the master's process from every worker.
    SystemMetricsInstrumentor(config=PROCESS_METRICS).instrument()


def stop_in_worker() -> None:
    """Send what is still in memory, so that a graceful stop loses nothing."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider(), get_logger_provider()):
        shutdown = getattr(provider, "shutdown", None)  # the API's own providers, without an SDK, have none
        if shutdown:
            shutdown()
