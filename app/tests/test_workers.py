"""gunicorn under opentelemetry-instrument, each worker reports for itself and loses nothing when it stops."""

import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

STATUS = "http.response.status_code"
APP = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP and counts requests by the instance that reported them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.lock = threading.Lock()
        self.spans, self.lines = Counter(), Counter()
        self.counts = {}  # instance -> requests by status; cumulative, so its last report counts
        self.tasks = {}  # instance -> tasks by state
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def instances(self):
        return set(self.counts)

    def counted(self):
        """Requests by status, of all instances together."""
        with self.lock:
            return sum(self.counts.values(), Counter())

    def take(self, path, body):
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans = [span for scope in resource.scope_spans for span in scope.spans]
                self.spans[instance(resource)] += sum(span.kind == span.SPAN_KIND_SERVER for span in spans)
        elif path == "/v1/logs":
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
                records = [record for scope in resource.scope_logs for record in scope.log_records]
                self.lines[instance(resource)] += sum(any(a.key == "http.route" for a in r.attributes) for r in records)
        elif path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == "http.server.request.duration":
                            points = metric.histogram.data_points
                            self.counts[instance(resource)] = Counter()
                            for point in points:
                                self.counts[instance(resource)][attribute(point, STATUS)] += point.count
                        elif metric.name == "taskboard.tasks":
                            points = metric.gauge.data_points
                            self.tasks[instance(resource)] = {attribute(p, "task.state"): p.as_int for p in points}


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


def attribute(owner, key):
    value = next(each.value for each in owner.attributes if each.key == key)
    return getattr(value, value.WhichOneof("value"))


def instance(resource):
    return attribute(resource.resource, "service.instance.id")


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
def export_every_ms():
    """Nothing leaves before the test is over, except at a worker's end."""
    return 600_000


@pytest.fixture
def server(tmp_path, installed, collector, export_every_ms):
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
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({"error": {"share": 1, "route": "/api/tasks/<int:task_id>/complete"}}))
    environment = {
        "TASKBOARD_FAULTS": str(faults),
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
        "OTEL_BSP_SCHEDULE_DELAY": str(export_every_ms),
        "OTEL_BLRP_SCHEDULE_DELAY": str(export_every_ms),
        "OTEL_METRIC_EXPORT_INTERVAL": str(export_every_ms),
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


def ask(port, path, method="GET"):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path)
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
    assert collector.counted() == {200: sent}
    # The same worker tells the same story by each signal.
    counts = Counter({instance: sum(by_status.values()) for instance, by_status in collector.counts.items()})
    assert +collector.spans == +collector.lines == +counts


#: What is asked under fire: requests that succeed, that fail by the caller's mistake, and by the server's.
QUESTIONS = {("GET", "/api/tasks"): 200, ("GET", "/api/tasks/77"): 404, ("POST", "/api/tasks/77/complete"): 500}


@contextmanager
def fire(port):
    """Ask from several sides until the block ends; the answers' times and statuses, None for no answer."""
    answers, over = [], threading.Event()

    def shoot():
        while not over.is_set():
            for (method, path), expected in QUESTIONS.items():
                status = ask(port, path, method)
                assert status in (expected, None)
                answers.append((time.monotonic(), status))

    with ThreadPoolExecutor(4) as pool:
        sides = [pool.submit(shoot) for _ in range(4)]
        try:
            yield answers
        finally:
            over.set()
    for side in sides:
        side.result()


def until_more(answers, process):
    enough = len(answers) + 30
    until(lambda: len(answers) > enough, process)


def reload(process):
    before = workers(process)
    process.send_signal(signal.SIGHUP)
    until(lambda: len(workers(process)) == 2 and not workers(process) & before, process)


def test_reload_under_load_loses_no_request_and_no_count(server, collector):
    process, port = server
    with fire(port) as answers:
        for _ in range(2):
            reload(process)
            until_more(answers, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    sent = Counter(status for _, status in answers)
    assert sent.keys() == set(QUESTIONS.values()), "each was answered, and as it should be"
    assert len(collector.instances()) > 4
    assert collector.counted() == sent


@pytest.mark.parametrize("export_every_ms", [1000])
def test_killed_worker_loses_no_more_than_it_counted_since_its_last_export(server, collector, export_every_ms):
    process, port = server
    with fire(port) as answers:
        until(lambda: sum(collector.counted().values()) > 100, process)
        killed = time.monotonic()
        os.kill(int(workers(process).pop()), signal.SIGKILL)
        until_more(answers, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    sent = Counter(status for _, status in answers)
    unanswered = sent.pop(None, 0)
    assert unanswered <= 4, "no more than were being worked on"
    lost = sum(sent.values()) - sum(collector.counted().values())
    # An interval, and the time in which its export was on the way.
    at_stake = sum(killed - 1.5 * export_every_ms / 1000 < at <= killed for at, status in answers if status)
    assert -unanswered <= lost <= at_stake < sum(sent.values())


@pytest.mark.parametrize("export_every_ms", [1000])
def test_tasks_are_reported_by_one_worker_and_by_another_when_that_is_killed(server, collector, export_every_ms):
    process, port = server

    def reported():
        collector.tasks.clear()
        until(lambda: collector.tasks, process)
        return collector.tasks

    assert reported() == {"shared": {"open": 0, "done": 0}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/api/tasks", '{"title": "x"}', {"Content-Type": "application/json"})
    assert connection.getresponse().status == 201
    for worker in workers(process):
        os.kill(int(worker), signal.SIGKILL)
    until(lambda: len(workers(process)) == 2, process)
    until(lambda: reported() == {"shared": {"open": 1, "done": 0}}, process)


def test_stop_without_a_collector_ends_in_time(server, collector):
    process, port = server
    collector.server_close()
    assert ask(port, "/api/tasks") == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
