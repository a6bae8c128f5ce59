"""Loki takes OTLP logs, keeps what belongs to a line beside it, and never runs a configuration that it refuses."""

from urllib.parse import urlencode

import pytest
from otlp import JSON, Probe


@pytest.fixture
def probe(ask):
    """A line that Loki has taken."""
    probe = Probe()
    sent = ask("loki", "http", "/otlp/v1/logs", method="POST", headers=JSON, body=probe.log("it broke"))
    assert sent.status == 204, sent
    return probe


@pytest.fixture
def lines(ask):
    """Ask for log lines: their labels and metadata in one."""

    def lines(query, since="1h"):
        answer = ask("loki", "http", "/loki/api/v1/query_range?" + urlencode({"query": query, "since": since}))
        assert answer.status == 200, answer
        return [(stream["stream"], text) for stream in answer.json["data"]["result"] for _, text in stream["values"]]

    return lines


def test_log_is_found_by_its_trace_id_at_once(probe, lines):
    found = lines(f'{{service_name="{probe.service}"}} | trace_id="{probe.trace_id}"')
    assert [text for _, text in found] == ["it broke"]
    assert found[0][0]["span_id"] == probe.span_id


@pytest.mark.parametrize("words", ['service_instance_id="worker-7"', 'detected_level="error"', 'severity_text="ERROR"'])
def test_log_is_found_by_what_is_kept_beside_the_line(probe, lines, words):
    assert lines(f'{{service_name="{probe.service}", deployment_environment_name="test"}} | {words}')
    assert not lines(f'{{service_name="{probe.service}", deployment_environment_name="test"}} | {words[:-1]}x"')


def test_instance_id_makes_no_stream_of_its_own(probe, ask):
    query = urlencode({"match[]": f'{{service_name="{probe.service}"}}'})
    streams = ask("loki", "http", f"/loki/api/v1/series?{query}").json["data"]
    assert [set(stream) for stream in streams] == [{"service_name", "service_namespace", "deployment_environment_name"}]


def test_line_that_comes_hours_late_is_found_in_a_stream_that_went_on(probe, ask, lines):
    """Another host's backlog, after an outage: the host is no label, so both have one stream."""
    late = Probe(service=probe.service, nanoseconds=probe.nanoseconds - 5 * 3600 * 10**9)
    sent = ask("loki", "http", "/otlp/v1/logs", method="POST", headers=JSON, body=late.log("it broke before"))
    assert sent.status == 204, sent
    found = lines(f'{{service_name="{probe.service}"}}', since="6h")
    assert {text for _, text in found} == {"it broke", "it broke before"}


def test_what_stands_beside_a_line_is_kept_whole_though_it_is_much(probe, ask, lines):
    long, many = "x" * 80_000, {f"a{number}": "v" for number in range(200)}
    sent = ask("loki", "http", "/otlp/v1/logs", method="POST", headers=JSON, body=probe.log("long", trace=long, **many))
    assert sent.status == 204, sent
    [(beside, _)] = lines(f'{{service_name="{probe.service}"}} |= "long"')
    assert beside["trace"] == long and set(many) <= set(beside)


def test_many_lines_are_taken_at_once_though_much_is_said_of_their_resource(ask, lines):
    probe = Probe()
    sent = ask("loki", "http", "/otlp/v1/logs", method="POST", headers=JSON, body=probe.logs(128))
    assert sent.status == 204, sent
    assert len(lines(f'{{service_name="{probe.service}"}} |= "line 127"')) == 1


def test_retention_is_on(ask):
    config = ask("loki", "http", "/config").body
    assert "retention_enabled: true" in config
    assert "retention_period: 2w" in config


def test_refused_configuration_is_named_and_the_old_one_keeps_running(assert_refused):
    assert_refused("loki", "no_such_limit", loki_limits={"no_such_limit": 1})
