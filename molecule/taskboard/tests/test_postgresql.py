"""PostgreSQL by one variable, faults by another: a real database of Debian's, and what the service tells of it."""

import base64
import json

import pytest
from conftest import ENDPOINTS, PKI, play, unit_name
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

JSON = {"Content-Type": "application/json"}
COLLECTOR_PORT = ENDPOINTS["otel_collector"]["local_http"]["port"]
PASSWORD = 'it\'s a %s $HOME "secret"'
VARIABLES = {
    "taskboard_database_url": "postgresql+psycopg://taskboard@127.0.0.1/taskboard",
    "taskboard_database_password": PASSWORD,
    "taskboard_faults": {
        "slow_query": {"share": 1, "milliseconds": 300, "route": "/api/tasks/<int:task_id>"},
        "error": {"share": 1, "route": "/api/tasks/<int:task_id>/complete"},
    },
}
INSTALL = "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends postgresql"

# Runs on the host in the Collector's place, with a certificate that the application trusts, and keeps what it is sent.
RECEIVER = f"""
import base64, http.server, ssl
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            with open("/run/received", "a") as file:
                print(base64.b64encode(body).decode(), file=file)
        self.send_response(200)
        self.end_headers()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("{PKI}/taskboard/tls.crt", "{PKI}/taskboard/tls.key")
server = http.server.ThreadingHTTPServer(("127.0.0.1", {COLLECTOR_PORT}), Receiver)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

# Brings a database's schema up to date, as a service that starts does.
MIGRATE = (
    "CREDENTIALS_DIRECTORY=/etc/watchpost/taskboard/current/credentials "
    "TASKBOARD_DATABASE_URL=postgresql+psycopg://taskboard@127.0.0.1/another "
    "/opt/watchpost/taskboard/current/bin/python -c "
    "'import os; from taskboard import database, settings; "
    "database.migrate(settings.Settings.from_environment(os.environ).database_url)'"
)


def psql(host, command, database="postgres"):
    return host.check_output(
        "runuser -u postgres -- psql --quiet --tuples-only --no-align -d %s -c %s", database, command
    )


@pytest.fixture(scope="module")
def postgresql(host):
    """The service with its tasks in PostgreSQL, whose user needs a password; afterwards with SQLite again."""
    host.check_output(INSTALL)
    host.check_output("systemctl start postgresql")
    assert psql(host, "SHOW password_encryption") == "scram-sha-256"
    psql(host, f"CREATE ROLE taskboard LOGIN PASSWORD $${PASSWORD}$$")
    psql(host, "CREATE DATABASE taskboard OWNER taskboard")
    run = play("taskboard", **VARIABLES)
    assert run.code == 0, run.output
    assert "$HOME" not in run.output, "the password is shown"
    yield
    run = play("taskboard")
    assert run.code == 0, run.output


@pytest.fixture
def api(ask, postgresql):
    def api(method, path="", **fields):
        body = json.dumps(fields) if fields else None
        return ask("taskboard", "https", f"/api/tasks{path}", method=method, body=body, headers=JSON)

    return api


def test_task_lives_in_postgresql_from_creation_to_deletion(api, host):
    made = api("POST", title="Water the plants")
    assert made.status == 201
    path = f"/{made.json['id']}"
    assert psql(host, "SELECT title, state FROM task", "taskboard") == "Water the plants|open"
    assert made.json in api("GET").json["items"]
    assert made.json["created_at"].endswith("+00:00")
    assert api("PATCH", path, title="Water the cactus", state="done").json["title"] == "Water the cactus"
    assert psql(host, "SELECT title, state FROM task", "taskboard") == "Water the cactus|done"
    assert api("DELETE", path).status == 204
    assert api("GET", path).status == 404
    assert api("GET", f"/{2**63 - 1}").status == 404


def test_password_is_a_credential_and_nothing_else(postgresql, host):
    unit = unit_name("taskboard")
    pids = host.check_output(
        "cat /sys/fs/cgroup/$(systemctl show --property=ControlGroup --value %s)/cgroup.procs", unit
    )
    assert len(pids.split()) > 1
    for pid in pids.split():
        for place in ("environ", "cmdline"):
            assert PASSWORD.encode() not in host.file(f"/proc/{pid}/{place}").content
    assert PASSWORD not in host.check_output("systemctl cat %s; systemctl show %s", unit, unit)
    credential = host.file("/etc/watchpost/taskboard/current/credentials/database_password")
    assert (credential.content_string, credential.user, credential.mode) == (PASSWORD, "root", 0o600)
    assert host.run("grep -rF %s /etc/watchpost/taskboard/current/faults.json /etc/systemd", PASSWORD).stdout == ""


def test_password_within_the_address_is_refused_with_the_remedy(postgresql, assert_refused):
    assert_refused(
        "taskboard",
        "TASKBOARD_DATABASE_URL holds a password",
        "taskboard_database_password",
        taskboard_database_url="postgresql+psycopg://taskboard:hunter2@127.0.0.1/taskboard",
    )


def test_request_after_a_restart_of_the_database_is_answered(api, host):
    assert api("GET").status == 200
    host.check_output("systemctl restart postgresql")
    assert [api("GET").status for _ in range(8)] == [200] * 8, "more often than there are connections in the pools"


def test_migrations_at_the_same_time_wait_for_each_other(postgresql, host):
    psql(host, "CREATE DATABASE another OWNER taskboard")
    together = " & ".join(f"{{ {MIGRATE}; echo $?; }}" for _ in range(3))
    assert host.check_output(f"{together} & wait").split() == ["0"] * 3
    assert psql(host, "SELECT version_num FROM alembic_version", "another") == "0001"


@pytest.fixture
def spans(host, postgresql):
    """What is sent to the Collector's port, while the test runs: spans by name, each with its attributes."""
    host.check_output("systemd-run --quiet --collect --unit=receiver python3 -c %s", RECEIVER)

    def spans(until):
        host.check_output("timeout 20 sh -c 'until base64 -di /run/received | grep -q %s; do sleep 0.2; done'", until)
        found = []
        for line in host.check_output("cat /run/received").splitlines():
            for resource in ExportTraceServiceRequest.FromString(base64.b64decode(line)).resource_spans:
                for scope in resource.scope_spans:
                    found += [{a.key: a.value.string_value for a in span.attributes} for span in scope.spans]
        return found

    yield spans
    host.check_output("systemctl stop receiver; rm -f /run/received")


def test_spans_tell_the_statement_the_database_and_the_fault(api, spans):
    assert api("GET", "/77").status == 404
    assert api("POST", "/77/complete").status == 500
    found = spans(until="InjectedError")
    statements = [span for span in found if "db.statement" in span]
    assert {span["db.system"] for span in statements} == {"postgresql"}
    assert any("pg_sleep" in span["db.statement"] and "watchpost.fault" in span["db.statement"] for span in statements)
    assert {span["watchpost.fault"] for span in found if "watchpost.fault" in span} == {"slow_query", "error"}


def test_faults_are_switched_without_a_restart_and_said_in_the_journal(api, host, journal):
    assert "A fault is switched on (taskboard_faults): error in 100.0% of the requests" in journal("taskboard")
    assert api("POST", "/77/complete").status == 500
    pid = host.check_output("systemctl show --property=MainPID --value %s", unit_name("taskboard"))
    run = play("taskboard", **VARIABLES | {"taskboard_faults": {}})
    assert run.code == 0, run.output
    host.check_output("timeout 20 sh -c 'until [ $(pgrep --count --parent %s) = 2 ]; do sleep 0.2; done'", pid)
    assert {api("POST", "/77/complete").status for _ in range(8)} == {404}
    assert host.check_output("systemctl show --property=MainPID --value %s", unit_name("taskboard")) == pid


def test_faults_that_mean_nothing_are_refused(postgresql, assert_refused):
    assert_refused("taskboard", "error.share must be a number from 0 to 1", taskboard_faults={"error": {"share": 5}})
