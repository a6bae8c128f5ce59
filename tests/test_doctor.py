"""`watchpost doctor` judges what was found on a host: one fault is one finding, and what follows from it is none.

That the looking itself is right is tested on a real host that is broken in each way, in molecule/doctor.
"""

import json

import pytest
from typer.testing import CliRunner

from watchpost import doctor
from watchpost.cli import command_line
from watchpost.doctor import CHECKS, LookError, judge, outcomes
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
    "process": {"pid": "7", "exe": "/opt/l/2/bin/loki", "versions": ["/opt/l/2"], "current": "/opt/l/2"},
}
SOUND = {
    "due": [],
    "ca_due": [],
    "public_due": [],
    "public_ends": "",
    "facts": {
        "units": {
            **{f"watchpost-{name}.service": UNIT for name in ("loki", "taskboard", "otel-collector", "firewall")},
            "watchpost-retention.service": UNIT | {"ActiveState": "inactive", "UnitFileState": "static"},
        },
        "components": dict.fromkeys(("loki", "taskboard", "otel_collector"), LOKI),
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
            {"facts__components__loki__process": LOKI["process"] | {"exe": "/usr/sbin/x (deleted)"}},
            "versions",
            "loki",
            "was replaced since it was started",
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


# --- what Ansible says ---


def said(*results):
    tasks = [{"task": {"name": "Look"}, "hosts": {"one": result}} for result in results]
    return {"plays": [{"tasks": tasks}]}


def test_outcomes_of_a_hosts_tasks_are_put_together():
    found = outcomes(
        said({"failed": True, "problems": [1]}, {"due": [], "ca_due": []}, {"skipped": True}, {"facts": {}})
    )
    assert found == {"one": {"problems": [1], "due": [], "ca_due": [], "facts": {}}}


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([{"unreachable": True, "msg": "no route"}], "one cannot be reached: no route"),
        ([{"failed": True, "msg": "no Python"}], "one: Look: no Python"),
        ([{"due": []}], "one: was not looked at"),
        ([], "no host in the groups"),
    ],
)
def test_a_host_that_cannot_be_looked_at_is_no_sound_one(results, words):
    with pytest.raises(LookError, match=words):
        outcomes(said(*results))


# --- the command ---


@pytest.fixture
def command(monkeypatch):
    """Run the command on what was found on a host, and on what verify would find missing."""

    def run(found, *arguments, missing=()):
        def look(_):
            if isinstance(found, Exception):
                raise found
            return {"one": found}

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


def test_signals_that_cannot_be_asked_for_hide_no_finding(command, monkeypatch):
    def signals(*_):
        raise LookError("no password")

    near = broken(due=[{"name": "loki", "reasons": ["it expires within 30 days"]}])
    command(near)
    monkeypatch.setattr(doctor, "signals", signals)
    result = CliRunner().invoke(command_line("doctor"), ["doctor"])
    assert result.exit_code == 2 and "signals cannot be looked for: no password" in result.stderr
    assert "expires within 30 days" in result.stdout


def test_a_host_out_of_reach_exits_with_two(command):
    result = command(LookError("one cannot be reached"))
    assert result.exit_code == 2 and "one cannot be reached" in result.stderr


def test_an_inventory_that_is_not_there_is_named():
    with pytest.raises(LookError, match=r"nowhere\.yml"):
        doctor.look("nowhere.yml")
