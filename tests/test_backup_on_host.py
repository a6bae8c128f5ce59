"""What the host puts together and takes apart again. molecule/backup tries it with real services."""

import contextlib
import os
import pwd
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from role_files import load

NOBODY = 65534


@pytest.fixture
def home():
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)  # those of pytest are closed to a service's user
        yield Path(name)


@pytest.fixture
def module(monkeypatch, home):
    name = "ansible.module_utils.watchpost_generation"
    monkeypatch.setitem(sys.modules, name, load("roles/service/module_utils/watchpost_generation.py", name))
    module = load("playbooks/library/watchpost_backup.py", "watchpost_backup")
    monkeypatch.setattr(module, "STATE", str(home / "state"))
    monkeypatch.setattr(module.pwd, "getpwnam", lambda _: pwd.getpwuid(os.getuid()))
    return module


@pytest.fixture
def backup(module, home):
    """A host with two components, one with a database in use, and a CA."""
    (home / "pki/private").mkdir(mode=0o700, parents=True)
    for path, content, mode in (
        ("state/grafana/plugins/a.json", "{}", 0o640),
        ("state/silences/silences", "disk", 0o644),
        ("pki/ca.crt", "certificate", 0o644),
        ("pki/private/ca.key", "key", 0o600),
        ("pki/grafana/tls.key", "a component's", 0o640),
    ):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(content)
        (home / path).chmod(mode)
    (home / "state").chmod(0o755)
    program = home / "opt/grafana"
    program.mkdir(parents=True)
    (program / "current").symlink_to(program / "13.0.0-a1-0123abcd")
    return module.Backup(
        {
            "archive": str(home / "opt/.backup.tar.gz"),
            "components": ["grafana", "silences"],
            "running": [],
            "registry": ["grafana", "silences", "tempo"],
            "install_dir": str(home / "opt"),
            "pki_dir": str(home / "pki"),
        }
    )


@pytest.fixture
def database(backup, home):
    """A database that is open, and has not written its last words into its file."""
    path = home / "state/grafana/grafana # 1.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as open_one:
        open_one.execute("PRAGMA journal_mode=WAL")
        open_one.execute("CREATE TABLE account (name TEXT)")
        open_one.execute("INSERT INTO account VALUES ('anna')")
        path.chmod(0o640)
        yield path


def names(backup):
    with tarfile.open(backup.archive) as tar:
        return set(tar.getnames())


def test_what_was_saved_takes_the_place_of_what_is_there(backup, database, home):
    state, pki = home / "state", home / "pki"
    assert backup.save(live=True) == {"grafana": "13.0.0-a1"}
    database.unlink()
    for path in ("state/grafana/new", "state/grafana/plugins/new"):
        (home / path).write_text("")
    (state / "silences/silences").write_text("other")
    (pki / "private/ca.key").unlink()
    (pki / "ca.crt").write_text("of another CA")
    for _ in range(2):  # as after one that was cut off
        assert backup.restore() == []
        assert {path.name for path in (state / "grafana").rglob("*")} == {database.name, "plugins", "a.json"}
        with contextlib.closing(sqlite3.connect(database)) as copy:
            assert copy.execute("SELECT name FROM account").fetchall() == [("anna",)]
        assert (state / "silences/silences").read_text() == "disk"
        assert ((pki / "ca.crt").read_text(), (pki / "private/ca.key").read_text()) == ("certificate", "key")
    modes = {path: (home / path).stat().st_mode & 0o777 for path in ("pki", "pki/private", "pki/private/ca.key")}
    assert modes == {"pki": 0o755, "pki/private": 0o700, "pki/private/ca.key": 0o600}
    assert database.stat().st_mode & 0o777 == 0o640 and (state / "silences/silences").stat().st_mode & 0o777 == 0o644
    assert state.stat().st_mode & 0o777 == 0o755 and (state / "grafana").stat().st_mode & 0o777 == 0o750


def test_key_is_nobody_elses_to_read_while_it_is_put_back(backup, module, home, monkeypatch):
    seen, copy = [], module.shutil.copyfileobj

    def look(source, target):
        seen.append(os.fstat(target.fileno()).st_mode & 0o777)
        copy(source, target)

    backup.save(live=False)
    shutil.rmtree(home / "pki")
    monkeypatch.setattr(module.shutil, "copyfileobj", look)
    backup.restore()
    assert set(seen) == {0o600}


def test_archive_is_roots_alone_and_nothing_else_is_left(backup, database, home):
    left = home / "opt/.backup.tar.gz.copies/grafana"  # by a run that was cut off
    left.mkdir(parents=True)
    (left / database.name).write_text("half")
    backup.save(live=True)
    assert backup.archive.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in (home / "opt").iterdir()} == {".backup.tar.gz", "grafana"}
    assert names(backup) == {
        "pki/ca.crt", "pki/private", "pki/private/ca.key", "state/grafana", "state/grafana/plugins",
        "state/grafana/plugins/a.json", f"state/grafana/{database.name}", "state/silences", "state/silences/silences",
    }  # fmt: skip


def test_database_that_is_damaged_is_not_saved(backup, home):
    (home / "state/grafana/grafana.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(Exception, match=r"grafana\.db cannot be copied: "):
        backup.save(live=True)
    backup.save(live=False)  # before it is replaced, everything is taken as it is
    assert "state/grafana/grafana.db" in names(backup)


def test_state_that_the_archive_has_nothing_of_stays(backup, home):
    backup.p["components"] = ["grafana"]
    backup.save(live=False)
    backup.p["components"] = ["silences"]
    assert backup.restore() == ["grafana"]
    assert (home / "state/silences/silences").read_text() == "disk"


def test_link_that_a_service_has_laid_is_not_followed(backup, home):
    (home / "secret").write_text("")
    (home / "state/grafana/link").symlink_to(home / "secret")
    os.mkfifo(home / "state/grafana/pipe")
    backup.save(live=True)
    assert names(backup).isdisjoint({"state/grafana/link", "state/grafana/pipe"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act with the rights of another")
def test_services_directory_is_read_with_its_own_rights(backup, module, home):
    """Or a link that takes a file's place at the right moment would bring what only root may read."""
    state = home / "state/grafana"
    for path in (state, *state.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    backup.save(live=True)
    assert "state/grafana/plugins/a.json" in names(backup)
    (state / "of_root").write_text("")
    (state / "of_root").chmod(0o600)
    with pytest.raises(PermissionError):
        backup.save(live=True)
    assert os.geteuid() == 0, "root again"
    backup.save(live=False)
    assert "state/grafana/of_root" in names(backup)
