"""An archive is sealed, whole, and of this deployment, or it is refused. molecule/backup tries it on a real host."""

import json
import subprocess
import tarfile

import pytest

from watchpost.backup import BackupError, seal, unseal
from watchpost.project import ansible
from watchpost.secrets import SecretsError, SecretStore

PLAIN = b"what the host has put together"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A person's own directories."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)
    return tmp_path


@pytest.fixture
def archive(home):
    SecretStore("lab").ensure({"otlp_ingest_token": 1})
    return sealed(home, "lab")


def sealed(home, deployment):
    (home / "plain").write_bytes(PLAIN)
    return seal(home / "plain", deployment, "web1", {"grafana": "13.0.0"}, home / "backups")


def test_what_was_sealed_is_opened(archive, home):
    manifest = unseal(archive, "lab", home / "parts")
    assert (manifest["deployment"], manifest["host"]) == ("lab", "web1")
    assert manifest["versions"] == {"grafana": "13.0.0"} and manifest["made"].endswith("+00:00")
    assert (home / "parts/state.tar.gz").read_bytes() == PLAIN
    assert (home / "parts/secrets.yml").read_bytes() == SecretStore("lab").path.read_bytes()
    assert {file.stat().st_mode & 0o777 for file in (home / "parts").iterdir()} == {0o600}


def test_archive_is_the_owners_alone_and_shows_neither_state_nor_secrets(archive, home):
    assert archive.stat().st_mode & 0o777 == 0o600 and archive.parent.stat().st_mode & 0o777 == 0o700
    token = SecretStore("lab").read()["otlp_ingest_token"]["value"].encode()
    with tarfile.open(archive) as tar:
        content = b"".join(tar.extractfile(member).read() for member in tar)
    assert PLAIN not in content and token not in content


def test_ansible_itself_opens_it(archive, home):
    with tarfile.open(archive) as tar:
        tar.extractall(home, filter="data")
    password = f"--vault-password-file={home / 'config/watchpost/vault-password'}"
    command = ansible("ansible-vault", "decrypt", password, "--output=-", str(home / "state.tar.gz.vault"))
    assert subprocess.run(command, check=True, capture_output=True).stdout == PLAIN


def test_archive_of_another_deployment_is_refused_unless_told(archive, home):
    with pytest.raises(BackupError, match="is of the deployment lab, and this inventory is shop"):
        unseal(archive, "shop", home / "parts")
    assert not (home / "parts").exists()
    assert unseal(archive, "shop", home / "parts", anyway=True)["deployment"] == "lab"


def test_archive_of_a_format_to_come_is_refused_though_told(archive, home):
    with tarfile.open(archive) as tar:
        tar.extractall(home / "inside", filter="data")
    manifest = home / "inside/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with tarfile.open(home / "later.tar", "w") as tar:
        tar.add(home / "inside", "")
    with pytest.raises(BackupError, match="has format 2, and this version of Watchpost knows 1"):
        unseal(home / "later.tar", "lab", home / "parts", anyway=True)


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_archive_that_is_not_whole_is_refused(archive, home, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BackupError, match="is no whole archive"):
        unseal(archive, "lab", home / "parts")


def test_archive_that_was_tampered_with_is_refused(archive, home):
    with tarfile.open(archive) as tar:
        tar.extractall(home / "inside", filter="data")
    state = home / "inside/state.tar.gz.vault"
    lines = state.read_text().splitlines()
    lines[1] = lines[1][:-1] + ("1" if lines[1][-1] == "0" else "0")
    state.write_text("\n".join(lines) + "\n")
    with tarfile.open(home / "other.tar", "w") as tar:
        tar.add(home / "inside", "")
    with pytest.raises(SecretsError, match="does not open"):
        unseal(home / "other.tar", "lab", home / "parts")


def test_missing_file_is_named(home):
    with pytest.raises(BackupError, match=r"nothing\.tar\.gz cannot be read: .*No such file"):
        unseal(home / "nothing.tar.gz", "lab", home / "parts")


def test_password_of_another_machine_is_asked_for_and_none_is_made(archive, home):
    password = home / "config/watchpost/vault-password"
    password.rename(home / "elsewhere")
    SecretStore("lab").path.unlink()
    with pytest.raises(SecretsError, match="vault-password is missing: put it back to open"):
        unseal(archive, "lab", home / "parts")
    assert not password.exists()
    password.write_text("another\n")
    with pytest.raises(SecretsError, match="does not open with the vault password in"):
        unseal(archive, "lab", home / "parts")


def test_machine_without_the_secrets_makes_no_archive(home):
    with pytest.raises(BackupError, match="run this on the machine from which"):
        sealed(home, "lab")
    assert not (home / "backups").exists()
