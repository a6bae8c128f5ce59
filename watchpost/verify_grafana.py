"""What Grafana knows, asked as its own pages ask: with a login, through its query API and its data-source proxy.

Everything used here answers alike in Grafana 10 and later: `/api/ds/query` for Prometheus and Loki, and the proxy for
Tempo, whose own JSON is OTLP, and for Alertmanager.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

#: Stable uids, as provisioned by the grafana role.
PROMETHEUS, LOKI, TEMPO, ALERTMANAGER = "prometheus", "loki", "tempo", "alertmanager"
#: Alertmanager's receivers that are no person's: for what nobody is told of, and the dead man's switch.
NOBODY, HEARTBEAT = "nobody", "heartbeat"


class AskError(Exception):
    """Grafana, or the engine behind it, did not answer a question."""

    def __init__(self, engine: str, why: str) -> None:
        """Name who did not answer: a data source's uid, or `grafana`."""
        super().__init__(f"Grafana: {why}" if engine == "grafana" else f"{engine} does not answer Grafana: {why}")
        self.engine = engine


@dataclass(frozen=True)
class Span:
    """One span of a stored trace. Ids are lower-case hex; attributes are flat; kind is like `SERVER`."""

    span_id: str
    parent_id: str
    name: str
    kind: str
    service: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class LogLine:
    """One stored log record; labels hold its stream's labels and its structured metadata together."""

    body: str
    labels: dict[str, str]


@dataclass
class Grafana:
    """A client of one Grafana, given an HTTP client whose base URL is the gateway's."""

    client: httpx.Client
    base: str = "/grafana"

    def health(self) -> dict[str, Any]:
        """Return what Grafana says of itself (`database`, `version`); needs no login."""
        return self.object_of("grafana", self.client.get(f"{self.base}/api/health"))

    def has_pages(self) -> bool:
        """Tell whether there is anything on the page to log in with; needs no login."""
        answer = self.client.get(f"{self.base}/login")
        return answer.status_code != 200 or bool(answer.content.strip())

    def open_to_anyone(self) -> list[str]:
        """Return the paths that answer a caller who has no login; there must be none."""
        asked = {
            "/api/datasources": self.client.get(f"{self.base}/api/datasources"),
            "/api/search": self.client.get(f"{self.base}/api/search"),
            "/api/ds/query": self.client.post(f"{self.base}/api/ds/query", json={"queries": []}),
        }
        return [path for path, answer in asked.items() if answer.status_code not in (401, 403)]

    def login(self, user: str, password: str) -> None:
        """Open a session; the cookie stays in the HTTP client."""
        answer = self.client.post(f"{self.base}/login", json={"user": user, "password": password})
        if answer.status_code in (400, 401):  # Grafana says the same of a wrong password and of a lock
            raise AskError(
                "grafana",
                f"{user} is not let in with the stored password: it was changed in Grafana (site.yml sets it again), "
                "or too many wrong ones came from this address (wait five minutes)",
            )
        self.object_of("grafana", answer)

    def trace(self, trace_id: str, start: float = 0, end: float = 0) -> list[Span]:
        """Return the spans that Tempo holds of a trace; none when it does not know it.

        With times (Unix seconds) Tempo looks only into what may hold spans of between them.
        """
        answer = self.client.get(
            f"{self.base}/api/datasources/proxy/uid/{TEMPO}/api/traces/{trace_id}",
            params={"start": int(start), "end": int(end)} if end else {},
            headers={"Accept": "application/json"},
        )
        if answer.status_code == 404 and not _is_json(answer):
            return []  # Tempo's own 404; Grafana's, for a data source that it does not know, is JSON
        return list(spans_of(self.object_of(TEMPO, answer)))

    def logs(self, logql: str, start: float, end: float, limit: int = 5000) -> list[LogLine]:
        """Return the log lines that a LogQL query finds between two times (Unix seconds)."""
        query = {"expr": logql, "queryType": "range", "maxLines": limit, "direction": "backward"}
        return [line for frame in self._query(LOKI, query, start, end) for line in lines_of(frame)]

    def count_logs(self, logql: str, by: str, start: float, end: float) -> dict[str, int]:
        """Return how many log lines a LogQL query finds between two times (Unix seconds), by the values of a label.

        Loki counts them itself, however many there are; `logs` ends at its limit.
        """
        window = math.ceil(1000 * (end - start))
        counts = f"sum by ({by}) (count_over_time({logql} [{window}ms]))"
        frames = self._query(LOKI, {"expr": counts, "queryType": "instant"}, start, end)
        series = [each for frame in frames for each in series_of(frame)]
        return {labels.get(by, ""): int(count) for labels, count in series}

    def instant(self, promql: str, at: float) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of a PromQL query at one moment (Unix seconds)."""
        query = {"expr": promql, "instant": True, "range": False, "format": "time_series"}
        return [series for frame in self._query(PROMETHEUS, query, at - 300, at) for series in series_of(frame)]

    def range(
        self, promql: str, start: float, end: float, step: int
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return labels and points (Unix seconds, value) of each series of a PromQL query, one each `step` seconds."""
        query = {"expr": promql, "instant": False, "range": True, "format": "time_series", "interval": f"{step}s"}
        return [series for frame in self._query(PROMETHEUS, query, start, end) for series in points_of(frame)]

    def dashboards(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return uid and model of each dashboard."""
        answer = self.client.get(f"{self.base}/api/search", params={"type": "dash-db", "limit": 5000})
        for found in self._list("grafana", answer):
            model = self.object_of("grafana", self.client.get(f"{self.base}/api/dashboards/uid/{found['uid']}"))
            yield found["uid"], model["dashboard"]

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Return the alerts of a name that fire now, as Alertmanager holds them."""
        return self._list(
            ALERTMANAGER, self.client.get(self._alertmanager("alerts"), params={"filter": f'alertname="{name}"'})
        )

    def receivers(self) -> list[str]:
        """Return the names of Alertmanager's receivers, NOBODY among them."""
        answer = self.client.get(self._alertmanager("receivers"))
        return [str(receiver["name"]) for receiver in self._list(ALERTMANAGER, answer)]

    def post_alerts(self, alerts: list[dict[str, Any]]) -> None:
        """Hand alerts to Alertmanager, as Prometheus does."""
        answer = self.client.post(self._alertmanager("alerts"), json=alerts)
        if answer.status_code != 200:
            raise AskError(ALERTMANAGER, f"HTTP {answer.status_code}, {_reason(None, answer.text)}")

    def metrics(self, uid: str) -> str:
        """Return a data source's own metrics, in Prometheus's text format."""
        answer = self.client.get(f"{self.base}/api/datasources/proxy/uid/{uid}/metrics")
        if answer.status_code != 200:
            raise AskError(uid, f"HTTP {answer.status_code}, {_reason(None, answer.text)}")
        return answer.text

    def _alertmanager(self, path: str) -> str:
        return f"{self.base}/api/datasources/proxy/uid/{ALERTMANAGER}/api/v2/{path}"

    @staticmethod
    def _list(engine: str, answer: httpx.Response) -> list[dict[str, Any]]:
        content = answer.json() if _is_json(answer) else None
        if answer.status_code == 200 and isinstance(content, list):
            return content
        raise AskError(engine, f"HTTP {answer.status_code}, {_reason(content, answer.text)}")

    def proxied(self, uid: str, path: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask a data source in its own words, through Grafana's proxy."""
        return self.object_of(
            uid, self.client.get(f"{self.base}/api/datasources/proxy/uid/{uid}/{path}", params=params)
        )

    def _query(self, uid: str, query: dict[str, object], start: float, end: float) -> list[dict[str, Any]]:
        query |= {"refId": "A", "datasource": {"uid": uid, "type": uid}, "intervalMs": 1000, "maxDataPoints": 1000}
        body = {"queries": [query], "from": str(int(start * 1000)), "to": str(int(end * 1000))}
        content = self.object_of(uid, self.client.post(f"{self.base}/api/ds/query", json=body))
        answer = content.get("results", {}).get("A", {})
        if answer.get("error"):
            raise AskError(uid, str(answer["error"]))
        return list(answer.get("frames") or [])

    @staticmethod
    def object_of(engine: str, answer: httpx.Response) -> dict[str, Any]:
        """Return the JSON object of an answer; raise AskError, naming who was asked, for anything else."""
        content = answer.json() if _is_json(answer) else None
        if answer.status_code == 200 and isinstance(content, dict):
            return content
        raise AskError(engine, f"HTTP {answer.status_code}, {_reason(content, answer.text)}")


def _is_json(answer: httpx.Response) -> bool:
    try:
        answer.json()
    except ValueError:
        return False
    return True


def _reason(content: object, text: str) -> str:
    """Return the shortest true reason in an error's answer, without the long URL that Go's client begins it with."""
    if isinstance(content, dict):
        errors = [result.get("error") for result in content.get("results", {}).values()]
        text = next(filter(None, [*errors, content.get("message")]), text)
    text = re.sub(r'^[A-Z][a-z]+ "[^"]*": ', "", str(text))
    return " ".join(text.split())[:300] or "without a reason"


def spans_of(otlp: dict[str, Any]) -> Iterator[Span]:
    """Read a trace in OTLP's JSON, as Tempo writes it (`batches`) or as the standard does (`resourceSpans`)."""
    otlp = otlp.get("trace", otlp)
    for resource in otlp.get("batches") or otlp.get("resourceSpans") or []:
        service = str(_attributes(resource.get("resource", {})).get("service.name", ""))
        for scope in resource.get("scopeSpans", []):
            for span in scope.get("spans", []):
                yield Span(
                    span_id=_hex_id(span["spanId"]),
                    parent_id=_hex_id(span.get("parentSpanId", "")),
                    name=span.get("name", ""),
                    kind=_KINDS.get(span.get("kind"), str(span.get("kind", "")).removeprefix("SPAN_KIND_")),
                    service=service,
                    attributes=_attributes(span),
                )


_KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}


def _attributes(owner: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: _value(item.get("value", {})) for item in owner.get("attributes", [])}


def _value(value: dict[str, Any]) -> object:
    if "intValue" in value:
        return int(value["intValue"])  # 64-bit numbers are text in OTLP's JSON
    return next(iter(value.values()), None)


def _hex_id(span_id: str) -> str:
    """Return a span id as 16 hex digits; Tempo writes it in base64, the standard in hex."""
    if len(span_id) in (0, 16):
        return span_id.lower()
    try:
        return base64.b64decode(span_id, validate=True).hex()
    except binascii.Error:
        return span_id


def lines_of(frame: dict[str, Any]) -> Iterator[LogLine]:
    """Read the log lines of a data frame; the columns were renamed between Grafana's versions."""
    columns = _columns(frame)
    bodies = columns.get("Line") or columns.get("body") or []
    for body, labels in zip(bodies, columns.get("labels") or [], strict=False):
        found = json.loads(labels) if isinstance(labels, str) else labels
        yield LogLine(str(body), {str(key): str(value) for key, value in found.items()})


def series_of(frame: dict[str, Any]) -> Iterator[tuple[dict[str, str], float]]:
    """Read the series of an instant query's data frame: the numeric column's labels, and its last value."""
    for field, values in zip(frame["schema"]["fields"], frame["data"]["values"], strict=True):
        if field["name"] != "Time" and values and values[-1] is not None:
            yield dict(field.get("labels") or {}), float(values[-1])


def points_of(frame: dict[str, Any]) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
    """Read the series of a range query's data frame: labels, and points of Unix seconds and value."""
    times = next(iter(_columns(frame).values()), [])
    for field, values in zip(frame["schema"]["fields"], frame["data"]["values"], strict=True):
        if field["name"] != "Time":
            points = [(at / 1000, float(value)) for at, value in zip(times, values, strict=True) if value is not None]
            yield dict(field.get("labels") or {}), points


def _columns(frame: dict[str, Any]) -> dict[str, list[Any]]:
    names = [field["name"] for field in frame["schema"]["fields"]]
    return dict(zip(names, frame["data"]["values"], strict=True))
