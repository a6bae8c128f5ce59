"""Tasks are counted once, though several workers could count them."""

import os

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from taskboard import measures
from taskboard.settings import database_url as parse


@pytest.fixture
def reported(client, database_url):
    """What a process reports: of `leads`, whether it has the lead."""
    providers = []

    def reported(leads):
        reader = InMemoryMetricReader()
        providers.append(measures.provide(reader, parse(database_url), leads))
        data = reader.get_metrics_data()
        return data and data.resource_metrics[0]

    yield reported
    for provider in providers:
        provider.shutdown()


def test_tasks_are_counted_by_state_under_an_identity_that_is_no_workers(client, reported, telemetry):
    for state in ("open", "done", "open"):
        client.post("/api/tasks", json={"title": "x", "state": state})
    telemetry.clear()
    found = reported(lambda: True)
    assert found.resource.attributes["service.instance.id"] == "shared"
    (metric,) = found.scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("taskboard.tasks", "{task}")
    assert {p.attributes["task.state"]: p.value for p in metric.data.data_points} == {"open": 2, "done": 1}
    assert telemetry.spans() == (), "the question is no trace of its own"


def test_state_without_a_task_is_none_and_not_unknown(reported):
    (metric,) = reported(lambda: True).scope_metrics[0].metrics
    assert {p.attributes["task.state"]: p.value for p in metric.data.data_points} == {"open": 0, "done": 0}


def test_who_has_not_the_lead_reports_nothing(reported):
    assert reported(lambda: False) is None


def test_lead_is_one_process_own_until_it_ends():
    lead = measures.Lead()

    def child(until):
        """Fork a child that says whether it has the lead, and lives until told."""
        answer_out, answer_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(answer_in, b"yes" if lead.taken() else b"no")
            os.read(until, 1)
            os._exit(0)
        return pid, os.read(answer_out, 3)

    first_until, end_first = os.pipe()
    first, first_leads = child(first_until)
    until, end = os.pipe()
    second, second_leads = child(until)
    os.write(end_first, b".")
    os.waitpid(first, 0)
    third, third_leads = child(until)
    os.write(end, b"..")
    for pid in (second, third):
        os.waitpid(pid, 0)
    assert (first_leads, second_leads, third_leads) == (b"yes", b"no", b"yes")
