#!/usr/bin/python
"""Put a set of files in place and apply each, in one task."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: watchpost_host_files
short_description: Put files and directories in place and run what makes each count
description:
  - One task instead of a dozen, so that a run with nothing to do is fast.
  - A file whose I(apply) did not finish, as the run was cut off or a command failed, is applied again by the next run.
options:
  files:
    description:
      - In this order. C(content) makes a file, none a directory, C(absent) removes; C(mode) is octal text.
      - C(check) is a command that must accept the new content, at C({candidate}), before it replaces the old.
      - C(apply) is a list of commands run after a change, or before a removal.
      - C(applied) is a command that exits 0 while what was applied still holds.
    type: list
    elements: dict
    required: true
  pending:
    description: The file that remembers what was changed but not yet applied.
    type: path
    required: true
"""


def main() -> None:
    """Read the arguments, act, report."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str"},
                    "mode": {"type": "str", "default": "0644"},
                    "absent": {"type": "bool", "default": False},
                    "check": {"type": "list", "elements": "str", "default": []},
                    "apply": {"type": "list", "elements": "list", "default": []},
                    "applied": {"type": "list", "elements": "str", "default": []},
                },
            },
            "pending": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    pending = Pending(Path(module.params["pending"]))
    changed, diffs = [], []
    for item in module.params["files"]:
        before = current(Path(item["path"]))
        if matches(item, before) and item["path"] not in pending.paths and holds(item, module.check_mode):
            continue
        changed.append(item["path"])
        diffs.append(
            {
                "before_header": item["path"],
                "after_header": item["path"],
                "before": before.get("content") or "",
                "after": item["content"] or "",
            }
        )
        try:
            # What an earlier file would have brought, such as users, may be what the new content speaks of.
            if not (module.check_mode and len(changed) > 1):
                accept(item, module.check_mode)
            if not module.check_mode:
                act(item, pending)
        except (OSError, CommandError) as error:
            module.fail_json(msg=f"{item['path']}: {error}", changed=len(changed) > 1)
    module.exit_json(changed=bool(changed), files=changed, diff=diffs)


class CommandError(Exception):
    """A command said no."""


class Pending:
    """The paths that were changed but whose commands have not all succeeded."""

    def __init__(self, file: Path) -> None:
        """Read what an earlier run left behind."""
        self.file = file
        self.paths: list[str] = json.loads(file.read_text()) if file.exists() else []

    def add(self, path: str) -> None:
        """Remember a path before it is touched."""
        self._write([*(p for p in self.paths if p != path), path])

    def remove(self, path: str) -> None:
        """Forget a path once it is applied."""
        self._write([p for p in self.paths if p != path])

    def _write(self, paths: list[str]) -> None:
        self.paths = paths
        if paths:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace(self.file, json.dumps(paths), 0o600)
        else:
            self.file.unlink(missing_ok=True)


def current(path: Path) -> dict[str, Any]:
    """Describe what is at a path now; an empty answer means nothing."""
    if not os.path.lexists(path):
        return {}
    status = path.lstat()
    found: dict[str, Any] = {"mode": status.st_mode & 0o7777, "owner": (status.st_uid, status.st_gid)}
    if path.is_symlink():
        found["link"] = True
    elif path.is_dir():
        found["directory"] = True
    else:
        found["content"] = path.read_text(errors="replace")
    return found


def matches(item: dict[str, Any], found: dict[str, Any]) -> bool:
    """Tell whether a path is as wanted."""
    if item["absent"]:
        return not found
    wanted: dict[str, Any] = {"mode": int(item["mode"], 8), "owner": (0, 0)}
    wanted.update({"directory": True} if item["content"] is None else {"content": item["content"]})
    return found == wanted


def holds(item: dict[str, Any], check_mode: bool) -> bool:
    """Tell whether what was applied earlier is still in force."""
    if not item["applied"]:
        return True
    if check_mode and not shutil.which(item["applied"][0]):
        return False  # a fresh host, whose packages check mode did not install
    return subprocess.run(item["applied"], capture_output=True, check=False).returncode == 0


def accept(item: dict[str, Any], check_mode: bool) -> None:
    """Have new content judged before it replaces anything."""
    if not item["check"] or (check_mode and not shutil.which(item["check"][0])):
        return
    with tempfile.NamedTemporaryFile("w") as candidate:
        candidate.write(item["content"])
        candidate.flush()
        run([word.replace("{candidate}", candidate.name) for word in item["check"]])


def act(item: dict[str, Any], pending: Pending) -> None:
    """Make one path as wanted and apply it."""
    path = Path(item["path"])
    if item["apply"]:
        pending.add(item["path"])
    if item["absent"]:
        for command in item["apply"] if os.path.lexists(path) else []:
            run(command)
        path.unlink(missing_ok=True)
    elif item["content"] is None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(int(item["mode"], 8))
        os.chown(path, 0, 0)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, item["content"], int(item["mode"], 8))
    if item["apply"]:
        for command in [] if item["absent"] else item["apply"]:
            run(command)
        pending.remove(item["path"])


def replace(path: Path, content: str, mode: int) -> None:
    """Write a file in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(content)
        os.fchmod(handle, mode)
        file.flush()
        os.fsync(handle)
    Path(name).rename(path)


def run(command: list[str]) -> None:
    """Run a command; its own words become the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(
            f"`{' '.join(command)}` exited with {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )


if __name__ == "__main__":
    main()
