"""The page in a real browser: what a person does in it, followed from the click to the database through Grafana."""

import json
import secrets
import subprocess
import time

import pytest
from conftest import PROJECT
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from test_appliance import HOST, stopped

from watchpost import packages, verify_target
from watchpost.verify_grafana import PROMETHEUS

DATABASE = "/var/lib/watchpost/taskboard/tasks.db"
#: Seconds until a span or log line must be found: a batch in the page, one in the Collector, and the store.
VISIBLE = 40

OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
    "--window-size=800,600",
    # A browser that speaks to nobody but the page.
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="module")
def target():
    return verify_target.find(inventory=str(HOST.inventory))


@pytest.fixture(scope="module")
def grafana(target):
    with target.grafana() as grafana:
        yield grafana


@pytest.fixture(scope="module")
def browser(target, tmp_path_factory):
    """Chromium, with a home of its own in which the deployment's authority is trusted, and no other exception."""
    packages.ensure("browser tests")
    home = tmp_path_factory.mktemp("browser")
    trust = home / ".pki/nssdb"
    trust.mkdir(parents=True)
    for command in (
        ["-N", "--empty-password"],
        ["-A", "-n", "watchpost", "-t", "C,,", "-i", str(target.ca)],
    ):
        subprocess.run(["certutil", "-d", f"sql:{trust}", *command], check=True)
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*OPTIONS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = ChromeService("/usr/bin/chromedriver", env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
    with Chrome(options=options, service=service) as driver:
        yield driver


class Page:
    """What a person sees of the page, and can do."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get_log("performance")  # what was before is not this page's
        browser.get(f"{url}/")
        self.wait(lambda: self.find("#tasks").get_attribute("aria-busy") == "false")

    def wait(self, condition, seconds=15):
        return WebDriverWait(self.browser, seconds, 0.1).until(lambda _: condition())

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def item(self, title):
        """The list's item of that title, or None."""
        items = self.browser.find_elements(By.CSS_SELECTOR, "#tasks > li")
        return next((i for i in items if title in i.text), None)

    def says(self, text):
        self.wait(lambda: self.find("#status").get_attribute("textContent") == text)

    def create(self, title):
        field = self.find("#title")
        field.clear()
        field.send_keys(title, Keys.ENTER)

    def press(self, title, button):
        self.item(title).find_element(By.CSS_SELECTOR, button).click()

    def focused(self):
        return self.browser.switch_to.active_element

    def error(self):
        """The error shown to the person and the trace id to quote."""
        self.wait(lambda: self.find("#error").is_displayed())
        return self.find("#error-text").text, self.find("#trace-id").text

    def traceparent(self, method, path):
        """What the page sent as traceparent with its newest request of that kind: trace id, span id."""
        found = None
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            request = message.get("params", {}).get("request", {})
            if request.get("method") == method and path in request.get("url", ""):
                headers = {name.lower(): value for name, value in request["headers"].items()}
                found = headers.get("traceparent", found)
        assert found, f"{method} {path} went without a traceparent"
        return found.split("-")[1:3]


@pytest.fixture
def page(browser, target):
    return Page(browser, target.url)


def wait_for(look, seconds=VISIBLE):
    """Look until something true is found, and return it; return the last finding when it is too late."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def chain(spans, leaf):
    """The span and all above it."""
    by_id = {span.span_id: span for span in spans}
    found = [leaf]
    while found[-1].parent_id in by_id:
        found.append(by_id[found[-1].parent_id])
    return found


def way_to_the_database(grafana, trace_id, statement):
    """From the database up: the spans of a trace above its SQL statement of that kind, once all are there."""
    best = []

    def look():
        nonlocal best
        spans = grafana.trace(trace_id)
        ways = [
            chain(spans, span) for span in spans if str(span.attributes.get("db.statement", "")).startswith(statement)
        ]
        best = max([best, *ways], key=len)
        return len(best) >= 4

    wait_for(look)
    return best


def assert_leads_from_click_to_database(grafana, traceparent, interaction, method, statement):
    trace_id, request_id = traceparent
    way = way_to_the_database(grafana, trace_id, statement)
    assert [(span.service, span.kind) for span in way] == [
        ("taskboard", "CLIENT"),
        ("taskboard", "SERVER"),
        ("taskboard-web", "CLIENT"),
        ("taskboard-web", "INTERNAL"),
    ], way
    _, server, request, click = way
    assert request.span_id == request_id
    assert request.name == method
    assert server.name.startswith(f"{method} /api/tasks")
    assert (click.name, click.parent_id) == (interaction, "")


def logs_of(grafana, selector, trace_id):
    """The log lines of a trace."""
    now = time.time()
    return wait_for(lambda: grafana.logs(f'{selector} | trace_id="{trace_id}"', now - 600, time.time()))


def exemplars(grafana, selector):
    """The trace ids of the exemplars that Prometheus keeps of the requests' durations."""
    query = {"query": f"http_server_request_duration_seconds_bucket{selector}"}
    query |= {"start": time.time() - 600, "end": time.time()}
    answer = grafana.client.get(
        f"{grafana.base}/api/datasources/proxy/uid/{PROMETHEUS}/api/v1/query_exemplars", params=query
    )
    assert answer.status_code == 200, answer.text
    return {exemplar["labels"]["trace_id"] for series in answer.json()["data"] for exemplar in series["exemplars"]}


def test_one_trace_leads_from_each_click_to_the_database(page, grafana):
    title = f"browser test {secrets.token_hex(4)}"
    done = []  # of each click: what was sent, and what must be found
    page.create(title)
    page.says("Task added")
    done.append((page.traceparent("POST", "/api/tasks"), "create task", "POST", "INSERT"))

    page.press(title, ".edit")
    page.focused().send_keys(Keys.END, " edited", Keys.ENTER)
    page.says("Task changed")
    done.append((page.traceparent("PATCH", "/api/tasks/"), "edit task", "PATCH", "UPDATE"))
    assert page.item(f"{title} edited")
    assert page.focused().text == "Edit", "the focus stays where it was"

    page.press(title, ".state")
    page.says("Task completed")
    done.append((page.traceparent("POST", "/complete"), "complete task", "POST", "UPDATE"))
    assert page.item(title).find_element(By.CSS_SELECTOR, ".state").is_selected()

    page.press(title, ".delete")
    page.find("#confirm button[value=delete]").click()
    page.says("Task deleted")
    done.append((page.traceparent("DELETE", "/api/tasks/"), "delete task", "DELETE", "DELETE"))
    assert page.item(title) is None

    for wanted in done:
        assert_leads_from_click_to_database(grafana, *wanted)
    for (trace_id, _), *_ in done:
        lines = logs_of(grafana, '{service_name="taskboard"}', trace_id)
        assert lines, f"no log line of trace {trace_id}"
        assert title not in str(lines)
        assert title not in str(grafana.trace(trace_id)), "what a person typed is in no span"


def test_measurement_of_a_click_leads_to_its_trace(page, grafana):
    title = f"browser test {secrets.token_hex(4)}"
    page.create(title)
    page.says("Task added")
    trace_id, _ = page.traceparent("POST", "/api/tasks")
    selector = '{http_route="/api/tasks",http_request_method="POST",http_response_status_code="201"}'
    assert wait_for(lambda: trace_id in exemplars(grafana, selector)), f"no exemplar of trace {trace_id}"
    assert {span.service for span in grafana.trace(trace_id)} == {"taskboard", "taskboard-web"}
    page.press(title, ".delete")
    page.find("#confirm button[value=delete]").click()
    page.says("Task deleted")


def test_notes_are_kept_and_told_to_nobody(page, grafana):
    title, notes = (f"browser test {secrets.token_hex(4)}" for _ in range(2))
    page.find("#notes").send_keys(notes)
    page.create(title)
    page.says("Task added")
    assert notes in page.item(title).text
    page.press(title, ".edit")
    page.find("li textarea").send_keys(" and more")
    page.find("li form button.main").click()
    page.says("Task changed")
    trace_id, _ = page.traceparent("PATCH", "/api/tasks/")
    assert f"{notes} and more" in page.item(title).text
    assert logs_of(grafana, '{service_name="taskboard"}', trace_id)
    assert notes not in str(grafana.trace(trace_id))
    page.press(title, ".delete")
    page.find("#confirm button[value=delete]").click()
    page.says("Task deleted")


def test_loading_of_the_page_is_in_the_trace_that_made_it(page, grafana):
    trace_id = page.find("meta[name=traceparent]").get_attribute("content").split("-")[1]

    def way():
        spans = grafana.trace(trace_id)
        loads = [span for span in spans if span.name == "documentLoad"]
        lists = [span for span in spans if str(span.attributes.get("db.statement", "")).startswith("SELECT")]
        return loads and lists and [[span.name for span in chain(spans, leaf)] for leaf in (loads[0], lists[0])]

    found = wait_for(way)
    assert found, f"trace {trace_id} has not both"
    load, first_list = found
    assert load == ["documentLoad", "GET /"]
    assert first_list[1:] == ["GET /api/tasks", "GET", "open page", "GET /"]


def test_refused_input_is_explained_with_a_trace_id_that_is_stored(page, grafana):
    page.create("   ")
    text, trace_id = page.error()
    assert "title" in text
    assert page.find("#title").get_attribute("aria-invalid") == "true"
    assert page.focused() == page.find("#title")
    assert trace_id == page.traceparent("POST", "/api/tasks")[0]

    def statuses():
        spans = grafana.trace(trace_id)
        found = {
            span.service: span.attributes.get("http.response.status_code") for span in spans if span.kind != "INTERNAL"
        }
        return len(found) == 2 and found

    assert wait_for(statuses) == {"taskboard": 422, "taskboard-web": 422}


def test_picture_of_the_page_for_the_documents(page, target):
    """Everything at once: tasks, one being edited, one refused. Copy it to docs/ when the page has changed."""
    tasks = [
        {"title": "Water the plants", "notes": "The cactus only once a month"},
        {"title": "Buy milk", "state": "done"},
        {"title": "Call home"},
    ]
    with target.client() as client:
        made = [client.post("/api/tasks", json=task).json()["id"] for task in tasks]
        page.browser.set_window_size(800, 860)
        page.browser.refresh()
        page.wait(lambda: page.item("Call home"))
        page.press("Call home", ".edit")
        page.create("   ")
        page.error()
        picture = PROJECT / ".watchpost/taskboard.png"
        picture.parent.mkdir(exist_ok=True)
        assert page.browser.save_screenshot(str(picture))
        for task in made:
            client.delete(f"/api/tasks/{task}")


@pytest.fixture
def no_table(host):
    """A database that fails, as its own user would break it."""

    def rename(before, after):
        script = f"import sqlite3; sqlite3.connect('{DATABASE}').execute('ALTER TABLE {before} RENAME TO {after}')"
        host.check_output("runuser -u watchpost-taskboard -- python3 -c %s", script)

    rename("task", "away")
    yield
    rename("away", "task")


def test_failure_of_the_database_is_seen_in_page_trace_log_and_metric(page, no_table, grafana):
    def counted():
        count = "http_server_request_duration_seconds_count"
        query = f'sum({count}{{http_route="/api/tasks",http_request_method="POST",http_response_status_code="500"}})'
        return sum(value for _, value in grafana.instant(query, time.time()))

    before = counted()
    page.create("never stored")
    text, trace_id = page.error()
    assert "failed" in text
    lines = logs_of(grafana, '{service_name="taskboard"} | severity_text="ERROR"', trace_id)
    assert any("OperationalError" in str(line) for line in lines)
    way = way_to_the_database(grafana, trace_id, "INSERT")
    assert [span.service for span in way] == ["taskboard", "taskboard", "taskboard-web", "taskboard-web"]
    assert way[1].attributes["http.response.status_code"] == 500
    assert wait_for(lambda: counted() > before)


def test_mistake_of_the_page_is_explained_and_logged_in_its_trace(page, grafana):
    page.browser.execute_script("""
        const filter = document.querySelector("#filter");
        filter.querySelector(":checked").checked = false;  // which the page takes for impossible
        filter.dispatchEvent(new Event("change"));
    """)
    text, trace_id = page.error()
    assert "this page went wrong" in text
    (line,) = logs_of(grafana, '{service_name="taskboard-web"}', trace_id)
    assert line.body == "Error: The page has no HTMLInputElement input:checked"
    assert line.labels["severity_text"] == "ERROR"
    assert "/static/dist/taskboard.js:" in line.labels["exception_stacktrace"]


def test_web_vitals_of_a_visit_are_logged(page, grafana):
    page.find("#title").click()
    page.browser.get("about:blank")  # some are known only when the page goes away
    vitals = {"cls", "fcp", "inp", "lcp", "ttfb"}

    def logged():
        now = time.time()
        lines = grafana.logs('{service_name="taskboard-web"} | event_name="browser.web_vital"', now - 600, now)
        return vitals <= {line.labels["browser_web_vital_name"] for line in lines}

    assert wait_for(logged)


def test_tasks_do_not_need_the_collector(page, host):
    with stopped(host, "otel_collector"):
        title = f"browser test {secrets.token_hex(4)}"
        page.create(title)
        page.says("Task added")
        page.press(title, ".delete")
        page.find("#confirm button[value=delete]").click()
        page.says("Task deleted")
        assert not page.find("#error").is_displayed()


def test_browser_has_nothing_against_the_page(browser, target):
    """No script or style that its Content-Security-Policy refuses, no failed request, no uncaught error."""
    browser.get_log("browser")
    Page(browser, target.url)
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
