#!/usr/bin/python
"""Look at an installed appliance: all that `watchpost doctor` judges of a host, in one go. Changes nothing."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pwd
import re
import shlex
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_generation import (
    CREDENTIALS,
    OWN_FILES,
    STATE,
    Refused,
    ask,
    check,
    content_hash,
    places_of,
    read_credentials,
    read_files,
    replaced,
)

DOCUMENTATION = """
module: watchpost_doctor
short_description: Look at an installed appliance, for watchpost doctor to judge
description:
  - What is found is returned as it is; watchpost/doctor.py says what of it is a fault. Nothing is changed.
options:
  components: {description: Keys in the registry of what this host runs., type: list, elements: str, required: true}
  endpoints: {description: The registry of endpoints., type: dict, required: true}
  names: {description: "Host names that must resolve: name -> the variable that names it.", type: dict, required: true}
  asker: {description: Whose certificate is shown when the services are asked., type: str, required: true}
  config_dir: {description: Root of configurations., type: path, required: true}
  install_dir: {description: Root of programs., type: path, required: true}
  pki_dir: {description: Root of certificates., type: path, required: true}
"""

SECONDS = 5  # that an answer may take
JOURNAL_LINES = 4
DEPTH = 3  # directories below a service's state that are looked at: below lie thousands of blocks and chunks
PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,Type,NRestarts,MainPID,UnitFileState,NeedDaemonReload,Environment,"
    "StateChangeTimestamp,ActiveEnterTimestampMonotonic"
)
#: Asked of Prometheus: what waits in each exporter's queue, in bytes; what it delivered, in items.
QUEUES = {
    "waiting": "min by (exporter) (min_over_time(otelcol_exporter_queue_size{job='otel_collector'}[1m]) "
    "and count_over_time(otelcol_exporter_queue_size{job='otel_collector'}[1m]) > 2)",
    "capacity": "max by (exporter) (otelcol_exporter_queue_capacity{job='otel_collector'})",
    "sent": "sum by (exporter) (increase({__name__=~'otelcol_exporter_sent_.+_total',job='otel_collector'}[1m]))",
}
# Run as a service's user: prints which of these files it cannot read, and which of these places it cannot write.
# What has gone meanwhile is no fault (SQLite's journal lasts as long as a transaction), nor is a file that the service
# itself has made read-only.
ACCESS = """
import json, os, sys
def readable(path):
    try:
        open(path, "rb").close()
        return True
    except OSError:
        return False
def writable(path):
    if os.access(path, os.W_OK):
        return True
    try:
        return os.stat(path).st_uid == os.getuid() and os.path.isfile(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
read, write = json.load(sys.stdin)
print(json.dumps([[p for p in read if not readable(p)], [p for p in write if not writable(p)]]))
"""


def run(*command: str, **options: Any) -> str:  # noqa: ANN401 - passed on to subprocess.run
    """Return what a command prints; whether it succeeds is seen by what it says."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options).stdout


def unit_of(component: str) -> str:
    """Return a component's unit."""
    return f"watchpost-{component.replace('_', '-')}.service"


class Host:
    """The host, as the module's parameters say it should be."""

    def __init__(self, p: dict[str, Any]) -> None:
        """Keep the parameters."""
        self.p = p
        self.ca = f"{p['pki_dir']}/ca.crt"
        self.identity = (f"{p['pki_dir']}/{p['asker']}/tls.crt", f"{p['pki_dir']}/{p['asker']}/tls.key")

    def look(self) -> dict[str, Any]:
        """Look at everything, several things at a time: most of it is waiting."""
        units = self.units()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            names = {name: pool.submit(resolves, name) for name in self.p["names"]}
            components = {
                name: pool.submit(self.component, name, units[unit_of(name)].get("MainPID", "0"))
                for name in self.p["components"]
            }
            queues = pool.submit(self.queues) if "prometheus" in self.p["components"] else None
            return {
                "units": units,
                "names": {
                    name: {"error": found.result(), "variable": self.p["names"][name]} if found.result() else {}
                    for name, found in names.items()
                },
                "components": {name: found.result() for name, found in components.items()},
                "queues": queues.result() if queues else {},
                "exporters": exporters() if "otel_collector" in self.p["components"] else {},
                "stopped": disk_guard(self.p["config_dir"]),
                "disks": disks(["/", "/opt", "/var", "/var/log", STATE, *Path(STATE).glob("*")]),
            }

    # ---- systemd ---------------------------------------------------------------------------------------------------

    def units(self) -> dict[str, dict[str, Any]]:
        """Return the state of every unit of Watchpost that is installed or should be.

        Without those of components that the inventory has taken from this host: they may be there, stopped.
        """
        listed = run("systemctl", "list-unit-files", "--no-legend", "--plain", "watchpost*").splitlines()
        wanted = {line.split()[0] for line in listed if line.strip()} | {unit_of(c) for c in self.p["components"]}
        wanted -= {unit_of(c) for c in self.p["endpoints"] if c not in self.p["components"]}
        shown = run("systemctl", "show", "--timestamp=unix", f"--property={PROPERTIES}", *sorted(wanted))
        found = {}
        for block in shown.split("\n\n"):
            unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            environment = dict(word.split("=", 1) for word in shlex.split(unit.pop("Environment", "")) if "=" in word)
            unit["database"] = environment.get("TASKBOARD_DATABASE_URL", "")
            active_us = int(unit["ActiveEnterTimestampMonotonic"] or 0)
            unit["active_seconds"] = time.clock_gettime(time.CLOCK_MONOTONIC) - active_us / 1e6
            if unit["ActiveState"] != "active" or (int(unit.get("NRestarts") or 0) and unit["active_seconds"] < 60):
                tail = ("-n", str(JOURNAL_LINES), "-o", "cat", "--no-pager")
                unit["journal"] = run("journalctl", "-u", unit["Id"], *tail).strip()
            found[unit["Id"]] = unit
        return found

    # ---- one component ---------------------------------------------------------------------------------------------

    def component(self, name: str, pid: str) -> dict[str, Any]:
        """Return what there is of a component: its generation, its program, what it shows and answers."""
        home = Path(self.p["config_dir"]) / name
        current = home / "current"
        found: dict[str, Any] = {"generation": "", "good": "", "altered": [], "refused": "", "not_ready": ""}
        found |= {"access": self.access(name, current), "process": self.process(name, pid)}
        try:
            found["generation"] = current.resolve(strict=True).name
            found["switched"] = current.lstat().st_mtime
            good = json.loads((home / "good.json").read_text())
            found["good"] = good["generation"]
            found["altered"] = self.altered(name, current)
            found["not_ready"] = ask(json.loads((current / "ready.json").read_text()), self.ca, *self.identity)
        except (OSError, ValueError, KeyError) as error:
            found["incomplete"] = str(error)
            return found
        if found["altered"]:
            found["refused"] = self.refused(name, current)
        found["served"] = {
            endpoint: self.served(name, endpoint, where)
            for endpoint, where in self.p["endpoints"][name].items()
            if where["scheme"] in ("https", "grpcs")
        }
        return found

    def altered(self, name: str, current: Path) -> list[str]:
        """Return what is not as it was when the program accepted it: the generation's hash tells."""
        program = (current / "program").read_text()
        link = Path(self.p["install_dir"]) / name / "current"
        out = []
        if program and str(link.resolve()) != program:
            out.append(f"{link} leads to {link.resolve()}, but {program} was deployed")
        unit = Path("/etc/systemd/system", unit_of(name))
        deployed = (current / "unit").read_text()
        if not unit.exists() or unit.read_text() != deployed:
            out.append(f"{unit} is not the one that was deployed")
        digest = content_hash(program or "None", read_files(current), deployed, read_credentials(current))
        if digest != current.resolve().name:
            newest = max(read_files(current), key=lambda file: (current / file).stat().st_mtime, default="")
            out.append(f"files in {current} are not those that were deployed; {newest} was changed last")
        return out

    def refused(self, name: str, current: Path) -> str:
        """Have the program that is installed judge the configuration that is there; return its words, or nothing."""
        try:
            how = json.loads((current / "checks.json").read_text())
        except OSError:
            return ""  # deployed before checks were kept: nothing can be said
        user = pwd.getpwnam(unit_of(name).removesuffix(".service"))
        program = (Path(self.p["install_dir"]) / name / "current").resolve()
        where = places_of(name, program, current.resolve(), Path(self.p["pki_dir"]) / name)
        try:
            check(how["checks"], how["environment"], read_credentials(current), where, (user.pw_uid, user.pw_gid))
        except Refused as refused:
            return str(refused)
        return ""

    def process(self, name: str, pid: str) -> dict[str, Any]:
        """Return which version's files the running process has in memory, and what of it was replaced on disk."""
        programs = Path(self.p["install_dir"]) / name
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return {}
        versions = sorted(set(re.findall(rf"{re.escape(str(programs))}/[^/\s]+", maps)))
        current = str((programs / "current").resolve())
        return {"pid": pid, "versions": versions, "current": current, "replaced": replaced(unit_of(name))}

    def access(self, name: str, current: Path) -> list[str]:
        """Return what a service may not read or write though it must, and what others may read though they must not."""
        try:
            user = pwd.getpwnam(unit_of(name).removesuffix(".service"))
        except KeyError:
            return [f"the user {unit_of(name).removesuffix('.service')} does not exist"]
        read = [str(path) for path in current.rglob("*") if path.is_file() and path.name not in OWN_FILES]
        read = [path for path in read if f"/{CREDENTIALS}/" not in path] + [self.ca]
        read += [str(path) for path in Path(self.p["pki_dir"], name).glob("*")]
        state = Path(STATE, name)
        write = [str(path) for path in places_below(state)]
        question = json.dumps([read, write])
        ids = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        answer = run(sys.executable, "-IS", "-c", ACCESS, input=question, cwd="/", **ids)
        unread, unwritten = json.loads(answer)
        out = [f"{path} cannot be read by {user.pw_name}, {mode(path)}" for path in unread]
        out += [f"{path} cannot be written by {user.pw_name}, {mode(path)}" for path in unwritten]
        for path in (current / CREDENTIALS).glob("*"):
            if path.stat().st_mode & 0o077 or path.stat().st_uid:
                out.append(f"{path} holds a secret and can be read by others than root, {mode(path)}")
        return out

    def served(self, name: str, endpoint: str, where: dict[str, Any]) -> str:
        """Return why an endpoint does not show the certificate that lies on disk; nothing when it does."""
        # At 127.0.0.1 the gateway shows its own identity, and at every other address what it shows to outside.
        outside = name == "gateway" and where["auth"] == "public"
        file = Path(self.p["pki_dir"], name, "public.crt" if outside else "tls.crt")
        address = "127.0.0.2" if outside else "127.0.0.1"
        try:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is compared, whatever it is
            context.load_cert_chain(*self.identity)
            if where["scheme"] == "grpcs":
                context.set_alpn_protocols(["h2"])
            with (
                socket.create_connection((address, where["port"]), SECONDS) as plain,
                context.wrap_socket(plain) as connection,
            ):
                shown = connection.getpeercert(binary_form=True) or b""
        except OSError as error:
            return f"port {where['port']} ({name}.{endpoint}): {error}"
        try:
            on_disk = ssl.PEM_cert_to_DER_cert(re.findall("-+BEGIN[^#]*?-+END[^-]*-+", file.read_text())[0])
        except (OSError, ValueError, IndexError):
            return ""  # what is on disk is judged by another
        if hashlib.sha256(shown).digest() != hashlib.sha256(on_disk).digest():
            return f"stale: port {where['port']} ({name}.{endpoint}) shows another certificate than {file}"
        return ""

    # ---- queues ----------------------------------------------------------------------------------------------------

    def queues(self) -> dict[str, dict[str, float]]:
        """Return what Prometheus knows of the Collector's queues: exporter -> figures; nothing when it is silent."""
        found: dict[str, dict[str, float]] = {}
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.load_cert_chain(*self.identity)
            base = f"https://127.0.0.1:{self.p['endpoints']['prometheus']['http']['port']}/api/v1/query?"
            for figure, query in QUEUES.items():
                url = base + urllib.parse.urlencode({"query": query})
                opened = urllib.request.urlopen(url, timeout=SECONDS, context=context)  # noqa: S310 - https, see base
                with opened as answer:
                    for series in json.load(answer)["data"]["result"]:
                        exporter = series["metric"].get("exporter", "")
                        found.setdefault(exporter, {})[figure] = float(series["value"][1])
        except (OSError, ValueError, KeyError):
            return {}
        return found


def exporters() -> dict[str, dict[str, str]]:
    """Return what the Collector's exporters said last, in the last two minutes: exporter -> errors.

    `retried` is why a delivery failed, to be tried again; `given_up` why data were dropped for good. What a stop of the
    Collector interrupts it calls dropped too, though it is in the queue.
    """
    found: dict[str, dict[str, str]] = {}
    unit = unit_of("otel_collector")
    for line in run("journalctl", "-u", unit, "--since=-2min", "-o", "cat", "--no-pager").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or entry.get("otelcol.component.kind") != "exporter" or "error" not in entry:
            continue
        dropped = "Dropping data" in entry.get("msg", "") and "shutdown" not in entry["error"]
        errors = found.setdefault(entry.get("otelcol.component.id", ""), {"retried": "", "given_up": ""})
        errors["given_up" if dropped else "retried"] = str(entry["error"])[:300]
    return found


def places_below(state: Path) -> list[Path]:
    """Return a directory and what lies in it, a few levels deep; without `lost+found`, which a disk of its own has."""
    found = [state] if state.exists() else []
    for parent, directories, files in os.walk(state):
        if len(Path(parent).relative_to(state).parts) >= DEPTH - 1:
            directories.clear()
        directories[:] = [name for name in directories if name != "lost+found"]
        found += [Path(parent, name) for name in [*directories, *files]]
    return [path for path in found if not path.is_symlink()]


def mode(path: str) -> str:
    """Return owner, group and mode of a path, in words."""
    return "it is " + run("stat", "--format=%U:%G %a", path).strip()


def resolves(name: str) -> str:
    """Return why a host name does not resolve; nothing when it does."""
    try:
        done = subprocess.run(
            ["getent", "ahosts", name], capture_output=True, text=True, timeout=2 * SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer from the name server within {2 * SECONDS} s"
    return "" if done.returncode == 0 else "no such name"


def disk_guard(config_dir: str) -> dict[str, dict[str, Any]]:
    """Return the stores that the disk guard has stopped: name -> its settings, and what is free."""
    try:
        stores = json.loads(Path(config_dir, "disk_guard.json").read_text())["stores"]
        stopped = json.loads(Path("/run/watchpost-disk-guard/stopped.json").read_text())
    except (OSError, ValueError, KeyError):
        return {}  # there is none, or it does not run, which its unit tells
    return {name: {**stores[name], "free": free(stores[name]["state"])} for name in stopped if name in stores}


def free(directory: str) -> int:
    """Return the bytes that are free where a directory lies."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def disks(directories: list[Any]) -> dict[str, dict[str, float]]:
    """Return how full the file systems of these directories are: mount point -> shares of bytes and inodes."""
    found = {}
    for directory in directories:
        place = Path(directory)
        if not place.exists():
            continue
        while not place.is_mount():
            place = place.parent
        status = os.statvfs(place)
        found[str(place)] = {
            "bytes": 1 - status.f_bavail / status.f_blocks if status.f_blocks else 0.0,
            "inodes": 1 - status.f_favail / status.f_files if status.f_files else 0.0,
        }
    return found


def main() -> None:
    """Read the arguments, look, report."""
    module = AnsibleModule(
        argument_spec={
            "components": {"type": "list", "elements": "str", "required": True},
            "endpoints": {"type": "dict", "required": True},
            "names": {"type": "dict", "required": True},
            "asker": {"type": "str", "required": True},
            "config_dir": {"type": "path", "required": True},
            "install_dir": {"type": "path", "required": True},
            "pki_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if os.geteuid():
        module.fail_json(msg="Ansible is not root on the host; set ansible_user: root or ansible_become: true")
    module.exit_json(changed=False, facts=Host(module.params).look())


if __name__ == "__main__":
    main()
