"""Each receiver is told what it is meant to be told, in its vendor's own form and over verified TLS, and nothing else.

The receivers that this leaves behind are gone; their secrets stay on the host, for the tests of every component.
"""

import itertools
import json
import re
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import receivers
from conftest import asker, play, run_playbook, unit_name, wait_until

from watchpost import alert

JSON = {"Content-Type": "application/json"}
PUBLIC = "status.example.org"
HOME = "/etc/watchpost/alertmanager/current"
AMTOOL = "/opt/watchpost/alertmanager/current/bin/amtool"
ROUTING_KEY = "0123456789abcdef0123456789abcdef"
SECRETS = {"slack": "T0/B0/slack-9d21", "password": "mail-4b7e", "token": "hook-c03f", "heartbeat": "beat-5a66"}

BURN = {
    "labels": {"alertname": "SloBurn", "severity": "page", "slo": "availability", "service": "taskboard"},
    "annotations": {
        "summary": "taskboard spends the error budget of availability 20 times as fast as it may.",
        "description": "One of 5 requests fails: <!channel> R&D",
        "budget_left": "41.5% of that of 30 days; at the last hour's rate it is gone in 14h 56m 24s",
        "dashboard": f"https://{PUBLIC}/grafana/d/watchpost-slo?var-slo=availability&from=now-6h",
        "runbook_url": f"https://{PUBLIC}/runbooks/SloBurn.md",
    },
}
DISK = {
    "labels": {"alertname": "DiskFilling", "severity": "warning", "job": "node_exporter", "instance": "vm"},
    "annotations": {"summary": "/ on vm will be full within a day.", "description": "It grows."},
}
ALERTS = [
    BURN,
    DISK,
    {"labels": {"alertname": "SloBurnSlow", "severity": "ticket", "slo": "availability", "service": "taskboard"}},
    {"labels": {"alertname": "HostDown", "severity": "critical", "instance": "web9"}},
    {"labels": {"alertname": "ShopSlow", "severity": "page", "instance": "web9", "service": "shop"}},
    {"labels": {"alertname": "Maintained", "severity": "page", "instance": "web7"}},
    *({"labels": {"alertname": "Lagging", "service": "<!channel>", "instance": i}} for i in ("vm1", "vm2")),
    *(
        {"labels": {"alertname": name, "severity": "page", "service": service}}
        for name, service in (("Quiet", "shop"), ("Quiet", "till"), ("Loud", "shop"))
    ),
    {"labels": {"alertname": "NoSeverity"}},
    {"labels": {"alertname": "ForMachines", "severity": "none"}},
    {"labels": {"alertname": "Watchdog", "severity": "none"}},
]


@pytest.fixture(scope="module")
def world(host, tmp_path_factory):
    """The stand-ins, on this machine's address towards the host, and Alertmanager told of them."""
    directory = tmp_path_factory.mktemp("receivers")
    address = host.check_output("ip -4 route show default").split()[2]
    authority = receivers.Authority(directory)
    with (
        receivers.web(address, authority) as web,
        receivers.web(address, receivers.Authority(directory, "impostor")) as impostor,
        receivers.mail(address, authority, "watchpost", SECRETS["password"]) as mail,
        receivers.mail(address, authority, "", "", starttls=False) as plain_mail,
    ):
        post = {"from": "Watchpost <watchpost@example.org>", "to": ["ops@example.org", "boss@example.org"]}
        login = {"username": "watchpost", "password": SECRETS["password"]}
        variables = {
            "watchpost_public_name": PUBLIC,
            "alertmanager_ca_file": str(authority.certificate),
            "alertmanager_heartbeat_url": f"{web.url}/heartbeat/{SECRETS['heartbeat']}",
            "alertmanager_receivers": [
                {
                    "name": "on-call",
                    "severities": ["page"],
                    "pagerduty": {"routing_key": ROUTING_KEY, "url": f"{web.url}/pagerduty/v2/enqueue"},
                },
                {"name": "team", "slack": {"url": f"{web.url}/slack/{SECRETS['slack']}", "channel": "#ops"}},
                {"name": "mail", "severities": ["ticket"], "email": {**post, **login, "server": mail.address}},
                {
                    "name": "hook",
                    "services": ["taskboard", "a.b"],
                    "webhook": {"url": f"{web.url}/webhook/alerts", "token": SECRETS["token"]},
                },
                {"name": "impostor", "webhook": {"url": f"{impostor.url}/webhook/stolen"}},
                {"name": "plain-mail", "email": {**post, "server": plain_mail.address}},
            ],
        }
        run = play("alertmanager", **variables)
        assert run.code == 0, run.output
        yield SimpleNamespace(
            web=web, impostor=impostor, mail=mail, plain_mail=plain_mail, run=run, variables=variables
        )
        assert not web.refused, "a vendor would have refused these"
        assert not mail.refused


def silence(**variables):
    run = run_playbook("playbooks/silence.yml", **variables)
    assert run.code == 0, run.output
    return run


def post(ask, alerts, **more):
    alerts = [alert | more for alert in alerts]
    answer = ask("alertmanager", "http", "/api/v2/alerts", method="POST", headers=JSON, body=json.dumps(alerts))
    assert answer.status == 200, answer


@pytest.fixture(scope="module")
def told(world, host):
    """The alerts sent, with two of them silenced before."""
    silence(silence_host="web7", silence_for="2h", silence_comment="new disk")
    silence(silence_service="shop", silence_alert="Quiet", silence_for="2h", silence_comment="known")
    # Without an end of their own they would end after five minutes; without a beginning, begin with their end.
    now = datetime.now(UTC)
    post(asker(host), ALERTS, startsAt=now.isoformat(), endsAt=(now + timedelta(hours=1)).isoformat())
    world.sent = time.time()
    return world


def names(world):
    """The alerts that each has been told of, with their state, in alphabetical order."""
    web = world.web
    return {
        "on-call": sorted(
            (m.body["payload"].get("class"), m.body["event_action"]) for m in web.at("/pagerduty/v2/enqueue")
        ),
        "team": sorted(
            (summary, color)
            for m in web.at(f"/slack/{SECRETS['slack']}")
            for a in m.body["attachments"]
            for summary, color in [(a["title"], a["color"])]
        ),
        "mail": sorted(m.body["subject"] for m in world.mail.taken),
        "hook": sorted(
            (a["labels"]["alertname"], a["status"]) for m in web.at("/webhook/alerts") for a in m.body["alerts"]
        ),
    }


FIRING = {
    "on-call": [("HostDown", "trigger"), ("Loud", "trigger"), ("Quiet", "trigger"), ("SloBurn", "trigger")],
    "team": [
        ("[PAGE] HostDown", "danger"),
        ("[PAGE] Loud", "danger"),
        ("[PAGE] Quiet", "danger"),
        ("[PAGE] taskboard spends the error budget of availability 20 times as fast as it may.", "danger"),
        ("[TICKET] / on vm will be full within a day.", "warning"),
        ("[TICKET] Lagging of &lt;!channel&gt;: 2 alerts", "warning"),
        ("[TICKET] NoSeverity", "warning"),
    ],
    "mail": [
        "[TICKET] / on vm will be full within a day.",
        "[TICKET] Lagging of <!channel>: 2 alerts",
        "[TICKET] NoSeverity",
    ],
    "hook": [("SloBurn", "firing")],
}
MAINTAINED = {"on-call": [("Maintained", "trigger")], "team": [("[PAGE] Maintained", "danger")]}
RESOLVED = {
    "on-call": [(name, "resolve") for name in ("HostDown", "Loud", "Maintained", "Quiet", "SloBurn")],
    "team": [
        ("[RESOLVED] / on vm will be full within a day.", "good"),
        ("[RESOLVED] HostDown", "good"),
        ("[RESOLVED] Lagging of &lt;!channel&gt;: 2 alerts", "good"),
        ("[RESOLVED] Loud", "good"),
        ("[RESOLVED] Maintained", "good"),
        ("[RESOLVED] NoSeverity", "good"),
        ("[RESOLVED] Quiet", "good"),
        ("[RESOLVED] taskboard spends the error budget of availability 20 times as fast as it may.", "good"),
    ],
    "mail": [
        "[RESOLVED] / on vm will be full within a day.",
        "[RESOLVED] Lagging of <!channel>: 2 alerts",
        "[RESOLVED] NoSeverity",
    ],
    "hook": [("SloBurn", "resolved")],
}


def together(*stages):
    return {name: sorted(itertools.chain(*(stage.get(name, []) for stage in stages))) for name in FIRING}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("alertname=X severity=page", "on-call,team,impostor,plain-mail"),
        ("alertname=X severity=critical service=taskboard", "on-call,team,hook,impostor,plain-mail"),
        ("alertname=X severity=ticket", "team,mail,impostor,plain-mail"),
        ("alertname=X severity=warning service=a.b", "team,mail,hook,impostor,plain-mail"),
        ("alertname=X severity=warning service=aXb", "team,mail,impostor,plain-mail"),
        ("alertname=X", "team,mail,impostor,plain-mail"),
        ("alertname=X severity=none service=taskboard", "nobody"),
        ("alertname=Watchdog severity=none", "heartbeat"),
        ("alertname=Watchdog severity=page", "on-call,team,impostor,plain-mail"),
    ],
)
def test_route_leads_to_those_who_are_meant(world, host, labels, expected):
    route = f"{AMTOOL} config routes test --config.file={HOME}/alertmanager.yml {labels}"
    assert host.check_output(route) == expected


def test_everyone_is_told_what_is_meant_for_them_and_nothing_else(told):
    # SloBurnSlow waits behind the page of the same objective, ShopSlow behind its host; Maintained, and Quiet of the
    # shop, behind a silence. The two that lag are one message.
    wait_until(lambda: all(set(FIRING[name]) <= set(found) for name, found in names(told).items()), seconds=90)
    assert names(told) == FIRING


def test_silence_of_an_alert_of_a_service_is_of_nothing_else(told):
    events = [m.body["payload"] for m in told.web.at("/pagerduty/v2/enqueue")]
    assert [e["component"] for e in events if e["class"] == "Quiet"] == ["till"]


def test_pagerduty_gets_an_event_that_it_takes(told):
    [event] = [m.body for m in told.web.at("/pagerduty/v2/enqueue") if m.body["payload"]["class"] == "SloBurn"]
    payload = event["payload"]
    assert event["routing_key"] == ROUTING_KEY
    assert (event["client"], event["client_url"]) == ("Watchpost", BURN["annotations"]["dashboard"])
    assert payload["summary"] == BURN["annotations"]["summary"]
    assert (payload["severity"], payload["source"]) == ("critical", PUBLIC)
    assert (payload["component"], payload["group"]) == ("taskboard", "availability")
    details = {name: text.strip() for name, text in payload["custom_details"].items() if isinstance(text, str)}
    assert details["impact"] == BURN["annotations"]["description"]
    assert details["budget_left"] == BURN["annotations"]["budget_left"]
    assert "Where: service=taskboard, slo=availability\n" in details["firing"]
    assert_links_lead_there({link["text"]: link["href"] for link in event["links"]})


def test_slack_gets_a_message_in_which_no_alert_can_call_the_channel(told):
    [attachment] = [
        m.body["attachments"][0]
        for m in told.web.at(f"/slack/{SECRETS['slack']}")
        if "taskboard" in m.body["attachments"][0]["title"] and m.body["channel"] == "#ops"
    ]
    assert attachment["title_link"] == BURN["annotations"]["dashboard"]
    assert "One of 5 requests fails: &lt;!channel&gt; R&amp;D\n" in attachment["text"]
    assert f"Error budget left: {BURN['annotations']['budget_left']}\n" in attachment["text"]
    assert "service=taskboard, slo=availability\n" in attachment["text"]
    assert "text" in attachment["mrkdwn_in"]
    assert_links_lead_there(
        {text: href for href, text in re.findall(r"<(https://[^|]+)\|([^>]+)>", attachment["text"])}
    )


def test_mail_is_sent_over_tls_with_a_login(told):
    [message] = [m for m in told.mail.taken if "will be full" in m.body["subject"]]
    assert message.headers == {
        "from": "<watchpost@example.org>",
        "to": "<ops@example.org> <boss@example.org>",
        "tls": "True",
    }
    text = receivers.plain_text(message.body)
    assert "Impact: It grows.\n" in text
    assert "Where: instance=vm, job=node_exporter\n" in text
    assert f"Dashboard: https://{PUBLIC}/grafana/d/watchpost-appliance\n" in text
    assert "Error budget" not in text and "Logs:" not in text


def test_webhook_gets_alertmanagers_own_json_with_its_token(told):
    [message] = told.web.at("/webhook/alerts")
    assert message.headers["authorization"] == f"Bearer {SECRETS['token']}"
    [alert] = message.body["alerts"]
    assert (alert["labels"], alert["annotations"]) == (BURN["labels"], BURN["annotations"])


def assert_links_lead_there(links):
    assert links.keys() == {"Dashboard", "Logs", "Example traces", "Runbook"}
    assert links["Dashboard"] == BURN["annotations"]["dashboard"]
    assert links["Runbook"] == BURN["annotations"]["runbook_url"]
    for link in links.values():
        assert link.startswith(f"https://{PUBLIC}/")
    store, query, span = receivers.explored(links["Logs"])
    assert (store, query["expr"]) == ("loki", '{service_name="taskboard"}')
    assert time.time() - 1800 - 600 < int(span["from"]) / 1000 < time.time() - 1700
    assert span["to"] == "now"
    store, query, span = receivers.explored(links["Example traces"])
    assert (store, query["queryType"]) == ("tempo", "traceql")
    assert query["query"] == '{ resource.service.name = "taskboard" && status = error }'


def failed(ask, receiver):
    metrics = ask("alertmanager", "http", "/metrics").body
    pattern = rf'^alertmanager_notifications_failed_total{{.*receiver_name="{receiver}".*}} (\d+)$'
    return sum(int(count) for count in re.findall(pattern, metrics, re.MULTILINE))


def test_receiver_without_the_right_certificate_is_told_nothing_and_that_is_counted(told, ask, journal):
    # What is counted here is what the alert NotificationsFailing reads.
    wait_until(lambda: failed(ask, "impostor"), seconds=120)
    assert not told.impostor.taken and not told.impostor.refused
    assert "certificate signed by unknown authority" in journal("alertmanager")
    assert failed(ask, "team") == failed(ask, "on-call") == failed(ask, "hook") == 0


def test_mail_server_without_tls_is_told_nothing_and_that_is_counted(told, ask, journal):
    wait_until(lambda: failed(ask, "plain-mail"), seconds=120)
    assert not told.plain_mail.taken
    assert "does not advertise the STARTTLS extension" in journal("alertmanager")


def beats(world):
    return world.web.at(f"/heartbeat/{SECRETS['heartbeat']}")


def test_heartbeat_comes_every_minute_and_tells_of_nothing_else(told):
    wait_until(lambda: len(beats(told)) > 1, seconds=120)
    times = [beat.at for beat in beats(told)]
    assert all(55 < later - earlier < 65 for earlier, later in itertools.pairwise(times)), times
    assert {alert["labels"]["alertname"] for beat in beats(told) for alert in beat.body["alerts"]} == {"Watchdog"}


def test_same_silence_again_changes_nothing(told):
    again = silence(silence_host="web7", silence_for="2h", silence_comment="new disk")
    assert not again.changed
    assert "instance=web7: silent until" in again.output


def test_another_duration_replaces_the_silence(told, ask):
    assert silence(silence_host="web7", silence_for="30m", silence_comment="new disk").changed
    silences = ask("alertmanager", "http", "/api/v2/silences").json
    [active] = [s for s in silences if s["status"]["state"] == "active" and s["comment"].startswith("new disk")]
    left = datetime.fromisoformat(active["endsAt"]) - datetime.now(UTC)
    assert 1500 < left.total_seconds() <= 1800
    assert active["comment"] == "new disk (for 30m)"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"silence_for": "1h", "silence_comment": "all"}, "Say what to silence"),
        ({"silence_alrt": "X", "silence_host": "vm", "silence_for": "1h", "silence_comment": "y"}, "no silence_alrt"),
        ({"silence_host": "vm"}, "silence_for (such as 2h) and silence_comment are needed"),
        ({"silence_host": "vm", "silence_for": "2x", "silence_comment": "y"}, "silence_for is 2x"),
    ],
)
def test_silence_that_cannot_be_meant_is_refused(told, variables, said):
    run = run_playbook("playbooks/silence.yml", **variables)
    assert run.code != 0
    assert said in run.output


def test_lifted_silence_lets_the_alert_through(told):
    assert names(told)["on-call"] == FIRING["on-call"]
    assert silence(silence_host="web7", silence_lift=True).changed
    assert not silence(silence_host="web7", silence_lift=True).changed
    told_of = together(FIRING, MAINTAINED)
    wait_until(lambda: names(told) == told_of, seconds=90)


@pytest.fixture(scope="module")
def resolved(told, host):
    """All alerts ended."""
    post(asker(host), ALERTS, endsAt=datetime.now(UTC).isoformat())
    told.resolved = time.time()
    return told


def test_everyone_is_told_of_the_end_of_what_they_were_told_of(resolved):
    expected = together(FIRING, MAINTAINED, RESOLVED)
    wait_until(lambda: names(resolved) == expected, seconds=120)
    events = [m.body for m in resolved.web.at("/pagerduty/v2/enqueue") if m.body["payload"]["class"] == "SloBurn"]
    assert [event["event_action"] for event in events] == ["trigger", "resolve"]
    assert len({event["dedup_key"] for event in events}) == 1


def test_heartbeat_stops_when_alerting_stops(resolved):
    wait_until(lambda: time.time() > resolved.resolved + 75, seconds=90)
    assert beats(resolved)[-1].at < resolved.resolved + 5, "the end of the alert that always fires is no sign of life"


class Direct:
    """Alertmanager itself in the place of Grafana before it, which the scenario does not have."""

    def __init__(self, ask):
        self.ask = ask

    def metrics(self, _):
        return self.ask("alertmanager", "http", "/metrics").body

    def alerts(self, name):
        return self.ask("alertmanager", "http", f"/api/v2/alerts?filter=alertname={name}").json

    def post_alerts(self, alerts):
        post(self.ask, alerts)


def test_test_alert_is_told_each_time_that_it_is_sent(resolved, host):
    def events(action):
        taken = [m.body for m in resolved.web.at("/pagerduty/v2/enqueue")]
        return {e["dedup_key"] for e in taken if (e["payload"]["class"], e["event_action"]) == (alert.NAME, action)}

    for _ in range(2):
        outcomes = alert.Test(Direct(asker(host)), alert.labels_of(alert.Severity.PAGE)).run()
        answers = {outcome.receiver: outcome.answer for outcome in outcomes}
        assert answers == {"on-call": "told", "team": "told", "impostor": "refused", "plain-mail": "refused"}
    assert len(events("trigger")) == 2
    wait_until(lambda: events("resolve") == events("trigger"), seconds=120)


def test_many_alerts_and_ended_ones_are_told_in_few_words(world, host):
    firing = {"status": "firing", "labels": {"alertname": "X", "instance": "web1"}, "startsAt": "2026-01-02T03:00:00Z"}
    ended = {"status": "resolved", "endsAt": "2026-01-02T04:00:00Z"}
    ended["labels"] = {"alertname": "X", "service": "shop"}
    ended["annotations"] = {"traceql": '{ duration > 500ms && resource.service.name = "shop" }'}
    data = {"status": "firing", "groupLabels": {"alertname": "X"}, "alerts": [firing] * 7 + [firing | ended]}
    host.check_output("printf %%s %s >/run/data.json", json.dumps(data))
    render = f"{AMTOOL} template render --template.glob={HOME}/templates/*.tmpl --template.data=/run/data.json"

    def rendered(name):
        return host.check_output(f"{render} --template.text='{{{{ template \"{name}\" . }}}}'")

    assert rendered("watchpost.status") == "[7 FIRING, 1 RESOLVED]"
    assert rendered("watchpost.summary") == "X: 8 alerts"
    text = rendered("watchpost.text")
    assert text.count("instance=web1") == 5
    assert "And more: 7 firing, 1 resolved in all." in text
    assert "Since: 2026-01-02 03:00:00 until 2026-01-02 04:00:00 UTC" in text
    _, query, span = receivers.explored(re.search(r"^Example traces: (.+)$", text, re.MULTILINE)[1])
    assert query["query"] == ended["annotations"]["traceql"]
    assert span == {"from": "1767321000000", "to": "1767326400000"}


def test_secrets_are_not_in_the_output_of_the_run(world, host):
    # That they are nowhere on the host but in root's files is asked of every component, in shared/.
    for secret in (*SECRETS.values(), ROUTING_KEY):
        assert secret not in world.run.output
    assert host.file(f"{HOME}/credentials/on-call").content_string == ROUTING_KEY
    assert host.run("runuser -u nobody -- cat /run/credentials/%s/on-call", unit_name("alertmanager")).rc != 0


def test_way_out_is_open_only_for_who_tells(world, host, exposure):
    assert "IPAddressDeny=\n" in host.file(f"/etc/systemd/system/{unit_name('alertmanager')}").content_string
    assert exposure("alertmanager") <= 2.5


def test_what_goes_on_is_told_again(resolved, host):
    def told():
        events = [message.body for message in resolved.web.at("/pagerduty/v2/enqueue")]
        return [e["dedup_key"] for e in events if (e["payload"]["class"], e["event_action"]) == ("GoesOn", "trigger")]

    run = play("alertmanager", **resolved.variables | {"alertmanager_repeat_interval": "50s"})
    assert run.code == 0, run.output
    now = datetime.now(UTC)
    goes_on = {"labels": {"alertname": "GoesOn", "severity": "page"}}
    post(asker(host), [goes_on], startsAt=now.isoformat(), endsAt=(now + timedelta(hours=1)).isoformat())
    wait_until(lambda: len(told()) == 2, seconds=120)  # looked at once a minute
    assert len(set(told())) == 1
