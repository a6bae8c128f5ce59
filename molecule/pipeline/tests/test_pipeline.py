"""What the Collector promises about telemetry on its way: what is counted, kept and refused, and what a sender is told.

The scenario's Collector keeps a fifth of ordinary traces, and its queues hold no more than 1 MiB.
"""

import functools
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode

import pytest
from conftest import play, unit_name, wait_until
from otlp import JSON, Probe, attributes

TRACES = 80
WAIT = 3  # seconds until a trace is decided, of host_vars
#: Traces kept of TRACES, by the share of their service: wrong by chance once in a million runs (binomial distribution).
SHARES = {"ordinary": range(2, 36), "half": range(18, 63), "never": range(1)}
BEGAN = int(time.time())  # Tempo may have traces of the services that have fixed names from earlier runs
#: Until a trace is decided, found by a search and counted: the sampler's wait, Tempo's and the counts' intervals.
SETTLED = 60
wait_for = functools.partial(wait_until, seconds=SETTLED)


@dataclass(frozen=True)
class Traces:
    """Traces of one service, each a request with a query below it."""

    service: str = field(default_factory=lambda: f"probe-{secrets.token_hex(4)}")
    milliseconds: int = 20
    status: int = 200
    failed: bool = False
    user_agent: str = "curl/8"
    count: int = TRACES

    @property
    def body(self):
        """All spans, as one OTLP request."""
        roots, queries = self.spans
        return self.request(roots + queries)

    @property
    def halves(self):
        """The same as two requests, in the order in which spans end: the queries, and what they are made for."""
        roots, queries = self.spans
        return self.request(queries), self.request(roots)

    def request(self, spans):
        resource = {"attributes": attributes(service__name=self.service)}
        return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]})

    @property
    def spans(self):
        now = time.time_ns()
        roots, queries = [], []
        for _ in range(self.count):
            trace = {"traceId": secrets.token_hex(16), "endTimeUnixNano": str(now)}
            root = trace | {"spanId": secrets.token_hex(8), "name": "GET /tasks", "kind": 2}
            root["startTimeUnixNano"] = str(now - self.milliseconds * 1_000_000)
            root["attributes"] = attributes(user_agent__original=self.user_agent, http__route="/tasks")
            root["attributes"].append({"key": "http.response.status_code", "value": {"intValue": str(self.status)}})
            query = trace | {
                "spanId": secrets.token_hex(8),
                "parentSpanId": root["spanId"],
                "name": "SELECT",
                "kind": 3,
            }
            query["startTimeUnixNano"] = str(now - 1_000_000)
            query["attributes"] = attributes(db__name="tasks")
            query["status"] = {"code": 2 if self.failed else 0}
            roots.append(root)
            queries.append(query)
        return roots, queries


@pytest.fixture
def send(ask):
    """Send a body to the Collector, as a component of this host does."""

    def send(body, signal="traces", **headers):
        path = f"/v1/{signal}"
        return ask("otel_collector", "local_http", path, method="POST", headers=JSON | headers, body=body)

    return send


@pytest.fixture
def found(ask):
    """How many traces of a service Tempo finds."""

    def found(service, span="true", more=""):
        query = urlencode(
            {"q": f'{{ resource.service.name = "{service}" && {span} }} {more}', "limit": 2 * TRACES}
            | {"start": BEGAN - 1, "end": int(time.time()) + 60}
        )
        return len(ask("tempo", "http", f"/api/search?{query}").json["traces"])

    return found


@pytest.fixture
def kept(found):
    """How many traces of a service Tempo has, each whole."""
    return lambda service: found(service, more="| count() > 1")


@pytest.fixture
def kept_in_parts(found):
    """The same for traces whose spans came at different times: a search looks at what came together."""

    def kept_in_parts(service):
        roots, queries = (found(service, f'name = "{name}"') for name in ("GET /tasks", "SELECT"))
        assert roots <= queries, "the queries came first"
        return roots

    return kept_in_parts


@pytest.fixture
def sample(ask):
    """The value of the only series that a query finds; None when there is none."""

    def sample(query):
        found = ask("prometheus", "http", "/api/v1/query?" + urlencode({"query": query})).json["data"]["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    return sample


@pytest.fixture
def ingest_token(host):
    """What a client of the ingest port shows."""
    return host.file("/etc/watchpost/otel_collector/current/credentials/otlp_ingest_token").content_string


@pytest.fixture(scope="module")
def settled():
    """Traces that were sent before the module's first question, so that all wait at once."""
    return {}


@pytest.fixture
def sent(settled, send, sample):
    """Each kind of traces, sent once and given the time to be decided and counted."""
    if not settled:
        settled |= {
            "failed": Traces(failed=True),
            "server error": Traces(status=500),
            "slow": Traces(milliseconds=600),
            "verify": Traces(user_agent="watchpost-verify/0.1.0"),
            "ordinary": Traces(),
            "generous": Traces(service="generous"),
            "half": Traces(service="half"),
            "never": Traces(service="never"),
        }
        for traces in settled.values():
            assert send(traces.body).status == 200
        last = settled["ordinary"].service
        wait_for(lambda: sample(f'sum(traces_spanmetrics_calls_total{{service_name="{last}"}})'))
    return settled


@pytest.mark.parametrize("kind", ["failed", "server error", "slow", "verify", "generous"])
def test_every_trace_that_must_be_kept_is_kept(sent, kept, kind):
    wait_for(lambda: kept(sent[kind].service) == TRACES)


@pytest.mark.parametrize("kind", SHARES)
def test_of_other_traces_the_share_of_their_service_is_kept(sent, kept, kind):
    assert kept(sent[kind].service) in SHARES[kind]


def send_halves(send, *traces):
    """Send the roots a second after the decision."""
    halves = [one.halves for one in traces]
    for queries, _ in halves:
        assert send(queries).status == 200
    time.sleep(WAIT + 2)  # the sampler's wait, its next look, and the second
    for _, roots in halves:
        assert send(roots).status == 200


def test_trace_that_ends_after_the_decision_is_kept_whole(send, kept_in_parts):
    slow, failed = Traces(milliseconds=8000), Traces(status=500)
    send_halves(send, slow, failed)
    wait_for(lambda: kept_in_parts(slow.service) == kept_in_parts(failed.service) == TRACES)


def test_spans_are_counted_before_they_are_sampled(sent, sample):
    labels = f'service_name="{sent["ordinary"].service}",span_name="GET /tasks",http_route="/tasks"'
    assert sample(f"traces_spanmetrics_calls_total{{{labels}}}") == TRACES
    # 500 ms are a bound of the histogram, so that an objective of 500 ms is counted and not guessed.
    slow = f'service_name="{sent["slow"].service}",span_name="GET /tasks"'
    assert sample(f'traces_spanmetrics_latency_bucket{{{labels},le="0.5"}}') == TRACES
    assert sample(f'traces_spanmetrics_latency_bucket{{{slow},le="0.5"}}') == 0


def test_service_map_knows_who_calls_whom(sent, sample):
    calls = f'traces_service_graph_request_total{{client="{sent["failed"].service}",server="tasks"}}'
    assert wait_for(lambda: sample(f"sum({calls})")) == TRACES


def test_exemplar_of_the_counts_leads_to_a_trace(sent, ask):
    selector = f'traces_spanmetrics_latency_bucket{{service_name="{sent["slow"].service}"}}'
    query = urlencode({"query": selector, "start": time.time() - 600, "end": time.time()})
    [*found] = ask("prometheus", "http", f"/api/v1/query_exemplars?{query}").json["data"]
    trace_id = found[0]["exemplars"][0]["labels"]["trace_id"]
    assert ask("tempo", "http", f"/api/traces/{trace_id}").status == 200


def test_it_is_told_how_many_exemplars_lead_to_no_trace(sent, sample):
    wait_for(lambda: (sample("watchpost:exemplars_without_trace:rate5m") or 0) > 0)


def test_graceful_stop_decides_what_is_undecided(host, send, kept):
    failed = Traces(failed=True)
    assert send(failed.body).status == 200
    host.check_output("systemctl restart %s", unit_name("otel_collector"))
    wait_for(lambda: kept(failed.service) == TRACES)


def test_full_queue_refuses_and_the_sender_may_come_again(host, send):
    """A refusal that a sender could take for good, or for success, would lose data."""
    unit = unit_name("loki")
    host.check_output("systemctl stop %s", unit)
    try:
        for _ in range(20):
            answer = send(Probe().log("x" * 100_000), "logs")
            if answer.status != 200:
                break
        assert answer.status == 503, answer
    finally:
        host.check_output("systemctl start %s", unit)
    wait_for(lambda: send(Probe().log("room again"), "logs").status == 200)


@pytest.mark.parametrize("convention", ["deployment.environment.name", "deployment.environment"])
def test_log_line_is_found_by_its_environment_and_its_level(send, ask, convention):
    service = f"probe-{secrets.token_hex(4)}"
    resource = {"attributes": [*attributes(service__name=service), *attributes(**{convention: "test"})]}
    record = {"severityText": "ERROR", "severityNumber": 17, "body": {"stringValue": "it broke"}}
    body = json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]})
    assert send(body, "logs").status == 200
    names = f'service_name="{service}", deployment_environment="test", deployment_environment_name="test"'
    query = urlencode({"query": f'{{{names}}} | level="error"', "since": "1h"})
    wait_for(lambda: ask("loki", "http", f"/loki/api/v1/query_range?{query}").json["data"]["result"])


def test_long_stack_trace_is_kept_to_its_end_in_traces_and_logs(send, ask):
    probe, stacktrace = Probe(), "at nowhere\n" * 1000 + "ValueError: here it is"
    failed = json.loads(probe.span("GET /tasks", stacktrace))
    failed["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["status"] = {"code": 2}  # else the sampler might drop it
    assert send(json.dumps(failed)).status == 200
    assert send(probe.log("it broke", exception__stacktrace=stacktrace), "logs").status == 200
    whole = json.dumps(stacktrace)
    wait_for(lambda: whole in ask("tempo", "http", f"/api/traces/{probe.trace_id}").body)
    query = urlencode({"query": f'{{service_name="{probe.service}"}}', "since": "1h"})
    wait_for(lambda: whole in ask("loki", "http", f"/loki/api/v1/query_range?{query}").body)


def test_what_a_page_says_of_itself_is_not_stored_with_each_of_its_lines(send, ask):
    probe = Probe()
    page = {"Watchpost-Service": probe.service, "Watchpost-Instance": "browser"}
    assert send(probe.logs(1), "logs", **page).status == 200
    query = urlencode({"query": f'{{service_name="{probe.service}"}}', "since": "1h"})
    [stream] = wait_for(lambda: ask("loki", "http", f"/loki/api/v1/query_range?{query}").json["data"]["result"])
    assert stream["stream"]["service_version"] == "1.2.3"
    assert not [name for name in stream["stream"] if name.startswith("process")]


#: Runs on the host: sends many failed traces of a service, of which two attributes are as long as it is told.
WORDY = """
import http.client, json, secrets, ssl, sys, time
port, token, service, length = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
words = {"service.name": service, "name": "kept", "one": "x" * length, "two": "x" * length}
resource = {"attributes": [{"key": key, "value": {"stringValue": value}} for key, value in words.items()]}
now = str(time.time_ns())
span = {"name": "GET /tasks", "kind": 2, "status": {"code": 2}, "startTimeUnixNano": now, "endTimeUnixNano": now}
spans = [span | {"traceId": secrets.token_hex(16), "spanId": secrets.token_hex(8)} for _ in range(512)]
body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]})
context = ssl.create_default_context(cafile="/etc/watchpost/pki/ca.crt")
connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
connection.request("POST", "/v1/traces", body, {"Content-Type": "application/json", "Authorization": "Bearer " + token})
print(connection.getresponse().status)
"""


@pytest.mark.parametrize(("length", "kept"), [(60_000, True), (66_000, False)])
def test_wordy_resource_of_many_traces_keeps_no_others_away(host, endpoints, ingest_token, send, found, length, kept):
    """Tempo copies it to each of a request's traces, and would refuse what becomes of it again and again."""
    wordy, others = f"probe-{secrets.token_hex(4)}", Traces(failed=True, count=1)
    port = endpoints["otel_collector"]["ingest_http"]["port"]
    assert host.check_output("python3 -c %s %s %s %s %s", WORDY, str(port), ingest_token, wordy, str(length)) == "200"
    assert send(others.body).status == 200
    wait_for(lambda: found(others.service))
    wait_for(lambda: found(wordy) == 2 * TRACES)  # as many as it is asked for
    assert bool(found(wordy, 'resource.name = "kept"')) is kept


@pytest.mark.parametrize("clock", ["timeUnixNano", "observedTimeUnixNano"])
def test_line_of_a_clock_that_is_ahead_is_kept(send, ask, clock):
    """Some senders say only when they have seen a line."""
    probe = Probe()
    record = {clock: str(probe.nanoseconds + 3600 * 10**9), "body": {"stringValue": "from tomorrow"}}
    body = json.dumps({"resourceLogs": [{"resource": probe.resource, "scopeLogs": [{"logRecords": [record]}]}]})
    assert send(body, "logs").status == 200
    query = urlencode(
        {"query": f'{{service_name="{probe.service}"}}', "start": BEGAN, "end": int(time.time()) + 1800}
    )  # Unix seconds
    wait_for(lambda: ask("loki", "http", f"/loki/api/v1/query_range?{query}").json["data"]["result"])


@pytest.mark.parametrize("name", ["unwanted", "so said"])
def test_service_that_is_not_wanted_is_thrown_away(send, ask, sample, name):
    unwanted, other = Probe(service=name), Probe()
    for probe in (unwanted, other):  # one after the other, so that the first would be there before the second
        span = json.loads(probe.span("GET /tasks"))
        span["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["status"] = {"code": 2}  # else the sampler might drop it
        for signal, body in {
            "traces": json.dumps(span), "metrics": probe.counter("tries", 1), "logs": probe.log("hello")
        }.items():  # fmt: skip
            assert send(body, signal).status == 200

    def found(probe):
        query = urlencode({"query": f'{{service_name="{probe.service}"}}', "since": "1h"})
        return (
            ask("tempo", "http", f"/api/traces/{probe.trace_id}").status == 200,
            sample(f'sum({{__name__=~"tries(_total)?",job="molecule/{probe.service}"}})') is not None,
            bool(ask("loki", "http", f"/loki/api/v1/query_range?{query}").json["data"]["result"]),
        )

    wait_for(lambda: all(found(other)))
    assert not any(found(unwanted))


#: Runs on the host: packs far more than a request may have, and sends it several times at once.
BOMB = """
import gzip, http.client, io, ssl, sys, threading
packed = io.BytesIO()
with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
    for _ in range(256):
        file.write(b" " * 2**20)
context = ssl.create_default_context(cafile="/etc/watchpost/pki/ca.crt")
statuses = []
def send():
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Authorization": "Bearer " + sys.argv[2]}
    connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=context, timeout=60)
    connection.request("POST", "/v1/logs", packed.getvalue(), headers)
    statuses.append(connection.getresponse().status)
threads = [threading.Thread(target=send) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(*sorted(set(statuses)))
"""


def test_decompression_bomb_is_refused_and_costs_little_memory(host, endpoints, ingest_token, send):
    port = endpoints["otel_collector"]["ingest_http"]["port"]
    said = host.check_output("python3 -c %s %s %s", BOMB, str(port), ingest_token)
    assert said == "400"
    pid = host.check_output("systemctl show --property=MainPID --value %s", unit_name("otel_collector"))
    [peak] = [
        line.split()[1] for line in host.file(f"/proc/{pid}/status").content_string.splitlines() if "VmHWM" in line
    ]
    assert int(peak) / 1024 < 512
    assert send(Traces(count=1).body).status == 200


@pytest.mark.parametrize("packing", ["zstd", "snappy", "deflate"])
def test_packing_that_can_claim_gigabytes_with_a_few_bytes_is_not_taken(send, packing):
    answer = send("\x7f", **{"Content-Encoding": packing})
    assert answer.status == 400 and "unsupported Content-Encoding" in answer.body


def test_service_with_endless_names_spoils_its_own_counts_only(send, sample):
    """Names beyond the limit share one series; a service beside it is counted as ever."""
    bad, good = f"bad-{secrets.token_hex(4)}", Traces()
    now = time.time_ns()
    resource = {"attributes": attributes(service__name=bad)}
    for start in range(0, 1500, 250):
        spans = [
            {"traceId": secrets.token_hex(16), "spanId": secrets.token_hex(8), "name": f"GET /{number}", "kind": 2,
             "startTimeUnixNano": str(now - 1000), "endTimeUnixNano": str(now)}
            for number in range(start, start + 250)
        ]  # fmt: skip
        body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]})
        assert wait_for(lambda body=body: send(body).status == 200)
    assert send(good.body).status == 200
    wait_for(lambda: sample(f'sum(traces_spanmetrics_calls_total{{service_name="{bad}"}})') == 1500)
    assert sample(f'count(traces_spanmetrics_calls_total{{service_name="{bad}"}})') <= 1001
    assert (
        wait_for(lambda: sample(f'sum(traces_spanmetrics_calls_total{{service_name="{good.service}"}})')) == 2 * TRACES
    )


def test_store_over_its_budget_keeps_less_and_takes_data_as_before(host, ask, send, kept):
    for store in ("tempo", "loki"):
        assert ask(store, "http", "/flush", method="POST").status in (200, 204)
    state = "/var/lib/watchpost"
    wait_for(
        lambda: host.run(f"ls {state}/tempo/blocks/*/*/meta.json && find {state}/loki/chunks/fake -type f").rc == 0
    )
    settings = json.loads(host.file("/etc/watchpost/retention.json").content_string) | {"least": 7200}
    for store in settings["stores"].values():
        store["bytes"] = 1
    host.check_output("printf %%s %s > /run/retention.json", json.dumps(settings))
    host.check_output("/opt/watchpost/retention.py /run/retention.json")
    try:
        tenant = {"X-Scope-OrgID": "fake"}
        wait_for(lambda: "block_retention: 2h" in ask("tempo", "http", "/status/runtime_config").body)
        wait_for(lambda: "retention_period: 2h" in ask("loki", "http", "/config/tenant/v1/limits", headers=tenant).body)
        failed = Traces(failed=True)
        assert send(failed.body).status == 200
        wait_for(lambda: kept(failed.service) == TRACES)
    finally:
        host.check_output("systemctl start watchpost-retention.service")
    assert host.check_output(f"cat {state}/tempo/overrides.yml {state}/loki/overrides.yml") == ""


def test_store_whose_disk_is_nearly_full_is_stopped_until_there_is_room(host):
    """The disk is as it is; the guard is told to want more of it free, and then as much as before."""
    path, unit = "/etc/watchpost/disk_guard.json", unit_name("loki")
    before = host.file(path).content_string
    settings = json.loads(before)
    settings["stores"]["loki"]["least"] = 2**60

    def guard(text):
        host.check_output("printf %%s %s > %s && systemctl restart watchpost-disk-guard", text, path)

    try:
        guard(json.dumps(settings))
        wait_for(lambda: not host.service(unit).is_running)
        assert host.service(unit_name("tempo")).is_running
    finally:
        guard(before)
    wait_for(lambda: host.service(unit).is_running)


def put_aside(host):
    """Return the bytes of damaged queues that Prometheus is told of."""
    host.check_output("systemctl start watchpost-retention.service")
    told = host.file("/var/lib/watchpost-textfile/retention.prom").content_string
    return int(re.search(r'watchpost_queue_put_aside_bytes{component="otel_collector"} (\d+)', told)[1])


def test_damaged_queue_is_put_aside_and_told_to_prometheus(host, send):
    unit, queue = unit_name("otel_collector"), "/var/lib/watchpost/otel_collector/queue"
    # Both copies of the file's head.
    damage = "for at in 16 4112; do printf xxxxxxxx | dd of=%s bs=1 seek=$at conv=notrunc status=none; done"
    assert put_aside(host) == 0
    stopped = f"systemctl stop {unit} && {damage} && systemctl start {unit}"
    host.check_output(stopped, f"{queue}/exporter_otlp_http_loki_logs")
    try:
        wait_for(lambda: send(Probe().log("into a new queue"), "logs").status == 200)
        assert put_aside(host) > 0
    finally:
        host.check_output(f"rm {queue}/*.damaged")
    assert put_aside(host) == 0


def test_keepers_of_the_disk_are_sandboxed_and_run_again(host):
    for unit in ("watchpost-retention.service", "watchpost-disk-guard.service"):
        report = host.check_output("systemd-analyze security --no-pager %s", unit)
        assert float(report.rsplit(f"exposure level for {unit}: ", 1)[1].split()[0]) <= 2.5
    assert host.service("watchpost-retention.timer").is_running
    assert host.service("watchpost-disk-guard.service").is_running


def test_trace_without_a_root_is_left_to_the_share_if_wanted(send, kept, kept_in_parts):
    run = play("otel_collector", otel_collector_sampling_keep_unfinished=False)
    assert run.code == 0, run.output
    try:
        unfinished, later = Traces(), Traces(failed=True)
        send_halves(send, unfinished)
        assert send(later.body).status == 200
        wait_for(lambda: kept(later.service) == TRACES)
        assert kept_in_parts(unfinished.service) in SHARES["ordinary"]
    finally:
        run = play("otel_collector")
        assert run.code == 0, run.output
