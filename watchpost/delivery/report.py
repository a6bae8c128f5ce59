"""`watchpost report`: one page that says whether a run was delivered, why or why not, and what it looked like."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jinja2
import typer
from rich.console import Console

from watchpost import verify, verify_target
from watchpost.delivery import gate, pipeline
from watchpost.delivery.traffic import LEDGER, by_operation
from watchpost.ledger import LedgerError, Run, Sent
from watchpost.ledger import read as ledger_of
from watchpost.options import RUN, Inventory, RunDirectory
from watchpost.verify_grafana import AskError, Grafana
from watchpost.verify_target import TargetError

HTML, MARKDOWN = "report.html", "report.md"
SLOWEST = 10  # traces shown
BURN_DOWN = 3600.0  # seconds before the run's end that the burn-down shows


@dataclass
class Findings:
    """What the appliance says of a run. Whatever it does not say is named in `lacking`."""

    versions: dict[str, str] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)  # log level → lines of the run
    budgets: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # SLO → (Unix seconds, share left)
    dashboards: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


@dataclass
class Story:
    """All that the page tells."""

    outcomes: list[pipeline.Outcome]
    run: Run | None
    sent: list[Sent]
    verified: dict[str, Any] | None
    judged: dict[str, Any] | None
    findings: Findings

    @property
    def failure(self) -> tuple[str, str] | None:
        """Return what failed and why; None when nothing did."""
        for outcome in self.outcomes:
            if not outcome.passed:
                return outcome.stage, outcome.cause
        if not self.outcomes and not self.run:
            return pipeline.STAGES[0].name, "it has not begun: what failed came before it"
        for stage, verdict in (("verify", self.verified), ("gate", self.judged)):
            if not verdict or (self.run and verdict.get("run") != self.run.id):
                return stage, "it has not been asked of this run: there is no verdict, so this is no delivery"
            if not verdict["ok"]:
                return stage, "\n".join(verdict.get("failures") or [f"missing: {', '.join(verdict['missing'])}"])
        return None

    @property
    def slowest(self) -> list[Sent]:
        """Return the slowest requests that the application answered, the slowest first."""
        return sorted((sent for sent in self.sent if sent.reached), key=lambda sent: -sent.seconds)[:SLOWEST]

    def trace_url(self, sent: Sent) -> str:
        """Return where Grafana shows a request's trace."""
        start, end = int(1000 * (sent.started - 60)), int(1000 * (sent.started + 60))
        tempo = {"type": "tempo", "uid": "tempo"}
        pane = {
            "datasource": "tempo",
            "queries": [{"refId": "A", "datasource": tempo, "queryType": "traceql", "query": sent.trace_id}],
            "range": {"from": str(start), "to": str(end)},
        }
        base = self.run.url if self.run else ""
        panes = quote(json.dumps({"trace": pane}, separators=(",", ":")))
        return f"{base}/grafana/explore?schemaVersion=1&orgId=1&panes={panes}"


def look(grafana: Grafana, run: Run | None, sent: list[Sent], exports: Path) -> Findings:
    """Ask the appliance for what only it knows. Whatever cannot be had is told, not raised."""
    found = Findings()
    start = run.started if run else time.time() - 60
    end = max((each.started + each.seconds for each in sent), default=time.time()) + 1

    def versions() -> None:
        found.versions["grafana"] = str(grafana.health().get("version", "?"))
        # The engines say it in a metric of their own; what sends OTLP, as a resource attribute.
        for labels, _ in grafana.instant(
            '{__name__=~".+_build_info"} or target_info{service_version!=""}', time.time()
        ):
            name = labels.get("__name__", "")
            sender = labels.get("job", "").rpartition("/")[2]
            component = sender if name == "target_info" else name.removesuffix("_build_info")
            found.versions[component] = labels.get("service_version") or labels.get("version", "?")
        if run and run.application:
            name, _, version = run.application.partition(" ")
            found.versions[name] = version

    def levels() -> None:
        if run:
            logql = f'{{service_name="{verify.SERVICE}"}}'
            counts = grafana.count_logs(logql, "detected_level", start, end)  # the level as Loki understands it
            found.levels = {level or "unknown": count for level, count in counts.items()}

    def budgets() -> None:
        query = "slo:budget_left:ratio"
        for labels, points in grafana.range(query, end - BURN_DOWN, max(end, time.time()), 15):
            found.budgets[labels.get("slo", "?")] = points

    def dashboards() -> None:
        exports.mkdir(parents=True, exist_ok=True)
        for uid, dashboard in grafana.dashboards():
            (exports / f"{uid}.json").write_text(json.dumps(dashboard, indent=2, sort_keys=True) + "\n")
            found.dashboards.append(f"{dashboard.get('title', uid)} ({exports.name}/{uid}.json)")

    asked: tuple[tuple[str, Callable[[], None]], ...] = (
        ("versions", versions),
        ("log volume", levels),
        ("error budgets", budgets),
        ("dashboards", dashboards),
    )
    for name, ask in asked:
        try:
            ask()
        except (AskError, httpx.HTTPError, ValueError, KeyError) as error:
            found.lacking.append(f"{name}: {error}")
    return found


def plots(story: Story) -> Iterator[tuple[str, str]]:
    """Draw what there is to draw: title and SVG."""
    from watchpost.delivery import plots as draw  # matplotlib takes a second to load

    if story.sent:
        yield "Latency of each request", draw.latency_over_time(story.sent, (story.judged or {}).get("p95"))
        yield "Share of requests answered within a time", draw.latency_by_operation(story.sent)
    if story.findings.budgets:
        yield "Error budgets", draw.burn_down(dict(story.findings.budgets))


def read(run: Path) -> Story:
    """Read what the stages left behind; whatever is missing is a finding, not an error."""
    lacking: list[str] = []
    made: Run | None = None
    sent: list[Sent] = []
    try:
        made, sent = ledger_of(run / LEDGER)
    except LedgerError as error:
        lacking.append(str(error))
    verified, judged = pipeline.read_json(run / verify.VERDICT), pipeline.read_json(run / gate.VERDICT)
    return Story(pipeline.outcomes(run), made, sent, verified, judged, Findings(lacking=lacking))


def render(story: Story, template: str) -> str:
    """Fill in a template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("watchpost.delivery"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ms"] = lambda seconds: f"{1000 * seconds:.0f}"
    environment.filters["when"] = lambda at: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    context: dict[str, Any] = {"story": story, "operations": by_operation(story.sent) if story.sent else {}}
    if template.startswith("report.html"):
        context["plots"] = list(plots(story))
    return environment.get_template(template).render(context)


def report(inventory: Inventory = "", run: RunDirectory = RUN) -> None:
    """Write one self-contained page about a run, RUN/report.html, and a summary of it, RUN/report.md.

    Tells the verdict and its cause, the figures (requests, errors, P50, P95, P99, traces, log lines by level), the
    slowest requests with links to their traces, latencies and error budgets as plots, the versions that ran; and keeps
    the dashboards in RUN/dashboards. An appliance that does not answer only makes the report shorter: it says what it
    lacks.

    Exit code: 0 written, whatever the verdict is; 2 when it cannot be written.
    """
    console = Console(stderr=True, highlight=False)
    story = read(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lacking = story.findings.lacking
        try:
            target = verify_target.find(pipeline.settle_inventory(inventory, run))
            with target.grafana(timeout=15) as grafana:
                story.findings = look(grafana, story.run, story.sent, run / "dashboards")
                story.findings.lacking[:0] = lacking
        except (TargetError, AskError, httpx.HTTPError) as error:
            lacking.append(f"the appliance's own words: {error}")
        (run / HTML).write_text(render(story, "report.html.j2"))
        (run / MARKDOWN).write_text(render(story, "report.md.j2"))
    except OSError as error:
        console.print(f"watchpost report: {error.filename}: {error.strerror}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    console.print(f"Report: {(run / HTML).absolute()}", markup=False, soft_wrap=True)
