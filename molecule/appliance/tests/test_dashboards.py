"""Every panel and variable of every dashboard, asked through Grafana as its pages ask, with real traffic behind it.

The traffic is made once: requests that succeed, fail and take long by the task manager's faults, and a page that
reports as a browser does. What is empty when all is well is named here, with what fills it.
"""

import re
import subprocess
import sys
import time

import pytest
from conftest import PROJECT, wait_until
from test_appliance import HOST
from test_browser import browser, grafana, target  # noqa: F401 - fixtures
from traffic import traffic  # noqa: F401 - a fixture

from watchpost.dashboards import pages
from watchpost.dashboards.run import Reader

UIDS = [page.uid for page in pages()]
#: (dashboard, panel) -> when it has something to show.
EMPTY_WHEN_WELL = {
    ("watchpost-start", "What fires"): "with an alert: see test_rules.py, where one fires and is shown",
    ("watchpost-appliance", "Share of the traces that is kept"): "with sampling, which is off by default",
}
#: Single queries of a panel that has others, by their letters.
EMPTY_QUERIES = {
    ("watchpost-appliance", "Used of each store's budget", "B"): "once Prometheus has written a block, after two hours",
}
#: Seconds until what was sent is in every panel: a batch, a scrape, two evaluations of the rules.
VISIBLE = 150


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture
def reader(grafana, traffic):  # noqa: F811 - fixtures
    return lambda: Reader(grafana, traffic.began - 60, time.time())


def empty(reader, uid):
    """What a dashboard asks and gets no answer to: panel's title and query's letter."""
    look = reader()
    dashboard = look.dashboard(uid)
    values = look.first_values(dashboard)
    for panel in panels(dashboard):
        title = panel["title"]
        if (uid, title) in EMPTY_WHEN_WELL:
            look.panel(panel, values)  # it must be a question that is understood
            continue
        for letter, answer in zip("ABCDEFGHIJ", look.panel(panel, values), strict=False):
            if not answer and (uid, title, letter) not in EMPTY_QUERIES:
                yield title, letter


@pytest.mark.parametrize("uid", UIDS)
def test_every_panel_shows_something(reader, uid):
    last = []

    def nothing_missing():
        last[:] = list(empty(reader, uid))
        return not last

    try:
        wait_until(nothing_missing, VISIBLE)
    except AssertionError:
        raise AssertionError(f"{uid}: nothing in {last}") from None


@pytest.mark.parametrize("uid", UIDS)
def test_every_variable_offers_something(reader, uid):
    look = reader()
    dashboard = look.dashboard(uid)
    values = look.first_values(dashboard)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "textbox":
            assert look.choices(variable, values), variable["name"]


def test_exceptions_are_of_panels_that_there_are(reader):
    titles = {(uid, panel["title"]) for uid in UIDS for panel in panels(reader().dashboard(uid))}
    assert set(EMPTY_WHEN_WELL) | {key[:2] for key in EMPTY_QUERIES} <= titles


def test_misspelt_query_is_found_out(reader):
    """Otherwise the tests above would prove nothing."""
    look = reader()
    dashboard = look.dashboard("watchpost-service")
    panel = panels(dashboard)[0]
    panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace("http_server", "http_sever")
    (answer,) = look.panel(panel, look.first_values(dashboard))
    assert not answer


def test_dashboards_are_read_only_and_say_so(grafana, traffic):  # noqa: F811 - fixtures
    for uid in UIDS:
        found = grafana.client.get(f"{grafana.base}/api/dashboards/uid/{uid}").json()
        assert found["meta"]["provisioned"] and found["meta"]["folderTitle"] == "Watchpost"
        changed = {"dashboard": found["dashboard"] | {"title": "Mine"}, "overwrite": True}
        answer = grafana.client.post(f"{grafana.base}/api/dashboards/db", json=changed)
        assert answer.status_code == 400 and "provisioned" in answer.text, answer.text


def dashboards(command, directory):
    words = [sys.executable, "-m", "watchpost", "dashboards", command, str(directory), f"--inventory={HOST.inventory}"]
    subprocess.run(words, cwd=PROJECT, check=True)


def test_deleted_dashboard_of_a_person_comes_back_from_its_file(grafana, tmp_path):  # noqa: F811 - a fixture
    client, api = grafana.client, f"{grafana.base}/api"
    assert client.post(f"{api}/folders", json={"uid": "people", "title": "People"}).status_code == 200
    mine = {"title": "Mine", "uid": "mine", "panels": [{"type": "text", "title": "Hello", "id": 1}]}
    assert client.post(f"{api}/dashboards/db", json={"dashboard": mine, "folderUid": "people"}).status_code == 200
    dashboards("save", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.json"], "what Watchpost provides is not among them"
    assert client.delete(f"{api}/folders/people").status_code == 200
    assert client.get(f"{api}/dashboards/uid/mine").status_code == 404
    dashboards("restore", tmp_path)
    back = client.get(f"{api}/dashboards/uid/mine").json()
    assert back["meta"]["folderTitle"] == "People" and back["dashboard"]["panels"] == mine["panels"]
    assert client.delete(f"{api}/folders/people").status_code == 200


#: Questions of the quick reference that have no answer when all is well, or that name something to be filled in.
NO_ANSWER = {"up == 0", '{service_name=~".+"} |= "timeout"', '{service_name="taskboard"} | trace_id="…"'}


def questions():
    """The questions of docs/quick-reference.md: engine, query."""
    text = (PROJECT / "docs/quick-reference.md").read_text()
    for engine, rows in re.findall(r"^\| (Tempo|Loki|Prometheus) \(.*\n\|---.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        for query in re.findall(r"^\| `(.+?)` \|", rows, re.MULTILINE):
            yield engine.lower(), query.replace("\\|", "|")


@pytest.mark.parametrize(("engine", "query"), list(questions()))
def test_questions_of_the_quick_reference_are_answered(grafana, traffic, engine, query):  # noqa: F811 - fixtures
    def answers():
        start, end = int(traffic.began) - 60, int(time.time()) + 1
        if engine == "tempo":
            return grafana.proxied(engine, "api/search", {"q": query, "start": start, "end": end}).get("traces")
        if engine == "loki":
            span = {"query": query, "start": start * 10**9, "end": end * 10**9, "step": 15}
            return grafana.proxied(engine, "loki/api/v1/query_range", span)["data"]["result"]
        return grafana.proxied(engine, "api/v1/query", {"query": query, "time": end})["data"]["result"]

    if query in NO_ANSWER:
        answers()  # it must be a question that is understood
    else:
        wait_until(answers, VISIBLE)
