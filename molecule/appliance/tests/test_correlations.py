"""Every link between the stores, followed with the settings that Grafana was given, from a real span, line, exemplar.

What Grafana's page does in the browser is done here: it fills the settings' variables with what was clicked on, asks
the data source that the settings name, and must find the partner.
"""

import copy
import json
import re
import secrets
import time
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from conftest import wait_until
from otlp import JSON
from test_browser import browser, grafana, target  # noqa: F401 - fixtures
from test_dashboards import UIDS, panels
from traffic import traffic  # noqa: F401 - a fixture

from watchpost.dashboards.run import Reader, fill
from watchpost.verify_grafana import PROMETHEUS

VISIBLE = 60


@pytest.fixture(scope="module")
def settings(grafana):  # noqa: F811 - a fixture
    """The data sources' settings as Grafana gives them to its pages, by uid."""
    sources = grafana.client.get(f"{grafana.base}/api/datasources").json()
    return {source["uid"]: source["jsonData"] for source in sources}


@pytest.fixture(scope="module")
def failed(grafana, traffic):  # noqa: F811 - fixtures
    """The server span of a request that failed: trace id, start and end (Unix seconds), and the span."""
    answer = next(answer for answer in traffic.answers if answer.status_code == 500)
    trace_id = answer.json()["trace_id"]
    spans = wait_until(lambda: [span for span in grafana.trace(trace_id) if span.kind == "SERVER"], VISIBLE)
    return trace_id, traffic.began, time.time(), spans[0]


def resource_tags(span, tags):
    """The settings' tags of a span as Grafana writes them into a query: label="value", separated by commas."""
    known = span.attributes | {"service.name": span.service}
    return ", ".join(f'{tag.get("value") or tag["key"]}="{known[tag["key"]]}"' for tag in tags if tag["key"] in known)


def seconds(shift):
    """A shift of time such as -5m or 30s."""
    number, unit = re.fullmatch(r"(-?\d+)([smh])", shift).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def logs_of_span(grafana, link, trace_id, began, ended, span):  # noqa: F811 - not the fixture
    """What "Logs for this span" shows."""
    query = link["query"].replace("${__tags}", resource_tags(span, link["tags"]))
    query = query.replace("${__trace.traceId}", trace_id).replace("${__span.spanId}", span.span_id)
    start, end = began + seconds(link["spanStartTimeShift"]), ended + seconds(link["spanEndTimeShift"])
    look = Reader(grafana, start, end)
    source = {"uid": link["datasourceUid"], "type": link["datasourceUid"]}
    return look.query({"refId": "A", "datasource": source, "expr": query, "queryType": "range"}, {})


def test_span_leads_to_its_log_lines(grafana, settings, failed):  # noqa: F811 - fixtures
    link = settings["tempo"]["tracesToLogsV2"]
    answer = wait_until(lambda: logs_of_span(grafana, link, *failed), VISIBLE)
    assert failed[0] in json.dumps(answer.frames) and "InjectedError" in json.dumps(answer.frames)


@pytest.mark.parametrize(
    "change",
    [
        {"query": '{${__tags}} | traceid = "${__trace.traceId}"'},
        {"tags": [{"key": "service.name", "value": "service"}]},
    ],
)
def test_spoilt_link_from_span_to_logs_finds_nothing(grafana, settings, failed, change):  # noqa: F811 - fixtures
    assert not logs_of_span(grafana, settings["tempo"]["tracesToLogsV2"] | change, *failed)


def metrics_of_span(grafana, link, began, ended, span):  # noqa: F811 - not the fixture
    """What each of a span's metric links shows, by its name."""
    look = Reader(grafana, began + seconds(link["spanStartTimeShift"]), ended + seconds(link["spanEndTimeShift"]))
    source = {"uid": link["datasourceUid"], "type": link["datasourceUid"]}
    tags = resource_tags(span, link["tags"])
    return {
        each["name"]: look.query(
            {"refId": "A", "datasource": source, "expr": each["query"].replace("$__tags", tags), "range": True}, {}
        )
        for each in link["queries"]
    }


def test_span_leads_to_its_services_metrics(grafana, settings, failed):  # noqa: F811 - fixtures
    link = settings["tempo"]["tracesToMetrics"]
    found = wait_until(lambda: all((shown := metrics_of_span(grafana, link, *failed[1:])).values()) and shown, VISIBLE)
    assert len(found) >= 4


def test_spoilt_link_from_span_to_metrics_finds_nothing(grafana, settings, failed):  # noqa: F811 - fixtures
    link = settings["tempo"]["tracesToMetrics"] | {"tags": [{"key": "service.name", "value": "svc"}]}
    assert not any(metrics_of_span(grafana, link, *failed[1:]).values())


def trace_of_line(grafana, derived, labels):  # noqa: F811 - not the fixture
    """The spans to which a log line's derived fields lead."""
    for link in derived:
        assert link["matcherType"] == "label"
        for name, value in labels.items():
            if re.search(link["matcherRegex"], name):
                assert link["datasourceUid"] == "tempo"
                return grafana.trace(link["url"].replace("${__value.raw}", value))
    return []


def test_log_line_leads_to_its_trace(grafana, settings, failed):  # noqa: F811 - fixtures
    lines = wait_until(
        lambda: grafana.logs(f'{{service_name="taskboard"}} | trace_id="{failed[0]}"', failed[1], time.time()), VISIBLE
    )
    spans = trace_of_line(grafana, settings["loki"]["derivedFields"], lines[0].labels)
    assert failed[3].span_id in {span.span_id for span in spans}
    assert lines[0].labels["span_id"] in {span.span_id for span in spans}


def test_spoilt_link_from_log_line_finds_nothing(grafana, settings, failed):  # noqa: F811 - fixtures
    derived = copy.deepcopy(settings["loki"]["derivedFields"])
    derived[0]["matcherRegex"] = "^traceID$"
    assert not trace_of_line(grafana, derived, {"trace_id": failed[0]})


def exemplars(grafana, query, began):  # noqa: F811 - not the fixture
    source = {"uid": PROMETHEUS, "type": PROMETHEUS}
    asked = {"refId": "A", "datasource": source, "expr": query, "range": True, "instant": False, "exemplar": True}
    return Reader(grafana, began - 60, time.time()).query(asked, {}).exemplars()


def trace_of_exemplar(grafana, destinations, exemplar):  # noqa: F811 - not the fixture
    for destination in destinations:
        if exemplar.get(destination["name"]):
            assert destination["datasourceUid"] == "tempo"
            return grafana.trace(exemplar[destination["name"]])
    return []


@pytest.mark.parametrize(
    "histogram",
    [
        'http_server_request_duration_seconds_bucket{service_name="taskboard"}',
        'traces_spanmetrics_latency_bucket{service_name="taskboard-web"}',
    ],
    ids=["of the application", "of spans of the page"],
)
def test_every_exemplar_leads_to_its_trace(grafana, settings, failed, histogram):  # noqa: F811 - fixtures
    query = f"histogram_quantile(0.95, sum by (le) (rate({histogram}[1m])))"
    destinations = settings["prometheus"]["exemplarTraceIdDestinations"]
    shown = wait_until(lambda: exemplars(grafana, query, failed[1]), VISIBLE)
    for exemplar in shown[-10:]:
        assert wait_until(lambda one=exemplar: trace_of_exemplar(grafana, destinations, one), VISIBLE), exemplar
    assert not trace_of_exemplar(grafana, [], shown[-1])


def test_exemplar_in_the_other_spelling_leads_to_its_trace_too(grafana, settings, failed, ask):  # noqa: F811 - fixtures
    """`traceID`, as many programs that Prometheus scrapes write it."""
    name, now = f"watchpost_test_{secrets.token_hex(4)}", time.time_ns()
    point = {
        "startTimeUnixNano": str(now - 10**9), "timeUnixNano": str(now), "count": "1", "sum": 0.2,
        "bucketCounts": ["1", "0"], "explicitBounds": [1],
        "exemplars": [{
            "timeUnixNano": str(now), "asDouble": 0.2,
            "filteredAttributes": [{"key": "traceID", "value": {"stringValue": failed[0]}}],
        }],
    }  # fmt: skip
    metric = {"name": name, "histogram": {"aggregationTemporality": 2, "dataPoints": [point]}}
    body = {"resourceMetrics": [{"resource": {}, "scopeMetrics": [{"metrics": [metric]}]}]}
    sent = ask("otel_collector", "local_http", "/v1/metrics", method="POST", headers=JSON, body=json.dumps(body))
    assert sent.status == 200, sent
    shown = wait_until(lambda: exemplars(grafana, f"{name}_bucket", failed[1]), VISIBLE)
    assert "trace_id" not in shown[0]
    assert trace_of_exemplar(grafana, settings["prometheus"]["exemplarTraceIdDestinations"], shown[0])


def test_service_map_shows_page_application_and_database(grafana, settings, failed):  # noqa: F811 - fixtures
    assert settings["tempo"]["nodeGraph"]["enabled"]

    def edges():
        look = Reader(grafana, failed[1] - 60, time.time())
        answer = look.query({"refId": "A", "datasource": {"uid": "tempo"}, "queryType": "serviceMap"}, {})
        return {(labels["client"], labels["server"]) for labels, _ in answer.series()}

    wanted = {("taskboard-web", "taskboard"), ("taskboard", "/var/lib/watchpost/taskboard/tasks.db")}
    wait_until(lambda: wanted <= edges(), 120)


def test_trace_is_found_within_the_time_that_the_settings_allow(grafana, settings, failed):  # noqa: F811 - fixtures
    """Grafana asks for a trace by id with a time, which the settings widen; too narrow a one would find nothing."""
    link = settings["tempo"]["traceQuery"]
    assert link["timeShiftEnabled"]
    times = {
        "start": int(failed[1] + seconds(link["spanStartTimeShift"])),
        "end": int(failed[2] + seconds(link["spanEndTimeShift"])),
    }
    assert grafana.proxied("tempo", f"api/traces/{failed[0]}", times)["batches"]


def links(panel):
    """A panel's data links with the answer's fields that they may use."""
    config = panel["fieldConfig"]
    yield from config["defaults"].get("links") or []
    for override in config["overrides"]:
        for each in override["properties"]:
            if each["id"] == "links":
                yield from each["value"]


def clicked(panel, answers):
    """What the first series has to fill a panel's links with: its labels, and a table's columns made of them."""
    # The one with the most labels: a request to an unknown address has no route, and its link would say nothing.
    labels = max((labels for answer in answers for labels, _ in answer.series()), key=len, default={})
    names = next(
        (t["options"]["renameByName"] for t in panel.get("transformations") or [] if t["id"] == "organize"), {}
    )
    return labels, {names[label]: value for label, value in labels.items() if label in names}


@pytest.mark.parametrize("uid", UIDS)
def test_data_links_lead_to_dashboards_that_know_what_was_clicked(grafana, failed, uid):  # noqa: F811 - fixtures
    """Every value that a link hands over is one that the other dashboard's variable offers; a runbook is shown."""
    look = Reader(grafana, failed[1] - 60, time.time())
    here = look.dashboard(uid)
    values = look.first_values(here)
    offered = {}
    for panel in panels(here):
        answers = look.panel(panel, values)
        labels, row = clicked(panel, answers)
        for link in links(panel) if labels else []:
            url = re.sub(
                r"\$\{(\w+):queryparam\}", lambda found: f"var-{found[1]}={quote(values[found[1]])}", link["url"]
            )
            url = re.sub(r"\$\{__field\.labels\.(\w+)\}", lambda found: labels.get(found[1], ""), url)  # noqa: B023 - used at once
            url = re.sub(r"\$\{__data\.fields\.(\w+)\}", lambda found: row[found[1]], url)  # noqa: B023 - used at once
            address = urlsplit(fill(url.replace("${__url_time_range}", ""), values))
            if "/runbooks/" in address.path:  # outside of Grafana: the gateway shows it
                assert grafana.client.get(f"/{address.path.lstrip('./')}").status_code == 200, address.path
                continue
            there = look.dashboard(address.path.removeprefix("/d/"))
            given = {key.removeprefix("var-"): value for key, value in parse_qsl(address.query)}
            chosen = look.first_values(there) | given
            for variable in there["templating"]["list"]:
                value = given.get(variable["name"])
                if variable["type"] == "textbox" or value in (None, "", variable.get("allValue")):
                    continue
                key = (there["uid"], variable["name"], chosen.get("service"))
                if key not in offered:
                    offered[key] = look.choices(variable, chosen)
                assert value in offered[key], f"{panel['title']}: {link['title']} gives {variable['name']}={value}"
