"""What the controller must have ready: each program verified on every use, each secret kept to itself."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, play


def watchpost(*arguments):
    command = [sys.executable, "-m", "watchpost", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def store_of_its_own(tmp_path, monkeypatch):
    """A store with the scenario's one program, apart from the one that other scenarios use at the same time."""
    path = Path(json.loads(watchpost("artifacts", "ensure", "node_exporter", "--json"))["node_exporter"]["path"])
    folder = path.parents[2]
    shutil.copytree(folder, tmp_path / "store" / folder.name)
    monkeypatch.setenv("WATCHPOST_CACHE", str(tmp_path))
    return tmp_path / "store" / path.relative_to(folder.parent)


def test_program_comes_from_the_verified_store(store_of_its_own):
    run = play("node_exporter")
    assert run.code == 0, run.output
    assert not run.changed, "the same program, byte for byte"


def test_program_changed_in_the_store_is_refused(host, store_of_its_own):
    with store_of_its_own.open("ab") as archive:
        archive.write(b"one byte more")
    running = host.check_output("systemctl show watchpost-node-exporter --property=MainPID --value")
    run = play("node_exporter")
    assert run.code != 0
    assert store_of_its_own.name in run.output and "SHA-256" in run.output, run.output
    assert host.check_output("systemctl show watchpost-node-exporter --property=MainPID --value") == running


def test_second_machine_replaces_no_secret_of_the_host(host, tmp_path, monkeypatch):
    def mark():
        return json.loads(host.file("/etc/watchpost/deployment").content_string)

    first = mark()
    with monkeypatch.context() as second_machine:
        second_machine.setenv("XDG_STATE_HOME", str(tmp_path))
        for options in ([], ["--check"]):
            run = play("host", *options)
            assert run.code != 0 and "nothing was changed" in run.output, run.output
            assert f"copy {tmp_path}/watchpost/{first['deployment']} and " in run.output.replace("\n", "")
        assert mark() == first and not any(tmp_path.iterdir())
        insisted = play("host", preflight_allow_other_secrets=True)
        assert insisted.code == 0 and mark()["id"] != first["id"], insisted.output
    assert "which holds other secrets" in play("host").output, "now the first machine is the second"
    assert play("host", preflight_allow_other_secrets=True).code == 0
    assert mark() == first and not play("host").changed


def test_raised_number_makes_a_new_secret_that_is_not_shown(host):
    deployment = f"inputs-test-{host.backend.hostname}"
    try:
        other = functools.partial(play, watchpost_deployment=deployment, preflight_allow_other_secrets=True)
        assert other("node_exporter", "-vv").code == 0
        first = watchpost("secrets", "show", "otlp_ingest_token", "--deployment", deployment).strip()
        raised = {"otlp_ingest_token": 2}
        run = other("node_exporter", "-vv", watchpost_secret_generations=raised)
        second = watchpost("secrets", "show", "otlp_ingest_token", "--deployment", deployment).strip()
        kept = watchpost("secrets", "show", "grafana_secret_key", "--deployment", deployment).strip()
    finally:
        from watchpost.secrets import state_dir

        shutil.rmtree(state_dir(deployment), ignore_errors=True)
    assert len(first) >= 32 and first != second
    assert all(secret not in run.output for secret in (first, second, kept))
