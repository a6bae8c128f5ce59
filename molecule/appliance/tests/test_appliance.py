"""What only the whole appliance can show: its signals connected, its start, its memory, its return after a reboot.

Ports, sandboxes, refused callers and hidden secrets of every component are tested in molecule/shared/tests.
"""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import yaml
from conftest import ENDPOINTS, PKI, PROJECT, play, scenario_components, unit_name
from otlp import JSON, Probe

from watchpost import verify_target
from watchpost.project import ansible
from watchpost.secrets import MARK, SecretStore
from watchpost.testhost import Host

HOST = Host(yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text())["platforms"][0]["name"])

#: Seconds until everything is ready after a start. 10 on a machine that does nothing else; tests share it with others.
READY_SECONDS = 20
#: MiB of memory that the idle stack itself needs: without the programs' own files, which PSS counts too and which the
#: kernel drops when memory is short (about 350 MiB more, according to how many of their pages were last read).
IDLE_MIB = 600
#: Seconds after which whatever was busy is idle: Go collects its garbage at least every two minutes.
IDLE_AFTER = 180

#: Where each component says that it is ready.
READY = {
    "gateway": ("https", "/healthz"),
    "grafana": ("https", "/api/health"),
    "taskboard": ("https", "/healthz"),
    "otel_collector": ("health", "/"),
    "tempo": ("http", "/ready"),
    "loki": ("http", "/ready"),
    "prometheus": ("http", "/-/ready"),
    "alertmanager": ("http", "/-/ready"),
    "node_exporter": ("http", "/"),
}


def verify(*arguments, timeout=30):
    """Run `watchpost verify` as a person does, and return its exit code and report."""
    command = [sys.executable, "-m", "watchpost", "verify", "--json", f"--timeout={timeout}"]
    done = subprocess.run(
        [*command, f"--inventory={HOST.inventory}", *arguments], cwd=PROJECT, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def assert_everything_is_found():
    code, report, progress = verify(timeout=90)
    assert code == 0, progress
    assert {link["state"] for link in report["links"]} == {"found"}


def wait_until_everything_is_found(seconds):
    """For after a restart: the first requests may meet a component that is not there yet."""
    deadline = time.monotonic() + seconds
    while (answer := verify(timeout=15))[0] != 0:
        assert time.monotonic() < deadline, answer[2]


def test_installation_raises_no_alert(ask):
    """Nothing has fired since the appliance was put here, but the alert that always does; and nothing is about to."""

    def raised(alerts):
        query = f"count by (alertname) ({alerts})"
        answer = ask("prometheus", "http", f"/api/v1/query?{urlencode({'query': query})}").json
        return [each["metric"]["alertname"] for each in answer["data"]["result"]]

    deadline = time.monotonic() + 120  # what the start has made pending ends with the next looks of the rules
    # A test host's disk is its controller's, which other test hosts fill meanwhile.
    while about := raised('ALERTS{alertstate="pending",alertname!="DiskFilling"}'):
        assert time.monotonic() < deadline, about
        time.sleep(2)  # between two questions
    assert raised('max_over_time(ALERTS{alertstate="firing"}[1h])') == ["Watchdog"]


def test_every_signal_of_a_request_is_found():
    assert_everything_is_found()


def test_verify_leaves_no_task_behind(ask):
    verify()
    tasks = ask("gateway", "https", "/api/tasks", identity=None).json["items"]
    assert not [task for task in tasks if "watchpost verify" in task["title"]]


def test_verify_accepts_no_certificate_of_an_unknown_authority():
    code, _, message = verify("--ca=/etc/ssl/certs/ca-certificates.crt")
    assert code == 2
    assert "CERTIFICATE_VERIFY_FAILED" in message


def test_page_cannot_pass_itself_off_as_another_service(ask):
    probe = Probe()
    headers = JSON | {"Origin": verify_target.find(inventory=str(HOST.inventory)).url}
    body = probe.span("click")
    sent = ask("gateway", "https", "/otlp/v1/traces", identity=None, method="POST", headers=headers, body=body)
    assert sent.status == 200, sent
    deadline = time.monotonic() + 30
    while (answer := ask("tempo", "http", f"/api/traces/{probe.trace_id}")).status != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.5)  # between two looks
    said = {each["key"]: each["value"]["stringValue"] for each in answer.json["batches"][0]["resource"]["attributes"]}
    assert (said["service.namespace"], said["service.name"]) == ("watchpost", "taskboard-web")
    assert (said["service.instance.id"], said["deployment.environment.name"]) == ("browser", "production")


def test_grafana_knows_whom_to_lock_whatever_a_caller_says(journal):
    """Grafana locks the address that wrong passwords come from; the gateway, whose own is another, tells it."""
    forged = dict.fromkeys(("X-Real-IP", "X-Forwarded-For", "Forwarded"), "203.0.113.9")
    target = verify_target.find(inventory=str(HOST.inventory))
    with socket.create_connection((urlsplit(target.url).hostname, 443)) as connection:
        own = connection.getsockname()[0]
    with httpx.Client(verify=target.trust(), trust_env=False) as client:
        guess = {"user": "admin", "password": "a-guess"}
        assert client.post(f"{target.url}/grafana/login", json=guess, headers=forged).status_code == 401
    refused = [json.loads(line) for line in journal("grafana").splitlines() if '"path":"/login"' in line]
    assert [line["remote_addr"] for line in refused][-1:] == [own]


def test_playbook_verifies_too():
    done = subprocess.run(
        ansible("ansible-playbook", f"--inventory={HOST.inventory}", "playbooks/verify.yml"),
        cwd=PROJECT, env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout


@contextmanager
def stopped(host, component):
    """Stop a component for a while."""
    host.check_output("systemctl stop %s", unit_name(component))
    try:
        yield
    finally:
        host.check_output("systemctl start %s", unit_name(component))


@pytest.mark.parametrize(
    ("victim", "links"),
    [
        ("loki", ["logs", "targets"]),
        ("tempo", ["traces", "targets"]),
        ("prometheus", ["metrics", "targets"]),
        ("alertmanager", ["targets", "alerts"]),
        ("node_exporter", ["targets"]),
        ("otel_collector", ["traces", "logs", "metrics"]),
        ("taskboard", ["application"]),
        ("grafana", ["grafana"]),
    ],
)
def test_stopped_component_is_seen_and_its_missing_link_named(host, victim, links):
    """No link but those: so what an earlier case had stopped must be back."""
    # Prometheus sees a stopped target at its next scrape, 15 seconds later at most; to a new Alertmanager it takes 75.
    deadline = time.monotonic() + 120
    with stopped(host, victim):
        while True:
            code, report, _ = verify(timeout=12)  # more than the application's interval of export
            if report["missing"] == links or time.monotonic() > deadline:
                break
    assert code == 1
    assert report["missing"] == links
    hints = [link["hint"] for link in report["links"] if link["state"] == "missing"]
    assert all(f"journalctl -u {unit_name(victim).removesuffix('.service')} " in hint for hint in hints)


@pytest.mark.parametrize(("store", "words"), [("tempo", ""), ("loki", "connection refused")])
def test_a_run_fails_with_the_name_of_a_data_source_that_does_not_answer(host, store, words):
    with stopped(host, store):
        run = play("grafana", __grafana_answer_seconds=2)
    assert run.code != 0
    assert f"Grafana's data source {store} does not work. It answers:" in run.output, run.output
    assert words in run.output


def test_stopped_gateway_cannot_be_reached_and_everything_works_again_afterwards(host):
    with stopped(host, "gateway"):
        assert verify()[0] == 2
    wait_until_everything_is_found(120)


def test_secrets_on_the_host_are_those_of_the_controller(host):
    """Otherwise the shared test, which looks for the host's secrets everywhere else, would look for nothing."""
    deployment = yaml.safe_load(HOST.inventory.read_text())["all"]["children"]["watchpost"]["hosts"][HOST.name]
    stored = SecretStore(deployment["watchpost_deployment"]).read()
    stored.pop(MARK)
    assert stored
    for name, entry in stored.items():
        files = host.check_output("find /etc/watchpost/*/current/credentials/ -type f -name %s", name).split()
        assert files, f"no service has {name}"
        for file in files:
            assert host.file(file).content_string == entry["value"], f"{file} holds another value"
            assert host.file(file).user == "root"
            assert host.file(file).mode & 0o077 == 0


# Runs on the host: starts the target and asks every component until it is ready, all at once.
START = """
import json, ssl, subprocess, sys, threading, time, urllib.request
places, units, pki = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile=pki + "/ca.crt")
context.load_cert_chain(pki + "/operator/tls.crt", pki + "/operator/tls.key")
# The units are named: systemctl waits for what it is told to stop, not for what stops with it.
subprocess.run(["systemctl", "stop", "watchpost.target", *units], check=True)
began, seconds = time.monotonic(), {}
def ask(name, url):
    while time.monotonic() < began + 60:
        try:
            urllib.request.urlopen(url, timeout=5, context=context).read()
            seconds[name] = round(time.monotonic() - began, 2)
            return
        except OSError:
            time.sleep(0.1)  # between two questions
threads = [threading.Thread(target=ask, args=place) for place in places.items()]
[thread.start() for thread in threads]
subprocess.run(["systemctl", "start", "watchpost.target"], check=True)
[thread.join() for thread in threads]
print(json.dumps(seconds))
"""


def test_everything_is_ready_soon_after_a_start(host, capsys):
    places = {
        component: f"https://127.0.0.1:{ENDPOINTS[component][endpoint]['port']}{path}"
        for component, (endpoint, path) in READY.items()
    }
    units = [unit_name(component) for component in places]
    seconds = json.loads(host.check_output("python3 -c %s %s %s %s", START, json.dumps(places), json.dumps(units), PKI))
    with capsys.disabled():
        print(f"\nseconds until ready: {seconds}")
    assert seconds.keys() == set(scenario_components()), "a component did not become ready within a minute"
    assert max(seconds.values()) <= READY_SECONDS, seconds
    wait_until_everything_is_found(120)


# Runs on the host: sums the proportional set size of every process of Watchpost's users: [all, without files] by user.
MEMORY = """
import json, pathlib, pwd
names = {user.pw_uid: user.pw_name for user in pwd.getpwall() if user.pw_name.startswith("watchpost-")}
mib = {}
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        name = names.get(folder.stat().st_uid)
        if name:
            lines = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
            sizes = [int(lines[key].split()[0]) / 1024 for key in ("Pss", "Pss_Anon")]
            mib[name] = [round(old + new, 1) for old, new in zip(mib.get(name, (0, 0)), sizes)]
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended
print(json.dumps(mib))
"""


def test_idle_memory_of_the_whole_stack(host, components, capsys):
    deadline = time.monotonic() + IDLE_AFTER
    while True:
        mib = json.loads(host.check_output("python3 -c %s", MEMORY))
        whole, anonymous = (sum(sizes[kind] for sizes in mib.values()) for kind in (0, 1))
        if anonymous <= IDLE_MIB or time.monotonic() > deadline:
            break
        time.sleep(5)  # Go's runtime gives memory back little by little
    with capsys.disabled():
        print(f"\nidle memory (PSS): {whole:.0f} MiB, {anonymous:.0f} without files; [both] by user: {mib}")
    assert mib.keys() == {unit_name(component).removesuffix(".service") for component in components}
    assert anonymous <= IDLE_MIB, mib


def test_everything_comes_back_after_a_reboot(host):
    boot = host.check_output("cat /proc/sys/kernel/random/boot_id")
    subprocess.run([sys.executable, "-m", "watchpost", "testhost", "reboot", HOST.name], cwd=PROJECT, check=True)
    assert host.check_output("cat /proc/sys/kernel/random/boot_id") != boot
    wait_until_everything_is_found(120)
    failed = host.check_output("systemctl list-units --failed --plain --no-legend")
    assert failed == ""
