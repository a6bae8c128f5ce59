"""The appliance under drill, and the table at the end. `make drills` boots the host first."""

import os
import random

import pytest
from rich.console import Console
from rich.table import Table

from drills.harness import Appliance, Drill, Outcome, say
from watchpost.testhost import Host

OUTCOMES = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=None, help="of the random moments; default: a new one, printed")
    parser.addoption("--outage", type=float, default=600, help="seconds that one engine is down")
    parser.addoption("--values", type=int, default=1_000_000, help="distinct label values that one client sends")
    parser.addoption("--leave-out", default="", help="stages of the Jenkinsfile not to execute, such as lint,unit")
    parser.addoption("--deliveries", type=int, default=10, help="times that a good release is delivered in a row")


def pytest_configure(config):
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(10**6)
    config.stash[OUTCOMES] = []


def pytest_collection_modifyitems(items):
    """Have floods come last, and the million label values after them.

    What an engine took in the last minutes it reads again when it is started, so until then it starts slowly.
    """
    items.sort(key=lambda item: 2 * ("values" in item.fixturenames) + ("noisy" in item.name))


def pytest_report_header(config):
    return f"random moments from --seed={config.option.seed}"


@pytest.fixture(scope="session")
def appliance():
    return Appliance(Host(os.environ.get("DRILLS_HOST", "drills")))


@pytest.fixture
def drill(request, appliance):
    """One drill; the seed gives each its own moments, whichever of them are selected."""
    name = request.node.name.removeprefix("test_").replace("_", " ").replace("[", ": ").rstrip("]")
    outcome = Outcome(name)
    request.config.stash[OUTCOMES].append((request.node.nodeid, outcome))
    say(name)
    return Drill(appliance, outcome, random.Random(f"{request.config.option.seed} {name}"))


@pytest.fixture
def outage(request):
    """Seconds that one engine is down."""
    return request.config.option.outage


@pytest.fixture
def deliveries(request):
    """How often a good release is delivered in a row."""
    return request.config.option.deliveries


@pytest.fixture
def left_out(request):
    """Stages of the Jenkinsfile that are not executed."""
    return request.config.option.leave_out.split(",")


@pytest.fixture
def values(request):
    """Distinct label values that one client sends."""
    return request.config.option.values


def pytest_terminal_summary(terminalreporter, config):
    """One line a drill."""
    verdicts = {
        report.nodeid: word
        for kind, word in {"passed": "passed", "xfailed": "known to lose", "xpassed": "passed"}.items()
        for report in terminalreporter.stats.get(kind, ())
    }
    table = Table("Drill", "", title=f"Drills, --seed={config.option.seed}")
    for heading in ("Acknowledged", "Refused", "Lost", "Acknowledged before the break, s", "Ready again after, s"):
        table.add_column(heading, justify="right")
    for nodeid, outcome in config.stash[OUTCOMES]:
        ready = f"{max(outcome.ready):.1f}" if outcome.ready else ""
        window = f"≤ {outcome.window:.1f}" if outcome.lost else ""
        verdict = verdicts.get(nodeid, "FAILED")
        numbers = (str(number) for number in (outcome.acknowledged, outcome.refused, outcome.lost))
        table.add_row(outcome.name, verdict, *numbers, window, ready)
    console = Console(width=150, highlight=False)
    console.print(table)
