"""A deployment's secrets: made once, rotated by a number, readable by their owner alone, opened by one password."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from watchpost import secrets
from watchpost.project import PROJECT, ansible

GENERATIONS = {"grafana_admin_password": 1, "otlp_ingest_token": 1}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A person without any secrets yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)
    return tmp_path


@pytest.fixture
def store(home):
    return home / "state/watchpost/lab/secrets.yml"


@pytest.fixture
def password(home):
    return home / "config/watchpost/vault-password"


def watchpost(*words):
    command = [sys.executable, "-m", "watchpost", "secrets", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def ensure(generations=GENERATIONS, deployment="lab", *options):
    return watchpost("ensure", "--deployment", deployment, "--generations", json.dumps(generations), *options)


def values(generations=GENERATIONS, deployment="lab", inventory=""):
    done = ensure(generations, deployment, "--json", "--named-by", str(inventory))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done):
    assert done.returncode == 1 and done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_secrets_are_made_once_and_then_kept(home):
    first = values()
    assert set(first) == set(GENERATIONS) and len(set(first.values())) == 2
    assert all(len(value) >= 32 for value in first.values())
    assert values() == first


def test_raised_number_rotates_that_secret_and_no_other(home):
    first = values()
    second = values({**GENERATIONS, "otlp_ingest_token": 2})
    assert second["otlp_ingest_token"] != first["otlp_ingest_token"]
    assert second["grafana_admin_password"] == first["grafana_admin_password"]


def test_secret_outlasts_the_line_that_had_it_made_anew(home):
    second = values({**GENERATIONS, "otlp_ingest_token": 2})
    assert values({**GENERATIONS, "grafana_admin_password": 2})["otlp_ingest_token"] == second["otlp_ingest_token"]
    assert values({**GENERATIONS, "otlp_ingest_token": 3})["otlp_ingest_token"] != second["otlp_ingest_token"]


def test_each_rotation_is_told_by_name_and_never_by_value(home):
    assert "Made otlp_ingest_token (generation 1)." in ensure().stderr
    done = ensure({**GENERATIONS, "otlp_ingest_token": 2})
    assert done.stderr == "Made otlp_ingest_token (generation 2).\n"
    for value in values({**GENERATIONS, "otlp_ingest_token": 2}).values():
        assert value not in done.stdout + done.stderr
    assert ensure({**GENERATIONS, "otlp_ingest_token": 2}).stderr == ""


def test_secret_that_is_no_longer_asked_for_is_kept_but_not_handed_out(home):
    first = values()
    assert values({"otlp_ingest_token": 1}) == {"otlp_ingest_token": first["otlp_ingest_token"]}
    assert values() == first


def test_deployments_do_not_share_secrets(home):
    assert not set(values().values()) & set(values(deployment="other").values())


def test_only_the_owner_can_read_the_files_and_no_value_lies_there_in_the_clear(home, store, password):
    made = values()
    for file in (store, password):
        assert file.stat().st_mode & 0o777 == 0o600
    assert store.parent.stat().st_mode & 0o777 == 0o700
    for file in home.rglob("*"):
        assert not file.is_file() or not any(value in file.read_text() for value in made.values())


def test_ansible_vault_opens_the_file(home, store, password):
    made = values()
    command = ansible("ansible-vault", "view", "--vault-password-file", str(password), str(store))
    content = yaml.safe_load(subprocess.run(command, capture_output=True, check=True).stdout)
    assert {name: entry["value"] for name, entry in content.items()} == made


@pytest.mark.parametrize("script", [False, True], ids=["file", "script"])
def test_the_users_own_vault_password_is_used(home, password, monkeypatch, script):
    own = home / "own"
    own.write_text("#!/bin/sh\necho correct horse\n" if script else "correct horse\n")
    own.chmod(0o700 if script else 0o600)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(own))
    made = values()
    assert not password.exists()
    plain = home / "plain"
    plain.write_text("correct horse")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(plain))
    assert values() == made


def test_wrong_password_is_refused_and_the_file_left_alone(home, store, password, monkeypatch):
    values()
    before = store.read_bytes()
    other = home / "other"
    other.write_text("wrong")
    password.write_text("wrong too")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(other))
    message = refused(ensure({**GENERATIONS, "otlp_ingest_token": 2}))
    assert all(str(file) in message for file in (store, other, password))
    assert store.read_bytes() == before


def test_a_vault_password_that_is_named_later_leaves_the_secrets_open(home, password, monkeypatch):
    made = values()
    own = home / "own"
    own.write_text("correct horse")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(own))
    assert values() == made
    rotated = values({**GENERATIONS, "otlp_ingest_token": 2})
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE")
    assert values({**GENERATIONS, "otlp_ingest_token": 2}) == rotated, "sealed as it was before"


def test_lost_password_is_not_replaced_by_a_new_one(home, store, password):
    values()
    password.unlink()
    message = refused(ensure())
    assert str(password) in message and str(store) in message
    assert not password.exists()


@pytest.fixture
def marked(home):
    """What a run from the inventory lab/ leaves on its host."""
    (home / "lab").mkdir()
    made = values({**GENERATIONS, secrets.MARK: 1}, "lab", home / "lab")
    return {"deployment": "lab", "id": made[secrets.MARK]}


def test_host_gets_the_secrets_that_it_has_and_a_new_one_gets_any(home, marked):
    assert secrets.estranged("lab", marked, str(home / "lab")) == ""
    assert secrets.estranged("lab", {}, str(home / "lab")) == "", "it was installed anew"
    assert secrets.estranged("other", {}, str(home / "other")) == ""
    assert values({**GENERATIONS, secrets.MARK: 1, "otlp_ingest_token": 2})[secrets.MARK] == marked["id"]
    assert secrets.estranged("lab", marked, str(home / "elsewhere")) == "", "the inventory was moved, or copied"


def test_second_machine_is_told_what_to_copy_instead_of_making_new_secrets(home, marked, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "second"))
    said = secrets.estranged("lab", marked, str(home / "lab"))
    assert said.endswith(
        f"copy {home}/second/watchpost/lab and {home}/config/watchpost/vault-password "
        "from the machine that ran site.yml before"
    )
    (home / "second").symlink_to(home / "state")
    assert secrets.estranged("lab", marked, str(home / "lab")) == ""


def test_second_machine_does_not_take_an_installed_host_without_a_mark_for_a_new_one(home, marked):
    assert secrets.estranged("lab", {}, str(home / "lab"), installed=True) == ""
    said = secrets.estranged("cellar", {}, str(home / "cellar"), installed=True)
    assert f"copy {home}/state/watchpost/cellar and {home}/config/watchpost/vault-password" in said


def test_renamed_inventory_is_told_the_name_of_its_secrets(home, marked, monkeypatch):
    assert secrets.estranged("cellar", marked, str(home / "cellar")).endswith("; set watchpost_deployment: lab")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "second"))
    said = secrets.estranged("cellar", marked, str(home / "cellar"))
    assert f"copy {home}/second/watchpost/lab" in said and said.endswith(", and set watchpost_deployment: lab")


def test_secrets_of_another_host_are_not_given_to_this_one(home, marked):
    said = secrets.estranged("lab", marked | {"id": "another"}, str(home / "lab"))
    assert f"move {home}/state/watchpost/lab away, which holds other secrets, and copy" in said


def test_new_host_does_not_get_the_secrets_of_another_inventory_of_that_name(home, marked):
    second = str(home / "b/lab")
    said = secrets.estranged("lab", {}, second)
    assert f"those of another inventory, {home}/lab; set watchpost_deployment in {second}" in said
    (home / "lab").rmdir()
    assert secrets.estranged("lab", {}, second) == "", "it was moved"


def test_inventory_that_names_its_deployment_is_not_noted(home):
    values(deployment="lab", inventory=home / "cellar")
    (home / "cellar").mkdir()
    assert secrets.estranged("lab", {}, str(home / "attic")) == ""


@pytest.mark.parametrize(
    ("generations", "deployment", "named"),
    [
        ("{", "lab", "--generations is not JSON"),
        ('{"a": "1"}', "lab", "whole numbers"),
        ('{"a": 0}', "lab", "whole numbers"),
        ('{"../a": 1}', "lab", "'../a'"),
        ('{"a": 1}', "../lab", "'../lab'"),
    ],
)
def test_bad_input_is_refused_by_name(home, generations, deployment, named):
    assert named in refused(watchpost("ensure", "--deployment", deployment, "--generations", generations))
    assert not (home / "state").exists()


def test_a_person_is_shown_one_secret(home):
    made = values()
    assert watchpost("show", "grafana_admin_password").stdout == made["grafana_admin_password"] + "\n"
    assert "otlp_ingest_token" in refused(watchpost("show", "no_such_secret", "--deployment", "lab"))
    values(deployment="other")
    assert "lab, other" in refused(watchpost("show", "grafana_admin_password"))


def test_runs_at_the_same_time_agree(home):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: values(), range(4)))
    assert all(answer == answers[0] for answer in answers)


def test_interrupted_write_leaves_the_old_file(home, store):
    made = values()
    # Killed over and over while it rotates: what can be read is always one whole generation of the file.
    for generation in range(2, 8):
        command = ["ensure", "--deployment", "lab", "--generations", json.dumps({**GENERATIONS, "extra": generation})]
        process = subprocess.Popen([sys.executable, "-m", "watchpost", "secrets", *command], cwd=PROJECT)
        time.sleep(0.1 * generation)  # at another moment of its work each time
        process.kill()
        process.wait()
        assert values() == made


def test_secrets_are_quickly_there(home):
    ensure()
    before = os.times()
    ensure()
    after = os.times()
    # Of processor time, as others may be at work on this machine; they slow it down all the same. It takes 0.8 s alone.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3
