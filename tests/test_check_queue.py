"""Damaged queue files are put aside before the Collector starts; sound ones are not touched.

The databases are made here, page by page; those that a real Collector has written are damaged in drills/test_queue.py.
"""

import importlib.util
import struct
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "roles/otel_collector/files/check_queue.py"
spec = importlib.util.spec_from_file_location("check_queue", FILE)
check_queue = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_queue)

SIZE = 4096
NAME = "exporter_otlp_http_loki_logs"


def head(number, transaction, root=2, pages=6):
    raw = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, SIZE, 0, root, 0, 2**64 - 1, pages, transaction)
    return page(number, 0x04, 0, raw + struct.pack("<Q", check_queue.fnv1a(raw)))


def page(number, flags, count, body, more=0):
    return (struct.pack("<QHHI", number, flags, count, more) + body).ljust((more + 1) * SIZE, b"\0")


def leaf(number, items, kind=0, more=0):
    table, data = b"", b""
    for index, (key, value) in enumerate(items):
        position = 16 * (len(items) - index) + len(data)
        table += struct.pack("<IIII", kind, position, len(key), len(value))
        data += key + value
    return page(number, 0x02, len(items), table + data, more)


def branch(number, children):
    table, data = b"", b""
    for index, (key, child) in enumerate(children):
        table += struct.pack("<IIQ", 16 * (len(children) - index) + len(data), len(key), child)
        data += key
    return page(number, 0x01, len(children), table + data)


def database():
    """A root page with one bucket, whose branch leads to two leaves, the second with a value longer than a page."""
    return bytearray(
        head(0, 7)
        + head(1, 8)
        + leaf(2, [(b"default", struct.pack("<QQ", 3, 0))], kind=1)
        + branch(3, [(b"0", 4), (b"5", 5)])
        + leaf(4, [(b"0", b"first"), (b"1", b"second")])
        + leaf(5, [(b"5", b"x" * 5000), (b"qmv0", b"metadata")], more=1)
    )


def spoil(data, at, with_=b"\xff" * 16):
    data[at : at + len(with_)] = with_
    return data


DAMAGE = {
    "both heads": lambda data: spoil(spoil(data, 20), SIZE + 20),
    "everything": lambda data: bytearray(b"\xaa" * len(data)),
    "the kind of a page": lambda data: spoil(data, 3 * SIZE + 8),
    "the number of a page": lambda data: spoil(data, 4 * SIZE, b"\x09"),
    "the child of a branch": lambda data: spoil(data, 3 * SIZE + 16 + 8),
    "a leaf that is twice in the tree": lambda data: spoil(data, 3 * SIZE + 16 + 16 + 8, b"\x04"),
    "the size of a value": lambda data: spoil(data, 4 * SIZE + 16 + 12),
    "the order of keys": lambda data: spoil(data, 4 * SIZE + 16 + 32, b"2"),
    "the order of pages": lambda data: spoil(data, 4 * SIZE + 16 + 32 + 6, b"6"),
    "the end of the file": lambda data: data[: 6 * SIZE],
}


@pytest.fixture
def queue(tmp_path):
    (tmp_path / "queue").mkdir()
    return tmp_path / "queue"


def test_sound_file_is_not_touched(tmp_path):
    (tmp_path / NAME).write_bytes(database())
    check_queue.main(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("at", [0, SIZE], ids=["first", "second"])
def test_one_good_head_is_enough(at):
    check_queue.check(bytes(spoil(database(), at + 20)))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_put_aside_and_kept(queue, capsys, damage):
    broken = bytes(DAMAGE[damage](database()))
    (queue / NAME).write_bytes(broken)
    check_queue.main(queue)
    (aside,) = queue.iterdir()
    assert aside.name.startswith(f"{NAME}.") and aside.suffix == ".damaged"
    assert aside.read_bytes() == broken
    assert f"queue {NAME} is damaged" in capsys.readouterr().out
    check_queue.main(queue)
    assert list(queue.iterdir()) == [aside]


def test_damaged_file_is_put_aside_in_whichever_directory_it_lies(queue, tmp_path, capsys):
    (journal := tmp_path / "journal").mkdir()
    (queue / NAME).write_bytes(database())
    (journal / "receiver_journald_").write_bytes(DAMAGE["everything"](database()))
    check_queue.main(queue, journal)
    assert (queue / NAME).exists() and not (journal / "receiver_journald_").exists()
    assert "journal receiver_journald_ is damaged" in capsys.readouterr().out


def test_empty_file_and_missing_directory_are_no_damage(tmp_path):
    (tmp_path / NAME).touch()
    check_queue.main(tmp_path)
    check_queue.main(tmp_path / "not yet made")
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
