"""`watchpost backup`: the controller's half of playbooks/backup.yml and restore.yml.

An archive is a tar file: `manifest.json` (nothing secret: whose it is, from when, of which versions),
`state.tar.gz.vault` (what the host has put together) and `secrets.yml` (this machine's secrets of the deployment). The
latter two are sealed by Ansible Vault with the password of the secrets, which is in no archive.
"""

from __future__ import annotations

import datetime
import gzip
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from watchpost.secrets import SecretsError, SecretStore, write_private

#: Raised when an archive of an older version could not be read any more.
FORMAT = 1
MANIFEST, STATE, SECRETS = "manifest.json", "state.tar.gz.vault", "secrets.yml"

NOT_WHOLE = (OSError, tarfile.TarError, EOFError, zlib.error)


class BackupError(Exception):
    """The archive cannot be made or may not be used; the message says why, and what to do."""


def seal(state: Path, deployment: str, host: str, versions: Mapping[str, str], directory: Path) -> Path:
    """Make an archive of what a host has put together, with this machine's secrets; return where it is.

    Its name tells deployment, host and time (UTC). Raises BackupError without secrets, or when what the host has put
    together is not whole, and SecretsError when they do not open: an archive of them would be worth nothing.
    """
    store = SecretStore(deployment)
    if not store.read():
        raise BackupError(f"{store.path} is not there: run this on the machine from which site.yml was run")
    content = state.read_bytes()
    _check(content, str(state))
    now = datetime.datetime.now(datetime.UTC)
    manifest = {"format": FORMAT, "deployment": deployment, "host": host, "made": now.isoformat(timespec="seconds")}
    parts = {
        MANIFEST: json.dumps({**manifest, "versions": versions}, indent=2).encode() + b"\n",
        STATE: store.seal(content),
        SECRETS: store.path.read_bytes(),
    }
    packed = io.BytesIO()
    # Ansible Vault writes hexadecimal digits, twice over: packed once more, most of that is gone again.
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(now.timestamp())
            tar.addfile(entry, io.BytesIO(content))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    archive = directory / f"{deployment}-{host}-{now:%Y-%m-%dT%H%M%S.%fZ}.tar.gz"
    write_private(archive, packed.getvalue())
    return archive


def unseal(archive: Path, deployment: str, directory: Path, *, anyway: bool = False) -> dict[str, Any]:
    """Write `state.tar.gz` and `secrets.yml` (still sealed) of an archive into a directory; return its manifest.

    Raises BackupError for what is no whole archive, for one of another format, and, unless `anyway`, for one of another
    deployment; SecretsError when the vault's password is another. Whatever is written has been opened to its end.
    """
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise BackupError(f"{archive} cannot be read: {error}") from error
    try:
        with _opened(content) as tar:
            parts = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
        manifest: dict[str, Any] = json.loads(parts[MANIFEST])
        sealed, secrets, made_for = parts[STATE], parts[SECRETS], manifest["deployment"]
    except (*NOT_WHOLE, KeyError, ValueError) as error:
        raise BackupError(f"{archive} is no whole archive of playbooks/backup.yml: {error!r}") from error
    if manifest.get("format") != FORMAT:
        raise BackupError(
            f"{archive} has format {manifest.get('format')}, and this version of Watchpost knows {FORMAT}: "
            "restore it with the version that made it"
        )
    if made_for != deployment and not anyway:
        raise BackupError(
            f"{archive} is of the deployment {made_for}, and this inventory is {deployment}: "
            "take its own inventory, or say -e restore_anyway=true"
        )
    store = SecretStore(deployment)
    plain = store.unseal(sealed, str(archive))
    _check(plain, str(archive))
    store.unseal(secrets, f"{SECRETS} in {archive}")
    for each in (directory.parent, directory):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(directory / STATE.removesuffix(".vault"), plain)
    write_private(directory / SECRETS, secrets)
    return manifest


def _opened(packed: bytes) -> tarfile.TarFile:
    """Open a tar file that gzip has packed, once its checksum was seen to be right; raise one of NOT_WHOLE."""
    return tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed)))


def _check(state: bytes, name: str) -> None:
    """Raise BackupError unless all that a host has put together is there, and is what its module may put back."""
    try:
        with _opened(state) as tar:
            strange = [member.name for member in tar if not _may_be_put_back(member)]
    except NOT_WHOLE as error:
        raise BackupError(f"what the host has put together is not whole in {name}: {error!r}") from error
    if strange:
        raise BackupError(f"{name} holds what no backup has put there: {', '.join(strange)}")


def _may_be_put_back(member: tarfile.TarInfo) -> bool:
    parts = PurePosixPath(member.name).parts
    inside = len(parts) > 1 and parts[0] in ("pki", "state") and ".." not in parts
    return inside and (member.isdir() or member.isreg())


app = typer.Typer(help="Seal and open what playbooks/backup.yml and restore.yml bring.", no_args_is_help=True)

Deployment = Annotated[str, typer.Option(help="The installation it is of.")]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (BackupError, SecretsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(1) from error


@app.command("seal")
def seal_command(
    state: Annotated[Path, typer.Argument(help="What the host has put together.")],
    deployment: Deployment,
    host: Annotated[str, typer.Option(help="Its name in the inventory.")],
    versions: Annotated[str, typer.Option(help="JSON: component to the version that runs.")],
    directory: Annotated[Path, typer.Option(help="Where to put the archive.")],
) -> None:
    """Make an archive and print its path."""
    with _told():
        typer.echo(seal(state, deployment, host, json.loads(versions), directory))


@app.command("open")
def open_command(
    archive: Annotated[Path, typer.Argument(help="An archive of playbooks/backup.yml.")],
    deployment: Deployment,
    directory: Annotated[Path, typer.Option(help="Where to put its parts: they hold secrets.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also one of another deployment.")] = False,
) -> None:
    """Take an archive apart and print its manifest."""
    with _told():
        typer.echo(json.dumps(unseal(archive, deployment, directory, anyway=anyway)))
