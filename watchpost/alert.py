"""`watchpost alert`: send an alert that says it is a test, and see who is told.

It takes the way of a real one from Alertmanager on: routing, templates, the receiver's own TLS and secret. What a
receiver answered is read from Alertmanager's counters of requests, since nothing else tells. Everything is asked
through Grafana, as `watchpost verify` does.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from watchpost import verify_target
from watchpost.options import Inventory
from watchpost.verify_grafana import ALERTMANAGER, NOBODY, AskError, Grafana
from watchpost.verify_target import TargetError

NAME = "WatchpostTest"
POLL = 0.5  # seconds between two looks
#: Longer than Alertmanager's group_wait and its first, quick tries.
PATIENCE = 45.0

_SAMPLE = re.compile(
    r"^alertmanager_notification_requests(?P<failed>_failed)?_total"
    r'\{integration="(?P<kind>[^"]*)",receiver_name="(?P<name>[^"]*)"\} (?P<value>\S+)$',
    re.MULTILINE,
)


class Severity(StrEnum):
    """How loudly: a page wakes somebody up, a ticket waits for the morning."""

    PAGE = "page"
    TICKET = "ticket"


@dataclass(frozen=True)
class Requests:
    """How often a receiver was asked to take a message, and how often that failed."""

    kind: str  # slack, pagerduty, email, webhook
    made: float
    failed: float


@dataclass(frozen=True)
class Outcome:
    """What became of one receiver's message."""

    receiver: str
    kind: str
    answer: str

    @property
    def told(self) -> bool:
        """Whether the receiver took the message."""
        return self.answer == "told"


def requests_of(metrics: str) -> dict[str, Requests]:
    """Read each receiver's requests from Alertmanager's metrics, in Prometheus's text format."""
    made: dict[str, float] = {}
    failed: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for sample in _SAMPLE.finditer(metrics):
        (failed if sample["failed"] else made)[sample["name"]] = float(sample["value"])
        kinds[sample["name"]] = sample["kind"]
    return {name: Requests(kinds[name], made.get(name, 0), failed.get(name, 0)) for name in kinds}


def labels_of(severity: Severity, service: str = "") -> dict[str, str]:
    """Return a new test alert's labels.

    Alertmanager groups by `job` among others. A name of its own makes the alert a new group, which is told at once;
    one that came back to the group of an earlier test would wait for that group's next turn.
    """
    labels = {"alertname": NAME, "severity": str(severity), "job": f"watchpost-alert-{secrets.token_hex(4)}"}
    return labels | ({"service": service} if service else {})


@dataclass
class Test:
    """One test alert, from its sending to its end."""

    grafana: Grafana
    labels: dict[str, str]
    patience: float = PATIENCE
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def run(self) -> list[Outcome]:
        """Send the alert, wait until each receiver that it is meant for has answered, and end it.

        None for nobody. A receiver without an answer in `patience` seconds is said to be one. Raises AskError.
        """
        before = requests_of(self.grafana.metrics(ALERTMANAGER))
        self._post(timedelta(minutes=10))
        try:
            meant = self._receivers(self.now() + self.patience)
            deadline = self.now() + self.patience
            while True:
                outcomes = list(self._outcomes(meant, before))
                if all(outcome.answer for outcome in outcomes):
                    return outcomes
                if self.now() >= deadline:
                    return [o if o.answer else Outcome(o.receiver, o.kind, "no answer yet") for o in outcomes]
                self.pause(POLL)
        finally:
            self._post(timedelta(0))

    def _post(self, ends_in: timedelta) -> None:
        now = datetime.now(UTC)
        times = {"startsAt": now.isoformat(), "endsAt": (now + ends_in).isoformat()}
        annotations = {
            "summary": "This is a test of alerting; nothing is wrong.",
            "description": "None: somebody has run `watchpost alert` to see who is told.",
        }
        alert: dict[str, Any] = {"labels": self.labels, "annotations": annotations, **times}
        self.grafana.post_alerts([alert])

    def _receivers(self, deadline: float) -> list[str]:
        """Return whom Alertmanager means to tell."""
        while True:
            for alert in self.grafana.alerts(NAME):
                if alert.get("labels") == self.labels:
                    if silencers := alert.get("status", {}).get("silencedBy"):
                        raise AskError(ALERTMANAGER, f"the test alert is silenced by {', '.join(silencers)}")
                    return [r["name"] for r in alert.get("receivers", []) if r["name"] != NOBODY]
            if self.now() >= deadline:
                raise AskError(ALERTMANAGER, "it took the test alert and does not list it")
            self.pause(POLL)

    def _outcomes(self, meant: list[str], before: dict[str, Requests]) -> Iterator[Outcome]:
        after = requests_of(self.grafana.metrics(ALERTMANAGER))
        for name in meant:
            was, now = before.get(name, Requests("", 0, 0)), after.get(name, Requests("", 0, 0))
            refused = now.failed - was.failed
            told = now.made - was.made - refused
            yield Outcome(name, now.kind, "told" if told > 0 else "refused" if refused > 0 else "")


def alert(
    inventory: Inventory = "",
    severity: Annotated[Severity, typer.Option(help="Receivers may be told of one of them only.")] = Severity.PAGE,
    service: Annotated[str, typer.Option(help="Likewise: the label `service`.")] = "",
    url: Annotated[str, typer.Option(help="The gateway, like https://HOST; default: from the inventory.")] = "",
    ca: Annotated[Path | None, typer.Option(help="A CA certificate to trust; default: the deployment's own.")] = None,
    deployment: Annotated[str, typer.Option(help="Whose password and CA to use; default: the inventory's.")] = "",
    password_file: Annotated[
        Path | None, typer.Option(help="Grafana's admin password; default: the stored one.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds in which each receiver must answer.")] = PATIENCE,
) -> None:
    """Send a test alert, and tell of each receiver that it is meant for whether it took it.

    Exit code: 0 all were told, 1 one was not, or nobody is meant, 2 wrong usage, or the appliance cannot be reached.
    """
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    try:
        target = verify_target.find(inventory, url, ca, deployment, password_file)
        waiting = errors.status(f"Sending a {severity}, and waiting for the receivers' answers")
        with target.grafana(timeout=10) as grafana, waiting:
            outcomes = Test(grafana, labels_of(severity, service), timeout).run()
    except (TargetError, AskError, httpx.HTTPError) as error:
        errors.print(f"watchpost alert: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if not outcomes:
        what = f"a {severity}" + (f" of {service}" if service else "")
        console.print(f"Nobody is told of {what}: no receiver in alertmanager_receivers is meant for it.", markup=False)
        raise typer.Exit(1)
    table = Table("Receiver", "By", "")
    for outcome in outcomes:
        colour = "green" if outcome.told else "bold red"
        table.add_row(outcome.receiver, outcome.kind, f"[{colour}]{outcome.answer}[/]")
    console.print(table)
    if not all(outcome.told for outcome in outcomes):
        console.print("The other side's answer: on the host, journalctl -u watchpost-alertmanager -n 50", markup=False)
        raise typer.Exit(1)
