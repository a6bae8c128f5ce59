"""The source `mirror`: a store's layout in a directory or behind HTTPS, for sites without internet access."""

from __future__ import annotations

import shutil
from pathlib import Path

from watchpost.artifacts.download import Downloader, NotFound
from watchpost.artifacts.errors import ArtifactError, ChecksumMismatch
from watchpost.artifacts.store import Entry, Key, Record, Store, parse_record, record_path, sha256


class Mirror:
    """Reads archives from elsewhere into a store, each checked against the mirror's own record."""

    def __init__(self, where: str, downloader: Downloader) -> None:
        """Take a directory or an https URL. Raises ArtifactError for anything else."""
        self._url = where.rstrip("/") if "://" in where else ""
        if self._url and not self._url.startswith("https://"):
            raise ArtifactError(f"mirror {where}: must be a directory or an https:// URL")
        self._directory = Path(where).expanduser().absolute()
        if not self._url and not self._directory.is_dir():
            raise ArtifactError(f"mirror {where}: there is no such directory")
        self._downloader = downloader

    def fetch(self, key: Key, store: Store) -> Entry | None:
        """Copy one archive into the store; None when the mirror does not have it."""
        origin = f"{self._url or self._directory}/{key.path}"
        with store.scratch(key.component) as work:
            archive = work / key.file
            if self._url:
                try:
                    text = self._downloader.text(f"{origin}.json")
                except NotFound:
                    return None
                self._downloader.file(origin, archive)
            else:
                beside = record_path(Path(origin))
                if not beside.is_file():
                    return None
                text = beside.read_text()
                shutil.copyfile(origin, archive)
            expected, found = parse_record(text, f"{origin}.json").sha256, sha256(archive)
            if found != expected:
                raise ChecksumMismatch(origin, expected, found, "Nothing was stored. Export the mirror anew.")
            return store.put(key, archive, Record(sha256=found, source="mirror", origin=origin))


def export(entries: list[Entry], to: Path) -> None:
    """Copy verified archives with their records into a directory that serves as a mirror."""
    there = Store(to)
    for entry in entries:
        with there.scratch(entry.key.component) as work:
            copy = work / entry.key.file
            shutil.copyfile(entry.path, copy)
            there.put(entry.key, copy, entry.record)
    shutil.rmtree(to / ".unfinished", ignore_errors=True)  # only a store at work needs it
