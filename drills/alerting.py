"""Real faults, the alerts that they raise, and the budget that they spend: what the drills of alerts share.

The clock of the objectives runs 10 times as fast (`watchpost_slo_time_scale`): 5 minutes are 30 seconds, the hour of
the fast burn is 6 minutes. Receivers are the stand-ins of molecule/receivers.py, on this machine.
"""

import contextlib
import json
import secrets
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from drills.harness import Appliance, say
from watchpost.verify_grafana import Grafana

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "molecule"))
import receivers

SCALE = 10
#: How long a fault goes on after it was told of. It ends with a reload, which ends the workers' series too: about a
#: second's worth of events more than there were (watchpost.slo.rules, _counts). Many others must stand beside them.
LONGER_SECONDS = 60
ROUTING_KEY = "0123456789abcdef0123456789abcdef"
ROUTE = "/api/tasks"
SLOW_SECONDS = 3.0
OBJECTIVE = 0.99
#: Objectives of this run's own: what was recorded of others, or in an earlier run, would count too.
RUN = secrets.token_hex(3)
AVAILABLE, FAST = f"drill-available-{RUN}", f"drill-fast-{RUN}"
OBJECTIVES = [
    {"name": AVAILABLE, "availability": {"of": "requests", "where": f'http_route="{ROUTE}"'}},
    {"name": FAST, "latency": {"of": "requests", "where": f'http_route="{ROUTE}"', "threshold": "2500ms"}},
]


class Traffic:
    """Requests in the background, each answer entered into a ledger."""

    def __init__(self, appliance: Appliance, threads: int = 8, rate: float = 20) -> None:
        """Begin at once, with so many requests a second."""
        self.answers: Counter[str] = Counter()  # "good", "error", "slow"; what else there is the verdict looks at
        self._lock, self._stop = threading.Lock(), threading.Event()
        target = appliance.target
        self._client = target.client()
        self._threads = [threading.Thread(target=self._send, args=(threads / rate,)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _send(self, pause: float) -> None:
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                status = str(self._client.get(ROUTE).status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            slow = time.monotonic() - began >= SLOW_SECONDS
            kind = {"200": "slow" if slow else "good", "500": "error"}.get(status, status)
            with self._lock:
                self.answers[kind] += 1

    def stop(self) -> None:
        """End after the last answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


def wait_for(what: str, look: Callable[[], Any], seconds: float) -> Any:
    """Look until something true is found, and return it."""
    began = time.monotonic()
    while not (found := look()):
        assert time.monotonic() - began < seconds, f"{what}: not after {seconds} s"
        time.sleep(0.5)  # between two looks
    say(f"{what}: after {time.monotonic() - began:.0f} s")
    return found


@dataclass
class Drilled:
    """An appliance that is told of the stand-ins and of the drill's objectives, with traffic running."""

    appliance: Appliance
    web: receivers.Web
    grafana: Grafana
    traffic: Traffic

    def set_faults(self, **faults: dict[str, object]) -> None:
        """Switch faults of the application on, or all off."""
        file = "/etc/watchpost/taskboard/current/faults.json"
        text = shlex.quote(json.dumps(faults))
        self.appliance.shell(f"printf %s {text} >{file} && systemctl reload watchpost-taskboard")
        say(f"faults: {faults or 'none'}")

    def pages(self, action: str) -> list[dict[str, Any]]:
        """What PagerDuty has been told of the drill's objective on errors."""
        events = [message.body for message in self.web.at("/pagerduty/v2/enqueue")]
        return [e for e in events if e["event_action"] == action and e["payload"].get("group") == AVAILABLE]

    def tickets(self, color: str) -> list[dict[str, Any]]:
        """What Slack has been told of the plain alert on latency."""
        said = [message.body["attachments"][0] for message in self.web.at("/slack/tickets")]
        return [a for a in said if a["color"] == color and "taskboard is slow" in a["title"]]

    def errors_page(self, good_seconds: float) -> dict[str, Any]:
        """Errors, after a while of good answers, raise a page with the right words and links. Return it."""
        say(f"{good_seconds:g} s of good traffic")
        time.sleep(good_seconds)
        assert not self.web.taken, "nobody is told while all is well"
        self.set_faults(error={"share": 0.6, "route": ROUTE})
        event = wait_for("the page", lambda: self.pages("trigger"), 150)[0]
        time.sleep(LONGER_SECONDS)
        self.set_faults()
        payload = event["payload"]
        assert (payload["class"], payload["component"], payload["severity"]) == ("SloBurnFast", "taskboard", "critical")
        assert f"taskboard spends the error budget of {AVAILABLE}" in payload["summary"]
        assert "of that of 30 days" in payload["custom_details"]["budget_left"]
        links = {link["text"]: link["href"] for link in event["links"]}
        public = f"{self.appliance.target.url}/"
        assert links["Dashboard"].startswith(f"{public}grafana/d/watchpost-slo")
        assert links["Runbook"] == f"{public}runbooks/SloBurnFast.md"
        runbook = httpx.get(links["Runbook"], verify=self.appliance.target.trust())
        assert runbook.text.startswith("# SloBurnFast\n")
        self._examples_are_stored(links)
        return event

    def page_is_resolved(self, event: dict[str, Any]) -> None:
        """Once the errors have ended, so does the page."""
        resolved = wait_for("the end of the page", lambda: self.pages("resolve"), 240)[0]
        assert resolved["dedup_key"] == event["dedup_key"]

    def _examples_are_stored(self, links: dict[str, str]) -> None:
        """What the links lead to is there: log lines of the service, and traces that failed."""
        _, query, span = receivers.explored(links["Logs"])
        assert self.grafana.logs(query["expr"], int(span["from"]) / 1000, time.time(), 10)
        _, query, span = receivers.explored(links["Example traces"])
        question = {"q": query["query"], "start": int(span["from"]) // 1000, "end": int(time.time()) + 1}
        wait_for("example traces", lambda: self.grafana.proxied("tempo", "api/search", question).get("traces"), 60)

    def slow_answers_make_a_ticket_and_their_end_resolves_it(self) -> None:
        """A 95th percentile over the threshold for (a tenth of) five minutes raises a ticket, which ends."""
        self.set_faults(latency={"share": 0.5, "milliseconds": int(SLOW_SECONDS * 1000), "route": ROUTE})
        ticket = wait_for("the ticket", lambda: self.tickets("warning"), 150)[0]
        time.sleep(LONGER_SECONDS)
        self.set_faults()
        assert f"[TICKET] taskboard is slow: the 95th percentile of {FAST}" in ticket["title"]
        assert "Error budget left: " in ticket["text"]
        wait_for("the end of the ticket", lambda: self.tickets("good"), 240)

    def budget_is_what_the_ledger_says(self, slo: str, bad: str) -> None:
        """The recorded budget differs by at most 1 % from the one that the answers come to. Ends the traffic."""
        self.traffic.stop()
        answers = self.traffic.answers
        assert answers[bad], f"nothing was {bad}, so nothing was spent: the cases before this one make the faults"
        # What a busy host's gateway gave up on has not come to the application, so it is no event.
        away = answers.pop("502", 0) + answers.pop("504", 0)
        assert not set(answers) - {"good", "error", "slow"}, answers
        assert away <= 0.02 * answers.total(), f"{away} requests did not come to the application"

        def recorded(series: str) -> float:
            [(_, value)] = self.grafana.instant(f'{series}{{slo="{slo}"}}', time.time())
            return value

        # Once the last request has left the shortest window, all are counted.
        wait_for("all is counted", lambda: recorded("slo:sli_total:rate5m") == 0, 90)
        expected = 1 - answers[bad] / answers.total() / (1 - OBJECTIVE)
        found = recorded("slo:budget_left:ratio")
        say(f"{slo}: {answers[bad]} of {answers.total()} bad; left by the ledger {expected:.4f}, recorded {found:.4f}")
        assert abs(found - expected) <= 0.01 * abs(expected)


@contextlib.contextmanager
def drilled(appliance: Appliance, directory: Path) -> Iterator[Drilled]:
    """Tell the appliance of the stand-ins and of the drill's objectives, send traffic, and put all back at the end.

    `directory` takes the certificates of the stand-ins.
    """
    address = appliance.shell("ip -4 route show default").split()[2]
    authority = receivers.Authority(directory)
    told = {"services": ["taskboard"]}
    with receivers.web(address, authority) as web:
        pagerduty = {"routing_key": ROUTING_KEY, "url": f"{web.url}/pagerduty/v2/enqueue"}
        slack = {"url": f"{web.url}/slack/tickets"}
        appliance.site(
            watchpost_slos=[{"service": "taskboard", "objective": OBJECTIVE, "window": "30d"} | o for o in OBJECTIVES],
            watchpost_slo_time_scale=SCALE,
            taskboard_metric_interval_seconds=1,
            alertmanager_ca_file=str(authority.certificate),
            alertmanager_receivers=[
                {"name": "on-call", "severities": ["page"], "pagerduty": pagerduty, **told},
                {"name": "tickets", "severities": ["ticket"], "slack": slack, **told},
            ],
        )
        with appliance.target.grafana() as grafana:
            objectives = f'slo:objective:ratio{{slo=~"drill-.+-{RUN}"}}'
            recorded = lambda: len(grafana.instant(objectives, time.time())) == len(OBJECTIVES)  # noqa: E731 - one look
            wait_for("the objectives are recorded", recorded, 60)
            traffic = Traffic(appliance)
            try:
                yield Drilled(appliance, web, grafana, traffic)
            finally:
                traffic.stop()
                appliance.site()
        assert not web.refused, "a vendor would have refused these"
