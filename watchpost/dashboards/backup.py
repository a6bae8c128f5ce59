"""Keep the dashboards that people made in Grafana, and put them back: those of Watchpost itself come from their code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from watchpost.verify_grafana import AskError, Grafana

#: The most that Grafana lists at once.
PAGE = 5000


def made_by_people(grafana: Grafana) -> Iterator[dict[str, Any]]:
    """Yield each dashboard that is not provisioned: its `dashboard`, and `folder` (`uid`, `title`; empty for none)."""
    answer = grafana.client.get(f"{grafana.base}/api/search", params={"type": "dash-db", "limit": PAGE})
    if answer.status_code != 200:
        raise AskError("grafana", f"HTTP {answer.status_code} for the list of dashboards")
    for found in answer.json():
        held = grafana.object_of("grafana", grafana.client.get(f"{grafana.base}/api/dashboards/uid/{found['uid']}"))
        if held["meta"].get("provisioned"):
            continue
        # These two are of one Grafana's database, and mean nothing in another.
        dashboard = {key: value for key, value in held["dashboard"].items() if key not in ("id", "version")}
        folder = {"uid": held["meta"].get("folderUid", ""), "title": held["meta"].get("folderTitle", "")}
        yield {"dashboard": dashboard, "folder": folder if folder["uid"] else {}}


def save(grafana: Grafana, directory: Path) -> list[str]:
    """Write each of them to `<uid>.json` in a directory; return their titles. Files of dashboards that are gone stay."""
    titles = []
    for kept in made_by_people(grafana):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = directory / f"{kept['dashboard']['uid']}.json"
        file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
        titles.append(str(kept["dashboard"]["title"]))
    return titles


def restore(grafana: Grafana, directory: Path) -> list[str]:
    """Put back every dashboard of a directory, over one of the same uid, with its folder; return their titles.

    Raises AskError, naming the file, for one that Grafana refuses; those before it are there by then.
    """
    titles = []
    for file in sorted(directory.glob("*.json")):
        kept = json.loads(file.read_text())
        folder = kept["folder"]
        if folder:
            made = grafana.client.post(f"{grafana.base}/api/folders", json=folder)
            if made.status_code not in (200, 409, 412):  # the latter two: it is there
                raise AskError("grafana", f"{file}: folder {folder['title']}: {made.text[:200]}")
        body = {"dashboard": kept["dashboard"], "folderUid": folder.get("uid", ""), "overwrite": True}
        answer = grafana.client.post(f"{grafana.base}/api/dashboards/db", json=body)
        if answer.status_code != 200:
            raise AskError("grafana", f"{file}: {answer.text[:200]}")
        titles.append(str(kept["dashboard"]["title"]))
    return titles
