"""Whatever is wrong is refused before anything is changed, all of it at once, each by name."""

import json
import re
import time

import pytest

# What a test spoils of the host's own truth, by Python's own hook: every Python that is started with it tells lies.
LIES = """
import platform, time
platform.machine = lambda: "riscv64"
platform.python_version = lambda: "3.9.2"
true_time = time.time
time.time = lambda: true_time() - 1000
"""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_changed(host):
    """After all of these tests the host is as it was."""
    host.check_output("touch /run/before-tests && sleep 0.1")  # a file's age has the kernel's tick as its unit
    yield
    assert (
        host.check_output("find /etc /opt /usr /var/lib -xdev -newer /run/before-tests -not -path '*/systemd/*'") == ""
    )


@pytest.fixture
def refusal(site):
    """Run site.yml with something wrong; return what preflight says."""

    def refusal(*options, **variables):
        run = site(*options, **variables)
        assert run.code != 0, run.output
        assert "nothing was changed" in run.output, run.output
        assert "changed=0" in run.output and "inputs" not in run.output
        return run.output

    return refusal


def test_all_wrong_variables_are_named_at_once(refusal):
    said = refusal(
        loki_retenton_days=5,
        watchpost_pubic_name="example.org",
        gateway_allowed_origins=["https://example.org"],
        watchpost_artifact_source="floppy",
        watchpost_secret_generations={"grafana_password": 2},
        watchpost_redaction_extra_rules=[{"name": "staff", "regex": "x", "match": []}],
        host_firewall_extra_ports={"http": 80},
        host_journal_max_use="{{ nothing_like_this }}",
        pki_validity_days="many",
        agent_queue_mib="many",
        gateway_otlp_rate="many",
        grafana_memory_mib="many",
        otel_collector_queue_mib="many",
        loki_retention_days=-3,
        prometheus_scrape_seconds="0",
        gateway_hsts_seconds=-1,
        gateway_otlp_burst=0,  # which can be meant: nothing above the rate
        alertmanager_receivers=[{"name": "x", "severities": ["loud"], "teams": {"url": "https://example.org"}}],
        taskboard_faults={"eror": {"share": 0.5}},
        watchpost_public_name="https://watch.example.org",
    )
    for words in (
        "loki_retenton_days is not a variable of the role loki",
        "watchpost_pubic_name is not a shared variable; did you mean watchpost_public_name?",
        "gateway_allowed_origins is now gateway_pages",
        "watchpost_artifact_source must be one of: auto, release, mirror, source, got: floppy",
        "watchpost_secret_generations.grafana_password",
        "watchpost_redaction_extra_rules.regex",
        "'host_firewall_extra_ports' is of type dict and we were unable to convert to list",
        "host_journal_max_use cannot be worked out: 'nothing_like_this' is undefined",
        "'pki_validity_days' is of type str and we were unable to convert to int",
        "'agent_queue_mib' is of type str and we were unable to convert to int",
        "'gateway_otlp_rate' is of type str and we were unable to convert to int",
        "'grafana_memory_mib' is of type str and we were unable to convert to int",
        "'otel_collector_queue_mib' is of type str and we were unable to convert to int",
        "loki_retention_days is -3; it must be at least 1",
        "prometheus_scrape_seconds is 0; it must be at least 1",
        "gateway_hsts_seconds is -1; it must be at least 0",
        "alertmanager_receivers.teams",
        "loud",
        "taskboard_faults.eror",
        "watchpost_public_name is 'https://watch.example.org'; it must be a host name or an address",
    ):
        assert words in said
    assert "preflight found 20 problems" in said


@pytest.fixture(scope="module")
def no_certificate(tmp_path_factory):
    """A file that holds none."""
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    file.write_text("nothing")
    return str(file)


TAKEN_NAMES = ["private", "operator", "ca", "loki"]
WRONG_NAMES = ["../../x", "a/b", "..", "Edge", "edge\n", ""]
#: Of each role: values that are sound each by itself and cannot be meant together, and what must be said of them.
CONTRADICTIONS = {
    "alertmanager": (
        {
            "alertmanager_heartbeat_url": "http://beat.example.org/open-secret",
            "alertmanager_receivers": [
                {"name": "twice", "slack": {"url": "http://hooks.example.org/open-secret"}},
                {"name": "twice", "slack": {"url": "https://x"}, "webhook": {"url": "http://localhost:1/"}},
                {
                    "name": "Two Words",
                    "email": {"to": ["a@b.c"], "from": "d@b.c", "server": "smtp.example.org", "username": "d"},
                },
                {"name": "nobody", "services": ["x"]},
                {"name": "deaf", "severities": [], "pagerduty": {"routing_key": "open-secret"}},
            ],
        },
        [
            "alertmanager_receivers has twice more than once",
            "twice has slack and webhook; give it exactly one of",
            "twice.slack.url must begin with https://",
            "Two Words is no name",
            "Two Words.email has a username and no password",
            "Two Words.email.server must be HOST:PORT",
            "nobody is a name that Watchpost uses itself",
            "nobody has no way to be told",
            "deaf has no severities",
            "alertmanager_heartbeat_url must begin with https://",
            "ca.pem, which holds no certificate in PEM form",
        ],
    ),
    "grafana": (
        {
            "grafana_users": {
                "anna": {"name": "Anna"},
                "ben": {"email": "a@b.c", "role": "Owner"},
                "carl": {"email": "a@b.c", "password": "x"},
                "admin": {"email": "a@b.c"},
            },
            "grafana_service_accounts": {"robot": "Root"},
            "grafana_oidc": {
                "client_id": "x",
                "auth_url": "http://a",
                "token_url": "https://a",
                "api_url": "https://a",
            },
        },
        [
            "grafana_users.anna has no email",
            "grafana_users.ben.role is Owner",
            "grafana_users.carl has password",
            "grafana_users.admin: a login",
            "grafana_service_accounts.robot is Root",
            "grafana_oidc.auth_url must begin with https://",
            "grafana_oidc needs grafana_oidc_client_secret",
        ],
    ),
    "otel_collector": (
        {
            "otel_collector_sampling_services": {"checkout": 101},
            "otel_collector_sampling_wait_seconds": 61,
            "otel_collector_request_mib": 2,
            "watchpost_redaction_extra_rules": [
                {"name": "pin", "pattern": "=\\d+", "words": ["pin|puk", "p(?:in|uk)"], "match": ["pin=1"]}
            ],
        },
        [
            'the redaction rule pin has the word "pin|puk"',
            "otel_collector_sampling_services.checkout is 101",
            "otel_collector_sampling_wait_seconds is 61",
            "otel_collector_request_mib is 2",
        ],
    ),
    "pki": (
        {
            "pki_validity_days": 20,
            "pki_agent_validity_days": 30,
            "pki_ca_validity_days": 40,
            "pki_ca_renew_before_days": 40,
            "pki_extra_identities": ["edge_sender", *TAKEN_NAMES, *WRONG_NAMES],
            "pki_gateway_key": "/some/tls.key",
        },
        [
            "Give both pki_gateway_certificate and pki_gateway_key",
            "pki_renew_before_days (30) must be smaller than pki_validity_days (20)",
            "pki_renew_before_days (30) must be smaller than pki_agent_validity_days (30)",
            "pki_ca_renew_before_days (40) must be smaller than pki_ca_validity_days (40)",
            *(f"pki_extra_identities holds {json.dumps(name)}, a name that" for name in TAKEN_NAMES),
            *(f"pki_extra_identities holds {json.dumps(name)}; a name is" for name in WRONG_NAMES),
        ],
    ),
    "prometheus": (
        {
            "prometheus_remote_write": [
                {"url": "https://x", "basic_auth": {"username": "me", "password": "open-secret"}}
            ],
            "watchpost_slos": [
                {"name": "a", "service": "shop", "objective": 0.99, "availability": {}},
                {"name": "b", "service": "shop", "objective": 1.2, "availability": {}, "windw": "30d"},
            ],
        },
        [
            "holds a password in plain text",
            "watchpost_slos[1].objective: 1.2 is not below 1",
            "watchpost_slos[1].windw: is not a field here; did you mean window?",
        ],
    ),
}


def test_values_that_cannot_be_meant_together_are_named_without_their_secrets(refusal, no_certificate):
    wrong = {name: value for variables, _ in CONTRADICTIONS.values() for name, value in variables.items()}
    said = refusal(**wrong, alertmanager_ca_file=no_certificate)
    wanted = [words for _, all_words in CONTRADICTIONS.values() for words in all_words]
    for words in wanted:
        assert words in said
    assert f"preflight found {len(wanted)} problems" in said
    assert "open-secret" not in said


def test_contradictions_of_two_roles_are_named_and_a_check_that_cannot_be_worked_out(refusal):
    said = refusal(
        prometheus_retention_days=20, otel_collector_request_mib=15, __loki_problems="{{ nothing_like_this }}"
    )
    assert "prometheus_retention_days is 20, but watchpost_slos[0] (tasks-available) counts over 30 days" in said
    assert "otel_collector_request_mib is 15; with watchpost_batch_mib (192) it must be at most 14" in said
    assert "the check of the role loki (__loki_problems) cannot be worked out: 'nothing_like_this' is undefined" in said


def test_value_that_refers_to_another_roles_default_or_to_a_secret_is_understood(converge):
    run = converge(
        pki_validity_days="{{ pki_renew_before_days * 4 }}",
        host_journal_max_retention="{{ (watchpost_secrets.otlp_ingest_token | length + 1) }}day",
    )
    assert run.code == 0, run.output


def test_wrong_registry_is_refused(refusal):
    sound = {"bind": "loopback", "port": 3000, "scheme": "https", "auth": "login", "callers": ["operator"]}
    said = refusal(
        watchpost_components=["grafana", "loki", "lokki"],
        watchpost_endpoints={
            "grafana": {
                "one": {**sound, "bind": "every", "auth": "none", "scheme": "http"},
                "two": {**sound, "port": "3001", "callers": ["opertor"]},
                "three": {"prt": 1, **sound},
            },
            "loki": {"http": {**sound, "port": 70000}, "grpc": {"port": 22}, "tail": {**sound, "port": 22}},
            "host": {"ssh": {**sound, "port": 22, "bind": "any", "scheme": "ssh", "auth": "ssh"}},
        },
    )
    for words in (
        "watchpost_endpoints.grafana.one.bind is every; it must be one of loopback, any",
        "watchpost_endpoints.grafana.one.auth is none; it must be one of client_certificate",
        "watchpost_endpoints.grafana.one.scheme is http; it must be one of https",
        "watchpost_endpoints.grafana.two.port is 3001; it must be a whole number",
        "watchpost_endpoints.grafana.two.callers names opertor, which nobody is; did you mean operator?",
        "watchpost_endpoints.grafana.three.prt is not a field of an endpoint; did you mean port?",
        "watchpost_endpoints.loki.http.port is 70000",
        "watchpost_endpoints.loki.grpc has no bind",
        "port 3000 is given twice in watchpost_endpoints: to grafana.one and to grafana.three",
        "port 22 is given twice in watchpost_endpoints: to host.ssh and to loki.grpc",
        "watchpost_components names lokki",
    ):
        assert words in said


def test_wrong_inventory_groups_are_refused(refusal, host, tmp_path):
    name = host.backend.get_hostname()
    groups = {"promethus": [name], "otel-collector": [name], "loki": ["stray"], "agent": [name]}
    inventory = {
        "all": {"children": {g: {"hosts": {member: {} for member in members}} for g, members in groups.items()}}
    }
    (tmp_path / "more.json").write_text(json.dumps(inventory))
    said = refusal("-i", str(tmp_path / "more.json"))
    assert "the inventory group promethus is not a component; did you mean prometheus?" in said
    assert "the inventory group otel-collector is not a component; did you mean otel_collector?" in said
    assert f"{name} must not be in the inventory group agent: the appliance measures itself" in said
    assert "stray must be in the inventory group watchpost too, as loki runs there" in said


def test_host_in_no_group_is_refused(refusal):
    assert "is in no component's group, so there is nothing to run" in refusal(watchpost_components=[])


def test_too_small_host_is_refused(refusal):
    said = refusal(preflight_min_memory_mb=10**9, preflight_min_disk_mb={"/var": 10**9, "/opt/not/yet/there": 10**9})
    assert "MiB of memory; preflight_min_memory_mb is 1000000000" in said
    assert "/var has " in said and "/opt/not/yet/there has " in said


@pytest.fixture
def lies(host):
    """A Python on the host that lies about the machine and the time."""
    host.check_output("mkdir -p /run/lies && printf %%s %s > /run/lies/sitecustomize.py", LIES)
    host.check_output(
        "printf %%s %s > /run/lies/python3 && chmod +x /run/lies/python3",
        '#!/bin/sh\nPYTHONPATH=/run/lies exec /usr/bin/python3 "$@"\n',
    )
    return "/run/lies/python3"


def test_wrong_machine_python_and_clock_are_refused(refusal, lies):
    said = refusal(ansible_python_interpreter=lies)
    assert "the CPU architecture is riscv64; it must be one of x86_64, aarch64" in said
    assert "the host's Python is 3.9.2; it must be at least 3.11" in said
    assert re.search(r"the host's clock is (9\d\d|1000) s behind this machine's", said), "less what the question took"


@pytest.fixture
def in_place_of(host):
    """Lay another file over one of the host's; everything is uncovered again afterwards."""
    covered = []

    def in_place_of(path, content):
        host.check_output("printf %%s %s > /run/cover && mount --bind /run/cover %s", content, path)
        covered.append(path)

    yield in_place_of
    for path in covered:
        host.check_output("umount %s", path)


def test_untested_operating_system_is_refused_unless_the_bold_insist(refusal, converge, in_place_of):
    in_place_of("/etc/os-release", 'ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\n')
    assert "the operating system is Debian GNU/Linux 11 (bullseye)" in refusal()
    assert converge(preflight_allow_untested_os=True).code == 0


def test_host_without_systemd_is_refused(refusal, in_place_of):
    in_place_of("/proc/1/comm", "runit\n")
    assert "process 1 is runit; Watchpost needs systemd" in refusal()


def test_ordinary_user_is_refused(refusal):
    assert "Ansible is not root on the host" in refusal(ansible_become=True, ansible_become_user="nobody")


@pytest.fixture
def listen(host):
    """Let a transient unit of the host listen on a port until the test is over."""
    units = []

    def listen(unit, port, address):
        host.check_output("systemd-run --quiet --unit=%s python3 -m http.server --bind %s %s", unit, address, str(port))
        units.append(unit)
        deadline = time.monotonic() + 10
        while f":{port} " not in host.check_output("ss --listening --tcp --numeric"):
            assert time.monotonic() < deadline
            time.sleep(0.1)  # between two looks

    yield listen
    for unit in units:
        host.check_output("systemctl stop %s", unit)


def test_taken_port_is_refused_and_its_holder_named(refusal, listen):
    listen("squatter", 3100, "0.0.0.0")
    said = refusal()
    assert "port 3100 is taken by python3 (pid " in said
    assert "squatter.service); stop that, or change the port of loki.http in group_vars/all/endpoints.yml" in said


def test_port_held_by_the_appliance_itself_is_no_problem(converge, listen):
    listen("watchpost-loki", 3100, "127.0.0.1")
    assert converge().code == 0


def test_another_firewall_is_told_with_the_ports_that_it_must_let_in(converge, host):
    assert "another firewall" not in converge().output
    rules = "policy drop; iif lo accept; ct state established,related accept; tcp dport 22 accept"
    host.check_output(
        "nft %s", f"table inet theirs {{ chain input {{ type filter hook input priority filter; {rules}; }}; }}"
    )
    run = converge()
    host.check_output("nft delete table inet theirs")
    assert run.code == 0 and not run.changed, run.output
    said = " ".join(run.output.split())
    assert "another firewall is at work on the host (nft list table inet theirs)" in said
    assert "it must let in TCP 443, 4317, 4318 too" in said


def test_more_than_the_disk_holds_is_refused_with_the_sum(refusal):
    said = refusal(loki_retention_gib=900_000, tempo_retention_gib=100_000)
    assert "/var/lib/watchpost has room for " in said
    assert "loki_retention_gib 921600000 MiB" in said
