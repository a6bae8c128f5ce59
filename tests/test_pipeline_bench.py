"""The benchmark of the pipeline sends what it says it sends; its figures come from a test host (`make bench`)."""

from collections import Counter

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.pipeline import SIZE, SPANS_PER_TRACE, payload


def spans_of(body):
    return ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans


def test_each_request_holds_the_stated_number_of_items():
    logs = ExportLogsServiceRequest.FromString(payload("logs", 0).fresh())
    metrics = ExportMetricsServiceRequest.FromString(payload("metrics", 0).fresh())
    assert len(spans_of(payload("traces", 0).fresh())) == SIZE
    assert len(logs.resource_logs[0].scope_logs[0].log_records) == SIZE
    assert len(metrics.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points) == SIZE


def test_texts_are_of_the_kinds_that_the_documents_tell():
    """docs/benchmarks.md names these shares."""
    logs = ExportLogsServiceRequest.FromString(payload("logs", 3).fresh()).resource_logs[0].scope_logs[0].log_records
    first_words = Counter(record.body.string_value.split("=")[0].split()[0] for record in logs)
    shares = {word: count / len(logs) for word, count in first_words.items()}
    assert shares == {"order": 0.6, "level": 0.25, "203.0.113.9": 0.1, "confirmation": 0.05}
    statements = [
        attribute.value.string_value
        for span in spans_of(payload("traces", 3).fresh())
        for attribute in span.attributes
        if attribute.key == "db.query.text"
    ]
    assert 0.08 < sum("Anna Berg" in statement for statement in statements) / len(statements) < 0.12


@pytest.mark.parametrize("number", [0, 31])
def test_traces_are_new_each_time_they_are_sent(number):
    one = payload("traces", number)
    first, second = ({span.trace_id for span in spans_of(one.fresh())} for _ in range(2))
    assert len(first) == len(second) == SIZE // SPANS_PER_TRACE
    assert not first & second
    assert {len(trace_id) for trace_id in first} == {16}
