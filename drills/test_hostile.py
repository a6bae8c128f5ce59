"""One bad client harms itself only: the others lose nothing, and memory stays within its limit."""

import gzip
import secrets
import subprocess
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from drills.harness import say, unit_name
from watchpost.load import ingest_client
from watchpost.load_send import Signal

MIB = 1024 * 1024
PROTOBUF = {"Content-Type": "application/x-protobuf"}
BOMB_MIB = 1024  # decompressed
BOMBS = 8  # at once
#: MiB of resident memory that the Collector may have had at most: its limit, and half of it again for what the limit
#: does not count: program files, stacks, and garbage that has not been given back yet.
MEMORY_MIB = 768

TRACES_SERVICE = "/opentelemetry.proto.collector.trace.v1.TraceService"
GRPC_BOMBS = 32  # at once: as many as 8 connections allow
RESOURCE_EXHAUSTED, UNIMPLEMENTED = "8", "12"  # gRPC's status codes

#: Connections that one client may have open (`host_client_connections`), and seconds that others may wait meanwhile.
CLIENT_CONNECTIONS, WAIT_SECONDS = 64, 10


def gzip_bomb():
    """One member of 16 MiB, again and again: a gzip file may hold many."""
    return gzip.compress(bytes(16 * MIB)) * (BOMB_MIB // 16)


def zstd_bomb():
    """The controller has zstd, which unpacks Debian's packages."""
    done = subprocess.run(["zstd", "-c"], input=bytes(BOMB_MIB * MIB), capture_output=True, check=True)
    return done.stdout


BOMB = {"gzip": gzip_bomb, "zstd": zstd_bomb, "deflate": lambda: zlib.compress(bytes(BOMB_MIB * MIB), 9)}


def throw(appliance, encoding, count):
    """Send bombs all at once; return what was answered."""
    body = BOMB[encoding]()
    say(f"{len(body)} bytes of {encoding} become {BOMB_MIB} MiB")
    headers = PROTOBUF | {"Content-Encoding": encoding}

    def one(_):
        try:
            return client.post("/v1/traces", content=body, headers=headers, timeout=60).status_code
        except httpx.TransportError as error:
            return type(error).__name__

    with ingest_client(appliance.target) as client, ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("encoding", BOMB)
def test_bombs_are_refused_and_harm_nobody(drill, encoding):
    drill.appliance.restart("otel_collector")  # its peak of memory begins anew
    pid = drill.appliance.shell(f"systemctl show --property=MainPID --value {unit_name('otel_collector')}")
    with drill.appliance.load() as running:
        drill.pause(1, 2)
        answers = throw(drill.appliance, encoding, BOMBS)
        drill.pause(1, 2)
    _, peak = drill.appliance.memory_mib("otel_collector")
    drill.outcome.remarks.append(f"answers {answers}; memory at most {peak} MiB")
    drill.assert_nothing_lost(running)
    assert set(answers) <= {400, 413}, answers
    assert peak <= MEMORY_MIB
    assert drill.appliance.shell(f"systemctl show --property=MainPID --value {unit_name('otel_collector')}") == pid


def test_without_a_limit_of_the_body_a_bomb_takes_the_memory(drill):
    http = {"protocols": {"http": {"max_request_body_size": 4096 * MIB}}}
    with drill.appliance.collector_with(receivers={"otlp/ingest": http}):
        throw(drill.appliance, "gzip", 1)
        _, peak = drill.appliance.memory_mib("otel_collector")
    say(f"memory at most {peak} MiB")
    assert peak > MEMORY_MIB


def throw_over_grpc(drill, encoding, body, count):
    """Send gRPC requests all at once, beside a load; return it, the answers, the peak of memory, others' retries."""
    drill.appliance.restart("otel_collector")  # its peak of memory begins anew
    with drill.appliance.grpc() as grpc, drill.appliance.load() as running:
        drill.pause(1, 2)
        with ThreadPoolExecutor(count) as pool:
            answers = Counter(pool.map(lambda _: grpc(f"{TRACES_SERVICE}/Export", body, encoding), range(count)))
        drill.pause(3, 4)
    _, peak = drill.appliance.memory_mib("otel_collector")
    retries = sum(ledger.retries for ledger in running.ledgers.values())
    drill.outcome.remarks.append(
        f"{encoding}: answers {dict(answers)}; memory at most {peak} MiB; others' requests refused {retries} times"
    )
    say(drill.outcome.remarks[-1])
    return running, answers, peak, retries


def wide_zstd():
    """Return a frame of zstd that asks its reader for a window of 512 MiB."""
    done = subprocess.run(["zstd", "--long=29", "-c"], input=bytes(BOMB_MIB * MIB), capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_bombs_over_grpc_are_refused_and_harm_nobody(drill, encoding):
    body = {"gzip": gzip_bomb, "zstd": wide_zstd}[encoding]()
    running, answers, peak, retries = throw_over_grpc(drill, encoding, body, GRPC_BOMBS)
    drill.assert_nothing_lost(running)
    assert set(answers) == {{"gzip": RESOURCE_EXHAUSTED, "zstd": UNIMPLEMENTED}[encoding]}
    assert peak <= MEMORY_MIB and not retries


def test_with_zstd_over_grpc_bombs_have_others_refused(drill):
    with drill.appliance.gateway_with("grpc_packing_refused { default 1;", 'grpc_packing_refused { default "";'):
        running, _, _, retries = throw_over_grpc(drill, "zstd", wide_zstd(), GRPC_BOMBS)
    drill.settle(running)
    assert retries


@pytest.mark.parametrize("hours", [-5, 1], ids=["five hours late", "an hour early"])
def test_clock_that_is_off_loses_nothing_and_harms_nobody(drill, hours):
    """Both are one service, as a daemon is that runs on two hosts: their lines are one stream."""
    with drill.appliance.load() as right:
        drill.pause(1, 2)
        with drill.appliance.load(shift=hours * 3600, service=right.load.telemetry.service) as wrong:
            drill.pause(5, 6)
    drill.settle(right)
    assert not drill.outcome.lost, "others were harmed"
    drill.assert_nothing_lost(wrong)


def test_without_being_set_back_what_is_early_is_lost(drill):
    clock = {"transform/clock": {"log_statements": [], "metric_statements": []}}
    with drill.appliance.collector_with(processors=clock), drill.appliance.load(shift=3600) as wrong:
        drill.pause(2, 3)
    drill.settle(wrong, timeout=20)
    assert drill.outcome.lost


def test_clock_that_is_later_than_the_stores_windows_loses(drill):
    with drill.appliance.load() as right:
        drill.pause(1, 2)
        with drill.appliance.load(shift=-7 * 3600, service=right.load.telemetry.service) as wrong:
            drill.pause(2, 3)
    drill.settle(wrong, timeout=20)
    assert drill.outcome.lost


def long_span():
    """Return a request of 3.5 MiB with one span."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="drill-long")))
    now = time.time_ns()
    span = resource.scope_spans.add().spans.add(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8))
    span.name, span.start_time_unix_nano, span.end_time_unix_nano = "long", now, now
    for place in range(56):
        text = (f"words {chr(97 + place % 26)} " * 8000)[:64_000]
        span.attributes.append(KeyValue(key=f"part.{place}", value=AnyValue(string_value=text)))
    return request.SerializeToString()


def wordy_resource():
    """Return a request of 400 KB: 512 traces of a resource of which more is said than a store can copy to each."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    names = {"service.name": "drill-wordy", **{f"words.{number}": "word " * 12_800 for number in range(5)}}
    for key, value in names.items():
        resource.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
    spans, now = resource.scope_spans.add().spans, time.time_ns()
    for _ in range(512):
        spans.add(
            trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="wordy",
            start_time_unix_nano=now, end_time_unix_nano=now,
        )  # fmt: skip
    return request.SerializeToString()


def meet_long_spans(drill):
    """Load while Tempo is away, beside a client whose spans and resources are as large as a request may be."""
    with drill.appliance.stopped("tempo"), drill.appliance.load(signals=(Signal.TRACES,)) as running:
        drill.pause(1, 2)
        with drill.appliance.without_limits_of_clients(), ingest_client(drill.appliance.target) as client:
            bodies = [*(long_span() for _ in range(50)), *(wordy_resource() for _ in range(20))]
            answers = Counter(client.post("/v1/traces", content=body, headers=PROTOBUF).status_code for body in bodies)
        drill.pause(1, 2)
    say(f"{len(bodies)} requests with {sum(map(len, bodies)) // MIB} MiB were answered {dict(answers)}")
    assert answers == {200: len(bodies)}
    return running


def test_long_spans_and_wordy_resources_keep_nobody_s_traces_away(drill):
    running = meet_long_spans(drill)
    drill.assert_nothing_lost(running, 180)


def test_with_large_batches_long_spans_keep_others_traces_away(drill):
    batch = {"sending_queue": {"batch": {"min_size": 512, "max_size": 512}}}
    wordy = {"transform/wordy": {"trace_statements": []}}
    with drill.appliance.collector_with(exporters={"otlp_http/tempo": batch}, processors=wordy):
        running = meet_long_spans(drill)
        drill.settle(running, timeout=60)
    drill.appliance.shell(  # what Tempo refuses again and again would stay in the queue
        f"systemctl stop {unit_name('otel_collector')}; rm -f /var/lib/watchpost/otel_collector/queue/*tempo*; "
        f"systemctl start {unit_name('otel_collector')}"
    )
    drill.appliance.wait_until_ready("otel_collector")
    assert drill.outcome.lost


def delta():
    """Return a request that Prometheus refuses: a sum that begins anew with each export."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="drill.delta")
    metric.sum.aggregation_temporality = 1
    metric.sum.data_points.add(time_unix_nano=time.time_ns(), as_int=1)
    return request.SerializeToString()


def meet_metrics_that_prometheus_refuses(drill):
    with ingest_client(drill.appliance.target) as client, drill.appliance.load(signals=(Signal.METRICS,)) as running:
        for _ in range(50):
            client.post("/v1/metrics", content=delta(), headers=PROTOBUF)
            time.sleep(0.1)  # so that it meets requests of the other client
    return running


def test_metrics_that_prometheus_refuses_harm_nobody(drill):
    drill.assert_nothing_lost(meet_metrics_that_prometheus_refuses(drill))


def test_with_metrics_batched_together_those_that_prometheus_refuses_harm_others(drill):
    batch = {"batch": {"flush_timeout": "1s", "sizer": "bytes", "min_size": 100_000, "max_size": 2_000_000}}
    with drill.appliance.collector_with(exporters={"otlp_http/prometheus": {"sending_queue": batch}}):
        drill.settle(meet_metrics_that_prometheus_refuses(drill), timeout=20)
    assert drill.outcome.lost


def meet_a_noisy_client(drill):
    """Load beside a client that sends all it can; return it, the other's connections, and its longest wait (s)."""
    drill.appliance.restart("otel_collector")  # its peak of memory begins anew
    with drill.appliance.neighbour() as source, drill.appliance.load(retry_for=600) as running:
        drill.pause(1, 2)
        with drill.appliance.noise(source, connections=300) as noise:
            drill.pause(20, 21)
            connected = drill.appliance.connections_of(source)
        held_back = drill.appliance.held_back(source) / MIB
    _, peak = drill.appliance.memory_mib("otel_collector")
    slowest = max(ledger.slowest for ledger in running.ledgers.values())
    drill.outcome.remarks.append(
        f"noise over {connected} connections, answers {noise.answers}, {held_back:.1f} MiB dropped; "
        f"others waited {slowest:.1f} s at most; memory at most {peak} MiB"
    )
    say(drill.outcome.remarks[-1])
    return running, connected, slowest


def test_noisy_client_is_held_back_and_others_lose_nothing(drill):
    running, connected, slowest = meet_a_noisy_client(drill)
    drill.assert_nothing_lost(running)
    assert not drill.outcome.refused
    assert 0 < connected <= CLIENT_CONNECTIONS
    assert slowest <= WAIT_SECONDS


def test_without_a_limit_a_noisy_client_has_others_wait(drill):
    with drill.appliance.without_limits_of_clients():
        running, connected, slowest = meet_a_noisy_client(drill)
    drill.settle(running)
    assert connected > CLIENT_CONNECTIONS
    assert slowest > WAIT_SECONDS or drill.outcome.refused


def points(first, count, now):
    """Return a request with one point for each of `count` label values, from `first` on."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="drill-noisy")))
    metric = resource.scope_metrics.add().metrics.add(name="drill.noisy")
    for number in range(first, first + count):
        value = KeyValue(key="user", value=AnyValue(string_value=f"user-{number}"))
        metric.gauge.data_points.add(attributes=[value], time_unix_nano=now, as_int=1)
    return request.SerializeToString()


def test_client_with_a_million_label_values_harms_nobody(drill, values):
    each = 2000
    with ingest_client(drill.appliance.target) as client, drill.appliance.load(seconds=300) as running:
        drill.pause(1, 2)
        answers = {}
        for first in range(0, values, each):
            answer = client.post("/v1/metrics", content=points(first, each, time.time_ns()), headers=PROTOBUF)
            answers[answer.status_code] = answers.get(answer.status_code, 0) + each
        say(f"{values} label values were answered {answers}")
        drill.pause(5, 8)
    now, peak = drill.appliance.memory_mib("prometheus")
    drill.outcome.remarks.append(f"answers {answers}; Prometheus holds {now} MiB, at most {peak}")
    drill.assert_nothing_lost(running, 120)
    assert answers == {200: values}, "they have not reached Prometheus"
