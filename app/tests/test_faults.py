"""A fault on purpose looks like a real one in every signal, and says everywhere that it is none."""

import time

import pytest
from opentelemetry.trace import StatusCode

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


def request_line(telemetry):
    (line,) = (log for log in telemetry.logs() if "http.route" in log.attributes)
    return line


def took(client, path="/api/tasks"):
    started = time.perf_counter()
    assert client.get(path, headers=TRACEPARENT).status_code == 200
    return time.perf_counter() - started


def test_nothing_happens_unless_it_is_switched_on(app, client, telemetry):
    assert client.get("/?watchpost.fault=error", headers={"watchpost.fault": "error"}).status_code == 200
    assert "watchpost.fault" not in telemetry.server_span().attributes
    assert "watchpost.fault" not in request_line(telemetry).attributes
    assert not [rule for rule in app.url_map.iter_rules() if "fault" in rule.rule]


@pytest.mark.parametrize("faults", [{"error": {"share": 1}}])
def test_error_is_a_real_one_and_marked(client, telemetry, faults):
    answer = client.post("/api/tasks", json={"title": "never stored"}, headers=TRACEPARENT)
    assert (answer.status_code, answer.json["trace_id"]) == (500, TRACE)
    span = telemetry.server_span()
    assert span.attributes["watchpost.fault"] == "error"
    assert span.status.status_code is StatusCode.ERROR
    assert "InjectedError" in str([event.attributes for event in span.events])
    assert request_line(telemetry).attributes["watchpost.fault"] == "error"
    (point,) = telemetry.points("http.server.request.duration")
    assert point.attributes["http.response.status_code"] == 500


@pytest.mark.parametrize("faults", [{"latency": {"share": 1, "milliseconds": 300}}])
def test_latency_is_part_of_the_span_and_the_measurement(client, telemetry, faults):
    assert took(client) >= 0.3
    span = telemetry.server_span()
    assert span.attributes["watchpost.fault"] == "latency"
    assert span.end_time - span.start_time >= 0.3e9
    assert request_line(telemetry).attributes["duration_ms"] >= 300
    (point,) = telemetry.points("http.server.request.duration")
    assert point.sum >= 0.3


@pytest.mark.parametrize("faults", [{"slow_query": {"share": 1, "milliseconds": 300}}])
def test_slow_query_is_one_slow_statement_below_the_request(client, telemetry, faults):
    took(client)  # after which it is known how fast the database counts
    telemetry.clear()
    took(client)
    (slow,) = (s for s in telemetry.spans() if "watchpost.fault" in s.attributes.get("db.statement", ""))
    assert 0.1e9 < slow.end_time - slow.start_time < 3e9, "about 300 ms: a busy machine counts more slowly"
    assert slow.parent.span_id == telemetry.server_span().context.span_id
    assert telemetry.server_span().attributes["watchpost.fault"] == "slow_query"


@pytest.mark.parametrize("faults", [{"error": {"share": 0.3}}])
def test_share_is_of_the_requests(client, telemetry, faults, monkeypatch):
    monkeypatch.setattr("random.random", iter([0.29, 0.3, 0.99, 0.0]).__next__)
    assert [client.get("/api/tasks").status_code for _ in range(4)] == [500, 200, 200, 500]


@pytest.mark.parametrize("faults", [{"error": {"share": 1, "route": "/api/tasks/<int:task_id>"}}])
def test_route_narrows_a_fault(client, faults):
    assert client.get("/api/tasks").status_code == 200
    assert client.get("/api/tasks/1").status_code == 500


@pytest.mark.parametrize("faults", [{"error": {"share": 1}, "latency": {"share": 1, "milliseconds": 100}}])
def test_two_faults_meet_in_one_request(client, telemetry, faults):
    assert client.get("/api/tasks").status_code == 500
    span = telemetry.server_span()
    assert span.attributes["watchpost.fault"] == "error,latency"
    assert span.end_time - span.start_time >= 0.1e9


@pytest.mark.parametrize("faults", [{"error": {"share": 1}}])
@pytest.mark.parametrize("path", ["/healthz", "/version", "/static/taskboard.css"])
def test_deploys_are_spared(client, faults, path):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("faults", [{"error": {"share": 0.05}, "latency": {"share": 0.2, "milliseconds": 800}}])
def test_faults_are_announced_at_the_start(app, telemetry, faults):
    app.extensions["taskboard.faults"].announce()
    assert [(line.severity_text, line.body) for line in telemetry.logs()] == [
        ("WARN", "A fault is switched on (taskboard_faults): error in 5.0% of the requests"),
        ("WARN", "A fault is switched on (taskboard_faults): latency of 800 ms in 20.0% of the requests"),
    ]
