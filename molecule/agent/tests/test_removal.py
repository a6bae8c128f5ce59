"""An agent is taken away from somebody else's host: nothing of it is left, and what is the host's own stays."""

import functools
import secrets

import pytest
from conftest import PROJECT, left_of_watchpost, run_playbook, unit_name
from test_agent import AGENT, appliance, lines, say, stores, wait_for  # noqa: F401 - fixtures

testinfra_hosts = [f"ansible://{AGENT}"]
remove = functools.partial(run_playbook, PROJECT / "playbooks/remove.yml")
OWN = "/etc/watchpost-of-mine.conf"


@pytest.fixture
def own(host):
    """What the host's owner has called so too."""
    host.check_output(f"useradd --system watchpost-mine && echo mine >{OWN}")
    yield
    assert host.user("watchpost-mine").exists and host.file(OWN).content_string == "mine\n"
    host.check_output(f"userdel watchpost-mine && rm {OWN}")


def assert_nothing_is_left(host):
    left = [line for line in left_of_watchpost(host).splitlines() if "watchpost-mine" not in line and line != OWN]
    assert left == []
    assert not host.file("/var/lib/watchpost").exists, "a queue holds what nobody has redacted yet"


def test_removed_agent_leaves_nothing_and_comes_back(host, appliance, lines, site, own):  # noqa: F811 - fixtures
    end = f"/var/lib/watchpost-textfile/certificates-{AGENT}.prom"
    packages = host.check_output("dpkg-query --show")
    assert appliance.file(end).exists
    run = remove(remove_host=AGENT)
    assert run.code == 0 and run.changed, run.output
    assert_nothing_is_left(host)
    assert host.check_output("dpkg-query --show") == packages
    assert not appliance.file(end).exists, "nobody warns of the end of a certificate that is gone"
    assert appliance.service(unit_name("gateway")).is_running, "the appliance itself was not named"
    assert not remove(remove_host=AGENT).changed

    # A run that comes no further than to the program's word on its configuration.
    run = site(f"--limit={AGENT}", agent_extra_config={"receivers": {"nonsense": {}}})
    assert run.code != 0 and "agent does not accept its new configuration" in run.output, run.output
    assert host.file("/etc/watchpost/pki/agent/tls.key").exists
    run = remove(remove_host=AGENT)
    assert run.code == 0 and run.changed, run.output
    assert_nothing_is_left(host)

    run = site(f"--limit={AGENT}")
    assert run.code == 0, run.output
    token = secrets.token_hex(8)
    say(host, f"logger --tag back {token}")
    wait_for(lambda: lines(f'{{service_name="back"}} |= "{token}"'))
