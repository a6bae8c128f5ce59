"""`watchpost dashboards`: make the files that Grafana reads, draw them, and keep those that people made."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from watchpost.dashboards import pages
from watchpost.options import Inventory

if TYPE_CHECKING:
    from watchpost.verify_grafana import Grafana

app = typer.Typer(no_args_is_help=True, help="Make Grafana's dashboards from their code; draw them; keep people's own.")


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


@app.command()
def draw(
    directory: Annotated[Path, typer.Argument(help="Where to put <uid>.png.")],
    inventory: Inventory = "",
    minutes: Annotated[float, typer.Option(min=1, help="How far back the pictures reach.")] = 30,
) -> None:
    """Draw each dashboard from its own queries, with matplotlib. These are drawings, not pictures of Grafana's pages."""
    from watchpost.dashboards.draw import draw_all  # matplotlib takes a second to load
    from watchpost.dashboards.run import Reader

    with _grafana(inventory) as grafana:
        now = time.time()
        for file in draw_all(Reader(grafana, now - minutes * 60, now), directory):
            typer.echo(file)


@app.command()
def save(
    directory: Annotated[Path, typer.Argument(help="Where to put <uid>.json.")],
    inventory: Inventory = "",
) -> None:
    """Save the dashboards that people made, with their folders' names."""
    from watchpost.dashboards.backup import save as keep

    with _grafana(inventory) as grafana:
        for title in keep(grafana, directory):
            typer.echo(f"saved {title}")


@app.command()
def restore(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What `save` has written.")],
    inventory: Inventory = "",
) -> None:
    """Put saved dashboards back, over those of the same uid."""
    from watchpost.dashboards.backup import restore as put_back

    with _grafana(inventory) as grafana:
        for title in put_back(grafana, directory):
            typer.echo(f"restored {title}")


@contextmanager
def _grafana(inventory: str) -> Iterator[Grafana]:
    """Log in; exit 2 with one line when the appliance or its answer is not to be had."""
    import httpx  # only what speaks to an appliance needs it: building is part of every run of site.yml

    from watchpost import verify_target
    from watchpost.verify_grafana import AskError

    try:
        target = verify_target.find(inventory)
        with target.grafana() as grafana:
            yield grafana
    except (verify_target.TargetError, AskError, httpx.HTTPError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from error
