"""Put damaged files of file_storage aside: with some kinds of damage the Collector does not start, or ends repeatedly.

Run before each start, with the directories of queues and, on an agent's host, that of its place in the journal. The
files are bbolt databases: the first two pages are copies of the head, the one with the higher transaction holds; from
there a B+ tree of pages is followed, and each must be what its parent takes it for.
file_storage's `recreate` helps only with what bbolt notices in the goroutine that opens the file.
"""

import mmap
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MAGIC, VERSION = 0xED0CDAED, 2
HEAD = struct.Struct(
    "<IIIIQQQQQQ"
)  # magic, version, page size, flags, root page, sequence, free list, pages, transaction, checksum
PAGE = struct.Struct("<QHHI")  # id, flags, elements, pages that follow and belong to it
BRANCH, LEAF = 0x01, 0x02  # flags of a page
IN_BRANCH = struct.Struct("<IIQ")  # position of the key, its size, page
IN_LEAF = struct.Struct("<IIII")  # flags, position of the key, its size, the value's size
BUCKET = 0x01  # flag of a leaf's element: its value begins with the root page of a tree of its own


class Damaged(Exception):
    """The file is no sound database; the message says where."""


def fnv1a(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def heads(database: bytes | mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Yield transaction, page size, root page and number of pages of each sound copy of the head."""
    for at in (0, *(1024 << n for n in range(7))):  # the second copy is on page 1, of whatever size pages are
        raw = database[at + PAGE.size : at + PAGE.size + HEAD.size]
        if len(raw) == HEAD.size:
            magic, version, size, _, root, _, _, pages, transaction, checksum = HEAD.unpack(raw)
            if (magic, version, checksum) == (MAGIC, VERSION, fnv1a(raw[:-8])):
                yield transaction, size, root, pages


def check(database: bytes | mmap.mmap) -> None:
    """Follow every page of a database. Raises Damaged."""
    newest = max(heads(database), default=None)
    if newest is None:
        raise Damaged("at its head")
    _, size, root, pages = newest
    seen: set[int] = set()
    todo: list[tuple[int, bytes, bytes | None]] = [
        (root, b"", None)
    ]  # page, its least key, and what they all are below
    while todo:
        number, least, below = todo.pop()
        start = number * size
        if number in seen or not 2 <= number < pages or start + size > len(database):
            raise Damaged(f"page {number} is out of place")
        seen.add(number)
        found, flags, count, more = PAGE.unpack_from(database, start)
        end = start + (more + 1) * size
        first = start + PAGE.size
        if found != number or flags not in (BRANCH, LEAF) or end > len(database) or first + count * 16 > end:
            raise Damaged(f"page {number} is not what it should be")
        keys: list[bytes] = []
        children: list[int] = []
        for at in range(first, first + count * 16, 16):
            kind, value = 0, 0
            if flags == BRANCH:
                position, length, child = IN_BRANCH.unpack_from(database, at)
                children.append(child)
            else:
                kind, position, length, value = IN_LEAF.unpack_from(database, at)
            key = database[at + position : at + position + length]
            if at + position + length + value > end or not key or key < least or (keys and key <= keys[-1]):
                raise Damaged(f"an element of page {number} is out of place")
            keys.append(key)
            if kind == BUCKET and value >= 16:
                (page,) = struct.unpack_from("<Q", database, at + position + length)
                todo += [(page, b"", None)] if page else []  # 0: a bucket so small that it lies in the value itself
        if keys and below is not None and keys[-1] >= below:
            raise Damaged(f"the keys of page {number} are out of place")
        todo += zip(children, keys, [*keys[1:], below], strict=True) if children else []


def damage(file: Path) -> str:
    """Return how a file is damaged, or nothing."""
    if not file.stat().st_size:
        return ""  # becomes a new database
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as database:
        try:
            check(database)
        except Damaged as damaged:
            return str(damaged)
    return ""


def main(*directories: Path) -> None:
    """Rename each damaged file: nothing is destroyed, and a new one is made in its place."""
    for file in (file for directory in directories for file in sorted(directory.glob("*_*"))):
        if file.suffix not in (".backup", ".damaged") and (how := damage(file)):
            aside = file.with_name(f"{file.name}.{time.strftime('%Y-%m-%dT%H:%M:%S')}.damaged")
            file.rename(aside)
            what = f"{file.parent.name} {file.name}"  # the directory's name tells which
            print(f"{what} is damaged ({how}): put aside as {aside.name}, with whatever it held")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
