"""A deployment's secrets: made once, kept in an Ansible-Vault file on the controller, rotated by number.

The file is `$XDG_STATE_HOME/watchpost/<deployment>/secrets.yml` and holds `{name: {generation, value}}`. It is sealed
with the password in `$ANSIBLE_VAULT_PASSWORD_FILE`, or else with one in a file that is generated beside the user's
other configuration, so `ansible-vault view` opens it as well. Both are tried on it, and it stays sealed with the one
that it was made with: the variable may be set later, for a vault in the inventory.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
import yaml

if TYPE_CHECKING:
    from ansible.parsing.vault import VaultSecret  # type: ignore[import-untyped]  # Ansible ships no types

#: A random value among the secrets that is none: the host is marked with it, and so knows the secrets again.
MARK = "deployment_id"
_SECRET_BYTES = 32  # of randomness; 43 characters as text
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SecretsError(Exception):
    """Something the person must put right; the message names it."""


class Entry(TypedDict):
    """One stored secret."""

    generation: int
    value: str


def state_dir(deployment: str) -> Path:
    """Return the directory in which the controller keeps what belongs to one deployment.

    Raises SecretsError for a name that is not one plain path component.
    """
    if not _NAME.fullmatch(deployment):
        raise SecretsError(f"deployment name {deployment!r}: use letters, digits, '.', '_' and '-' only")
    return _xdg("XDG_STATE_HOME", ".local/state") / deployment


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "watchpost"


class SecretStore:
    """The encrypted file of one deployment."""

    def __init__(self, deployment: str) -> None:
        """Refer to a deployment's file; nothing is read or made yet."""
        self.path = state_dir(deployment) / "secrets.yml"

    def ensure(self, generations: Mapping[str, int], inventory: str = "") -> tuple[dict[str, str], list[str]]:
        """Return the value of each named secret, and the names of those made anew just now.

        A secret is made when it is missing or when a higher generation than the stored one is wanted; a lower one
        (the line that asked for it is gone) changes nothing. Others in the file are left alone. Only one process at a
        time may do this; a reader sees the old file or the new one. An `inventory` whose directory gave the deployment
        its name is noted, for `estranged`.
        """
        for name in generations:
            if not _NAME.fullmatch(name):
                raise SecretsError(f"secret name {name!r}: use letters, digits, '.', '_' and '-' only")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.path.with_suffix(".lock")):
            entries, password = self._open()
            made = [n for n, wanted in generations.items() if n not in entries or entries[n]["generation"] < wanted]
            for name in made:
                entries[name] = {"generation": generations[name], "value": token_urlsafe(_SECRET_BYTES)}
            if made:
                from ansible.parsing.vault import VaultLib

                sealed = VaultLib().encrypt(yaml.safe_dump(entries, sort_keys=True), password)
                write_private(self.path, sealed)
            if Path(inventory).name == self.path.parent.name and inventory != _noted(self.path.parent):
                write_private(self.path.parent / "inventory", inventory.encode())
        return {name: entries[name]["value"] for name in generations}, made

    def read(self) -> dict[str, Entry]:
        """Return every stored secret; none when nothing was ever stored."""
        return self._open()[0] if self.path.exists() else {}

    def seal(self, plain: bytes) -> bytes:
        """Encrypt as `ansible-vault encrypt` does, with the password that seals the secrets."""
        from ansible.parsing.vault import VaultLib

        sealed: bytes = VaultLib().encrypt(plain, self._open()[1])
        return sealed

    def unseal(self, sealed: bytes, name: str) -> bytes:
        """Decrypt what `seal` or `ansible-vault` has encrypted; `name` is what a SecretsError calls it."""
        return self._unseal(sealed, name)[0]

    def _open(self) -> tuple[dict[str, Entry], VaultSecret]:
        """Return what is stored, and the password with which it is sealed, or will be."""
        if not self.path.exists():
            from ansible.parsing.vault import VaultSecret

            return {}, VaultSecret(_password(_password_files(str(self.path), make=True)[0]))
        text, password = self._unseal(self.path.read_bytes(), str(self.path))
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise SecretsError(f"{self.path} opens, but does not hold a mapping of secrets")
        return content, password

    def _unseal(self, sealed: bytes, name: str) -> tuple[bytes, VaultSecret]:
        """Return what is sealed, and the password that opens it."""
        # Ansible takes a quarter of a second to import: only when something is opened or sealed.
        from ansible.errors import AnsibleError  # type: ignore[import-untyped]  # Ansible ships no types
        from ansible.parsing.vault import VaultLib, VaultSecret

        files = _password_files(name)
        passwords = [(str(file), VaultSecret(_password(file))) for file in files]
        try:
            text, _, password = VaultLib(passwords).decrypt_and_get_vault_id(sealed)
        except AnsibleError as error:
            raise SecretsError(
                f"{name} does not open with the vault password in {' or '.join(map(str, files))}: "
                "point ANSIBLE_VAULT_PASSWORD_FILE at the one it was made with"
            ) from error
        return text, password


def _password_files(name: str, *, make: bool = False) -> list[Path]:
    """Return the files whose passwords may open what is called `name`, the one to seal new secrets with first."""
    named = os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
    own = own_password_file()
    files = [Path(named).expanduser()] if named else []
    if make and not files and not own.exists():
        own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(own.with_suffix(".lock")):
            if not own.exists():
                write_private(own, f"{token_urlsafe(_SECRET_BYTES)}\n".encode())
    if not files or own.exists():
        files.append(own)
    if missing := [str(file) for file in files if not file.exists()]:
        raise SecretsError(f"the vault password file {missing[0]} is missing: put it back to open {name}")
    return files


def estranged(deployment: str, mark: Mapping[str, str], inventory: str, *, installed: bool = False) -> str:
    """Return why a host must not be given a deployment's secrets, and what to do; nothing when it may.

    Otherwise a run from a second machine, or from an inventory that was renamed, would replace every secret of the
    host, and two inventories whose directories have the same name would share theirs. `mark` is what the last run left
    on the host, the deployment's name and its MARK; empty before the first run, and where a version without marks
    `installed` it. `inventory` is the directory of the host's inventory. Raises SecretsError.
    """
    home, store = state_dir(deployment), SecretStore(deployment)
    own = store.read().get(MARK)
    if not mark:
        if installed and not store.path.exists():
            return (
                f"the host is installed already, with secrets that this machine does not know, and a run would replace "
                f"all of them; copy {home} and {own_password_file()} from the machine that ran site.yml before"
            )
        noted = _noted(home)
        if own is None or inventory == noted or not Path(noted or "/nowhere").is_dir():
            return ""
        return (
            f"the host is new, and the secrets of deployment {deployment} are those of another inventory, {noted}; "
            f"set watchpost_deployment in {inventory} to a name of its own"
        )
    if own and own["value"] == mark["id"]:
        return ""
    name = mark["deployment"]
    rename = f"set watchpost_deployment: {name}" if name != deployment else ""
    if rename and SecretStore(name).path.exists():
        return f"the host has the secrets of deployment {name}, and this inventory is of {deployment}; {rename}"
    aside = f"move {home} away, which holds other secrets, and " if own and not rename else ""
    return (
        f"the host has secrets of deployment {name} that this machine does not know, and a run would replace all of "
        f"them; {aside}copy {state_dir(name)} and {own_password_file()} from the machine that ran site.yml before"
        + (f", and {rename}" if rename else "")
    )


def _noted(home: Path) -> str:
    """Return the inventory from which the deployment has its name; nothing when it has it from elsewhere."""
    try:
        return (home / "inventory").read_text()
    except FileNotFoundError:
        return ""


def _password(file: Path) -> bytes:
    if os.access(file, os.X_OK):  # as Ansible does: an executable is a script that prints the password
        answer = subprocess.run([str(file)], stdout=subprocess.PIPE, check=False)
        if answer.returncode:
            raise SecretsError(f"the vault password script {file} exited with {answer.returncode}")
        password = answer.stdout.strip()
    else:
        password = file.read_bytes().strip()
    if not password:
        raise SecretsError(f"the vault password file {file} is empty")
    return password


def own_password_file() -> Path:
    """Return the file with the vault password that is made when the user names none."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "vault-password"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; nobody but its owner can read it at any moment (mkstemp makes it 0600)."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _generations(text: str) -> dict[str, int]:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise SecretsError(f"--generations is not JSON: {error}") from error
    if not isinstance(given, dict) or not all(type(n) is int and n > 0 for n in given.values()):
        raise SecretsError('--generations must map names to whole numbers from 1 on, like {"otlp_ingest_token": 1}')
    return given


def _only_deployment() -> str:
    known = sorted(p.parent.name for p in _xdg("XDG_STATE_HOME", ".local/state").glob("*/secrets.yml"))
    if len(known) != 1:
        raise SecretsError(f"say which with --deployment: {', '.join(known) or 'none has secrets yet'}")
    return known[0]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (SecretsError, OSError) as error:
        sys.stderr.write(f"watchpost secrets: {error}\n")
        raise typer.Exit(1) from error


app = typer.Typer(help="Make, rotate and show the secrets of a deployment.", no_args_is_help=True)


@app.command()
def ensure(
    deployment: Annotated[str, typer.Option(help="The installation they belong to.")],
    generations: Annotated[str, typer.Option(help="JSON: name to generation; a changed number rotates.")],
    named_by: Annotated[str, typer.Option(help="The inventory's directory, which may have given the name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print {name: value}: for Ansible, which hides it.")] = False,
) -> None:
    """Make the secrets that are missing or whose generation number changed."""
    with _told():
        store = SecretStore(deployment)
        wanted = _generations(generations)
        values, made = store.ensure(wanted, named_by)
    for name in made:
        sys.stderr.write(f"Made {name} (generation {wanted[name]}).\n")
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
    else:
        sys.stdout.write(f"{len(values)} secrets, {len(made)} of them new, in {store.path}\n")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="For example grafana_admin_password.")],
    deployment: Annotated[str, typer.Option(help="Need not be given while there is only one.")] = "",
) -> None:
    """Print one secret, for the person who runs the deployment."""
    with _told():
        deployment = deployment or _only_deployment()
        entries = SecretStore(deployment).read()
        if name not in entries:
            raise SecretsError(f"{deployment} has no secret {name!r}; it has: {', '.join(sorted(entries)) or 'none'}")
        sys.stdout.write(entries[name]["value"] + "\n")
