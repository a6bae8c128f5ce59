"""`watchpost doctor`: find the well-known failures of an installed appliance, and say what to do about each.

`playbooks/doctor.yml` looks at each host, in one go; `judge` says what of that is a fault. Of what follows from a fault
nothing is said: checks have an order, and of a component only the first that finds something is told. Signals come
last, by the links of `watchpost verify`, when nothing else explains that one is missing. Nothing is changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer
from rich.console import Console

from watchpost import verify_target
from watchpost.options import Inventory, Json
from watchpost.project import PROJECT, ansible
from watchpost.verify import LINKS, USER_AGENT, Link, Run, State, askable, follow
from watchpost.verify_grafana import Grafana
from watchpost.verify_target import TargetError, with_remedy

PLAYBOOK = PROJECT / "playbooks" / "doctor.yml"
DOCUMENT = "docs/doctor.md"
#: What is looked for, in the order in which one explains the next.
CHECKS = {
    "variables": "every setting is known and can be meant",
    "host": "memory, operating system, ports",
    "clock": "agrees with this machine's",
    "names": "all that settings name resolve",
    "disk": "room, also for all that may be kept",
    "permissions": "services reach their files, and others do not reach secrets",
    "certificates": "each one valid, its key's, the CA's, for its names, and the one that is shown",
    "configuration": "as it was deployed, or else accepted by the installed program",
    "database": "tasks at an absolute path",
    "versions": "what runs is what was deployed",
    "services": "run, and answer",
    "queues": "are emptied, and nothing is given up",
    "signals": "traces, logs and metrics of a request arrive, each on its own",
}
FULL = 0.9  # share of a file system or a queue: as the alerts DiskAlmostFull and CollectorQueueFull have it
#: What to do about a host that cannot be looked at, by words of the reason.
UNSEEN = {
    "cannot be reached": "let ssh lead there from this machine; ansible_host, ansible_port and ansible_user say where",
    "sudo password": "give it as ansible_become_password, from your Ansible Vault, or in the file that "
    "ANSIBLE_BECOME_PASSWORD_FILE names",
    "interpreter": "install Python 3.11 or newer there, or say by ansible_python_interpreter where it is",
}
RESTARTING = 30  # seconds: what was restarted by itself and has not run for longer is restarting
SITE = "ansible-playbook -i INVENTORY site.yml"


class LookError(Exception):
    """Nothing could be looked at; the message says why."""


@dataclass(frozen=True)
class Finding:
    """A fault: on which host, of what, and what to do."""

    host: str
    check: str
    subject: str  # a component, a unit, a name, or whatever else it is about
    problem: str
    remedy: str
    #: Whether it may be the cause of others. A certificate that is still valid is none, however close its end is.
    explains: bool = True

    @property
    def see(self) -> str:
        """Where more is said about it."""
        return f"{DOCUMENT}#{self.check}"


# --- looking ---


@dataclass
class Looked:
    """What was found on each host, and which hosts could not be looked at."""

    hosts: dict[str, dict[str, Any]]  # host -> the outcomes of the playbook's tasks
    unseen: dict[str, str]  # host -> why not


def look(inventory: str = "") -> Looked:
    """Look at every host of an inventory.

    Raises LookError when none can be looked at: the inventory is not there, has no such host, or cannot be read.
    """
    words = [str(PLAYBOOK)]
    if inventory and not Path(inventory).exists():
        raise LookError(f"--inventory {inventory}: no such file or directory")
    if inventory:
        words += ["-i", str(Path(inventory).absolute())]
    # Its outcome is read from what Ansible prints, as JSON and nothing else.
    environment = os.environ | dict.fromkeys(
        ("ANSIBLE_STDOUT_CALLBACK", "ANSIBLE_CALLBACKS_ENABLED"), "ansible.posix.json"
    )
    try:
        done = subprocess.run(
            ansible("ansible-playbook", *words),
            cwd=PROJECT,
            env=environment,
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        said = json.loads(done.stdout[done.stdout.index("{") :])
    except (OSError, ValueError) as error:
        said = str(error) if isinstance(error, OSError) else (done.stderr or done.stdout).strip()[-1000:]
        raise LookError(f"{PLAYBOOK.name}: {with_remedy(said)}") from error
    return outcomes(said)


def outcomes(said: Mapping[str, Any]) -> Looked:
    """Read what Ansible's JSON callback says: of each host what preflight, pki and doctor have found."""
    looked = Looked({}, {})
    for task in (task for play in said["plays"] for task in play["tasks"]):
        for host, result in task["hosts"].items():
            found = looked.hosts.setdefault(host, {"problems": []})
            if result.get("unreachable") or (result.get("failed") and "problems" not in result):
                looked.unseen[host] = _unseen(task["task"]["name"], result)
            found["problems"] += result.get("problems", [])
            wanted = ("due", "ca_due", "public_due", "public_ends", "facts")
            found.update({key: result[key] for key in wanted if key in result})
    if not looked.hosts:
        raise LookError("the inventory has no host in the groups watchpost and agent")
    for host in [host for host, found in looked.hosts.items() if host in looked.unseen or "facts" not in found]:
        looked.unseen.setdefault(host, "was not looked at")
        del looked.hosts[host]
    return looked


def _unseen(task: str, result: Mapping[str, Any]) -> str:
    """Return why a host cannot be looked at, and what to do where that is known."""
    said = [module.get("msg", "") for module in result.get("failed_modules", {}).values()]
    words = "; ".join(said) or str(result.get("msg", result))
    what = "cannot be reached" if result.get("unreachable") else task
    why = f"{what}: {words.removeprefix('Task failed: ').strip().rstrip('.')}"
    return why + next((f". Do: {remedy}" for words, remedy in UNSEEN.items() if words in why), "")


# --- judging ---


def judge(host: str, found: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with a host, without what follows from something else that is."""
    facts = found["facts"]
    problems = found["problems"]
    if not any(each["generation"] for each in facts["components"].values()):
        refused = [_refused(host, each) for each in problems]
        return [*refused, Finding(host, "services", host, "nothing of Watchpost is deployed here", f"run {SITE}")]
    findings = [
        *(_refused(host, each) for each in problems if not each["component"]),
        *_names(host, facts),
        *_disks(host, facts),
        *_authority(host, found),
    ]
    due = {each["name"]: each["reasons"] for each in found.get("due", [])}
    for name in sorted(facts["components"].keys() | due.keys()):
        own = (_refused(host, each) for each in problems if each["component"] == name)
        findings += first(chain(own, _component(host, name, facts, due.get(name, []))))
    findings += _other_units(host, facts)
    explained = {finding.subject for finding in findings if finding.explains}
    findings += [each for each in _queues(host, facts) if not explained & {each.subject, "otel_collector"}]
    return findings


def first(findings: Iterable[Finding]) -> list[Finding]:
    """Return a component's findings up to the first that may explain those after it."""
    told = []
    for finding in findings:
        told.append(finding)
        if finding.explains:
            break
    return told


def _refused(host: str, problem: Mapping[str, str]) -> Finding:
    """Return what would have preflight refuse the host, as a finding."""
    remedy = {
        "clock": "let systemd-timesyncd or chrony set it: timedatectl set-ntp true",
        "disk": "keep less (group_vars/all/retention.yml), or give the host a larger disk",
        "variables": "correct it in the inventory",
    }.get(problem["check"], "the message says what; a run of site.yml would be refused until then")
    return Finding(host, problem["check"], problem["component"] or host, problem["problem"], remedy)


def _names(host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    for name, why in facts["names"].items():
        if why:
            yield Finding(
                host,
                "names",
                name,
                f"{name} does not resolve on the host: {why['error']} ({why['variable']} names it)",
                f"getent ahosts {name} shows it; correct the name server (/etc/resolv.conf), /etc/hosts or the setting",
            )


def _disks(host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    for place, shares in facts["disks"].items():
        kind, share = max(shares.items(), key=lambda item: item[1])
        if share > FULL:
            yield Finding(
                host,
                "disk",
                place,
                f"the file system at {place} is {share:.0%} full, in {kind}",
                f"see what fills it: du -xsh {place.rstrip('/')}/*; then keep less (group_vars/all/retention.yml)",
            )


def _authority(host: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    if reasons := found.get("ca_due"):
        yield _certificate(host, "ca", reasons)
    if files := found.get("public_due"):
        problem = f"the gateway's {' and '.join(files)} are not what the inventory wants"
        yield Finding(host, "certificates", "gateway", problem, f"{SITE} puts them in place")
    elif ending := found.get("public_ends"):
        remedy = (
            "renew it where you got it, name the new files in pki_gateway_certificate and pki_gateway_key, and run "
        )
        problem = f"the gateway's public certificate is yours, and {ending}"
        yield Finding(host, "certificates", "gateway", problem, remedy + SITE, explains="expired" in ending)


def _certificate(host: str, name: str, reasons: list[str]) -> Finding:
    soon = all(reason.startswith("it expires within") for reason in reasons)
    what = "CA" if name == "ca" else f"certificate of {name}"
    return Finding(
        host,
        "certificates",
        name,
        f"the {what}: {'; '.join(reasons)}",
        f"{SITE} makes it anew and restarts whoever shows it",
        explains=not soon,
    )


def _component(host: str, name: str, facts: Mapping[str, Any], due: list[str]) -> Iterator[Finding]:
    """Yield what is wrong with a component, the causes before what they bring about."""
    found = facts["components"].get(name)
    if found is None:  # an identity of nobody's here, such as the operator's
        if due:
            yield _certificate(host, name, due)
        return
    unit_name = f"watchpost-{name.replace('_', '-')}.service"
    unit = facts["units"].get(unit_name, {})
    restart = f"systemctl restart {unit_name}"
    if not found["generation"]:
        problem = f"{name} was never deployed here, though the inventory wants it: {found['incomplete']}"
        yield Finding(host, "services", name, problem, f"run {SITE}")
    if guard := facts["stopped"].get(name):
        mib = 1024 * 1024
        problem = f"the disk guard has stopped {name}: {guard['free'] / mib:.0f} MiB are free at {guard['state']}"
        remedy = f"make room until {2 * guard['least'] / mib:.0f} MiB are free; then it is started by itself"
        yield Finding(host, "disk", name, problem, remedy)
    if found["access"]:
        others = f", and {len(found['access']) - 1} more" if len(found["access"]) > 1 else ""
        remedy = (
            f"{SITE} puts the modes of its own files back; data below /var/lib/watchpost/{name} must be its user's: "
        )
        remedy += f"chown -R {unit_name.removesuffix('.service')}: /var/lib/watchpost/{name}"
        yield Finding(host, "permissions", name, found["access"][0] + others, remedy)
    if due:
        yield _certificate(host, name, due)
    stale = [why for why in found.get("served", {}).values() if why.startswith("stale: ")]
    if stale:
        problem = "an old certificate is still shown: " + "; ".join(why.removeprefix("stale: ") for why in stale)
        yield Finding(host, "certificates", name, problem, restart)
    if found["refused"]:
        problem = f"the installed {name} does not accept its configuration: {found['refused']}"
        remedy = (
            f"{SITE} puts back what was deployed; a setting of yours must be written for the version that is installed"
        )
        yield Finding(host, "configuration", name, problem, remedy)
    elif found["altered"]:
        # Its program accepts it, so it explains nothing else.
        problem = "changed by hand: " + "; ".join(found["altered"])
        yield Finding(host, "configuration", name, problem, f"{SITE} puts back what was deployed", explains=False)
    database = unit.get("database", "")
    if database.startswith("sqlite:///") and not database.startswith("sqlite:////"):
        problem = f"{unit_name} has the relative database path {database}, which depends on where it is started"
        remedy = "write four slashes: taskboard_database_url: sqlite:////var/lib/watchpost/taskboard/tasks.db; "
        yield Finding(host, "database", name, problem, f"{remedy}systemctl cat {unit_name} shows where it comes from")
    if problem := _version(found, unit):
        yield Finding(host, "versions", name, problem, f"{restart}, or {SITE}")
    if problem := _service(unit_name, found, unit):
        remedy = f"journalctl -u {unit_name} -n 50 has the rest; {SITE} starts it, or says why it cannot"
        yield Finding(host, "services", name, problem, remedy)


def _version(found: Mapping[str, Any], unit: Mapping[str, Any]) -> str:
    """Return why what runs is not what was deployed, or nothing."""
    process = found["process"]
    if process:
        old = [version for version in process["versions"] if version != process["current"]]
        if old:
            return f"process {process['pid']} still runs {', '.join(old)}; deployed is {process['current']}"
        if process["replaced"]:
            return f"{', '.join(process['replaced'])} was replaced since it was started, as by an upgrade of packages"
    if found.get("good", "") != found["generation"]:
        return f"the last deploy did not come to its end: generation {found['generation']} was never seen to be ready"
    changed = int(unit.get("StateChangeTimestamp", "").removeprefix("@") or 0)
    if unit.get("ActiveState") == "active" and changed and changed < int(found.get("switched", 0)):
        return "its configuration was switched, and it was neither restarted nor reloaded since"
    if unit.get("NeedDaemonReload") == "yes":
        return "systemd has not read the present unit file: systemctl daemon-reload"
    if "answers without" in found["not_ready"]:
        return f"an old version answers: {found['not_ready']}"
    return ""


def _service(name: str, found: Mapping[str, Any], unit: Mapping[str, Any]) -> str:
    """Return why a component's unit does not do its work, or nothing."""
    if problem := _unit(name, unit):
        return problem
    if "incomplete" in found:
        return f"{name} was not deployed completely: {found['incomplete']}"
    if found["not_ready"]:
        return f"{name} runs and is not ready: {found['not_ready']}"
    closed = [why for why in found["served"].values() if why]
    return f"{name} runs, and does not answer: {'; '.join(closed)}" if closed else ""


def _unit(name: str, unit: Mapping[str, Any]) -> str:
    """Return why a unit is not up, or nothing."""
    said = f". It says: {unit['journal']}" if unit.get("journal") else ""
    if unit.get("LoadState") != "loaded":
        return f"{name} is {unit.get('LoadState', 'not there')}"
    state, restarts = unit["ActiveState"], int(unit.get("NRestarts") or 0)
    if restarts and (state == "activating" or unit["active_seconds"] < RESTARTING):
        return f"{name} ends again and again; it was restarted {restarts} times{said}"
    if state == "failed" or (unit["UnitFileState"] in ("enabled", "disabled") and state not in ("active", "reloading")):
        return f"{name} is {state}{said}"
    if unit["UnitFileState"] == "disabled":
        return f"{name} is disabled: it will not be started at the next boot"
    return ""


def _other_units(host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with units that are no component's: the target, firewall, guard and timers."""
    own = {f"watchpost-{name.replace('_', '-')}.service" for name in facts["components"]}
    for name, unit in facts["units"].items():
        if name not in own and (problem := _unit(name, unit)):
            yield Finding(host, "services", name, problem, f"systemctl status {name}; {SITE} starts it")


def _queues(host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield queues that are stuck or full, and exporters whose data a store refuses; each is its store's."""
    for exporter in sorted(facts["queues"].keys() | facts["exporters"].keys()):
        figures, errors = facts["queues"].get(exporter, {}), facts["exporters"].get(exporter, {})
        store = exporter.rsplit("/", 1)[-1]
        waiting, capacity, sent = (figures.get(name, 0.0) for name in ("waiting", "capacity", "sent"))
        said = f". The Collector says: {errors['retried']}" if errors.get("retried") else ""
        journal = f"journalctl -u watchpost-otel-collector -n 50 | grep {exporter}"
        if waiting and not sent:
            problem = f"the queue of {exporter} is stuck: {waiting:.0f} bytes wait, and nothing is delivered{said}"
            remedy = f"nothing is lost yet. What is between the Collector and {store}? {journal}"
        elif capacity and waiting > FULL * capacity:
            problem = f"the queue of {exporter} is {waiting / capacity:.0%} full{said}"
            remedy = f"{store} takes less than comes in: see its memory and disk; {journal}"
        elif errors.get("given_up"):
            problem = f"{store} has refused data for good, which are lost: {errors['given_up']}"
            remedy = f"its words say what was wrong with them; who sent them must be corrected. {journal}"
        else:
            continue
        yield Finding(host, "queues", store, problem, remedy)


# --- signals ---


def signals(inventory: str, links: Sequence[Link], timeout: float, console: Console) -> list[Finding]:
    """Make a few requests and return a finding for each link that is missing; `timeout` is in seconds."""
    try:
        target = verify_target.find(inventory)
    except TargetError as error:
        raise LookError(str(error)) from error
    try:
        with target.client(timeout=10, headers={"User-Agent": USER_AGENT}) as client:
            verify_target.reach(client, target)
            run = Run(client, Grafana(client), target.password, count=1)
            with console.status("Looking for the traces, logs and metrics of a few requests"):
                results = follow(links, run, timeout)
    except TargetError as error:
        remedy = "from here it must resolve and its port be open; and this machine must trust its certificate"
        return [Finding(target.url, "signals", "gateway", str(error), remedy)]
    return [
        Finding(target.url, "signals", result.link, f"{result.link} is missing: {result.evidence}", result.hint)
        for result in results
        if result.state is State.MISSING
    ]


# --- the command ---


def doctor(
    inventory: Inventory = "",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds in which telemetry must become visible.")] = 30,
    as_json: Json = False,
) -> None:
    """Find the well-known failures of an appliance, and say what to do about each. Changes nothing.

    Looks at every host of the inventory by Ansible: settings, clock, names, disk, permissions, certificates,
    configuration, the versions that run, services and queues. When nothing of that is wrong it makes a few requests and
    looks for their traces, logs and metrics. What follows from another fault is not told, so put right what is, and run
    it again. docs/doctor.md explains each check.

    Exit code: 0 nothing is wrong, 1 something is (it is named, and what to do), 2 wrong usage, or a host cannot be
    looked at (what is found on the others is told all the same).
    """
    errors = Console(stderr=True, highlight=False)
    began = time.monotonic()
    try:
        with errors.status("Looking at the hosts"):
            looked = look(inventory)
    except LookError as error:
        errors.print(f"watchpost doctor: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    hosts = looked.hosts
    findings = [finding for host, found in hosts.items() for finding in judge(host, found)]
    unlooked = [f"{host}: {why}" for host, why in looked.unseen.items()]
    links: list[Link] = []
    if not unlooked and not any(finding.explains for finding in findings):
        links = askable({component for found in hosts.values() for component in found["facts"]["components"]})
    if links:
        try:
            findings += signals(inventory, links, timeout, errors)
        except LookError as error:
            links, unlooked = [], [f"signals cannot be looked for: {error}"]
    if as_json:
        report = {
            "ok": not findings and not unlooked,
            "hosts": sorted(hosts),
            "unseen": looked.unseen,
            "signals_asked": [link.name for link in links],
            "findings": [asdict(finding) | {"see": finding.see} for finding in findings],
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif hosts:
        _print(findings, sorted(hosts), links, time.monotonic() - began)
    for why in unlooked:
        errors.print(f"watchpost doctor: {why}", markup=False, soft_wrap=True)
    if unlooked:
        raise typer.Exit(2)
    if findings:
        raise typer.Exit(1)


def _print(findings: list[Finding], hosts: list[str], links: list[Link], seconds: float) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for check, sought in CHECKS.items():
        count = sum(finding.check == check for finding in findings)
        if check == "signals" and len(links) < len(LINKS):
            sought = ", ".join(link.name for link in links) + "; the others' components are not here"
        mark = (
            f"[bold red]✗[/] {check:<14} [bold red]{count} found[/]" if count else f"[green]✓[/] {check:<14} {sought}"
        )
        if check == "signals" and not links:
            reason = ": what is found above comes first" if findings else ""
            mark = f"[yellow]·[/] {check:<14} not looked for{reason}"
        console.print(mark)
    for finding in findings:
        where = finding.host if finding.subject == finding.host else f"{finding.subject} on {finding.host}"
        console.print(f"\n[bold red]{finding.check}[/] [bold]{where}[/]")
        console.print(indent(finding.problem, "  "), markup=False)
        console.print(f"  Do: {finding.remedy}", markup=False)
        console.print(f"  See: {finding.see}", markup=False)
    verdict = f"{len(findings)} found" if findings else "Nothing is wrong"
    console.print(f"\n{verdict} on {', '.join(hosts)} ({seconds:.0f} s).", markup=False)
