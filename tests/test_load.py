"""`watchpost load` keeps an honest ledger, and finds what is missing.

The endpoint and Grafana stand behind `httpx.MockTransport`; the real ones are asked in molecule/appliance and drills/.
"""

import base64
import json
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from typer.testing import CliRunner

from watchpost import load, load_read
from watchpost.cli import command_line
from watchpost.load_read import PAGE, Reader
from watchpost.load_send import FINAL, SERIES, SPANS_PER_TRACE, Load, Sender, Signal, Telemetry, retry_after
from watchpost.verify_grafana import Grafana
from watchpost.verify_target import Target


class Appliance:
    """Takes OTLP and answers as Grafana does. `forgets` names the keys' beginnings that it does not keep."""

    def __init__(self, answers=(), forgets=()):
        self.answers = list(answers)  # to the first requests; after them everything is taken
        self.forgets = tuple(forgets)
        self.spans, self.lines, self.points = {}, {}, []
        self.paths = []

    def client(self):
        return httpx.Client(base_url="https://appliance.test", transport=httpx.MockTransport(self))

    def __call__(self, request):
        path = request.url.path
        if path.startswith("/v1/"):
            self.paths.append(path)
            answer = self.answers.pop(0) if self.answers else httpx.Response(200)
            if isinstance(answer, Exception):
                raise answer
            if answer.status_code == 200 and not answer.content:
                getattr(self, f"take_{path.rpartition('/')[2]}")(request.content)
            return answer
        if "/api/traces/" in path:
            spans = self.spans.get(path.rpartition("/")[2])
            content = {"batches": [{"scopeSpans": [{"spans": spans}]}]}
            return httpx.Response(200, json=content) if spans else httpx.Response(404)
        if path.endswith("/loki/api/v1/query_range"):
            start, limit = int(request.url.params["start"]), int(request.url.params["limit"])
            (within,) = re.findall(r'\|= "(.+)"', request.url.params["query"])
            values = [[str(at), line] for at, line in sorted(self.lines.items()) if at >= start and within in line]
            values = values[:limit]
            return httpx.Response(200, json={"data": {"result": [{"stream": {}, "values": values}]}})
        if path.endswith("/prometheus/api/v1/query"):
            (run,) = re.findall(r'instance="(.+?)"', request.url.params["query"])
            points = [(name, value) for instance, name, value in self.points if instance == run]
            series = [{"metric": {"series": name}, "values": [[0, value]]} for name, value in points]
            return httpx.Response(200, json={"data": {"result": series}})
        return httpx.Response(200, json={})

    def keeps(self, key):
        return not key.startswith(self.forgets) if self.forgets else True

    def take_traces(self, body):
        (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
        for span in resource.scope_spans[0].spans:
            if self.keeps(span.span_id.hex()):
                known = self.spans.setdefault(span.trace_id.hex(), [])
                known.append({"spanId": base64.b64encode(span.span_id).decode()})

    def take_logs(self, body):
        (resource,) = ExportLogsServiceRequest.FromString(body).resource_logs
        for record in resource.scope_logs[0].log_records:
            if self.keeps(record.body.string_value):
                self.lines[record.time_unix_nano] = record.body.string_value

    def take_metrics(self, body):
        (resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
        names = {name.key: name.value.string_value for name in resource.resource.attributes}
        for point in resource.scope_metrics[0].metrics[0].sum.data_points:
            if self.keeps(point.attributes[0].value.string_value):
                series = point.attributes[0].value.string_value
                self.points.append((names["service.instance.id"], series, str(point.as_int)))


class Clock:
    """Time that only pauses move."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)


def sender_to(appliance, **options):
    clock = Clock()
    return Sender(appliance.client(), clock=clock, pause=clock.pause, **options), clock


def counts_of(appliance, sender, telemetry):
    reader = Reader(Grafana(appliance.client()), telemetry, since=0.0)
    return {count.signal: count for count in reader.wait(sender.ledgers, timeout=0)}


def send_one_of_each(appliance, size=20, service=""):
    sender, _ = sender_to(appliance)
    telemetry = Telemetry(service=service)
    for signal in Signal:
        sender.send(signal, telemetry.batch(signal, size))
    return sender, telemetry


# --- what is sent ---


def test_no_two_items_of_a_run_have_one_key():
    run = Telemetry()
    keys = [key for signal in Signal for _ in range(2) for key in run.batch(signal, 20).keys]
    assert len(set(keys)) == len(keys) == 2 * (20 + 20 + SERIES)


def test_two_runs_share_no_trace_and_no_service():
    one, other = Telemetry(), Telemetry()
    assert one.service != other.service
    assert not {*one.batch(Signal.TRACES, 20).keys} & {*other.batch(Signal.TRACES, 20).keys}


def test_spans_form_small_traces_with_one_root():
    request = ExportTraceServiceRequest.FromString(Telemetry().batch(Signal.TRACES, 2 * SPANS_PER_TRACE).body)
    spans = request.resource_spans[0].scope_spans[0].spans
    assert len({span.trace_id for span in spans}) == 2
    assert [span.parent_span_id == b"" for span in spans].count(True) == 2


def test_shifted_telemetry_carries_other_times():
    now, past = (
        ExportLogsServiceRequest.FromString(Telemetry(shift=shift).batch(Signal.LOGS, 1).body) for shift in (0, -3600)
    )
    times = [one.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano for one in (now, past)]
    assert 3599e9 < times[0] - times[1] < 3601e9


def test_counter_has_one_start():
    """Prometheus keeps a zero at each start: one that falls on an earlier point's time takes that point's place."""
    telemetry, starts = Telemetry(shift=-3600.0), set()
    for _ in range(3):
        request = ExportMetricsServiceRequest.FromString(telemetry.batch(Signal.METRICS, 10).body)
        for point in request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points:
            assert point.start_time_unix_nano < point.time_unix_nano
            starts.add(point.start_time_unix_nano)
    assert len(starts) == 1
    assert abs(starts.pop() / 1e9 - (time.time() - 3600)) < 10


def test_load_keeps_its_rate():
    sender = Sender(Appliance().client())
    Load(sender, Telemetry(), rate=200, seconds=1, size=20).run()
    for signal in Signal:
        assert 160 <= sender.ledgers[signal].sent <= 240, signal


# --- the ledger ---


@pytest.mark.parametrize(
    "first",
    [*(httpx.Response(status) for status in (429, 502, 503, 504)), httpx.ConnectError("refused"), httpx.ReadError("")],
    ids=lambda first: str(getattr(first, "status_code", type(first).__name__)),
)
def test_refusal_for_now_is_sent_again_until_it_is_taken(first):
    appliance = Appliance([first, first])
    sender, _ = sender_to(appliance)
    batch = Telemetry().batch(Signal.LOGS, 3)
    assert sender.send(Signal.LOGS, batch)
    ledger = sender.ledgers[Signal.LOGS]
    assert (ledger.sent, {*ledger.acknowledged}, ledger.retries) == (3, {*batch.keys}, 2)
    assert len(appliance.paths) == 3


@pytest.mark.parametrize("status", [400, 401, 413, 500, 501])
def test_refusal_for_good_is_not_sent_again(status):
    appliance = Appliance([httpx.Response(status)])
    sender, _ = sender_to(appliance)
    assert not sender.send(Signal.LOGS, Telemetry().batch(Signal.LOGS, 3))
    ledger = sender.ledgers[Signal.LOGS]
    assert (ledger.acknowledged, dict(ledger.refused)) == ({}, {f"HTTP {status}": 3})
    assert len(appliance.paths) == 1


def test_partial_success_acknowledges_nothing():
    partly = ExportTraceServiceResponse()
    partly.partial_success.rejected_spans, partly.partial_success.error_message = 1, "too large"
    sender, _ = sender_to(Appliance([httpx.Response(200, content=partly.SerializeToString())]))
    assert not sender.send(Signal.TRACES, Telemetry().batch(Signal.TRACES, 5))
    ledger = sender.ledgers[Signal.TRACES]
    assert (ledger.acknowledged, dict(ledger.refused)) == ({}, {"partly rejected: 1 items, too large": 5})


def test_answer_that_is_no_otlp_acknowledges_nothing():
    sender, _ = sender_to(Appliance([httpx.Response(200, content=b"<html>welcome</html>")]))
    assert not sender.send(Signal.TRACES, Telemetry().batch(Signal.TRACES, 5))


def test_request_is_given_up_after_its_time():
    sender, clock = sender_to(Appliance([httpx.Response(503)] * 1000), retry_for=30)
    assert not sender.send(Signal.LOGS, Telemetry().batch(Signal.LOGS, 3))
    assert dict(sender.ledgers[Signal.LOGS].refused) == {"HTTP 503, for 30 s": 3}
    assert 20 < clock.now <= 30


def test_pauses_grow_and_stay_bounded():
    sender, clock = sender_to(Appliance([httpx.Response(503)] * 12))
    sender.send(Signal.LOGS, Telemetry().batch(Signal.LOGS, 1))
    assert clock.pauses[0] <= 0.1
    assert 2.5 <= clock.pauses[-1] <= 5


def test_server_decides_when_to_come_again():
    sender, clock = sender_to(Appliance([httpx.Response(429, headers={"Retry-After": "7"})]))
    assert sender.send(Signal.LOGS, Telemetry().batch(Signal.LOGS, 1))
    assert clock.pauses == [7]


def test_retry_after_may_be_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < retry_after(httpx.Headers({"Retry-After": date})) <= 90
    assert retry_after(httpx.Headers({"Retry-After": "soon"})) is None
    assert FINAL > 1e9


# --- what is found ---


def test_whatever_was_taken_is_found_once():
    appliance = Appliance()
    counts = counts_of(appliance, *send_one_of_each(appliance))
    for signal, items in ((Signal.TRACES, 20), (Signal.LOGS, 20), (Signal.METRICS, SERIES)):
        count = counts[signal]
        assert (count.sent, count.acknowledged, count.found, count.lost, count.duplicates) == (
            items,
            items,
            items,
            0,
            0,
        )


def test_two_runs_of_one_service_are_told_apart():
    appliance = Appliance()
    send_one_of_each(appliance, service="shared")
    counts = counts_of(appliance, *send_one_of_each(appliance, service="shared"))
    assert [count.found for count in counts.values()] == [20, 20, SERIES]
    assert not any(count.lost for count in counts.values())


@pytest.mark.parametrize(
    ("signal", "forgets"),
    [(Signal.TRACES, "0000000000000002"), (Signal.LOGS, "load"), (Signal.METRICS, "3")],
)
def test_forgotten_item_is_lost(signal, forgets):
    appliance = Appliance(forgets=[forgets])
    counts = counts_of(appliance, *send_one_of_each(appliance))
    assert {each: bool(count.lost) for each, count in counts.items()} == {each: each is signal for each in Signal}
    assert counts[signal].found + counts[signal].lost == counts[signal].acknowledged


def test_item_that_arrived_without_an_answer_is_found_and_not_acknowledged():
    appliance = Appliance()
    sender, telemetry = send_one_of_each(appliance)
    silent = telemetry.batch(Signal.LOGS, 1)
    appliance.take_logs(silent.body)
    count = counts_of(appliance, sender, telemetry)[Signal.LOGS]
    # Everything acknowledged is there at the first look, so the surplus is seen beside it.
    assert (count.acknowledged, count.found, count.lost) == (20, 21, 0)


def test_item_stored_twice_is_a_duplicate():
    appliance = Appliance()
    sender, telemetry = send_one_of_each(appliance)
    appliance.points += appliance.points[:2]
    assert counts_of(appliance, sender, telemetry)[Signal.METRICS].duplicates == 2


def test_long_logs_are_read_page_by_page(monkeypatch):
    assert PAGE == 5000  # Loki's own limit
    monkeypatch.setattr(load_read, "PAGE", 7)
    appliance = Appliance()
    assert counts_of(appliance, *send_one_of_each(appliance, size=21))[Signal.LOGS].found == 21


def test_store_that_does_not_answer_is_named(monkeypatch):
    appliance = Appliance()
    sender, telemetry = send_one_of_each(appliance)
    broken = httpx.Client(
        base_url="https://appliance.test", transport=httpx.MockTransport(lambda _: httpx.Response(502, text="gone"))
    )
    (count, *_) = Reader(Grafana(broken), telemetry, since=0.0).wait(sender.ledgers, timeout=0)
    assert count.lost == count.acknowledged
    assert "tempo does not answer" in count.error


def test_trace_that_is_not_answered_hides_no_other(monkeypatch):
    appliance = Appliance()
    sender, telemetry = send_one_of_each(appliance)
    grafana = Grafana(appliance.client())
    trace, busy = grafana.trace, telemetry.trace_id(0).hex()

    def answer(trace_id):
        if trace_id == busy:
            raise httpx.ReadTimeout("busy")
        return trace(trace_id)

    monkeypatch.setattr(grafana, "trace", answer)
    (count, *_) = Reader(grafana, telemetry, since=0.0).wait(sender.ledgers, timeout=0)
    assert (count.found, count.lost, count.error) == (10, 10, "ReadTimeout: busy")


# --- the command ---


@pytest.fixture
def command(monkeypatch):
    def run(appliance, *arguments):
        monkeypatch.setattr(load, "ingest_client", lambda *_: appliance.client())
        monkeypatch.setattr(Target, "client", lambda *_: appliance.client())
        target = Target("https://appliance.test", "the-password", None, "https://appliance.test:4318", "the-token")
        monkeypatch.setattr(load.verify_target, "find", lambda _: target)
        return CliRunner().invoke(command_line("load"), ["load", "--seconds=1", "--timeout=0", *arguments])

    return run


def test_nothing_lost_exits_with_zero(command):
    done = command(Appliance(), "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert [count["signal"] for count in report["counts"]] == ["traces", "logs", "metrics"]


def test_lost_log_exits_with_one_and_is_named(command):
    done = command(Appliance(forgets=["load"]), "--signal=logs")
    assert done.exit_code == 1
    assert re.search(r"^logs: \d+ lost, first load \w{8} line \d+", done.stdout, re.MULTILINE)


def test_endpoint_without_tls_is_refused(command):
    done = command(Appliance(), "--ingest=http://appliance.test:4318")
    assert done.exit_code == 2
    assert "--ingest http://appliance.test:4318: must begin with https://" in " ".join(done.stderr.split())


def test_secrets_are_never_printed(command):
    output = command(Appliance()).output
    assert "the-token" not in output and "the-password" not in output
