"""An agent on somebody else's host: its metrics, journal and programs' telemetry arrive, also after an outage."""

import datetime
import functools
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import PKI, PROJECT, asker, run_playbook, unit_name, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from otlp import JSON, Probe

AGENT, APPLIANCE = "molecule-agent-other", "molecule-agent-appliance"
#: `host` is the agent's host in this file.
testinfra_hosts = [f"ansible://{AGENT}"]
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
        found = stores("loki", "/loki/api/v1/query_range", query=query, since="1h", limit=1000)
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


def test_span_of_a_program_of_the_host_arrives(host, stores):
    probe = Probe()
    send_span(host, probe, "work")
    found = wait_for(lambda: stores("tempo", f"/api/traces/{probe.trace_id}"))
    attributes = {each["key"]: each["value"] for each in found["batches"][0]["resource"]["attributes"]}
    assert attributes["service.name"] == {"stringValue": probe.service}
    assert attributes["host.name"] == {"stringValue": AGENT}
    assert attributes["deployment.environment.name"] == {"stringValue": "test"}, "a program's own word was overwritten"


def test_nothing_is_lost_while_the_appliance_is_away(host, appliance, lines, stores):
    token, probe = secrets.token_hex(8), Probe()
    appliance.check_output("systemctl stop %s", unit_name("otel_collector"))
    try:
        say(host, f"for n in $(seq 10); do logger --tag outage {token}-$n; done")
        send_span(host, probe, "unheard")
        time.sleep(3)  # for all of it to be in the agent's queue
        host.check_output("systemctl kill --signal=KILL %s", unit_name("agent"))  # which starts again
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


def test_certificate_close_to_its_end_is_renewed_by_a_run(host, site):
    before = host.file(f"{PKI}/agent/tls.crt").content
    run = site(f"--limit={AGENT}", pki_validity_days=500, pki_agent_validity_days=500, pki_renew_before_days=400)
    assert run.code == 0, run.output
    assert host.file(f"{PKI}/agent/tls.crt").content != before


def test_wrongly_typed_variable_is_named(site):
    run = site(agent_queue_mib="much")
    assert run.code != 0 and "agent_queue_mib" in run.output


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
