"""Where an appliance is, and how it is trusted: read from the inventory and the controller's own files."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from watchpost import secrets
from watchpost.project import PROJECT
from watchpost.verify_grafana import Grafana

USER = "admin"  # of Grafana; the grafana role makes it
PASSWORD = "grafana_admin_password"  # noqa: S105  # the secret's name, not its value
TOKEN = "otlp_ingest_token"  # noqa: S105  # likewise


class TargetError(Exception):
    """The appliance cannot be found or reached; the message says which flag or file is wrong."""


@dataclass(frozen=True)
class Target:
    """One appliance, as seen from outside."""

    url: str
    password: str
    ca: Path | None  # trusted beside the system's own authorities
    ingest: str = ""  # where OTLP over HTTP is taken; empty when no inventory was read
    token: str = ""  # what is said there
    components: frozenset[str] | None = None  # what it runs; unknown when no inventory was read

    def reached_at(self, ingest: str) -> Target:
        """Return the same appliance with another OTLP endpoint."""
        return replace(self, ingest=_https("--ingest", ingest))

    def trust(self) -> ssl.SSLContext:
        """Return the TLS settings: always verified, by the system's authorities and the deployment's own."""
        context = ssl.create_default_context()
        if self.ca:
            try:
                context.load_verify_locations(self.ca)
            except (OSError, ssl.SSLError) as error:
                raise TargetError(f"{self.ca} is no readable CA certificate: {error}") from error
        return context

    def client(self, timeout: float = 30, headers: Mapping[str, str] | None = None) -> httpx.Client:
        """Return a client of the gateway; `timeout` is of one request, in seconds. Raises TargetError as `trust`."""
        return httpx.Client(base_url=self.url, verify=self.trust(), timeout=timeout, headers=headers, trust_env=False)

    @contextmanager
    def grafana(self, timeout: float = 30) -> Iterator[Grafana]:
        """Open a session at Grafana; `timeout` is of one request, in seconds.

        Raises AskError when it refuses the login, httpx.HTTPError when nobody answers, TargetError as `trust` does.
        """
        with self.client(timeout) as client:
            grafana = Grafana(client)
            grafana.login(USER, self.password)
            yield grafana


def find(
    inventory: str = "", url: str = "", ca: Path | None = None, deployment: str = "", password_file: Path | None = None
) -> Target:
    """Fill in what was not given: URL and deployment from the inventory, the rest from the deployment's files.

    Raises TargetError when something is missing, naming it.
    """
    ingest, components = "", None
    if not url or not (deployment or (ca and password_file)):
        found_url, ingest, found_deployment, components = _from_inventory(inventory)
        url = url or found_url
        deployment = deployment or found_deployment
    url = _https("--url", url)
    if ca is None and deployment:
        fetched = _state(deployment) / "ca.crt"
        ca = fetched if fetched.exists() else None  # a gateway with a public certificate needs none
    entries = _secrets(deployment) if deployment and not password_file else {}
    password = _password(deployment, entries, password_file)
    return Target(url, password, ca, ingest, entries.get(TOKEN, ""), components)


def open_to_all(url: str, ca: Path | None = None) -> Target:
    """Return an appliance of which nothing but the public address is known: for what needs no login."""
    return Target(_https("--url", url), "", ca)


def reach(client: httpx.Client, target: Target) -> str:
    """Return which version of the task manager answers, like `taskboard 0.1.0`; empty when it does not say.

    Raises TargetError unless somebody answers at the address, with a certificate that is trusted.
    """
    try:
        client.get("/healthz")
        answer = client.get("/version")
    except httpx.TransportError as error:
        trusted = f"the system's authorities and {target.ca}" if target.ca else "the system's authorities only"
        raise TargetError(f"{target.url} cannot be reached: {error} (trusted: {trusted})") from error
    try:
        said = answer.json()
        return f"{said['name']} {said['version']}" if answer.status_code == 200 else ""
    except (ValueError, KeyError):
        return ""


def _https(flag: str, url: str) -> str:
    if not url.startswith("https://"):
        raise TargetError(f"{flag} {url}: must begin with https://, nothing here is served without TLS")
    return url.rstrip("/")


def _state(deployment: str) -> Path:
    try:
        return secrets.state_dir(deployment)
    except secrets.SecretsError as error:
        raise TargetError(str(error)) from error


def _secrets(deployment: str) -> dict[str, str]:
    try:
        return {name: entry["value"] for name, entry in secrets.SecretStore(deployment).read().items()}
    except (secrets.SecretsError, OSError) as error:
        raise TargetError(str(error)) from error


def _password(deployment: str, entries: dict[str, str], file: Path | None) -> str:
    if file:
        try:
            return file.read_text().strip()
        except OSError as error:
            raise TargetError(f"--password-file: {error}") from error
    if PASSWORD not in entries:
        raise TargetError(
            f"deployment {deployment!r} has no {PASSWORD} on this machine: run site.yml, or where another machine has "
            f"done so, copy {_state(deployment)} and {secrets.own_password_file()} from there; "
            "or give --deployment or --password-file"
        )
    return entries[PASSWORD]


def _from_inventory(inventory: str) -> tuple[str, str, str, frozenset[str]]:
    """Return the gateway's URL, that of OTLP over HTTP, the deployment's name, and the components that have a host."""
    names = ("watchpost_public_host", "watchpost_endpoints", "watchpost_deployment", "groups")
    host, endpoints, deployment, groups = variables(inventory, "gateway", *names)
    try:
        port, ingest = (
            int(endpoints[of][at]["port"]) for of, at in (("gateway", "https"), ("otel_collector", "ingest_http"))
        )
    except KeyError as error:
        raise TargetError(f"watchpost_endpoints has no {error}") from error
    url = f"https://{host}" + ("" if port == 443 else f":{port}")
    components = frozenset(component for component in endpoints if groups.get(component))
    return url, f"https://{host}:{ingest}", str(deployment), components


def variables(inventory: str, group: str, *names: str) -> list[Any]:
    """Return the values of variables for a group's first host, as Ansible itself resolves them.

    Without an inventory ansible.cfg's is read. What Ansible Vault has encrypted opens with the passwords that Ansible's
    own settings name. Raises TargetError naming the inventory and what is wrong with it.
    """
    # Ansible takes a third of a second to import: only when an inventory is read.
    from ansible import constants  # type: ignore[import-untyped]  # Ansible ships no types
    from ansible.cli import CLI  # type: ignore[import-untyped]
    from ansible.errors import AnsibleError  # type: ignore[import-untyped]
    from ansible.inventory.manager import InventoryManager  # type: ignore[import-untyped]
    from ansible.parsing.dataloader import DataLoader  # type: ignore[import-untyped]
    from ansible.parsing.vault import VaultSecretsContext  # type: ignore[import-untyped]
    from ansible.plugins.loader import init_plugin_loader  # type: ignore[import-untyped]
    from ansible.template import Templar  # type: ignore[import-untyped]
    from ansible.vars.manager import VariableManager  # type: ignore[import-untyped]

    sources = [inventory] if inventory else constants.DEFAULT_HOST_LIST
    if inventory and not Path(inventory).exists():
        raise TargetError(f"--inventory {inventory}: no such file or directory")
    try:
        init_plugin_loader()
        loader = DataLoader()
        loader.set_basedir(str(PROJECT))  # group_vars/ lies beside the playbook
        CLI.setup_vault_secrets(
            loader,
            list(constants.DEFAULT_VAULT_IDENTITY_LIST),
            ask_vault_pass=constants.DEFAULT_ASK_VAULT_PASS,
            auto_prompt=False,
            initialize_context=VaultSecretsContext.current(optional=True) is None,  # which can be done once
        )
        hosts = InventoryManager(loader, sources=sources)
        members = hosts.get_hosts(group)
        if not members:
            raise TargetError(f"inventory {', '.join(sources)} has no host in the group {group}")
        given = VariableManager(loader, hosts).get_vars(host=members[0])
        resolve = Templar(loader, variables=given).template
        return [resolve(given[name]) for name in names]
    except (AnsibleError, KeyError) as error:
        raise TargetError(f"inventory {', '.join(sources)}: {with_remedy(str(error))}") from error


def with_remedy(said: str) -> str:
    """Return Ansible's words; where they are about a vault that does not open, with what opens it."""
    if not re.search("vault (password|secret)", said):
        return said
    return (
        f"{said.rstrip('.')}. ANSIBLE_VAULT_PASSWORD_FILE must name the file with the password of the inventory's "
        "vault, or ANSIBLE_ASK_VAULT_PASS=1 has you asked for it"
    )
