"""The application with the real OpenTelemetry SDK, whose exporters keep everything in memory."""

import json
import os

import pytest

# As the role taskboard sets them; some are read when the instrumentations are imported.
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
os.environ["OTEL_PYTHON_FLASK_EXCLUDED_URLS"] = "healthz,version"

from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Telemetry:
    """What the application has sent."""

    def __init__(self):
        self._spans = InMemorySpanExporter()
        self._logs = InMemoryLogRecordExporter()
        # Deltas: each collection holds what happened since the one before.
        self._metrics = InMemoryMetricReader(preferred_temporality={Histogram: AggregationTemporality.DELTA})
        traces = TracerProvider(shutdown_on_exit=False)
        traces.add_span_processor(SimpleSpanProcessor(self._spans))
        trace.set_tracer_provider(traces)
        metrics.set_meter_provider(MeterProvider([self._metrics], shutdown_on_exit=False))
        logs = LoggerProvider(shutdown_on_exit=False)
        logs.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        set_logger_provider(logs)

    def clear(self):
        self._spans.clear()
        self._logs.clear()
        self._metrics.get_metrics_data()

    def spans(self):
        return self._spans.get_finished_spans()

    def server_span(self):
        (span,) = (span for span in self.spans() if span.kind is trace.SpanKind.SERVER)
        return span

    def logs(self):
        return [each.log_record for each in self._logs.get_finished_logs()]

    def points(self, name):
        return [
            point
            for resource in self._metrics.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture(scope="session")
def sdk():
    """The SDK and the instrumentations, started before the application is imported: see taskboard/__init__.py."""
    telemetry = Telemetry()
    for instrumentor in (FlaskInstrumentor(), SQLAlchemyInstrumentor(), LoggingInstrumentor()):
        instrumentor.instrument()
        assert instrumentor.is_instrumented_by_opentelemetry, f"{instrumentor} refused its library's version"
    return telemetry


@pytest.fixture
def database_url(tmp_path):
    return f"sqlite:///{tmp_path}/tasks.db"


@pytest.fixture
def faults():
    """Faults that are switched on: none, unless a test says otherwise."""
    return {}


@pytest.fixture
def app(sdk, database_url, faults, tmp_path, caplog):
    from taskboard import database
    from taskboard.application import create_app
    from taskboard.settings import Settings

    caplog.set_level("INFO")
    environment = {"TASKBOARD_DATABASE_URL": database_url, "TASKBOARD_VERSION": "7.7"}
    if faults:
        (tmp_path / "faults.json").write_text(json.dumps(faults))
        environment["TASKBOARD_FAULTS"] = f"{tmp_path}/faults.json"
    settings = Settings.from_environment(environment)
    database.migrate(settings.database_url)
    return create_app(settings)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def telemetry(sdk, app):
    """What has been sent since the test began."""
    sdk.clear()
    return sdk
