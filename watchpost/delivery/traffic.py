"""`watchpost traffic`: use the task manager as people do, and keep a ledger of every request and its answer."""

from __future__ import annotations

import itertools
import json
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from watchpost import __version__, verify_target
from watchpost.ledger import Ledger, Run, Sent, percentile
from watchpost.options import RUN, Inventory, Json, RunDirectory
from watchpost.verify import SERVICE
from watchpost.verify_target import TargetError

LEDGER = "ledger.jsonl"
#: By this the Collector knows these requests' traces, and keeps them all where it keeps a share of the others.
USER_AGENT = f"watchpost-traffic/{__version__}"
ABSENT = 2**62  # an id that no task has
LIMIT = 10.0  # seconds after which a request counts as not answered


class Operation(StrEnum):
    """What somebody does with the task manager."""

    CREATE = "create"
    LIST = "list"
    READ = "read"
    EDIT = "edit"
    COMPLETE = "complete"
    DELETE = "delete"
    INVALID = "invalid"


Mix = Mapping[Operation, float]
#: How often each is done, in parts. Most look, some write, a few do it wrongly.
MIX: Mix = {
    Operation.CREATE: 30,
    Operation.LIST: 20,
    Operation.READ: 20,
    Operation.EDIT: 12,
    Operation.COMPLETE: 8,
    Operation.DELETE: 5,
    Operation.INVALID: 5,
}
#: Requests that must be refused: method, path, body, status, and whether the database is asked before.
REFUSED: Sequence[tuple[str, str, object, int, bool]] = (
    ("POST", "/api/tasks", {"title": ""}, 422, False),
    ("POST", "/api/tasks", {"notes": "a task without a title"}, 422, False),
    ("GET", "/api/tasks?limit=0", None, 422, False),
    ("GET", f"/api/tasks/{ABSENT}", None, 404, True),
    ("PATCH", f"/api/tasks/{ABSENT}", {"title": "nobody's"}, 404, True),
)


def read_mix(given: str) -> Mix:
    """Read a mix like `create=50,list=50`; what is not named is not done. Raises typer.BadParameter."""
    mix: dict[Operation, float] = {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, _, share = part.partition("=")
        try:
            mix[Operation(name)] = float(share)
        except ValueError:
            known = ", ".join(Operation)
            raise typer.BadParameter(f"{part!r} is not like create=30; operations are {known}") from None
    if not given:
        return MIX
    if any(share < 0 for share in mix.values()) or not mix.get(Operation.CREATE):
        raise typer.BadParameter("no share is negative, and create has one: without tasks there is nothing to do")
    return mix


@dataclass
class Person:
    """Somebody who works on tasks of his own, so that each answer is known beforehand."""

    ledger: Ledger
    random: random.Random
    mix: Mix
    name: str
    tasks: dict[int, str] = field(default_factory=dict)  # id → title
    doubtful: list[int] = field(default_factory=list)  # a request to delete it went wrong: it may be there or not
    created: int = 0

    def act(self) -> None:
        """Do one thing, by the mix; whoever has no task makes one."""
        operation = self.random.choices(list(self.mix), list(self.mix.values()))[0]
        if not self.tasks and operation not in (Operation.LIST, Operation.INVALID):
            operation = Operation.CREATE
        self.do(operation)

    def do(self, operation: Operation) -> None:
        """Do this, with a task of one's own where one is needed."""
        task = self.random.choice(list(self.tasks)) if self.tasks else 0
        path = f"/api/tasks/{task}"
        match operation:
            case Operation.CREATE:
                self.created += 1
                title = {"title": f"{self.name} {self.created}"}
                _, made = self._send("POST", "/api/tasks", 201, title, operation, holds=title)
                if "id" in made:
                    self.tasks[made["id"]] = title["title"]
            case Operation.LIST:
                self._send("GET", f"/api/tasks?limit={self.random.choice((10, 20, 50))}", 200, None, operation)
            case Operation.READ:
                self._send("GET", path, 200, None, operation, holds={"id": task, "title": self.tasks[task]})
            case Operation.EDIT:
                notes = {"notes": f"seen {self.random.randrange(1000)} times"}
                self._send("PATCH", path, 200, notes, operation, holds={"id": task, **notes})
            case Operation.COMPLETE:
                self._send("POST", f"{path}/complete", 200, None, operation)
            case Operation.DELETE:
                del self.tasks[task]
                sent, _ = self._send("DELETE", path, 204, None, operation)
                if not sent.as_expected:
                    self.doubtful.append(task)
            case Operation.INVALID:
                method, path, body, status, reads = self.random.choice(REFUSED)
                self._send(method, path, status, body, operation, reads)

    def _send(
        self,
        method: str,
        path: str,
        expected: int,
        body: object,
        operation: Operation,
        reads: bool = True,
        holds: Mapping[str, object] | None = None,
    ) -> tuple[Sent, dict[str, Any]]:
        return self.ledger.send(method, path, expected, body, reads, operation, holds)

    def tidy(self, tell: Callable[[], None] = lambda: None) -> int:
        """Delete what is left, outside the ledger: it is no part of the run; `tell` hears of each.

        Return how many could not be deleted.
        """
        left = 0
        for task in [*self.tasks, *self.doubtful]:
            try:
                left += self.ledger.client.delete(f"/api/tasks/{task}").status_code not in (204, 404)
            except httpx.HTTPError:
                left += 1
            tell()
        return left


@dataclass(frozen=True)
class Scenario:
    """How much is done, how fast, and by how many at once."""

    creates: int
    rate: float  # requests a second, of all together; what is answered slower than that comes slower
    people: int
    seconds: float  # goes on for so long, if the tasks are made earlier
    mix: Mix
    seed: int

    def __str__(self) -> str:
        """Tell all but the seed: what two runs must have in common to be compared."""
        mix = ", ".join(f"{name}={share:g}" for name, share in self.mix.items())
        lasts = f", {self.seconds:g} s at least" if self.seconds else ""
        return f"{self.creates} creates at {self.rate:g} requests a second by {self.people} people{lasts}: {mix}"

    def play(self, ledger: Ledger, run: str, tell: Callable[[int], None] = lambda _: None) -> list[Person]:
        """Let everybody work until all tasks are made and the time is over; `tell` hears how many are made."""
        people = [
            Person(ledger, random.Random(f"{self.seed} {number}"), self.mix, f"traffic {run} {number}")  # noqa: S311
            for number in range(self.people)
        ]
        shares = [self.creates // self.people + (number < self.creates % self.people) for number in range(self.people)]
        began = time.monotonic()

        def work(person: Person, share: int) -> None:
            pause = self.people / self.rate
            due = began + pause * people.index(person) / self.people
            while person.created < share or time.monotonic() < began + self.seconds:
                time.sleep(max(0.0, due - time.monotonic()))  # keeps to the rate
                due = max(due + pause, time.monotonic() - pause)  # after a slow answer no burst makes up for it
                person.act()
                tell(sum(each.created for each in people))

        with ThreadPoolExecutor(self.people) as pool:
            list(pool.map(work, people, shares))
        return people


def tidy(people: Sequence[Person], tell: Callable[[int], None] = lambda _: None) -> int:
    """Let everybody delete their tasks, all at once. Return how many could not be; `tell` hears how many are done."""
    done = itertools.count(1)
    with ThreadPoolExecutor(len(people)) as pool:
        return sum(pool.map(lambda person: person.tidy(lambda: tell(next(done))), people))


def traffic(
    inventory: Inventory = "",
    url: Annotated[str, typer.Option(help="The gateway, like https://HOST; default: from the inventory.")] = "",
    ca: Annotated[Path | None, typer.Option(help="A CA certificate to trust; default: the deployment's own.")] = None,
    run: RunDirectory = RUN,
    creates: Annotated[int, typer.Option(min=1, max=100_000, help="Tasks to create.")] = 120,
    rate: Annotated[
        float, typer.Option(min=0.1, max=1000, help="Requests a second; the gateway slows down to gateway_rate.")
    ] = 20,
    people: Annotated[int, typer.Option(min=1, max=64, help="How many work at once, each on their own tasks.")] = 4,
    seconds: Annotated[float, typer.Option(min=0, max=86400, help="Go on for at least so long.")] = 0,
    mix: Annotated[
        str, typer.Option(help=f"Parts of each operation, like create=30,list=20; there are {', '.join(Operation)}.")
    ] = "",
    seed: Annotated[int | None, typer.Option(help="Do the same once more; default: a new one, which is told.")] = None,
    as_json: Json = False,
) -> None:
    """Use the task manager as people do: create, list, read, edit, complete and delete tasks, and ask for nonsense too.

    Each request begins a trace of its own (W3C traceparent), and is written into RUN/ledger.jsonl with its answer, for
    `watchpost verify --ledger`, `gate` and `report`. The tasks are deleted in the end.

    Exit code: 0 the traffic was made, whatever the answers were (the gate judges them), 2 wrong usage, or the appliance
    cannot be reached.
    """
    console = Console(stderr=True, highlight=False)
    seed = secrets.randbelow(2**32) if seed is None else seed
    scenario = Scenario(creates, rate, min(people, creates), seconds, read_mix(mix), seed)
    try:
        # A password of Grafana is not needed to make requests: whoever names the URL needs no deployment here.
        target = verify_target.find(inventory) if not url else verify_target.open_to_all(url, ca)
        if target.components is not None and SERVICE not in target.components:
            raise TargetError("the inventory has no host in the group taskboard, so there is nothing to use")
        headers = {"User-Agent": USER_AGENT}
        with httpx.Client(
            base_url=target.url, verify=target.trust(), headers=headers, timeout=LIMIT, trust_env=False
        ) as client:
            application = verify_target.reach(client, target)
            run.mkdir(parents=True, exist_ok=True)
            made = Run(secrets.token_hex(4), target.url, time.time(), application, seed, str(scenario))
            ledger = Ledger(client, file=run / LEDGER)
            ledger.begin(made)
            console.print(f"{creates} tasks at {rate:g} requests a second on {target.url}, seed {seed}", markup=False)
            with _shown(console, "tasks created", scenario.creates) as tell:
                everybody = scenario.play(ledger, made.id, tell)
            remaining = sum(len(person.tasks) + len(person.doubtful) for person in everybody)
            with _shown(console, "tasks deleted", remaining) as tell:
                left = tidy(everybody, tell)
    except (TargetError, OSError) as error:
        console.print(f"watchpost traffic: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if left:
        console.print(f"{left} tasks could not be deleted; their titles begin with 'traffic {made.id}'", markup=False)
    summary = by_operation(ledger.sent)
    if as_json:
        answer = {"run": made.id, "seed": seed, "ledger": str(run / LEDGER), "left": left}
        sys.stdout.write(json.dumps(answer | {"operations": summary}, indent=2) + "\n")
    else:
        show(summary, f"{len(ledger.sent)} requests, run {made.id}; ledger: {run / LEDGER}")


@contextmanager
def _shown(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of them are done: a bar on a terminal, a line every ten seconds elsewhere."""
    told = time.monotonic()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)

        def tell(done: int) -> None:
            nonlocal told
            progress.update(bar, completed=done, total=max(total, done))
            if not console.is_terminal and time.monotonic() - told > 10:
                told = time.monotonic()
                console.print(f"  {done} {what}", markup=False)

        yield tell


Row = dict[str, float]


def by_operation(sent: Sequence[Sent]) -> dict[str, Row]:
    """Return for each operation, and for `all`: requests, errors, unexpected answers, and latencies in seconds."""
    groups: dict[str, list[Sent]] = {}
    for each in sent:
        groups.setdefault(each.operation or "other", []).append(each)
    return {name: _row(group) for name, group in [*sorted(groups.items()), ("all", list(sent))]}


def _row(sent: Sequence[Sent]) -> Row:
    latencies = [each.seconds for each in sent]
    return {
        "requests": len(sent),
        "unavailable": sum(not each.available for each in sent),
        "unexpected": sum(not each.as_expected for each in sent),
        "p50": percentile(latencies, 0.5),
        "p95": percentile(latencies, 0.95),
        "p99": percentile(latencies, 0.99),
    }


def show(summary: Mapping[str, Row], title: str) -> None:
    """Print the summary for a person."""
    console = Console(highlight=False)
    table = Table("Operation", title=title)
    for heading in ("Requests", "5xx or none", "Unexpected", "P50 ms", "P95 ms", "P99 ms"):
        table.add_column(heading, justify="right")
    for name, row in summary.items():
        counts = (row["requests"], row["unavailable"], row["unexpected"])
        latencies = (row["p50"], row["p95"], row["p99"])
        table.add_row(name, *(str(int(count)) for count in counts), *(f"{1000 * value:.1f}" for value in latencies))
    console.print(table)
