"""The Collector takes telemetry from those who prove themselves, and keeps it while no store is there to take it."""

import time

import pytest
from conftest import unit_name
from otlp import JSON, Probe

CREDENTIAL = "/etc/watchpost/otel_collector/current/credentials/otlp_ingest_token"
GENERATIONS = {"grafana_admin_password": 1, "grafana_secret_key": 1, "otlp_ingest_token": 2, "redaction_key": 1}


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


def test_retired_exporter_is_refused_and_the_old_configuration_keeps_running(assert_refused, post):
    extra = {"exporters": {"loki": {"endpoint": "https://127.0.0.1", "labels": {"resource": {"service.name": "job"}}}}}
    assert_refused("otel_collector", "loki", "unknown type", otel_collector_extra_config=extra)
    assert post("local_http").status == 200


def test_configuration_of_ones_own_is_laid_over(site, host):
    run = site(otel_collector_extra_config={"service": {"telemetry": {"logs": {"level": "warn"}}}})
    assert run.code == 0, run.output
    assert "Everything is ready" not in host.check_output("journalctl --boot --output=cat _PID=%s", main_pid(host))
    assert site().code == 0


def test_wrongly_typed_variable_is_named(site):
    run = site(otel_collector_queue_mib="much")
    assert run.code != 0 and "otel_collector_queue_mib" in run.output


def test_rotated_token_replaces_the_old_one(site, post, host, ingest_token):
    run = site(watchpost_secret_generations=GENERATIONS)
    assert run.code == 0, run.output
    new = host.file(CREDENTIAL).content_string
    assert new not in run.output
    assert post("ingest_http", identity=None, token=new).status == 200
    assert post("ingest_http", identity=None, token=ingest_token).status == 401
