"""Decide, for each wanted component, whether the store already has it, and if not which source is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from watchpost.artifacts import gobuild, release
from watchpost.artifacts.catalogue import Component
from watchpost.artifacts.download import Downloader
from watchpost.artifacts.errors import ArtifactError, Unreachable
from watchpost.artifacts.mirror import Mirror
from watchpost.artifacts.progress import step, warn
from watchpost.artifacts.store import Entry, Key, Record, Store
from watchpost.artifacts.wheelhouse import Project
from watchpost.project import PROJECT


class Source(StrEnum):
    """Where a missing artifact comes from."""

    auto = "auto"
    release = "release"
    mirror = "mirror"
    source = "source"


@dataclass
class Ensurer:
    """Fills a store for one platform."""

    catalogue: Mapping[str, Component]
    cache: Path
    os_arch: str
    python: str
    source: Source = Source.auto
    mirror: str = ""
    repository: Path = PROJECT
    downloader: Downloader = field(default_factory=Downloader)

    def __post_init__(self) -> None:
        """Check what belongs together before anything is done."""
        if (self.source is Source.mirror) != bool(self.mirror):
            raise ArtifactError("--source mirror and --mirror WHERE belong together")
        self.store = Store(self.cache / "store", self.cache / "unfinished")
        self._wrappers = self.repository / "artifacts" / "source"

    def ensure(self, names: Iterable[str]) -> dict[str, Entry]:
        """Return a verified archive for each component, getting those that are missing, one after another."""
        wanted = list(names)
        if unknown := [name for name in wanted if name not in self.catalogue]:
            raise ArtifactError(f"not in the catalogue: {', '.join(unknown)}; it has {', '.join(self.catalogue)}")
        with ThreadPoolExecutor() as pool:
            entries = dict(zip(wanted, pool.map(self.find, wanted), strict=True))
        return {name: entry or self._get(name) for name, entry in entries.items()}

    def find(self, name: str) -> Entry | None:
        """Return what the store already has for a component, verified, if it is what the chosen source would give."""
        for key in self.keys(name):
            entry = self.store.read(key)
            if entry and self._serves(name, entry):
                return entry
        return None

    def keys(self, name: str) -> list[Key]:
        """Return the archives that would serve, best first."""
        component = self.catalogue[name]
        if component.wheelhouse:
            version = Project(self.repository / component.wheelhouse).version()
            return [Key(name, version, f"{self.os_arch}-cp{self.python.replace('.', '')}")]
        released = Key(name, component.version or "", self.os_arch)
        built = Key(name, (component.source and component.source.version) or released.version, self.os_arch)
        had = self.source is Source.auto and self.store.has_release_of(name)  # then a build is no way out, see _get
        return {
            Source.release: [released],
            Source.source: [built],
        }.get(self.source, [released] if had or built == released else [released, built])

    def _serves(self, name: str, entry: Entry) -> bool:
        component = self.catalogue[name]
        recipe = entry.record.recipe
        if entry.record.source == "source" and component.source:
            recipe = gobuild.recipe_digest(name, entry.key.version, self.os_arch, component.source, self._wrappers)
        elif entry.record.source == "release" and component.release:
            recipe = release.recipe_digest(component.release)
        if entry.record.recipe != recipe:
            return False
        if component.wheelhouse and self.source is not Source.mirror:
            return True  # it has no upstream: this checkout is its only source
        return self.source is Source.auto or entry.record.source == self.source

    def _get(self, name: str) -> Entry:
        with self.store.lock(name):
            if entry := self.find(name):
                return entry  # another run got it while this one waited
            *_, key = self.keys(name)
            if self.source is Source.mirror:
                return self._from_mirror(name)
            if self.catalogue[name].wheelhouse:
                return self._wheelhouse(name, key)
            if self.source is Source.source:
                return self._build(name, key)
            try:
                return self._release(name, self.keys(name)[0])
            except Unreachable as error:
                if self.source is Source.release:
                    raise
                if self.store.has_release_of(name):
                    raise Unreachable(
                        f"{error}\nThis machine has had releases of {name}, so nothing else takes their place. "
                        "Try again later, or have it built (watchpost_artifact_source: source; here --source source)."
                    ) from error
                warn(f"{name}: release not reachable ({error}); building from source, which may be another version")
                return self._build(name, key)

    def _release(self, name: str, key: Key) -> Entry:
        spec = self.catalogue[name].release
        assert spec is not None  # noqa: S101  # the catalogue's model says so
        remembered = release.Remembered(self.cache / "release-checksums.json")
        with self.store.scratch(name) as work, step(f"{name} {key.version}: fetching the release"):
            tree, url = release.fetch(key, spec, work, self.downloader, remembered)
            recipe = release.recipe_digest(spec)
            return self.store.pack(
                key, tree, lambda digest: Record(sha256=digest, source="release", origin=url, recipe=recipe)
            )

    def _from_mirror(self, name: str) -> Entry:
        mirror = Mirror(self.mirror, self.downloader)
        for key in self.keys(name):
            with step(f"{name} {key.version}: asking the mirror"):
                if entry := mirror.fetch(key, self.store):
                    return entry
        tried = "\n".join(f"  {key.path}" for key in self.keys(name))
        raise ArtifactError(f"{name}: the mirror {self.mirror} has none of\n{tried}")

    def _build(self, name: str, key: Key) -> Entry:
        spec = self.catalogue[name].source
        assert spec is not None  # noqa: S101  # the catalogue's model says so
        recipe = gobuild.recipe_digest(name, key.version, self.os_arch, spec, self._wrappers)
        with self.store.scratch(name) as work:
            build = gobuild.Build(name, key.version, self.os_arch, spec, work, self.cache, self._wrappers)
            with step(f"{name} {key.version}: building from source", f"(log: {build.log})"):
                tree = build.run()
                return self.store.pack(
                    key, tree, lambda digest: Record(sha256=digest, source="source", origin="go modules", recipe=recipe)
                )

    def _wheelhouse(self, name: str, key: Key) -> Entry:
        project = Project(self.repository / (self.catalogue[name].wheelhouse or ""))
        log = self.cache / "log" / f"{name}-build.log"
        with self.store.scratch(name) as work, step(f"{name} {key.version}: wheels for Python {self.python}"):
            tree = project.build(self.os_arch, self.python, work, log)
            return self.store.pack(
                key, tree, lambda digest: Record(sha256=digest, source="source", origin=str(project.directory.name))
            )
