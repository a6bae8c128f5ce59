"""One request with a fresh trace in it, in OTLP's JSON form, for each of the three signals."""

import json
import secrets
import time
from dataclasses import dataclass, field

JSON = {"Content-Type": "application/json"}


def attributes(**values):
    """Write attributes as OTLP does; two underscores stand for a dot."""
    return [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in values.items()]


@dataclass(frozen=True)
class Probe:
    """A service that nobody else plays, one worker of it, and a trace; `nanoseconds` is now."""

    service: str = field(default_factory=lambda: f"probe-{secrets.token_hex(4)}")
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    nanoseconds: int = field(default_factory=time.time_ns)

    @property
    def resource(self):
        names = {"service__name": self.service, "service__namespace": "molecule", "service__instance__id": "worker-7"}
        return {"attributes": attributes(**names, deployment__environment__name="test", service__version="1.2.3")}

    def log(self, line):
        """Return a request that holds one error, logged within the trace."""
        record = {
            "timeUnixNano": str(self.nanoseconds),
            "severityText": "ERROR",
            "severityNumber": 17,
            "body": {"stringValue": line},
            "traceId": self.trace_id,
            "spanId": self.span_id,
        }
        return json.dumps({"resourceLogs": [{"resource": self.resource, "scopeLogs": [{"logRecords": [record]}]}]})

    def span(self, name):
        """Return a request that holds the trace's only span, 20 ms long."""
        span = {
            "traceId": self.trace_id,
            "spanId": self.span_id,
            "name": name,
            "kind": 2,
            "startTimeUnixNano": str(self.nanoseconds - 20_000_000),
            "endTimeUnixNano": str(self.nanoseconds),
        }
        return json.dumps({"resourceSpans": [{"resource": self.resource, "scopeSpans": [{"spans": [span]}]}]})

    def counter(self, name, value):
        """Return a request that holds one point of a counter, with the trace as its exemplar."""
        exemplar = {
            "timeUnixNano": str(self.nanoseconds),
            "asInt": "1",
            "traceId": self.trace_id,
            "spanId": self.span_id,
        }
        point = {
            "timeUnixNano": str(self.nanoseconds),
            "startTimeUnixNano": str(self.nanoseconds - 1_000_000_000),
            "asInt": str(value),
            "exemplars": [exemplar],
        }
        metric = {"name": name, "sum": {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}}
        return json.dumps({"resourceMetrics": [{"resource": self.resource, "scopeMetrics": [{"metrics": [metric]}]}]})
