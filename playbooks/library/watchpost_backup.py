#!/usr/bin/python
"""Put together on a host what cannot be made again, or put it back."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_generation import STATE

DOCUMENTATION = """
module: watchpost_backup
short_description: Put together what cannot be made again, or put it back
description:
  - The archive holds C(state/<component>/…), the state directories of some components, and C(pki/…), the CA and the
    identities that are no component's (the components' are made by C(site.yml)).
  - Of a service that runs, SQLite databases are copied by SQLite's online backup, and the copies are checked.
options:
  action:
    description: >-
      C(save) writes the archive; C(stop_and_save) stops the services before, and takes all files as they are, whole or
      not; C(restore) puts what is in it in the place of what is there, while the services are stopped.
    type: str
    choices: [save, stop_and_save, restore]
    required: true
  archive: {description: The archive on this host; root's alone., type: path, required: true}
  components: {description: Whose state it is about., type: list, elements: str, required: true}
  running: {description: Components of this host that are to be stopped., type: list, elements: str, default: []}
  registry: {description: All components there are., type: list, elements: str, required: true}
  install_dir: {description: Root of programs., type: path, required: true}
  pki_dir: {description: Root of certificates., type: path, required: true}
"""

RETURN = """
versions: {description: The version of each component whose state was saved., type: dict, returned: when saved}
left_out: {description: Components in the archive that this host does not have., type: list, returned: when restored}
"""

SQLITE = b"SQLite format 3\0"
#: What SQLite keeps beside a database that is open; the online backup has what they hold.
BESIDE = ("-wal", "-shm", "-journal")


class BackupError(Exception):
    """It cannot be saved or put back; the message names the file."""


class Backup:
    """The places, as the module's parameters have them."""

    def __init__(self, p: dict[str, Any]) -> None:
        """Keep the parameters."""
        self.p = p
        self.archive = Path(p["archive"])
        self.pki = Path(p["pki_dir"])

    # ---- saving ----------------------------------------------------------------------------------------------------

    def save(self, *, live: bool) -> dict[str, str]:
        """Write the archive; return the versions of those whose state is in it."""
        self.archive.parent.mkdir(mode=0o755, parents=True, exist_ok=True)  # a fresh host has nothing yet
        handle = os.open(self.archive, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for path in self.authority():
                tar.add(path, f"pki/{path.relative_to(self.pki)}", recursive=False)
            for component in self.p["components"]:
                self.add_state(tar, component, live=live)
        versions = {}
        for component in self.p["components"]:
            with contextlib.suppress(OSError):  # it is not deployed
                program = Path(self.p["install_dir"], component, "current").readlink().name
                versions[component] = program.rpartition("-")[0]  # <version>-<digest of the archive>
        return versions

    def authority(self) -> Iterator[Path]:
        """Yield the files of the CA, and of identities that are no component's."""
        if not self.pki.is_dir():
            return
        for top in sorted(self.pki.iterdir()):
            if top.name not in self.p["registry"]:
                yield top
                yield from sorted(top.rglob("*"))

    def add_state(self, tar: tarfile.TarFile, component: str, *, live: bool) -> None:
        """Add a component's state."""
        state = Path(STATE, component)
        paths = sorted(state.rglob("*"))
        databases = {path for path in paths if live and is_database(path)}
        skipped = {path.with_name(path.name + end) for path in databases for end in BESIDE}
        for path in paths:
            name = f"state/{component}/{path.relative_to(state)}"
            if path in databases:
                self.add_database(tar, path, name)
            elif path not in skipped:
                with contextlib.suppress(FileNotFoundError):  # a temporary file: it is gone meanwhile
                    tar.add(path, name, recursive=False)

    def add_database(self, tar: tarfile.TarFile, path: Path, name: str) -> None:
        """Add a copy of a database that may be written to meanwhile, once it was seen to be whole."""
        with tempfile.TemporaryDirectory(dir=self.archive.parent, prefix=".backup.") as scratch:
            copy = Path(scratch, path.name)
            try:
                with (
                    contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as source,
                    contextlib.closing(sqlite3.connect(copy)) as target,
                ):
                    source.backup(target)
                    (verdict,) = target.execute("PRAGMA quick_check").fetchone()
            except sqlite3.Error as error:
                raise BackupError(f"{path} cannot be copied: {error}") from error
            if verdict != "ok":
                raise BackupError(f"{path} is damaged: {verdict}")
            entry = tar.gettarinfo(str(path), name)  # owner and mode of the original
            entry.size = copy.stat().st_size
            with copy.open("rb") as file:
                tar.addfile(entry, file)

    # ---- putting back ----------------------------------------------------------------------------------------------

    def restore(self) -> list[str]:
        """Put back what is in the archive; return the components in it that this host does not have.

        It may be interrupted at any moment and done again: all that counts is in the archive.
        """
        left_out = set()
        with tarfile.open(self.archive) as tar:
            members = tar.getmembers()  # reads it to its end, so what is not whole is found before anything is touched
            for component in self.p["components"]:
                empty(Path(STATE, component))
            for member in members:
                kind, _, name = member.name.partition("/")
                component = name.split("/")[0]
                if kind == "pki":
                    self.pki.mkdir(mode=0o755, parents=True, exist_ok=True)
                    extract(tar, member, name, self.pki)
                elif component in self.p["components"]:
                    Path(STATE, component).mkdir(mode=0o750, parents=True, exist_ok=True)
                    extract(tar, member, name, Path(STATE))
                else:
                    left_out.add(component)
        for component in self.p["components"]:
            own(Path(STATE, component), f"watchpost-{component.replace('_', '-')}")
        return sorted(left_out)

    def stop(self) -> None:
        """Stop the services that there are; those of a fresh host are not there yet."""
        units = [f"watchpost-{name.replace('_', '-')}.service" for name in self.p["running"]]
        there = [unit for unit in units if Path("/etc/systemd/system", unit).exists()]
        if there:
            done = subprocess.run(["systemctl", "stop", *there], capture_output=True, text=True, check=False)
            if done.returncode:
                raise BackupError(f"`systemctl stop {' '.join(there)}`: {done.stderr.strip()}")


def is_database(path: Path) -> bool:
    """Tell whether a file is a database of SQLite's, by its first bytes."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except FileNotFoundError:  # a temporary file: it is gone meanwhile
        return False


def empty(directory: Path) -> None:
    """Delete what is in a directory; the directory may be a disk of its own, whose `lost+found` stays."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            if path.name != "lost+found":
                shutil.rmtree(path)
        else:
            path.unlink()


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, directory: Path) -> None:
    """Put one member of the archive below a directory, with its mode and owner."""
    member.name = name
    # Debian 12's Python knows no filters, later ones ask for one.
    how = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    tar.extract(member, directory, **how)


def own(directory: Path, user: str) -> None:
    """Make a directory and what is in it a user's: on another host the user has another number."""
    if directory.is_dir():
        who = pwd.getpwnam(user)
        for path in (directory, *directory.rglob("*")):
            os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)


def main() -> None:
    """Read the arguments, act, report."""
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["save", "stop_and_save", "restore"], "required": True},
            "archive": {"type": "path", "required": True},
            "components": {"type": "list", "elements": "str", "required": True},
            "running": {"type": "list", "elements": "str", "default": []},
            "registry": {"type": "list", "elements": "str", "required": True},
            "install_dir": {"type": "path", "required": True},
            "pki_dir": {"type": "path", "required": True},
        },
        supports_check_mode=False,
    )
    backup = Backup(module.params)
    action = module.params["action"]
    try:
        if action == "restore":
            module.exit_json(changed=True, left_out=backup.restore())
        if action == "stop_and_save":
            backup.stop()
        module.exit_json(changed=action != "save", versions=backup.save(live=action == "save"))
    except (BackupError, OSError, tarfile.TarError, EOFError, KeyError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
