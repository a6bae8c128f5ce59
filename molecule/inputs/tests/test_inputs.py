"""What the controller must have ready: each program verified on every use, each secret kept to itself."""

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


def test_raised_number_makes_a_new_secret_that_is_not_shown(host):
    deployment = f"inputs-test-{host.backend.hostname}"
    try:
        assert play("node_exporter", "-vv", watchpost_deployment=deployment).code == 0
        first = watchpost("secrets", "show", "otlp_ingest_token", "--deployment", deployment).strip()
        raised = {"otlp_ingest_token": 2}
        run = play("node_exporter", "-vv", watchpost_deployment=deployment, watchpost_secret_generations=raised)
        second = watchpost("secrets", "show", "otlp_ingest_token", "--deployment", deployment).strip()
        kept = watchpost("secrets", "show", "grafana_secret_key", "--deployment", deployment).strip()
    finally:
        from watchpost.secrets import state_dir

        shutil.rmtree(state_dir(deployment), ignore_errors=True)
    assert len(first) >= 32 and first != second
    assert all(secret not in run.output for secret in (first, second, kept))
