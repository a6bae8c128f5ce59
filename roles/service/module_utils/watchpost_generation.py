"""A service's generation as it lies on disk, and what can be asked of it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shlex
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHECK_SECONDS = 180
SAID_LINES = 30
#: Lines of /proc/<pid>/maps of code whose file is gone: addresses, permissions, offset, device, inode, path.
REPLACED = re.compile(r"^\S+ ..x\S \S+ \S+ \S+ +(/(?:usr|lib|lib64|bin|sbin|opt)/.+) \(deleted\)$", re.MULTILINE)
#: What a generation's directory holds beside its configuration files.
OWN_FILES = ("unit", "program", "ready.json", "checks.json")
CREDENTIALS = "credentials"
STATE = "/var/lib/watchpost"


class Refused(Exception):
    """The program does not accept a generation, or cannot be asked; the message says why."""


def content_hash(program: str, files: dict[str, str], unit: str, credentials: dict[str, str]) -> str:
    """Return the hash that names a generation: of everything that decides how a service runs.

    `program` is the directory of its version, or "None" for one that a Debian package brings.
    """
    content = {"program": program, "files": files, "unit": unit, "credentials": credentials}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_files(home: Path) -> dict[str, str]:
    """Return the configuration files of a generation's directory: relative path -> text."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and name not in OWN_FILES and not name.startswith(f"{CREDENTIALS}/"):
            found[name] = path.read_bytes().decode(errors="replace")
    return found


def read_credentials(home: Path) -> dict[str, str]:
    """Return the secrets of a generation's directory: name -> value."""
    return {path.name: path.read_bytes().decode(errors="replace") for path in (home / CREDENTIALS).glob("*")}


def write(path: Path, text: str, mode: int, uid: int = 0, gid: int = 0) -> None:
    """Write a file such that no reader sees half of it, and nobody reads it before its mode is set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.chown(temporary, uid, gid)
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def places_of(name: str, version_dir: Path | None, home: Path | None, pki: Path) -> dict[str, str]:
    """Return the places that a service's commands may name: of a version of its program, and of a generation."""
    return {
        "version_dir": str(version_dir),
        "bin": f"{version_dir}/bin",
        "share": f"{version_dir}/share",
        "config": str(home),
        "state": f"{STATE}/{name}",
        "pki": str(pki),
    }


def fill(word: str, places: dict[str, str]) -> str:
    """Fill in the places that a command may name: {bin}, {share}, {config}, {state}, {pki}, {version_dir}."""
    return re.sub(r"\{(\w+)\}", lambda found: places.get(found[1], found[0]), word)


def check(
    checks: list[list[str]],
    environment: dict[str, str],
    credentials: dict[str, str],
    places: dict[str, str],
    ids: tuple[int, int],
) -> None:
    """Have a generation judged by the program that is to run it, as the user who is to run it; raise Refused."""
    uid, gid = ids
    # A private copy of the secrets in memory, where a check looks for them as the service itself does.
    with tempfile.TemporaryDirectory(prefix="watchpost-check.", dir="/run") as scratch:
        secrets = Path(scratch)
        for key, value in credentials.items():
            write(secrets / key, value, 0o400, uid, gid)
        os.chown(secrets, uid, gid)
        known = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "CREDENTIALS_DIRECTORY": scratch,
            "HOME": scratch,
            "TMPDIR": scratch,
            **{key: fill(value, places) for key, value in environment.items()},
        }
        as_user: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}
        for words in checks:
            command = [fill(word, places) for word in words]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=CHECK_SECONDS, cwd=scratch, env=known, **as_user
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Refused(f"`{shlex.join(command)}` cannot be run: {error}") from None
            if done.returncode:
                said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-SAID_LINES:])
                raise Refused(f"`{shlex.join(command)}` exited {done.returncode}. It says:\n{said}")


def replaced(unit: str) -> list[str]:
    """Return the programs and libraries that a unit's processes run and that were replaced on disk since, as by `apt`.

    Only code where packages and Watchpost put it counts. What else is mapped and deleted is meant to be: memory files,
    SQLite's shared memory, code that a program makes for itself.
    """
    answer = subprocess.run(
        ["systemctl", "show", "--property=ControlGroup", "--value", unit], capture_output=True, text=True, check=False
    )
    found = set()
    group = answer.stdout.strip().lstrip("/")
    for processes in Path("/sys/fs/cgroup", group).rglob("cgroup.procs") if group else ():
        with contextlib.suppress(OSError):  # it has ended
            for pid in processes.read_text().split():
                with contextlib.suppress(OSError):
                    found |= set(REPLACED.findall(Path("/proc", pid, "maps").read_text()))
    return sorted(found)


def ask(ready: dict[str, Any], ca: str, certificate: str, key: str) -> str:
    """Ask once whether a service is ready, as its `ready` says (url, status, contains); return why not, or nothing."""
    url = urlsplit(ready["url"])
    try:
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, key)
        connection = http.client.HTTPSConnection(url.hostname or "", url.port or 443, timeout=5, context=context)
        with contextlib.closing(connection):
            connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
            answer = connection.getresponse()
            body = answer.read(65536).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{ready['url']}: {error}"
    if answer.status != int(ready.get("status") or 200):
        return f"{ready['url']} answers {answer.status}: {body.strip()[:200]}"
    if (text := ready.get("contains")) and text not in body:
        return f"{ready['url']} answers without {text!r}: {body.strip()[:200]}"
    return ""
