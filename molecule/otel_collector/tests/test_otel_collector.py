"""The Collector takes telemetry from those who prove themselves, and keeps it while no store is there to take it."""

import time

import pytest
from canary import PERSONAL, Canary, on_disk
from conftest import PKI, play, unit_name, wait_until
from otlp import JSON, Probe

CREDENTIAL = "/etc/watchpost/otel_collector/current/credentials/otlp_ingest_token"

#: Each has a queue of its own on disk.
SIGNALS = 3


def main_pid(host):
    return host.check_output("systemctl show --property=MainPID --value %s", unit_name("otel_collector"))


@pytest.fixture
def post(ask):
    """Send one span to an endpoint."""

    def post(endpoint, **who):
        body = Probe().span("knock")
        return ask("otel_collector", endpoint, "/v1/traces", method="POST", headers=JSON, body=body, **who)

    return post


@pytest.fixture
def ingest_token(host):
    return host.file(CREDENTIAL).content_string


def test_span_is_taken_from_a_local_component(post):
    answer = post("local_http")
    assert (answer.status, answer.json) == (200, {"partialSuccess": {}})


def test_span_is_taken_from_outside_with_the_token(post, ingest_token):
    assert post("ingest_http", identity=None, token=ingest_token).status == 200


def test_certificate_is_no_token(post):
    assert post("ingest_http", identity="operator").status == 401


def test_what_no_store_takes_is_on_disk_and_is_sent_again_after_a_crash(host, post):
    assert post("local_http").status == 200
    before = main_pid(host)
    host.check_output("kill -KILL %s", before)
    deadline = time.monotonic() + 30
    said = ""
    # Nothing was sent to the new process: what it tries to bring to Tempo can only come from the queue.
    while not ("Exporting failed. Will retry" in said and "otlp_http/tempo" in said):
        assert time.monotonic() < deadline, said
        time.sleep(0.5)  # between two looks
        now = main_pid(host)
        said = host.check_output("journalctl --boot --output=cat _PID=%s", now) if now not in ("0", before) else ""


#: Runs on the host: logs one line of as many bytes as it is told, more than a command line holds.
LONG_LINE = """
import http.client, json, ssl, sys, time
pki, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
context = ssl.create_default_context(cafile=pki + "/ca.crt")
context.load_cert_chain(pki + "/operator/tls.crt", pki + "/operator/tls.key")
record = {"timeUnixNano": str(time.time_ns()), "body": {"stringValue": "x" * size}}
body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})
connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
connection.request("POST", "/v1/logs", body, {"Content-Type": "application/json"})
print(connection.getresponse().status)
"""


def test_line_nearly_as_long_as_a_request_may_be_is_brought_to_its_store(host, endpoints):
    port = endpoints["otel_collector"]["local_http"]["port"]
    assert host.check_output("python3 -c %s %s %s 4000000", LONG_LINE, PKI, str(port)) == "200"

    def tries():
        said = host.check_output("journalctl --boot --output=cat _PID=%s", main_pid(host))
        about = [line for line in said.splitlines() if '"otelcol.component.id":"otlp_http/loki"' in line]
        return [line for line in about if "Will retry" in line or "dropping" in line]

    [first, *_] = wait_until(tries, 30)
    assert "Exporting failed. Will retry" in first


def test_retired_exporter_is_refused_and_the_old_configuration_keeps_running(assert_refused, post):
    extra = {"exporters": {"loki": {"endpoint": "https://127.0.0.1", "labels": {"resource": {"service.name": "job"}}}}}
    assert_refused("otel_collector", "loki", "unknown type", otel_collector_extra_config=extra)
    assert post("local_http").status == 200


def test_configuration_of_ones_own_is_laid_over(host):
    run = play("otel_collector", otel_collector_extra_config={"service": {"telemetry": {"logs": {"level": "warn"}}}})
    assert run.code == 0, run.output
    assert "Everything is ready" not in host.check_output("journalctl --boot --output=cat _PID=%s", main_pid(host))
    assert play("otel_collector").code == 0


def test_rotated_token_replaces_the_old_one(post, host, ingest_token):
    run = play("otel_collector", watchpost_secret_generations={"otlp_ingest_token": 2})
    assert run.code == 0, run.output
    new = host.file(CREDENTIAL).content_string
    assert new not in run.output
    assert post("ingest_http", identity=None, token=new).status == 200
    assert post("ingest_http", identity=None, token=ingest_token).status == 401


QUEUE = "/var/lib/watchpost/otel_collector/queue"


@pytest.fixture
def queued(ask, host):
    """Send personal data in every field of every signal; return what of it is queued, and the files it came to."""

    def queued():
        canary = Canary()
        for signal, body in canary.requests().items():
            answer = ask("otel_collector", "local_http", f"/v1/{signal}", method="POST", headers=JSON, body=body)
            assert answer.status == 200, answer
        deadline = time.monotonic() + 30
        while True:
            found = on_disk(host, [canary.word, *PERSONAL], QUEUE)
            files = found.pop(canary.word)
            if len(files) >= SIGNALS or time.monotonic() > deadline:
                return {text for text, where in found.items() if where}, files
            time.sleep(1)  # spans wait for the sampler's decision

    return queued


def test_personal_data_reaches_no_queue(queued):
    found, files = queued()
    assert len(files) >= SIGNALS, "the search does not see what is there"
    assert not found


def test_wrong_pattern_is_refused_with_its_rules_name(assert_refused, post):
    rule = {"name": "staff", "pattern": "(?=look)", "match": []}
    assert_refused("otel_collector", "redaction/staff", watchpost_redaction_extra_rules=[rule])
    assert post("local_http").status == 200


def test_switched_off_all_of_it_is_found(queued):
    """Otherwise the tests above might look in the wrong place. Last, since the queue then holds it."""
    run = play("otel_collector", watchpost_redaction_enabled=False)
    assert run.code == 0, run.output
    found, _ = queued()
    assert found == set(PERSONAL)
