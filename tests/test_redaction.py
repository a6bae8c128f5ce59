"""What the rules of group_vars/all/redaction.yml take out, and what they leave, judged by the real Collector."""

import hashlib
import json
import random

import pytest
from collector import plugin, program, requests, running, settings, string, validate, write
from faker import Faker
from ordinary import messages

RULES = settings()["watchpost_redaction_rules"]
EXAMPLES = [(rule["name"], text) for rule in RULES for text in rule["match"]]
COUNTEREXAMPLES = [(rule["name"], text) for rule in RULES for text in rule.get("keep", [])]
#: Of ordinary messages, the share that may be changed by mistake.
FALSE_POSITIVES = 0.005


@pytest.fixture(scope="module")
def otelcol(tmp_path_factory):
    return program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def collector(otelcol, tmp_path_factory):
    with running(otelcol, tmp_path_factory.mktemp("collector"), settings()) as collector:
        yield collector


@pytest.fixture
def changed(otelcol, tmp_path):
    """A Collector with some variables changed."""
    stack = []

    def start(**variables):
        stack.append(running(otelcol, tmp_path, settings(**variables)))
        return stack[-1].__enter__()

    yield start
    for context in stack:
        context.__exit__(None, None, None)


def span_attributes(collector, attributes):
    """Send attributes of one span through, and return what they have become, by name."""
    span = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "attributes": attributes}
    out = collector.through("traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    return {
        item["key"]: next(iter(item["value"].values()))
        for item in out["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"]
    }


def of_values(collector, texts):
    out = span_attributes(collector, [string(f"app.a{i}", text) for i, text in enumerate(texts)])
    return [out[f"app.a{i}"] for i in range(len(texts))]


def of_bodies(collector, texts):
    records = [{"body": {"stringValue": text}} for text in texts]
    out = collector.through("logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]})
    return [record["body"]["stringValue"] for record in out["resourceLogs"][0]["scopeLogs"][0]["logRecords"]]


def of_span_names(collector, texts):
    ids = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}
    spans = [{**ids, "name": text} for text in texts]
    out = collector.through("traces", {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
    return [span["name"] for span in out["resourceSpans"][0]["scopeSpans"][0]["spans"]]


PLACES = pytest.mark.parametrize("place", [of_values, of_bodies, of_span_names])


@PLACES
def test_every_rule_finds_its_examples(collector, place):
    found = place(collector, [text for _, text in EXAMPLES])
    assert not [example for example, text in zip(EXAMPLES, found, strict=True) if text == example[1]]


@PLACES
def test_no_rule_takes_its_counterexamples(collector, place):
    found = place(collector, [text for _, text in COUNTEREXAMPLES])
    assert not [example for example, text in zip(COUNTEREXAMPLES, found, strict=True) if text != example[1]]


def test_every_rule_has_examples_of_both_kinds():
    assert not [rule["name"] for rule in RULES if not rule["match"] or not rule["keep"]]


def canaries():
    """Personal data of made-up people of several countries, each a text that must be gone as a whole."""
    Faker.seed(7)
    people = {name: Faker(name) for name in ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "pt_BR", "it_IT", "de_CH")}
    american = people["en_US"]
    for fake in people.values():
        for _ in range(4):
            yield from (fake.email(), fake.company_email(), fake.iban(), fake.ipv4_public(), fake.ipv6())
            account = fake.iban()
            yield from (account.lower(), "-".join(account[at : at + 4] for at in range(0, len(account), 4)))
        for card in ("visa16", "visa13", "mastercard", "amex", "discover", "jcb16", "jcb15", "diners", "maestro"):
            yield fake.credit_card_number(card)
    for _ in range(12):
        for country in ("en_US", "en_GB", "de_DE", "fr_FR"):
            number = people[country].phone_number().partition("x")[0]
            # Digits alone could be any number; docs/redaction.md says so.
            if not number.isdigit():
                yield number
        yield from (american.ssn(), people["es_ES"].nif(), people["pt_BR"].cpf())
        yield from (f"password={american.password(special_chars=False)}", f"Bearer {american.sha256()}")
        yield from (f"token: {american.uuid4()}", f"?id={american.user_name()}", f"s://{american.user_name()}:x@")


def test_canaries_survive_in_no_field_of_any_signal(collector):
    texts = sorted(set(canaries()))
    assert len(texts) > 300, "too few to prove anything"
    leaks = set()
    for signal, request in requests(f"for {text} of today" for text in texts).items():
        out = json.dumps(collector.through(signal, request), ensure_ascii=False)
        assert out.count("of today") > 5 * len(texts), "the rest of the text survives"
        leaks |= {(signal, text) for text in texts if text in out}
    assert not leaks


def under(collector, names, texts):
    """Return what each text has become under each name, as pairs of name and text that came out as they were."""
    unchanged = []
    for text in texts:
        out = span_attributes(collector, [string(name, text) for name in names])
        unchanged += [(name, text) for name in names if out[name] == text]
    return unchanged


#: Attributes that whoever sends a request fills, as much as the program that tells of it.
OF_STRANGERS = ["user_agent.original", "http.user_agent", "http.host", "http.server_name", "net.host.name",
                "net.peer.name", "net.peer.ip", "client.address", "network.peer.address"]  # fmt: skip


def test_what_strangers_fill_is_searched_for_everything(collector):
    assert not under(collector, OF_STRANGERS, [text for _, text in EXAMPLES])


def test_what_a_programs_own_code_fills_is_searched_for_all_but_tokens(collector):
    known = settings()["known_keys"]
    always = {rule["name"] for rule in RULES if rule["search"] == "always"}
    assert not under(collector, known, [text for name, text in EXAMPLES if name not in always])
    assert not set(known) & set(OF_STRANGERS)


def test_allowed_names_are_not_looked_at_as_documented(collector):
    allowed, texts = settings()["watchpost_redaction_allowed_keys"], [text for _, text in EXAMPLES]
    assert under(collector, allowed, texts) == [(name, text) for text in texts for name in allowed]


@PLACES
def test_ordinary_messages_are_left_alone(collector, place):
    texts = list(messages())
    found = place(collector, texts)
    mistakes = [(text, out) for text, out in zip(texts, found, strict=True) if text != out]
    assert len(mistakes) <= FALSE_POSITIVES * len(texts), mistakes[:20]


IDS = {
    "app.trace_id": "5b8efff798038103d269b633813fc60c",
    "app.span_id": "eee19b7ec3c1b174",
    "app.uuid": "0d9c1f5e-4a0b-4f0e-9b7a-2c5d8e1f0a3b",
    "app.nanoseconds": "1764061200123456789",
    "app.milliseconds": "1764061200123",
    "app.loopback": "127.0.0.1:14318",
    "http.route": "/api/tasks/{id}",
    "service.version": "1.45.2",
    "service.instance.id": "worker-7",
}


def test_ids_times_routes_and_versions_are_left_alone(collector):
    assert span_attributes(collector, [string(*item) for item in IDS.items()]) == IDS


def test_fractions_that_were_not_rounded_are_left_alone(collector):
    r = random.Random(1)
    fractions = {f"app.f{n}": r.random() * 10 ** r.randint(-4, 3) for n in range(300)}
    texts = {f"{name}.text": repr(value) for name, value in fractions.items()}
    attributes = [{"key": name, "value": {"doubleValue": value}} for name, value in fractions.items()]
    attributes += [string(*item) for item in texts.items()]
    assert span_attributes(collector, attributes) == fractions | texts


def test_all_that_is_no_text_is_left_alone(collector):
    request = requests(["nothing to see"])["traces"]
    span = request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    out = collector.through("traces", request)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    for name in ("traceId", "spanId", "startTimeUnixNano", "endTimeUnixNano", "kind", "status", "attributes", "events"):
        assert out[name] == span[name]


KEPT_PARTS = {
    "client.address": ("203.0.113.77", "203.0.113.0"),
    "network.peer.address": ("2001:db8:85a3:1:2:8a2e:370:7334", "2001:db8:85a3::"),
    "net.peer.ip": ("2a02:26f0::5eb", "2a02:26f0::"),
    "url.full": ("https://anna:x@example.org/a?q=anna+berg&page=2", "https://****@example.org/a?q=****&page=****"),
    "url.query": ("q=anna&page=2", "q=****&page=****"),
    "http.target": ("/search?q=anna", "/search?q=****"),
    "db.statement": ("SELECT * FROM t1 WHERE n = 'O''Neil' AND a > 42.5", "SELECT * FROM t1 WHERE n = ? AND a > ?"),
    "db.query.text": ("INSERT INTO tasks VALUES ('cut off", "INSERT INTO tasks VALUES (?"),
}


def test_a_part_is_kept_where_it_is_harmless(collector):
    sent = [string(name, before) for name, (before, _) in KEPT_PARTS.items()]
    assert span_attributes(collector, sent) == {name: after for name, (_, after) in KEPT_PARTS.items()}


def test_log_lines_keep_networks_and_names_of_parameters(collector):
    line = "GET /a?user=anna&page=2 from 198.51.100.23 and 2001:db8:85a3:1:2:8a2e:370:7334"
    assert of_bodies(collector, [line]) == ["GET /a?user=****&page=**** from 198.51.100.0 and 2001:db8:85a3::"]


@pytest.mark.parametrize(
    "name",
    ["password", "DB_PASSWORD", "user.accessToken", "http.request.header.authorization", "http.response.header.cookie",
     "x-api-key", "apiKey", "client_secret", "session_id", "user.email", "db.query.parameter.0"],
)  # fmt: skip
def test_value_is_hidden_by_its_attributes_name(collector, name):
    assert span_attributes(collector, [string(name, "harmless")]) == {name: "****"}


@pytest.mark.parametrize(
    "name", ["session.id", "gen_ai.usage.input_tokens", "app.secretary", "http.route", "db.system"]
)
def test_similar_name_hides_nothing(collector, name):
    assert span_attributes(collector, [string(name, "harmless")]) == {name: "harmless"}


def test_blocked_name_in_a_log_body_hides_its_value(collector):
    body = {"kvlistValue": {"values": [string("password", "harmless"), string("state", "open")]}}
    out = collector.through("logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": body}]}]}]})
    found = out["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"]
    assert found == {"kvlistValue": {"values": [string("password", "****"), string("state", "open")]}}


def links(collector, service):
    request = requests(["anna@example.org"])["traces"]
    request["resourceSpans"][0]["resource"]["attributes"][0] = string("service.name", service)
    span = collector.through("traces", request)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    return len(span.get("links", [])), span.get("droppedLinksCount", 0)


def test_links_are_dropped_and_counted(collector):
    assert links(collector, "shop") == (0, 1)


def test_links_of_a_named_service_are_kept(changed):
    collector = changed(watchpost_redaction_keep_links_of=["worker"])
    assert links(collector, "worker") == (1, 0)
    assert links(collector, "shop") == (0, 1)


def test_users_settings_take_effect(changed):
    collector = changed(
        watchpost_redaction_extra_rules=[
            {"name": "employee", "pattern": r"\bstaff [a-z]+", "match": ["staff anna"]},
            {"name": "badge", "words": ["badge", "chip"], "pattern": " [0-9]+", "match": ["Badge 12", "microCHIP 3"]},
        ],
        watchpost_redaction_allowed_keys=["order.contact"],
        watchpost_redaction_allowed_values=[r"10\.20\.\d+\.\d+"],
        watchpost_redaction_hashed_keys=["user.id", "user.email"],
    )
    sent = {
        "app.text": "by staff anna, BADGE 12 and Minichip 3", "order.contact": "a@example.org",
        "app.peer": "10.20.30.40", "app.others": "10.20.30.40, 198.51.100.9",
        "user.id": "anna", "user.email": "a@example.org",
    }  # fmt: skip
    out = span_attributes(collector, [string(*item) for item in sent.items()])
    assert (out["app.text"], out["order.contact"], out["app.peer"]) == (
        "by ****, **** and Mini****", "a@example.org", "10.20.30.40"
    )  # fmt: skip
    assert out["app.others"] == "****, ****"
    key = b"a key of the tests"
    inner = hashlib.sha256(key + b"anna").hexdigest().encode()
    assert out["user.id"] == hashlib.sha256(key + inner).hexdigest()
    assert len(out["user.email"]) == 64
    assert of_span_names(collector, ["by staff anna"]) == ["by ****"]


def test_switched_off_everything_passes(changed):
    """Otherwise the other tests might look at something else than the redaction."""
    collector = changed(watchpost_redaction_enabled=False)
    texts = [text for _, text in EXAMPLES]
    assert of_values(collector, texts) == texts
    assert links(collector, "shop") == (1, 0)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("watchpost_redaction_extra_rules", [{"name": "mine", "pattern": "(?=look)", "match": []}], "redaction/mine"),
        ("watchpost_redaction_blocked_keys", ["(open"], "watchpost_redaction_blocked_keys"),
        ("watchpost_redaction_allowed_values", ["[a-"], "watchpost_redaction_allowed_values"),
    ],
)
def test_wrong_pattern_is_refused_by_name(otelcol, tmp_path, variable, value, named):
    rules = write(tmp_path, "rules.yml", plugin().rules_one_by_one(settings(**{variable: value})))
    refused = validate(otelcol, rules)
    assert refused.returncode != 0
    assert named in refused.stderr


def test_every_pattern_is_taken_by_the_collector(otelcol, tmp_path):
    done = validate(otelcol, write(tmp_path, "rules.yml", plugin().rules_one_by_one(settings())))
    assert done.returncode == 0, done.stderr
