"""The role that deploys everything: what is refused leaves the running service alone; what fails is put back."""

import functools
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import PKI, PROJECT, replace_on_disk, run_playbook

UNIT = "watchpost-alertmanager.service"
HOME = "/etc/watchpost/alertmanager"
PROGRAM = "/opt/watchpost/alertmanager/current"
OTHER_CONFIG = "route: {receiver: somebody}\nreceivers: [{name: somebody}]\n"
#: All that a deploy looks at before it finds nothing to do.
STATE = f"""
cat {HOME}/good.json
readlink {HOME}/current {PROGRAM}
find {HOME}/current/ {PROGRAM}/ {PKI}/alertmanager/ /etc/systemd/system/{UNIT} -type f -exec sha256sum {{}} + | sort
systemctl show {UNIT} --property=ActiveState,UnitFileState,NeedDaemonReload
"""


@functools.cache
def artifact():
    """What the store has of Alertmanager."""
    command = [sys.executable, "-m", "watchpost", "artifacts", "ensure", "alertmanager", "--json"]
    return json.loads(subprocess.run(command, cwd=PROJECT, check=True, capture_output=True).stdout)["alertmanager"]


def deploy(*options, changes=(), **variables):
    """Deploy Alertmanager, with some of its artifact's fields changed."""
    artifacts = {"alertmanager": artifact() | dict(changes)}
    return run_playbook(Path(__file__).with_name("deploy.yml"), *options, watchpost_artifacts=artifacts, **variables)


def deploy_plain(host):
    """Bring the plain service up, and return its state."""
    outcome = deploy()
    assert outcome.code == 0, outcome.output
    return host.check_output(STATE)


@pytest.fixture(scope="module")
def plain(host):
    """The plain service's state."""
    return deploy_plain(host)


@pytest.fixture(autouse=True)
def deployed(host, plain):
    """Each test begins with the plain service running; it is deployed again when the test before left another."""
    assert host.check_output(STATE) == plain or deploy_plain(host) == plain
    assert host.service(UNIT).is_running


def pid(host):
    return host.check_output(f"systemctl show {UNIT} --property=MainPID --value")


def config(host):
    return host.file(f"{HOME}/current/alertmanager.yml").content_string


def test_second_run_changes_nothing(host):
    before = pid(host)
    assert not deploy().changed
    assert pid(host) == before


def test_configuration_that_the_program_refuses_never_goes_live(host):
    before = pid(host), config(host)
    outcome = deploy(config="route: {receiver: nobody}\nreceivers: []\n")
    assert outcome.code != 0
    assert "does not accept its new configuration" in outcome.output
    assert 'undefined receiver \\"nobody\\"' in outcome.output or 'undefined receiver "nobody"' in outcome.output
    assert (pid(host), config(host)) == before


def test_check_mode_finds_a_bad_configuration_and_changes_nothing(host):
    before = pid(host), host.check_output(f"ls -lRi --time-style=full-iso {HOME}")
    assert deploy("--check", config="nonsense: true\n").code != 0
    assert deploy("--check", config=OTHER_CONFIG).changed
    assert (pid(host), host.check_output(f"ls -lRi --time-style=full-iso {HOME}")) == before


def test_changed_configuration_is_reloaded_without_a_restart(host):
    before = pid(host)
    assert deploy(config=OTHER_CONFIG).code == 0
    assert "somebody" in config(host)
    assert pid(host) == before


def test_service_that_does_not_become_ready_is_put_back_with_the_journal_shown(host):
    # Accepted by the checker, but it listens where nobody asks.
    outcome = deploy(listen_port=19093, config=OTHER_CONFIG)
    assert outcome.code != 0
    assert "not ready after 5 s" in outcome.output and "was put back and is ready again" in outcome.output
    assert "Listening on" in outcome.output, "the journal's tail is shown"
    assert "nobody" in config(host)
    assert "19093" not in host.check_output(f"systemctl cat {UNIT}")
    assert host.service(UNIT).is_running


def test_answer_without_the_wanted_text_is_not_ready(host):
    outcome = deploy(ready={"contains": "version 2"}, config=OTHER_CONFIG)
    assert outcome.code != 0 and "answers without 'version 2'" in outcome.output
    assert "was put back and is ready again" in outcome.output, "the old one is not asked for the new one's answer"
    assert "nobody" in config(host)


def test_service_that_crashes_is_put_back(host):
    outcome = deploy(web="tls_server_config: {cert_file: /nowhere}\n")
    assert outcome.code != 0 and "was put back and is ready again" in outcome.output
    assert host.service(UNIT).is_running


def test_archive_that_differs_from_its_recorded_digest_is_not_unpacked(host):
    before = pid(host)
    outcome = deploy(changes={"sha256": "0" * 64})
    assert outcome.code != 0 and "not unpacked" in outcome.output and "0" * 64 in outcome.output
    assert pid(host) == before


def archive_with(tmp_path, program):
    """Make an archive of a next version whose program is a script."""
    path = tmp_path / "alertmanager-9.9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (("bin/alertmanager", program), ("bin/amtool", "#!/bin/sh\nexit 0\n")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
    return {"version": "9.9.9", "path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_upgrade_that_fails_goes_back_to_the_old_version(host, tmp_path):
    old = host.check_output(f"readlink {PROGRAM}")
    outcome = deploy(changes=archive_with(tmp_path, "#!/bin/sh\necho I am broken\nexit 1\n"))
    assert outcome.code != 0
    assert "I am broken" in outcome.output and "was put back and is ready again" in outcome.output
    assert host.check_output(f"readlink {PROGRAM}") == old


def test_answer_of_an_old_program_does_not_pass_for_the_new_version(host, tmp_path):
    old = host.check_output(f"readlink {PROGRAM}")
    # The "next version" only starts the present one: it becomes ready, but nothing new runs.
    program = f'#!/bin/sh\nexec {old}/bin/alertmanager "$@"\n'
    outcome = deploy(changes=archive_with(tmp_path, program))
    assert outcome.code != 0 and "the process that answers is" in outcome.output
    assert host.check_output(f"readlink {PROGRAM}") == old


def test_interrupted_deploy_of_a_broken_generation_still_knows_the_way_back(host):
    good = host.check_output(f"readlink {HOME}/current")
    # As if the run had ended right after the switch: everything points to a generation never seen to work.
    deploy(config=OTHER_CONFIG)
    other = host.check_output(f"readlink {HOME}/current")
    assert deploy().code == 0
    host.check_output(f"ln -sfn {other} {HOME}/current")
    outcome = deploy(listen_port=19093)
    assert outcome.code != 0 and "was put back and is ready again" in outcome.output
    assert host.check_output(f"readlink {HOME}/current") == good


def test_edit_by_hand_is_undone(host):
    host.check_output(f"sh -c 'echo \"# edited\" >> {HOME}/current/alertmanager.yml'")
    assert deploy().changed
    assert "# edited" not in config(host)


def test_stopped_or_disabled_service_is_started_and_enabled(host):
    host.check_output(f"systemctl disable --now {UNIT}")
    assert deploy().changed
    assert host.service(UNIT).is_running and host.service(UNIT).is_enabled


def test_new_secret_restarts_and_stays_roots_alone(host):
    before = pid(host)
    outcome = deploy("-vvv", secret="a-secret-that-must-not-show")
    assert outcome.code == 0 and pid(host) != before
    assert "a-secret-that-must-not-show" not in outcome.output.replace("'secret': 'a-secret", "")
    secret = host.file(f"{HOME}/current/credentials/token")
    assert secret.content_string == "a-secret-that-must-not-show"
    assert (secret.user, secret.mode) == ("root", 0o600)
    assert "a-secret" not in host.check_output(f"cat /proc/{pid(host)}/environ /proc/{pid(host)}/cmdline")


def test_renewed_certificate_restarts(host):
    before = pid(host)
    host.check_output("sh -c 'echo >> /etc/watchpost/pki/alertmanager/tls.crt'")
    assert deploy().code == 0
    assert pid(host) != before
    host.check_output("sed -i '$d' /etc/watchpost/pki/alertmanager/tls.crt")


def test_program_replaced_on_disk_restarts(host):
    before = pid(host)
    replace_on_disk(host, f"{PROGRAM}/bin/alertmanager")
    outcome = deploy()
    assert outcome.code == 0 and outcome.changed
    assert pid(host) != before, "a reload would have left the old program running"
    assert not deploy().changed


def test_service_can_write_neither_its_program_nor_its_configuration(host):
    for path in (f"{HOME}/current/alertmanager.yml", f"{PROGRAM}/bin/alertmanager", HOME):
        real = host.check_output(f"readlink -f {path}")
        assert host.run(f"runuser -u watchpost-alertmanager -- test -w {real}").rc != 0
