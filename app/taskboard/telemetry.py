"""OpenTelemetry under a server that forks: one SDK a worker, started after the fork and emptied before the exit.

`opentelemetry-instrument` runs in gunicorn's master. An SDK started there would be inherited by every worker: all
would report under one `service.instance.id`, and their cumulative counters would overwrite each other. So the
instrumentation is loaded in the master, through the API's proxies, and the SDK behind it is started in each worker.
"""

from __future__ import annotations

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor

from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider
from opentelemetry.distro import OpenTelemetryConfigurator
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
from opentelemetry.sdk._configuration import _BaseConfigurator
from opentelemetry.sdk.metrics import MeterProvider

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


class OncePerMinute(logging.Filter):
    """Lets a logger speak once a minute on each level: a Collector that is away must not fill the journal."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.last: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is the first of its logger and level for a minute."""
        key = (record.name, record.levelno)
        if record.created - self.last.get(key, 0.0) < 60:
            return False
        self.last[key] = record.created
        return True


def start_in_worker() -> bool:
    """Start the SDK, from the environment as usual, under an identity of this process's own; return whether it runs."""
    _log_to_journal()
    if (arguments := WorkerConfigurator.arguments) is None:
        return False  # not under `opentelemetry-instrument`
    sdk = OpenTelemetryConfigurator()  # type: ignore[no-untyped-call]
    sdk.configure(**arguments, resource_attributes={"service.instance.id": str(uuid.uuid4())})  # type: ignore[no-untyped-call]
    # Not loaded in the master: it would measure the master's process from every worker.
    SystemMetricsInstrumentor(config=PROCESS_METRICS).instrument()
    return True


def _log_to_journal() -> None:
    """Have warnings written to the journal too, where they are found when no telemetry leaves the host."""

    def handler() -> logging.Handler:
        made = logging.StreamHandler()
        made.setLevel(logging.WARNING)
        made.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        return made

    logging.getLogger().addHandler(handler())
    logging.getLogger().setLevel(logging.INFO)
    # What the exporters complain about is not sent through those very exporters.
    exporters, seldom = logging.getLogger("opentelemetry"), handler()
    seldom.addFilter(OncePerMinute())
    exporters.addHandler(seldom)
    exporters.propagate = False


def stop_in_worker(shared: MeterProvider | None = None) -> None:
    """Send what is still in memory, so that a graceful stop loses nothing; without a Collector, give up in time."""
    providers = (trace.get_tracer_provider(), metrics.get_meter_provider(), get_logger_provider(), shared)
    # The API's own providers, without an SDK, have nothing to shut down.
    with ThreadPoolExecutor() as pool:  # each may wait for an export's timeout
        for provider in providers:
            if shutdown := getattr(provider, "shutdown", None):
                pool.submit(shutdown)
