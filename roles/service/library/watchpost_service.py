#!/usr/bin/python
"""Ansible module: bring one service to a wanted generation, or leave the last good one running."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_generation import (
    CREDENTIALS,
    Refused,
    ask,
    check,
    content_hash,
    fill,
    places_of,
    replaced,
    write,
)

DOCUMENTATION = r"""
module: watchpost_service
short_description: Bring one systemd service to a wanted generation, or leave the last good one running
description:
  - A I(generation) is everything that decides how a service runs - program version, configuration files, unit and
    credentials. The hash of that content names a directory below C(<config_dir>/<name>/generations).
  - A new generation is written beside the running one, checked by the program that is to run it, switched to, and
    waited for. If it does not become ready, the last good generation is put back and the task fails with the
    journal's tail.
  - An interrupted run leaves the record of the last good generation alone, so that a later run knows the way back.
options:
  name: {description: Component's key in the registry., type: str, required: true}
  unit: {description: Unit's name with its suffix., type: str, required: true}
  unit_content: {description: Text of the unit file., type: str, required: true}
  user: {description: System user that the service runs as., type: str, required: true}
  version: {description: Version of the program; empty for one that a Debian package brings., type: str, default: ""}
  archive: {description: Archive on this host; needed while the version is not unpacked., type: path}
  sha256: {description: SHA-256 of the archive in hex., type: str, default: ""}
  install: {description: Command run once in a fresh version directory., type: list, elements: str, default: []}
  files: {description: Configuration files as relative path -> text., type: dict, default: {}}
  credentials: {description: Secrets as name -> value; root's alone. Never shown., type: dict, default: {}}
  environment: {description: Environment of the checks., type: dict, default: {}}
  checks: {description: Commands that must exit 0 with the candidate., type: list, elements: list, default: []}
  reloads: {description: Whether the unit takes over changed configuration files by reload., type: bool, default: false}
  ready: {description: "Where to ask whether the service is ready: url, status, contains.", type: dict, required: true}
  ready_timeout: {description: Seconds a start may take., type: int, default: 60}
  certificate: {description: The service's certificate; its change means a restart., type: path, required: true}
  ca: {description: CA that signs the service's certificate., type: path, required: true}
  client_certificate: {description: Certificate that the readiness request shows., type: path, required: true}
  client_key: {description: Key of client_certificate., type: path, required: true}
  config_dir: {description: Root of configurations., type: path, default: /etc/watchpost}
  install_dir: {description: Root of programs., type: path, default: /opt/watchpost}
  keep: {description: How many earlier generations are kept., type: int, default: 3}
author: Watchpost
"""

RETURN = r"""
generation: {description: Hash of the generation that runs now., type: str, returned: always}
version_dir: {description: Directory of the program., type: str, returned: always}
actions: {description: What was done, type: list, returned: always}
"""

JOURNAL_LINES = 30


class NotReady(Exception):
    """The service was started but does not do its work; the message says how that was seen."""


def run(
    *command: str,
    timeout: float = 120,
    check: bool = True,
    **options: Any,  # noqa: ANN401 - passed on to subprocess.run
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it with its output as text."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise Refused(f"`{shlex.join(command)}` exited {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


def point(link: Path, target: Path) -> None:
    """Make `link` point to `target` in one step."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Service:
    """One service on this host: its generations, its unit, its readiness."""

    def __init__(self, p: dict[str, Any]) -> None:
        """Work out from the module's parameters what is wanted."""
        self.p = p
        self.unit: str = p["unit"]
        self.home = Path(p["config_dir"]) / p["name"]
        self.current = self.home / "current"
        self.programs = Path(p["install_dir"]) / p["name"]
        self.program_link = self.programs / "current"
        self.unit_path = Path("/etc/systemd/system") / self.unit
        # The digest is part of the name: the same version from another source is another program.
        self.version_dir = self.programs / f"{p['version']}-{p['sha256'][:8]}" if p["version"] else None
        self.wanted = content_hash(str(self.version_dir), p["files"], p["unit_content"], p["credentials"])
        self.actions: list[str] = []
        self.ready: dict[str, Any] = p["ready"]

    # ---- what is wanted, and what is there -----------------------------------------------------------------------

    def generation_dir(self, generation: str) -> Path:
        """Return the directory of a generation."""
        return self.home / "generations" / generation

    def record(self) -> dict[str, str]:
        """Return what was last seen to work: the good generation, and the certificate it was started with."""
        try:
            return dict(json.loads((self.home / "good.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def certificate_digest(self) -> str:
        """Return the digest of the service's certificate, or an empty text without one."""
        path = Path(self.p["certificate"])
        return sha256(path) if path.exists() else ""

    def ids(self) -> tuple[int, int]:
        """Return uid and gid of the service's user."""
        try:
            user = pwd.getpwnam(self.p["user"])
        except KeyError:
            raise Refused(f"the user {self.p['user']} does not exist; the role `host` makes it") from None
        return user.pw_uid, user.pw_gid

    def show(self, *names: str) -> dict[str, str]:
        """Return properties of the unit."""
        answer = run("systemctl", "show", self.unit, *(f"--property={name}" for name in names)).stdout
        return dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)

    def intact(self, generation: str) -> bool:
        """Whether a generation on disk is byte for byte what is wanted, and is what the links point to."""
        home = self.generation_dir(generation)
        wanted = {home / path: text for path, text in self.p["files"].items()}
        wanted |= {home / CREDENTIALS / name: value for name, value in self.p["credentials"].items()}
        wanted |= {self.unit_path: self.p["unit_content"]}
        try:
            same = all(path.read_text(encoding="utf-8") == text for path, text in wanted.items())
            linked = self.current.resolve() == home.resolve()
            if self.version_dir:
                linked = linked and self.program_link.resolve() == self.version_dir.resolve()
        except (OSError, UnicodeDecodeError):
            return False
        return same and linked

    # ---- steps ---------------------------------------------------------------------------------------------------

    def installed(self) -> bool:
        """Whether the wanted version of the program is completely on this host."""
        if self.version_dir is None:
            return True
        marker = self.version_dir / ".complete"
        return marker.exists() and marker.read_text() == self.p["sha256"]

    def install(self) -> None:
        """Unpack the archive, if its SHA-256 is the recorded one."""
        archive = Path(self.p["archive"] or "")
        if self.version_dir is None or not archive.is_file():
            raise Refused(f"{self.version_dir} is not complete and there is no archive at {archive}")
        if (found := sha256(archive)) != self.p["sha256"]:
            raise Refused(f"{archive} has SHA-256 {found}, but {self.p['sha256']} is recorded for it: not unpacked")
        # Unpacked under its final name, since a program's own files may hold their path; `.complete` makes it count.
        shutil.rmtree(self.version_dir, ignore_errors=True)
        self.version_dir.mkdir(parents=True, mode=0o755)
        for directory in (self.programs, self.version_dir):
            directory.chmod(0o755)
        with tarfile.open(archive) as tar:
            # Debian 12's Python knows no filters, later ones ask for one.
            how = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
            tar.extractall(self.version_dir, **how)  # noqa: S202 - the archive is the one whose digest is recorded
        if self.p["install"]:
            command = [fill(word, self.places()) for word in self.p["install"]]
            # The daemon's user must be able to read what it is to run, whatever umask Ansible has.
            run(*command, timeout=600, cwd=self.version_dir, umask=0o022)
        (self.version_dir / ".complete").write_text(self.p["sha256"])
        archive.unlink()
        self.actions.append(f"unpacked {self.version_dir}")

    def places(self, home: Path | None = None) -> dict[str, str]:
        """Return the places that a command may name, those of the candidate where one is given."""
        return places_of(self.p["name"], self.version_dir, home, Path(self.p["certificate"]).parent)

    def stage(self, home: Path) -> None:
        """Write the wanted generation into a directory."""
        _, gid = self.ids()
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, mode=0o750)
        for directory in (self.home, home.parent):
            directory.chmod(0o755)
        for path, text in self.p["files"].items():
            write(home / path, text, 0o750 if text.startswith("#!") else 0o640, 0, gid)  # a script is run, not read
        for directory in (home, *(path for path in home.rglob("*") if path.is_dir())):
            os.chown(directory, 0, gid)
            directory.chmod(0o750)
        secrets = home / CREDENTIALS
        secrets.mkdir(mode=0o700)
        for name, value in self.p["credentials"].items():
            write(secrets / name, value, 0o600)
        write(home / "unit", self.p["unit_content"], 0o600)
        write(home / "program", str(self.version_dir or ""), 0o600)
        write(home / "ready.json", json.dumps(self.p["ready"]), 0o600)
        how = {"checks": self.p["checks"], "environment": self.p["environment"]}
        write(home / "checks.json", json.dumps(how), 0o600)

    def check(self, home: Path) -> None:
        """Have the candidate judged by the program that is to run it."""
        p = self.p
        try:
            check(p["checks"], p["environment"], p["credentials"], self.places(home), self.ids())
        except Refused as refused:
            raise Refused(
                f"{p['name']} does not accept its new configuration, and what runs was left alone: {refused}"
            ) from None

    def activate(self, generation: str) -> bool:
        """Point links and unit to a generation; return whether anything but configuration files differs from before."""
        home = self.generation_dir(generation)
        unit = (home / "unit").read_text()
        program = (home / "program").read_text()
        needs_restart = not self.unit_path.exists() or self.unit_path.read_text() != unit
        if program:
            needs_restart = needs_restart or str(self.program_link.resolve()) != program
            point(self.program_link, Path(program))
        secrets = {path.name: path.read_text() for path in (home / CREDENTIALS).iterdir()}
        before = self.current / CREDENTIALS
        held = {path.name: path.read_text() for path in before.iterdir()} if before.is_dir() else None
        needs_restart = needs_restart or held != secrets
        point(self.current, home)
        if not self.unit_path.exists() or self.unit_path.read_text() != unit:
            write(self.unit_path, unit, 0o644)
            run("systemctl", "daemon-reload")
        run("systemctl", "enable", "--quiet", self.unit)
        return needs_restart

    def start(self, *, reload: bool = False) -> None:
        """(Re)start or reload the unit and wait until it answers."""
        verb = "reload" if reload else "restart"
        run("systemctl", "reset-failed", self.unit, check=False)  # it may have no failure to forget
        self.since = time.time()
        done = run("systemctl", verb, self.unit, check=False, timeout=self.p["ready_timeout"] + 120)
        self.actions.append(f"{verb}ed")
        if done.returncode:
            raise NotReady(f"`systemctl {verb} {self.unit}` failed: {done.stderr.strip()}")
        self.wait()

    def wait(self) -> None:
        """Wait until the service answers as ready; raise NotReady when it will not."""
        deadline = time.monotonic() + self.p["ready_timeout"]
        restarts = int(self.show("NRestarts").get("NRestarts") or 0)
        reason = ""
        while time.monotonic() < deadline:
            seen = self.show("ActiveState", "SubState", "NRestarts", "MainPID")
            if seen["ActiveState"] in ("failed", "inactive"):
                raise NotReady(f"the unit is {seen['ActiveState']} ({seen['SubState']})")
            if int(seen.get("NRestarts") or 0) >= restarts + 3:
                raise NotReady("the program ends again and again")
            reason = self.ask()
            if not reason:
                # Not answered by a process that an earlier deploy left behind.
                exe = Path(f"/proc/{seen['MainPID']}/exe")
                with contextlib.suppress(OSError):
                    running, wanted = exe.resolve(), self.program_link.resolve()
                    if running.is_relative_to(self.programs) and not running.is_relative_to(wanted):
                        raise NotReady(f"the process that answers is {running}, not of {wanted}")
                return
            time.sleep(0.2)  # between two questions
        raise NotReady(f"not ready after {self.p['ready_timeout']} s: {reason}")

    def ask(self) -> str:
        """Ask once whether the service is ready; return why not, or an empty text."""
        return ask(self.ready, self.p["ca"], self.p["client_certificate"], self.p["client_key"])

    def journal(self) -> str:
        """Return what the unit said since it was last started."""
        since = f"--since=@{int(self.since)}"
        tail = ("-n", str(JOURNAL_LINES), "-o", "cat", "--no-pager")
        return run("journalctl", "-u", self.unit, since, *tail, check=False).stdout

    def mark_good(self) -> None:
        """Record that what runs now works, and forget generations and versions that nothing needs."""
        good = {"generation": self.wanted, "certificate": self.certificate_digest()}
        write(self.home / "good.json", json.dumps(good) + "\n", 0o644)
        generations = sorted((self.home / "generations").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        others = [path for path in generations if path.name != self.wanted]
        for path in others[self.p["keep"] :]:
            shutil.rmtree(path)
        needed = {file.read_text() for file in self.home.glob("generations/*/program")}
        if self.programs.is_dir():
            for path in self.programs.iterdir():
                if path.is_dir() and not path.is_symlink() and str(path) not in needed:
                    shutil.rmtree(path)

    # ---- the whole -----------------------------------------------------------------------------------------------

    def needed(self) -> str:
        """Return why something has to be done, or an empty text."""
        good = self.record()
        if good.get("generation") != self.wanted:
            return "the generation is new"
        if not self.installed() or not self.intact(self.wanted):
            return "files on the host differ from the generation"
        if good.get("certificate") != self.certificate_digest():
            return "the certificate was renewed"
        seen = self.show("ActiveState", "UnitFileState", "NeedDaemonReload")
        if seen["ActiveState"] not in ("active", "reloading") or seen["UnitFileState"] != "enabled":
            return f"the unit is {seen['ActiveState']} and {seen['UnitFileState'] or 'unknown'}"
        if seen["NeedDaemonReload"] == "yes":
            return "systemd has not read the present unit"
        if gone := replaced(self.unit):
            return f"what it runs was replaced on disk: {', '.join(gone)}"
        return ""

    def check_only(self) -> None:
        """In check mode: judge the candidate in a place of its own, where the program is already there to do so."""
        if self.installed() and self.version_dir is not None and self.certificate_digest():
            with tempfile.TemporaryDirectory(prefix="watchpost-check.", dir="/run") as name:
                Path(name).chmod(0o755)
                self.stage(Path(name) / "candidate")
                self.check(Path(name) / "candidate")

    def deploy(self) -> None:
        """Bring the wanted generation up, or put the last good one back and raise NotReady."""
        if not self.installed():
            self.install()
        if not self.intact(self.wanted) or not self.generation_dir(self.wanted).is_dir():
            # Staged beside its place: a generation's directory is complete or absent.
            staging = self.home / "generations" / f".{self.wanted}"
            self.stage(staging)
            try:
                self.check(staging)
            except Refused:
                shutil.rmtree(staging)
                raise
            shutil.rmtree(self.generation_dir(self.wanted), ignore_errors=True)
            staging.rename(self.generation_dir(self.wanted))
        good = self.record()
        was_good = good.get("generation") == self.wanted
        # A reload is enough only from the good generation as it was recorded, when nothing but its files changes, and
        # when its program and libraries are those that are on disk.
        settled = (
            self.current.resolve().name == good.get("generation")
            and good.get("certificate") == self.certificate_digest()
            and self.show("ActiveState")["ActiveState"] == "active"
            and not replaced(self.unit)
        )
        restart = self.activate(self.wanted)
        try:
            self.start(reload=self.p["reloads"] and settled and not restart)
        except NotReady as error:
            journal = self.journal()
            way_back = good.get("generation", "")
            if was_good or not way_back or not self.generation_dir(way_back).is_dir():
                if not way_back:
                    run(
                        "systemctl", "disable", "--now", "--quiet", self.unit, check=False
                    )  # best effort on the way out
                raise NotReady(f"{error}. There is no other good generation to go back to.\n{journal}") from None
            self.activate(way_back)
            # Judged as itself: the old version is not asked to answer as the new one.
            self.ready = json.loads((self.generation_dir(way_back) / "ready.json").read_text())
            try:
                self.start()
            except NotReady as second:
                raise NotReady(
                    f"{error}. Generation {way_back} was put back but is not ready either: {second}\n{journal}"
                ) from None
            raise NotReady(f"{error}. Generation {way_back} was put back and is ready again.\n{journal}") from None
        self.mark_good()


def main() -> None:
    """Run the module."""
    option = dict
    module = AnsibleModule(
        argument_spec={
            "name": option(type="str", required=True),
            "unit": option(type="str", required=True),
            "unit_content": option(type="str", required=True),
            "user": option(type="str", required=True),
            "version": option(type="str", default=""),
            "archive": option(type="path"),
            "sha256": option(type="str", default=""),
            "install": option(type="list", elements="str", default=[]),
            "files": option(type="dict", default={}),
            "credentials": option(type="dict", default={}, no_log=True),
            "environment": option(type="dict", default={}),
            "checks": option(type="list", elements="list", default=[]),
            "reloads": option(type="bool", default=False),
            "ready": option(type="dict", required=True),
            "ready_timeout": option(type="int", default=60),
            "certificate": option(type="path", required=True),
            "ca": option(type="path", required=True),
            "client_certificate": option(type="path", required=True),
            "client_key": option(type="path", required=True, no_log=False),  # a path
            "config_dir": option(type="path", default="/etc/watchpost"),
            "install_dir": option(type="path", default="/opt/watchpost"),
            "keep": option(type="int", default=3),
        },
        supports_check_mode=True,
    )
    for name in ("files", "credentials", "environment"):
        module.params[name] = {key: str(value) for key, value in module.params[name].items()}
    service = Service(module.params)
    result: dict[str, Any] = {"generation": service.wanted, "version_dir": str(service.version_dir or "")}
    try:
        why = service.needed()
        result["changed"] = bool(why)
        if module._diff and why:
            result["diff"] = [
                {
                    "before_header": f"{service.current}/{path}",
                    "after_header": f"{service.current}/{path}",
                    "before": (service.current / path).read_text() if (service.current / path).exists() else "",
                    "after": text,
                }
                for path, text in module.params["files"].items()
            ]
        if module.check_mode:
            if why:
                service.check_only()
        elif why:
            service.deploy()
        else:
            service.since = time.time() - 60
            service.wait()
    except Refused as error:
        module.fail_json(msg=str(error), **result)
    except NotReady as error:
        module.fail_json(msg=f"{module.params['unit']}: {error}", **result)
    module.exit_json(why=why, actions=service.actions, **result)


if __name__ == "__main__":
    main()
