"""What is demanded of every component. Each test runs for all that the scenario's host runs."""

import pytest
from conftest import ENDPOINTS, only_with, scenario_components, unit_name, wait_until

LOOPBACK, ANY = {"127.0.0.1", "::1"}, {"0.0.0.0", "::", "*"}


def is_refused(answer):
    """Whether a listening server broke the conversation off, or answered with nothing but a refusal."""
    assert not answer.error.startswith(("ConnectionRefused", "FileNotFound", "Timeout")), answer.error
    # \x8c is a 400 in HTTP/2; \x20 may stand before it. "14" is gRPC's UNAVAILABLE.
    refusals = ("HTTP/1.0 40", "HTTP/1.1 40", "\x8c", "\x20\x8c")
    return not answer.body or answer.body.startswith(refusals) or "\x0214" in answer.body


def test_unit_runs_and_starts_at_boot(component, unit):
    assert unit(component).is_running
    assert unit(component).is_enabled


def test_sandbox_is_tight(component, exposure):
    assert exposure(component) <= 2.5


def test_unit_runs_as_its_own_user(component, host):
    pid = host.check_output("systemctl show --property=MainPID --value %s", unit_name(component))
    assert host.process.get(pid=int(pid)).user != "root"


@pytest.mark.skipif(not scenario_components(), reason="the scenario's host runs no component")
def test_ports_are_exactly_those_of_the_registry(listening, endpoints, components):
    expected = {
        endpoint["port"]: endpoint["bind"]
        for component in (*components, "host")
        for endpoint in endpoints[component].values()
    }
    found = {port: "loopback" if addresses <= LOOPBACK else "any" for port, addresses in listening.items()}
    assert found == expected


def test_plaintext_is_refused(component, endpoint, send):
    answer = send(component, endpoint, tls=False)
    # Nothing, a TLS alert, or a web server's "400: this port speaks HTTPS"; a 401 would mean that it listened.
    assert answer.body.startswith(("\x15", "HTTP/1.0 400", "HTTP/1.1 400")) or (is_refused(answer) and not answer.body)


@only_with("client_certificate")
def test_client_with_a_certificate_is_heard(component, endpoint, send):
    answer = send(component, endpoint)
    assert answer.body and "\x0214" not in answer.body


@only_with("client_certificate")
def test_client_without_a_certificate_is_refused(component, endpoint, send):
    assert is_refused(send(component, endpoint, identity=None))


@pytest.fixture(scope="module")
def stranger(host):
    """A certificate that calls itself operator, of a CA that is not ours."""
    folder = "/run/stranger"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=operator"
    host.check_output(f"mkdir -p {folder} && {request} -keyout {folder}/tls.key -out {folder}/tls.crt")
    return folder


@only_with("client_certificate")
def test_certificate_of_another_authority_is_refused(component, endpoint, send, stranger):
    assert is_refused(send(component, endpoint, identity=stranger))


@only_with("token")
def test_client_without_the_token_is_refused(component, endpoint, ask):
    for token in (None, "not-the-token"):
        answer = ask(component, endpoint, "/v1/traces", identity=None, token=token, method="POST", body="{}",
                     headers={"Content-Type": "application/json"})  # fmt: skip
        assert answer.status == 401


@only_with("login")
def test_client_without_a_login_is_refused(component, endpoint, ask):
    assert ask(component, endpoint, "/api/datasources", identity=None).status == 401


def test_service_cannot_write_its_program_nor_any_configuration(component, host):
    user = unit_name(component).removesuffix(".service")
    assert host.run(f"runuser -u {user} -- true").rc == 0
    writable = f"runuser -u {user} -- find /opt/watchpost /etc/watchpost -not -type l -writable 2>/dev/null"
    assert host.run(writable).stdout == ""


@pytest.fixture(scope="module")
def secret_files(host):
    """The files, for root alone, in which the host keeps the secrets of its services."""
    return host.run("find /etc/watchpost/*/current/credentials/ -type f 2>/dev/null").stdout.split()


def test_secrets_are_nowhere_but_in_roots_files(host, secret_files):
    for secret in secret_files:
        assert host.run(f"runuser -u nobody -- test -r {secret}").rc != 0
    if secret_files:
        look = " ".join(["grep", "-F", *(f"-f {secret}" for secret in secret_files)])
        found = host.run(
            f"{{ runuser -u nobody -- find / -xdev -type f -readable -print0 2>/dev/null | xargs -0 {look} -l;"
            f" {look} -l /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null;"
            f" journalctl --boot --output=cat | {look} -c | grep -v '^0$'; }} | sort -u"
        ).stdout
        assert found == "", "a secret is also in these"


def test_survives_a_restart(component, host, unit, send):
    assert host.run("systemctl restart %s", unit_name(component)).rc == 0
    for name in ENDPOINTS[component]:
        wait_until(lambda name=name: send(component, name).body, seconds=30)
    assert unit(component).is_running
