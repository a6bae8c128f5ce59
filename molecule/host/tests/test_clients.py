"""Each client is held to its share: it slows down, and its neighbours do not notice."""

import contextlib
import socket
import subprocess
import time

import pytest
from conftest import ENDPOINTS

from watchpost.testhost import Host

PORT, HTTPS = ENDPOINTS["otel_collector"]["ingest_http"]["port"], ENDPOINTS["gateway"]["https"]["port"]
NOISY = "192.0.2.77"  # of a network that is nobody's (RFC 5737); the quiet one is this machine's own address
MIB = 2**20
#: Runs on the host in the place of the Collector and the gateway: counts what comes, and tells how much in the end.
SINK = f"""
import socket, threading
def count(connection):
    total = 0
    while data := connection.recv(65536):
        total += len(data)
    connection.sendall(str(total).encode())
    connection.close()
def serve(server):
    while True:
        threading.Thread(target=count, args=(server.accept()[0],), daemon=True).start()
others = socket.create_server(("", {HTTPS}), backlog=500)
threading.Thread(target=serve, args=(others,), daemon=True).start()
serve(socket.create_server(("", {PORT}), backlog=500))
"""


@pytest.fixture(scope="module")
def address(host):
    """The host's address, with a sink that preflight takes for ours, and a second client beside this machine's own."""
    device = Host(host.backend.get_hostname()).veth
    subprocess.run(["ip", "addr", "add", f"{NOISY}/32", "dev", device], check=True)
    host.check_output("systemd-run --unit=watchpost-sink python3 -c %s", SINK)
    try:
        yield host.check_output("hostname --all-ip-addresses").split()[0]
    finally:
        host.check_output("systemctl stop watchpost-sink")
        subprocess.run(["ip", "addr", "del", f"{NOISY}/32", "dev", device], check=True)


def seconds(address, size, source=""):
    """Send so many bytes, and tell after how many seconds all of them had arrived."""
    began = time.monotonic()
    with socket.create_connection((address, PORT), timeout=60, source_address=(source, 0)) as connection:
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == str(size).encode()
    return time.monotonic() - began


def opened(address, wanted, source="", port=PORT):
    """Tell how many of so many connections are let in at a time."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(wanted)]
        for one in sockets:
            one.bind((source, 0))
            one.setblocking(False)
            one.connect_ex((address, port))
        time.sleep(2)  # what is refused is not answered: the kernel would try for minutes
        return sum(is_connected(one) for one in sockets)


def is_connected(one):
    try:
        one.getpeername()
    except OSError:
        return False
    return True


def held_back(host):
    host.check_output("systemctl start watchpost-clients.service")
    return host.file("/var/lib/watchpost-textfile/clients.prom").content_string


def test_client_that_sends_too_much_is_slowed_down_and_another_is_not(host, address):
    """2 MiB a second, after 4 at once: 12 MiB take 4 s."""
    with subprocess.Popen(["python3", "-c", FLOOD, address, str(PORT), NOISY]) as flood:
        quiet = [seconds(address, 1000) for _ in range(20)]
        assert flood.poll() is None, "the flood was over before anything was shown"
        flood.kill()
    assert max(quiet) < 1
    time.sleep(2)  # for the flood's own allowance to recover
    assert seconds(address, 12 * MIB, NOISY) > 3.5
    said = held_back(host)
    assert f'client="{NOISY}"' in said and said.count("client=") == 1


FLOOD = """
import socket, sys
address, port, source = sys.argv[1:]
connections = [socket.create_connection((address, int(port)), source_address=(source, 0)) for _ in range(4)]
while True:
    for connection in connections:
        connection.send(bytes(65536))
"""


def test_client_has_so_many_connections_and_another_its_own(address):
    assert opened(address, 100, NOISY) == 64
    assert opened(address, 20) == 20


def test_idle_connections_of_one_visitor_leave_room_for_the_others(address):
    time.sleep(2)  # for the visitor's allowance of new connections to recover
    assert opened(address, 100, NOISY, HTTPS) == 64
    assert opened(address, 20, port=HTTPS) == 20


def test_with_higher_limits_nobody_is_held_back(address, converge):
    """Otherwise the tests above might measure the machine."""
    run = converge(host_client_mib_per_second=1000, host_client_connections=500)
    assert run.code == 0, run.output
    try:
        assert seconds(address, 12 * MIB, NOISY) < 3
        assert opened(address, 100, NOISY) == 100
    finally:
        assert converge().code == 0


def test_teller_of_held_back_clients_is_sandboxed(host):
    report = host.check_output("systemd-analyze security --no-pager watchpost-clients.service | tail -n 1")
    assert float(report.split()[-3]) <= 2.5
    assert host.service("watchpost-clients.timer").is_running
