"""`watchpost verify` finds what is there and names what is not.

The appliance stands behind `httpx.MockTransport`, the edge of our own client; its answers have the shapes that Grafana,
Tempo, Loki and Prometheus gave when they were recorded. The real ones are asked in molecule/appliance.
"""

import base64
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest
from typer.testing import CliRunner

from watchpost import verify, verify_target
from watchpost.cli import command_line
from watchpost.ledger import Ledger, Sent
from watchpost.ledger import Run as Recorded
from watchpost.project import PROJECT, ansible
from watchpost.verify import LABELS, LINKS, Missing, Run, State, follow, judge_trace, risen
from watchpost.verify_grafana import Grafana, Span, lines_of, spans_of

PASSWORD = "the-password"


def b64(hexed):
    return base64.b64encode(bytes.fromhex(hexed)).decode()


@dataclass
class Appliance:
    """A stand-in for the gateway's port. `broken` names what does not work."""

    broken: set = field(default_factory=set)
    others: int = 0  # requests of somebody else, counted during ours
    unseen: int = 0  # log lines beyond those that one answer holds
    tasks: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)  # (method, route, status, trace id, parent span id)
    scraped: tuple = ("loki", "node_exporter", "prometheus", "shop")
    new_names: bool = False  # the columns as Grafana 11 and later call them
    logged_in: bool = False

    def __call__(self, request):
        path = request.url.path
        if path.startswith("/grafana"):
            return self.grafana(request, path.removeprefix("/grafana"))
        if path == "/healthz":
            return httpx.Response(503 if "gateway" in self.broken else 200, json={"status": "ok"})
        if path == "/version":
            if "application" in self.broken:
                return httpx.Response(502, text="bad gateway")
            return httpx.Response(200, json={"name": "taskboard", "version": "1"})
        return self.api(request, path)

    def api(self, request, path):
        version, trace_id, span_id, flags = request.headers["traceparent"].split("-")
        assert (version, flags) == ("00", "01")
        if "away" in self.broken:
            return httpx.Response(502, text="bad gateway")
        route, status, body = re.sub(r"\d+", "<int:task_id>", path), 200, {}
        number = int(re.sub(r"\D", "", path) or 0)
        if "requests" in self.broken and request.method == "PATCH":
            status = 500
        elif request.method == "DELETE":
            status = 204 if self.tasks.pop(number, None) else 404
        elif request.method == "POST" and path == "/api/tasks":
            title = json.loads(request.content)["title"]
            status = 201 if title else 422
            if title:
                body = {"id": len(self.seen) + 1}
                self.tasks[body["id"]] = title
        self.seen.append((request.method, route, status, trace_id, span_id))
        return httpx.Response(status, json=body) if status != 204 else httpx.Response(204)

    def grafana(self, request, path):
        if path == "/api/health":
            return httpx.Response(200, json={"database": "failing" if "grafana" in self.broken else "ok"})
        if path == "/login" and request.method == "GET":
            return httpx.Response(200, text="" if "pages" in self.broken else "<script></script>")
        if path == "/login":
            self.logged_in = json.loads(request.content)["password"] == PASSWORD
            return httpx.Response(200 if self.logged_in else 401, json={"message": "Invalid username or password"})
        if not self.logged_in and "anonymous access" not in self.broken:
            return httpx.Response(401, json={"message": "Unauthorized"})
        if path.startswith("/api/datasources/proxy/uid/tempo/api/traces/"):
            return self.tempo(path.rsplit("/", 1)[1])
        if path == "/api/datasources/proxy/uid/alertmanager/api/v2/alerts":
            assert request.url.params["filter"] == 'alertname="Watchdog"'
            if "alertmanager" in self.broken:
                return httpx.Response(502, text="")
            return httpx.Response(200, json=[] if "alerts" in self.broken else [{"labels": {"alertname": "Watchdog"}}])
        if path == "/api/datasources/proxy/uid/alertmanager/api/v2/receivers":
            told = [] if "receivers" in self.broken else ["team"]
            return httpx.Response(200, json=[{"name": name} for name in ("heartbeat", "nobody", *told)])
        if path == "/api/ds/query":
            asked = json.loads(request.content)
            if not asked["queries"]:
                return httpx.Response(400, json={"message": "No queries found"})
            return self.query(asked["queries"][0], before=int(asked["to"]) < 0)
        return httpx.Response(200, json=[])

    def tempo(self, trace_id):
        if "no data source" in self.broken:
            return httpx.Response(404, json={"message": "Unable to find datasource"})
        if "tempo" in self.broken:
            return httpx.Response(502, text="")
        found = [seen for seen in self.seen if seen[3] == trace_id]
        if not found or "traces" in self.broken:
            return httpx.Response(404)
        method, route, status, _, parent = found[0]
        server = self.server_span(trace_id)
        attributes = [
            {"key": "http.route", "value": {"stringValue": route}},
            {"key": "http.response.status_code", "value": {"intValue": str(status)}},
        ]
        spans = [
            {
                "spanId": b64(server),
                "parentSpanId": b64(parent),
                "name": f"{method} {route}",
                "kind": "SPAN_KIND_SERVER",
            }
            | {"attributes": attributes}
        ]
        if "sql spans" not in self.broken:
            sql = [{"key": "db.system", "value": {"stringValue": "sqlite"}}]
            spans.append(
                {"spanId": b64("ab" * 8), "parentSpanId": b64(server), "name": "SELECT", "kind": "SPAN_KIND_CLIENT"}
                | {"attributes": sql}
            )
        service = [{"key": "service.name", "value": {"stringValue": "taskboard"}}]
        batch = {"resource": {"attributes": service}, "scopeSpans": [{"spans": spans}]}
        return httpx.Response(200, json={"batches": [batch]})

    @staticmethod
    def server_span(trace_id):
        return trace_id[:16]

    def query(self, query, before):
        uid = query["datasource"]["uid"]
        if uid in self.broken:
            why = f'Get "https://127.0.0.1/{uid}?query=long": dial tcp: connection refused'
            return httpx.Response(400, json={"results": {"A": {"error": why, "status": 400}}})
        if query["expr"] == "up":
            frames = self.up()
        else:
            frames = self.loki(query["expr"]) if uid == "loki" else self.prometheus(before)
        return httpx.Response(200, json={"results": {"A": {"status": 200, "frames": frames}}})

    def loki(self, expression):
        if expression.startswith("sum by (deployment_environment)"):
            fields = [{"name": "Time"}, {"name": "Value", "labels": {"deployment_environment": "test"}}]
            return [{"schema": {"fields": fields}, "data": {"values": [[0], [len(self.seen) + self.unseen]]}}]
        labels, bodies = [], []
        if "logs" not in self.broken:
            for method, route, status, trace_id, _ in self.seen:
                structured = {"trace_id": trace_id, "span_id": self.server_span(trace_id)}
                if "trace to logs" in self.broken and method == "DELETE":
                    structured = {}
                if "trace_id" in expression and structured.get("trace_id", "no id") not in expression:
                    continue
                named = dict.fromkeys(LABELS, "test") | {"service_name": "taskboard"}
                labels.append({k: v for k, v in named.items() if k not in self.broken} | structured)
                bodies.append(f"{method} {route} {status}")
        names = ("labels", "timestamp", "body") if self.new_names else ("labels", "Time", "Line")
        fields = [{"name": name} for name in names]
        return [{"schema": {"fields": fields}, "data": {"values": [labels, [0] * len(bodies), bodies]}}]

    def up(self):
        frames = []
        for job in () if "scrapes" in self.broken else self.scraped:
            fields = [{"name": "Time"}, {"name": "up", "labels": {"job": job, "instance": "one"}}]
            frames.append(
                {"schema": {"fields": fields}, "data": {"values": [[0], [int(f"{job} down" not in self.broken)]]}}
            )
        return frames

    def prometheus(self, before):
        if before:  # the ledger's requests were made
            return []
        counts = Counter((method, route, status) for method, route, status, *_ in self.seen)
        if counts and self.others:
            counts["GET", "/api/tasks", 200] += self.others
        if "metrics" in self.broken:
            counts.clear()
        frames = []
        for (method, route, status), count in counts.items():
            labels = {"http_request_method": method, "http_route": route, "http_response_status_code": str(status)}
            if "trace to metrics" in self.broken:
                labels["http_route"] = "/api/tasks/{id}"
            fields = [{"name": "Time"}, {"name": "Value", "labels": labels | {"instance": "a"}}]
            frames.append({"schema": {"fields": fields}, "data": {"values": [[0], [count]]}})
        return frames


def results_of(appliance, password=PASSWORD, timeout=5.0):
    """Follow every link against a stand-in, with a clock that only the pauses move."""
    clock = [0.0]

    def pause(seconds):
        clock[0] += seconds

    with httpx.Client(base_url="https://appliance.test", transport=httpx.MockTransport(appliance)) as client:
        run = Run(client, Grafana(client), password, count=2)
        found = follow(LINKS, run, timeout, clock=lambda: clock[0], pause=pause)
    return {result.link: result for result in found}, clock[0]


def missing(results):
    return [name for name, result in results.items() if result.state is State.MISSING]


@pytest.mark.parametrize("new_names", [False, True], ids=["grafana 10", "grafana 11 and later"])
def test_every_link_of_a_whole_appliance_is_found(new_names):
    appliance = Appliance(new_names=new_names)
    results, _ = results_of(appliance)
    assert {name: result.state for name, result in results.items()} == {link.name: State.FOUND for link in LINKS}
    assert results["metrics"].evidence == "10 requests made, 10 counted"


def test_nothing_is_left_behind():
    appliance = Appliance()
    results_of(appliance)
    assert appliance.seen and not appliance.tasks


def test_what_was_made_is_deleted_even_when_an_edit_fails():
    appliance = Appliance(broken={"requests"})
    results, _ = results_of(appliance)
    assert missing(results) == ["requests"]
    assert "HTTP 500 instead of 200" in results["requests"].evidence
    assert not appliance.tasks


@pytest.mark.parametrize(
    ("broken", "named", "unasked"),
    [
        ("grafana", ["grafana"], ["anonymous access", "login", "traces", "targets", "alerts"]),
        ("anonymous access", ["anonymous access"], []),
        ("application", ["application"], ["requests", "traces", "logs", "metrics"]),
        ("traces", ["traces"], ["trace to logs", "trace to metrics"]),
        ("tempo", ["traces"], ["trace to logs", "trace to metrics"]),
        ("sql spans", ["traces"], ["trace to logs", "trace to metrics"]),
        ("logs", ["logs"], ["trace to logs"]),
        ("loki", ["logs"], ["trace to logs"]),
        ("metrics", ["metrics"], ["trace to metrics"]),
        ("prometheus", ["metrics", "targets"], ["trace to metrics"]),
        ("node_exporter down", ["targets"], []),
        ("scrapes", ["targets"], []),
        ("alertmanager", ["alerts"], []),
        ("alerts", ["alerts"], []),
        ("trace to logs", ["trace to logs"], []),
        ("trace to metrics", ["trace to metrics"], []),
        ("gateway", ["gateway"], ["application", "grafana", "requests", "traces"]),
    ],
)
def test_the_missing_link_is_named_and_no_other(broken, named, unasked):
    results, _ = results_of(Appliance(broken={broken}))
    assert missing(results) == named
    assert all(results[name].state is State.UNASKED for name in unasked)
    assert all("journalctl -u watchpost-" in results[name].hint for name in named)


@pytest.mark.parametrize("label", LABELS)
def test_a_missing_label_of_log_lines_is_named_without_waiting(label):
    results, seconds = results_of(Appliance(broken={label}))
    assert results["logs"].state is State.MISSING and seconds == 0
    assert f"log lines lack the label {label}; they have" in results["logs"].evidence


def test_the_three_signals_are_looked_for_on_their_own():
    results, _ = results_of(Appliance(broken={"traces", "logs", "metrics"}))
    assert missing(results) == ["traces", "logs", "metrics"]


def test_a_stopped_engine_is_the_one_to_look_at():
    results, _ = results_of(Appliance(broken={"loki"}))
    assert results["logs"].evidence == "loki does not answer Grafana: HTTP 400, dial tcp: connection refused"
    assert results["logs"].hint.startswith("on the host: journalctl -u watchpost-loki -n 50. ")


def test_a_target_that_does_not_answer_is_named_with_its_own_journal():
    targets = results_of(Appliance(broken={"node_exporter down", "loki down"}))[0]["targets"]
    assert targets.evidence == "2 of 4 do not answer Prometheus: loki on one, node_exporter on one"
    journals = "journalctl -u watchpost-loki -n 50; journalctl -u watchpost-node-exporter -n 50. "
    assert targets.hint.startswith(f"on the host: {journals}")


def test_for_a_target_of_the_operators_own_prometheus_is_the_one_to_look_at():
    targets = results_of(Appliance(broken={"shop down"}))[0]["targets"]
    assert targets.hint.startswith("on the host: journalctl -u watchpost-prometheus -n 50. ")


def test_a_stopped_alertmanager_is_told_from_an_alert_that_does_not_arrive():
    results, _ = results_of(Appliance(broken={"alertmanager"}))
    assert results["alerts"].hint.startswith("on the host: journalctl -u watchpost-alertmanager -n 50. ")
    results, _ = results_of(Appliance(broken={"alerts"}))
    assert results["alerts"].hint.startswith("on the host: journalctl -u watchpost-prometheus -n 50; ")


def test_missing_data_source_is_told_from_a_missing_trace():
    results, _ = results_of(Appliance(broken={"no data source"}))
    assert results["traces"].evidence == "tempo does not answer Grafana: HTTP 404, Unable to find datasource"
    results, _ = results_of(Appliance(broken={"traces"}))
    assert results["traces"].evidence.startswith("no trace of POST /api/tasks (trace ")


def test_all_that_wait_share_one_deadline():
    _, seconds = results_of(Appliance(broken={"traces", "logs", "metrics"}), timeout=5)
    assert 5 <= seconds < 6


def test_a_refused_login_is_not_waited_for():
    results, seconds = results_of(Appliance(), password="another")
    assert missing(results) == ["login"]
    assert "admin is not let in with the stored password" in results["login"].evidence
    assert "wait five minutes" in results["login"].evidence
    assert seconds == 0


def test_other_peoples_requests_do_not_hide_ours():
    results, _ = results_of(Appliance(others=3))
    assert results["metrics"].evidence == (
        "10 requests made, 13 counted (3 more: somebody else's, or what traffic deletes in the end)"
    )


def test_log_lines_are_counted_beyond_those_that_one_answer_holds():
    results, _ = results_of(Appliance(unseen=6000))
    assert results["logs"].evidence == "6010 lines of taskboard in test"


def test_telemetry_that_comes_late_is_found_with_its_delay():
    appliance = Appliance(broken={"logs"})
    looks = []
    answer = appliance.loki

    def late(expression):
        looks.append(expression)
        if len(looks) == 4:
            appliance.broken.clear()
        return answer(expression)

    appliance.loki = late
    results, _ = results_of(appliance)
    assert missing(results) == []
    assert results["traces"].seconds == 0
    assert results["logs"].seconds == 3 * verify.POLL


# --- judging a trace ---

SENT = Sent("POST", "/api/tasks", 201, 201, "a" * 32, "b" * 16, reads_database=True)
SERVER = Span("01", SENT.span_id, "POST /api/tasks", "SERVER", "taskboard", {"http.response.status_code": 201})
CONNECT = Span("02", "01", "connect", "CLIENT", "taskboard", {"db.system": "sqlite"})
INSERT = Span("03", "02", "INSERT", "CLIENT", "taskboard", {"db.system.name": "sqlite"})


def test_a_whole_trace_is_judged_by_its_server_span():
    assert judge_trace(SENT, [INSERT, CONNECT, SERVER]) is SERVER


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([], "no trace of POST /api/tasks"),
        ([CONNECT, INSERT], "0 server spans below our own"),
        ([SERVER], "no SQL span"),
        ([SERVER, INSERT], "the SQL span 'INSERT' .* is not below"),
        ([SERVER, Span("03", "03", "ring", "CLIENT", "taskboard", {"db.system": "x"})], "'ring' .* is not below"),
        ([Span("01", "c" * 16, "x", "SERVER", "taskboard", {}), INSERT], "0 server spans below our own"),
        ([Span("01", SENT.span_id, "x", "SERVER", "shop", {}), INSERT], "of service 'shop'"),
        ([Span("01", SENT.span_id, "x", "SERVER", "taskboard", {"http.status_code": 500})], "says HTTP 500"),
    ],
)
def test_a_broken_trace_is_refused_with_its_reason(spans, why):
    with pytest.raises(Missing, match=why):
        judge_trace(SENT, spans)


def test_a_request_that_needs_no_database_needs_no_sql_span():
    refused = Sent("POST", "/api/tasks", 201, 201, "a" * 32, SENT.span_id, reads_database=False)
    assert judge_trace(refused, [SERVER]) is SERVER


def test_span_ids_are_read_in_base64_and_in_hex():
    def trace(key, span_id, kind):
        span = {"spanId": span_id, "name": "x", "kind": kind}
        return {key: [{"resource": {}, "scopeSpans": [{"spans": [span]}]}]}

    tempo = trace("batches", b64("00ff" * 4), "SPAN_KIND_SERVER")
    standard = {"trace": trace("resourceSpans", "00FF" * 4, 2)}
    assert [(span.span_id, span.kind) for span in spans_of(tempo)] == [("00ff" * 4, "SERVER")]
    assert list(spans_of(tempo)) == list(spans_of(standard))


def test_log_labels_are_read_as_text_and_as_objects():
    fields = [{"name": "labels"}, {"name": "Line"}]
    for labels in ({"trace_id": "a"}, '{"trace_id": "a"}'):
        (line,) = lines_of({"schema": {"fields": fields}, "data": {"values": [[labels], ["hello"]]}})
        assert (line.body, line.labels) == ("hello", {"trace_id": "a"})


# --- comparing counts ---


def series(route, instance="1"):
    labels = {"http_request_method": "GET", "http_route": route, "http_response_status_code": "200"}
    return frozenset((labels | {"instance": instance}).items())


def test_counts_rise_over_all_workers():
    before = {series("/a", "1"): 5.0, series("/a", "2"): 7.0}
    after = {series("/a", "1"): 6.0, series("/a", "2"): 7.0, series("/a", "3"): 2.0, series("/b"): 4.0}
    assert risen(before, after) == {("GET", "/a", "200"): 3.0, ("GET", "/b", "200"): 4.0}


def test_a_count_that_fell_has_begun_anew():
    assert risen({series("/a"): 50.0}, {series("/a"): 2.0}) == {("GET", "/a", "200"): 2.0}


# --- the command ---


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the real command against a stand-in."""

    real = httpx.Client  # before the first run puts a stand-in in its place

    def run(appliance, *arguments):
        def client(**options):
            options.pop("verify")
            return real(transport=httpx.MockTransport(appliance), **options)

        monkeypatch.setattr(verify.httpx, "Client", client)
        (tmp_path / "password").write_text(PASSWORD + "\n")
        given = ["--url", "https://appliance.test", "--deployment", "nowhere"]
        given += ["--password-file", str(tmp_path / "password"), "--timeout", "0"]
        return CliRunner().invoke(command_line("verify"), ["verify", *given, *arguments])

    return run


def test_a_whole_appliance_exits_with_zero(command):
    done = command(Appliance(), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["ok"] is True


def test_a_missing_log_exits_with_one_and_names_the_link(command):
    done = command(Appliance(broken={"logs"}))
    assert done.exit_code == 1
    assert "Missing: logs. no log line of taskboard since the first request" in done.stdout
    assert "journalctl -u watchpost-otel-collector" in done.stdout


def test_a_grafana_without_pages_is_noted_and_no_failure(command):
    done = command(Appliance(broken={"pages"}))
    assert done.exit_code == 0
    assert "Note: Grafana was built from source: its API works, its pages are not in it" in done.stdout
    assert "Note:" not in command(Appliance()).stdout
    assert len(json.loads(command(Appliance(broken={"pages"}), "--json").stdout)["notes"]) == 1


def test_alerts_that_nobody_is_told_of_are_noted_and_no_fault(command):
    answer = command(Appliance(broken={"receivers"}))
    assert answer.exit_code == 0
    assert "Note: nobody is told of alerts" in answer.stdout
    assert "Note:" not in command(Appliance()).stdout


def ledger_of(appliance, file, *paths):
    """Have requests made before `verify` is called, and the ledger of them written."""
    appliance.tasks[7] = "a task"
    with httpx.Client(base_url="https://appliance.test", transport=httpx.MockTransport(appliance)) as client:
        ledger = Ledger(client, file=file)
        ledger.begin(Recorded("r7", "https://appliance.test", 0.0))
        for path in paths:
            ledger.send("GET", path, 200)
    return len(appliance.seen)


def test_requests_of_a_ledger_are_looked_for_and_none_is_made(command, tmp_path):
    appliance, file = Appliance(), tmp_path / "ledger.jsonl"
    made = ledger_of(appliance, file, *["/api/tasks/7"] * 5)
    done = command(appliance, "--ledger", str(file), "--json")
    assert done.exit_code == 0 and len(appliance.seen) == made
    verdict = json.loads((tmp_path / "verify.json").read_text())
    assert verdict == json.loads(done.stdout)
    assert (verdict["run"], verdict["traces"], verdict["ok"]) == ("r7", 5, True)
    cases = ET.parse(tmp_path / "verify.xml").getroot()
    assert {case.get("name") for case in cases} == {link.name for link in LINKS}
    assert not cases.findall("case/failure")


@pytest.mark.parametrize("signal", ["traces", "logs", "metrics"])
def test_signal_that_a_ledger_s_requests_lack_is_named(command, tmp_path, signal):
    appliance, file = Appliance(broken={signal}), tmp_path / "ledger.jsonl"
    ledger_of(appliance, file, "/api/tasks/7")
    assert command(appliance, "--ledger", str(file)).exit_code == 1
    assert json.loads((tmp_path / "verify.json").read_text())["missing"] == [signal]
    failed = [
        case.get("name") for case in ET.parse(tmp_path / "verify.xml").getroot() if case.find("failure") is not None
    ]
    assert failed == [signal]


def test_ledger_whose_requests_reached_nobody_proves_nothing(command, tmp_path):
    file = tmp_path / "ledger.jsonl"
    ledger_of(Appliance(broken={"away"}), file, "/api/tasks", "/api/tasks")
    done = command(Appliance(), "--ledger", str(file))
    assert done.exit_code == 1
    assert "of the ledger's 2 requests none reached the application" in done.stdout


def test_wrong_answers_in_a_ledger_are_the_gate_s_business(command, tmp_path):
    appliance, file = Appliance(), tmp_path / "ledger.jsonl"
    ledger_of(appliance, file, "/api/tasks/7")
    file.write_text(file.read_text().replace('"expected": 200', '"expected": 201'))
    done = command(appliance, "--ledger", str(file))
    assert done.exit_code == 0 and "1 of 1 answered wrongly" in done.stdout


def test_the_password_is_never_printed(command):
    for broken in (set(), {"logs"}, {"grafana"}):
        assert PASSWORD not in command(Appliance(broken=broken)).output


def test_an_unreachable_appliance_exits_with_two(command):
    def refuse(request):
        raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

    done = command(refuse)
    assert done.exit_code == 2
    assert "https://appliance.test cannot be reached" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "http://appliance.test"], "must begin with https://"),
        (["--ca", "/nowhere/ca.crt"], "/nowhere/ca.crt is no readable CA certificate"),
        (["--password-file", "/nowhere/password"], "/nowhere/password"),
    ],
)
def test_a_wrong_flag_exits_with_two_and_is_named(command, arguments, why):
    done = command(Appliance(), *arguments)
    assert done.exit_code == 2
    assert why in done.stderr


def test_the_address_and_deployment_come_from_the_inventory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    inventory = tmp_path / "cellar" / "hosts.yml"
    inventory.parent.mkdir()
    inventory.write_text("all: {children: {gateway: {hosts: {one: {ansible_host: 192.0.2.7}}}}}\n")
    ca = tmp_path / "state" / "watchpost" / "cellar" / "ca.crt"
    ca.parent.mkdir(parents=True)
    ca.write_text("a certificate")
    (tmp_path / "password").write_text("x")
    target = verify_target.find(str(inventory), password_file=tmp_path / "password")
    assert (target.url, target.ca) == ("https://192.0.2.7", ca)
    assert target.components == {"gateway"}, "the others have no host"


WITHOUT_THE_APPLICATION = ["gateway", "grafana", "anonymous access", "login", "targets", "alerts"]


def test_what_is_left_out_is_not_looked_for_and_no_request_is_made(command):
    appliance = Appliance(broken={"application"})
    done = command(appliance, "--without=taskboard", "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0 and report["ok"], report
    assert [link["link"] for link in report["links"]] == WITHOUT_THE_APPLICATION
    assert not appliance.seen
    assert "traces, logs, metrics" in " ".join(report["notes"])
    assert command(appliance, "--json").exit_code == 1, "it is missed where it is not left out"


def test_what_is_left_out_is_read_from_the_inventory(command, monkeypatch):
    here = frozenset({"gateway", "grafana", "otel_collector", "tempo", "loki", "prometheus", "alertmanager"})
    found = verify_target.Target("https://appliance.test", PASSWORD, None, components=here)
    monkeypatch.setattr(verify.verify_target, "find", lambda *_: found)
    done = command(Appliance(broken={"application"}), "--json")
    assert done.exit_code == 0, done.stdout
    assert [link["link"] for link in json.loads(done.stdout)["links"]] == WITHOUT_THE_APPLICATION


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ("ansible_host: 2001:db8::7", "https://[2001:db8::7]"),
        ("watchpost_public_name: 2001:DB8::7", "https://[2001:db8::7]"),
        ("watchpost_public_name: Watch.Example.org", "https://watch.example.org"),
    ],
)
def test_address_is_written_as_urls_have_it(tmp_path, variables, url):
    (tmp_path / "hosts.yml").write_text(f"all: {{children: {{gateway: {{hosts: {{one: {{{variables}}}}}}}}}}}\n")
    (tmp_path / "password").write_text("x")
    target = verify_target.find(str(tmp_path / "hosts.yml"), password_file=tmp_path / "password")
    assert (target.url, target.ingest) == (url, f"{url}:4318")


def test_machine_itself_is_reached_under_an_address_that_others_reach_too():
    addresses = subprocess.run(["hostname", "--all-ip-addresses"], capture_output=True, text=True, check=True).stdout
    (name,) = verify_target.variables("inventory/local", "gateway", "watchpost_public_name")
    assert name == (addresses.split() or ["localhost"])[0]


def test_an_inventory_without_a_gateway_is_named(tmp_path):
    (tmp_path / "hosts.yml").write_text("all: {hosts: {one: }}\n")
    with pytest.raises(verify_target.TargetError, match="no host in the group gateway"):
        verify_target.find(str(tmp_path / "hosts.yml"))


def test_an_endpoint_that_is_not_in_the_registry_is_named(tmp_path):
    (tmp_path / "hosts.yml").write_text("gateway: {hosts: {one: {watchpost_endpoints: {gateway: {}}}}}\n")
    with pytest.raises(verify_target.TargetError, match="watchpost_endpoints has no 'https'"):
        verify_target.find(str(tmp_path / "hosts.yml"))


# Prints what Ansible makes of two variables. In a process of its own: Ansible reads its environment once.
RESOLVE = """
import sys
from watchpost.verify_target import TargetError, variables
try:
    print(*variables(sys.argv[1], "gateway", "watchpost_public_name", "slack_url"))
except TargetError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def vaulted(tmp_path_factory):
    """An inventory with one variable in a file, and another by itself, that Ansible Vault has encrypted."""
    inventory = tmp_path_factory.mktemp("vaulted") / "inventory"
    password = inventory.with_name("password")
    password.write_text("correct horse")
    (inventory / "group_vars/gateway").mkdir(parents=True)
    (inventory / "hosts.yml").write_text("all: {children: {gateway: {hosts: {one: }}}}\n")
    vault = ansible("ansible-vault", "encrypt", "--vault-password-file", str(password), "--output", "-")
    (inventory / "group_vars/gateway/vault.yml").write_bytes(
        subprocess.run(vault, input=b"watchpost_public_name: watch.example.org", capture_output=True, check=True).stdout
    )
    inline = subprocess.run(vault, input=b"https://hooks.example.org/x", capture_output=True, check=True).stdout
    (inventory / "group_vars/gateway/main.yml").write_text(
        "slack_url: !vault |\n" + "".join(f"  {line}\n" for line in inline.decode().splitlines())
    )
    return inventory


def resolved(inventory, **environment):
    command = [sys.executable, "-c", RESOLVE, str(inventory)]
    without = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return subprocess.run(command, cwd=PROJECT, env=without | environment, capture_output=True, text=True)


def test_an_inventory_that_ansible_vault_has_encrypted_is_read(vaulted):
    done = resolved(vaulted, ANSIBLE_VAULT_PASSWORD_FILE=str(vaulted.with_name("password")))
    assert done.stdout == "watch.example.org https://hooks.example.org/x\n", done.stderr


def test_the_vault_password_of_ansible_s_configuration_is_used(vaulted, tmp_path):
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\nvault_identity_list = lab@{vaulted.with_name('password')}\n")
    done = resolved(vaulted, ANSIBLE_CONFIG=str(tmp_path / "ansible.cfg"))
    assert done.stdout == "watch.example.org https://hooks.example.org/x\n", done.stderr


@pytest.mark.parametrize("password", [None, "wrong", "/nowhere/password"])
def test_a_vault_that_does_not_open_is_told_with_what_opens_it(vaulted, tmp_path, password):
    (tmp_path / "wrong").write_text("wrong")
    done = resolved(vaulted, **({"ANSIBLE_VAULT_PASSWORD_FILE": str(tmp_path / password)} if password else {}))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"inventory {vaulted}: " in done.stderr
    assert "ANSIBLE_VAULT_PASSWORD_FILE must name the file with the password" in done.stderr
