"""Test hosts: what is decided about one, without booting it."""

import ipaddress
import json
import threading
import time

import pytest
import typer
import yaml

from watchpost import testhost
from watchpost.testhost import POOL, Host, TestHostError, choose_subnet, inventory_text


def subnets(*texts):
    return [ipaddress.IPv4Network(text) for text in texts]


def test_two_checkouts_share_no_name(monkeypatch, tmp_path):
    here = Host("appliance")
    names = {
        here.key,
        here.id,
        here.netns,
        here.veth,
        here.nft_table,
        str(here.state),
        str(here.sockets),
        here.deployment,
    }
    monkeypatch.setattr(testhost, "PROJECT", tmp_path)
    there = Host("appliance")
    assert names.isdisjoint(
        {
            there.key,
            there.id,
            there.netns,
            there.veth,
            there.nft_table,
            str(there.state),
            str(there.sockets),
            there.deployment,
        }
    )


def test_names_fit_the_kernels_limits():
    host = Host("a" * 40)
    assert len(host.veth) <= 15
    # ssh adds a hash of 10 digits and, for a moment, 17 characters to the socket's path.
    assert len(f"{host.sockets}/") + 10 + 17 < 108


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "../a", "a" * 41])
def test_name_that_cannot_be_a_host_name_is_refused(name):
    with pytest.raises(TestHostError, match="host name"):
        Host(name)


def test_subnet_is_the_same_each_time():
    assert choose_subnet("0000abcd", []) == choose_subnet("0000abcd", subnets("192.168.0.0/24"))


def test_taken_subnet_is_left_alone():
    first = choose_subnet("0000abcd", [])
    second = choose_subnet("0000abcd", [first])
    assert not first.overlaps(second) and second.subnet_of(POOL)


def test_last_subnet_is_followed_by_the_first():
    last = choose_subnet("00003fff", [])
    assert last.broadcast_address == POOL.broadcast_address
    assert choose_subnet("00003fff", [last]).network_address == POOL.network_address


def test_default_route_does_not_count_as_taken():
    assert choose_subnet("0000abcd", subnets("0.0.0.0/0"))


def test_full_pool_is_told():
    with pytest.raises(TestHostError, match=str(POOL)):
        choose_subnet("0000abcd", [POOL])


def test_inventory_holds_the_host_in_each_group():
    host = Host("appliance")
    tree = yaml.safe_load(inventory_text(host, "10.213.0.2", ["loki", "tempo"]))["all"]["children"]
    found = {name: list(group["hosts"]) for name, group in tree.items()}
    assert found == {"watchpost": ["appliance"], "loki": ["appliance"], "tempo": ["appliance"], "agent": []}


def test_host_of_an_agent_is_no_part_of_the_appliance():
    tree = yaml.safe_load(inventory_text(Host("other"), "10.213.0.2", ["agent"]))["all"]["children"]
    assert {name: list(group["hosts"]) for name, group in tree.items()} == {"watchpost": [], "agent": ["other"]}


def test_inventory_trusts_no_host_key_but_the_hosts_own():
    host = Host("appliance")
    variables = yaml.safe_load(inventory_text(host, "10.213.0.2", []))["all"]["children"]["watchpost"]["hosts"][
        "appliance"
    ]
    assert "StrictHostKeyChecking=yes" in variables["ansible_ssh_common_args"]
    assert f"UserKnownHostsFile={host.state}/known_hosts" in variables["ansible_ssh_common_args"]


def test_groups_are_those_of_an_appliance_that_runs_everything():
    registry = yaml.safe_load((testhost.PROJECT / "group_vars/all/endpoints.yml").read_text())["watchpost_endpoints"]
    assert set(testhost.component_groups()) == set(registry) - {"host", "agent"}


def test_resolver_on_loopback_is_replaced_by_what_it_asks(monkeypatch, tmp_path):
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    stub.write_text("nameserver 127.0.0.53\n")
    monkeypatch.setattr(testhost, "RESOLV_CONF", (stub, upstream))
    with pytest.raises(TestHostError, match="loopback"):
        testhost.resolv_conf()
    upstream.write_text("nameserver 192.0.2.1\n")
    assert testhost.resolv_conf() == "nameserver 192.0.2.1\n"


def test_host_that_was_never_made_is_not_running(monkeypatch, tmp_path):
    monkeypatch.setattr(testhost, "HOSTS", tmp_path)
    host = Host("never-made")
    assert host.facts == {} and not testhost.is_running(host)


def test_running_hosts_facts_are_read_back(monkeypatch, tmp_path):
    monkeypatch.setattr(testhost, "HOSTS", tmp_path)
    host = Host("made")
    host.state.mkdir()
    (host.state / "host.json").write_text(json.dumps({"address": "10.213.0.2"}))
    assert host.ssh("true")[-2:] == ["root@10.213.0.2", "true"]


def test_commands_are_shown_as_they_are_typed_in_the_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(testhost, "HOSTS", tmp_path)
    monkeypatch.setattr(testhost.sys, "executable", str(testhost.PROJECT / ".venv/bin/python"))
    host = Host("made")
    host.state.mkdir()
    (host.state / "host.json").write_text(json.dumps({"address": "10.213.0.2"}))
    testhost.show_command("made")
    shown = capsys.readouterr().out
    secret = f"secrets show grafana_admin_password --deployment {host.deployment}"
    assert f" .venv/bin/python -m watchpost {secret}\n" in shown
    assert " .venv/bin/python -m watchpost testhost ssh made\n" in shown
    monkeypatch.setattr(testhost.sys, "executable", "/usr/bin/python3")
    testhost.show_command("made")
    assert "/usr/bin/python3 -m watchpost testhost ssh made\n" in capsys.readouterr().out


def test_host_that_was_never_made_cannot_be_shown(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(testhost, "HOSTS", tmp_path)
    with pytest.raises(typer.Exit):
        testhost.show_command("never-made")
    assert "testhost up never-made" in capsys.readouterr().err


def test_lock_whose_file_was_unlinked_still_admits_one_at_a_time(tmp_path):
    path, inside, most = tmp_path / "lock", [], []

    def work():
        for _ in range(50):
            with testhost.locked(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)  # for the others to come in, if they could
                inside.pop()
                path.unlink()  # last, as `down` does: from here on the next one may come in

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 200 and max(most) == 1
    assert not path.exists()
