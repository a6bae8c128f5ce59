"""`watchpost pipeline`: the stages of a delivery in order, each one's words and verdict kept, and a report in any case.

A stage is a command that a person could type; it runs as a process of its own, so that what is proven here is what
people run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from watchpost import verify
from watchpost.delivery import gate
from watchpost.delivery.traffic import LEDGER
from watchpost.options import RUN, RunDirectory
from watchpost.project import PROJECT, ansible

STAGES_FILE = "stages.json"
INVENTORY_FILE = "inventory"  # holds the path of the inventory that the first stage settled on
DOCTOR_FILE = "doctor.json"  # what `watchpost doctor` finds when telemetry is missing
CAUSE_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    stage: str
    passed: bool
    seconds: float
    cause: str = ""  # why it failed, in the words of whoever found out


@dataclass(frozen=True)
class Stage:
    """One step: a command, made for an inventory and a run's directory, and where it says why it failed."""

    name: str
    command: Callable[[str, Path], Sequence[str]]
    cause: Callable[[str, Path], str]


def _own(*words: str) -> list[str]:
    return [sys.executable, "-m", "watchpost", *words]


def _provision(inventory: str, run: Path) -> list[str]:
    """The user's own hosts must answer; without an inventory a test host is made."""
    if inventory:
        return ansible("ansible", "-i", inventory, "watchpost", "-m", "ansible.builtin.ping")
    return _own("testhost", "up", "pipeline")


def last_words(run: Path, stage: str) -> str:
    """Return the end of a stage's log: of Ansible's the last failure, of others the last lines."""
    try:
        lines = (run / f"{stage}.log").read_text(errors="replace").splitlines()
    except OSError:
        return "it could not be started"
    failures = [number for number, line in enumerate(lines) if re.match(r"(fatal|failed): \[|\[ERROR\]", line)]
    if failures:
        lines = lines[failures[-1] :]
        end = next((number for number, line in enumerate(lines) if number and not line.strip()), len(lines))
        lines = lines[:end]
        return "\n".join(lines if len(lines) <= CAUSE_LINES else [*lines[:4], "…", *lines[-(CAUSE_LINES - 5) :]])
    return "\n".join([line for line in lines if line.strip()][-3:])


def _log_of(stage: str) -> Callable[[str, Path], str]:
    return lambda _, run: last_words(run, stage)


def _missing_links(inventory: str, run: Path) -> str:
    """Return which links are missing, and before them what the doctor finds on the hosts that may be the reason."""
    report = read_json(run / verify.VERDICT)
    if not report:
        return last_words(run, "verify")
    with (run / DOCTOR_FILE).open("w") as file:
        subprocess.run(_own("doctor", "--json", "--inventory", inventory), cwd=PROJECT, check=False, stdout=file)
    if found := read_json(run / DOCTOR_FILE):
        reasons = [f"{host}: {why}" for host, why in found["unseen"].items()]
        reasons += [
            f"{each['check']}: {each['problem']}. Do: {each['remedy']}"
            for each in found["findings"]
            if each["check"] != "signals"
        ]
    else:
        reasons = ["The doctor could not look at the hosts; `watchpost doctor` says why."]
    missing = [
        f"{link['link']} is missing: {link['evidence']}. Look at: {link['hint']}"
        for link in report["links"]
        if link["state"] == verify.State.MISSING
    ]
    return "\n".join(reasons + missing)


def _unkept_limits(_: str, run: Path) -> str:
    verdict = read_json(run / gate.VERDICT)
    return "\n".join(verdict["failures"]) if verdict else last_words(run, "gate")


STAGES = (
    Stage("provision", _provision, _log_of("provision")),
    Stage(
        "deploy",
        lambda inventory, _: ansible("ansible-playbook", "-i", inventory, "site.yml"),
        _log_of("deploy"),
    ),
    Stage(
        "traffic",
        lambda inventory, run: _own("traffic", "--inventory", inventory, "--run", str(run)),
        _log_of("traffic"),
    ),
    Stage(
        "verify",
        lambda inventory, run: _own("verify", "--inventory", inventory, "--ledger", str(run / LEDGER)),
        _missing_links,
    ),
    Stage(
        "gate",
        lambda inventory, run: _own("gate", "--inventory", inventory, "--run", str(run)),
        _unkept_limits,
    ),
)
#: All that a run writes, so that a new run does not take an old one's words for its own.
WRITTEN = (
    STAGES_FILE,
    INVENTORY_FILE,
    DOCTOR_FILE,
    LEDGER,
    "report.html",
    "report.md",
    "dashboards/*.json",
    *(f"{stage.name}.{kind}" for stage in STAGES for kind in ("log", "json", "xml")),
)


def read_json(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return what a stage left behind; None when it left nothing that can be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def outcomes(run: Path) -> list[Outcome]:
    """Return how the stages ended so far; nothing when none has run."""
    try:
        return TypeAdapter(list[Outcome]).validate_python(read_json(run / STAGES_FILE) or [])
    except ValidationError:
        return []


def carry_out(stage: Stage, inventory: str, run: Path, console: Console) -> Outcome:
    """Run a stage; its words go to the terminal and into RUN/<stage>.log, its end into RUN/stages.json.

    Until it ends, stages.json says that it did not: so it stays when a build server kills it.
    """
    command = list(stage.command(inventory, run))
    console.print(f"▸ {stage.name}: {' '.join(command)}", markup=False, soft_wrap=True)
    for verdict in (f"{stage.name}.json", f"{stage.name}.xml"):
        (run / verdict).unlink(missing_ok=True)  # of an earlier try
    began = time.monotonic()
    _note(run, Outcome(stage.name, False, 0.0, "it has not come to its end"))
    try:
        code = _tee(command, run / f"{stage.name}.log")
    except OSError as error:
        (run / f"{stage.name}.log").write_text(f"{command[0]}: {error.strerror}\n")
        code = 127
    seconds = time.monotonic() - began
    cause = (stage.cause(inventory, run) or f"exit code {code}") if code else ""
    outcome = Outcome(stage.name, not code, round(seconds, 1), cause)
    _note(run, outcome)
    console.print(f"  {stage.name} {'passed' if outcome.passed else 'FAILED'} after {seconds:.0f} s", markup=False)
    return outcome


def _note(run: Path, outcome: Outcome) -> None:
    done = [other for other in outcomes(run) if other.stage != outcome.stage]
    (run / STAGES_FILE).write_text(json.dumps([asdict(each) for each in [*done, outcome]], indent=2) + "\n")


def _tee(command: Sequence[str], log: Path) -> int:
    """Run a command in the project's directory and return its exit code; all it says is shown and kept."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout  # noqa: S101 - it was asked for
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            file.write(line)
    return process.returncode


def settle_inventory(given: str, run: Path) -> str:
    """Return the inventory of this run: the given one, or else what an earlier stage made."""
    if given:
        return given
    try:
        return (run / INVENTORY_FILE).read_text().strip()
    except OSError:
        return ""


def pipeline(
    stage: Annotated[
        list[str] | None,
        typer.Argument(help=f"Only these: {', '.join(each.name for each in STAGES)}. Default: all, then the report."),
    ] = None,
    inventory: Annotated[
        str,
        typer.Option(envvar="WATCHPOST_INVENTORY", help="Inventory of the appliance; default: a test host is made."),
    ] = "",
    run: RunDirectory = RUN,
) -> None:
    """Deliver: provision, deploy, make traffic, verify telemetry, hold the run against its limits, and report.

    The first stage that fails ends it; the report is written in any case and names the cause. Without --inventory a
    test host named `pipeline` is made (remove it by `watchpost testhost down pipeline`). A build server that wants to
    show each stage calls them one by one, and then `watchpost report`. What a stage's command takes is set by
    environment or configuration file, such as WATCHPOST_GATE_P95=300.

    Exit code: 0 delivered, 1 a stage failed (it is named), 2 wrong usage.
    """
    console = Console(highlight=False, soft_wrap=True)
    known = {each.name: each for each in STAGES}
    if unknown := [name for name in stage or () if name not in known]:
        console.print(f"watchpost pipeline: no stage {unknown[0]}; there are {', '.join(known)}", markup=False)
        raise typer.Exit(2)
    run = run.absolute()
    inventory = str(Path(inventory).absolute()) if inventory else ""  # stages run in the project's directory
    run.mkdir(parents=True, exist_ok=True)
    wanted = [known[name] for name in stage] if stage else list(STAGES)
    if wanted[0] is STAGES[0]:
        for pattern in WRITTEN:
            for file in filter(Path.is_file, run.glob(pattern)):
                file.unlink()
        if inventory:
            (run / INVENTORY_FILE).write_text(inventory + "\n")
    failed = None
    for each in wanted:
        at = settle_inventory(inventory, run)
        if not at and each is not STAGES[0] and each.name != "gate":
            console.print("watchpost pipeline: give --inventory, or run the stage provision first", markup=False)
            raise typer.Exit(2)
        outcome = carry_out(each, at, run, console)
        if each is STAGES[0] and outcome.passed and not at:
            made = (run / f"{each.name}.log").read_text().splitlines()
            (run / INVENTORY_FILE).write_text(made[-1] + "\n")
        if not outcome.passed:
            failed = outcome
            break
    if not stage:
        at = settle_inventory(inventory, run)
        subprocess.run(
            _own("report", "--run", str(run), *(["--inventory", at] if at else [])), cwd=PROJECT, check=False
        )
    if failed:
        console.print(f"Not delivered: {failed.stage} failed.\n{failed.cause}", markup=False)
        raise typer.Exit(1)
