"""The catalogue of pinned components, read strictly: an unknown or malformed field is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from watchpost.artifacts.errors import ArtifactError
from watchpost.project import PROJECT

CATALOGUE = PROJECT / "artifacts" / "catalogue.yml"

OsArch = Literal["linux-amd64", "linux-arm64"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][0-9A-Za-z.+-]*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


def _https(url: str) -> str:
    if not url.startswith("https://"):
        raise ValueError("must be an https:// URL")
    return url


def _store_path(path: str) -> str:
    if not path.startswith(("bin/", "share/")) or ".." in path:
        raise ValueError(f"{path!r} must lie in bin/ or share/")
    return path


Url = Annotated[str, AfterValidator(_https)]
StorePath = Annotated[str, AfterValidator(_store_path)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Release(_Strict):
    """Upstream's own release file. `{version}`, `{os}` and `{arch}` are filled in wherever they stand."""

    url: Url
    #: Where upstream publishes SHA-256 digests: either `<digest>  <file>` lines or one bare digest.
    checksums: Url
    #: Digests of the release file that were confirmed from two places; they outrank `checksums`.
    sha256: dict[OsArch, Sha256] = {}
    #: pattern inside upstream's archive -> path in the store's archive; a trailing slash takes a whole directory
    take: dict[str, StorePath] = Field(min_length=1)


class GoSource(_Strict):
    """How to build the component from Go modules; the wrapper module is `artifacts/source/<component>/`."""

    #: Where the newest version that builds differs from the release; None: the same.
    version: Version | None = None
    recipe: Literal["plain", "collector", "grafana"] = "plain"
    #: executable -> Go package; the Collector's package is generated
    packages: dict[str, str] = Field(min_length=1)
    tags: list[str] = []
    #: -ldflags -X variables that receive the version
    stamp: list[str] = []


class Component(_Strict):
    """One thing that a host can run: either upstream's (release and source) or this repository's own (wheelhouse)."""

    summary: str
    version: Version | None = None
    release: Release | None = None
    source: GoSource | None = None
    #: Directory of a Python project with a pyproject.toml and a requirements.lock.
    wheelhouse: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.wheelhouse is not None:
            if self.version or self.release or self.source:
                raise ValueError("wheelhouse: stands alone; its version comes from the project")
        elif not (self.version and self.release and self.source):
            raise ValueError("version, release and source are all needed (or wheelhouse alone)")
        return self


class Catalogue(_Strict):
    """Every component, by its key in the registry of endpoints."""

    components: dict[Name, Component] = Field(min_length=1)


def load(path: Path = CATALOGUE) -> dict[str, Component]:
    """Read a catalogue. Raises ArtifactError naming the file and each wrong field."""
    try:
        return Catalogue.model_validate(yaml.safe_load(path.read_text())).components
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ArtifactError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        wrong = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ArtifactError(f"{path} is refused:\n{wrong}") from error
