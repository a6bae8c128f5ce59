"""Debian packages that the controller needs: which, for what, and how they get here."""

import os
import shutil
import subprocess
import sys
from typing import Annotated

import typer

#: purpose -> {package: (a command it brings, why it is needed)}
PACKAGES: dict[str, dict[str, tuple[str, str]]] = {
    "test hosts": {
        "systemd-container": ("systemd-nspawn", "boots a test host with systemd"),
        "mmdebstrap": ("mmdebstrap", "makes the Debian tree that test hosts start from"),
        "debian-archive-keyring": ("", "Debian's signing keys, for a controller that is not Debian"),
        "zstd": ("zstd", "unpacks Debian's packages"),
        "nftables": ("nft", "lets a test host reach Debian's packages"),
        "iproute2": ("ip", "gives a test host its own network"),
        "openssh-client": ("ssh", "Ansible's way into a host"),
        "curl": ("curl", "sends gRPC requests that no library would make"),
    },
    "building from source": {
        "gcc": ("gcc", "links Grafana's SQLite when it is built from source"),
        "libc6-dev": ("", "the C headers for that"),
    },
    "browser tests": {
        "chromium": ("chromium", "clicks through the page as a person does"),
        "chromium-driver": ("chromedriver", "lets a test steer it"),
        "libnss3-tools": ("certutil", "has it trust a test host's authority"),
    },
    "benchmarks": {"wrk": ("wrk", "sends the load whose handling is measured")},
    "unit tests": {
        "groovy": ("groovy", "reads the Jenkinsfile as Jenkins does"),
        "default-jre-headless": ("", "runs Groovy"),
    },
    "linting": {"shellcheck": ("shellcheck", "checks the shell scripts")},
}


class PackageError(Exception):
    """A Debian package is missing and could not be installed."""


def missing(purpose: str) -> dict[str, str]:
    """Packages that a purpose lacks on this machine, and why each is needed."""
    return {
        package: why
        for package, (command, why) in PACKAGES[purpose].items()
        if not (shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") if command else _installed(package))
    }


def _installed(package: str) -> bool:
    """Ask dpkg, for a package that brings no command."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def ensure(*purposes: str) -> None:
    """Install what the purposes lack, naming each package and its reason."""
    wanted = {package: why for purpose in purposes for package, why in missing(purpose).items()}
    if not wanted:
        return
    by_hand = f"apt-get install {' '.join(wanted)}"
    for package, why in wanted.items():
        print(f"Needed from Debian: {package} ({why})", file=sys.stderr, flush=True)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise PackageError(f"as root, run: {by_hand}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *wanted]):
        done = subprocess.run(
            ["apt-get", "--quiet=2", *command], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise PackageError(f"{by_hand}\nfailed: {done.stderr.strip()}")


def command(
    purpose: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(PACKAGES)}. Default: all.")] = None,
) -> None:
    """Install the Debian packages that this machine lacks."""
    try:
        ensure(*(purpose or PACKAGES))
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
