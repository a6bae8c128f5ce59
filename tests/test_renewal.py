"""What the host does with a certificate that it has renewed, when services do not behave."""

import importlib.util
import json
import sys

import pytest

from watchpost.project import PROJECT


@pytest.fixture
def renew(monkeypatch):
    """The program, with its neighbours on the host beside it."""
    for role in ("pki", "service"):
        monkeypatch.syspath_prepend(PROJECT / "roles" / role / "module_utils")
    spec = importlib.util.spec_from_file_location("renew", PROJECT / "roles/pki/files/renew.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("watchpost_certificates", "watchpost_generation"):
        sys.modules.pop(name)


@pytest.fixture
def services(tmp_path, renew, monkeypatch):
    """Two services whose certificates are new; both run, and the names of the restarted ones are kept."""
    settings = {"pki": str(tmp_path / "pki"), "config": str(tmp_path / "etc"), "units": {"a": "a", "b": "b"}}
    for name in settings["units"]:
        (tmp_path / "pki" / name).mkdir(parents=True)
        (tmp_path / "pki" / name / "tls.crt").write_text("new")
        home = tmp_path / "etc" / name
        (home / "generations/one").mkdir(parents=True)
        (home / "generations/one/ready.json").write_text(json.dumps({"url": f"https://{name}"}))
        (home / "current").symlink_to("generations/one")
        (home / "good.json").write_text(json.dumps({"generation": "one", "certificate": "old"}))
    settings["restarted"], settings["ready"] = [], {"https://a", "https://b"}
    monkeypatch.setattr(renew, "READY_SECONDS", 0)
    monkeypatch.setattr(renew, "active", lambda unit: True)
    monkeypatch.setattr(renew.subprocess, "run", lambda command, **_: settings["restarted"].append(command[-1]))
    monkeypatch.setattr(renew, "ask", lambda ready, *_: "" if ready["url"] in settings["ready"] else "away")
    return settings


def restart_all(renew, settings):
    return all(renew.show(settings, name, unit) for name, unit in settings["units"].items())


def record(tmp_path, name):
    return json.loads((tmp_path / "etc" / name / "good.json").read_text())["certificate"]


def test_each_service_is_restarted_once_and_recorded(renew, services, tmp_path):
    assert restart_all(renew, services) and restart_all(renew, services)
    assert services["restarted"] == ["a", "b"]
    assert "old" not in (record(tmp_path, "a"), record(tmp_path, "b"))


def test_service_that_is_not_ready_again_is_not_recorded_and_the_next_is_left_alone(renew, services, tmp_path):
    services["ready"] = {"https://b"}
    assert not restart_all(renew, services)
    assert services["restarted"] == ["a"]
    assert record(tmp_path, "a") == record(tmp_path, "b") == "old"


def test_service_that_a_run_is_at_work_on_is_left_alone(renew, services, tmp_path):
    (tmp_path / "etc/a/good.json").write_text(json.dumps({"generation": "zero", "certificate": "old"}))
    assert restart_all(renew, services)
    assert services["restarted"] == ["b"]


def test_service_that_was_never_deployed_is_left_alone(renew, services, tmp_path):
    (tmp_path / "etc/a/good.json").unlink()
    assert restart_all(renew, services)
    assert services["restarted"] == ["b"]
