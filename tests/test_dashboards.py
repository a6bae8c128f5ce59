"""Every dashboard says what it shows, in which unit, and where to go next, and refers to nothing that is not there."""

import json
import re
from urllib.parse import parse_qsl, urlsplit

import promtool
import pytest
import yaml
from typer.testing import CliRunner

from watchpost.dashboards import pages
from watchpost.dashboards.cli import app
from watchpost.dashboards.look import GRID_WIDTH, TAG
from watchpost.dashboards.names import COMPONENTS, SLOW_SECONDS
from watchpost.dashboards.run import fill
from watchpost.dashboards.slo import BURN
from watchpost.slo.rules import POLICY
from watchpost.verify_target import PROJECT

DASHBOARDS = {page.uid: page.json() for page in pages()}
#: Kinds of panels whose values have no unit.
WITHOUT_UNIT = {"logs", "nodeGraph", "dashlist", "table"}
#: Kinds of panels that lead somewhere by themselves: a line or trace id to its trace, a node to its traces.
LEADS_BY_ITSELF = {"logs", "nodeGraph", "dashlist"}
BUILT_IN = {"__url_time_range"}


def data_sources():
    """The uids that the role provisions: what is between the braces of the template is not needed for them."""
    text = (PROJECT / "roles/grafana/templates/provisioning/datasources/stores.yml.j2").read_text()
    return set(re.findall(r"^ {4}uid: (\w+)$", text, re.MULTILINE))


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard):
    return {variable["name"] for variable in dashboard["templating"]["list"]}


def links(panel):
    """The data links of a panel: of all its fields, and of single ones."""
    config = panel["fieldConfig"]
    yield from config["defaults"].get("links", [])
    for override in config["overrides"]:
        for each in override["properties"]:
            if each["id"] == "links":
                yield from each["value"]


def used(text):
    """The names of the dashboard's variables in a text. Grafana's own begin with two underscores; $1 is of PromQL."""
    return {
        name
        for pair in re.findall(r"\$(?:\{(\w+)[:}.]|(\w+))", text)
        for name in pair
        if name and name[:2] != "__" and not name.isdigit()
    }


def complaints(dashboard, dashboards):
    """What a dashboard lacks, one line each."""
    seen = set()
    cells = {}
    for panel in panels(dashboard):
        name = panel.get("title") or f"panel {panel.get('id')}"
        config = panel["fieldConfig"]
        targets = panel.get("targets", [])
        if not panel.get("title"):
            yield f"{name} has no title"
        if len(panel.get("description", "")) < 10:
            yield f"{name} does not say what it shows"
        if panel["id"] in seen:
            yield f"{name} has the id of another panel"
        seen.add(panel["id"])
        if panel["type"] not in WITHOUT_UNIT and not config["defaults"].get("unit"):
            yield f"{name} has no unit"
        if panel["type"] in ("stat", "bargauge") and not config["defaults"].get("thresholds", {}).get("steps"):
            yield f"{name} has no thresholds"
        steps = [step.get("value") for step in (config["defaults"].get("thresholds") or {}).get("steps", [])]
        if steps and (steps[0] is not None or steps[1:] != sorted(steps[1:])):
            yield f"{name} has thresholds that do not rise"
        if not targets and panel["type"] != "dashlist":
            yield f"{name} asks nothing"
        for target in targets:
            if target["datasource"]["uid"] not in data_sources():
                yield f"{name} asks {target['datasource']['uid']}, which is not provisioned"
            for unknown in used(target.get("expr") or target.get("query") or "") - variables(dashboard):
                yield f"{name} uses the variable {unknown}, which is not defined"
        place = panel["gridPos"]
        if place["x"] + place["w"] > GRID_WIDTH:
            yield f"{name} does not fit into the grid"
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            if cell in cells and cells[cell] != name:
                yield f"{name} overlaps {cells[cell]}"
                break
            cells[cell] = name
        for link in links(panel):
            address = urlsplit(link["url"])
            if page := re.fullmatch(r"(?:[.][.]/){4,}runbooks/(.+)[.]md", address.path):
                known = page[1] == "${__data.fields.Alert}" or (PROJECT / f"docs/runbooks/{page[1]}.md").exists()
                if not known or not link["targetBlank"]:
                    yield f"{name} leads to {address.path}, which there is not, or not outside of Grafana"
                continue
            there = dashboards.get(address.path.removeprefix("/d/"))
            if there is None:
                yield f"{name} leads to {address.path}, which is no dashboard"
                continue
            given = {key.removeprefix("var-") for key, _ in parse_qsl(address.query) if key.startswith("var-")}
            same = set(re.findall(r"\$\{(\w+):queryparam\}", link["url"]))
            for unknown in (given | same) - variables(there):
                yield f"{name} leads to {there['uid']} with the variable {unknown}, which that does not have"
            for unknown in used(link["url"]) - variables(dashboard):
                yield f"{name} leads on with the variable {unknown}, which is not defined"
            heading = {"Value #" + target["refId"] for target in targets}
            shown = {
                v for o in panel.get("transformations") or [] for v in o["options"].get("renameByName", {}).values()
            }
            for field in re.findall(r"\$\{__data\.fields\.(\w+)\}", link["url"]):
                if field not in shown | heading:
                    yield f"{name} leads on with the column {field}, which it does not have"
    for variable in dashboard["templating"]["list"]:
        if not variable.get("label") or not variable.get("description"):
            yield f"variable {variable['name']} is not explained"
        if variable["name"] not in used(
            json.dumps([dashboard["panels"], [v.get("query") for v in dashboard["templating"]["list"]]])
        ):
            yield f"variable {variable['name']} is not used"
        if variable["type"] == "query" and variable["datasource"]["uid"] not in data_sources():
            yield f"variable {variable['name']} asks {variable['datasource']['uid']}, which is not provisioned"
    if not dashboard.get("description"):
        yield "it does not say which question it answers"
    if TAG not in dashboard["tags"] or dashboard["editable"]:
        yield "it is not marked as Watchpost's own"


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_dashboard_lacks_nothing(uid):
    assert list(complaints(DASHBOARDS[uid], DASHBOARDS)) == []


def test_dashboards_are_those_that_others_lead_to():
    assert set(DASHBOARDS) == {
        f"watchpost-{name}" for name in ("start", "service", "browser", "logs", "slo", "appliance", "traces")
    }


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_of_errors_and_latency_lead_on(uid):
    """To the traces or the log lines of what they show."""
    for panel in panels(DASHBOARDS[uid]):
        asked = json.dumps(panel.get("targets", []))
        of_services = re.search(
            r"(http_server_request_duration|spanmetrics_latency|5\.\.|STATUS_CODE_ERROR|request_failed)", asked
        )
        if of_services and panel["type"] not in LEADS_BY_ITSELF:
            assert list(links(panel)), panel["title"]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_latency_over_time_shows_single_requests(uid):
    for panel in panels(DASHBOARDS[uid]):
        asked = panel.get("targets", [])
        if panel["type"] == "timeseries" and any(
            re.search(r"histogram_quantile.*(http_server|spanmetrics)", t["expr"]) for t in asked
        ):
            assert any(target["exemplar"] for target in asked), panel["title"]


def first_link(panel):
    return panel["fieldConfig"]["defaults"]["links"][0]


def spoilt(change):
    dashboard = json.loads(json.dumps(DASHBOARDS["watchpost-service"]))
    change(dashboard, panels(dashboard)[0])
    return " ".join(complaints(dashboard, DASHBOARDS))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda _, p: p.pop("title"), "no title"),
        (lambda _, p: p.pop("description"), "does not say what it shows"),
        (lambda _, p: p["fieldConfig"]["defaults"].pop("unit"), "no unit"),
        (lambda _, p: p.update(type="stat"), "no thresholds"),
        (lambda _, p: p["targets"][0].update(expr="up{a=~'$nobody'}"), "variable nobody, which is not defined"),
        (lambda _, p: p["targets"][0].update(datasource={"uid": "mimir"}), "mimir, which is not provisioned"),
        (lambda _, p: p["gridPos"].update(x=1), "overlaps"),
        (lambda _, p: p["gridPos"].update(x=20), "does not fit"),
        (lambda _, p: first_link(p).update(url="/d/gone?x=1"), "/d/gone, which is no dashboard"),
        (lambda _, p: first_link(p).update(url="../../../../runbooks/Gone.md"), "runbooks/Gone.md, which there is not"),
        (lambda _, p: first_link(p).update(url="/d/watchpost-logs?var-who=1"), "variable who, which that"),
        (lambda _, p: p.update(targets=[]), "asks nothing"),
        (lambda d, _: d["templating"]["list"][0].update(name="other"), "variable service, which is not defined"),
        (lambda d, _: d["templating"]["list"][1].pop("description"), "variable route is not explained"),
        (lambda d, _: d.update(editable=True), "not marked"),
    ],
)  # fmt: skip
def test_spoilt_dashboard_is_found_out(change, complaint):
    assert complaint in spoilt(change)


# --- what panels compute


RATES = {"200": 17, "404": 2, "500": 1}  # answers a minute of each route, by status
NO_RULES = [{"name": "none", "interval": "1m", "rules": []}]
#: Of 20 answers a minute, how many come within so many seconds.
WITHIN = {"0.1": 10, "0.25": 18, "0.5": 18, "1.0": 20, "+Inf": 20}


def computed(tmp_path, *asked):
    """What the panels (dashboard, title) compute of known traffic: each query's one value."""
    labels = 'service_name="shop", http_request_method="GET", http_route="/a"'
    series = {}
    for status, rate in RATES.items():
        name = f'http_server_request_duration_seconds_count{{{labels}, http_response_status_code="{status}"}}'
        series[name] = [rate * minute for minute in range(31)]
    for bound, count in WITHIN.items():
        name = f'http_server_request_duration_seconds_bucket{{{labels}, http_response_status_code="200", le="{bound}"}}'
        series[name] = [count * minute for minute in range(31)]
    # A mean is no share: of the sum of seconds nothing may be computed.
    series[f"http_server_request_duration_seconds_sum{{{labels}}}"] = [1000 * minute for minute in range(31)]
    values = {"service": "shop", "route": ".*"}
    questions = []
    for uid, title in asked:
        (panel,) = (panel for panel in panels(DASHBOARDS[uid]) if panel["title"] == title)
        questions += [
            (fill(target["expr"], values).replace("$__rate_interval", "5m"), 1800) for target in panel["targets"]
        ]
    return promtool.ask(promtool.program(tmp_path), tmp_path, NO_RULES, series, questions, 60)


def test_panels_compute_what_their_titles_say(tmp_path):
    found = computed(
        tmp_path,
        ("watchpost-start", "Requests a second"),
        ("watchpost-start", "Share of answers that fail"),
        ("watchpost-service", "Share of answers that fail, by route"),
        ("watchpost-start", "95th percentile of latency"),
        ("watchpost-service", "Percentiles of all answers"),
        ("watchpost-service", "Share answered within 500 ms"),
    )
    median, p95, p99 = 0.1, 0.75, 0.95  # interpolated between the bounds: 10 of 20; 19 and 19.8 of 20, 18 at 0.5 s
    assert found == pytest.approx([20 / 60, 1 / 20, 1 / 20, p95, median, p95, p99, 18 / 20])


def test_components_that_do_not_run_or_do_not_answer_are_down(tmp_path):
    states = {
        'name="watchpost-gateway.service", type="simple"': 0,
        'name="watchpost-loki.service", type="notify"': 1,
        'name="watchpost-node-exporter.service", type="simple"': 1,
        'name="watchpost-retention.service", type="oneshot"': 0,
        'name="ssh.service", type="notify"': 0,
    }
    series = {
        f'node_systemd_unit_state{{{labels}, state="active"}}': [state] * 5 for labels, state in states.items()
    } | {'up{job="loki"}': [0] * 5, 'up{job="node_exporter"}': [1] * 5}
    one = '({}) * on (component) label_replace(vector(1), "component", "{}", "", "")'
    asked = [f"count({COMPONENTS})", *(one.format(COMPONENTS, name) for name in ("gateway", "loki", "node-exporter"))]
    questions = [(query, 60) for query in asked]
    assert promtool.ask(promtool.program(tmp_path), tmp_path, NO_RULES, series, questions, 60) == [3, 0, 0, 1]


def test_build_writes_one_file_a_dashboard(tmp_path):
    assert CliRunner().invoke(app, ["build", str(tmp_path)]).exit_code == 0
    assert {path.stem for path in tmp_path.iterdir()} == set(DASHBOARDS)
    printed = CliRunner().invoke(app, ["build"]).stdout
    assert {name: json.loads((tmp_path / name).read_text()) for name in json.loads(printed)} == json.loads(printed)


def test_building_twice_gives_the_same():
    assert {page.uid: page.json() for page in pages()} == DASHBOARDS


def test_variables_are_filled_in_and_those_of_grafana_left():
    filled = fill("rate(x{a=~'$a', b='${b:raw}'}[$__rate_interval])", {"a": "1", "b": "2"})
    assert filled == "rate(x{a=~'1', b='2'}[$__rate_interval])"
    with pytest.raises(KeyError, match="unknown"):
        fill("$unknown", {})


def test_provisioned_files_are_read_only():
    text = (PROJECT / "roles/grafana/templates/provisioning/dashboards/watchpost.yml.j2").read_text()
    (provider,) = yaml.safe_load(text.replace("{{ service_home }}", "/x"))["providers"]
    assert not provider["allowUiUpdates"]


def test_burn_rates_are_those_that_alerts_look_at():
    """Drawn as dashed lines, for the window of 30 days that objectives have unless they say otherwise."""
    assert {(short, long, rate, severity) for short, long, rate, severity in BURN} == {
        (burn.short, burn.long, burn.rate(30), burn.severity) for burn in POLICY
    }


def test_slow_is_what_the_objective_calls_slow():
    slos = yaml.safe_load((PROJECT / "group_vars/all/slo.yml").read_text())["watchpost_slos"]
    (objective,) = [slo for slo in slos if slo["service"] == "taskboard" and "latency" in slo]
    assert objective["latency"]["threshold"] == f"{SLOW_SECONDS * 1000:.0f}ms"
