"""`watchpost slo`: check objectives, show their rules, take over those of others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from watchpost.artifacts.errors import ArtifactError
from watchpost.project import PROJECT
from watchpost.slo import openslo, promtool, rules, spec
from watchpost.verify_target import TargetError, variables

FILE = PROJECT / "group_vars/all/slo.yml"
RETENTION_FILE = PROJECT / "group_vars/all/retention.yml"
RETENTION = "prometheus_retention_days"

UNTRIED = (
    "Not tried by Prometheus's own checker: it is not in the artifact store (watchpost artifacts ensure prometheus). "
    "A run of site.yml tries the queries before they go live."
)

app = typer.Typer(
    help="""Service level objectives: which share of a service's events must be good.

They stand in [bold]group_vars/all/slo.yml[/bold], or under watchpost_slos in your inventory, in the place of those
three. Each is a few lines:

    - name: checkout-fast        # the label slo of all that comes of it
      service: checkout          # service.name of its telemetry
      objective: 0.99            # 99 % of the events must be good …
      window: 30d                # … over the last 30 days
      latency: {threshold: 500ms}

[bold]What is good[/bold]
  availability: {}                        requests that were not answered with 5xx
  latency: {threshold: 500ms}             requests that took no longer
  ratio: {good: QUERY, total: QUERY}      whatever you can count, as sum(rate(jobs_done_total[$window]))
  The first two also take of: spans (what the Collector counts of any service's spans), and where: 'http_route="/pay"'.

`check` says what is wrong with them, `rules` shows what Prometheus gets, `import` translates OpenSLO. They take
effect with the next run of site.yml. docs/slo.md explains every formula.

Exit code: 0 good, 1 the objectives are wrong (each wrong field is named), 2 wrong usage, or there is nothing to read.
""",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

File = Annotated[
    Path | None,
    typer.Argument(
        help="A YAML file with watchpost_slos.", show_default="the inventory's, else group_vars/all/slo.yml"
    ),
]
Inventory = Annotated[
    str, typer.Option(envvar="WATCHPOST_INVENTORY", help="Inventory with the objectives, if no FILE is given.")
]


@contextmanager
def _told() -> Iterator[None]:
    """Exit with 1 when objectives are wrong, with 2 when there is nothing that could be read."""
    try:
        yield
    except OSError as error:
        sys.stderr.write(f"watchpost slo: {error.filename} cannot be read: {error.strerror}\n")
        raise typer.Exit(2) from error
    except (TargetError, ArtifactError) as error:
        sys.stderr.write(f"watchpost slo: {error}\n")
        raise typer.Exit(2) from error
    except (spec.SpecError, yaml.YAMLError) as error:
        sys.stderr.write(f"watchpost slo: {error}\n")
        raise typer.Exit(1) from error


def read_file(file: Path = FILE) -> spec.Objectives:
    """Read the objectives of a file. Raises spec.SpecError, OSError or yaml.YAMLError."""
    found: Any = yaml.safe_load(file.read_text())
    if not isinstance(found, dict) or spec.VARIABLES["slos"] not in found:
        raise spec.SpecError([f"{file} has no {spec.VARIABLES['slos']}"])
    return spec.read(found[spec.VARIABLES["slos"]], found.get(spec.VARIABLES["time_scale"], 1))


def read_inventory(inventory: str, *names: str) -> tuple[spec.Objectives, list[Any]]:
    """Read the objectives of an inventory, and further variables of it. Raises spec.SpecError or TargetError."""
    slos, time_scale, *more = variables(inventory, "prometheus", *spec.VARIABLES.values(), *names)
    return spec.read(slos, time_scale), more


@app.command()
def check(
    file: File = None,
    inventory: Inventory = "",
    retention_days: Annotated[
        float | None,
        typer.Option(help="How long Prometheus keeps metrics; default: prometheus_retention_days, as it is set."),
    ] = None,
) -> None:
    """Say what is wrong with objectives, field by field; or, when nothing is, what each comes to.

    Their queries are tried by promtool, if `watchpost artifacts` has got it; a run of site.yml always tries them,
    before they go live.
    """
    with _told():
        if inventory and file is None:
            objectives, [kept] = read_inventory(inventory, RETENTION)
        else:
            objectives, kept = read_file(file or FILE), yaml.safe_load(RETENTION_FILE.read_text())[RETENTION]
        found = rules.problems(objectives, float(kept if retention_days is None else retention_days))
        try:
            found += promtool.problems(objectives)
        except promtool.PromtoolMissing:
            sys.stderr.write(f"{UNTRIED}\n")
        if found:
            raise spec.SpecError(found)
    print(f"Of {file or inventory or FILE.relative_to(PROJECT)}:")
    if objectives.time_scale != 1:
        print(f"For a drill: all windows are {objectives.time_scale:g} times as short.")
    for slo in objectives.slos:
        minutes = slo.budget * slo.window * 24 * 60
        print(
            f"{slo.name}: {slo.objective:.6%} of {slo.service}'s events are good over {slo.window} days".replace(
                "0000%", "%"
            )
        )
        print(f"  budget  {slo.budget:.4%} of the events; if none is good, it is gone in {minutes:.0f} minutes")
        for severity, pairs in rules.burns(slo).items():
            for pair in pairs:
                rate = pair.rate(slo.window)
                share = f"{rate * slo.budget:.2%}"
                print(f"  {severity:7} when over {share} are bad for {pair.long} and {pair.short} ({rate:g} times)")


@app.command("rules")
def show_rules(
    file: File = None,
    inventory: Inventory = "",
    public_url: Annotated[
        str, typer.Option(help="Where people reach the appliance, for links; default: as the inventory says.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON in the place of YAML.")] = False,
) -> None:
    """Print the recording and alerting rules of objectives: a rule file for any Prometheus.

        watchpost slo rules > slo.yml && promtool check rules slo.yml

    A run of site.yml does the same, adds each alert's runbook_url, and has promtool check it before it goes live.
    """
    with _told():
        if inventory and file is None:
            objectives, [address] = read_inventory(inventory, "watchpost_public_url")
        else:
            objectives, address = read_file(file or FILE), "https://localhost"
        groups = {"groups": rules.rule_groups(objectives, public_url or address)}
    print(json.dumps(groups) if as_json else yaml.dump(groups, Dumper=_Plain, sort_keys=False, width=1000), end="")


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="YAML with one or more objects of OpenSLO v1.")],
) -> None:
    """Print the objectives of an OpenSLO v1 file in Watchpost's own form.

    Taken over: SLO with ratioMetric of Prometheus queries (its SLI inline or in the same file), budgetingMethod
    Occurrences, one rolling window of days or weeks, one objective with target or targetPercent. Whatever else
    stands in the file, and would mean something, is refused by name: nothing is dropped silently.

        watchpost slo import theirs.yml > ours.yml && watchpost slo check ours.yml

    Then add the items to watchpost_slos of your inventory. Do not append the file as it is: of two watchpost_slos
    Ansible takes the last, and the first are gone.
    """
    with _told():
        objectives = openslo.convert(file.read_text())
        spec.read(objectives)
    print(yaml.dump({spec.VARIABLES["slos"]: objectives}, Dumper=_Plain, sort_keys=False, width=1000), end="")


class _Plain(yaml.SafeDumper):
    """YAML without anchors: what is the same twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        """Never use an alias."""
        return True
