"""An archive is sealed, whole, and of this deployment, or it is refused. molecule/backup tries it on a real host."""

import io
import json
import subprocess
import tarfile

import pytest

from watchpost.backup import BackupError, seal, unseal
from watchpost.project import ansible
from watchpost.secrets import SecretsError, SecretStore


def put_together(**changes):
    """What a host has put together: a file, whose name or kind may be another."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("state/grafana/grafana.db")
        entry.size = 9
        for name, value in changes.items():
            setattr(entry, name, value)
        tar.addfile(entry, io.BytesIO(b"dashboard"))
    return packed.getvalue()


PLAIN = put_together()


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


def sealed(home, deployment, content=PLAIN):
    (home / "plain").write_bytes(content)
    return seal(home / "plain", deployment, "web1", {"grafana": "13.0.0"}, home / "backups")


def test_what_was_sealed_is_opened(archive, home):
    manifest = unseal(archive, "lab", home / "parts")
    assert (manifest["deployment"], manifest["host"]) == ("lab", "web1")
    assert manifest["versions"] == {"grafana": "13.0.0"} and manifest["made"].endswith("+00:00")
    assert (home / "parts/state.tar.gz").read_bytes() == PLAIN
    assert (home / "parts/secrets.yml").read_bytes() == SecretStore("lab").path.read_bytes()
    assert {file.stat().st_mode & 0o777 for file in (home / "parts").iterdir()} == {0o600}


def test_machine_that_has_nothing_keeps_what_it_opens_to_itself(archive, home):
    unseal(archive, "lab", home / "other/parts")
    assert {(home / path).stat().st_mode & 0o777 for path in ("other", "other/parts")} == {0o700}


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
    with tarfile.open(home / "later.tar", "w:gz") as tar:
        tar.add(home / "inside", "")
    with pytest.raises(BackupError, match="has format 2, and this version of Watchpost knows 1"):
        unseal(home / "later.tar", "lab", home / "parts", anyway=True)


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_archive_that_is_not_whole_is_refused(archive, home, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BackupError, match="is no whole archive"):
        unseal(archive, "lab", home / "parts")


def test_archive_that_a_disk_has_spoilt_is_refused(archive, home):
    content = archive.read_bytes()
    for place in range(0, len(content), len(content) // 20):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(BackupError, match="is no whole archive"):
            unseal(archive, "lab", home / "parts")


@pytest.mark.parametrize("part", ["state.tar.gz.vault", "secrets.yml"])
def test_archive_that_was_tampered_with_is_refused(archive, home, part):
    with tarfile.open(archive) as tar:
        tar.extractall(home / "inside", filter="data")
    sealed_part = home / "inside" / part
    lines = sealed_part.read_text().splitlines()
    lines[1] = lines[1][:-1] + ("1" if lines[1][-1] == "0" else "0")
    sealed_part.write_text("\n".join(lines) + "\n")
    with tarfile.open(home / "other.tar", "w:gz") as tar:
        tar.add(home / "inside", "")
    with pytest.raises(SecretsError, match=r"other\.tar does not open"):
        unseal(home / "other.tar", "lab", home / "parts")
    assert not (home / "parts").exists()


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_archive_of_what_is_not_whole_is_not_made(archive, home, share):
    with pytest.raises(BackupError, match="not whole"):
        sealed(home, "lab", PLAIN[: int(len(PLAIN) * share)])
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "state/../../etc/shadow"},
        {"name": "/etc/shadow"},
        {"name": "etc/shadow"},
        {"name": "state"},
        {"name": "."},
        {"type": tarfile.SYMTYPE, "linkname": "/etc", "size": 0},
        {"type": tarfile.LNKTYPE, "linkname": "state/other", "size": 0},
        {"type": tarfile.CHRTYPE, "size": 0},
    ],
)
def test_what_no_backup_puts_into_an_archive_is_refused(archive, home, changes, monkeypatch):
    with pytest.raises(BackupError, match="holds what no backup has put there"):
        sealed(home, "lab", put_together(**changes))
    with monkeypatch.context() as unchecked:
        unchecked.setattr("watchpost.backup._check", lambda *_: None)
        other = sealed(home, "lab", put_together(**changes))
    with pytest.raises(BackupError, match="holds what no backup has put there"):
        unseal(other, "lab", home / "parts")
    assert not (home / "parts").exists()


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
