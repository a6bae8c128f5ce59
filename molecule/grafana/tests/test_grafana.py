"""Grafana lets in whoever has the password of the last run, and has its data sources and dashboards from files."""

import base64
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, Answer, play, run_playbook, wait_until

from watchpost.secrets import SecretStore, state_dir
from watchpost.testhost import Host

HOME = "/etc/watchpost/grafana/current"
GENERATIONS = {"grafana_admin_password": 2, "grafana_secret_key": 2}


def password(host):
    return host.file(f"{HOME}/credentials/grafana_admin_password").content_string


@pytest.fixture
def api(ask, host):
    """Ask Grafana's API as admin."""

    def api(path, secret=None, **request) -> Answer:
        login = base64.b64encode(f"admin:{secret or password(host)}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        return ask("grafana", "https", f"/grafana{path}", identity=None, headers=headers, **request)

    return api


@pytest.fixture
def data_sources(api):
    return {source["uid"]: source for source in api("/api/datasources").json}


def test_password_is_the_generated_one_and_not_the_default(api):
    assert api("/api/org").status == 200
    assert api("/api/org", secret="admin").status == 401


@pytest.fixture
def log_in(ask):
    """Log in on Grafana's page; return the answer."""

    def log_in(user, secret) -> Answer:
        body = json.dumps({"user": user, "password": secret})
        return ask("grafana", "https", "/grafana/login", identity=None, method="POST", body=body,
                   headers={"Content-Type": "application/json"})  # fmt: skip

    return log_in


@pytest.fixture
def logged_in(ask, log_in):
    """Log in on Grafana's page; return a function that asks whether the session still is one."""

    def logged_in(user, secret):
        answer = log_in(user, secret)
        assert answer.status == 200, answer
        cookie = "grafana_session=" + answer.headers["set-cookie"].partition("grafana_session=")[2].partition(";")[0]
        return lambda: (
            ask("grafana", "https", "/grafana/api/user", identity=None, headers={"Cookie": cookie}).status == 200
        )

    return logged_in


def test_session_cookie_stays_on_https_and_comes_along_only_when_a_link_is_followed(log_in, host):
    answer = log_in("admin", password(host))
    assert answer.status == 200
    session = answer.headers["set-cookie"].partition("grafana_session=")[2].partition(", grafana")[0]
    for attribute in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/grafana"):
        assert attribute in session


def test_a_stranger_cannot_lock_out_the_admin(log_in, api, host):
    for _ in range(6):  # Grafana locks after five
        assert log_in("admin", "a-guess").status == 401
    assert log_in("admin", password(host)).status == 200
    assert api("/api/org").status == 200


def test_nobody_can_sign_up(ask):
    body = json.dumps({"email": "a@example.org", "username": "a", "password": "a-long-password", "name": "a"})
    for path in ("/api/user/signup", "/api/user/signup/step2"):
        answer = ask("grafana", "https", f"/grafana{path}", identity=None, method="POST", body=body,
                     headers={"Content-Type": "application/json"})  # fmt: skip
        assert answer.status == 401, answer


@pytest.mark.parametrize("path", ["/metrics", "/api/snapshots", "/api/admin/settings", "/api/plugins"])
def test_nothing_is_told_to_a_stranger(ask, path):
    answer = ask("grafana", "https", f"/grafana{path}", identity=None)
    assert answer.status in (302, 401, 403, 404), answer


def test_four_stores_are_provisioned_over_mutual_tls(data_sources, endpoints):
    stores = {"prometheus": "prometheus", "loki": "loki", "tempo": "tempo", "alertmanager": "alertmanager"}
    assert {uid: source["type"] for uid, source in data_sources.items()} == stores
    for uid, source in data_sources.items():
        assert source["url"] == f"https://127.0.0.1:{endpoints[uid]['http']['port']}"
        assert source["readOnly"]
        assert source["jsonData"]["tlsAuth"] and source["jsonData"]["tlsAuthWithCACert"]
        assert source["jsonData"]["serverName"] == f"{uid}.watchpost.internal"
        assert not source["jsonData"].get("tlsSkipVerify")


def test_stores_refer_to_each_other(data_sources):
    linked = {uid: source["jsonData"] for uid, source in data_sources.items()}
    tempo = linked["tempo"]
    assert tempo["tracesToLogsV2"]["datasourceUid"] == "loki"
    assert tempo["tracesToLogsV2"]["query"] == '{${__tags}} | trace_id = "${__trace.traceId}"'
    assert tempo["tracesToMetrics"]["datasourceUid"] == tempo["serviceMap"]["datasourceUid"] == "prometheus"
    assert [link["datasourceUid"] for link in linked["loki"]["derivedFields"]] == ["tempo"]
    assert linked["loki"]["derivedFields"][0]["matcherRegex"] == "^trace_id$"
    exemplars = linked["prometheus"]["exemplarTraceIdDestinations"]
    assert {(link["name"], link["datasourceUid"]) for link in exemplars} == {
        ("trace_id", "tempo"),
        ("traceID", "tempo"),
    }


def test_keys_of_data_sources_do_not_leave_grafana(api):
    for uid in ("prometheus", "loki", "tempo", "alertmanager"):
        answer = api(f"/api/datasources/uid/{uid}")
        assert answer.json["secureJsonFields"]["tlsClientKey"] is True
        assert "PRIVATE KEY" not in answer.body


def test_dashboards_are_provisioned_and_cannot_be_changed(api, ask, host):
    found = api("/api/search?type=dash-db&tag=watchpost").json
    assert {dashboard["folderTitle"] for dashboard in found} == {"Watchpost"}
    assert len(found) == 7
    dashboard = api("/api/dashboards/uid/watchpost-start").json
    assert dashboard["meta"]["provisioned"] and not dashboard["dashboard"]["editable"]
    body = json.dumps({"dashboard": dashboard["dashboard"] | {"title": "Mine"}, "overwrite": True})
    answer = api("/api/dashboards/db", method="POST", body=body)
    assert answer.status == 400 and "provisioned" in answer.body


def test_second_run_changes_no_dashboard_and_no_data_source(api):
    def versions():
        dashboards = {
            found["uid"]: api(f"/api/dashboards/uid/{found['uid']}").json["dashboard"]["version"]
            for found in api("/api/search?type=dash-db").json
        }
        return dashboards, {
            uid: api(f"/api/datasources/uid/{uid}").json["version"] for uid in ("tempo", "loki", "prometheus")
        }

    before = versions()
    run = play("grafana")
    assert run.code == 0 and not run.changed, run.output
    assert versions() == before


def test_missing_dashboard_fails_the_run_with_its_name():
    run = play("grafana", __grafana_wanted=["watchpost-start", "watchpost-gone"], __grafana_dashboard_seconds=2)
    assert run.code != 0
    assert "Grafana does not show watchpost-gone." in run.output


def test_a_data_source_without_its_plugin_fails_the_run_with_its_name(host, ask):
    plugin, away = "/opt/watchpost/grafana/current/share/public/app/plugins/datasource/loki", "/root/plugin-of-loki"

    def move(source, target):
        host.check_output("mv %s %s && systemctl restart watchpost-grafana", source, target)
        wait_until(lambda: ask("grafana", "https", "/grafana/api/health", identity=None).status == 200, 60)

    move(plugin, away)
    try:
        run = play("grafana", __grafana_answer_seconds=2)
    finally:
        move(away, plugin)
    assert run.code != 0
    assert "Grafana's data source loki does not work. It answers:" in run.output, run.output


def test_every_data_source_is_asked(data_sources):
    variables = yaml.safe_load((PROJECT / "roles/grafana/vars/main.yml").read_text())
    assert set(re.findall(r"^ *'(\w+)': \{'", variables["__grafana_questions"], re.MULTILINE)) == set(data_sources)


def test_pages_may_load_nothing_from_elsewhere(ask):
    policy = ask("grafana", "https", "/grafana/login", identity=None).headers["content-security-policy"]
    assert "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy and "'nonce-" in policy
    assert "grafana.com" not in policy


def test_pictures_of_people_are_asked_of_nobody(api):
    assert "gravatar" not in api("/api/user").json["avatarUrl"] + json.dumps(api("/api/org/users").json)
    assert api("/api/frontend/settings").json["disableUserSignUp"]


@pytest.fixture
def verdict(host):
    """Have a copy of the running configuration judged, with one file changed by a sed expression."""

    def verdict(path, expression):
        work = host.check_output("mktemp --directory /run/verdict.XXXXXX")
        program = "/opt/watchpost/grafana/current"
        done = host.run(
            f"cp -rL {HOME} {work}/config && sed -i '{expression}' {work}/config/{path}"
            f" && chown -R watchpost-grafana {work} && cd {work} && runuser -u watchpost-grafana -- env"
            f" HOME={work} CREDENTIALS_DIRECTORY={work}/config/credentials"
            f" sh config/check.sh {program}/bin {program}/share {work}/config"
        )
        host.check_output("rm -r %s", work)
        return done

    return verdict


def test_sound_configuration_is_accepted(verdict):
    assert verdict("grafana.ini", "").rc == 0


@pytest.mark.parametrize(
    ("path", "expression", "complaint"),
    [
        ("provisioning/datasources/stores.yml", "s/^datasources:/datasources: {/", "yaml: line"),
        ("provisioning/datasources/stores.yml", r"s/ uid: loki$/&\n    isDefault: true/", "Only one datasource"),
        ("provisioning/datasources/stores.yml", "s/tls.key/gone.key/", "gone.key: no such file"),
        ("grafana.ini", "s/^.server.$/[server/", "unclosed section"),
        ("dashboards/watchpost-start.json", "1s/{/{{/", "watchpost-start.json is not JSON"),
        ("dashboards/watchpost-start.json", "s/Start here//", "Dashboard title cannot be empty"),
        ("provisioning/dashboards/watchpost.yml", "s/^providers:/providers: {/", "yaml: line"),
    ],
)
def test_broken_file_is_refused(verdict, path, expression, complaint):
    done = verdict(path, expression)
    assert done.rc == 1 and complaint in done.stdout + done.stderr


def test_refused_configuration_is_named_and_the_old_one_keeps_running(assert_refused, api):
    settings = {"security": {"csrf_trusted_origins": "$__file{/nowhere}"}}
    assert_refused("grafana", "/nowhere: no such file", grafana_settings=settings)
    assert api("/api/org").status == 200


PEOPLE = {
    "anna": {"email": "anna@example.org", "name": "Anna Berg", "role": "Editor", "teams": ["shop"]},
    "ben": {"email": "ben@example.org"},
}
ROBOTS = {"reports": "Viewer"}


@pytest.fixture(scope="module")
def deployment():
    """Its name on the controller, where its secrets are."""
    host = Host(yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text())["platforms"][0]["name"])
    hosts = yaml.safe_load(host.inventory.read_text())["all"]["children"]["watchpost"]["hosts"]
    return hosts[host.name]["watchpost_deployment"]


def secret_of(deployment, login):
    """The password that the controller keeps for one of the people."""
    return SecretStore(deployment).read()[f"grafana_user_{login}"]["value"]


@pytest.fixture
def as_user(ask, deployment):
    """Ask Grafana's API as one of the people, with the password that the controller keeps for them."""

    def as_user(login, path, **request):
        header = base64.b64encode(f"{login}:{secret_of(deployment, login)}".encode()).decode()
        headers = {"Authorization": f"Basic {header}", "Content-Type": "application/json"}
        return ask("grafana", "https", f"/grafana{path}", identity=None, headers=headers, **request)

    return as_user


@pytest.fixture(scope="module")
def accounts():
    """The accounts of people and programs, made by a run."""
    run = play("grafana", grafana_users=PEOPLE, grafana_service_accounts=ROBOTS)
    assert run.code == 0, run.output


def test_people_get_in_with_just_their_rights(accounts, api, as_user):
    again = play("grafana", grafana_users=PEOPLE, grafana_service_accounts=ROBOTS)
    assert again.code == 0 and not again.changed, again.output
    new = json.dumps({"dashboard": {"title": "Of Anna", "uid": "of-anna"}})
    assert as_user("ben", "/api/search").status == 200
    assert as_user("ben", "/api/dashboards/db", method="POST", body=new).status == 403
    assert as_user("anna", "/api/dashboards/db", method="POST", body=new).status == 200
    for login in PEOPLE:
        for path in ("/api/admin/settings", "/api/users", "/api/serviceaccounts/search"):
            assert as_user(login, path).status == 403, (login, path)
    (team,) = api("/api/teams/search").json["teams"]
    assert (team["name"], team["memberCount"]) == ("shop", 1)
    (robot,) = api("/api/serviceaccounts/search").json["serviceAccounts"]
    assert (robot["name"], robot["role"]) == ("reports", "Viewer")


def test_token_of_a_program_reads_and_changes_nothing(accounts, ask, deployment):
    playbook = PROJECT / "playbooks/grafana-token.yml"
    tokens = []
    for _ in range(2):
        run = run_playbook(playbook, grafana_service_account="reports")
        assert run.code == 0, run.output
        file = state_dir(deployment) / "grafana-reports.token"
        assert file.stat().st_mode & 0o077 == 0
        tokens.append(file.read_text().strip())
        assert tokens[-1] not in run.output
    path = "/grafana/api/dashboards/uid/watchpost-start"
    assert ask("grafana", "https", path, identity=None, token=tokens[0]).status == 401, "the earlier one has ended"
    assert ask("grafana", "https", path, identity=None, token=tokens[1]).status == 200
    refused = ask(
        "grafana", "https", "/grafana/api/dashboards/db", identity=None, token=tokens[1], method="POST", body="{}"
    )
    assert refused.status in (400, 403), refused
    assert ask("grafana", "https", "/grafana/api/users", identity=None, token=tokens[1]).status == 403


def test_who_is_no_longer_named_is_let_in_no_more(accounts, api, as_user, logged_in, deployment):
    before = {login: secret_of(deployment, login) for login in PEOPLE}
    sessions = {login: logged_in(login, secret) for login, secret in before.items()}
    run = play("grafana", grafana_users={"anna": PEOPLE["anna"] | {"role": "Viewer", "teams": [], "generation": 2}})
    assert run.code == 0, run.output
    assert secret_of(deployment, "anna") != before["anna"]
    for login, session in sessions.items():
        assert not session(), f"a login of {login} has outlived its password"
    assert as_user("ben", "/api/search").status == 401
    another = json.dumps({"dashboard": {"title": "Another of Anna"}})  # the one that she has made stays hers
    assert as_user("anna", "/api/dashboards/db", method="POST", body=another).status == 403
    assert api("/api/teams/search").json["teams"] == []
    assert api("/api/serviceaccounts/search").json["serviceAccounts"] == []
    assert api("/api/dashboards/uid/of-anna", method="DELETE").status == 200


def test_rotated_password_and_key_replace_the_old_ones(api, host, logged_in):
    old = password(host)
    session = logged_in("admin", old)
    assert session()
    run = play("grafana", watchpost_secret_generations=GENERATIONS)
    assert run.code == 0, run.output
    assert not session(), "a login has outlived its password"
    new = password(host)
    assert new != old and new not in run.output
    assert api("/api/org", secret=new).status == 200
    assert api("/api/org", secret=old).status == 401
    # The keys of the data sources can be read with the new secret key: Grafana gets as far as to call the absent store.
    assert "connection refused" in api("/api/datasources/uid/prometheus/health").body
    again = play("grafana", watchpost_secret_generations=GENERATIONS)
    assert again.code == 0 and not again.changed, again.output


def test_a_lock_is_told_as_what_it_is(log_in):
    """Grafana locks an account when its own setting says so, and then takes the right password for a wrong one."""
    locking = {"grafana_settings": {"security": {"disable_brute_force_login_protection": "false"}}}
    rotated = {"watchpost_secret_generations": GENERATIONS}
    assert play("grafana", **locking, **rotated).code == 0
    for _ in range(5):
        assert log_in("admin", "a-guess").status == 401
    run = play("grafana", **locking, **rotated)
    assert run.code != 0
    assert "takes none for five minutes" in run.output, run.output
    assert play("grafana", **rotated).code == 0
