"""Ask what a dashboard asks, as Grafana's own page does: variables filled in, through its query API.

Two things Grafana does in the browser, and so they are done here too: TraceQL searches go through the data-source
proxy, and a service map is read from the metrics of Tempo's linked Prometheus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from watchpost.verify_grafana import LOKI, PROMETHEUS, TEMPO, AskError, Grafana

Values = Mapping[str, str]
ALL = "$__all"
#: Points that a panel of ordinary width asks for.
POINTS = 120
#: What Grafana reads for a service map, each a rate over the whole time.
SERVICE_MAP = (
    "traces_service_graph_request_total",
    "traces_service_graph_request_failed_total",
    "traces_service_graph_request_server_seconds_sum",
)


@dataclass(frozen=True)
class Answer:
    """What came back for one query: Grafana's data frames, or the objects of a search."""

    frames: list[dict[str, Any]]
    found: list[dict[str, Any]]

    def series(self) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Yield labels and (Unix seconds, value) points of each series, leaving out exemplars and empty values."""
        for frame in self.frames:
            fields, columns = frame["schema"]["fields"], frame["data"]["values"]
            times = next((c for f, c in zip(fields, columns, strict=True) if f["type"] == "time"), None)
            if frame["schema"].get("name") == "exemplar":
                continue
            for described, values in zip(fields, columns, strict=True):
                if described["type"] != "number":
                    continue
                moments = times or [0] * len(values)
                points = [(t / 1000, float(v)) for t, v in zip(moments, values, strict=True) if v is not None]
                if points:
                    name = {"__name__": described.get("config", {}).get("displayNameFromDS", "")}
                    yield name | (described.get("labels") or {}), points

    def exemplars(self) -> list[dict[str, Any]]:
        """Return the exemplars, each a row by the names of its columns."""
        rows = []
        for frame in self.frames:
            if frame["schema"].get("name") == "exemplar":
                names = [each["name"] for each in frame["schema"]["fields"]]
                rows += [dict(zip(names, row, strict=True)) for row in zip(*frame["data"]["values"], strict=True)]
        return rows

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.found) or any(column for frame in self.frames for column in frame["data"]["values"])


def fill(text: str, values: Values) -> str:
    """Fill in a dashboard's variables; Grafana's own, such as `$__interval`, are left for its query API.

    Raises KeyError, naming the variable, for one that the dashboard does not have.
    """
    return re.sub(r"\$(?:\{([A-Za-z]\w*)(?::\w+)?\}|([A-Za-z]\w*))", lambda found: values[found[1] or found[2]], text)


@dataclass(frozen=True)
class Reader:
    """Asks one Grafana for what its dashboards show between two times (Unix seconds)."""

    grafana: Grafana
    start: float
    end: float

    def dashboard(self, uid: str) -> dict[str, Any]:
        """Return a dashboard's model, as Grafana holds it."""
        answer = self.grafana.client.get(f"{self.grafana.base}/api/dashboards/uid/{uid}")
        model: dict[str, Any] = self.grafana.object_of("grafana", answer)["dashboard"]
        return model

    def choices(self, variable: dict[str, Any], values: Values) -> list[str]:
        """Return what a variable offers, given the values of those before it."""
        if variable["type"] != "query":
            return [option["value"] for option in variable.get("options", [])]
        query, uid = variable["query"], variable["datasource"]["uid"]
        times = {"start": str(int(self.start)), "end": str(int(self.end))}
        if uid == PROMETHEUS:
            found = re.fullmatch(r"label_values\((.*), *(\w+)\)", fill(query["query"], values))
            if not found:
                raise AskError(uid, f"variable {variable['name']}: {query['query']} is not label_values(metric, label)")
            path, asked = f"resources/api/v1/label/{found[2]}/values", times | {"match[]": found[1]}
        else:
            # Loki's times are in nanoseconds.
            path = f"resources/label/{query['label']}/values"
            asked = {name: f"{moment}000000000" for name, moment in times.items()}
        answer = self.grafana.client.get(f"{self.grafana.base}/api/datasources/uid/{uid}/{path}", params=asked)
        return sorted(self.grafana.object_of(uid, answer)["data"] or [])

    def first_values(self, dashboard: dict[str, Any]) -> dict[str, str]:
        """Return the values that a dashboard has when it is opened: those chosen, or the first of each list."""
        values: dict[str, str] = {}
        for variable in dashboard["templating"]["list"]:
            chosen = (variable.get("current") or {}).get("value", "")
            if chosen == ALL:
                values[variable["name"]] = variable["allValue"]
            elif variable["type"] == "query" and not chosen:
                offered = self.choices(variable, values)
                values[variable["name"]] = offered[0] if offered else ""
            else:
                values[variable["name"]] = chosen
        return values

    def panel(self, panel: dict[str, Any], values: Values) -> list[Answer]:
        """Return the answers to a panel's queries, in their order; a list of dashboards has one query of its own."""
        if panel["type"] == "dashlist":
            tags = {"tag": panel["options"]["tags"], "type": "dash-db"}
            answer = self.grafana.client.get(f"{self.grafana.base}/api/search", params=tags)
            return [Answer([], answer.json())]
        return [self.query(target, values) for target in panel.get("targets", [])]

    def query(self, target: dict[str, Any], values: Values) -> Answer:
        """Return the answer to one query."""
        uid = target["datasource"]["uid"]
        if uid == TEMPO:
            return self._tempo(target, values)
        if uid not in (PROMETHEUS, LOKI):
            raise AskError(uid, "nothing is known of how Grafana asks it")
        return Answer(self._run(target | {"expr": fill(target["expr"], values)}), [])

    def _run(self, target: dict[str, Any]) -> list[dict[str, Any]]:
        interval = max(15_000, int((self.end - self.start) * 1000 / POINTS))
        query = target | {"intervalMs": interval, "maxDataPoints": POINTS}
        body = {"queries": [query], "from": str(int(self.start * 1000)), "to": str(int(self.end * 1000))}
        uid = target["datasource"]["uid"]
        content = self.grafana.object_of(uid, self.grafana.client.post(f"{self.grafana.base}/api/ds/query", json=body))
        result = content["results"].get(target["refId"], {})
        if result.get("error"):
            raise AskError(uid, f"{target.get('expr')}: {result['error']}")
        return list(result.get("frames") or [])

    def _tempo(self, target: dict[str, Any], values: Values) -> Answer:
        if target["queryType"] == "serviceMap":
            answer = self.grafana.client.get(f"{self.grafana.base}/api/datasources/uid/{TEMPO}")
            linked = self.grafana.object_of(TEMPO, answer)["jsonData"]["serviceMap"]["datasourceUid"]
            source = {"uid": linked, "type": "prometheus"}
            return Answer(
                [
                    frame
                    for metric in SERVICE_MAP
                    for frame in self._run({
                        "refId": "A", "datasource": source, "instant": True, "range": False,
                        "expr": f"sum by (client, server) (rate({metric}[$__range]))",
                    })
                ],
                [],
            )  # fmt: skip
        asked = {
            "q": fill(target["query"], values), "limit": target["limit"], "spss": target["spss"],
            "start": int(self.start), "end": int(self.end),
        }  # fmt: skip
        return Answer([], self.grafana.proxied(TEMPO, "api/search", asked).get("traces") or [])
