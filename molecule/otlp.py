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

    @property
    def wordy_resource(self):
        """60 KB, as a program with a long command line says of itself with each request."""
        said = {f"process__command_args__{number}": "a" * 2000 for number in range(30)}
        return {"attributes": [*self.resource["attributes"], *attributes(**said)]}

    def logs(self, count):
        """Return a request that holds that many lines of such a resource."""
        records = [
            {"timeUnixNano": str(self.nanoseconds + number), "body": {"stringValue": f"line {number}"}}
            for number in range(count)
        ]
        return json.dumps({"resourceLogs": [{"resource": self.wordy_resource, "scopeLogs": [{"logRecords": records}]}]})

    def traces(self, count):
        """Return a request that holds that many traces of such a resource, the probe's last."""
        ids = [secrets.token_hex(16) for _ in range(count - 1)] + [self.trace_id]
        times = {"startTimeUnixNano": str(self.nanoseconds - 1000), "endTimeUnixNano": str(self.nanoseconds)}
        spans = [{"traceId": trace_id, "spanId": self.span_id, "name": "GET", "kind": 2, **times} for trace_id in ids]
        return json.dumps({"resourceSpans": [{"resource": self.wordy_resource, "scopeSpans": [{"spans": spans}]}]})

    def log(self, line, **beside):
        """Return a request that holds one error, logged within the trace, and attributes beside it."""
        record = {
            "attributes": attributes(**beside),
            "timeUnixNano": str(self.nanoseconds),
            "severityText": "ERROR",
            "severityNumber": 17,
            "body": {"stringValue": line},
            "traceId": self.trace_id,
            "spanId": self.span_id,
        }
        return json.dumps({"resourceLogs": [{"resource": self.resource, "scopeLogs": [{"logRecords": [record]}]}]})

    def span(self, name, stacktrace=""):
        """Return a request that holds the trace's only span, 20 ms long, and an exception if there is a stack trace."""
        exception = {
            "name": "exception",
            "timeUnixNano": str(self.nanoseconds),
            "attributes": attributes(exception__stacktrace=stacktrace),
        }
        span = {
            "events": [exception] if stacktrace else [],
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
