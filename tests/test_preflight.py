"""What preflight judges by itself; what it finds on hosts is tested in molecule/preflight."""

import runpy

import pytest

from watchpost.project import PROJECT

PREFLIGHT = runpy.run_path(str(PROJECT / "roles/preflight/action_plugins/watchpost_preflight.py"))


@pytest.mark.parametrize("name", ["2001:db8::7", "192.0.2.7", "vm_1.Example.org", "localhost", "a", None])
def test_public_name_may_be_a_name_or_an_address(name):
    assert list(PREFLIGHT["name_problems"](name)) == []


@pytest.mark.parametrize(
    "name",
    ["https://watch.example.org", "watch.example.org:8443", "[2001:db8::7]", "fe80::1%eth0", "my vm", "a.", "-a", ""],
)
def test_public_name_that_is_none_is_refused(name):
    (problem,) = PREFLIGHT["name_problems"](name)
    assert problem.startswith(
        f"watchpost_public_name is {name!r}; it must be a host name or an address, without scheme"
    )
