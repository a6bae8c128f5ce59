#!/usr/bin/python3
"""Stop a store while its disk is nearly full, and start it again when there is room: `disk_guard.py SETTINGS`.

On a full disk the stores go on answering, and lose: Tempo what it takes, Loki what it has in memory when it is killed,
and Prometheus refuses with a status that senders take for final. Stopped, they refuse the connection; then the
Collector keeps what comes in and tries again. It is a store too: it throws away what it cannot write down as taken out
of its queue, and what it samples it has acknowledged. So is an agent.

The settings are JSON: `metrics`, the file for node_exporter's textfile collector or nothing; and `stores`, by name:
`state` (directory), `unit`, and `least` (bytes that must be free on that directory's disk). A store is started again
at twice that. Only what was stopped here is started here, so an operator's own stop holds. Which ones are stopped is
kept in $RUNTIME_DIRECTORY, which a restart of this program leaves in place and a reboot does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Seconds between two looks. By `least` / LOOK_SECONDS it follows how fast a disk may fill, less what stopping takes.
LOOK_SECONDS = 0.1
MIB = 1024 * 1024


def free_bytes(directory: Path) -> float:
    """Return what an unprivileged program can still write where `directory` lies; endless while it does not exist."""
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:  # the store has never been started
        return float("inf")
    return found.f_bavail * found.f_frsize


def running(unit: str) -> bool:
    """Tell whether a unit runs, or is about to be started again."""
    command = ["systemctl", "show", "--property=ActiveState", "--value", unit]
    state = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return state not in ("inactive", "failed", "deactivating")


class Guard:
    """Which stores are stopped, on disk and in the metrics."""

    def __init__(self, settings: dict[str, Any], memory: Path) -> None:
        """Take up what an earlier run of this program has left in `memory`."""
        self.stores: dict[str, dict[str, Any]] = settings["stores"]
        self.metrics = Path(settings["metrics"]) if settings["metrics"] else None
        self.memory = memory
        left = json.loads(memory.read_text()) if memory.exists() else []
        self.stopped = {name for name in left if name in self.stores}
        self.written: dict[Path, str] = {}
        self.unwritable: set[Path] = set()

    def look(self) -> None:
        """Look at each store's disk once, and act."""
        free = {name: free_bytes(Path(store["state"])) for name, store in self.stores.items()}
        low = {name for name, store in self.stores.items() if free[name] < store["least"] and running(store["unit"])}
        roomy = {name for name in self.stopped if free[name] >= 2 * self.stores[name]["least"]}
        if low:
            self.stopped |= low
            self.remember()  # first: what is written down nowhere would stay stopped
            self.do("stop", low, free)
        if roomy:
            self.do("start", roomy, free)
            self.stopped -= roomy
        self.remember()
        self.tell()  # last: it may have to wait for the disk, or find it full

    def do(self, verb: str, names: set[str], free: dict[str, float]) -> None:
        """Have stores stopped or started, and say why.

        Nobody waits until it is done: Loki may take 90 seconds, and meanwhile the others must be looked at. A store
        that is to start again before it has stopped is started by systemd as soon as it has.
        """
        for name in sorted(names):
            print(f"{verb} {name}: {free[name] / MIB:.0f} MiB are free, {self.stores[name]['least'] / MIB:.0f} must be")
        subprocess.run(["systemctl", "--no-block", verb, *(self.stores[name]["unit"] for name in names)], check=True)

    def remember(self) -> None:
        """Write down which stores are stopped, for this program's next start."""
        self.write(self.memory, json.dumps(sorted(self.stopped)))

    def tell(self) -> None:
        """Write down which stores are stopped, for Prometheus."""
        if self.metrics:
            rows = (
                f'watchpost_disk_guard_stopped{{store="{name}"}} {name in self.stopped:d}\n' for name in self.stores
            )
            self.write(self.metrics, "# TYPE watchpost_disk_guard_stopped gauge\n" + "".join(rows))

    def write(self, path: Path, text: str) -> None:
        """Make a file say this. What a full disk does not take keeps nobody from acting; the next look tries again."""
        if self.written.get(path) == text:
            return
        try:
            replace(path, text)
        except OSError as error:
            if path not in self.unwritable:
                print(f"cannot write {path}, and shall try again: {error.strerror}")
            self.unwritable.add(path)
            return
        self.written[path] = text
        self.unwritable.discard(path)


def replace(path: Path, text: str) -> None:
    """Replace a file in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


if __name__ == "__main__":
    guard = Guard(json.loads(Path(sys.argv[1]).read_text()), Path(os.environ["RUNTIME_DIRECTORY"], "stopped.json"))
    while True:
        guard.look()
        time.sleep(LOOK_SECONDS)
