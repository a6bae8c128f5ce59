"""What cannot be made again is saved, and comes back: in place after damage, and on a host from which all was removed.

The tests tell one story, in their order: saved, refused where it must be, put back in place, removed but for the data,
put back in part, removed whole, put back on what is then a fresh host.
"""

import contextlib
import datetime
import functools
import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import PKI, PROJECT, asker, left_of_watchpost, run_playbook, unit_name, wait_until

from watchpost import verify_target
from watchpost.backup import unseal
from watchpost.project import ansible
from watchpost.secrets import SecretStore, state_dir
from watchpost.testhost import Host

HOST = Host("molecule-backup")
COMPONENTS = ("gateway", "grafana", "taskboard", "otel_collector", "alertmanager")
JSON = {"Content-Type": "application/json"}
PLAYBOOKS = PROJECT / "playbooks"
restore = functools.partial(run_playbook, PLAYBOOKS / "restore.yml")
remove = functools.partial(run_playbook, PLAYBOOKS / "remove.yml")


@pytest.fixture(scope="module")
def deployment():
    hosts = yaml.safe_load(HOST.inventory.read_text())["all"]["children"]["watchpost"]["hosts"]
    return hosts[HOST.name]["watchpost_deployment"]


@pytest.fixture(scope="module")
def archives(deployment):
    """The archives there are, the oldest first."""
    return lambda: sorted((state_dir(deployment) / "backups").glob("*.tar.gz"))


class People:
    """What people have made and see: the tasks, Anna's dashboards and preferences in Grafana, silences."""

    def __init__(self, host, deployment):
        self.host, self.deployment = host, deployment

    def ask(self, component, endpoint, path, **request):
        identity = "operator" if component == "alertmanager" else None
        if "body" in request:
            request |= {"method": "POST", "headers": JSON, "body": json.dumps(request["body"])}
        return asker(self.host)(component, endpoint, path, identity=identity, **request)

    def grafana(self):
        target = verify_target.find(inventory=str(HOST.inventory))
        password = SecretStore(self.deployment).read()["grafana_user_anna"]["value"]
        return httpx.Client(base_url=target.url, verify=target.trust(), auth=("anna", password), timeout=30)

    def tasks(self):
        return self.ask("gateway", "https", "/api/tasks").json["items"]

    def silences(self):
        found = self.ask("alertmanager", "http", "/api/v2/silences").json
        return [each for each in found if each["status"]["state"] == "active"]

    def add_silence(self):
        now = datetime.datetime.now(datetime.UTC)
        matcher = {"name": "alertname", "value": "Probe", "isRegex": False, "isEqual": True}
        silence = {"matchers": [matcher], "startsAt": now.isoformat(), "createdBy": "anna", "comment": "new disk"}
        silence["endsAt"] = (now + datetime.timedelta(hours=2)).isoformat()
        assert self.ask("alertmanager", "http", "/api/v2/silences", body=silence).status == 200
        kept = "grep --quiet 'new disk' /var/lib/watchpost/alertmanager/silences"
        wait_until(lambda: self.host.run(kept).rc == 0, 30)  # it keeps them in memory, and now and then in that file

    def add_task(self, title):
        assert self.ask("gateway", "https", "/api/tasks", body={"title": title}).status == 201

    def work(self):
        self.add_silence()
        self.add_task("Water the plants")
        with self.grafana() as client:
            assert client.put("/grafana/api/user/preferences", json={"theme": "light"}).status_code == 200
            answer = client.post("/grafana/api/dashboards/db", json={"dashboard": {"title": "Mine", "uid": "mine"}})
            assert answer.status_code == 200, answer.text

    def spoil(self):
        for task in self.tasks():
            assert self.ask("gateway", "https", f"/api/tasks/{task['id']}", method="DELETE").status == 204
        self.add_task("Feed the cat")
        for each in self.silences():
            self.ask("alertmanager", "http", f"/api/v2/silence/{each['id']}", method="DELETE")
        with self.grafana() as client:
            assert client.put("/grafana/api/user/preferences", json={"theme": "dark"}).status_code == 200
            assert client.delete("/grafana/api/dashboards/uid/mine").status_code == 200

    def see(self):
        with self.grafana() as client:
            found = client.get("/grafana/api/search", params={"type": "dash-db", "query": "Mine"}).json()
            theme = client.get("/grafana/api/user/preferences").json().get("theme")
        return {
            "tasks": [task["title"] for task in self.tasks()],
            "dashboards": [each["title"] for each in found],
            "theme": theme,
            "silences": [each["comment"] for each in self.silences()],
        }


ALL_OF_IT = {"tasks": ["Water the plants"], "dashboards": ["Mine"], "theme": "light", "silences": ["new disk"]}


@pytest.fixture(scope="module")
def people(host, deployment):
    return People(host, deployment)


@pytest.fixture(scope="module")
def trust(host):
    """The CA, and the certificate of the sender that is no component: both are known outside. And who may read what."""
    paths = " ".join(f"{PKI}/{path}" for path in ("", "private", "private/ca.key", "operator/tls.key", "edge/tls.key"))
    return lambda: (
        host.file(f"{PKI}/ca.crt").content_string,
        host.file(f"{PKI}/edge/tls.crt").content_string,
        host.check_output(f"stat --format='%a %U %G %n' {paths}"),
    )


def pids(host):
    show = [f"systemctl show --property=MainPID --value {unit_name(component)}" for component in COMPONENTS]
    return host.check_output("; ".join(show))


@pytest.fixture(scope="module")
def saved(host, people, archives, trust, deployment):
    """The archive, and what of the appliance it must bring back."""
    people.work()
    assert people.see() == ALL_OF_IT
    before = pids(host)
    run = run_playbook(PLAYBOOKS / "backup.yml")
    assert run.code == 0 and not run.changed, run.output
    assert pids(host) == before, "nothing was stopped"
    (archive,) = archives()
    return archive, trust(), SecretStore(deployment).read()


def parts(archive):
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_archive_is_the_owners_alone_and_sealed_with_the_password_of_the_secrets(saved, archives, tmp_path):
    archive, (ca, *_), _ = saved
    assert archive.stat().st_mode & 0o777 == 0o600
    assert archive.parent.stat().st_mode & 0o777 == 0o700 and list(archive.parent.iterdir()) == [archive]
    found = parts(archive)
    assert set(found) == {"manifest.json", "state.tar.gz.vault", "secrets.yml"}
    assert all(found[name].startswith(b"$ANSIBLE_VAULT;") for name in ("state.tar.gz.vault", "secrets.yml"))
    # As a stranger would open it, who has the archive, the password and Ansible.
    (tmp_path / "state").write_bytes(found["state.tar.gz.vault"])
    password = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "watchpost/vault-password")
    opener = ansible("ansible-vault", "decrypt", f"--vault-password-file={password}", "--output=-", "state")
    plain = subprocess.run(opener, cwd=tmp_path, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        names = set(tar.getnames())
        assert tar.extractfile("pki/ca.crt").read().decode() == ca
    assert {"pki/private/ca.key", "pki/edge/tls.key", "pki/operator/tls.key"} <= names
    assert {"state/taskboard/tasks.db", "state/grafana/grafana.db", "state/alertmanager/silences"} <= names
    assert not [name for name in names if name.endswith(("-wal", "-shm")) or name.startswith("pki/grafana")]


def test_nothing_is_left_on_the_way(host, saved):
    assert host.check_output("find /opt/watchpost /var/lib/watchpost -name '.*backup*' -o -name '.*restore*'") == ""
    owners = host.check_output("stat --format=%U /var/lib/watchpost/taskboard/* /var/lib/watchpost/grafana/*").split()
    assert set(owners) == {"watchpost-taskboard", "watchpost-grafana"}, "nor beside a database"


def with_manifest(archive, path, **changes):
    """Write the archive with another manifest."""
    found = parts(archive)
    found["manifest.json"] = json.dumps(json.loads(found["manifest.json"]) | changes).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in found.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)


def test_archive_of_another_deployment_or_version_is_refused(host, saved, tmp_path):
    archive, *_ = saved
    before = pids(host)
    for changes, words in (
        ({"deployment": "elsewhere"}, "is of the deployment elsewhere"),
        ({"versions": {"grafana": "99.0.0"}}, "the archive is of grafana 99.0.0, and site.yml installs"),
    ):
        run = restore(restore_from=with_manifest(archive, tmp_path / "other.tar.gz", **changes))
        assert run.code != 0 and words in run.output and "restore_anyway=true" in run.output, run.output
    assert pids(host) == before, "nothing was stopped"


def test_restore_that_was_cut_off_is_run_again_and_brings_everything_back(host, saved, people, trust):
    archive, before, _ = saved
    people.spoil()
    host.check_output(f"rm -r {PKI}/private {PKI}/ca.crt {PKI}/edge")
    # Its own part done, it is cut off in site.yml.
    run = restore(restore_from=str(archive), alertmanager_repeat_interval="often")
    assert run.code != 0 and "alertmanager does not accept its new configuration" in run.output, run.output
    assert trust() == before
    run = restore(restore_from=str(archive))
    assert run.code == 0, run.output
    assert people.see() == ALL_OF_IT
    assert trust() == before


def test_what_a_restore_replaces_is_saved_first(saved, archives, deployment, tmp_path):
    _, replaced, *_ = archives()
    unseal(replaced, deployment, tmp_path)
    with tarfile.open(tmp_path / "state.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    with contextlib.closing(sqlite3.connect(tmp_path / "state/taskboard/tasks.db")) as database:
        assert database.execute("SELECT title FROM task").fetchall() == [("Feed the cat",)]


def test_removal_wants_to_know_from_which_host(host):
    before = pids(host)
    for given in ({}, {"remove_host": "molecule"}):
        run = remove(**given)
        assert run.code != 0 and "-e remove_host=NAME" in run.output and HOST.name in run.output, run.output
    assert pids(host) == before


def test_removed_appliance_leaves_its_data_and_nothing_else(host):
    assert remove("--check", remove_host=HOST.name).changed
    assert host.service(unit_name("grafana")).is_running, "check mode changes nothing"
    host.check_output("mkdir -p /etc/nginx/sites-enabled && echo mine >/etc/nginx/watchpost-of-mine.conf")
    run = remove(remove_host=HOST.name)
    assert run.code == 0 and run.changed, run.output
    assert left_of_watchpost(host) == "/etc/nginx/watchpost-of-mine.conf", "what people called so is theirs"
    host.check_output("rm /etc/nginx/watchpost-of-mine.conf")
    data = "/var/lib/watchpost/taskboard/tasks.db"
    assert host.file(data).exists and host.file(data).user == "root"
    assert not host.service("nginx").is_enabled and not host.service("nginx").is_running
    assert not remove(remove_host=HOST.name).changed


def test_restore_that_was_cut_off_early_is_not_refused_when_it_is_run_again(
    host, saved, archives, deployment, tmp_path
):
    """From a machine with other secrets, whose host it is by its mark; what is there is saved before."""
    archive, _, secrets = saved
    store = SecretStore(deployment)
    store.path.unlink()
    values, _ = store.ensure({"deployment_id": 1})
    mark = json.dumps({"deployment": deployment, "id": values["deployment_id"]})
    # It is cut off when this machine has the archive's secrets, and the host is not yet marked as theirs.
    host.check_output("mkdir -p /etc/watchpost /etc/sysusers.d/watchpost.conf")
    host.check_output("echo %s >/etc/watchpost/deployment", mark)
    run = restore(restore_from=str(archive))
    assert run.code != 0 and "/etc/sysusers.d/watchpost.conf: " in run.output, run.output
    assert store.read() == secrets
    run = run_playbook("site.yml", "--tags=none")  # which checks the host, as a restore does
    assert run.code == 0, run.output
    host.check_output("rmdir /etc/sysusers.d/watchpost.conf")
    unseal(archives()[-1], deployment, tmp_path)
    with tarfile.open(tmp_path / "state.tar.gz") as tar:
        assert "state/taskboard/tasks.db" in tar.getnames(), "the data that the removal has left"


def test_data_and_what_a_run_has_half_made_are_removed_on_demand(host):
    run = remove(remove_host=HOST.name, remove_data=True)
    assert run.code == 0 and run.changed, run.output
    assert left_of_watchpost(host) == ""
    assert not host.file("/var/lib/watchpost").exists
    assert not remove(remove_host=HOST.name, remove_data=True).changed


def test_fresh_host_goes_on_where_the_old_one_was(host, saved, people, trust, deployment):
    """From another machine as well, which has no secrets yet: agents and senders keep their certificates and tokens."""
    archive, before, secrets = saved
    (state_dir(deployment) / "secrets.yml").unlink()
    run = restore(restore_from=str(archive))
    assert run.code == 0, run.output
    assert SecretStore(deployment).read() == secrets
    assert json.loads(host.file("/etc/watchpost/deployment").content)["id"] == secrets["deployment_id"]["value"]
    assert people.see() == ALL_OF_IT
    assert trust() == before


def test_doctor_finds_nothing_then():
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    command = [sys.executable, "-m", "watchpost", "doctor", "--json", f"--inventory={inventory}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
