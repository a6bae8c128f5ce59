"""gunicorn under opentelemetry-instrument, each worker reports for itself and loses nothing when it stops."""

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

APP = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP and counts requests by the instance that reported them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.lock = threading.Lock()
        self.spans, self.lines = Counter(), Counter()
        self.counts = {}  # cumulative, so the last report of an instance counts
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def instances(self):
        return set(self.counts)

    def take(self, path, body):
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans = [span for scope in resource.scope_spans for span in scope.spans]
                self.spans[instance(resource)] += sum(span.kind == span.SPAN_KIND_SERVER for span in spans)
        elif path == "/v1/logs":
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
                records = [record for scope in resource.scope_logs for record in scope.log_records]
                self.lines[instance(resource)] += sum("/api/tasks" in record.body.string_value for record in records)
        elif path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == "http.server.request.duration":
                            points = metric.histogram.data_points
                            self.counts[instance(resource)] = sum(point.count for point in points)


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.take(self.path, body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def instance(resource):
    return next(each.value.string_value for each in resource.resource.attributes if each.key == "service.instance.id")


@pytest.fixture
def collector():
    server = Collector()
    yield server
    server.shutdown()


@pytest.fixture
def installed(tmp_path):
    """A directory by which Python takes the application, and so its entry points, for installed."""
    points = tomllib.loads((APP / "pyproject.toml").read_text())["project"]["entry-points"]
    text = "\n".join(
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in each.items()) for group, each in points.items()
    )
    info = tmp_path / "site" / "taskboard-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: taskboard\nVersion: 0\n")
    (info / "entry_points.txt").write_text(text)
    return info.parent


@pytest.fixture
def server(tmp_path, installed, collector):
    """gunicorn with two workers; (process, port)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        "from taskboard.server import *\n"
        f"bind = '127.0.0.1:{port}'\n"
        "workers = 2\nworker_class = 'gthread'\nthreads = 2\ncontrol_socket_disable = True\n"
    )
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": f"{APP}:{installed}",
        "TASKBOARD_DATABASE_URL": f"sqlite:///{tmp_path}/tasks.db",
        "OTEL_PYTHON_CONFIGURATOR": "taskboard",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "system_metrics",
        "OTEL_PYTHON_FLASK_EXCLUDED_URLS": "healthz,version",
        "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        # Nothing leaves before the test is over, except at a worker's end.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "OTEL_BLRP_SCHEDULE_DELAY": "600000",
        "OTEL_METRIC_EXPORT_INTERVAL": "600000",
    }
    command = [BIN / "opentelemetry-instrument", BIN / "gunicorn", "-c", config, "taskboard.wsgi:app"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=log, stdout=log)
    try:
        until(lambda: ask(port, "/healthz") == 200, process)
        yield process, port
    finally:
        process.kill()
        process.wait()
        print((tmp_path / "log").read_text())


def until(condition, process):
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)  # between two questions


def ask(port, path):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def workers(process):
    return set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def test_every_request_is_counted_once_though_workers_are_replaced_and_stopped(server, collector):
    process, port = server
    sent = sum(ask(port, "/api/tasks") == 200 for _ in range(60))
    before = workers(process)
    process.send_signal(signal.SIGHUP)
    until(lambda: len(workers(process)) == 2 and not workers(process) & before, process)
    sent += sum(ask(port, "/api/tasks") == 200 for _ in range(60))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert sent == 120
    assert len(collector.instances()) > 2, "both generations of workers have reported, each worker for itself"
    assert sum(collector.spans.values()) == sent
    assert sum(collector.lines.values()) == sent
    assert sum(collector.counts.values()) == sent
    # The same worker tells the same story by each signal.
    assert +collector.spans == +collector.lines == +Counter(collector.counts)


def test_stop_without_a_collector_ends_in_time(server, collector):
    process, port = server
    collector.server_close()
    assert ask(port, "/api/tasks") == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
