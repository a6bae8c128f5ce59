#!/usr/bin/python3
"""Tell node_exporter whom the firewall holds back at the OTLP ports: `clients.py FILE`.

Reads the sets `held_back4` and `held_back6` of the table `inet watchpost`, and writes one counter a client into FILE.
A client that was not held back for an hour is in neither any more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FAMILY = "watchpost_client_held_back_bytes_total"


def metrics(listing: dict[str, Any]) -> str:
    """Return what `nft --json list sets` says of held-back clients, as node_exporter's textfile collector reads it."""
    sets = [item["set"] for item in listing["nftables"] if "set" in item]
    elements = [found.get("elem", []) for found in sets if found["name"].startswith("held_back")]
    clients = [element["elem"] for some in elements for element in some]
    rows = [f'{FAMILY}{{client="{each["val"]}"}} {each["counter"]["bytes"]}\n' for each in clients]
    return f"# TYPE {FAMILY} counter\n" + "".join(sorted(rows))


def main(file: Path) -> None:
    """Ask nft, and replace the file in one step."""
    asked = subprocess.run(["/usr/sbin/nft", "--json", "list", "sets", "inet"], check=True, capture_output=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(metrics(json.loads(asked.stdout)))
    fresh.replace(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
