"""Telemetry that can be found again, sent over OTLP/HTTP, and a ledger of what was acknowledged.

An item is a span, a log record or a data point of a cumulative counter. Each has a key that no other item of its run
has, and that can be read from the store again. Only an answer that takes a whole request makes its items acknowledged.
"""

from __future__ import annotations

import email.utils
import hashlib
import itertools
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

import httpx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

SPANS_PER_TRACE = 10
SERIES = 10  # of the counter; each request holds one point of each
COUNTER = "load.points"

#: Answers after which OTLP/HTTP has a client try again; all other failures are final (OTLP 1.x, "Failures").
RETRYABLE = {429, 502, 503, 504}
LONGEST_PAUSE = 5.0  # seconds between two tries when the server asks for no other


class Signal(StrEnum):
    """A signal, by the last part of its path in OTLP/HTTP."""

    TRACES = "traces"
    LOGS = "logs"
    METRICS = "metrics"


Request = ExportTraceServiceRequest | ExportLogsServiceRequest | ExportMetricsServiceRequest


@dataclass(frozen=True)
class Batch:
    """One request: its items' keys and its body in protobuf."""

    keys: tuple[str, ...]
    body: bytes


@dataclass
class Telemetry:
    """Makes the requests of one run. `shift` moves every timestamp, in seconds: negative is the past.

    `service` is the `service.name` of all that the run sends; by default one that no other run has.
    """

    run: str = field(default_factory=lambda: secrets.token_hex(4))
    shift: float = 0.0
    service: str = ""
    began: int = field(default_factory=lambda: time.time_ns() - 1_000_000_000)  # of the counter; not shifted
    _numbers: dict[Signal, itertools.count[int]] = field(
        default_factory=lambda: {signal: itertools.count() for signal in Signal}
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Name the service after the run."""
        self.service = self.service or f"load-{self.run}"

    def now(self) -> int:
        """Return nanoseconds since 1970, shifted."""
        return time.time_ns() + int(self.shift * 1e9)

    def batch(self, signal: Signal, size: int) -> Batch:
        """Make the next request of a signal with `size` items; of metrics, with one point of each series."""
        make = {Signal.TRACES: self._spans, Signal.LOGS: self._lines, Signal.METRICS: self._points}[signal]
        with self._lock:  # a counter's points leave in the order of their values, each at a time of its own
            keys, request = make(size)
        return Batch(tuple(keys), request.SerializeToString())

    @property
    def line(self) -> str:
        """How every log line of the run begins; its number follows."""
        return f"load {self.run} line "

    def trace_id(self, number: int) -> bytes:
        """Return the id of the run's n-th trace: evenly spread, as samplers expect."""
        return hashlib.sha256(f"{self.run}/{number}".encode()).digest()[:16]

    def _resource(self) -> Resource:
        names = {"service.name": self.service, "service.namespace": "load", "service.instance.id": self.run}
        return Resource(attributes=[_attribute(*pair) for pair in names.items()])

    def _spans(self, size: int) -> tuple[list[str], Request]:
        request = ExportTraceServiceRequest()
        spans = request.resource_spans.add(resource=self._resource()).scope_spans.add().spans
        keys: list[str] = []
        while len(keys) < size:
            trace_id, end = self.trace_id(next(self._numbers[Signal.TRACES])), self.now()
            for place in range(1, min(SPANS_PER_TRACE, size - len(keys)) + 1):
                span_id = place.to_bytes(8, "big")
                spans.add(
                    trace_id=trace_id,
                    span_id=span_id,
                    parent_span_id=b"" if place == 1 else (1).to_bytes(8, "big"),
                    name="GET /load" if place == 1 else "SELECT load",
                    kind=2 if place == 1 else 3,
                    start_time_unix_nano=end - (20 if place == 1 else 5) * 1_000_000,
                    end_time_unix_nano=end,
                    attributes=[_attribute("http.request.method", "GET"), _attribute("http.route", "/load")],
                )
                keys.append(span_key(trace_id.hex(), span_id.hex()))
        return keys, request

    def _lines(self, size: int) -> tuple[list[str], Request]:
        request = ExportLogsServiceRequest()
        records = request.resource_logs.add(resource=self._resource()).scope_logs.add().log_records
        now = self.now()
        keys = [f"{self.line}{next(self._numbers[Signal.LOGS])}" for _ in range(size)]
        for offset, line in enumerate(keys):  # a time of its own for each: Loki's answers are read page by page
            records.add(
                time_unix_nano=now + offset,
                observed_time_unix_nano=now + offset,
                severity_text="INFO",
                severity_number=9,
                body=AnyValue(string_value=line),
            )
        return keys, request

    def _points(self, size: int) -> tuple[list[str], Request]:
        request = ExportMetricsServiceRequest()
        metrics = request.resource_metrics.add(resource=self._resource()).scope_metrics.add().metrics
        metric = metrics.add(name=COUNTER)
        metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.sum.is_monotonic = True
        keys, value, now = [], next(self._numbers[Signal.METRICS]) + 1, self.now()
        for series in range(min(size, SERIES)):
            metric.sum.data_points.add(
                attributes=[_attribute("series", str(series))],
                # One start for all: Prometheus keeps a zero at each, also in the place of an earlier point.
                start_time_unix_nano=self.began + int(self.shift * 1e9),
                time_unix_nano=now,
                as_int=value,
            )
            keys.append(point_key(series, value))
        time.sleep(0.001)  # Prometheus knows milliseconds, and one value of a series at each
        return keys, request


def span_key(trace_id: str, span_id: str) -> str:
    """Return a span's key; ids are lower-case hex."""
    return f"{trace_id}/{span_id}"


def point_key(series: str | int, value: float) -> str:
    """Return a data point's key."""
    return f"series {series} at {value:.0f}"


def _attribute(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


@dataclass
class Ledger:
    """What became of one signal's items. Only keys of sent items are in it."""

    sent: int = 0
    acknowledged: dict[str, float] = field(default_factory=dict)  # key → when (Unix seconds)
    refused: Counter[str] = field(default_factory=Counter)  # reason → items
    retries: int = 0
    slowest: float = 0.0  # seconds from a request's first try until it was acknowledged
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Sender:
    """Sends requests over OTLP/HTTP until each is acknowledged, refused for good, or older than `retry_for` seconds.

    The client's base URL is that of the OTLP endpoint; its headers or its certificate prove who we are.
    """

    client: httpx.Client
    retry_for: float = 120.0
    ledgers: dict[Signal, Ledger] = field(default_factory=lambda: {signal: Ledger() for signal in Signal})
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = time.sleep

    def send(self, signal: Signal, batch: Batch) -> bool:
        """Send one request, and tell whether it was acknowledged."""
        ledger, began, tries = self.ledgers[signal], self.clock(), 0
        with ledger.lock:
            ledger.sent += len(batch.keys)
        while True:
            refused, wait = self._try(signal, batch)
            if not refused:
                with ledger.lock:
                    ledger.acknowledged |= dict.fromkeys(batch.keys, time.time())
                    ledger.slowest = max(ledger.slowest, self.clock() - began)
                return True
            # The server's wish if it has one; else longer each time, and by chance: clients must not return together.
            seconds = random.uniform(0.5, 1) * min(LONGEST_PAUSE, 0.1 * 2**tries) if wait is None else wait  # noqa: S311
            if wait == FINAL or self.clock() + seconds > began + self.retry_for:
                with ledger.lock:
                    ledger.refused[refused if wait == FINAL else f"{refused}, for {self.retry_for:g} s"] += len(
                        batch.keys
                    )
                return False
            tries += 1
            with ledger.lock:
                ledger.retries += 1
            self.pause(seconds)

    def _try(self, signal: Signal, batch: Batch) -> tuple[str, float | None]:
        """Return why a request was not taken, and when to come again; no reason when it was taken."""
        try:
            answer = self.client.post(
                f"/v1/{signal}", content=batch.body, headers={"Content-Type": "application/x-protobuf"}
            )
        except httpx.TransportError as error:
            return type(error).__name__, None
        if answer.status_code == 200:
            rejected = _rejected(signal, answer.content)
            return (f"partly rejected: {rejected}", FINAL) if rejected else ("", None)
        why = f"HTTP {answer.status_code}"
        return (why, retry_after(answer.headers)) if answer.status_code in RETRYABLE else (why, FINAL)


FINAL = float("inf")  # seconds until the next try of what is refused for good


def retry_after(headers: httpx.Headers) -> float | None:
    """Return how many seconds a server asks to wait (RFC 9110, 10.2.3: seconds or a date), or None."""
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _rejected(signal: Signal, body: bytes) -> str:
    """Return what an answer with status 200 says was rejected; nothing when all was taken."""
    try:
        match signal:
            case Signal.TRACES:
                spans = ExportTraceServiceResponse.FromString(body).partial_success
                count, why = spans.rejected_spans, spans.error_message
            case Signal.LOGS:
                records = ExportLogsServiceResponse.FromString(body).partial_success
                count, why = records.rejected_log_records, records.error_message
            case Signal.METRICS:
                points = ExportMetricsServiceResponse.FromString(body).partial_success
                count, why = points.rejected_data_points, points.error_message
    except DecodeError:
        return "an answer that is not OTLP"
    return f"{count} items, {why}" if count else ""


@dataclass
class Load:
    """A bounded load: `rate` items a second of each signal, for `seconds`, in requests of `size` items."""

    sender: Sender
    telemetry: Telemetry
    signals: tuple[Signal, ...] = tuple(Signal)
    rate: float = 200.0
    seconds: float = 20.0
    size: int = 50
    connections: int = 2  # for each signal: while one waits for a retry, the other goes on trying
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until the time is over or `stop` is set; return when the last request has been answered or given up."""
        with ThreadPoolExecutor(len(self.signals) * self.connections) as pool:
            jobs = [pool.submit(self._keep_sending, signal) for signal in self.signals for _ in range(self.connections)]
        for job in jobs:
            job.result()

    def _keep_sending(self, signal: Signal) -> None:
        size = min(self.size, SERIES) if signal is Signal.METRICS else self.size
        interval = size * self.connections / self.rate
        due = time.monotonic()
        end = due + self.seconds
        while due < end and not self.stop.wait(max(0.0, due - time.monotonic())):
            self.sender.send(signal, self.telemetry.batch(signal, size))
            due = max(
                due + interval, time.monotonic() - interval
            )  # what a pause has delayed is not made up for in a burst
