"""When the guard of the disk stops a store, and when it starts it again; drills/test_disk.py fills real disks."""

import errno
import importlib.util
import json
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parent.parent / "roles/retention/files/disk_guard.py"
LEAST = 512


@pytest.fixture
def program(monkeypatch):
    spec = importlib.util.spec_from_file_location("disk_guard", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Host:
    """Units and free bytes, as the guard sees them."""

    def __init__(self, monkeypatch, program, tmp_path):
        self.program, self.folder = program, tmp_path
        self.free = {"tempo": 2000, "loki": 2000}
        self.units = {"tempo.service": "active", "loki.service": "active"}
        monkeypatch.setattr(program, "free_bytes", lambda directory: self.free[directory.name])
        monkeypatch.setattr(program, "running", lambda unit: self.units[unit] == "active")
        monkeypatch.setattr(program.subprocess, "run", self.systemctl)
        self.begin()

    def begin(self):
        """Start the guard, again."""
        stores = {name: {"state": f"/{name}", "unit": f"{name}.service", "least": LEAST} for name in self.free}
        settings = {"metrics": str(self.folder / "guard.prom"), "stores": stores}
        self.guard = self.program.Guard(settings, self.folder / "stopped.json")

    def systemctl(self, command, **_):
        _, option, verb, *units = command
        assert option == "--no-block", "while it waits for one store it does not look at the others"
        self.units.update(dict.fromkeys(units, {"stop": "inactive", "start": "active"}[verb]))

    def look(self, **free):
        """Change what is free, let the guard look once, and return the state of each store."""
        self.free.update(free)
        self.guard.look()
        return {unit.removesuffix(".service"): state for unit, state in self.units.items()}


@pytest.fixture
def host(monkeypatch, program, tmp_path):
    return Host(monkeypatch, program, tmp_path)


def test_store_is_stopped_below_its_least_and_started_at_twice_that(host):
    assert host.look(tempo=LEAST)["tempo"] == "active"
    assert host.look(tempo=LEAST - 1) == {"tempo": "inactive", "loki": "active"}
    assert host.look(tempo=2 * LEAST - 1)["tempo"] == "inactive"
    assert host.look(tempo=2 * LEAST)["tempo"] == "active"


def test_store_that_somebody_starts_while_the_disk_is_full_is_stopped_again(host):
    host.look(tempo=0)
    host.units["tempo.service"] = "active"
    assert host.look()["tempo"] == "inactive"


def test_store_that_somebody_else_has_stopped_is_not_started(host):
    host.units["tempo.service"] = "inactive"
    host.look(tempo=0)
    assert host.look(tempo=2000)["tempo"] == "inactive"


def test_what_is_stopped_is_started_by_the_guards_next_life(host):
    host.look(tempo=0, loki=0)
    host.begin()
    assert host.look(tempo=2000, loki=0) == {"tempo": "active", "loki": "inactive"}


def test_what_is_stopped_is_told_to_prometheus(host):
    host.look(tempo=0)
    said = (host.folder / "guard.prom").read_text()
    assert 'watchpost_disk_guard_stopped{store="tempo"} 1\n' in said
    assert 'watchpost_disk_guard_stopped{store="loki"} 0\n' in said
    host.look(tempo=2000)
    assert 'store="tempo"} 0\n' in (host.folder / "guard.prom").read_text()


def test_stop_that_fails_is_remembered_so_that_the_store_is_started_again(host, monkeypatch, program):
    def fails(command, **_):
        raise program.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(program.subprocess, "run", fails)
    with pytest.raises(program.subprocess.CalledProcessError):
        host.look(tempo=0)
    assert json.loads((host.folder / "stopped.json").read_text()) == ["tempo"]


def test_store_is_stopped_though_nothing_can_be_written(host, capsys, monkeypatch, program):
    """Neither the metrics nor what is remembered; and the guard's next life goes on from there."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(program, "replace", full)
        assert host.look(tempo=0)["tempo"] == "inactive"
        host.begin()
        assert host.look(loki=0)["loki"] == "inactive"
        host.look()
        said = capsys.readouterr().out
        assert said.count("cannot write") == 4, "once for each file and life"
        assert "guard.prom, and shall try again: No space left on device" in said
    host.look()
    assert 'store="loki"} 1' in (host.folder / "guard.prom").read_text(), "it has been told since"
    assert json.loads((host.folder / "stopped.json").read_text()) == ["loki"]


def test_file_that_says_so_already_is_not_written_again(host, monkeypatch, program):
    host.look()
    monkeypatch.setattr(program, "replace", lambda *_: pytest.fail("written anew ten times a second"))
    host.look()


def test_store_that_has_never_been_started_has_all_the_room(program, tmp_path):
    assert program.free_bytes(tmp_path / "nowhere") == float("inf")
    assert 0 < program.free_bytes(tmp_path) < float("inf")
