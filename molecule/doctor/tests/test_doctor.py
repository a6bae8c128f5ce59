"""Each well-known failure, brought about on a real host, is found by `watchpost doctor`, and nothing else is.

A failure is a function that breaks the host, and says of each thing that it breaks what is to be done afterwards,
whatever the doctor has found. That it was mended is seen by the next one, beside which nothing else is found, and by
the last test.
"""

import contextlib
import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, asker, play, replace_on_disk, unit_name, wait_until

INVENTORY = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
HOOKS = "127.0.0.1 hooks.watchpost.test"
PKI = "/etc/watchpost/pki"
CURRENT = "/etc/watchpost/%s/current"

# On the host: waits until each component answers as its deploy had demanded.
READY = """
import json, ssl, sys, time, urllib.request
context = ssl.create_default_context(cafile="/etc/watchpost/pki/ca.crt")
context.load_cert_chain("/etc/watchpost/pki/operator/tls.crt", "/etc/watchpost/pki/operator/tls.key")
deadline = time.time() + 60
url = json.load(open(f"/etc/watchpost/{sys.argv[1]}/current/ready.json"))["url"]
while True:
    try:
        urllib.request.urlopen(url, timeout=2, context=context).read()
        break
    except OSError as error:
        assert time.time() < deadline, f"{url}: {error}"
        time.sleep(0.2)  # between two questions
"""

# On the host: signs a component's certificate anew, for its own key and names, until so many days from now; where to.
SIGN = """
import datetime, sys
from pathlib import Path
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
name, days = sys.argv[1], float(sys.argv[2])
pki = Path("/etc/watchpost/pki")
old = x509.load_pem_x509_certificate((pki / name / "tls.crt").read_bytes())
ca = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
key = serialization.load_pem_private_key((pki / "private/ca.key").read_bytes(), None)
now = datetime.datetime.now(datetime.timezone.utc)
new = x509.CertificateBuilder(ca.subject, old.subject, old.public_key(), x509.random_serial_number())
new = new.not_valid_before(now - datetime.timedelta(days=9)).not_valid_after(now + datetime.timedelta(days=days))
for extension in old.extensions:
    new = new.add_extension(extension.value, extension.critical)
signed = new.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
(pki / name / sys.argv[3]).write_bytes(signed)
"""

# A Python that is 1000 seconds behind: the test host has this machine's own clock, which must stay right.
LATE = "import time\ntrue_time = time.time\ntime.time = lambda: true_time() - 1000\n"


def wait_until_ready(host, component):
    host.check_output(f"python3 -c %s {component}", READY)


def restart(host, component):
    host.check_output(f"systemctl restart {unit_name(component)}")
    wait_until_ready(host, component)


@pytest.fixture(scope="module", autouse=True)
def receiver_resolves(host):
    """The receiver that host_vars names is in /etc/hosts, as somebody's own would be."""
    host.check_output("echo %s >> /etc/hosts", HOOKS)
    yield
    host.check_output("sed -i /hooks.watchpost.test/d /etc/hosts")


@pytest.fixture
def command(tmp_path):
    """Run `watchpost doctor` as a person does, against an inventory with more hosts, or more settings of the one."""

    def command(hosts):
        inventory = tmp_path / "inventory"
        inventory.mkdir(exist_ok=True)
        for entry in INVENTORY.iterdir():
            link = inventory / entry.name
            if not link.exists():
                link.symlink_to(entry.resolve())
        (inventory / "more.yml").write_text(yaml.safe_dump({"watchpost": {"hosts": hosts}}))
        command = [sys.executable, "-m", "watchpost", "doctor", "--json", f"--inventory={inventory}"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert "Traceback" not in done.stderr and done.stdout, done.stderr
        return done, json.loads(done.stdout)

    return command


@pytest.fixture
def doctor(host, command):
    """Run it with more settings; return its findings."""

    def doctor(**settings):
        done, report = command({host.backend.get_hostname(): settings})
        assert done.returncode == bool(report["findings"]), done
        return report["findings"]

    return doctor


FAILURES, TOGETHER = [], []


def failure(check, subject, *words, together=False, **settings):
    """Register a function that breaks the host, and the one finding that there must be meanwhile, by its words.

    It gets the host, and `after`: a function that takes what is to be called afterwards, the last one first. Failures
    that are another way to the finding of a check are tried together, in one look: each must be found all the same.
    """

    def register(function):
        if together:
            TOGETHER.append((function, check, subject, words, settings))
        else:
            identifier = f"{check}: {function.__name__.replace('_', ' ')}"
            FAILURES.append(pytest.param(function, check, subject, words, settings, id=identifier))
        return function

    return register


# --- the host ---


@failure("variables", "HOST", "loki_retenton_days is not a variable of the role loki", loki_retenton_days=5)
def misspelt_setting(_host, _after):
    pass


LONG_WINDOW = {"name": "long", "service": "taskboard", "objective": 0.99, "window": "60d", "availability": {}}


@failure(
    "variables", "HOST", "prometheus_retention_days is 35", "over 60 days", together=True, watchpost_slos=[LONG_WINDOW]
)
def objective_that_looks_further_back_than_metrics_are_kept(_host, _after):
    pass


@failure("disk", "HOST", "may be kept there", "tempo_retention_gib", together=True, tempo_retention_gib=1000000)
def budget_beyond_the_disk(_host, _after):
    pass


@failure(
    "host", "alertmanager", "port 9093 is taken by python3 (pid ", "squatter.service); stop that, or change the port"
)
def port_that_another_program_has_taken(host, after):
    after(restart, host, "alertmanager")
    host.check_output("systemctl stop watchpost-alertmanager")
    after(host.check_output, "systemctl stop squatter")
    host.check_output("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 9093")
    wait_until(lambda: host.socket("tcp://127.0.0.1:9093").is_listening, 20)
    host.check_output("systemctl start --no-block watchpost-alertmanager")  # in vain, again and again


@failure("clock", "HOST", "s behind this machine's", ansible_python_interpreter="/run/late/python3")
def clock_that_is_late(host, after):
    after(host.check_output, "rm -r /run/late")
    host.check_output("mkdir -p /run/late && printf %%s %s > /run/late/sitecustomize.py", LATE)
    python = '#!/bin/sh\nPYTHONPATH=/run/late exec /usr/bin/python3 "$@"\n'
    host.check_output("printf %%s %s > /run/late/python3 && chmod +x /run/late/python3", python)


@failure("names", "hooks.watchpost.test", "does not resolve on the host", "alertmanager_receivers")
def receiver_whose_name_is_lost(host, after):
    host.check_output("sed -i /hooks.watchpost.test/d /etc/hosts")
    after(host.check_output, "echo %s >> /etc/hosts", HOOKS)


@failure("disk", "/var/lib/watchpost/node_exporter", "is 9", "full, in bytes", together=True)
def full_file_system(host, after):
    place = "/var/lib/watchpost/node_exporter"
    owner = "uid=watchpost-node-exporter,gid=watchpost-node-exporter,mode=750"
    host.check_output(f"mount -t tmpfs -o size=10M,{owner} tmpfs {place}")
    after(host.check_output, f"umount {place}")
    host.check_output(f"head -c 9800000 /dev/zero >{place}/fill && chown watchpost-node-exporter {place}/fill")


@failure("disk", "tempo", "the disk guard has stopped tempo", "MiB are free at /var/lib/watchpost/tempo")
def store_stopped_by_the_disk_guard(host, after):
    place = "/var/lib/watchpost/tempo"
    owner = "uid=watchpost-tempo,gid=watchpost-tempo,mode=750"

    def make_room():
        host.check_output(f"rm -f {place}/fill")
        wait_until(lambda: host.service("watchpost-tempo").is_running, 20)

    host.check_output(f"systemctl stop watchpost-tempo && mount -t tmpfs -o size=100M,{owner} tmpfs {place}")
    after(restart, host, "tempo")
    after(host.check_output, f"systemctl stop watchpost-tempo && umount {place}")
    restart(host, "tempo")
    after(make_room)
    host.check_output(f"head -c 80000000 /dev/zero >{place}/fill")
    wait_until(lambda: not host.service("watchpost-tempo").is_running, 20)


# --- files ---


@failure("permissions", "loki", "loki.yml cannot be read by watchpost-loki, it is root:watchpost-loki 600")
def configuration_that_its_service_cannot_read(host, after):
    host.check_output("chmod 600 /etc/watchpost/loki/current/loki.yml")
    after(host.check_output, "chmod 640 /etc/watchpost/loki/current/loki.yml")


@failure("permissions", "prometheus", "/wal cannot be written by watchpost-prometheus, it is root:", together=True)
def data_that_belong_to_root(host, after):
    host.check_output("chown root /var/lib/watchpost/prometheus/wal")
    after(host.check_output, "chown watchpost-prometheus /var/lib/watchpost/prometheus/wal")


@failure(
    "certificates", "tempo", "tls.key is root:watchpost-tempo 0644 instead of root:watchpost-tempo 0640", together=True
)
def key_that_everybody_can_read(host, after):
    host.check_output(f"chmod 644 {PKI}/tempo/tls.key")
    after(host.check_output, f"chmod 640 {PKI}/tempo/tls.key")


def keep(host, after, file):
    """Put a file back afterwards, as it is now."""
    host.check_output(f"cp -a {file} {file}.kept")
    after(host.check_output, f"mv {file}.kept {file}")


@failure("certificates", "loki", "it expires within 30 days")
def certificate_close_to_its_end(host, after):
    after(restart, host, "loki")
    keep(host, after, f"{PKI}/loki/tls.crt")
    host.check_output("python3 -c %s loki 10 tls.crt", SIGN)
    restart(host, "loki")


@failure("certificates", "loki", "it expired on", together=True)
def certificate_that_has_expired(host, after):
    after(restart, host, "loki")
    keep(host, after, f"{PKI}/loki/tls.crt")
    host.check_output("python3 -c %s loki -1 tls.crt", SIGN)
    host.check_output("systemctl restart watchpost-loki")


@failure("certificates", "node_exporter", "its certificate belongs to another key", together=True)
def key_of_another_certificate(host, after):
    keep(host, after, f"{PKI}/node_exporter/tls.key")
    host.check_output(f"cat {PKI}/tempo/tls.key > {PKI}/node_exporter/tls.key")


@failure("certificates", "grafana", "an old certificate is still shown: port 3000 (grafana.https)", together=True)
def renewed_certificate_without_a_restart(host, after):
    keep(host, after, f"{PKI}/grafana/tls.crt")
    host.check_output("python3 -c %s grafana 80 tls.crt", SIGN)


@failure("configuration", "otel_collector", "does not accept its configuration", "invalid keys: labels")
def configuration_for_another_version(host, after):
    file = CURRENT % "otel_collector" + "/extra.yml"
    keep(host, after, file)
    host.check_output(f"printf 'exporters: {{otlp_http/loki: {{labels: {{resource: {{}}}}}}}}\\n' > {file}")


@failure("configuration", "taskboard", "changed by hand", "gunicorn.conf.py was changed last", together=True)
def configuration_changed_by_hand(host, after):
    file = CURRENT % "taskboard" + "/gunicorn.conf.py"
    keep(host, after, file)
    host.check_output(f"echo '# mine' >> {file}")


# --- what runs ---


def drop_in(host, after, component, *lines):
    """Add lines to the [Service] part of a unit, and restart it; neither holds afterwards."""
    directory = f"/etc/systemd/system/{unit_name(component)}.d"
    text = "[Service]\n" + "\n".join(lines) + "\n"
    after(restart, host, component)
    after(host.check_output, f"rm -r {directory} && systemctl daemon-reload")
    host.check_output(f"mkdir {directory} && printf %%s %s > {directory}/own.conf", text)
    host.check_output(f"systemctl daemon-reload; systemctl restart {unit_name(component)} || true")  # it may not start


@failure("database", "taskboard", "the relative database path sqlite:///tasks.db")
def relative_path_of_the_database(host, after):
    drop_in(host, after, "taskboard", "Environment=TASKBOARD_DATABASE_URL=sqlite:///tasks.db")


@failure("versions", "taskboard", "still runs /opt/watchpost/taskboard/old; deployed is /opt/watchpost/taskboard/0")
def old_version_after_a_deploy(host, after):
    home = "/opt/watchpost/taskboard"
    new = host.check_output(f"readlink {home}/current")
    scripts = f"$(find {home}/old/bin -type f) {home}/old/pyvenv.cfg"  # not the link to Debian's Python
    after(host.check_output, f"rm -r {home}/old")
    after(restart, host, "taskboard")
    after(host.check_output, f"ln -sfn {new} {home}/current")
    host.check_output(f"cp -a {new} {home}/old && sed -i 's#{new}#{home}/old#' {scripts}")
    host.check_output(f"ln -sfn {home}/old {home}/current")
    restart(host, "taskboard")
    host.check_output(f"ln -sfn {new} {home}/current")


@failure("versions", "gateway", "/libpcre2-8.so", "was replaced since it was started", together=True)
def library_that_was_replaced_while_a_program_ran(host, after):
    replace_on_disk(host, "/usr/lib/*/libpcre2-8.so.0.*")
    after(restart, host, "gateway")


@failure("versions", "alertmanager", "was switched, and it was neither restarted nor reloaded since", together=True)
def configuration_that_was_switched_without_a_restart(host, after):
    host.check_output("touch -h /etc/watchpost/alertmanager/current")
    after(restart, host, "alertmanager")


@failure("services", "otel_collector", "watchpost-otel-collector.service is inactive", together=True)
def service_that_was_stopped(host, after):
    host.check_output("systemctl stop watchpost-otel-collector")
    after(restart, host, "otel_collector")


@failure("services", "alertmanager", "ends again and again")
def service_that_ends_again_and_again(host, after):
    drop_in(host, after, "alertmanager", "ExecStartPre=/bin/false")


@failure("services", "watchpost-disk-guard.service", "is inactive", together=True)
def guard_that_was_stopped(host, after):
    host.check_output("systemctl stop watchpost-disk-guard")
    after(host.check_output, "systemctl start watchpost-disk-guard")


# --- telemetry ---


@failure("queues", "tempo", "the queue of otlp_http/tempo is stuck", "nothing is delivered. The Collector says: ")
def queue_that_is_stuck(host, after):
    ask = asker(host)
    user = host.user("watchpost-otel-collector").uid
    rule = f"add rule inet broken output tcp dport 14319 meta skuid {user} reject with tcp reset"
    hook = "add chain inet broken output { type filter hook output priority -10; }"
    host.check_output("nft %s", f"add table inet broken; {hook}; {rule}")
    after(host.check_output, "nft delete table inet broken")
    waiting = "min_over_time(otelcol_exporter_queue_size{exporter='otlp_http/tempo'}[1m]) > 0"
    waiting += " and count_over_time(otelcol_exporter_queue_size[1m]) > 2"

    def seen():
        ask("gateway", "https", "/api/tasks", identity=None)
        answer = ask("prometheus", "http", "/api/v1/query?" + urllib.parse.urlencode({"query": waiting}))
        return answer.json["data"]["result"]

    wait_until(seen, 120)


@failure("signals", "logs", "log lines lack the label level")
def label_that_a_setting_takes_away(_, after):
    without = {"processors": {"transform/log_names": {"log_statements": []}}}

    def put_back():
        assert play("otel_collector").code == 0

    after(put_back)
    run = play("otel_collector", otel_collector_extra_config=without)
    assert run.code == 0, run.output


@failure("signals", "traces", "traces is missing: no trace of POST /api/tasks")
def traces_that_are_sent_nowhere(host, after):
    drop_in(host, after, "taskboard", "Environment=OTEL_TRACES_EXPORTER=none")
    wait_until_ready(host, "taskboard")


@failure("signals", "metrics", "metrics is missing: 0 of ", " requests with status ")
def metrics_that_are_sent_nowhere(host, after):
    drop_in(host, after, "taskboard", "Environment=OTEL_METRICS_EXPORTER=none")
    wait_until_ready(host, "taskboard")


@failure("signals", "logs", "logs is missing: no log line of taskboard")
def logs_that_are_sent_nowhere(host, after):
    drop_in(host, after, "taskboard", "Environment=OTEL_LOGS_EXPORTER=none")
    wait_until_ready(host, "taskboard")


def named(host, subject):
    return host.backend.get_hostname() if subject == "HOST" else subject


@pytest.mark.parametrize(("breaking", "check", "subject", "words", "settings"), FAILURES)
def test_failure_is_found_and_nothing_else(host, doctor, breaking, check, subject, words, settings):
    with contextlib.ExitStack() as mended:
        breaking(host, mended.callback)
        findings = doctor(**settings)
    assert [(found["check"], found["subject"]) for found in findings] == [(check, named(host, subject))], findings
    for word in words:
        assert word in findings[0]["problem"]
    assert findings[0]["remedy"] and findings[0]["see"] == f"docs/doctor.md#{check}"


def test_failures_at_the_same_time_are_each_found_and_nothing_else(host, doctor):
    wanted, settings = {}, {}
    with contextlib.ExitStack() as mended:
        for breaking, check, subject, words, more in TOGETHER:
            breaking(host, mended.callback)
            wanted[check, named(host, subject)] = words
            settings |= more
        findings = doctor(**settings)
    assert sorted((found["check"], found["subject"]) for found in findings) == sorted(wanted), findings
    for found in findings:
        for word in wanted[found["check"], found["subject"]]:
            assert word in found["problem"]


@pytest.fixture
def certificate_of_ones_own(host, tmp_path):
    """Another certificate for the gateway than its identity, as a person may bring one; how the inventory names it."""
    public = f"{PKI}/gateway/public"
    host.check_output(f"rm {public}.crt && python3 -c %s gateway 80 public.crt", SIGN)
    host.check_output(f"cp --remove-destination -a {PKI}/gateway/tls.key {public}.key")
    for kind in ("crt", "key"):
        (tmp_path / kind).write_text(host.check_output(f"cat {public}.{kind}") + "\n")
    yield {"pki_gateway_certificate": str(tmp_path / "crt"), "pki_gateway_key": str(tmp_path / "key")}
    for kind in ("crt", "key"):
        host.check_output(f"ln -sfn tls.{kind} {public}.{kind}")
    restart(host, "gateway")


@pytest.fixture
def disk_of_its_own(host):
    """What a file system has in its root, and a file that a service has made read-only by itself."""
    state = "/var/lib/watchpost/loki"
    host.check_output(f"install -d -m 700 {state}/lost+found")
    host.check_output(f"install -o watchpost-loki -m 400 /dev/null {state}/finished")
    yield
    host.check_output(f"rmdir {state}/lost+found && rm {state}/finished")


def test_nothing_is_found_on_a_sound_host_and_nothing_is_changed(
    host, doctor, certificate_of_ones_own, disk_of_its_own
):
    def nothing_is_found():
        return not doctor(**certificate_of_ones_own)

    (stale,) = doctor(**certificate_of_ones_own)
    assert (
        "port 443 (gateway.https) shows another certificate than /etc/watchpost/pki/gateway/public" in stale["problem"]
    )
    restart(host, "gateway")
    host.check_output("touch /run/before && sleep 0.1")  # a file's age has the kernel's tick as its unit
    wait_until(nothing_is_found, 120)
    where = "/etc /opt /usr /var/lib -xdev -cnewer /run/before"  # a file's mode and owner too
    assert host.check_output(f"find {where} -not -path '/var/lib/watchpost*' -not -path '*/systemd/*'") == ""


@pytest.fixture
def visitor(host):
    """A user of the host who has a password and may become root by it."""
    host.check_output("useradd --create-home visitor && echo visitor:right | chpasswd")
    host.check_output("echo 'visitor ALL=(ALL) ALL' > /etc/sudoers.d/visitor")
    host.check_output("install -d -o visitor ~visitor/.ssh && install -o visitor ~/.ssh/authorized_keys ~visitor/.ssh")
    yield "visitor"
    host.check_output("userdel --force --remove visitor && rm /etc/sudoers.d/visitor")  # Ansible's connection stays


def test_hosts_that_cannot_be_looked_at_are_named_with_the_reason_and_are_no_sound_ones(host, command, visitor):
    name = host.backend.get_hostname()
    groups = yaml.safe_load((INVENTORY / f"{name}.yml").read_text())["all"]["children"]
    reached = groups["watchpost"]["hosts"][name]
    as_visitor = reached | {"ansible_user": visitor, "ansible_become": True}
    nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    done, report = command(
        {
            "away": reached | nowhere,
            "guarded": as_visitor | {"ansible_become_password": "wrong"},
            "unprivileged": as_visitor | {"ansible_become": False},
            "bare": reached | {"ansible_python_interpreter": "/nowhere/python3"},
        }
    )
    for words in (
        "away: cannot be reached: ",
        ". Do: let ssh lead there from this machine; ansible_host, ansible_port",
        "guarded: Gathering Facts: Incorrect sudo password. Do: give it as ansible_become_password",
        "unprivileged: doctor : Look at services, files, names, disks and queues: Ansible is not root on the host",
        "bare: Gathering Facts: The module interpreter '/nowhere/python3' was not found. Do: install Python 3.11",
    ):
        assert words in done.stderr
    assert done.returncode == 2 and report["hosts"] == [name], "the others are looked at"
    assert len(report["unseen"]) == 4 and not report["ok"] and not report["findings"]
