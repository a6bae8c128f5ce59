"""An agent on somebody else's host: its metrics, journal and programs' telemetry arrive, also after an outage."""

import datetime
import functools
import json
import os
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import ENDPOINTS, PKI, PROJECT, asker, run_playbook, unit_name, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from otlp import JSON, Probe

from drills.harness import IN_MEMORY, READY_SECONDS, Appliance, Drill, Outcome, forwarded, through
from watchpost.testhost import Host

AGENT, APPLIANCE = "molecule-agent-other", "molecule-agent-appliance"
#: `host` is the agent's host in this file.
testinfra_hosts = [f"ansible://{AGENT}"]
SKIPPED = 10  # lines, at most, by an agent that is stopped while its queue is full (docs/pipeline.md)
SECONDS = 90  # for telemetry to arrive: agent's and Collector's batches, an exporter that tries again after an outage
wait_for = functools.partial(wait_until, seconds=SECONDS)


@pytest.fixture(scope="module")
def appliance(host):
    return host.get_host(
        f"ansible://{APPLIANCE}", ansible_inventory=str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)
    )


@pytest.fixture
def stores(appliance):
    """Ask the appliance's stores."""
    ask = asker(appliance)

    def stores(component, path, **parameters):
        answer = ask(component, "http", f"{path}?{urlencode(parameters)}" if parameters else path)
        return answer.json if answer.status == 200 else {}

    return stores


@pytest.fixture
def lines(stores):
    """The lines that Loki has for a query, each with its labels."""

    def lines(query):
        found = stores("loki", "/loki/api/v1/query_range", query=query, since="1h", limit=5000)
        return [(line, stream["stream"]) for stream in found["data"]["result"] for _, line in stream["values"]]

    return lines


def say(host, script):
    """Run a script as a login would: in a scope of its own, not in a service."""
    host.check_output("systemd-run --quiet --scope sh -c %s", script)


def send_span(host, probe, name):
    answer = asker(host)("agent", "otlp_http", "/v1/traces", identity=None, method="POST", headers=JSON,
                         body=probe.span(name))  # fmt: skip
    assert answer.status == 200, answer


@pytest.mark.parametrize(
    "metric",
    [
        "system_cpu_time_seconds_total",
        "system_disk_io_bytes_total",
        "system_filesystem_usage_bytes",
        "system_memory_usage_bytes",
        "system_network_io_bytes_total",
    ],
)
def test_metrics_of_the_host_arrive(stores, metric):
    query = f'{metric}{{job="agent", instance="{AGENT}"}}'
    wait_for(lambda: stores("prometheus", "/api/v1/query", query=query)["data"]["result"])


def test_agent_tells_of_itself(stores):
    query = f'otelcol_process_uptime_seconds_total{{job="agent", instance="{AGENT}"}}'
    wait_for(lambda: stores("prometheus", "/api/v1/query", query=query)["data"]["result"])


def test_memory_of_each_is_held_against_its_own_limit(stores):
    def limits():
        found = stores("prometheus", "/api/v1/query", query="watchpost:otelcol_memory_limit:bytes")["data"]["result"]
        return {(one["metric"]["job"], one["metric"]["instance"]): int(one["value"][1]) >> 20 for one in found}

    wait_for(limits)
    assert limits() == {("otel_collector", APPLIANCE): 512, ("agent", AGENT): 256}
    ratio = "job_instance:otelcol_process_heap:ratio"
    wait_for(lambda: len(stores("prometheus", "/api/v1/query", query=ratio)["data"]["result"]) == 2)


def test_journal_line_is_found_by_its_unit_its_level_and_its_host(host, lines):
    token = secrets.token_hex(8)
    host.check_output("systemd-run --quiet --wait --unit=molecule-probe sh -c %s", f"echo '<4>careful {token}' >&2")
    [(line, labels)] = wait_for(lambda: lines(f'{{service_name="molecule-probe"}} |= "{token}"'))
    assert line == f"careful {token}"
    assert labels["deployment_environment_name"] == "production"
    assert labels["host_name"] == AGENT
    assert labels["detected_level"] == "warn"


def test_line_of_no_unit_is_found_by_the_name_it_goes_by(host, lines):
    token = secrets.token_hex(8)
    say(host, f"logger --tag greeter --priority user.err 'hello {token}'")
    [(line, labels)] = wait_for(lambda: lines(f'{{service_name="greeter"}} |= "{token}"'))
    assert (line, labels["detected_level"]) == (f"hello {token}", "error")


#: Runs on the host: says lines of so many characters to the journal itself, the last of them in colour.
TO_THE_JOURNAL = """
import socket, sys
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
token, *sizes = sys.argv[1:]
for number, size in enumerate(map(int, sizes)):
    message = f"{token} {number} ".ljust(size, "x") + ("\\33[0m" if number + 1 == len(sizes) else "")
    entry = f"SYSLOG_IDENTIFIER=wordy\\nPRIORITY=6\\nMESSAGE={message}\\n"
    journal.sendto(entry.encode(), "/run/systemd/journal/socket")
"""


def test_long_line_and_one_in_colour_are_as_they_were_said(host, lines):
    token = secrets.token_hex(8)
    host.check_output("systemd-run --quiet --scope python3 -c %s %s 4000 5000 200000 99", TO_THE_JOURNAL, token)
    wait_for(lambda: len(lines(f'{{service_name="wordy"}} |= "{token}"')) == 4)
    found = sorted(line for line, _ in lines(f'{{service_name="wordy"}} |= "{token}"'))
    assert [len(line) for line in found] == [4000, 5000, 200_000, 103]
    assert found[3].endswith("x\33[0m")


def test_span_of_a_program_of_the_host_arrives(host, stores):
    probe = Probe()
    send_span(host, probe, "work")
    found = wait_for(lambda: stores("tempo", f"/api/traces/{probe.trace_id}"))
    attributes = {each["key"]: each["value"] for each in found["batches"][0]["resource"]["attributes"]}
    assert attributes["service.name"] == {"stringValue": probe.service}
    assert attributes["host.name"] == {"stringValue": AGENT}
    assert attributes["deployment.environment.name"] == {"stringValue": "test"}, "a program's own word was overwritten"


#: Runs on the host: logs records of so many characters one after the other, and tells how each request was answered.
RECORDS = """
import http.client, json, ssl, sys, time
ca, port, service, token, *sizes = sys.argv[1:]
context, statuses = ssl.create_default_context(cafile=ca), []
for number, size in enumerate(map(int, sizes)):
    body = {"stringValue": f"{token} {number} ".ljust(size, "x")}
    said = {"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
            "scopeLogs": [{"logRecords": [{"timeUnixNano": str(time.time_ns()), "body": body}]}]}
    connection = http.client.HTTPSConnection("127.0.0.1", int(port), context=context, timeout=30)
    connection.request("POST", "/v1/logs", json.dumps({"resourceLogs": [said]}), {"Content-Type": "application/json"})
    statuses.append(connection.getresponse().status)
print(json.dumps(statuses))
"""


def send_records(host, service, token, *sizes):
    """Return the statuses that the agent answers with."""
    port = str(ENDPOINTS["agent"]["otlp_http"]["port"])
    command = " ".join(["python3 -c %s %s %s %s %s", *map(str, sizes)])
    return json.loads(host.check_output(command, RECORDS, f"{PKI}/ca.crt", port, service, token))


def test_record_is_delivered_or_refused_however_long_it_is(host, lines):
    """What is too long for a batch its exporter would drop after it was acknowledged, with what waits beside it."""
    token = secrets.token_hex(8)
    statuses = send_records(host, "long", token, 9, 2_000_000, 9, 2_500_000, 9)
    assert statuses[1] == 200, "two million bytes are not too long"
    taken = {number for number, status in enumerate(statuses) if status == 200}

    def found():
        return {int(line.split()[1]) for line, _ in lines(f'{{service_name="long"}} |= "{token}"')}

    wait_for(lambda: found() >= taken)
    assert found() == taken, statuses


#: Runs on the host: says numbered lines for twenty seconds, fewer than journald takes of one service.
COUNT = """
import sys, time
for number in range(4000):
    print(sys.argv[1], number, flush=True)
    time.sleep(0.005)
"""


def ready(host):
    """Wait until the agent is ready, at most as long as anything here may take."""
    wait_until(lambda: asker(host)("agent", "health").status == 200, READY_SECONDS)


def kill(host):
    host.check_output("systemctl kill --signal=KILL %s", unit_name("agent"))  # which starts again
    ready(host)


def numbers(lines, service, token):
    """The numbers of the lines that came."""
    return {int(line.split()[1]) for line, _ in lines(f'{{service_name="{service}"}} |= "{token}"')}


@pytest.fixture
def counting(host):
    """A service that says numbered lines, each with this token."""
    token = secrets.token_hex(8)
    host.check_output("systemd-run --quiet --unit=molecule-count python3 -c %s %s", COUNT, token)
    yield token
    host.run("systemctl stop molecule-count")


def test_no_line_of_the_journal_is_skipped_by_an_agent_that_is_killed_while_it_reads(host, counting, lines):
    for _ in range(3):
        assert host.service("molecule-count").is_running, "there is nothing to read any more"
        kill(host)
    wait_for(lambda: len(numbers(lines, "molecule-count", counting)) == 4000)


@pytest.fixture
def refusing(host, appliance):
    """An agent whose queue of logs is full, as the appliance is away; which comes back by calling this."""
    appliance.check_output("systemctl stop %s", unit_name("otel_collector"))
    back = functools.partial(appliance.check_output, "systemctl start %s", unit_name("otel_collector"))
    try:
        sizes = [900_000] * 10 + [90_000] * 10 + [9000] * 10 + [900] * 10 + [9] * 10
        statuses = send_records(host, "filler", "filler", *sizes)
        assert statuses[-1] == 503, statuses
        yield back
    finally:
        back()


def test_no_line_of_the_journal_is_skipped_by_an_agent_that_is_killed_while_it_refuses(host, counting, refusing, lines):
    for _ in range(2):
        kill(host)
        time.sleep(1)  # for the agent to have taken up what it then waits with
    refusing()
    wait_for(lambda: len(numbers(lines, "molecule-count", counting)) == 4000)


def test_agent_that_is_stopped_while_it_refuses_skips_few_lines(host, refusing, lines):
    token = secrets.token_hex(8)
    say(host, f"for n in $(seq 300); do logger --tag stopped {token} $n; done")
    time.sleep(1)  # for the agent to have taken up what it then waits with
    host.check_output("systemctl restart %s", unit_name("agent"))
    ready(host)
    refusing()
    wait_for(lambda: len(numbers(lines, "stopped", token)) >= 300 - SKIPPED)


def test_agent_whose_place_in_the_journal_is_damaged_starts_and_reads_from_an_hour_ago(host, lines):
    token, unit, place = secrets.token_hex(8), unit_name("agent"), "/var/lib/watchpost/agent/journal"
    damage = "head -c $(stat -c %%s %s) /dev/urandom | dd of=%s conv=notrunc bs=1M status=none"
    host.check_output("systemctl stop %s", unit)
    say(host, f"logger --tag unread {token}")
    host.check_output(damage, f"{place}/receiver_journald_", f"{place}/receiver_journald_")
    try:
        host.check_output("systemctl start %s", unit)
        ready(host)
        wait_for(lambda: lines(f'{{service_name="unread"}} |= "{token}"'))
    finally:
        host.check_output("rm -f %s/*.damaged", place)


@pytest.fixture
def drill(capsys):
    """The appliance, and moments that nobody has chosen."""
    seed = time.time_ns()
    drill = Drill(Appliance(Host(APPLIANCE)), Outcome("agent"), random.Random(seed))
    yield drill
    with capsys.disabled():
        print(f"\nrandom moments from {seed}; seconds until ready again: {drill.outcome.ready}")


@pytest.fixture
def program(drill):
    """A client as the programs of the agent's host are."""
    trust, port = drill.appliance.target.trust(), ENDPOINTS["agent"]["otlp_http"]["port"]
    with forwarded(Host(AGENT), {"agent": port}) as sockets, through(sockets["agent"], trust) as client:
        yield client


def test_nothing_acknowledged_is_lost_when_the_agent_is_killed_under_load(host, drill, program):
    with drill.appliance.load(client=program) as running:
        for _ in range(3):
            drill.pause(1, 4)
            killed = time.monotonic()
            kill(host)
            drill.outcome.ready.append(time.monotonic() - killed)
        drill.pause(1, 2)
    drill.assert_nothing_lost(running)


@pytest.mark.long
def test_without_a_queue_on_disk_a_killed_agent_loses(host, drill, program, site, appliance):
    """That the drill above can fail."""
    in_memory = {"exporters": {"otlp_grpc/appliance": IN_MEMORY}}
    try:
        assert site(f"--limit={AGENT}", agent_extra_config=in_memory).code == 0
        with drill.appliance.load(client=program) as running:
            drill.pause(1, 2)
            appliance.check_output("systemctl stop %s", unit_name("otel_collector"))  # so that something waits
            drill.pause(1, 2)
            kill(host)
            appliance.check_output("systemctl start %s", unit_name("otel_collector"))
        drill.settle(running, 30)
        assert drill.outcome.lost
    finally:
        appliance.check_output("systemctl start %s", unit_name("otel_collector"))
        assert site(f"--limit={AGENT}").code == 0


@pytest.fixture
def full_disk(host):
    """A function that fills the disk of the agent's queue; and one that makes room again."""
    unit, state = unit_name("agent"), "/var/lib/watchpost/agent"
    options = "size=300m,mode=0750,uid=$(id -u watchpost-agent),gid=$(id -g watchpost-agent)"
    host.check_output(f"systemctl stop {unit} && mount -t tmpfs -o {options} tmpfs {state} && systemctl start {unit}")
    try:
        ready(host)
        yield (
            lambda: host.run(  # as fast as a good disk is filled: the guard looks ten times a second
                f"for n in $(seq 7); do fallocate -l 40M {state}/filler-$n; sleep 0.1; done; "
                f"for size in 64k 512; do dd if=/dev/zero of={state}/filler-$size bs=$size; done"
            ),
            lambda: host.check_output(f"rm {state}/filler-*"),
        )
    finally:
        host.check_output(f"systemctl stop {unit} && umount {state} && systemctl start {unit}")
        ready(host)


def test_agent_is_stopped_before_the_disk_of_its_queue_is_full_and_loses_nothing(
    host, drill, program, appliance, full_disk
):
    """A Collector that cannot write down what it takes out of its queue throws that away."""
    fill, make_room = full_disk
    with drill.appliance.load(client=program) as running:
        appliance.check_output("systemctl stop %s", unit_name("otel_collector"))  # else the queue need not grow
        try:
            fill()
            full = running.retries()
            wait_for(lambda: running.retries() > full + 20)
            wait_for(lambda: not host.service(unit_name("agent")).is_running)
        finally:
            appliance.check_output("systemctl start %s", unit_name("otel_collector"))
        before = running.acknowledged()
        make_room()
        wait_for(lambda: running.acknowledged() > before)
    drill.assert_nothing_lost(running, SECONDS)


def test_nothing_is_lost_while_the_appliance_is_away(host, appliance, lines, stores):
    token, probe = secrets.token_hex(8), Probe()
    appliance.check_output("systemctl stop %s", unit_name("otel_collector"))
    try:
        say(host, f"for n in $(seq 10); do logger --tag outage {token}-$n; done")
        send_span(host, probe, "unheard")
        kill(host)
        say(host, f"for n in $(seq 11 20); do logger --tag outage {token}-$n; done")
        assert not lines(f'{{service_name="outage"}} |= "{token}"')
    finally:
        appliance.check_output("systemctl start %s", unit_name("otel_collector"))
    wait_for(lambda: len({line for line, _ in lines(f'{{service_name="outage"}} |= "{token}"')}) == 20)
    assert {line for line, _ in lines(f'{{service_name="outage"}} |= "{token}"')} == {
        f"{token}-{n}" for n in range(1, 21)
    }
    wait_for(lambda: stores("tempo", f"/api/traces/{probe.trace_id}"))


def expired(host, appliance):
    """Return the agent's certificate as the appliance's CA would have signed it for a time that is over."""
    now = datetime.datetime.now(datetime.UTC)
    ca = x509.load_pem_x509_certificate(appliance.file(f"{PKI}/ca.crt").content)
    key = serialization.load_pem_private_key(appliance.file(f"{PKI}/private/ca.key").content, None)
    valid = x509.load_pem_x509_certificate(host.file(f"{PKI}/agent/tls.crt").content)
    over = x509.CertificateBuilder()
    for extension in valid.extensions:
        over = over.add_extension(extension.value, extension.critical)
    over = over.subject_name(valid.subject).issuer_name(ca.subject).public_key(valid.public_key())
    over = over.serial_number(x509.random_serial_number())
    over = over.not_valid_before(now - datetime.timedelta(days=2)).not_valid_after(now - datetime.timedelta(days=1))
    return over.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_agent_keeps_what_it_has_while_its_certificate_is_over(host, appliance, lines):
    token, path = secrets.token_hex(8), f"{PKI}/agent/tls.crt"
    valid = host.file(path).content_string
    put = "printf %%s %s > %s && systemctl restart %s"
    host.check_output(put, expired(host, appliance), path, unit_name("agent"))
    try:
        say(host, f"for n in $(seq 10); do logger --tag expired {token}-$n; done")
        time.sleep(2)  # the lines are read, and sent a second later: what fails from then on holds them
        since = host.check_output("date +%s")
        look = "journalctl --boot --output=cat --since=@%s --unit=%s | grep 'xporting failed' | grep '\"logs\"'"
        wait_for(lambda: host.run(look, since, unit_name("agent")).rc == 0)
        assert not lines(f'{{service_name="expired"}} |= "{token}"')
    finally:
        host.check_output(put, valid, path, unit_name("agent"))
    wait_for(lambda: len({line for line, _ in lines(f'{{service_name="expired"}} |= "{token}"')}) == 10)


def test_key_is_the_agents_alone_and_no_other_identity_is_there(host):
    assert host.check_output("ls %s", PKI).split() == ["agent", "ca.crt"]
    key = host.file(f"{PKI}/agent/tls.key")
    assert (key.user, key.group, key.mode) == ("root", "watchpost-agent", 0o640)


def test_appliance_has_the_agents_end_and_not_its_key(host, appliance):
    assert not appliance.file(f"{PKI}/agent").exists
    assert f'host="{AGENT}",identity="agent"' in appliance.check_output(
        "cat /var/lib/watchpost-textfile/certificates-%s.prom", AGENT
    )


def test_host_keeps_its_own_firewall_journal_and_clock(host):
    assert not host.file("/etc/watchpost/firewall.nft").exists
    assert not host.file("/etc/systemd/journald.conf.d/50-watchpost.conf").exists
    assert not host.package("nftables").is_installed
    assert not host.package("systemd-timesyncd").is_installed


def test_stopped_agent_is_found_by_the_doctor_and_nothing_else(host):
    host.check_output("systemctl stop %s", unit_name("agent"))
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    command = [sys.executable, "-m", "watchpost", "doctor", "--json", f"--inventory={inventory}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    host.check_output("systemctl start %s", unit_name("agent"))
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)["findings"]
    assert (found["host"], found["check"], found["subject"]) == (AGENT, "services", "agent")


def test_certificate_is_renewed_by_a_run_when_a_third_of_its_life_is_over(host, site):
    before = host.file(f"{PKI}/agent/tls.crt").content
    run = site(f"--limit={AGENT}", pki_agent_validity_days=600)
    assert run.code == 0, run.output
    assert host.file(f"{PKI}/agent/tls.crt").content != before


def test_queues_that_its_disk_has_no_room_for_are_refused(site):
    run = site(f"--limit={AGENT}", agent_queue_mib=10_000_000)
    assert run.code != 0 and "preflight found 1 problem" in run.output, run.output
    sums = "agent_queue_mib 30000000 MiB, retention_agent_least_free_mib 256 MiB"
    assert f"30000256 MiB may be kept there ({sums})" in run.output, run.output


def request_for(name):
    """A request by somebody who has taken the agent's host over."""
    request = x509.CertificateSigningRequestBuilder()
    request = request.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    names = x509.SubjectAlternativeName([x509.DNSName(f"{name}.watchpost.internal")])
    signed = request.add_extension(names, critical=False).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("name", ["operator", "agent"])
def test_request_for_anything_but_an_agents_certificate_is_not_signed(name):
    """The second has the right name, but leaves the rest out that makes it an agent's."""
    identity = {"name": "agent", "sans": ["DNS:agent.watchpost.internal"]}
    requests = {"results": [{"csr": request_for(name), "__pki_identity": identity}]}
    run = run_playbook(Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], "tests/sign.yml"), __pki_requests=requests)
    assert run.code != 0 and "asks the appliance's CA for a certificate that is not an agent's" in run.output, (
        run.output
    )
