"""The benchmark of the pipeline sends what it says it sends; its figures come from a test host (`make bench`)."""

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


@pytest.mark.parametrize("number", [0, 31])
def test_traces_are_new_each_time_they_are_sent(number):
    one = payload("traces", number)
    first, second = ({span.trace_id for span in spans_of(one.fresh())} for _ in range(2))
    assert len(first) == len(second) == SIZE // SPANS_PER_TRACE
    assert not first & second
    assert {len(trace_id) for trace_id in first} == {16}
