"""Prometheus scrapes what the user names, and writes to another Prometheus; secrets reach it as files of its own."""

import json
from urllib.parse import urlencode

import pytest
from conftest import PKI, play, unit_name, wait_until

BEARER, PASSWORD = "scrape-secret-7f3a", "remote-secret-91bc"
#: The password as bcrypt, which is what a Prometheus wants of its callers.
BCRYPT = "$2b$10$abcdefghijklmnopqrstuuj.r3zpacJ7VTirXJkAwLcDDB9.LjIh."
CREDENTIALS = "/run/credentials/watchpost-prometheus.service"
#: The user's own authority is, for a test, the appliance's; its certificates are for 127.0.0.1 too.
TLS = {"ca_file": f"{PKI}/ca.crt"}

# An exporter of one metric: its port, and for TLS a certificate, a key and the token that it demands.
EXPORTER = """
import http.server, ssl, sys
port, *secure = sys.argv[1:]
class Exporter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if secure and self.headers["Authorization"] != "Bearer " + secure[2]:
            return self.send_error(401)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"# TYPE mine_answer gauge\\nmine_answer 42\\n")
server = http.server.HTTPServer(("127.0.0.1", int(port)), Exporter)
if secure:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*secure[:2])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

# Asks the other Prometheus, on the host: its CA, a user's password and a query.
ASK_RECEIVER = """
import base64, ssl, sys, urllib.request
ca, password, query = sys.argv[1:]
request = urllib.request.Request("https://127.0.0.1:19090/api/v1/query?" + query)
request.add_header("Authorization", "Basic " + base64.b64encode(b"watchpost:" + password.encode()).decode())
print(urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cafile=ca)).read().decode())
"""

VARIABLES = {
    "prometheus_credentials": {"exporter": BEARER, "central": PASSWORD},
    "prometheus_scrape_configs": [
        {"job_name": "plain", "static_configs": [{"targets": ["127.0.0.1:19100"]}]},
        {
            "job_name": "secure",
            "scheme": "https",
            "tls_config": TLS,
            "authorization": {"credentials_file": "{{ prometheus_credentials_dir }}/exporter"},
            "static_configs": [{"targets": ["127.0.0.1:19101"]}],
        },
    ],
    "prometheus_remote_write": [
        {
            "url": "https://127.0.0.1:19090/api/v1/write",
            "tls_config": TLS,
            "basic_auth": {
                "username": "watchpost",
                "password_file": "{{ prometheus_credentials_dir }}/central",
            },
        }
    ],
}


@pytest.fixture(scope="module")
def other_systems(host):
    """An exporter in plaintext, one with TLS and a token, and a Prometheus that takes remote writes."""
    identity = [f"{PKI}/alertmanager/tls.crt", f"{PKI}/alertmanager/tls.key"]
    web = {
        "tls_server_config": dict(zip(("cert_file", "key_file"), identity, strict=True)),
        "basic_auth_users": {"watchpost": BCRYPT},
    }
    home = "/run/other-prometheus"
    write = "mkdir -p %s && printf %%s %s > %s/web.yml && echo '{}' > %s/prometheus.yml"
    host.check_output(write, home, json.dumps(web), home, home)
    receiver = ["/opt/watchpost/prometheus/current/bin/prometheus", "--web.enable-remote-write-receiver",
                f"--config.file={home}/prometheus.yml", f"--web.config.file={home}/web.yml",
                f"--storage.tsdb.path={home}/data", "--web.listen-address=127.0.0.1:19090"]  # fmt: skip
    commands = {
        "other-plain": ["python3", "-c", EXPORTER, "19100"],
        "other-secure": ["python3", "-c", EXPORTER, "19101", *identity, BEARER],
        "other-prometheus": receiver,
    }
    for name, command in commands.items():
        host.check_output(f"systemd-run --quiet --unit={name} " + " ".join(["%s"] * len(command)), *command)
    yield
    for name in commands:
        host.check_output("systemctl stop %s", name)


@pytest.fixture(scope="module")
def connected(host, other_systems):
    """Prometheus told of the other systems."""
    run = play("prometheus", **VARIABLES)
    assert run.code == 0, run.output
    yield run
    run = play("prometheus")
    assert run.code == 0, run.output


@pytest.fixture
def query(ask):
    def query(expression):
        answer = ask("prometheus", "http", "/api/v1/query?" + urlencode({"query": expression}))
        assert answer.status == 200, answer
        return answer.json["data"]["result"]

    return query


@pytest.mark.parametrize("job", ["plain", "secure"])
def test_exporter_of_the_users_own_is_scraped(connected, query, job):
    wait_until(lambda: query(f'mine_answer{{job="{job}"}} == 42'), seconds=90)


def test_samples_arrive_at_the_remote_write_target(connected, host):
    def arrived():
        question = urlencode({"query": 'mine_answer{job="secure"}'})
        answer = json.loads(host.check_output("python3 -c %s %s/ca.crt %s %s", ASK_RECEIVER, PKI, PASSWORD, question))
        return [sample["value"][1] for sample in answer["data"]["result"]] == ["42"]

    wait_until(arrived, seconds=90)


def test_metrics_that_tell_of_remote_write_are_those_that_rules_read(connected, query):
    for name in ("samples_failed_total", "queue_highest_timestamp_seconds", "queue_highest_sent_timestamp_seconds"):
        wait_until(lambda name=name: query(f"prometheus_remote_storage_{name}"), seconds=90)


@pytest.mark.parametrize("secret", [BEARER, PASSWORD])
def test_secret_is_in_no_configuration_and_no_output(connected, host, secret):
    assert secret not in connected.output
    configuration = "/etc/watchpost/prometheus/current/prometheus.yml"
    assert host.run("grep -F %s %s /etc/systemd/system/%s", secret, configuration, unit_name("prometheus")).rc == 1
    assert host.file(f"{CREDENTIALS}/exporter").exists
    assert host.run("runuser -u nobody -- cat %s/exporter", CREDENTIALS).rc != 0


def test_way_out_is_open_only_for_who_asks(connected, host, exposure):
    assert "IPAddressDeny=\n" in host.file(f"/etc/systemd/system/{unit_name('prometheus')}").content_string
    assert exposure("prometheus") <= 2.5
