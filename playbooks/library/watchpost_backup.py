#!/usr/bin/python
"""Put together on a host what cannot be made again, or put it back."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_generation import STATE

DOCUMENTATION = """
module: watchpost_backup
short_description: Put together what cannot be made again, or put it back
description:
  - The archive holds C(state/<component>/…), the state directories of some components, and C(pki/…), the CA and the
    identities that are no component's (the components' are made by C(site.yml)). Files and directories only, no links.
  - Of a service that runs, SQLite databases are copied by SQLite's online backup, and the copies are checked.
  - What lies in a service's directory is written with that service's rights, not root's, and so it is read while the
    service runs.
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
#: Of a disk that is mounted on a state directory, and root's alone.
LOST_FOUND = "lost+found"


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
        copies = self.archive.with_name(f"{self.archive.name}.copies")
        shutil.rmtree(copies, ignore_errors=True)  # a run that was cut off has left them
        make(copies, 0o711)  # a fresh host has nothing yet, not even what that is in
        try:
            with create(self.archive) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
                for path in self.authority():
                    add(tar, path, f"pki/{path.relative_to(self.pki)}")
                for component in self.p["components"]:
                    if (state := Path(STATE, component)).is_dir():
                        add(tar, state, f"state/{component}")
                        self.add_state(tar, state, copies / component, live=live)
        finally:
            shutil.rmtree(copies)
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

    def add_state(self, tar: tarfile.TarFile, state: Path, copies: Path, *, live: bool) -> None:
        """Add what is in a component's state directory; `copies` is a place for copies of its databases."""
        copies.mkdir(mode=0o700)
        owner = state.stat()
        os.chown(copies, owner.st_uid, owner.st_gid)
        with as_owner(state) if live else contextlib.nullcontext():
            paths = [path for path in sorted(state.rglob("*")) if LOST_FOUND not in path.parts]
            databases = {path for path in paths if live and is_database(path)}
            skipped = {path.with_name(path.name + end) for path in databases for end in BESIDE}
            for path in paths:
                name = f"state/{state.name}/{path.relative_to(state)}"
                if path in databases:
                    copy = copies / path.name
                    copy_database(path, copy)
                    add(tar, copy, name)
                    copy.unlink()
                elif path not in skipped:
                    with contextlib.suppress(FileNotFoundError):  # a temporary file: it is gone meanwhile
                        add(tar, path, name)

    # ---- putting back ----------------------------------------------------------------------------------------------

    def restore(self) -> list[str]:
        """Put back what is in the archive; return the components in it that this host does not have.

        It may be interrupted at any moment and done again: all that counts is in the archive.
        """
        with tarfile.open(self.archive) as tar:
            # Reads it to its end. The controller has looked that each is a file or directory of `pki` or `state`.
            members = [(member, PurePosixPath(member.name).parts) for member in tar]
            make(self.pki, 0o755)
            for member, (kind, *inside) in members:
                if kind == "pki":
                    put_back(tar, member, self.pki.joinpath(*inside))
            saved = {inside[0] for _, (kind, *inside) in members if kind == "state"}
            for component in sorted(saved.intersection(self.p["components"])):
                state, user = Path(STATE, component), pwd.getpwnam(f"watchpost-{component.replace('_', '-')}")
                make(state.parent, 0o755)
                make(state, 0o750)
                empty(state)
                os.chown(state, user.pw_uid, user.pw_gid)
                with as_owner(state):
                    for member, (kind, *inside) in members:
                        if kind == "state" and inside[0] == component and inside[1:]:
                            put_back(tar, member, state.joinpath(*inside[1:]))
        return sorted(saved.difference(self.p["components"]))

    def stop(self) -> None:
        """Stop the services that there are, and whoever renews certificates; a fresh host has none of them yet."""
        units = ["watchpost-pki.timer", "watchpost-pki.service"]  # site.yml starts the timer again
        units += [f"watchpost-{name.replace('_', '-')}.service" for name in self.p["running"]]
        there = [unit for unit in units if Path("/etc/systemd/system", unit).exists()]
        if there:
            done = subprocess.run(["systemctl", "stop", *there], capture_output=True, text=True, check=False)
            if done.returncode:
                raise BackupError(f"`systemctl stop {' '.join(there)}`: {done.stderr.strip()}")


@contextlib.contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Act with the rights of a directory's owner.

    What a service keeps may be a trap for root, such as a link to what only root may read.
    """
    owner, me = directory.stat(), os.geteuid()
    if owner.st_uid == me:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(me)
        os.setegid(group)
        os.setgroups(groups)


def add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file or a directory, without what is in it, to an archive; a link, socket or the like is left out."""
    mode = path.lstat().st_mode
    entry = tarfile.TarInfo(name)
    entry.mode = stat.S_IMODE(mode)
    if stat.S_ISDIR(mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    elif stat.S_ISREG(mode):
        with path.open("rb") as file:
            entry.size = os.fstat(file.fileno()).st_size  # its path may be another file's by now
            tar.addfile(entry, file)


def is_database(path: Path) -> bool:
    """Tell whether a file is a database of SQLite's, by its first bytes."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except FileNotFoundError:  # a temporary file: it is gone meanwhile
        return False


def copy_database(path: Path, copy: Path) -> None:
    """Copy a database that may be written to meanwhile, and see that the copy is whole."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            (verdict,) = target.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"{path} cannot be copied: {error}") from error
    if verdict != "ok":
        raise BackupError(f"{path} is damaged: {verdict}")
    copy.chmod(stat.S_IMODE(path.stat().st_mode))


def create(path: Path) -> BinaryIO:
    """Open a file to be written; nobody else can read it before it has its mode."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb")


def make(directory: Path, mode: int) -> None:
    """Make a directory, if it is not there, and give it a mode."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(mode)


def empty(directory: Path) -> None:
    """Delete what is in a directory; the directory may be a disk of its own, whose `lost+found` stays."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != LOST_FOUND:
                shutil.rmtree(path)
        else:
            path.unlink()


def put_back(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Put one file or directory of an archive to a path, with its mode."""
    if member.isdir():
        make(path, member.mode)
    elif content := tar.extractfile(member):
        with content, create(path) as file:
            shutil.copyfileobj(content, file)
        path.chmod(member.mode)


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
