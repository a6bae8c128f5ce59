"""What the host does with a certificate that it has renewed, when services do not behave."""

import datetime
import importlib.util
import json
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

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


def test_certificate_that_ends_with_the_authority_is_not_made_anew_every_night(renew, tmp_path):
    now, key = datetime.datetime.now(datetime.UTC), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Watchpost")])

    def certificate(days):
        made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=days)).sign(key, SHA256())
        return made.public_bytes(Encoding.PEM)

    (tmp_path / "private").mkdir()
    (tmp_path / "private/ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "ca.crt").write_bytes(certificate(20))
    settings = {"pki": str(tmp_path), "identities": ["a"], "renew_before_days": 32, "validity_days": 90}
    (tmp_path / "a").mkdir()
    shown = tmp_path / "a/tls.crt"
    shown.write_bytes(first := certificate(10))
    renew.renew(settings)
    second = shown.read_bytes()
    renew.renew(settings)
    assert shown.read_bytes() == second != first
