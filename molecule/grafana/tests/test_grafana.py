"""Grafana lets in whoever has the password of the last run, and has its data sources and dashboards from files."""

import base64
import json

import pytest
from conftest import Answer

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


def test_session_cookie_stays_on_https_and_on_this_site(ask, host):
    body = json.dumps({"user": "admin", "password": password(host)})
    answer = ask("grafana", "https", "/grafana/login", identity=None, method="POST", body=body,
                 headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status == 200
    session = answer.headers["set-cookie"].partition("grafana_session=")[2].partition(", grafana")[0]
    for attribute in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/grafana"):
        assert attribute in session


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


def test_dashboard_to_start_with_is_there_and_refers_to_real_stores(api, data_sources):
    dashboard = api("/api/dashboards/uid/start-here").json
    assert dashboard["meta"]["provisioned"] and dashboard["meta"]["folderTitle"] == "Watchpost"
    asked = {target["datasource"]["uid"] for panel in dashboard["dashboard"]["panels"] for target in panel["targets"]}
    assert asked <= set(data_sources)


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
        ("dashboards/start-here.json", "1s/{/{{/", "start-here.json is not JSON"),
        ("dashboards/start-here.json", "s/Start here//", "Dashboard title cannot be empty"),
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


def test_wrongly_typed_variable_is_named(site):
    run = site(grafana_memory_mib="plenty")
    assert run.code != 0 and "grafana_memory_mib" in run.output


def test_rotated_password_and_key_replace_the_old_ones(site, api, host):
    old = password(host)
    run = site(watchpost_secret_generations=GENERATIONS)
    assert run.code == 0, run.output
    new = password(host)
    assert new != old and new not in run.output
    assert api("/api/org", secret=new).status == 200
    assert api("/api/org", secret=old).status == 401
    # The keys of the data sources can be read with the new secret key: Grafana gets as far as to call the absent store.
    assert "connection refused" in api("/api/datasources/uid/prometheus/health").body
    again = site(watchpost_secret_generations=GENERATIONS)
    assert again.code == 0 and not again.changed, again.output
