"""`watchpost dashboards`: make the files that Grafana reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from watchpost.dashboards import pages

app = typer.Typer(no_args_is_help=True, help="Make Grafana's dashboards from their code.")


@app.command()
def build(
    directory: Annotated[
        Path | None, typer.Argument(help="Where to put <uid>.json; default: print all as one object.")
    ] = None,
) -> None:
    """Write each dashboard as JSON, as Grafana reads it from a file or takes it by its import."""
    made = {f"{page.uid}.json": page.json() for page in pages()}
    if directory is None:
        typer.echo(json.dumps(made))
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
