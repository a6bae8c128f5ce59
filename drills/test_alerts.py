"""Real faults raise real alerts, which arrive and end; and the budget is what was really spent."""

import pytest

from drills.alerting import AVAILABLE, FAST, drilled


@pytest.fixture(scope="module")
def world(appliance, tmp_path_factory):
    with drilled(appliance, tmp_path_factory.mktemp("receivers")) as world:
        yield world


def test_objectives_that_are_gone_from_the_file_are_gone_from_prometheus(world):
    groups = world.grafana.proxied("prometheus", "api/v1/rules", {})["data"]["groups"]
    found = sorted(group["name"] for group in groups if group["name"].startswith("slo-"))
    assert found == [f"slo-{AVAILABLE}", f"slo-{FAST}"]


def test_errors_page_and_their_end_resolves_the_page(world):
    world.page_is_resolved(world.errors_page(good_seconds=45))


def test_slow_answers_make_a_ticket_and_their_end_resolves_it(world):
    world.slow_answers_make_a_ticket_and_their_end_resolves_it()


@pytest.mark.parametrize(("slo", "bad"), [(AVAILABLE, "error"), (FAST, "slow")])
def test_budget_is_what_the_ledger_says(world, slo, bad):
    world.budget_is_what_the_ledger_says(slo, bad)
