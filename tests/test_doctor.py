"""`watchpost doctor` judges what was found on a host: one fault is one finding, and what follows from it is none.

That the looking itself is right is tested on a real host that is broken in each way, in molecule/doctor.
"""

import datetime
import json
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from role_files import load
from typer.testing import CliRunner

from watchpost import doctor
from watchpost.cli import command_line
from watchpost.doctor import CHECKS, Looked, LookError, judge, outcomes
from watchpost.verify_target import PROJECT

UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "NRestarts": "0",
    "NeedDaemonReload": "no",
    "StateChangeTimestamp": "@1000",
    "active_seconds": 500.0,
    "database": "",
}
LOKI = {
    "generation": "aaaa",
    "good": "aaaa",
    "switched": 1000.5,
    "altered": [],
    "refused": "",
    "not_ready": "",
    "access": [],
    "served": {"http": "", "grpc": ""},
    "process": {"pid": "7", "versions": ["/opt/l/2"], "current": "/opt/l/2", "replaced": []},
}
COMPONENTS = ["gateway", "grafana", "taskboard", "otel_collector", "tempo", "loki", "prometheus", "alertmanager"]
SOUND = {
    "problems": [],
    "due": [],
    "ca_due": [],
    "public_due": [],
    "public_ends": "",
    "facts": {
        "units": {
            **{f"watchpost-{name.replace('_', '-')}.service": UNIT for name in [*COMPONENTS, "firewall"]},
            "watchpost-retention.service": UNIT | {"ActiveState": "inactive", "UnitFileState": "static"},
        },
        "components": dict.fromkeys(COMPONENTS, LOKI),
        "names": {"localhost": {}},
        "disks": {"/": {"bytes": 0.5, "inodes": 0.9}},
        "stopped": {},
        "queues": {"otlp_http/loki": {"waiting": 0.0, "capacity": 1000.0, "sent": 50.0}},
        "exporters": {"otlp_http/loki": {"retried": "once", "given_up": ""}},
    },
}


def broken(**changes):
    """A sound host but for these values, each given by its path: `facts__components__loki__refused="…"`."""
    found = json.loads(json.dumps(SOUND))
    for path, value in changes.items():
        *parents, last = path.replace("UNIT", "watchpost-loki.service").split("__")
        place = found
        for parent in parents:
            place = place[parent]
        place[last] = value
    return found


def problem(check, words, component=""):
    """What preflight says of a problem."""
    return {"check": check, "problem": words, "component": component}


def told(found):
    return [(finding.check, finding.subject) for finding in judge("one", found)]


def test_nothing_is_found_on_a_sound_host():
    assert judge("one", SOUND) == []


@pytest.mark.parametrize(
    ("changes", "check", "subject", "words"),
    [
        ({"problems": [problem("host", "riscv64")]}, "host", "one", "riscv64"),
        ({"problems": [problem("clock", "9 s behind")]}, "clock", "one", "9 s behind"),
        ({"problems": [problem("disk", "too much")]}, "disk", "one", "too much"),
        ({"problems": [problem("host", "port 1 is taken", "loki")]}, "host", "loki", "port 1 is taken"),
        (
            {"facts__names": {"shop.test": {"error": "no such name", "variable": "prometheus_remote_write"}}},
            "names",
            "shop.test",
            "no such name (prometheus_remote_write names it)",
        ),
        ({"facts__disks": {"/var": {"bytes": 0.2, "inodes": 0.95}}}, "disk", "/var", "95% full, in inodes"),
        (
            {"facts__stopped": {"loki": {"state": "/l", "least": 2**29, "free": 2**28}}},
            "disk",
            "loki",
            "256 MiB are free at /l",
        ),
        ({"facts__components__loki__access": ["a is b", "c is d"]}, "permissions", "loki", "a is b, and 1 more"),
        ({"ca_due": ["it has no key"]}, "certificates", "ca", "the CA: it has no key"),
        (
            {"due": [{"name": "operator", "reasons": ["another CA signed it"]}]},
            "certificates",
            "operator",
            "certificate of operator: another CA signed it",
        ),
        ({"public_due": ["public.key"]}, "certificates", "gateway", "the gateway's public.key are not what"),
        ({"public_ends": "it expired on 2026-01-01"}, "certificates", "gateway", "is yours, and it expired on"),
        ({"facts__components__loki__served": {"http": "stale: port 1"}}, "certificates", "loki", "still shown: port 1"),
        (
            {"facts__components__loki__altered": ["x"], "facts__components__loki__refused": "no such field"},
            "configuration",
            "loki",
            "does not accept its configuration: no such field",
        ),
        ({"facts__components__loki__altered": ["x was", "y"]}, "configuration", "loki", "changed by hand: x was; y"),
        ({"facts__units__UNIT__database": "sqlite:///t.db"}, "database", "loki", "relative database path sqlite:///t"),
        (
            {"facts__components__loki__process": LOKI["process"] | {"versions": ["/opt/l/1"]}},
            "versions",
            "loki",
            "process 7 still runs /opt/l/1; deployed is /opt/l/2",
        ),
        (
            {"facts__components__loki__process": LOKI["process"] | {"replaced": ["/usr/lib/libssl.so.3"]}},
            "versions",
            "loki",
            "/usr/lib/libssl.so.3 was replaced since it was started",
        ),
        ({"facts__components__loki__good": "bbbb"}, "versions", "loki", "generation aaaa was never seen to be ready"),
        ({"facts__components__loki__switched": 1001.0}, "versions", "loki", "neither restarted nor reloaded"),
        ({"facts__units__UNIT__NeedDaemonReload": "yes"}, "versions", "loki", "systemd has not read"),
        ({"facts__components__loki__not_ready": "https://x answers without '2'"}, "versions", "loki", "an old version"),
        ({"facts__units__UNIT__ActiveState": "failed"}, "services", "loki", "watchpost-loki.service is failed"),
        (
            {"facts__units__UNIT": UNIT | {"ActiveState": "inactive", "journal": "out of luck"}},
            "services",
            "loki",
            "is inactive. It says: out of luck",
        ),
        ({"facts__units__UNIT": UNIT | {"NRestarts": "5", "active_seconds": 29.9}}, "services", "loki", "5 times"),
        ({"facts__units__UNIT__UnitFileState": "disabled"}, "services", "loki", "is disabled"),
        ({"facts__units__UNIT": {"LoadState": "not-found"}}, "services", "loki", "is not-found"),
        ({"facts__components__loki__not_ready": "https://x: timed out"}, "services", "loki", "is not ready: https://x"),
        ({"facts__components__loki__served": {"http": "port 1: refused"}}, "services", "loki", "not answer: port 1"),
        (
            {"facts__units__watchpost-retention.service__ActiveState": "failed"},
            "services",
            "watchpost-retention.service",
            "is failed",
        ),
        (
            {"facts__queues": {"otlp_http/tempo": {"waiting": 9.0, "capacity": 1000.0}}},
            "queues",
            "tempo",
            "is stuck: 9 bytes wait",
        ),
        (
            {"facts__queues": {"otlp_http/tempo": {"waiting": 950.0, "capacity": 1000.0, "sent": 1.0}}},
            "queues",
            "tempo",
            "is 95% full",
        ),
        (
            {"facts__exporters": {"otlp_http/tempo": {"retried": "", "given_up": "HTTP 400"}}},
            "queues",
            "tempo",
            "tempo has refused data for good, which are lost: HTTP 400",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_one_finding_that_says_what_to_do(changes, check, subject, words):
    (finding,) = judge("one", broken(**changes))
    assert (finding.check, finding.subject) == (check, subject)
    assert words in finding.problem and finding.remedy
    assert check in CHECKS


def test_a_restart_that_is_over_is_no_fault():
    assert told(broken(facts__units__UNIT=UNIT | {"NRestarts": "5", "active_seconds": 30.0})) == []


def test_what_follows_from_a_fault_is_not_told():
    down = UNIT | {"ActiveState": "activating", "NRestarts": "9"}
    consequences = {
        "facts__units__UNIT": down,
        "facts__components__loki__served": {"http": "port 1: refused"},
        "facts__components__loki__not_ready": "https://x: refused",
        "facts__queues": {"otlp_http/loki": {"waiting": 9.0, "capacity": 10.0}},
    }
    assert told(broken(**consequences)) == [("services", "loki")]
    cause = {"facts__components__loki__refused": "no such field", "facts__components__loki__altered": ["x"]}
    assert told(broken(**consequences, **cause)) == [("configuration", "loki")]
    taken = [problem("host", "port 1 is taken", "loki")]
    assert told(broken(**consequences, **cause, problems=taken)) == [("host", "loki")]


def test_a_bare_host_is_one_finding():
    bare = {"generation": "", "access": ["no such user"], "incomplete": "no such file"}
    found = broken(facts__components={"loki": bare}, facts__units={}, due=[{"name": "loki", "reasons": ["no key"]}])
    assert told(found) == [("services", "one")]
    taken = [problem("host", "port 1 is taken", "loki")]
    assert told(found | {"problems": taken}) == [("host", "loki"), ("services", "one")]


def test_a_component_that_is_new_in_the_inventory_is_not_yet_deployed():
    new = {"generation": "", "access": ["no such user"], "incomplete": "no such file"}
    found = broken(facts__components__tempo=new, due=[{"name": "tempo", "reasons": ["it has no certificate"]}])
    (finding,) = judge("one", found)
    assert (finding.check, finding.subject) == ("services", "tempo") and "never deployed here" in finding.problem


def test_two_faults_of_two_components_are_both_told():
    found = broken(facts__components__loki__refused="a", facts__components__taskboard__access=["b"])
    assert sorted(told(found)) == [("configuration", "loki"), ("permissions", "taskboard")]


def test_a_certificate_that_is_still_valid_explains_nothing_else():
    found = broken(
        due=[{"name": "loki", "reasons": ["it expires within 30 days"]}], facts__units__UNIT__ActiveState="failed"
    )
    assert told(found) == [("certificates", "loki"), ("services", "loki")]
    (finding,) = judge("one", broken(public_ends="it expires within 30 days"))
    assert not finding.explains


def test_a_harmless_change_by_hand_explains_nothing_else():
    found = broken(facts__components__loki__altered=["x"], facts__units__UNIT__ActiveState="failed")
    assert told(found) == [("configuration", "loki"), ("services", "loki")]


def test_queues_are_not_told_while_the_collector_itself_is_at_fault():
    found = broken(facts__components__otel_collector__refused="x", facts__queues={"otlp_http/tempo": {"waiting": 9.0}})
    assert told(found) == [("configuration", "otel_collector")]


def test_each_check_is_explained_in_the_document():
    text = (PROJECT / doctor.DOCUMENT).read_text()
    assert [check for check in CHECKS if f"\n## {check}\n" not in text] == []


# --- what is looked at on the host ---


@pytest.fixture
def looking(monkeypatch):
    """The module that looks at a host."""
    name = "ansible.module_utils.watchpost_generation"
    monkeypatch.setitem(sys.modules, name, load("roles/service/module_utils/watchpost_generation.py", name))
    return load("roles/doctor/library/watchpost_doctor.py", "watchpost_doctor")


def test_a_file_that_goes_while_it_is_looked_at_is_no_fault(looking, tmp_path):
    question = json.dumps([[], [str(tmp_path), str(tmp_path / "tasks.db-journal")]])
    done = subprocess.run([sys.executable, "-c", looking.ACCESS], input=question, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[], []]


def test_a_disk_of_its_own_is_no_fault(looking, tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "wal").mkdir()
    assert looking.places_below(tmp_path) == [tmp_path, tmp_path / "wal"]


@pytest.fixture(scope="module")
def names():
    """Work out which names must resolve on a host that runs everything, as its variables say."""
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.template import Templar

    init_plugin_loader()
    loader = DataLoader()
    wanted = loader.load_from_file(str(PROJECT / "roles/doctor/vars/main.yml"), trusted_as_template=True)

    def names(**variables):
        components = [*COMPONENTS, "agent"] if "agent_appliance" in variables else COMPONENTS
        resolve = Templar(loader, variables=variables | {"watchpost_components": components}).template
        return {name: by for name, by in resolve(wanted["__doctor_names"]).items() if name != "localhost"}

    return names


@pytest.mark.parametrize(
    ("variables", "host"),
    [
        ({"alertmanager_receivers": [{"name": "a", "slack": {"url": "https://hooks.test/x"}}]}, "hooks.test"),
        ({"alertmanager_receivers": [{"name": "a", "email": {"server": "smtp.test:587"}}]}, "smtp.test"),
        ({"alertmanager_heartbeat_url": "https://alive.test/x"}, "alive.test"),
        ({"prometheus_remote_write": [{"url": "https://far.test:9/w"}]}, "far.test"),
        ({"prometheus_scrape_configs": [{"static_configs": [{"targets": ["shop.test:9100"]}]}]}, "shop.test"),
        ({"grafana_oidc": {"token_url": "https://sso.test/token"}}, "sso.test"),
        ({"taskboard_database_url": "postgresql+psycopg://tasks@db.test:5432/tasks"}, "db.test"),
        ({"agent_appliance": "appliance.test"}, "appliance.test"),
    ],
)
def test_a_name_in_a_setting_must_resolve(names, variables, host):
    assert names(**variables) == {host: next(iter(variables))}


@pytest.mark.parametrize(
    "variables",
    [
        {"taskboard_database_url": "sqlite:////var/lib/watchpost/taskboard/tasks.db"},
        {"taskboard_database_url": "postgresql+psycopg://tasks@/tasks?host=/run/postgresql"},
        {"prometheus_remote_write": [{"url": "https://far.test/w", "proxy_url": "http://10.0.0.1:3128"}]},
        {
            "prometheus_scrape_configs": [
                {"proxy_url": "http://10.0.0.1", "static_configs": [{"targets": ["a.test:1"]}]}
            ]
        },
        {
            "prometheus_scrape_configs": [
                {
                    "static_configs": [{"targets": ["https://shop.test/checkout"]}],
                    "relabel_configs": [
                        {"source_labels": ["__address__"], "target_label": "__param_target"},
                        {"target_label": "__address__", "replacement": "127.0.0.1:9115"},
                    ],
                }
            ]
        },
    ],
    ids=["sqlite", "socket", "remote write by a proxy", "scrape by a proxy", "probed by an exporter"],
)
def test_a_name_that_another_resolves_or_that_is_none_need_not(names, variables):
    assert names(**variables) == {}


# Runs a module with a role's own module_utils where it looks for them.
AS_ANSIBLE_DOES = """
import ansible.module_utils, runpy, sys
ansible.module_utils.__path__.append(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_certificate_of_the_users_that_has_expired_is_a_finding_beside_others(tmp_path):
    """Preflight does not see it, and a run of site.yml is refused by it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "watch.example.org")])
    end = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(end - datetime.timedelta(days=90)).not_valid_after(end)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    arguments = {
        "directory": str(tmp_path),
        "identities": [{"name": "loki", "group": "root", "mode": "0640", "names": []}],
        "renew_before_days": 30,
        "ca_renew_before_days": 365,
        "gateway": True,
        "gateway_certificate": builder.sign(key, hashes.SHA256()).public_bytes(pem).decode(),
        "gateway_key": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode(),
        "_ansible_check_mode": True,
    }
    (tmp_path / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    role = PROJECT / "roles/pki"
    command = [sys.executable, "-c", AS_ANSIBLE_DOES, role / "module_utils", role / "library/watchpost_pki_state.py"]
    done = subprocess.run([*command, tmp_path / "arguments.json"], capture_output=True, text=True)
    looked = outcomes(said({"facts": SOUND["facts"]}, json.loads(done.stdout)))
    findings = {finding.subject: finding.problem for finding in judge("one", looked.hosts["one"])}
    assert findings["gateway"] == "the certificate in pki_gateway_certificate expired on 2026-01-01"
    assert "its CA is made anew" in findings["loki"], "the others are told all the same"


# --- what Ansible says ---


def said(*results):
    tasks = [{"task": {"name": "Look"}, "hosts": {"one": result}} for result in results]
    return {"plays": [{"tasks": tasks}]}


def test_outcomes_of_a_hosts_tasks_are_put_together():
    refused = {"failed": True, "problems": [1]}
    looked = outcomes(said(refused, {"facts": {}}, {"skipped": True}, {"due": [], "failed": True, "problems": [2]}))
    assert looked == Looked({"one": {"problems": [1, 2], "due": [], "facts": {}}}, {})


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"unreachable": True, "msg": "no route "}, "cannot be reached: no route. Do: let ssh lead there"),
        ({"failed": True, "msg": "Task failed: Missing sudo password"}, "Look: Missing sudo password. Do: give it as"),
        (
            {"failed": True, "msg": "a", "failed_modules": {"setup": {"msg": "no interpreter"}}},
            "Look: no interpreter. Do: ",
        ),
        ({"failed": True, "msg": "no luck"}, "Look: no luck"),
        ({"due": []}, "was not looked at"),
    ],
)
@pytest.mark.parametrize("seen", [{}, {"facts": {}}], ids=["early", "late"])
def test_a_host_that_cannot_be_looked_at_is_no_sound_one(result, seen, words):
    if "due" in result and seen:
        return  # it was looked at
    looked = outcomes(said(seen, result))
    assert not looked.hosts and looked.unseen["one"].startswith(words)


def test_an_inventory_without_hosts_is_refused():
    with pytest.raises(LookError, match="no host in the groups"):
        outcomes(said())


# --- the command ---


@pytest.fixture
def command(monkeypatch):
    """Run the command on what was found on a host, and on what verify would find missing."""

    def run(found, *arguments, missing=(), unseen=None):
        def look(_):
            if isinstance(found, Exception):
                raise found
            return Looked(found if "one" in found else {"one": found}, {} if unseen is None else unseen)

        monkeypatch.setattr(doctor, "look", look)
        monkeypatch.setattr(doctor, "signals", lambda *_: list(missing))
        return CliRunner().invoke(command_line("doctor"), ["doctor", *arguments])

    return run


LOGS_MISSING = doctor.Finding("https://one", "signals", "logs", "logs is missing: none", "look there")


def test_a_sound_host_exits_with_zero(command):
    result = command(SOUND)
    assert result.exit_code == 0 and "Nothing is wrong on one" in result.stdout


def test_a_finding_exits_with_one_and_says_what_to_do(command):
    result = command(broken(facts__components__loki__refused="no such field [x]"))
    assert result.exit_code == 1
    assert "no such field [x]" in result.stdout and "Do: " in result.stdout
    assert "See: docs/doctor.md#configuration" in result.stdout
    assert "not looked for" in result.stdout


def test_signals_are_looked_for_only_when_nothing_else_explains_that_one_is_missing(command):
    other = json.loads(command(broken(facts__components__loki__access=["x"]), "--json", missing=[LOGS_MISSING]).stdout)
    assert not other["signals_asked"] and [each["check"] for each in other["findings"]] == ["permissions"]
    near = broken(due=[{"name": "loki", "reasons": ["it expires within 30 days"]}])
    both = json.loads(command(near, "--json", missing=[LOGS_MISSING]).stdout)
    assert both["signals_asked"] and [each["check"] for each in both["findings"]] == ["certificates", "signals"]
    alone = command(SOUND, "--json", missing=[LOGS_MISSING])
    assert alone.exit_code == 1 and json.loads(alone.stdout)["findings"][0]["see"] == "docs/doctor.md#signals"


def without(*components):
    """A sound host that has all but these components."""
    found = broken()
    for name in components:
        del found["facts"]["components"][name]
    return found


def test_without_the_application_only_what_needs_none_is_looked_for(command):
    result = command(without("taskboard"), "--json", missing=[])
    links = ["gateway", "grafana", "anonymous access", "login", "targets", "alerts"]
    assert result.exit_code == 0 and json.loads(result.stdout)["signals_asked"] == links
    shown = command(without("taskboard")).stdout
    assert f"signals        {', '.join(links)}; the others' components are not here" in shown
    assert "traces, logs and metrics" not in shown


def test_a_store_that_is_not_here_is_not_missed(command):
    links = json.loads(command(without("tempo"), "--json").stdout)["signals_asked"]
    assert {"logs", "metrics"} < set(links) and not {"traces", "trace to logs", "trace to metrics"} & set(links)


def test_hosts_of_agents_alone_are_sound(command):
    result = command(without(*COMPONENTS[:-1]))
    assert result.exit_code == 0 and "signals        not looked for" in result.stdout


def test_signals_that_cannot_be_asked_for_hide_no_finding(command, monkeypatch):
    def signals(*_):
        raise LookError("no password")

    near = broken(due=[{"name": "loki", "reasons": ["it expires within 30 days"]}])
    command(near)
    monkeypatch.setattr(doctor, "signals", signals)
    result = CliRunner().invoke(command_line("doctor"), ["doctor"])
    assert result.exit_code == 2 and "signals cannot be looked for: no password" in result.stderr
    assert "expires within 30 days" in result.stdout


def test_what_cannot_be_looked_at_at_all_exits_with_two(command):
    result = command(LookError("no such inventory"))
    assert result.exit_code == 2 and "no such inventory" in result.stderr and not result.stdout


def test_a_host_out_of_reach_exits_with_two_and_hides_no_finding_on_another(command):
    away = {"two": "cannot be reached: no route"}
    result = command(broken(facts__components__loki__refused="no such field"), unseen=away)
    assert result.exit_code == 2 and "two: cannot be reached: no route" in result.stderr
    assert "no such field" in result.stdout
    report = json.loads(command(SOUND, "--json", missing=[LOGS_MISSING], unseen=away).stdout)
    assert report["unseen"] == away and not report["ok"]
    assert not report["signals_asked"], "the host out of reach may explain whatever is missing"


def test_an_inventory_that_is_not_there_is_named():
    with pytest.raises(LookError, match=r"nowhere\.yml"):
        doctor.look("nowhere.yml")
