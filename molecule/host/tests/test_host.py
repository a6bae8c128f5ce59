"""The prepared host: its users, firewall and journal; nobody listens who was not asked to, after a reboot too."""

import json
import socket
import subprocess
import sys

import pytest
from conftest import ENDPOINTS, PROJECT, wait_until

COMPONENTS = [component for component in ENDPOINTS if component not in ("host", "agent")]
OPEN = {
    endpoint["port"] for endpoints in ENDPOINTS.values() for endpoint in endpoints.values() if endpoint["bind"] == "any"
}
# On the host, as root: listens on each port in turn and tells which users can connect to it.
WHO_CONNECTS = """
import json, os, pwd, socket, sys
ports, users = json.loads(sys.argv[1])
def connects(user, port):
    child = os.fork()
    if not child:
        try:
            os.setuid(pwd.getpwnam(user).pw_uid)
            socket.create_connection(("127.0.0.1", port), 2)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
found = {}
for port in ports:
    with socket.create_server(("127.0.0.1", port)):
        found[port] = [user for user in users if connects(user, port)]
print(json.dumps(found))
"""
JOURNAL = "/etc/systemd/journald.conf.d/50-watchpost.conf"


def address(host):
    return host.check_output("hostname --all-ip-addresses").split()[0]


def reachable(host, port):
    """Whether a connection from another machine, this one, is answered; a firewall lets it time out."""
    try:
        socket.create_connection((address(host), port), timeout=2).close()
    except TimeoutError:
        return False
    except ConnectionRefusedError:
        return True  # nobody listens, but the question arrived
    return True


def firewall(host):
    return host.run("nft list table inet watchpost")


@pytest.fixture
def everything_put_back(converge):
    """After the test, a plain run brings the host back."""
    yield
    run = converge()
    assert run.code == 0, run.output


@pytest.mark.parametrize("port", sorted(OPEN))
def test_open_endpoint_is_reachable_from_outside(host, port):
    assert reachable(host, port)


@pytest.mark.parametrize("port", [80, 3000, 3100, 9090, 9999])
def test_any_other_port_is_not(host, port):
    assert not reachable(host, port)


def test_programs_on_the_host_reach_each_other(host):
    server = (
        "import socket,sys; s=socket.create_server(('127.0.0.1',9999)); socket.create_connection(s.getsockname(),2)"
    )
    host.check_output("python3 -c %s", server)


def test_only_the_callers_that_the_registry_names_can_connect(host):
    """By the user that a program runs as, before any certificate is asked for."""
    endpoints = [endpoint for component in COMPONENTS for endpoint in ENDPOINTS[component].values()]
    users = {"root": "operator", "nobody": None, **{f"watchpost-{name.replace('_', '-')}": name for name in COMPONENTS}}
    question = json.dumps([[endpoint["port"] for endpoint in endpoints], list(users)])
    found = json.loads(host.check_output("python3 -c %s %s", WHO_CONNECTS, question))
    for endpoint in endpoints:
        anyone = "outside" in endpoint["callers"]
        expected = [user for user, name in users.items() if anyone or user == "root" or name in endpoint["callers"]]
        assert found[str(endpoint["port"])] == expected, endpoint


def test_loading_debians_own_ruleset_leaves_the_firewall_in_place(host):
    # Debian's nftables.service begins with `flush ruleset`.
    host.check_output("systemctl restart nftables.service")
    assert not reachable(host, 9999)
    host.check_output("systemctl stop nftables.service")


def test_emptied_firewall_is_filled_again_by_a_run(host, converge):
    host.check_output("nft flush ruleset")
    assert reachable(host, 9999), "without the firewall this test would prove nothing"
    assert converge().changed
    assert not reachable(host, 9999)


def test_extra_port_opens_and_closes_again(host, converge, everything_put_back):
    assert converge(host_firewall_extra_ports=[9999]).code == 0
    assert reachable(host, 9999)
    assert converge().code == 0
    assert not reachable(host, 9999)


def reachable_by_udp(host, port):
    """Whether the host says that nobody listens; a firewall says nothing."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.connect((address(host), port))
        client.send(b"anybody there?")
        try:
            client.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False


def test_extra_udp_port_opens_and_closes_again(host, converge, everything_put_back):
    assert not reachable_by_udp(host, 51820)
    assert converge(host_firewall_extra_udp_ports=[51820]).code == 0
    assert reachable_by_udp(host, 51820) and not reachable(host, 51820)
    assert converge().code == 0
    assert not reachable_by_udp(host, 51820)


@pytest.mark.parametrize("name", ["host_firewall_extra_ports", "host_firewall_extra_udp_ports"])
def test_extra_port_that_is_none_is_refused_by_name(converge, name):
    run = converge(**{name: [0, 22, 70000]})
    assert run.code != 0 and "preflight found 2 problems" in run.output, run.output
    assert f"{name} holds 0; a port is" in run.output and f"{name} holds 70000; a port is" in run.output


# As Ubuntu has it: systemd listens, and starts an sshd with each connection.
SSH_SOCKET = {
    "sshd.socket": "[Socket]\nListenStream=2223\nAccept=yes\n",
    "sshd@.service": "[Service]\nExecStart=-/usr/sbin/sshd -i\nStandardInput=socket\n",
}


@pytest.fixture
def sshd_elsewhere(host):
    """An sshd of its own at port 2222, one that systemd starts at 2223, and one for the host itself at 2224."""
    for name, text in SSH_SOCKET.items():
        host.check_output("printf %%s %s > /run/systemd/system/%s", text, name)
    host.check_output("systemctl daemon-reload && systemctl start sshd.socket")
    options = ["-D", "-o", "ListenAddress=0.0.0.0:2222", "-o", "ListenAddress=127.0.0.1:2224"]
    host.check_output(f"systemd-run --quiet --unit=elsewhere /usr/sbin/sshd {' '.join(options)}")
    wait_until(lambda: ":2224 " in host.check_output("ss --listening --tcp --numeric"), 10)
    yield
    host.check_output("systemctl stop elsewhere.service sshd.socket")
    for name in SSH_SOCKET:
        host.check_output("rm /run/systemd/system/%s", name)
    host.check_output("systemctl daemon-reload")


def test_ports_where_sshd_listens_stay_open_though_ansible_comes_by_another(
    host, converge, everything_put_back, sshd_elsewhere
):
    assert not any(reachable(host, port) for port in (2222, 2223, 2224))
    assert converge().code == 0
    assert [reachable(host, port) for port in (22, 2222, 2223, 2224)] == [True, True, True, False]


def test_other_tables_are_left_alone(host, converge, everything_put_back):
    host.check_output("nft add table inet somebody && nft add chain inet somebody theirs")
    assert converge(host_firewall_extra_ports=[9999]).code == 0
    assert "theirs" in host.check_output("nft list table inet somebody")
    host.check_output("nft delete table inet somebody")


def test_ruleset_that_nft_refuses_never_goes_live(host, converge):
    before = firewall(host).stdout
    run = converge(host_client_connections=10**20)
    assert run.code != 0
    assert "/etc/watchpost/firewall.nft" in run.output and f"ct count over {10**20}" in run.output
    assert firewall(host).stdout == before


def test_firewall_can_be_done_without(host, converge, everything_put_back):
    assert converge(host_firewall_enabled=False).code == 0
    assert reachable(host, 9999)
    assert firewall(host).failed
    assert host.run("systemctl is-enabled watchpost-firewall.service").failed


@pytest.mark.parametrize("name", COMPONENTS)
def test_component_has_a_user_that_cannot_log_in(host, name):
    user = host.user(f"watchpost-{name.replace('_', '-')}")
    assert user.exists and user.group == user.name and user.uid < 1000
    assert user.shell == "/usr/sbin/nologin"
    assert host.check_output("getent shadow %s", user.name).split(":")[1].startswith("!"), "it has no password"


def test_lost_user_opens_no_door_and_comes_back(host, converge):
    host.check_output("userdel watchpost-loki")
    host.check_output("systemctl restart watchpost-firewall.service")
    assert reachable(host, 22) and not reachable(host, 9999)
    assert converge().changed
    assert host.user("watchpost-loki").exists
    assert host.run("nft list table inet watchpost_callers").succeeded


def test_journal_is_kept_on_disk_within_its_limit(host):
    assert "/var/log/journal" in host.check_output("journalctl --header --boot | grep 'File path'")
    assert "max 1G" in host.check_output(
        "journalctl --boot --unit=systemd-journald --grep='System Journal' | tail -n 1"
    )


def test_change_that_an_interrupted_run_did_not_apply_is_applied_by_the_next(host, converge):
    began = "systemctl show --property=ExecMainStartTimestampMonotonic --value systemd-journald"
    before = host.check_output(began)
    host.check_output("printf %%s %s > /etc/watchpost/.host-pending", f'["{JOURNAL}"]')
    assert converge().changed
    assert host.check_output(began) != before
    assert not converge().changed


def test_firewall_unit_is_sandboxed(host):
    report = host.check_output("systemd-analyze security --no-pager watchpost-firewall.service | tail -n 1")
    assert float(report.split()[-3]) <= 2.5


def test_everything_is_back_after_a_reboot(host):
    name = host.backend.get_hostname()
    subprocess.run([sys.executable, "-m", "watchpost", "testhost", "reboot", name], cwd=PROJECT, check=True)
    assert host.check_output("systemctl is-system-running") == "running"
    assert host.service("watchpost.target").is_enabled and host.service("watchpost.target").is_running
    assert reachable(host, 22) and not reachable(host, 9999)


def test_debians_own_nginx_never_listens(host):
    assert host.package("nginx").is_installed
    assert "0.0.0.0:80 " not in host.check_output("ss --listening --tcp --numeric")
    assert host.run("systemctl start nginx.service").failed
