"""Debian packages of the controller: what is missing is named, with its reason, and how to get it."""

import os

import pytest

from watchpost import packages


@pytest.fixture
def wanting(monkeypatch):
    """A purpose that needs one command which every machine has, and one which none has."""
    needs = {"there": ("sh", "is always there"), "not-there": ("no-such-command", "draws the picture")}
    monkeypatch.setitem(packages.PACKAGES, "a test", needs)


def test_only_what_is_missing_is_wanted(wanting):
    assert packages.missing("a test") == {"not-there": "draws the picture"}


def test_without_root_the_command_to_run_is_named(wanting, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(packages.PackageError, match=r"apt-get install not-there$"):
        packages.ensure("a test")
    assert "not-there (draws the picture)" in capsys.readouterr().err


def test_package_without_a_command_is_looked_up_in_dpkg():
    assert not packages._installed("no-such-package-in-debian")
