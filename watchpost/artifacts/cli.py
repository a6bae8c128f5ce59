"""`watchpost artifacts`: fill, list and export the artifact store."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from watchpost.artifacts.catalogue import CATALOGUE, load
from watchpost.artifacts.ensure import Ensurer, Source
from watchpost.artifacts.errors import ArtifactError
from watchpost.artifacts.gobuild import host_os_arch
from watchpost.artifacts.mirror import export as export_to
from watchpost.artifacts.store import Entry, cache_dir

app = typer.Typer(
    help="""Get, verify and look at what a host will run.

Every component is pinned in [bold]artifacts/catalogue.yml[/bold] and kept in a store below
[bold]$WATCHPOST_CACHE[/bold] (~/.cache/watchpost unless set), with a SHA-256 that is checked on every use.

[bold]Where a missing one comes from[/bold] (--source)
  auto     its release; where that cannot be reached, it is built from source
  release  upstream's own release file, verified by its checksum
  mirror   a store exported elsewhere: a directory or an https URL (--mirror)
  source   built here from Go modules; the first time takes minutes each
""",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Names = Annotated[list[str] | None, typer.Argument(metavar="COMPONENT", help="Default: all of the catalogue.")]
OsArch = Annotated[str, typer.Option("--os-arch", help="The host's platform: linux-amd64 or linux-arm64.")]
Python = Annotated[str, typer.Option("--python", help="The host's Python (3.13 on Debian 13), for the taskboard.")]
CatalogueFile = Annotated[Path, typer.Option("--catalogue", help="Another catalogue.", show_default=False)]

_OS_ARCH = host_os_arch()
_PYTHON = "3.13"


@contextmanager
def _told() -> Iterator[None]:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that a stopped run stops its compilers
    try:
        yield
    except (ArtifactError, OSError) as error:
        sys.stderr.write(f"watchpost artifacts: {error}\n")
        raise typer.Exit(1) from error


def _ensurer(catalogue: Path, os_arch: str, python: str, source: Source, mirror: str = "") -> Ensurer:
    if os_arch not in ("linux-amd64", "linux-arm64"):
        raise ArtifactError(f"--os-arch {os_arch}: must be linux-amd64 or linux-arm64")
    if not re.fullmatch(r"3\.[0-9]+", python):
        raise ArtifactError(f"--python {python}: must be a version like 3.13")
    return Ensurer(load(catalogue), cache_dir(), os_arch, python, source, mirror)


@app.command()
def ensure(
    names: Names = None,
    os_arch: OsArch = _OS_ARCH,
    python: Python = _PYTHON,
    source: Annotated[Source, typer.Option(help="Where a missing artifact comes from.")] = Source.auto,
    mirror: Annotated[str, typer.Option(help="Directory or https URL, for --source mirror.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print {component: …} for Ansible.")] = False,
    catalogue: CatalogueFile = CATALOGUE,
) -> None:
    """Make sure that the store holds each component, verified.

    With auto, whatever the store has is good. With another --source, an archive that came from elsewhere is got anew:
    `watchpost artifacts ensure grafana --source release` replaces a Grafana that was built from source.
    """
    with _told():
        ensurer = _ensurer(catalogue, os_arch, python, source, mirror)
        entries = ensurer.ensure(names or ensurer.catalogue)
    if as_json:
        sys.stdout.write(json.dumps({name: _described(entry) for name, entry in entries.items()}) + "\n")
    else:
        for name, entry in entries.items():
            sys.stdout.write(f"{name} {entry.key.version} ({entry.record.source}): {entry.path}\n")


@app.command("list")
def list_(os_arch: OsArch = _OS_ARCH, python: Python = _PYTHON, catalogue: CatalogueFile = CATALOGUE) -> None:
    """Show each pinned component and what the store has of it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("Component", "Pinned", "In the store", "From", "SHA-256", title=str(cache_dir() / "store"))
    with _told():
        ensurer = _ensurer(catalogue, os_arch, python, Source.auto)
        for name in ensurer.catalogue:
            entry = ensurer.find(name)
            stored = (entry.key.version, entry.record.source, entry.record.sha256[:12]) if entry else ("-", "-", "-")
            table.add_row(name, ensurer.keys(name)[0].version, *stored)
    Console().print(table)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Made if missing; serve or carry it as a mirror.")],
    names: Names = None,
    os_arch: OsArch = _OS_ARCH,
    python: Python = _PYTHON,
    catalogue: CatalogueFile = CATALOGUE,
) -> None:
    """Copy what the store holds into a mirror for a site without internet access.

    There: watchpost artifacts ensure --source mirror --mirror DIRECTORY
    """
    with _told():
        ensurer = _ensurer(catalogue, os_arch, python, Source.auto)
        entries: list[Entry] = []
        for name in names or ensurer.catalogue:
            entry = ensurer.find(name)
            if entry is None:
                raise ArtifactError(f"{name} is not in the store; first run: watchpost artifacts ensure {name}")
            entries.append(entry)
        export_to(entries, directory)
    sys.stdout.write(f"{len(entries)} artifacts in {directory}\n")


def _described(entry: Entry) -> dict[str, str]:
    return {
        "version": entry.key.version,
        "os_arch": entry.key.platform,
        "source": entry.record.source,
        "path": str(entry.path),
        "sha256": entry.record.sha256,
    }
