"""The store: one archive in one form for each component, version and platform, checked on every use.

    <cache>/store/<component>/<version>/<platform>/<component>-<version>-<platform>.tar.gz
    <cache>/store/<component>/<version>/<platform>/<component>-<version>-<platform>.tar.gz.json   its record

An archive without a record was interrupted and is made again. One that does not match its record is refused, not
replaced: a file that changed by itself means a failing disk or a hand that should not have been there, and the
person decides.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from watchpost.artifacts.errors import ArtifactError, ChecksumMismatch

_MTIME = 1577836800  # 2020-01-01: the same content always makes the same archive
_GZIP_LEVEL = 1  # 3 s less a component than the default, for a tenth more bytes


def cache_dir() -> Path:
    """Return the directory of everything that can be made again: `$WATCHPOST_CACHE` or `~/.cache/watchpost`."""
    return Path(os.environ.get("WATCHPOST_CACHE") or "~/.cache/watchpost").expanduser().absolute()


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Key:
    """What names an archive."""

    component: str
    version: str
    platform: str  # linux-amd64; linux-amd64-cp313 for Python wheels

    @property
    def file(self) -> str:
        """The archive's file name."""
        return f"{self.component}-{self.version}-{self.platform}.tar.gz"

    @property
    def path(self) -> str:
        """The archive's path, relative to a store or a mirror."""
        return f"{self.component}/{self.version}/{self.platform}/{self.file}"


class Record(BaseModel):
    """What is remembered of an archive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    source: Literal["release", "mirror", "source"]
    #: The URL it came from, or what it was built from.
    origin: str
    #: Digest of everything that decides what is made of sources, or of a release's file; empty for a mirror's.
    recipe: str = ""


@dataclass(frozen=True)
class Entry:
    """An archive that matched its record a moment ago."""

    key: Key
    path: Path
    record: Record


class Store:
    """Archives below one directory; `mirror` and `export` use the same layout elsewhere."""

    def __init__(self, root: Path, scratch: Path | None = None) -> None:
        """Take the store's directory, and where to keep unfinished work (on the same file system)."""
        self.root = root
        self._scratch = scratch or root / ".unfinished"

    def read(self, key: Key) -> Entry | None:
        """Return the verified archive, or None when there is none.

        Raises ChecksumMismatch when the file is not the one that was recorded.
        """
        archive = self.root / key.path
        beside = record_path(archive)
        if not archive.is_file() or not beside.is_file():
            return None
        record = parse_record(beside.read_text(), str(beside))
        found = sha256(archive)
        if found != record.sha256:
            raise ChecksumMismatch(
                archive,
                record.sha256,
                found,
                f"It changed after it was stored. If you know why, remove it and run this again:\n  rm {archive}",
            )
        return Entry(key, archive, record)

    def has_release_of(self, component: str) -> bool:
        """Tell whether any version of a component came as a release."""
        records = (self.root / component).glob("*/*/*.json")
        return any(parse_record(file.read_text(), str(file)).source == "release" for file in records)

    def pack(self, key: Key, tree: Path, record: Callable[[str], Record]) -> Entry:
        """Make the archive of a directory holding bin/ and share/, and store it; `record` is given its digest."""
        with self.scratch(key.component) as work:
            packed = work / key.file
            _pack(tree, packed)
            return self.put(key, packed, record(sha256(packed)))

    def put(self, key: Key, file: Path, record: Record) -> Entry:
        """Move a finished archive into its place, in steps of which any may be the last."""
        archive = self.root / key.path
        archive.parent.mkdir(parents=True, exist_ok=True)
        record_path(archive).unlink(missing_ok=True)  # from here to the last line the archive counts as unfinished
        file.replace(archive)
        _write(record_path(archive), record.model_dump_json(indent=2) + "\n")
        return Entry(key, archive, record)

    @contextmanager
    def scratch(self, component: str) -> Iterator[Path]:
        """Yield an empty directory on the store's file system; removed afterwards."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{component}-", dir=self._scratch) as work:
            yield Path(work)

    @contextmanager
    def lock(self, component: str) -> Iterator[None]:
        """Let one run at a time make a component's archive; also clear what an interrupted one left."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with (self._scratch / f"{component}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.stderr.write(f"{component}: another run is getting it; waiting\n")
                fcntl.flock(file, fcntl.LOCK_EX)
            for left in self._scratch.glob(f"{component}-*"):
                shutil.rmtree(left, ignore_errors=True)  # what cannot go now is tried again next time
            yield


def extract(archive: Path, directory: Path, only: str = "") -> None:
    """Unpack a tar archive's plain files and folders, or one file alone, with their permissions, as whoever asks.

    Links and devices are left out. Not by `tarfile`'s own ways, which ask for a filter: Debian 12's Python has none.
    Raises TarError when a path leads outside, and KeyError when the one file is not there.
    """
    with tarfile.open(archive) as packed:
        for member in [packed.getmember(only)] if only else packed:
            path = directory / member.name
            if not path.resolve().is_relative_to(directory.resolve()):
                raise tarfile.TarError(f"the path {member.name} leads outside")
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile() and (content := packed.extractfile(member)):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)
                path.chmod(member.mode & 0o777)


def record_path(archive: Path) -> Path:
    """Return where an archive's record lies."""
    return archive.with_name(archive.name + ".json")


def parse_record(text: str, where: str) -> Record:
    """Read a record; `where` is named when it is not one."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"{where} is not a record of this store; remove it and the archive beside it") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _pack(tree: Path, archive: Path) -> None:
    def normal(info: tarfile.TarInfo) -> tarfile.TarInfo:
        executable = info.isdir() or bool(info.mode & 0o100)
        info.mode = 0o755 if executable else 0o644
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = _MTIME
        return info

    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=_GZIP_LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            tar.add(path, arcname=str(path.relative_to(tree)), recursive=False, filter=normal)
