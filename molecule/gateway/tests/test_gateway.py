"""The gateway as one sees it from outside: TLS, what it lets through, and what it says when something is down."""

import gzip
import json
import ssl
import subprocess
from collections import Counter

import httpx
import pytest
from conftest import ENDPOINTS, PKI, PROJECT, play, replace_on_disk, unit_name
from otlp import JSON, Probe

from drills.harness import call_grpc


@pytest.fixture
def address(host):
    """Where people reach the host."""
    return host.ansible.get_variables()["ansible_host"]


@pytest.fixture
def tls(host):
    """Trust in Watchpost's CA and in nobody else."""
    return ssl.create_default_context(cadata=host.file(f"{PKI}/ca.crt").content_string)


@pytest.fixture
def client(address, tls):
    """A client outside, without any certificate."""
    with httpx.Client(base_url=f"https://{address}", verify=tls, timeout=10) as client:
        yield client


@pytest.fixture
def page(client, address):
    """Send telemetry as a page of the appliance does."""

    def page(path="/otlp/v1/traces", method="POST", origin=f"https://{address}", content=None, **headers):
        headers = JSON | headers | ({"Origin": origin} if origin else {})
        return client.request(method, path, headers=headers, content=content or Probe().span("click"))

    return page


@pytest.fixture
def moved_port(endpoints):
    """The gateway at another port until the test is over."""
    gateway = endpoints["gateway"] | {"https": endpoints["gateway"]["https"] | {"port": 8443}}
    yield endpoints | {"gateway": gateway}
    back = play("host,gateway")
    assert back.code == 0, back.output


def test_page_of_an_appliance_at_an_ipv6_address_and_another_port_reaches_the_collector(moved_port, address, tls):
    def page(origin):
        where = f"https://{address}:8443/otlp/v1/traces"
        return httpx.post(where, verify=tls, headers=JSON | {"Origin": origin}, content=Probe().span("click"))

    run = play("host,gateway", watchpost_endpoints=moved_port, watchpost_public_name="2001:DB8::7")
    assert run.code == 0, run.output
    assert page("https://[2001:db8::7]:8443").status_code == 200
    assert page("https://[2001:db8::7]").status_code == 403, "which would be another program's page"


def test_front_door_is_verified_with_the_ca_and_hardened(client):
    answer = client.get("/healthz")
    assert answer.status_code == 200 and answer.json()["status"] == "ok"
    assert answer.headers["strict-transport-security"].startswith("max-age=31536000")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["server"] == "nginx", "without a version"


def test_runbook_of_each_alert_is_shown(client):
    for page in (PROJECT / "docs/runbooks").glob("*.md"):
        answer = client.get(f"/runbooks/{page.name}")
        assert (answer.status_code, answer.text) == (200, page.read_text())
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/runbooks/NoSuch.md").status_code == 404
    for outside in ("/runbooks/../nginx.conf", "/runbooks../nginx.conf"):
        # It is the application's, which this host does not have.
        assert client.get(outside).status_code == 502


@pytest.mark.parametrize(("version", "spoken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_old_tls_is_refused(address, tls, version, spoken):
    tls.set_ciphers("DEFAULT:@SECLEVEL=0")  # or this side would refuse to offer it
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion[version]
    if spoken:
        assert httpx.get(f"https://{address}/healthz", verify=tls).status_code == 200
    else:
        with pytest.raises(httpx.ConnectError, match=r"(?i)alert|version"):
            httpx.get(f"https://{address}/healthz", verify=tls)


def test_page_of_the_appliance_reaches_the_collector(page):
    answer = page()
    assert (answer.status_code, answer.json()) == (200, {"partialSuccess": {}})
    assert "access-control-allow-origin" in answer.headers


def test_cookie_and_authorization_do_not_matter_to_telemetry(page):
    assert page(Cookie="grafana_session=x", Authorization="Bearer x").status_code == 200


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "", None])
def test_page_of_another_origin_is_refused(page, origin):
    answer = page(origin=origin)
    assert answer.status_code == 403 and "gateway_pages" in answer.text
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_telemetry_is_only_posted(page, method):
    answer = page(method=method)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST, OPTIONS"


def test_preflight_is_answered(page):
    answer = page(method="OPTIONS")
    assert answer.status_code == 204 and answer.headers["access-control-allow-methods"] == "POST"


@pytest.mark.parametrize("path", ["/otlp/", "/otlp/v1/metrics", "/otlp/v1/profiles", "/otlp/v1/traces/x"])
def test_only_traces_and_logs_are_let_through(page, path):
    assert page(path).status_code == 404


def test_oversized_telemetry_is_refused(page):
    assert page(content=b"x" * (1 << 20)).status_code != 413
    assert page(content=b"x" * ((1 << 20) + 1)).status_code == 413


def test_flood_of_one_address_is_slowed_down(page):
    answers = Counter(page(content=b"{}").status_code for _ in range(200))
    assert answers[429] > 0 and answers[200] > 0, answers


@pytest.fixture
def answers(host, address, tmp_path):
    """Ask many times at once, by curl, which has HTTP/2; return how often each status and Retry-After were answered."""
    (tmp_path / "ca.crt").write_text(host.file(f"{PKI}/ca.crt").content_string)

    def answers(path, at_once, *options):
        command = ["curl", "--silent", "--noproxy", "*", "--cacert", tmp_path / "ca.crt", "--max-time", "30", *options]
        command += ["--parallel", "--parallel-max", str(at_once), "--output", "/dev/null"]
        command += ["--write-out", "%{http_code} %header{retry-after}\\n", f"https://{address}{path}"]
        done = subprocess.run(command, capture_output=True, text=True)
        return Counter(line.strip() for line in done.stdout.splitlines() if line[:3].isdigit())

    return answers


@pytest.mark.parametrize("path", ["/", "/grafana/"])
def test_who_waits_for_answers_is_never_refused(answers, path):
    """As many at a time as the firewall lets one client have connections, and `watchpost traffic` people."""
    assert answers(f"{path}?[1-250]", 60, "--http1.1") == {"502": 250}


def test_flood_of_the_application_is_refused_and_seldom_logged(answers, journal):
    path = f"/flood-{Probe().trace_id}"
    found = answers(f"{path}?[1-1200]", 300, "--http2")
    assert found["429 1"] > 600 and found["502"] > 100 and found.total() == 1200, found
    logged = [json.loads(line) for line in journal("gateway").splitlines() if path in line]
    refused = sum(line["status"] == "429" for line in logged)
    assert 0 < refused < found["429 1"] / 10
    assert len(logged) - refused == found["502"]


def test_passwords_are_not_tried_fast(answers, client):
    found = answers("/grafana/login?[1-60]", 4, "--request", "POST")
    assert found["502"] < 30 and found["429 3"] > 30, found
    basic = client.get("/grafana/api/org", headers={"Authorization": "basic YTpi", "Accept": "text/html"})
    assert (basic.status_code, basic.headers["retry-after"]) == (429, "3") and "Come again in 3 s" in basic.text
    assert answers("/grafana/login?[1-60]", 4) == {"502": 60}, "to look at the page is no try"


@pytest.mark.parametrize(("path", "absent"), [("/", "taskboard"), ("/grafana/", "grafana")])
def test_what_does_not_answer_is_named(client, path, absent):
    answer = client.get(path)
    assert answer.status_code == 502 and answer.json()["component"] == absent
    html = client.get(path, headers={"Accept": "text/html"})
    assert html.status_code == 502 and html.headers["content-type"].startswith("text/html")
    assert f"journalctl -u watchpost-{absent}" in html.text


def test_without_the_application_grafana_is_the_front_page(client, page):
    left_out = play("gateway", watchpost_components=["gateway", "otel_collector"])
    assert left_out.code == 0, left_out.output
    try:
        front = client.get("/")
        assert (front.status_code, front.headers["location"]) == (302, "/grafana/")
        for path in ("/api/tasks", "/version", "/static/icon.svg"):
            answer = client.get(path)
            assert answer.status_code == 404 and "/grafana/" in answer.json()["error"]
        assert page().status_code == 200, "telemetry of pages is taken as before"
    finally:
        back = play("gateway")
    assert back.code == 0, back.output
    assert client.get("/").status_code == 502


def test_access_log_has_the_trace_but_neither_query_string_nor_whole_address(host, client, journal):
    probe = Probe()
    traceparent = f"00-{probe.trace_id}-{probe.span_id}-01"
    client.get(f"/api/tasks?owner={probe.service}", headers={"traceparent": traceparent, "Referer": probe.service})
    written = journal("gateway")
    (line,) = [json.loads(line) for line in written.splitlines() if probe.trace_id in line]
    assert (line["path"], line["status"], line["upstream"]) == ("/api/tasks", "502", "taskboard")
    assert probe.service not in written
    ours = host.check_output("echo $SSH_CONNECTION").split()[0]
    assert line["client"] == ours.rpartition(".")[0] + ".0"
    assert ours not in written


def test_refused_configuration_is_named_and_the_old_one_keeps_running(assert_refused, client):
    assert_refused("gateway", "client_max_body_size", gateway_max_body="plenty")
    assert client.get("/healthz").status_code == 200


def test_changed_setting_is_taken_over_without_a_restart(host, client):
    pid = host.check_output("systemctl show --property=MainPID --value watchpost-gateway.service")
    run = play("gateway", gateway_hsts_seconds=60)
    assert run.code == 0, run.output
    assert client.get("/healthz").headers["strict-transport-security"] == "max-age=60"
    assert host.check_output("systemctl show --property=MainPID --value watchpost-gateway.service") == pid


@pytest.fixture
def own_certificate(tmp_path, address):
    """A certificate that some other authority might have given to the user: its file and its key's."""
    certificate, key = tmp_path / "own.crt", tmp_path / "own.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "60",
         "-subj", "/CN=own", "-addext", f"subjectAltName=IP:{address}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_certificate_of_the_users_own_is_served(client, address, own_certificate):
    certificate, key = own_certificate
    run = play("pki,gateway", pki_gateway_certificate=str(certificate), pki_gateway_key=str(key))
    assert run.code == 0, run.output
    served = ssl.get_server_certificate((address, 443))
    assert served.strip() == certificate.read_text().strip()
    assert httpx.get(f"https://{address}/healthz", verify=ssl.create_default_context(cafile=certificate)).is_success
    back = play("pki,gateway")
    assert back.code == 0, back.output
    assert client.get("/healthz").status_code == 200, "Watchpost's own certificate is back"


# Has the host renew all of its certificates, for so many days.
RENEW = """
import json, sys
sys.path.insert(0, "/opt/watchpost/pki")
import renew
settings = json.load(open("/etc/watchpost/pki.json"))
sys.exit(renew.main(settings | {"validity_days": int(sys.argv[1]), "renew_before_days": 10000}))
"""


def test_certificate_that_the_host_has_renewed_is_shown_and_a_run_finds_nothing_to_do(host, client, address):
    def shown():
        return ssl.get_server_certificate((address, ENDPOINTS["gateway"]["https"]["port"])).strip()

    def on_disk():
        return host.file(f"{PKI}/gateway/public.crt").content_string.strip()

    host.check_output("python3 -c %s 31", RENEW)
    short = shown()
    assert short == on_disk()
    host.check_output("systemctl start watchpost-pki.service")
    assert shown() == on_disk() != short
    assert client.get("/healthz").status_code == 200
    run = play("pki,gateway,otel_collector")
    assert run.code == 0 and not run.changed, run.output


def test_renewal_leaves_stopped_what_was_stopped(host, unit):
    before = host.file("/etc/watchpost/otel_collector/good.json").content_string
    host.check_output("systemctl stop watchpost-otel-collector")
    host.check_output("python3 -c %s 90", RENEW)
    assert not unit("otel_collector").is_running
    assert host.file("/etc/watchpost/otel_collector/good.json").content_string == before
    run = play("otel_collector")
    assert run.code == 0 and unit("otel_collector").is_running, run.output


@pytest.mark.parametrize(
    ("encoding", "packed", "status"),
    [
        ("gzip", gzip.compress(b""), "0"),  # no spans: an empty message of protobuf
        # By the header alone: what is in the message does not matter.
        ("zstd", gzip.compress(b""), "12"),
        ("snappy", gzip.compress(b""), "12"),
        ("gzip, zstd", gzip.compress(b""), "12"),
    ],
)
def test_grpc_is_taken_packed_by_gzip_only(host, address, tmp_path, encoding, packed, status):
    for name, path in {"ca.crt": "ca.crt", "tls.crt": "operator/tls.crt", "tls.key": "operator/tls.key"}.items():
        (tmp_path / name).write_text(host.file(f"{PKI}/{path}").content_string)
    url = f"https://{address}:{ENDPOINTS['gateway']['otlp_grpc']['port']}"
    method = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    assert call_grpc(url + method, tmp_path, packed, encoding) == status


def test_library_that_an_upgrade_has_replaced_is_out_of_use_after_a_run(host):
    def master():
        return host.check_output("systemctl show --property=MainPID --value %s", unit_name("gateway"))

    before = master()
    replace_on_disk(host, "/usr/lib/*/libssl.so.3")
    assert "libssl.so.3 (deleted)" in host.check_output(f"cat /proc/{before}/maps")
    run = play("gateway")
    assert run.code == 0 and run.changed, run.output
    assert master() != before, "a reload would have left the old library in use"
    assert "(deleted)" not in host.check_output(f"grep /usr/ /proc/{master()}/maps")
    run = play("gateway")
    assert run.code == 0 and not run.changed, run.output
