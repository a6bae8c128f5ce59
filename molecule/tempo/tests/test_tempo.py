"""Tempo takes OTLP spans, finds them at once, and never runs a configuration that it refuses."""

import json
import time
from urllib.parse import urlencode

import pytest
from otlp import JSON, Probe


@pytest.fixture
def probe(ask):
    """A trace that Tempo has taken."""
    probe = Probe()
    sent = ask("tempo", "otlp_http", "/v1/traces", method="POST", headers=JSON, body=probe.span("GET /tasks"))
    assert sent.status == 200, sent
    return probe


def test_trace_is_found_by_its_id_at_once(probe, ask):
    answer = ask("tempo", "http", f"/api/traces/{probe.trace_id}")
    assert answer.status == 200
    assert "GET /tasks" in answer.body


def test_trace_is_found_by_a_search_within_seconds(probe, ask):
    query = f'{{ resource.service.name = "{probe.service}" && duration > 10ms }}'
    deadline = time.monotonic() + 15
    while not (found := ask("tempo", "http", "/api/search?" + urlencode({"q": query})).json["traces"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)  # between two searches
    assert [trace["traceID"].zfill(32) for trace in found] == [probe.trace_id]


def test_long_stack_trace_is_kept_to_its_end(ask):
    probe, stacktrace = Probe(), "at nowhere\n" * 1000 + "ValueError: here it is"
    body = probe.span("GET /tasks", stacktrace)
    assert ask("tempo", "otlp_http", "/v1/traces", method="POST", headers=JSON, body=body).status == 200
    assert json.dumps(stacktrace) in ask("tempo", "http", f"/api/traces/{probe.trace_id}").body


def test_many_traces_are_taken_at_once_though_much_is_said_of_their_resource(ask):
    probe = Probe()
    sent = ask("tempo", "otlp_http", "/v1/traces", method="POST", headers=JSON, body=probe.traces(300))
    assert sent.status == 200, sent
    assert ask("tempo", "http", f"/api/traces/{probe.trace_id}").status == 200


def test_retention_is_on(ask):
    assert "block_retention: 168h0m0s" in ask("tempo", "http", "/status/config").body


def test_refused_configuration_is_told_of_and_the_old_one_keeps_running(assert_refused):
    # This is how Tempo names an entry that it does not know: as if it were one of its older format.
    assert_refused("tempo", "overrides.legacyConfig", tempo_limits={"no_such_limit": 1})
