"""`watchpost verify`: prove that every signal of one request can be found again, through Grafana, with a login.

What is proven is a list of `Link`s. Each is a function that returns its evidence or raises `Missing`; `follow` runs
them all, waits for those that take time to become visible, and leaves out those whose ground is missing, so that the
report names what is broken and not everything behind it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import typer
from rich.console import Console
from rich.table import Table

from watchpost import __version__, junit, verify_target
from watchpost.ledger import LedgerError, Sent
from watchpost.ledger import read as ledger_of
from watchpost.options import Inventory, Json
from watchpost.verify_grafana import ALERTMANAGER, HEARTBEAT, LOKI, NOBODY, PROMETHEUS, TEMPO, AskError, Grafana, Span
from watchpost.verify_requests import exercise
from watchpost.verify_target import USER, TargetError

SERVICE = "taskboard"
#: By this the Collector knows these requests' traces, and keeps them all where it keeps a share of the others.
USER_AGENT = f"watchpost-verify/{__version__}"
#: By these every log line can be found, whatever convention and language its sender follows.
LABELS = ("service_name", "service_instance_id", "deployment_environment", "level")
IDS = 100  # trace ids that one question names
AT_ONCE = 8  # traces that are looked for at the same time
VERDICT = "verify.json"
POLL = 0.5  # seconds between two looks at what is not visible yet

#: Whom to ask when an engine does not answer, or its signal does not arrive.
_UNITS = {
    "grafana": "watchpost-grafana",
    TEMPO: "watchpost-tempo",
    LOKI: "watchpost-loki",
    PROMETHEUS: "watchpost-prometheus",
    ALERTMANAGER: "watchpost-alertmanager",
    "node_exporter": "watchpost-node-exporter",
}
_DOCUMENT = "docs/verify.md"
T = TypeVar("T")


class Missing(Exception):
    """A link is not there; the message says what was seen instead."""

    def __init__(self, why: str, units: Sequence[str] = ()) -> None:
        """Name the units to look at when they are others than the link's own."""
        super().__init__(why)
        self.units = units


class Wrong(Missing):
    """A link is there and is not as it must be: waiting does not mend it."""


class Unasked(Exception):
    """There is nothing to look for, so a link can be neither found nor missing."""


class State(StrEnum):
    """How the search for a link ended."""

    FOUND = "found"
    MISSING = "missing"
    UNASKED = "not asked"  # its ground is missing


@dataclass
class Run:
    """What the links of one verification share: the clients, and what earlier links have learnt for later ones."""

    client: httpx.Client
    grafana: Grafana
    password: str
    count: int
    now: Callable[[], float] = time.time
    started: float = 0.0
    sent: Sequence[Sent] = ()
    counted_before: dict[Series, float] | None = None
    served: dict[str, Span] = field(default_factory=dict)  # trace id → the server's span
    spans: dict[str, set[str]] = field(default_factory=dict)  # trace id → ids of all its spans
    counted: dict[Endpoint, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a person should know though no link is missing

    @property
    def reached(self) -> list[Sent]:
        """The requests whose telemetry must be found. Raises Unasked when there are none."""
        reached = [sent for sent in self.sent if sent.reached]
        if not reached:
            raise Unasked("no request reached the application")
        return reached


#: A time series by its labels, and what it counts: HTTP method, route and status.
Series = frozenset[tuple[str, str]]
Endpoint = tuple[str, str, str]


@dataclass(frozen=True)
class Link:
    """One thing to be proven."""

    name: str
    sought: str
    find: Callable[[Run], str]
    units: tuple[str, ...]  # whose journals to read when it is missing
    needs: tuple[str, ...] = ()  # links without which there is nothing to ask
    waits: bool = False  # telemetry travels for a while: look until the deadline

    def hint(self, units: Sequence[str]) -> str:
        """Say what to look at next."""
        journals = "; ".join(f"journalctl -u {unit} -n 50" for unit in units or self.units)
        return f"on the host: {journals}. Then {_DOCUMENT}#{self.name.replace(' ', '-')}"


@dataclass(frozen=True)
class Result:
    """How a link's search ended; seconds count from the last request until it was visible."""

    link: str
    sought: str
    state: State
    evidence: str
    seconds: float | None = None
    hint: str = ""


# --- the links ---


def gateway(run: Run) -> str:
    """The front door answers over verified TLS."""
    with run.client.stream("GET", "/healthz") as answer:
        connection = answer.extensions.get("network_stream")
        tls = connection.get_extra_info("ssl_object") if connection else None
        if answer.status_code != 200:
            raise Missing(f"/healthz answers HTTP {answer.status_code}")
    if tls is None:
        return "HTTP 200"
    return f"{tls.version()}, certificate valid until {tls.getpeercert()['notAfter']}"


def application(run: Run) -> str:
    """The task manager says which version of it runs."""
    answer = run.client.get("/version")
    if answer.status_code != 200:
        raise Missing(f"/version answers HTTP {answer.status_code}")
    version = answer.json()
    return f"{version['name']} {version['version']}"


def grafana_health(run: Run) -> str:
    """Grafana answers and reaches its database."""
    health = run.grafana.health()
    if health.get("database") != "ok":
        raise Missing(f"Grafana's database is {health.get('database', 'unknown')!r}")
    if not run.grafana.has_pages():
        run.notes.append(
            "Grafana was built from source: its API works, its pages are not in it; "
            "get the release with `artifacts ensure grafana --source release`"
        )
    return f"Grafana {health.get('version', '')}, database ok".replace(" ,", ",")


def anonymous(run: Run) -> str:
    """Whoever has not logged in sees nothing."""
    open_paths = run.grafana.open_to_anyone()
    if open_paths:
        raise Missing(f"answered without a login: {', '.join(open_paths)}")
    return "refused"


def login(run: Run) -> str:
    """The generated password opens a session."""
    run.grafana.login(USER, run.password)
    return f"as {USER}"


def requests(run: Run) -> str:
    """Every request is answered as it should be, and no task is left behind."""
    run.started = run.now()
    try:
        run.counted_before = server_counts(run, run.now())
    except AskError:
        run.counted_before = None  # the link `metrics` will tell
    ledger, left = exercise(run.client, run.count)
    run.sent = ledger.sent
    if wrong := wrong_answers(run.sent):
        raise Missing(wrong)
    if left:
        raise Missing(f"tasks left behind: {left}")
    return f"{len(run.sent)} answered as expected, one of them a refusal"


def recorded_requests(run: Run) -> str:
    """The ledger's requests were made; whether their answers will do is for `watchpost gate` to say."""
    try:
        run.counted_before = server_counts(run, run.started - 1)
    except AskError:
        run.counted_before = None  # the link `metrics` will tell
    if not any(sent.reached for sent in run.sent):
        raise Missing(f"of the ledger's {len(run.sent)} requests none reached the application")
    return wrong_answers(run.sent) or f"{len(run.sent)} answered as expected"


def wrong_answers(all_sent: Sequence[Sent]) -> str:
    """Say how many answers are not the expected ones, and what the first was instead; empty when there is none."""
    wrong = [sent for sent in all_sent if not sent.as_expected]
    if not wrong:
        return ""
    first = wrong[0]
    got = f"HTTP {first.status}" if first.status else "no answer"
    instead = "" if first.status == first.expected else f" instead of {first.expected}"
    return f"{len(wrong)} of {len(all_sent)} answered wrongly, first {first}: {got}{instead} {first.error}".rstrip()


def traces(run: Run) -> str:
    """Each request's trace holds the server's span below ours, and the SQL spans below that."""
    reached = run.reached
    wanted = [sent for sent in reached if sent.trace_id not in run.served]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for some in batched(wanted, AT_ONCE):
            found = pool.map(lambda sent: run.grafana.trace(sent.trace_id, run.started - 60, run.now() + 60), some)
            for sent, spans in zip(some, found, strict=True):
                run.served[sent.trace_id] = judge_trace(sent, spans)
                run.spans[sent.trace_id] = {span.span_id for span in spans}
    return f"{len(reached)} traces, {sum(len(ids) for ids in run.spans.values())} spans"


def judge_trace(sent: Sent, spans: Sequence[Span]) -> Span:
    """Return the server's span of a request's trace; raise Missing when the trace is not the tree that it must be."""
    if not spans:
        raise Missing(f"no trace of {sent}")
    server = [span for span in spans if span.kind == "SERVER" and span.parent_id == sent.span_id]
    if len(server) != 1:
        seen = ", ".join(f"{span.name} ({span.kind})" for span in spans)
        raise Missing(f"{len(server)} server spans below our own in {sent}; its spans: {seen}")
    if server[0].service != SERVICE:
        raise Missing(f"the server span of {sent} is of service {server[0].service!r}, not {SERVICE!r}")
    status = server[0].attributes.get("http.response.status_code", server[0].attributes.get("http.status_code"))
    if str(status) != str(sent.status):
        raise Missing(f"the server span of {sent} says HTTP {status}, the answer was {sent.status}")
    sql = [span for span in spans if span.kind == "CLIENT" and _SQL_ATTRIBUTES & span.attributes.keys()]
    if sent.reads_database and sent.as_expected and not sql:  # what fails may fail before it asks
        raise Missing(f"no SQL span in {sent}")
    by_id = {span.span_id: span for span in spans}
    for span in sql:
        if not _is_below(span, server[0], by_id):
            raise Missing(f"the SQL span {span.name!r} of {sent} is not below the server's span")
    return server[0]


_SQL_ATTRIBUTES = {"db.system", "db.system.name"}


def _is_below(span: Span, ancestor: Span, by_id: dict[str, Span]) -> bool:
    for _ in by_id:  # at most as many steps as there are spans, even when a broken trace is a ring
        if span.parent_id == ancestor.span_id:
            return True
        if span.parent_id not in by_id:
            return False
        span = by_id[span.parent_id]
    return False


def logs(run: Run) -> str:
    """The application's log lines arrive, whatever they say, with the labels by which people look for them."""
    run.reached  # noqa: B018  # nothing to look for when no request was answered
    logql, now = f'{{service_name="{SERVICE}"}}', run.now()
    lines = run.grafana.logs(logql, run.started, now + 1)
    if not lines:
        raise Missing(f"no log line of {SERVICE} since the first request")
    for line in lines:
        if lacking := [label for label in LABELS if not line.labels.get(label)]:
            raise Wrong(f"log lines lack the label {', '.join(lacking)}; they have {', '.join(sorted(line.labels))}")
    environments = run.grafana.count_logs(logql, "deployment_environment", run.started, now + 1)
    return f"{sum(environments.values())} lines of {SERVICE} in {', '.join(sorted(environments))}"


def trace_to_logs(run: Run) -> str:
    """Each request has a log line with its trace id, written within one of its spans."""
    wanted = {sent.trace_id: sent for sent in run.reached}
    found = {
        line.labels.get("trace_id")
        for ids in batched(list(wanted), IDS)
        for line in run.grafana.logs(
            f'{{service_name="{SERVICE}"}} | trace_id=~"{"|".join(ids)}"', run.started - 1, run.now() + 1
        )
        if line.labels.get("span_id") in run.spans[line.labels["trace_id"]]
    }
    without = [sent for trace_id, sent in wanted.items() if trace_id not in found]
    if without:
        raise Missing(f"{len(without)} of {len(wanted)} requests have no log line in their trace, first {without[0]}")
    return f"{len(found)} of {len(wanted)} requests have their log line"


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Return the items in portions of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def metrics(run: Run) -> str:
    """The counts of the requests' method and status rose by as many as were made."""
    made = Counter((sent.method, str(sent.status)) for sent in run.reached)
    if run.counted_before is None:
        server_counts(run, run.now())  # raises again, while it still does not answer
        raise Missing("the counts before the requests are unknown: run this once more", (_UNITS[PROMETHEUS],))
    run.counted = risen(run.counted_before, server_counts(run, run.now()))
    counted: Counter[tuple[str, str]] = Counter()
    for (method, _, status), rise in run.counted.items():
        counted[method, status] += round(rise)
    for (method, status), wanted in made.items():
        if counted[method, status] < wanted:
            raise Missing(f"{counted[method, status]} of {wanted} {method} requests with status {status} are counted")
    others = sum(counted.values()) - sum(made.values())
    return f"{sum(made.values())} requests made, {sum(counted.values())} counted" + (
        f" ({others} more: somebody else's, or what traffic deletes in the end)" if others else ""
    )


def trace_to_metrics(run: Run) -> str:
    """What the server's spans say of route and status is what the metric counts."""
    wanted = Counter(
        (sent.method, str(run.served[sent.trace_id].attributes.get("http.route", "")), str(sent.status))
        for sent in run.reached
    )
    for endpoint, made in wanted.items():
        if round(run.counted.get(endpoint, 0)) < made:
            counted = round(run.counted.get(endpoint, 0))
            raise Missing(f"{counted} of {made} are counted as {' '.join(endpoint)}, which their spans say they are")
    return f"{len(wanted)} combinations of method, route and status agree"


_COUNT = "http_server_request_duration_seconds_count"
_LABELS = ("http_request_method", "http_route", "http_response_status_code")


def server_counts(run: Run, at: float) -> dict[Series, float]:
    """Return how often each worker had answered each route of the tasks, from `http.server.request.duration`.

    A worker that has gone since the first request is still counted: its series ends, its requests were real.
    """
    since = 300 + max(0, math.ceil(at - run.started))  # seconds
    query = f'last_over_time({_COUNT}{{job=~"(.+/)?{SERVICE}",http_route=~"/api/tasks.*"}}[{since}s])'
    return {frozenset(labels.items()): value for labels, value in run.grafana.instant(query, at)}


def risen(before: dict[Series, float], after: dict[Series, float]) -> dict[Endpoint, float]:
    """Return by how much the counts rose, by method, route and status, over all workers.

    Exact, unlike PromQL's `increase()`, which extrapolates and does not see the first value of a new series. A count
    that fell has begun anew at zero.
    """
    rise: dict[Endpoint, float] = {}
    for series, value in after.items():
        labels = dict(series)
        method, route, status = (labels.get(name, "") for name in _LABELS)
        known = before.get(series, 0.0)
        rise[method, route, status] = rise.get((method, route, status), 0.0) + (
            value - known if value >= known else value
        )
    return {endpoint: value for endpoint, value in rise.items() if value}


def targets(run: Run) -> str:
    """Prometheus reaches whatever it scrapes: its last scrape of each succeeded."""
    up = [
        (labels.get("job", ""), labels.get("instance", ""), value)
        for labels, value in run.grafana.instant("up", run.now())
    ]
    if not up:
        raise Missing("Prometheus scrapes nothing")
    down = sorted((job, instance) for job, instance, value in up if not value)
    if down:
        # A target that the operator added has no unit of ours: Prometheus says why it is not reached.
        units = dict.fromkeys(_UNITS.get(job, _UNITS[PROMETHEUS]) for job, _ in down)
        names = ", ".join(f"{job} on {instance}" for job, instance in down)
        raise Missing(f"{len(down)} of {len(up)} do not answer Prometheus: {names}", tuple(units))
    return f"{len(up)} answer: {', '.join(sorted({job for job, *_ in up}))}"


def alerts(run: Run) -> str:
    """The alert that always fires has come to Alertmanager, so that any other would."""
    if not run.grafana.alerts(_ALWAYS_FIRING):
        raise Missing(f"Alertmanager has no alert {_ALWAYS_FIRING}, which Prometheus sends once a minute")
    told = [name for name in run.grafana.receivers() if name not in (NOBODY, HEARTBEAT)]
    if not told:
        run.notes.append("nobody is told of alerts, they are only shown: see alertmanager_receivers, docs/alerting.md")
    return f"{_ALWAYS_FIRING} has reached Alertmanager, which tells {', '.join(told) or 'nobody'}"


_ALWAYS_FIRING = "Watchdog"  # a rule of the prometheus role

_APPLICATION, _COLLECTOR, _GRAFANA = "watchpost-taskboard", "watchpost-otel-collector", "watchpost-grafana"

LINKS = (
    Link("gateway", "an answer over TLS that this machine trusts", gateway, ("watchpost-gateway",)),
    Link("application", "the version that answers", application, (_APPLICATION,), ("gateway",)),
    Link("grafana", "Grafana and its database", grafana_health, (_GRAFANA,), ("gateway",)),
    Link("anonymous access", "a refusal without a login", anonymous, (_GRAFANA,), ("grafana",)),
    Link("login", "a session with the generated password", login, (_GRAFANA,), ("grafana",)),
    Link("requests", "tasks created, listed, edited, completed, deleted", requests, (_APPLICATION,), ("application",)),
    Link(
        "traces",
        "each request's server span below our own, SQL spans below it",
        traces,
        (_COLLECTOR, _UNITS[TEMPO], _APPLICATION),
        ("application", "login"),
        waits=True,
    ),
    Link(
        "logs",
        "the application's log lines since the first request",
        logs,
        (_COLLECTOR, _UNITS[LOKI], _APPLICATION),
        ("application", "login"),
        waits=True,
    ),
    Link(
        "metrics",
        "http.server.request.duration counts each request",
        metrics,
        (_COLLECTOR, _UNITS[PROMETHEUS], _APPLICATION),
        ("application", "login"),
        waits=True,
    ),
    Link(
        "trace to logs",
        "each request's log line, by its trace id",
        trace_to_logs,
        (_COLLECTOR, _UNITS[LOKI], _APPLICATION),
        ("traces", "logs"),
        waits=True,
    ),
    Link(
        "trace to metrics",
        "the counts of the route and status that the spans tell",
        trace_to_metrics,
        (_APPLICATION, _COLLECTOR),
        ("traces", "metrics"),
        waits=True,
    ),
    Link(
        "targets",
        "an answer to Prometheus from everything that it scrapes",
        targets,
        (_UNITS[PROMETHEUS],),
        ("login",),
        waits=True,
    ),
    Link(
        "alerts",
        "the alert that always fires, in Alertmanager",
        alerts,
        (_UNITS[PROMETHEUS], _UNITS[ALERTMANAGER]),
        ("login",),
        waits=True,
    ),
)

#: In place of `requests`, when they were made before.
RECORDED = Link("requests", "the requests of the ledger", recorded_requests, (_APPLICATION,), ("application", "login"))


_EVERY_COMPONENT = frozenset(unit.removeprefix("watchpost-").replace("-", "_") for link in LINKS for unit in link.units)


def askable(components: Collection[str]) -> list[Link]:
    """Return those of verify's links that have all their components here: without the application, few."""
    here = {f"watchpost-{name.replace('_', '-')}" for name in components}
    links: dict[str, Link] = {}
    for link in LINKS:  # what a link needs stands before it
        if here.issuperset(link.units) and links.keys() >= set(link.needs):
            links[link.name] = link
    return list(links.values())


# --- following them ---


def follow(
    links: Sequence[Link],
    run: Run,
    timeout: float,
    tell: Callable[[Result], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[Result]:
    """Search every link and return the results in their order.

    All that wait share one deadline, `timeout` seconds after the last request, and are looked at in turn, so that each
    one's time is its own. A link whose ground is missing is not asked.
    """
    results: dict[str, Result] = {}
    began = clock()
    while True:
        for link in links:
            if link.name in results:
                continue
            ground = [results.get(name) for name in link.needs]
            lost = [result.link for result in ground if result and result.state is not State.FOUND]
            if not lost and None in ground:
                continue  # still being waited for
            last_look = not link.waits or clock() >= began + timeout
            result, final = _look(link, run, lost, clock, began)
            if result.state is State.MISSING and not (final or last_look):
                continue
            results[link.name] = result
            tell(result)
            if not link.waits:
                began = clock()
        if len(results) == len(links):
            return [results[link.name] for link in links]
        pause(POLL)


def _look(link: Link, run: Run, lost: Sequence[str], clock: Callable[[], float], began: float) -> tuple[Result, bool]:
    """Look for one link, once; return what was found, and whether no later look can find anything else."""
    if lost:
        return Result(link.name, link.sought, State.UNASKED, f"needs: {', '.join(lost)}"), True
    units: Sequence[str] = ()
    final = False
    try:
        evidence = link.find(run)
    except Unasked as unasked:
        return Result(link.name, link.sought, State.UNASKED, str(unasked)), True
    except Missing as missing:
        why, units, final = str(missing), missing.units, isinstance(missing, Wrong)
    except AskError as error:
        why, units = str(error), (_UNITS[error.engine],)
    except httpx.HTTPError as error:
        why = f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError) as error:
        why = f"an answer that cannot be read: {type(error).__name__}: {error}"
    else:
        return Result(link.name, link.sought, State.FOUND, evidence, clock() - began if link.waits else None), True
    return Result(link.name, link.sought, State.MISSING, why, hint=link.hint(units)), final


# --- the command ---


def verify(
    inventory: Inventory = "",
    url: Annotated[str, typer.Option(help="The gateway, like https://HOST; default: from the inventory.")] = "",
    ca: Annotated[Path | None, typer.Option(help="A CA certificate to trust; default: the deployment's own.")] = None,
    deployment: Annotated[str, typer.Option(help="Whose password and CA to use; default: the inventory's.")] = "",
    password_file: Annotated[
        Path | None, typer.Option(help="Grafana's admin password; default: the stored one.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds in which telemetry must become visible.")] = 90,
    count: Annotated[int, typer.Option(min=1, max=100, help="Tasks to create; each makes four requests.")] = 5,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Make no requests: look for those of this ledger, which `watchpost traffic` wrote, all of them. "
            "verify.json and verify.xml (JUnit) are put beside it.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="A component that is left out, like taskboard. May be repeated; default: by the inventory."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that the appliance works: make requests, and find each one's trace, log line and count through Grafana.

    Each signal is looked for on its own, then what leads from one to the other. Leaves nothing behind.

    Exit code: 0 everything found, 1 a link is missing (it is named, and what to look at next), 2 wrong usage, or the
    appliance cannot be reached.
    """
    console = Console(stderr=True, highlight=False)
    try:
        recorded = ledger_of(ledger) if ledger else None
        target = verify_target.find(inventory, url, ca, deployment, password_file)
        with target.client(timeout=10, headers={"User-Agent": USER_AGENT}) as client:
            verify_target.reach(client, target)
            run = Run(client, Grafana(client), target.password, count)
            links = askable((target.components or _EVERY_COMPONENT) - set(without or ()))
            if len(links) < len(LINKS):
                others = ", ".join(link.name for link in LINKS if link not in links)
                run.notes.append(f"not looked for, as their components are left out: {others}")
            if recorded:
                run.started, run.sent = recorded[0].started, recorded[1]
                links = [RECORDED if link.name == RECORDED.name else link for link in links]
            results = _follow_visibly(links, run, timeout, console)
    except (TargetError, LedgerError) as error:
        console.print(f"watchpost verify: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    missing = [result for result in results if result.state is State.MISSING]
    report = {"url": target.url, "ok": not missing, "missing": [result.link for result in missing]}
    report |= {"traces": len(run.served), "notes": run.notes, "links": [asdict(result) for result in results]}
    if ledger and recorded:
        report["run"] = recorded[0].id
        ledger.with_name(VERDICT).write_text(json.dumps(report, indent=2) + "\n")
        junit.write(ledger.with_name("verify.xml"), "watchpost verify", [_case(result) for result in results])
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _print(results, run.notes, target.url)
    if missing:
        raise typer.Exit(1)


def _case(result: Result) -> junit.Case:
    failure = f"{result.evidence}\nLook at: {result.hint}" if result.state is State.MISSING else ""
    unasked = result.evidence if result.state is State.UNASKED else ""
    return junit.Case(result.link, result.seconds or 0.0, failure, unasked, output=result.evidence)


def _follow_visibly(links: Sequence[Link], run: Run, timeout: float, console: Console) -> list[Result]:
    """Follow the links and show on stderr how far it is: a moving line on a terminal, a line a link elsewhere."""
    done: list[str] = []
    with console.status("Looking for: gateway") as status:

        def tell(result: Result) -> None:
            done.append(result.link)
            waiting = [link.name for link in links if link.name not in done]
            status.update(f"Looking for: {', '.join(waiting)}")
            if not console.is_terminal:
                console.print(f"{result.link}: {result.state}, {result.evidence}", markup=False, soft_wrap=True)

        return follow(links, run, timeout, tell)


_COLOURS = {State.FOUND: "green", State.MISSING: "bold red", State.UNASKED: "yellow"}


def _print(results: Iterable[Result], notes: Iterable[str], url: str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a log has no width of its own
    table = Table("Link", "Looked for", "", "Evidence", "Visible after", title=url)
    missing = []
    for result in results:
        seconds = "" if result.seconds is None else f"{result.seconds:.1f} s"
        colour = _COLOURS[result.state]
        table.add_row(result.link, result.sought, f"[{colour}]{result.state}[/]", _plain(result.evidence), seconds)
        if result.state is State.MISSING:
            missing.append(result)
    console.print(table)
    for result in missing:
        console.print(f"Missing: {result.link}. {result.evidence}", markup=False, soft_wrap=True)
        console.print(f"  Look at: {result.hint}", markup=False, soft_wrap=True)
    if missing:
        console.print("`python -m watchpost doctor` looks on the host for the reason.", markup=False)
    for note in notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")  # square brackets are Rich's markup
