"""Certificates after the role `pki`: who trusts whom, who may read what, what is renewed, and that nothing else is."""

import datetime
import functools
import hashlib
import re
import time

import pytest
from conftest import ENDPOINTS
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PKI = "/etc/watchpost/pki"
COMPONENTS = [component for component in ENDPOINTS if component not in ("host", "agent")]
IDENTITIES = [*COMPONENTS, "operator"]
EXPOSED = {name for name, endpoints in ENDPOINTS.items() if any(e["bind"] == "any" for e in endpoints.values())}

# Serves TLS on a port to one client that must show a certificate, and connects to it: server's and client's identity.
HANDSHAKE = """
import socket, ssl, sys, threading
pki, server, client, ca = sys.argv[1:]
inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
inside.load_cert_chain(f"{pki}/{server}/tls.crt", f"{pki}/{server}/tls.key")
inside.load_verify_locations(f"{pki}/ca.crt")
inside.verify_mode = ssl.CERT_REQUIRED
listener = socket.create_server(("127.0.0.1", 0))
def serve():
    try:
        inside.wrap_socket(listener.accept()[0], server_side=True).sendall(b"welcome")
    except ssl.SSLError:
        pass
threading.Thread(target=serve, daemon=True).start()
outside = ssl.create_default_context(cafile=ca)
outside.load_cert_chain(f"{pki}/{client}/tls.crt", f"{pki}/{client}/tls.key")
with outside.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="127.0.0.1") as talk:
    print(talk.recv(100).decode())
"""


def certificate(host, path):
    return x509.load_pem_x509_certificate(host.file(f"{PKI}/{path}").content)


def digest(host, path):
    return hashlib.sha256(host.file(f"{PKI}/{path}").content).hexdigest()


def digests(host):
    return {name: digest(host, f"{name}/tls.crt") for name in IDENTITIES}


def changed_identities(host, before):
    return {name for name, value in digests(host).items() if value != before[name]}


def handshake(host, server, client, ca=f"{PKI}/ca.crt"):
    return host.run("python3 -c %s %s %s %s %s", HANDSHAKE, PKI, server, client, ca)


@pytest.fixture
def converge(converge):
    """Run the scenario's playbook again, without the host's part, which stays as it is."""
    return functools.partial(converge, "--skip-tags=host")


@pytest.fixture
def put_back(converge):
    """After the test, a plain run puts everything back as it was."""
    yield
    run = converge()
    assert run.code == 0, run.output


@pytest.fixture(scope="module")
def stranger(host):
    """Another authority on the host, with an identity that calls itself operator."""
    host.check_output(
        f"mkdir -p {PKI}/../stranger && cd {PKI}/../stranger"
        " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=operator"
        " -addext subjectAltName=IP:127.0.0.1 -keyout tls.key -out tls.crt"
    )
    yield f"{PKI}/../stranger"
    host.check_output(f"rm -r {PKI}/../stranger")


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_serves_and_calls_with_mutual_tls(host, name):
    assert handshake(host, name, "operator").stdout.strip() == "welcome"
    assert handshake(host, "operator", name).stdout.strip() == "welcome"


def test_client_of_another_authority_is_refused(host, stranger):
    done = handshake(host, "loki", "../stranger")
    assert done.failed and "welcome" not in done.stdout


def test_server_of_another_authority_is_refused(host, stranger):
    done = handshake(host, "loki", "operator", ca=f"{stranger}/tls.crt")
    assert done.failed and "CERTIFICATE_VERIFY_FAILED" in done.stderr


@pytest.mark.parametrize("name", IDENTITIES)
def test_certificate_says_who_it_is_and_no_more(host, name):
    found = certificate(host, f"{name}/tls.crt")
    assert [a.value for a in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    local = {f"{name.replace('_', '-')}.watchpost.internal", "localhost", "127.0.0.1", "::1"}
    stated = {str(value) for kind in (x509.DNSName, x509.IPAddress) for value in names.get_values_for_type(kind)}
    address = host.check_output("hostname --all-ip-addresses").split()[0]
    assert stated >= local
    assert (stated > local and address in stated) if name in EXPOSED else stated == local
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert isinstance(found.public_key().curve, ec.SECP256R1)
    assert 89 <= (found.not_valid_after_utc - found.not_valid_before_utc).days <= 90


def test_authority_may_sign_identities_and_no_other_authority(host):
    ca = certificate(host, "ca.crt")
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


@pytest.mark.parametrize("name", COMPONENTS)
def test_only_the_component_itself_reads_its_key(host, name):
    key = f"{PKI}/{name}/tls.key"
    user = f"watchpost-{name.replace('_', '-')}"
    other = "watchpost-tempo" if name == "loki" else "watchpost-loki"
    assert host.run("setpriv --reuid=%s --regid=%s --clear-groups cat %s", user, user, key).succeeded
    assert host.run("setpriv --reuid=%s --regid=%s --clear-groups cat %s", other, other, key).failed
    assert host.run("setpriv --reuid=%s --regid=%s --clear-groups sh -c '>> %s'", user, user, key).failed


@pytest.mark.parametrize("path", ["private/ca.key", "operator/tls.key"])
def test_key_of_the_authority_and_of_the_operator_is_roots_alone(host, path):
    for name in COMPONENTS:
        user = f"watchpost-{name.replace('_', '-')}"
        assert host.run("setpriv --reuid=%s --regid=%s --clear-groups cat %s", user, user, f"{PKI}/{path}").failed


def test_second_run_makes_nothing(host, converge):
    before = digests(host)
    run = converge()
    assert run.code == 0 and not run.changed, run.output
    assert digests(host) == before


def test_identity_close_to_its_end_is_renewed_by_a_run(host, converge):
    # A short life for one: it is due because it is broken, and made to last 10 days only.
    host.check_output(f"rm {PKI}/loki/tls.crt")
    assert converge(pki_validity_days=10, pki_renew_before_days=5).code == 0
    assert (certificate(host, "loki/tls.crt").not_valid_after_utc.timestamp() - time.time()) / 86400 < 11
    before = digests(host)
    run = converge()
    assert "loki: it expires within 30 days" in run.output
    assert changed_identities(host, before) == {"loki"}
    assert (certificate(host, "loki/tls.crt").not_valid_after_utc.timestamp() - time.time()) / 86400 > 89


SHORTEN = """
import json, sys
sys.path.insert(0, "/opt/watchpost/pki")
import renew
settings = json.load(open("/etc/watchpost/pki.json"))
sys.exit(renew.main(settings | {"validity_days": int(sys.argv[1]), "renew_before_days": 10000}))
"""


def profile(host, name):
    """All that a certificate says, but for when and under which number."""
    found = certificate(host, f"{name}/tls.crt")
    extensions = {(each.oid.dotted_string, each.critical, repr(each.value)) for each in found.extensions}
    return found.subject, found.issuer, found.public_key().public_numbers(), extensions


def access(host):
    return host.check_output(f"find {PKI} -name 'tls.*' -printf '%p %M %u %g\n' | sort")


def test_host_renews_by_itself_what_comes_to_its_end(host, converge):
    profiles, rights = {name: profile(host, name) for name in IDENTITIES}, access(host)
    host.check_output("python3 -c %s 31", SHORTEN)
    short = digests(host)
    host.check_output("systemctl start watchpost-pki.service")
    assert changed_identities(host, short) == set(IDENTITIES)
    assert {name: profile(host, name) for name in IDENTITIES} == profiles and access(host) == rights
    assert digest(host, "gateway/public.crt") == digest(host, "gateway/tls.crt")
    for name in IDENTITIES:
        assert 89 < (certificate(host, f"{name}/tls.crt").not_valid_after_utc.timestamp() - time.time()) / 86400 < 91
        assert handshake(host, name, "operator").stdout.strip() == "welcome"
    renewed = digests(host)
    host.check_output("systemctl start watchpost-pki.service")
    run = converge()
    assert run.code == 0 and not run.changed, run.output
    assert digests(host) == renewed


def test_host_leaves_to_a_run_what_it_cannot_judge(host, stranger, put_back):
    host.check_output(f"cp {stranger}/tls.crt {PKI}/prometheus/")  # of a day
    host.check_output(f"head -c 200 {PKI}/loki/tls.crt > {PKI}/taskboard/tls.crt")
    before = digests(host)
    host.check_output("systemctl start watchpost-pki.service")
    assert digests(host) == before


def test_renewal_is_due_every_night_and_sandboxed(host):
    assert host.service("watchpost-pki.timer").is_running and host.service("watchpost-pki.timer").is_enabled
    report = host.check_output("systemd-analyze security --no-pager watchpost-pki.service | tail -n 1")
    assert float(report.split()[-3]) <= 2.5


def test_check_mode_says_what_is_due_and_makes_nothing(host, converge):
    before = digests(host)
    run = converge("--check", pki_validity_days=200, pki_renew_before_days=100)
    assert run.code == 0 and run.changed
    assert digests(host) == before


def test_new_name_is_put_into_what_listens_for_outside_and_nothing_else(host, converge, put_back):
    before = digests(host)
    run = converge(watchpost_public_name="watch.example.org", pki_extra_names=["198.51.100.7"])
    assert run.code == 0, run.output
    assert changed_identities(host, before) == EXPOSED - {"host"}
    names = certificate(host, "gateway/tls.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "watch.example.org" in names.get_values_for_type(x509.DNSName)
    assert "198.51.100.7" in map(str, names.get_values_for_type(x509.IPAddress))


def test_damaged_identities_are_made_good_by_a_run_and_the_others_left_alone(host, converge, stranger):
    damages = {
        "gateway": (f"rm {PKI}/gateway/tls.key", "it has no key"),
        "grafana": (f"cp {PKI}/loki/tls.key {PKI}/grafana/tls.key", "its certificate belongs to another key"),
        "taskboard": (f"head -c 200 {PKI}/loki/tls.crt > {PKI}/taskboard/tls.crt", "it has no certificate"),
        "tempo": (f"cp {PKI}/loki/tls.crt {PKI}/loki/tls.key {PKI}/tempo/", "its name is loki"),
        "prometheus": (f"cp {stranger}/tls.crt {stranger}/tls.key {PKI}/prometheus/", "another CA signed it"),
        "alertmanager": (
            f"chmod 0644 {PKI}/alertmanager/tls.key",
            "tls.key is root:watchpost-alertmanager 0644 instead of root:watchpost-alertmanager 0640",
        ),
    }
    before = digests(host)
    for command, _ in damages.values():
        host.check_output(command)
    run = converge()
    assert run.code == 0, run.output
    for name, (_, reason) in damages.items():
        assert re.search(rf"item={name}: [^)]*{re.escape(reason)}", run.output), name
        assert handshake(host, name, "operator").stdout.strip() == "welcome"
        assert host.file(f"{PKI}/{name}/tls.key").mode == 0o640
    assert changed_identities(host, before) == set(damages)


def test_further_identity_is_made_on_demand(host, converge):
    assert converge(pki_extra_identities=["edge_sender"]).code == 0
    assert handshake(host, "otel_collector", "edge_sender").stdout.strip() == "welcome"
    assert host.file(f"{PKI}/edge_sender/tls.key").mode == 0o600


def test_lost_authority_is_made_anew_with_every_identity(host, converge):
    before = digests(host)
    host.check_output(f"rm {PKI}/private/ca.key")
    assert converge().code == 0
    assert changed_identities(host, before) == set(IDENTITIES)
    assert handshake(host, "loki", "operator").stdout.strip() == "welcome"


def test_end_of_each_certificate_is_told_and_the_users_own_too(host, converge, tmp_path, put_back):
    told = host.file("/var/lib/watchpost-textfile/certificates.prom").content_string
    ends = {identity: float(end) for identity, end in re.findall(r'identity="(\w+)"} (\d+)', told)}
    assert ends.keys() == {*IDENTITIES, "ca", "gateway_public"}
    assert ends["loki"] == certificate(host, "loki/tls.crt").not_valid_after_utc.timestamp()
    assert ends["ca"] == certificate(host, "ca.crt").not_valid_after_utc.timestamp()
    assert ends["gateway_public"] == ends["gateway"]
    paths = own_certificate(tmp_path, "status.example.org", days=5)
    run = converge(**paths)
    assert run.code == 0, run.output
    told = host.file("/var/lib/watchpost-textfile/certificates.prom").content_string
    [end] = re.findall(r'identity="gateway_public"} (\d+)', told)
    assert float(end) - time.time() < 6 * 86400 < ends["gateway"] - time.time()


def test_operators_tools_get_the_authoritys_certificate_and_no_key(host, converge, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    # To a controller that has nothing preflight says that it does not know the host's secrets, which is meant here.
    converge = functools.partial(converge, preflight_allow_other_secrets=True)
    run = converge()
    assert run.code == 0 and run.changed, run.output
    (kept,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert kept.name == "ca.crt" and kept.read_bytes() == host.file(f"{PKI}/ca.crt").content
    again = converge()
    assert again.code == 0 and not again.changed, again.output


def own_certificate(folder, name, days=30):
    """A self-signed certificate as a user might bring it, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(end - datetime.timedelta(days=90)).not_valid_after(end).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / f"{name}.crt").write_bytes(made.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return {"pki_gateway_certificate": str(folder / f"{name}.crt"), "pki_gateway_key": str(folder / f"{name}.key")}


def test_gateway_shows_its_own_identity_until_the_user_brings_another(host, converge, tmp_path):
    assert digest(host, "gateway/public.crt") == digest(host, "gateway/tls.crt")
    before = digests(host)
    own = own_certificate(tmp_path, "watch.example.org")
    assert converge(**own).code == 0
    assert host.file(f"{PKI}/gateway/public.crt").content == (tmp_path / "watch.example.org.crt").read_bytes()
    public_key = host.file(f"{PKI}/gateway/public.key")
    assert (public_key.user, public_key.group, public_key.mode) == ("root", "watchpost-gateway", 0o640)
    assert not converge(**own).changed
    assert digests(host) == before
    assert converge().changed
    assert digest(host, "gateway/public.crt") == digest(host, "gateway/tls.crt")


def test_users_key_is_neither_shown_nor_written_to_the_journal(host, converge, tmp_path, put_back):
    def told(run):
        """What a run told: its output at its most talkative, and what it left in the host's journal."""
        host.check_output("journalctl --sync")
        journal = host.check_output("journalctl --all --since=@%s", start)
        assert "watchpost_pki_state" in run.output and "watchpost_pki_state" in journal, "the run left no trace at all"
        return run.output + journal

    start = host.check_output("date +%s")
    own, other = own_certificate(tmp_path, "own"), own_certificate(tmp_path, "other")
    wrong = {**own, "pki_gateway_key": other["pki_gateway_key"]}
    for option, variables, succeeds in (("--check", own, True), ("--diff", own, True), ("--diff", wrong, False)):
        run = converge(option, "-vvvv", **variables)
        assert (run.code == 0) == succeeds, run.output
        text = told(run)
        for name in "own", "other":
            for line in (tmp_path / f"{name}.key").read_text().splitlines()[1:-1]:
                assert line not in text, f"{option}: {text[max(0, text.index(line) - 500) : text.index(line)]}"


def test_unusable_certificate_of_the_users_is_refused_and_the_old_one_stays(host, converge, tmp_path):
    before = digest(host, "gateway/public.crt")
    first, second = own_certificate(tmp_path, "first"), own_certificate(tmp_path, "second")
    expired = own_certificate(tmp_path, "expired", days=-1)
    (tmp_path / "none.crt").write_text("not a certificate")
    for wrong, message in (
        ({**first, "pki_gateway_key": second["pki_gateway_key"]}, "pki_gateway_key does not belong to the first"),
        (expired, "the certificate in pki_gateway_certificate expired on"),
        ({**first, "pki_gateway_certificate": str(tmp_path / "none.crt")}, "must be PEM files"),
    ):
        run = converge(**wrong)
        assert run.code != 0 and message in run.output, run.output
        assert digest(host, "gateway/public.crt") == before
