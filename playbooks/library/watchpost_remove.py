#!/usr/bin/python
"""Take Watchpost away from a host: all that its roles have made there, and nothing else."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_generation import STATE

DOCUMENTATION = """
module: watchpost_remove
short_description: Take Watchpost away from a host
description:
  - What is Watchpost's is known by its names - users C(watchpost-…), tables of the firewall, files below C(/etc) that
    have its name and say who wrote them - and by the directories that the roles' variables name. So nothing need be
    listed twice, and what a half-finished run has left is found as well.
  - Debian packages stay.
options:
  directories:
    description: Directories of Watchpost's own, by the variable that names each.
    type: dict
    required: true
  data: {description: Whether the services' data go too; otherwise they become root's., type: bool, required: true}
  nginx:
    description: Whether Debian's own nginx service may have been masked for the gateway's sake; it is disabled instead.
    type: bool
    required: true
"""

RETURN = """
removed: {description: What was there and is gone., type: list, returned: always}
kept: {description: The directory with the data that stay., type: list, returned: always}
"""

NAME = "watchpost"
#: What roles write at the head of each file outside their own directories, and as the full name of each user.
WROTE, FULL_NAME = "Written by Watchpost", "Watchpost"
ETC, RUN, TIMERS = Path("/etc"), Path("/run"), Path("/var/lib/systemd/timers")
UNITS = ETC / "systemd/system"
NGINX = UNITS / "nginx.service"


def run(*command: str) -> str:
    """Run a command and return what it prints; raise OSError with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(command)}` exited with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def files() -> list[Path]:
    """Return the files below /etc that have Watchpost's name and say that it wrote them."""
    return [
        path
        for path in sorted(ETC.rglob(f"*{NAME}*"))
        if path.is_file() and not path.is_symlink() and WROTE in path.read_text(errors="replace")
    ]


def lost_units() -> list[str]:
    """Return the units that still run though their files are gone."""
    listed = run("systemctl", "list-units", "--all", "--plain", "--no-legend", f"{NAME}*")
    words = [line.split() for line in listed.splitlines()]
    return [name for name, load, active, *_ in words if (load, active) == ("not-found", "active")]


def runtime_directories(units: list[str]) -> list[Path]:
    """Return the directories below /run that units have, as systemd knows."""
    shown = run("systemctl", "show", "--property=RuntimeDirectory", "--value", *units) if units else ""
    return [RUN / name for name in shown.split()]


def tables() -> list[str]:
    """Return the firewall's tables: family and name."""
    if not shutil.which("nft"):
        return []
    words = [line.split() for line in run("nft", "list", "tables").splitlines()]
    return [f"inet {name}" for _, family, name in words if family == "inet" and f"{name}_".startswith(f"{NAME}_")]


def users() -> list[str]:
    """Return the services' users."""
    return [
        user.pw_name for user in pwd.getpwall() if user.pw_name.startswith(f"{NAME}-") and user.pw_gecos == FULL_NAME
    ]


def erase(path: Path) -> None:
    """Delete a directory with all in it; where a file system is mounted, the mount point stays, empty."""
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            erase(child)
        else:
            child.unlink()
    if path.is_symlink():  # to a larger disk, say, where an empty directory stays
        path.unlink()
        return
    with contextlib.suppress(OSError) if holds_mount(path) else contextlib.nullcontext():
        path.rmdir()


def holds_mount(path: Path) -> bool:
    """Tell whether a directory is a mount point, or one is in it."""
    return path.is_mount() or any(child.is_mount() for child in path.rglob("*") if child.is_dir())


def there(path: Path) -> bool:
    """Tell whether a directory is there and, as a mount point may be left, has something in it."""
    return path.is_dir() and (not holds_mount(path) or any(not each.is_dir() for each in path.rglob("*")))


def of_root(path: Path) -> bool:
    """Tell whether a directory and all in it is root's."""
    return all(each.lstat().st_uid == 0 == each.lstat().st_gid for each in (path, *path.rglob("*")))


def main() -> None:
    """Read the arguments, look, act, report."""
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "dict", "required": True},
            "data": {"type": "bool", "required": True},
            "nginx": {"type": "bool", "required": True},
        },
        supports_check_mode=True,
    )
    for variable, path in module.params["directories"].items():
        if NAME not in path:
            # It might be everybody's, such as /opt.
            module.fail_json(msg=f"{variable} is {path}, not named after Watchpost: delete what of it is Watchpost's")
    try:
        removed, kept = remove(module.params, really=not module.check_mode)
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(removed), removed=removed, kept=kept)


def remove(p: dict[str, Any], *, really: bool) -> tuple[list[str], list[str]]:
    """Remove what is there, `really` or not; return what it is, and which data stay."""
    state = Path(STATE)
    units = [path.name for path in files() if path.parent == UNITS and path.suffix in (".service", ".timer", ".target")]
    # Credentials for a check of the role `service` that was cut off.
    runtime = [*runtime_directories(units), *RUN.glob("watchpost-check.*")]
    own = [*map(Path, p["directories"].values()), *runtime, *([state] if p["data"] else [])]
    gone = [path for path in own if there(path) and not any(other in path.parents for other in own)]
    written = [path for path in files() if not any(each in path.parents for each in gone)]
    lost, rules, who = lost_units(), tables(), users()
    masked = p["nginx"] and NGINX.is_symlink() and NGINX.readlink() == Path("/dev/null")
    orphans = not p["data"] and state.is_dir() and not of_root(state)
    removed = [
        *units, *lost, *(f"table {table}" for table in rules), *map(str, written), *map(str, gone),
        *(["the mask of nginx.service"] if masked else []), *(f"user {name}" for name in who),
    ]  # fmt: skip
    if really:
        if units:
            run("systemctl", "disable", "--now", *units)
        if lost:
            run("systemctl", "stop", *lost)
        for table in tables():  # what stopping the firewall has left
            run("nft", "delete", "table", *table.split())
        # Before the units' files, by which the next run knows of them if this one is cut off.
        for path in gone:
            erase(path)
        for unit in units:
            shutil.rmtree(UNITS / f"{unit}.d", ignore_errors=True)  # what was added to it by hand
            (TIMERS / f"stamp-{unit}").unlink(missing_ok=True)  # when a timer was due last
        for path in written:
            path.unlink()
        if masked:
            # Disabled first, or the next boot might start it.
            (UNITS / "multi-user.target.wants/nginx.service").unlink(missing_ok=True)
            NGINX.unlink()
        if removed:
            run("systemctl", "daemon-reload")
            run("systemctl", "reset-failed", f"{NAME}*")
        if any(path.parent.name == "journald.conf.d" for path in written):
            run("systemctl", "restart", "systemd-journald")
        if orphans:
            # Whoever gets these users' numbers next must not read them. systemd gives them back to a service's user.
            for path in (state, *state.rglob("*")):
                os.chown(path, 0, 0, follow_symlinks=False)
        for name in who:
            run("userdel", name)
            with contextlib.suppress(KeyError):  # gone with the user
                run("groupdel", grp.getgrnam(name).gr_name)
    return [*removed, *(["the owners of the data"] if orphans else [])], [str(state)] if state.is_dir() else []


if __name__ == "__main__":
    main()
