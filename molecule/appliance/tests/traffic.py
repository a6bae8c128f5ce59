"""Real traffic for the tests of dashboards and links: success, slowness, failure, and a page in a browser."""

import secrets
import time
from dataclasses import dataclass, field

import httpx
import pytest
from conftest import play
from test_browser import Page

#: Every fifth request fails, every fifth takes longer than the objective allows; and the same in the database.
FAULTS = {
    "error": {"share": 0.2},
    "latency": {"share": 0.2, "milliseconds": 700},
    "slow_query": {"share": 0.1, "milliseconds": 600, "route": "/api/tasks"},
}
ROUNDS = 12


@dataclass
class Traffic:
    """What was sent, and when."""

    began: float
    answers: list[httpx.Response] = field(default_factory=list)


def requests(client, rounds=ROUNDS):
    """Use the task manager as people do, with mistakes; return all answers."""
    answers = []

    def ask(method, path, **body):
        answers.append(client.request(method, path, **body))
        return answers[-1]

    for _ in range(rounds):
        ask("GET", "/")
        ask("GET", "/api/tasks")
        ask("POST", "/api/tasks", json={})
        made = ask("POST", "/api/tasks", json={"title": f"traffic {secrets.token_hex(4)}"})
        if made.status_code == 201:
            path = f"/api/tasks/{made.json()['id']}"
            ask("PATCH", path, json={"title": "traffic"})
            ask("POST", f"{path}/complete")
            while ask("DELETE", path).status_code == 500:
                pass
    return answers


def visit(browser, url):
    """Open the page, add a task, meet an error of the page's own, and leave."""
    page = Page(browser, url)
    title = f"traffic {secrets.token_hex(4)}"
    page.create(title)
    page.says("Task added")
    page.press(title, ".delete")
    page.find("#confirm button[value=delete]").click()
    page.says("Task deleted")
    browser.execute_script("""
        const filter = document.querySelector("#filter");
        filter.querySelector(":checked").checked = false;  // which the page takes for impossible
        filter.dispatchEvent(new Event("change"));
    """)
    page.error()
    browser.get("about:blank")  # some vitals are known only when the page goes away


#: The traffic of this run, once it is made.
MADE: list[Traffic] = []


@pytest.fixture(scope="module")
def traffic(request, target):
    """Real traffic, made once for all modules of a run."""
    if not MADE:
        MADE.append(make(request.getfixturevalue("browser"), target))
    return MADE[0]


def make(browser, target):
    """Make it, with the faults switched on in between."""
    made = Traffic(time.time())
    visit(browser, target.url)
    for faults, rounds in ((FAULTS, ROUNDS), ({}, 3)):
        run = play("taskboard", taskboard_faults=faults)
        assert run.code == 0, run.output
        with target.client() as client:
            made.answers += requests(client, rounds)
    visit(browser, target.url)
    assert any(answer.status_code == 500 for answer in made.answers), "the fault of errors was not met"
    assert any(answer.elapsed.total_seconds() > 0.6 for answer in made.answers), "the fault of latency was not met"
    return made
