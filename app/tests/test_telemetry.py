"""What a request leaves behind: one trace from the server to the database, log lines in it, and a measurement."""

import logging

import pytest
import sqlalchemy as sa
from opentelemetry.trace import SpanKind, StatusCode
from taskboard.telemetry import OncePerMinute

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


@pytest.fixture
def broken_database(app, client):
    with app.extensions["taskboard.session"]() as session:
        session.execute(sa.text("DROP TABLE task"))
        session.commit()


def test_sql_spans_are_children_of_the_server_span(client, telemetry):
    client.post("/api/tasks", json={"title": "Buy milk"})
    server = telemetry.server_span()
    assert server.name == "POST /api/tasks"
    assert server.attributes["http.route"] == "/api/tasks"
    assert server.attributes["http.response.status_code"] == 201
    (insert,) = (span for span in telemetry.spans() if span.attributes.get("db.statement", "").startswith("INSERT"))
    assert insert.kind is SpanKind.CLIENT
    assert insert.attributes["db.system"] == "sqlite"
    assert insert.parent.span_id == server.context.span_id
    assert "Buy milk" not in str([span.to_json() for span in telemetry.spans()])


def test_trace_of_the_caller_is_continued(client, telemetry):
    client.get("/api/tasks", headers=TRACEPARENT)
    assert {f"{span.context.trace_id:032x}" for span in telemetry.spans()} == {TRACE}
    assert f"{telemetry.server_span().parent.span_id:016x}" == "00f067aa0ba902b7"


def test_page_tells_its_release_and_the_trace_that_made_it(client, telemetry):
    page = client.get("/", headers=TRACEPARENT).get_data(as_text=True)
    assert '<meta name="version" content="7.7">' in page
    assert f'<meta name="traceparent" content="00-{TRACE}-{telemetry.server_span().context.span_id:016x}-01">' in page


def test_problem_carries_the_trace_id(client, telemetry):
    answer = client.post("/api/tasks", json={}, headers=TRACEPARENT)
    assert answer.status_code == 422
    assert answer.json["trace_id"] == TRACE
    assert telemetry.server_span().status.status_code is not StatusCode.ERROR, "a caller's mistake is no server error"


def test_request_is_logged_in_its_trace_by_route(client, telemetry):
    client.get("/api/tasks/123456?who=somebody@example.org", headers=TRACEPARENT)
    (line,) = (log for log in telemetry.logs() if "http.route" in log.attributes)
    assert f"{line.trace_id:032x}" == TRACE
    assert line.span_id == telemetry.server_span().context.span_id
    assert line.severity_text == "INFO"
    assert line.attributes["http.request.method"] == "GET"
    assert line.attributes["http.route"] == "/api/tasks/<int:task_id>"
    assert line.attributes["http.response.status_code"] == 404
    assert line.attributes["duration_ms"] > 0
    assert "example.org" not in str(line)


def test_change_of_state_is_logged_in_its_trace(client, telemetry):
    client.post("/api/tasks", json={"title": "Buy milk"})
    telemetry.clear()
    client.post("/api/tasks/1/complete", headers=TRACEPARENT)
    (line,) = (log for log in telemetry.logs() if "http.route" not in log.attributes)
    assert (line.body, f"{line.trace_id:032x}") == ("Task 1 went from open to done", TRACE)
    wanted = {"task.id": 1, "task.state.from": "open", "task.state.to": "done"}
    for attributes in (line.attributes, telemetry.server_span().attributes):
        assert {key: value for key, value in attributes.items() if key.startswith("task.")} == wanted


def test_beginning_and_end_of_a_task_are_on_the_request_span(client, telemetry):
    def told(answer):
        span = telemetry.server_span()
        telemetry.clear()
        return {key: value for key, value in span.attributes.items() if key.startswith("task.")}

    assert told(client.post("/api/tasks", json={"title": "x"})) == {"task.id": 1, "task.state.to": "open"}
    assert told(client.patch("/api/tasks/1", json={"title": "y"})) == {}, "its state did not change"
    assert told(client.delete("/api/tasks/1")) == {"task.id": 1, "task.state.from": "open"}


def test_connection_pool_tells_how_many_connections_are_in_use(app, telemetry):
    def pool():
        points = telemetry.points("db.client.connections.usage")
        return {p.attributes["state"]: p.value for p in points if p.attributes["pool.name"] == "taskboard"}

    app.test_client().get("/api/tasks")
    before = pool()
    with app.extensions["taskboard.session"]() as session:
        session.execute(sa.text("SELECT 1"))
        assert pool() == {"idle": before["idle"] - 1, "used": before["used"] + 1}
    assert pool() == before


def test_failing_database_shows_in_answer_trace_log_and_metric_alike(client, broken_database, telemetry):
    answer = client.get("/api/tasks", headers=TRACEPARENT)
    assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
    assert answer.json["trace_id"] == TRACE
    assert "no such table" not in answer.get_data(as_text=True), "a stranger need not know"
    server = telemetry.server_span()
    assert server.status.status_code is StatusCode.ERROR
    assert (
        "OperationalError"
        in next(event for event in server.events if event.name == "exception").attributes["exception.type"]
    )
    (error,) = (log for log in telemetry.logs() if "exception.stacktrace" in log.attributes)
    assert f"{error.trace_id:032x}" == TRACE
    assert "no such table" in error.attributes["exception.stacktrace"]
    (point,) = telemetry.points("http.server.request.duration")
    assert point.attributes["http.response.status_code"] == 500
    assert point.attributes["http.route"] == "/api/tasks"


def test_failing_write_tells_nobody_what_was_written(client, broken_database, telemetry):
    assert client.post("/api/tasks", json={"title": "Call somebody@example.org"}).status_code == 500
    sent = str([span.to_json() for span in telemetry.spans()]) + str(telemetry.logs())
    assert "INSERT INTO task" in sent
    assert "example.org" not in sent


def test_duration_has_a_bucket_that_ends_at_500_ms_and_an_exemplar_of_the_trace(client, telemetry):
    client.get("/api/tasks", headers=TRACEPARENT)
    (point,) = telemetry.points("http.server.request.duration")
    assert 0.5 in point.explicit_bounds
    assert f"{point.exemplars[0].trace_id:032x}" == TRACE


@pytest.mark.parametrize("path", ["/healthz", "/version"])
def test_health_checks_make_no_trace(client, telemetry, path):
    assert client.get(path).status_code == 200
    assert telemetry.spans() == ()


def test_exporter_without_a_collector_complains_once_a_minute():
    quiet = OncePerMinute()

    def passes(second, name="exporter", level=logging.WARNING):
        record = logging.LogRecord(name, level, "", 0, "", (), None)
        record.created = 1_000_000 + second
        return quiet.filter(record)

    assert [passes(0), passes(1), passes(59), passes(61), passes(62)] == [True, False, False, True, False]
    assert passes(63, level=logging.ERROR) and passes(63, name="another")
