#!/usr/bin/python3
"""Keep Tempo and Loki within their share of the disk, by shortening how long they keep: `retention.py SETTINGS`.

Both engines know retention by time only. This looks at what lies on disk, newest first, and finds the age up to which
it fits into the store's budget. That age becomes the retention in the engine's file of overrides, which the engine
reads again by itself; nothing is deleted here. When all fits, that file is empty: what the user has set holds.

It tells besides what no budget knows: damaged queues that were put aside when the Collector started.

The settings are JSON: `metrics`, the file for node_exporter's textfile collector or nothing; `least`, the seconds for
which everything is kept; `queues`, directories by component; and `stores`, by name: `state` (directory), `bytes`
(budget), `seconds` (retention at most), `user` (owner of the overrides), `limits` (JSON file of the limits that
overrides would not inherit, or nothing).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

#: The part of a budget that kept data may fill: an engine deletes up to an hour late, and more comes in meanwhile.
FILL = 0.9

Item = tuple[float, int]  # when the newest of it was written (seconds since 1970), bytes on disk


def tempo_items(state: Path) -> Iterator[Item]:
    """Yield Tempo's blocks but for those that are `going`."""
    for meta in state.glob("blocks/*/*/meta.json"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            end = datetime.fromisoformat(json.loads(meta.read_text())["endTime"])
            yield end.timestamp(), disk_bytes(meta.parent)


def going(state: Path) -> int:
    """Return the bytes of Tempo's blocks that are marked as deleted, but leave the disk 15 minutes later.

    Loki marks nothing beside its chunks: those that it is about to delete are the oldest of its items.
    """
    return sum(disk_bytes(meta.parent) for meta in state.glob("blocks/*/*/meta.compacted.json"))


def loki_items(state: Path) -> Iterator[Item]:
    """Yield Loki's chunks, which are written once, when they are full."""
    for directory, _, names in os.walk(state / "chunks"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = (Path(directory) / name).lstat()
                yield status.st_mtime, status.st_blocks * 512


def tempo_overrides(seconds: int, limits: dict[str, Any]) -> dict[str, Any]:
    """Return what Tempo's only tenant gets instead of all of Tempo's limits."""
    compaction = limits.get("compaction", {}) | {"block_retention": f"{seconds}s"}
    return {"single-tenant": limits | {"compaction": compaction}}


def loki_overrides(seconds: int, limits: dict[str, Any]) -> dict[str, Any]:
    """Return what Loki's only tenant gets over Loki's limits."""
    return {"fake": limits | {"retention_period": f"{seconds}s"}}


ENGINES = {"tempo": (tempo_items, tempo_overrides), "loki": (loki_items, loki_overrides)}


def disk_bytes(directory: Path) -> int:
    """Return the bytes that the files below a directory take on disk; one that is deleted meanwhile takes none."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).lstat().st_blocks * 512
    return total


def put_aside_bytes(queue: Path) -> int:
    """Return the bytes of the damaged files that check_queue.py and the Collector's own file_storage have put aside."""
    return sum(file.stat().st_size for file in queue.glob("*") if file.suffix in (".damaged", ".backup"))


def fitting(items: list[Item], room: float, least: int, most: int, now: float) -> int:
    """Return for how many seconds `items` may be kept to fit into `room` bytes; between `least` and `most`."""
    for newest, size in sorted(items, reverse=True):
        room -= size
        if room < 0:
            return max(least, min(most, int(now - newest)))
    return most


def write(path: Path, text: str, owner: str = "root") -> None:
    """Replace a file in one step."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
        file.flush()
        # By its number, not its name: the directory is the owner's, who could put something else in its place.
        os.fchmod(file.fileno(), 0o644)
        os.fchown(file.fileno(), *pwd.getpwnam(owner)[2:4])
    Path(file.name).replace(path)


def main(settings: dict[str, Any]) -> None:
    """Look at each store once, and say what was found."""
    families: dict[str, list[str]] = {"used_bytes": [], "budget_bytes": [], "seconds": [], "wanted_seconds": []}
    for name, store in settings["stores"].items():
        read_items, overrides = ENGINES[name]
        state = Path(store["state"])
        if not state.exists():
            continue  # it has not been started yet
        used = disk_bytes(state)
        items = list(read_items(state))
        # What is going is room: were it not, each look until it has gone would give up as much again.
        room = store["bytes"] * FILL - (used - going(state) - sum(size for _, size in items))
        seconds = fitting(items, room, settings["least"], store["seconds"], time.time())
        wanted = ""
        if seconds < store["seconds"]:
            limits = json.loads(Path(store["limits"]).read_text()) if store["limits"] else {}
            wanted = json.dumps({"overrides": overrides(seconds, limits)}) + "\n"
            print(f"{name} has {used} of {store['bytes']} bytes: keeps {seconds} s instead of {store['seconds']} s")
        file = state / "overrides.yml"
        if not file.exists() or file.read_text() != wanted:
            write(file, wanted, store["user"])
        for family, value in zip(families, (used, store["bytes"], seconds, store["seconds"]), strict=True):
            families[family].append(f'watchpost_retention_{family}{{store="{name}"}} {value}\n')
    if settings["metrics"]:
        metrics = {f"watchpost_retention_{family}": rows for family, rows in families.items()}
        metrics["watchpost_queue_put_aside_bytes"] = [
            f'watchpost_queue_put_aside_bytes{{component="{name}"}} {put_aside_bytes(Path(queue))}\n'
            for name, queue in settings["queues"].items()
        ]
        lines = (f"# TYPE {name} gauge\n{''.join(rows)}" for name, rows in metrics.items())
        write(Path(settings["metrics"]), "".join(lines))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
