"""The source `release`: upstream's own files, each verified before anything is made of it.

What a file must be is said by the catalogue's digest where it has one; else by what this controller remembers of the
file from the first time; else, that first time, by the checksums that upstream publishes beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from watchpost.artifacts.catalogue import Release
from watchpost.artifacts.download import Downloader
from watchpost.artifacts.errors import ArtifactError, ChecksumMismatch
from watchpost.artifacts.store import Key, extract, sha256

#: An https origin (`https://host:port`) that is asked in place of github.com and dl.grafana.com, with the same paths.
ORIGIN_VARIABLE = "WATCHPOST_RELEASE_ORIGIN"


class Remembered:
    """Digests of release files, as first seen by this controller: `{url: {sha256, first_seen}}`."""

    def __init__(self, path: Path) -> None:
        """Take the JSON file that holds them."""
        self.path = path

    def get(self, url: str) -> str | None:
        """Return the digest that a file had the first time."""
        found = self._read().get(url)
        return found["sha256"] if found else None

    def add(self, url: str, digest: str) -> None:
        """Remember a file."""
        seen = self._read()
        seen.setdefault(url, {"sha256": digest, "first_seen": datetime.now(UTC).date().isoformat()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        partial.write_text(json.dumps(seen, indent=2, sort_keys=True) + "\n")
        partial.replace(self.path)

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            seen: dict[str, dict[str, str]] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError as error:
            raise ArtifactError(f"{self.path} is not JSON: {error}") from error
        return seen


def fill(pattern: str, key: Key) -> str:
    """Put a component's version, operating system and architecture into a catalogue's pattern."""
    os_name, arch = key.platform.split("-")[:2]
    return pattern.replace("{version}", key.version).replace("{os}", os_name).replace("{arch}", arch)


def fetch(key: Key, release: Release, work: Path, downloader: Downloader, remembered: Remembered) -> tuple[Path, str]:
    """Download, verify and unpack; return a directory holding bin/ (and share/), and the URL it came from."""
    url = fill(release.url, key)
    checksums = fill(release.checksums, key)
    advice = "Nothing was stored."
    if expected := next((digest for platform, digest in release.sha256.items() if platform == key.platform), None):
        advice += " The catalogue pins this file."
    elif expected := remembered.get(url):
        advice += (
            f" It was another file when first seen. If upstream says why, remove its entry from\n  {remembered.path}"
        )
    else:
        expected = published(downloader.text(_at_origin(checksums)), url.rsplit("/", 1)[1], checksums)
        advice += f" The expected digest is upstream's own, from {checksums}"
    file = work / url.rsplit("/", 1)[1]
    downloader.file(_at_origin(url), file)
    found = sha256(file)
    if found != expected:
        raise ChecksumMismatch(url, expected, found, advice)
    remembered.add(url, found)
    return unpack(file, {fill(k, key): v for k, v in release.take.items()}, work), url


def recipe_digest(release: Release) -> str:
    """Return a digest of what is taken from a release's file, so that a changed catalogue takes it anew."""
    return hashlib.sha256(json.dumps(release.take, sort_keys=True).encode()).hexdigest()


def published(text: str, file: str, where: str) -> str:
    """Find a file's digest in a checksum file: lines of `<digest>  <file>`, or one bare digest."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for digest, *name in lines:
        bare = not name and len(lines) == 1
        if (bare or (name and name[-1].lstrip("*").rsplit("/", 1)[-1] == file)) and re.fullmatch(
            r"[0-9a-fA-F]{64}", digest
        ):
            return digest.lower()
    raise ArtifactError(f"{where} has no SHA-256 of {file}")


def unpack(file: Path, take: dict[str, str], work: Path) -> Path:
    """Take from an archive (tar or zip) what the catalogue names, into the store's form."""
    everything, tree = work / "unpacked", work / "tree"
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as packed:
                packed.extractall(everything)  # noqa: S202  # drops leading slashes and .. by itself
        else:
            extract(file, everything)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(f"{file.name} cannot be unpacked: {error}") from error
    for pattern, path in take.items():
        matches = list(everything.glob(pattern.rstrip("/")))
        if len(matches) != 1:
            holds = ", ".join(sorted(str(p.relative_to(everything)) for p in everything.glob("*"))[:8])
            raise ArtifactError(f"{file.name}: {len(matches)} paths match {pattern!r}, not one; at its top: {holds}")
        target = tree / path.rstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(matches[0], target)
        if path.startswith("bin/"):
            target.chmod(0o755)  # zip files carry no modes worth trusting
    return tree


def _at_origin(url: str) -> str:
    origin = os.environ.get(ORIGIN_VARIABLE)
    if not origin:
        return url
    if not origin.startswith("https://"):
        raise ArtifactError(f"{ORIGIN_VARIABLE}={origin}: must be an https:// origin")
    scheme, host = urlsplit(origin)[:2]
    return urlunsplit((scheme, host, *urlsplit(url)[2:]))
