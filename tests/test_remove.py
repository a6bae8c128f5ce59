"""Watchpost is taken away from a host, however often that is cut off; the scenarios backup and agent do it for real."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from role_files import load

UNITS = ("watchpost-grafana.service", "watchpost-pki.service", "watchpost-pki.timer", "watchpost.target")


class CutOffError(Exception):
    """The run ends here."""


class Host:
    """A host below a directory, whose commands do what they must; the given step is the run's last."""

    def __init__(self, root, module, monkeypatch):
        self.root, self.tables, self.users, self.left = root, ["watchpost", "watchpost_callers", "mine"], [], None
        for path in (
            *(f"etc/systemd/system/{unit}" for unit in UNITS),
            "etc/systemd/system/watchpost-grafana.service.d/by-hand.conf",
            "etc/systemd/journald.conf.d/50-watchpost.conf",
            "etc/sysusers.d/watchpost.conf",
            "etc/watchpost/pki/private/ca.key",
            "opt/watchpost/.backup.tar.gz",
            "run/watchpost-check.a1/password",
            "run/watchpost-disk-guard/stopped.json",
            "timers/stamp-watchpost-pki.timer",
            "state/grafana/grafana.db",
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("# Written by Watchpost")
        (root / "etc/watchpost-of-mine.conf").write_text("mine")
        (root / "etc/systemd/system/nginx.service").symlink_to("/dev/null")
        (root / "etc/systemd/system/multi-user.target.wants").mkdir()
        (root / "etc/systemd/system/multi-user.target.wants/nginx.service").symlink_to("/usr/lib/nginx.service")
        self.users.append(SimpleNamespace(pw_name="watchpost-grafana", pw_gecos="Watchpost"))
        for name, value in {
            "STATE": str(root / "state"),
            "ETC": root / "etc",
            "RUN": root / "run",
            "TIMERS": root / "timers",
            "UNITS": root / "etc/systemd/system",
            "NGINX": root / "etc/systemd/system/nginx.service",
            "run": self.run,
        }.items():
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module.pwd, "getpwall", lambda: list(self.users))
        monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/sbin/nft")
        for owner, name in ((Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
            real = getattr(owner, name)
            monkeypatch.setattr(owner, name, self.step(real))
        self.remove = lambda **given: module.remove(
            {"directories": {each: str(root / each / "watchpost") for each in ("etc", "opt")}, "nginx": True, **given},
            really=True,
        )

    def step(self, real):
        def counted(*words, **options):
            if self.left == 0:
                raise CutOffError
            if self.left is not None:
                self.left -= 1
            return real(*words, **options)

        return counted

    def run(self, *command):
        return self.step(self.carry_out)(*command)

    def carry_out(self, *command):
        match command:
            case ["nft", "list", "tables"]:
                return "".join(f"table inet {table}\n" for table in self.tables)
            case ["nft", "delete", "table", "inet", table]:
                self.tables.remove(table)
            case ["userdel", name]:
                self.users = [user for user in self.users if user.pw_name != name]
            case ["systemctl", "show", *_]:
                return "watchpost-disk-guard\n"
            case ["systemctl", "disable" | "list-units" | "daemon-reload" | "reset-failed" | "restart", *_]:
                pass
            case _:
                raise AssertionError(command)
        return ""

    def files(self):
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


@pytest.fixture
def module(monkeypatch):
    name = "ansible.module_utils.watchpost_generation"
    monkeypatch.setitem(sys.modules, name, load("roles/service/module_utils/watchpost_generation.py", name))
    return load("playbooks/library/watchpost_remove.py", "watchpost_remove")


def test_removal_that_was_cut_off_anywhere_is_done_by_the_next(module, tmp_path):
    steps = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            host = Host(tmp_path / str(steps), module, patch)
            host.left, finished = steps, True
            try:
                host.remove(data=True)
            except CutOffError:
                finished = False
                host.left = None
                host.remove(data=True)
            assert host.files() == {"etc/watchpost-of-mine.conf"}, f"after {steps} steps"
            assert (host.tables, host.users) == (["mine"], [])
            host.left = None
            assert host.remove(data=True) == ([], []), "nothing is left to do"
        if finished:
            break
        steps += 1
    assert steps > len(UNITS)


def test_data_behind_a_link_are_removed_and_what_they_link_to_is_not(module, tmp_path):
    (tmp_path / "disk/grafana").mkdir(parents=True)
    (tmp_path / "disk/grafana/grafana.db").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "disk/grafana/mine").symlink_to(tmp_path / "mine")
    (tmp_path / "mine/file").write_text("")
    (tmp_path / "state").symlink_to(tmp_path / "disk")
    module.erase(tmp_path / "state")
    assert {path.name for path in tmp_path.rglob("*")} == {"disk", "mine", "file"}
