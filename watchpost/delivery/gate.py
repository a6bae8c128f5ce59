"""`watchpost gate`: say whether a run was good enough to be delivered, from its ledger alone.

What its callers saw is judged, not what the service says of itself: a request that found nobody counts as unavailable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from watchpost import junit
from watchpost.delivery.traffic import LEDGER
from watchpost.ledger import LedgerError, Run, Sent, percentile
from watchpost.ledger import read as ledger_of
from watchpost.options import RUN, Json, RunDirectory
from watchpost.slo import spec
from watchpost.slo.cli import read_file, read_inventory
from watchpost.verify import SERVICE
from watchpost.verify_target import TargetError

VERDICT = "gate.json"
#: Share of comparisons that may call a difference real which is none, as long as requests are independent.
FALSE_ALARMS = 1 / 1000
PERCENTILE = 0.95  # of the latency that is limited
SLOWEST = 0.05  # share of both runs' requests that counts as slow in a comparison
KEPT = 10  # earlier runs in a baseline
FEWEST = 10  # requests of an operation in each run: with fewer no difference could be told from chance


@dataclass(frozen=True)
class Check:
    """One limit, and how the run kept it."""

    name: str
    measured: str
    limit: str
    passed: bool
    why: str = ""  # what it counts, for whoever reads only this

    @property
    def failure(self) -> str:
        """Say what is wrong; empty when nothing is."""
        return "" if self.passed else f"{self.name} is {self.measured}, must be {self.limit} ({self.why})"


@dataclass(frozen=True)
class Limits:
    """What a run must keep. Shares are from 0 to 1, latencies in seconds."""

    availability: float
    p95: float
    error_rate: float
    least: int


def judge(sent: Sequence[Sent], limits: Limits) -> list[Check]:
    """Hold a run's requests against fixed limits.

    Availability is the share of requests that were answered, and not with a 5xx; the error rate is the share of answers
    other than the expected one, where the refusal of nonsense (4xx) is expected. P95 is over all requests, by nearest
    rank; a request without an answer took as long as was waited for it.
    """
    total = len(sent)
    bad = sum(not each.available for each in sent)
    wrong = sum(not each.as_expected for each in sent)
    p95 = percentile([each.seconds for each in sent], PERCENTILE)
    checks = [Check("requests", str(total), f"at least {limits.least}", total >= limits.least, "fewer prove nothing")]
    if not total:
        return checks
    available, errors = 1 - bad / total, wrong / total
    return [
        *checks,
        Check(
            "availability",
            f"{available:.3%}",
            f"at least {limits.availability:.3%}",
            available >= limits.availability,
            f"{bad} of {total} requests got a 5xx or no answer",
        ),
        Check(
            "error rate",
            f"{errors:.3%}",
            f"at most {limits.error_rate:.3%}",
            errors <= limits.error_rate,
            f"{wrong} of {total} answers are not the expected ones",
        ),
        Check(
            "P95",
            f"{1000 * p95:.1f} ms",
            f"at most {1000 * limits.p95:g} ms",
            p95 <= limits.p95,
            f"slowest request: {1000 * max(each.seconds for each in sent):.0f} ms",
        ),
    ]


# --- the comparison with an earlier run ---


@dataclass(frozen=True)
class Baseline:
    """An earlier run that was good: latencies in seconds by operation, requests and wrong answers."""

    run: str
    scenario: str
    latencies: dict[str, list[float]]
    requests: int
    wrong: int


def baseline_of(run: Run, sent: Sequence[Sent]) -> Baseline:
    """Return what later runs are compared with."""
    latencies: dict[str, list[float]] = {}
    for each in sent:
        latencies.setdefault(each.operation, []).append(round(each.seconds, 6))
    return Baseline(run.id, run.scenario, latencies, len(sent), sum(not each.as_expected for each in sent))


def compare_with_all(now: Baseline, baselines: Sequence[Baseline], slower_by: float) -> list[Check]:
    """Compare with each of the earlier runs, and return what comes of the one that this run does best against.

    A machine that does other things is slower at times, all of a run long, which no test of one run against another can
    tell from a slower release. Several good runs show what the machine does by itself: whoever is worse than each of
    them has become worse.
    """
    found = [compare(now, baseline, slower_by) for baseline in baselines]
    return min(found, key=lambda checks: sum(not check.passed for check in checks), default=[])


def compare(now: Baseline, baseline: Baseline, slower_by: float) -> list[Check]:
    """Say whether this run is worse than an earlier one of the same scenario, by more than chance explains.

    Three questions, each answered by a one-sided test whose null hypothesis is the harmless case:

    - an operation's typical latency, by Mann and Whitney's U test of its latencies now against the earlier ones times
      `slower_by`: being slower by that factor, or less, is no alarm (doi:10.1214/aoms/1177730491);
    - the slowest: of both runs' latencies, the earlier ones times `slower_by`, whether more of now's are in the slowest
      20th of their operation than of the earlier ones, by Fisher's exact test;
    - errors: how many answers are wrong, now and then, by Fisher's exact test.

    The level is shared by all of them (Bonferroni), so that together they raise a false alarm in FALSE_ALARMS of the
    comparisons at most, if a run's requests are independent of each other. An operation with fewer than FEWEST
    requests in either run is not judged by itself. Raises LedgerError when the runs did not do the same.
    """
    from scipy import stats  # type: ignore[import-untyped]  # no types; a second to load: only when it is needed

    if now.scenario != baseline.scenario:
        raise LedgerError(
            f"run {now.run} cannot be compared with run {baseline.run}, which did something else: "
            f"{baseline.scenario or 'it is not known what'}; this one: {now.scenario or 'it is not known what'}"
        )
    both = sorted(
        operation
        for operation in now.latencies.keys() & baseline.latencies.keys()
        if min(len(now.latencies[operation]), len(baseline.latencies[operation])) >= FEWEST
    )
    level = FALSE_ALARMS / (len(both) + 2)
    checks = []
    slow, slow_then = [0, 0], [0, 0]  # slow requests, and the others
    for operation in both:
        new, old = now.latencies[operation], baseline.latencies[operation]
        allowed = [slower_by * each for each in old]
        ratio = percentile(new, 0.5) / max(percentile(old, 0.5), 1e-9)
        chance = float(stats.mannwhitneyu(new, allowed, alternative="greater").pvalue)
        checks.append(
            Check(
                f"{operation} against run {baseline.run}",
                f"{ratio:.2f} times",
                f"at most {slower_by:g} times",
                chance > level,
                f"median {1000 * percentile(new, 0.5):.1f} ms, was {1000 * percentile(old, 0.5):.1f} ms; "
                f"by chance with probability {chance:.2g}, {len(new)} and {len(old)} requests",
            )
        )
        tail = percentile([*new, *allowed], 1 - SLOWEST)
        for counts, latencies in ((slow, new), (slow_then, allowed)):
            over = sum(each >= tail for each in latencies)
            counts[0] += over
            counts[1] += len(latencies) - over
    wrong, wrong_then = [now.wrong, now.requests - now.wrong], [baseline.wrong, baseline.requests - baseline.wrong]
    for name, counts, then, why in (
        (
            "slow requests",
            slow,
            slow_then,
            f"the slowest of both runs, the earlier one taken as {slower_by:g} times slower",
        ),
        ("errors", wrong, wrong_then, "answers that are not the expected ones"),
    ):
        chance = float(stats.fisher_exact([counts, then], alternative="greater").pvalue)
        checks.append(
            Check(
                f"{name} against run {baseline.run}",
                f"{counts[0]} of {sum(counts)}",
                f"no more than {then[0]} of {sum(then)}, but by chance",
                chance > level,
                f"{why}; by chance with probability {chance:.2g}",
            )
        )
    return checks


def read_baselines(file: Path) -> list[Baseline]:
    """Read the runs of a baseline, the latest last; raise LedgerError naming the file when it is none."""
    try:
        baselines: list[Baseline] = TypeAdapter(list[Baseline]).validate_json(file.read_bytes())
    except OSError as error:
        raise LedgerError(f"--baseline {file}: {error.strerror}; --save-baseline writes one") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise LedgerError(f"--baseline {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return baselines


def keep(file: Path, baseline: Baseline) -> None:
    """Add a run to a baseline, which keeps the last KEPT of one scenario. Raises LedgerError or OSError."""
    others = [each for each in read_baselines(file) if each.scenario == baseline.scenario] if file.exists() else []
    file.write_text(json.dumps([asdict(each) for each in [*others[1 - KEPT :], baseline]]) + "\n")


# --- the command ---


def promised(service: str, inventory: str = "") -> tuple[float | None, float | None]:
    """Return what the objectives promise of a service's requests: availability, and the latency in seconds of its P95.

    They are the inventory's, which may have others than `group_vars/all/slo.yml`; without one, those of the file. Of
    several the strictest counts; None is what nothing is promised of. That 95 % or more are faster than a threshold
    means that the P95 is below it; what is promised of fewer says nothing of the P95.
    """
    objectives = read_inventory(inventory)[0] if inventory else read_file()
    slos = [slo for slo in objectives.slos if slo.service == service]
    shares = [slo.objective for slo in slos if slo.availability and slo.availability.of == "requests"]
    thresholds = [
        slo.latency.threshold
        for slo in slos
        if slo.latency and slo.latency.of == "requests" and slo.objective >= PERCENTILE
    ]
    return max(shares, default=None), min(thresholds, default=None)


def gate(
    inventory: Annotated[
        str,
        typer.Option(envvar="WATCHPOST_INVENTORY", help="Inventory with the objectives; default: the project's own."),
    ] = "",
    run: RunDirectory = RUN,
    availability: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least share answered, and not with a 5xx; default: the objective, or 0.99."),
    ] = None,
    p95: Annotated[
        float | None,
        typer.Option(min=0, help="Greatest P95 latency, milliseconds; default: the objective's threshold, or 500."),
    ] = None,
    error_rate: Annotated[float, typer.Option(min=0, max=1, help="Greatest share of unexpected answers.")] = 0.01,
    least: Annotated[int, typer.Option(min=1, help="Requests without which nothing is proven.")] = 100,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare with these earlier runs, which --save-baseline wrote.")
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(help=f"If the run is good, add it to these {KEPT} for later runs to be compared with."),
    ] = None,
    slower_by: Annotated[
        float, typer.Option(min=1, help="How many times slower than the earlier run each operation may be.")
    ] = 1.5,
    as_json: Json = False,
) -> None:
    """Fail unless the run was good: enough requests answered, few errors, fast, and no worse than an earlier run.

    The limits are those of the objectives (watchpost_slos of the inventory, else group_vars/all/slo.yml), if no flag
    says otherwise.

    Reads RUN/ledger.jsonl, which `watchpost traffic` wrote; needs no appliance. Writes RUN/gate.json and RUN/gate.xml
    (JUnit). A difference from the baseline counts only when it is larger than allowed and chance does not explain it;
    the baseline must be of the same scenario, and of its runs the one counts that this run does best against. With the
    same file for --baseline and --save-baseline a build server begins with none, and goes on by itself.

    Exit code: 0 good, 1 a limit is not kept (with the numbers), 2 wrong usage, or a file cannot be read.
    """
    try:
        made, sent = ledger_of(run / LEDGER)
        share, threshold = promised(SERVICE, inventory)
        limits = Limits(
            availability if availability is not None else share or 0.99,
            p95 / 1000 if p95 is not None else threshold or 0.5,
            error_rate,
            least,
        )
        checks, now = judge(sent, limits), baseline_of(made, sent)
        if baseline and sent and (baseline != save_baseline or baseline.exists()):  # else this is the first
            earlier = read_baselines(baseline)
            if baseline == save_baseline:  # it will begin anew with this run
                earlier = [each for each in earlier if each.scenario == made.scenario]
            checks += compare_with_all(now, earlier, slower_by)
        good = all(check.passed for check in checks)
        verdict = {"run": made.id, "ok": good, "failures": [check.failure for check in checks if not check.passed]}
        verdict |= {"p95": limits.p95, "checks": [asdict(check) for check in checks]}
        (run / VERDICT).write_text(json.dumps(verdict, indent=2) + "\n")
        cases = [junit.Case(c.name, failure=c.failure, output=f"{c.measured}; {c.limit}; {c.why}") for c in checks]
        junit.write(run / "gate.xml", "watchpost gate", cases)
        if good and save_baseline:
            keep(save_baseline, now)
    except (LedgerError, TargetError, spec.SpecError, OSError, yaml.YAMLError) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        Console(stderr=True).print(f"watchpost gate: {words}", markup=False, soft_wrap=True, highlight=False)
        raise typer.Exit(2) from error
    if as_json:
        sys.stdout.write(json.dumps(verdict, indent=2) + "\n")
    else:
        show(checks, made.id)
    if not good:
        raise typer.Exit(1)


def show(checks: Sequence[Check], run: str) -> None:
    """Print the checks for a person."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a log has no width of its own
    table = Table("Check", "Measured", "Limit", "", "", title=f"Run {run}")
    for check in checks:
        verdict = "[green]kept[/]" if check.passed else "[bold red]not kept[/]"
        table.add_row(check.name, check.measured, check.limit, verdict, check.why)
    console.print(table)
    for check in checks:
        if not check.passed:
            console.print(f"Not delivered: {check.failure}", markup=False, soft_wrap=True)
