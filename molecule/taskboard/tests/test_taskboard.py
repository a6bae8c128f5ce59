"""The task manager does its work over mutual TLS, keeps what it was told, and a deploy proves which version answers."""

import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ENDPOINTS, PROJECT, play

from watchpost.artifacts.store import extract

JSON = {"Content-Type": "application/json"}
UNIT = "watchpost-taskboard.service"
PORT = ENDPOINTS["taskboard"]["https"]["port"]
COLLECTOR_PORT = ENDPOINTS["otel_collector"]["local_http"]["port"]


@pytest.fixture
def api(ask):
    def api(method, path="", **fields):
        body = json.dumps(fields) if fields else None
        return ask("taskboard", "https", f"/api/tasks{path}", method=method, body=body, headers=JSON)

    return api


def test_task_lives_from_creation_to_deletion(api):
    made = api("POST", title="Water the plants")
    assert made.status == 201
    path = f"/{made.json['id']}"
    assert made.json in api("GET").json["items"]
    assert api("PATCH", path, title="Water the cactus").json["title"] == "Water the cactus"
    assert api("POST", f"{path}/complete").json["state"] == "done"
    assert api("DELETE", path).status == 204
    assert api("GET", path).status == 404


def test_wrong_field_is_named(api):
    answer = api("POST", titel="Water the plants")
    assert answer.status == 422
    assert {error["field"] for error in answer.json["errors"]} == {"title", "titel"}
    assert len(answer.json["trace_id"]) == 32


def test_tasks_survive_a_restart_and_a_killed_server(api, host):
    task = api("POST", title="Still here").json
    for command in ("systemctl restart %s", "systemctl kill --signal=KILL %s"):
        host.check_output(command, UNIT)
        wait_until_it_answers(host)
        assert api("GET", f"/{task['id']}").json == task


def wait_until_it_answers(host):
    host.check_output("timeout 30 sh -c 'until ss -Hltn sport = :%s | grep -q .; do sleep 0.2; done'", str(PORT))


def test_relative_database_path_is_refused_and_the_old_generation_runs_on(assert_refused):
    assert_refused(
        "taskboard",
        "TASKBOARD_DATABASE_URL names the relative path 'tasks.db'",
        "four slashes",
        taskboard_database_url="sqlite:///tasks.db",
    )


def test_database_that_cannot_be_written_is_taken_back(api, host):
    task = api("POST", title="Not lost").json
    run = play("taskboard", taskboard_database_url="sqlite:////etc/tasks.db", service_ready_timeout=10)
    assert run.code != 0
    assert "unable to open database file" in run.output, run.output
    assert "was put back and is ready again" in run.output, run.output
    assert api("GET", f"/{task['id']}").json == task


@pytest.fixture
def old_code_under_a_new_version(tmp_path):
    """An artifact that calls itself 9.9.9, but whose code answers as an older one."""
    command = [sys.executable, "-m", "watchpost", "artifacts", "ensure", "taskboard", "--json"]
    found = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    tree, archive = tmp_path / "tree", tmp_path / "taskboard-9.9.9.tar.gz"
    extract(Path(json.loads(found)["taskboard"]["path"]), tree)
    (wheel,) = tree.glob("share/wheels/taskboard-*.whl")
    with zipfile.ZipFile(wheel) as original:
        files = {name: original.read(name) for name in original.namelist()}
    line = b"version=environment.get(VERSION) or cls.version"
    assert line in files["taskboard/settings.py"]
    files["taskboard/settings.py"] = files["taskboard/settings.py"].replace(line, b'version="0.0.1"')
    with zipfile.ZipFile(wheel, "w") as changed:
        for name, content in files.items():
            changed.writestr(name, content)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(
            tree, arcname=".", filter=lambda entry: entry.replace(uid=0, gid=0, uname="root", gname="root", deep=False)
        )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return {"version": "9.9.9", "os_arch": "linux-amd64", "source": "source", "path": str(archive), "sha256": digest}


def test_deploy_after_which_old_code_answers_fails_and_is_taken_back(ask, host, old_code_under_a_new_version):
    before = ask("taskboard", "https", "/version").json
    run = play("taskboard", watchpost_artifacts={"taskboard": old_code_under_a_new_version}, service_ready_timeout=10)
    assert run.code != 0
    assert "answers without" in run.output and "0.0.1" in run.output, run.output
    assert "was put back and is ready again" in run.output, run.output
    assert ask("taskboard", "https", "/version").json == before
    assert before["version"] in host.check_output("readlink /opt/watchpost/taskboard/current")


# Sends so many tasks with notes of so many characters one after the other, and prints each one's status and seconds.
SEND = """
import http.client, json, ssl, sys, time
pki = "/etc/watchpost/pki"
context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
context.load_cert_chain(f"{pki}/operator/tls.crt", f"{pki}/operator/tls.key")
for number in range(int(sys.argv[2])):
    task = {"title": str(number), "notes": chr(0x1F335) * int(sys.argv[3])}
    started = time.monotonic()
    connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), timeout=30, context=context)
    connection.request("POST", "/api/tasks", json.dumps(task), {"Content-Type": "application/json"})
    print(connection.getresponse().status, time.monotonic() - started)
    connection.close()
"""


def test_collector_that_is_away_neither_breaks_nor_slows_requests(host):
    assert host.run("ss -Hltn sport = :%s", str(COLLECTOR_PORT)).stdout == "", "there is no Collector here"
    sent = host.check_output("python3 -c %s %s 60 0", SEND, str(PORT))
    answers = [line.split() for line in sent.splitlines()]
    assert [status for status, _ in answers] == ["201"] * 60
    # An export that held a request up would do so for its timeout, which is 5 s.
    assert max(float(seconds) for _, seconds in answers) < 2
    assert host.service(UNIT).is_running


def test_database_grows_as_far_as_the_setting_and_no_further(api, host):
    assert play("taskboard", taskboard_max_mib=1).code == 0
    sent = host.check_output("python3 -c %s %s 180 2000", SEND, str(PORT))  # 1.4 MiB
    statuses = [line.split()[0] for line in sent.splitlines()]
    assert set(statuses) == {"201", "507"} and statuses[-1] == "507", statuses
    assert host.file("/var/lib/watchpost/taskboard/tasks.db").size <= 2**20
    assert play("taskboard").code == 0
    assert api("POST", title="There is room again").status == 201


def test_collector_that_is_away_does_not_fill_the_journal(journal):
    complaints = [line for line in journal("taskboard").splitlines() if "opentelemetry.exporter" in line]
    assert complaints, "it is said that telemetry does not leave"
    assert len(complaints) < 400
