"""Personal data, sent by every way in, is on no disk of the appliance; a harmless word beside it is in every store."""

import gzip
import json
import time
from urllib.parse import quote

import pytest
from canary import PERSONAL, SEED, Canary, as_grpc, on_disk
from conftest import ENDPOINTS, PKI
from otlp import JSON
from test_appliance import HOST

from drills.harness import call_grpc
from watchpost import verify_target

CREDENTIAL = "/etc/watchpost/otel_collector/current/credentials/otlp_ingest_token"
STATE = "/var/lib/watchpost"
STORES = ("tempo", "loki", "prometheus")
#: Seconds until all three stores show what was sent: a batch, the sampler's decision, and the stores themselves.
VISIBLE = 90


@pytest.fixture(scope="module")
def canaries():
    """One for each way in."""
    print(f"CANARY_SEED={SEED} has the same people again")
    return {way: Canary() for way in ("local_http", "ingest_http", "otlp_grpc", "gateway")}


@pytest.fixture
def identity(host, tmp_path):
    """A directory with what an agent shows: a certificate of the appliance's CA."""
    for name, path in {"ca.crt": "ca.crt", "tls.crt": "operator/tls.crt", "tls.key": "operator/tls.key"}.items():
        (tmp_path / name).write_text(host.file(f"{PKI}/{path}").content_string)
    return tmp_path


@pytest.fixture
def sent(canaries, ask, host, identity):
    """Send each canary in every field of every signal; return the trace ids."""
    token = host.file(CREDENTIAL).content_string
    page = verify_target.find(inventory=str(HOST.inventory)).url
    ways = {
        "local_http": ("otel_collector", "local_http", "", {"identity": "taskboard"}),
        "ingest_http": ("otel_collector", "ingest_http", "", {"identity": None, "token": token}),
        "gateway": ("gateway", "https", "/otlp", {"identity": None}),
    }
    traces = {}
    for way, canary in canaries.items():
        for signal, body in canary.requests().items():
            if (way, signal) == ("gateway", "metrics"):
                continue  # a page sends none
            if way == "otlp_grpc":
                rpc, message = as_grpc(signal, body)
                url = f"{page}:{ENDPOINTS['gateway']['otlp_grpc']['port']}{rpc}"
                assert call_grpc(url, identity, gzip.compress(message), "gzip") == "0", signal
            else:
                component, endpoint, path, who = ways[way]
                headers = JSON | {"Origin": page}
                answer = ask(
                    component, endpoint, f"{path}/v1/{signal}", method="POST", headers=headers, body=body, **who
                )
                assert answer.status == 200, (way, signal, answer)
            if signal == "traces":
                span = json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
                traces[way] = span["traceId"]
    return traces


def test_what_was_sent_is_in_every_store_without_the_personal_data(sent, canaries, ask, host):
    def answers(way):
        word = canaries[way].word
        logs = quote(f'{{service_name=~".+"}} |= "{word}"')
        series = quote(f'{{app_text=~".*{word}.*"}}')
        stores = [
            ask("tempo", "http", f"/api/traces/{sent[way]}").body,
            ask("loki", "http", f"/loki/api/v1/query_range?query={logs}").body,
            ask("prometheus", "http", f"/api/v1/series?match[]={series}").body,
        ]
        return stores[:2] if way == "gateway" else stores

    deadline = time.monotonic() + VISIBLE
    for way, canary in canaries.items():
        while not all(canary.word in answer for answer in answers(way)):
            assert time.monotonic() < deadline, (way, answers(way))
            time.sleep(1)  # between two looks
        told = "".join(answers(way))
        assert not [text for text in PERSONAL if text in told], way

    # From memory onto the disk, where the stores have an address for that.
    assert ask("tempo", "http", "/flush", method="POST").status == 204
    assert ask("loki", "http", "/flush", method="POST").status == 204
    time.sleep(5)  # Tempo says that it has begun, not that it is done
    words = [canary.word for canary in canaries.values()]
    found = on_disk(host, [*words, *PERSONAL], STATE)
    assert not {text: found[text] for text in PERSONAL if found[text]}
    # The search sees: each word lies readable in the files of each store.
    for store in STORES:
        seen = {word for word in words for file in found[word] if file.startswith(f"{STATE}/{store}/")}
        # A page sends no metrics; its spans are counted, though, so its word may be there too.
        sent_there = words[:-1] if store == "prometheus" else words
        assert seen >= set(sent_there), f"{store} hides what it holds; the search proves nothing there"


def test_personal_data_is_not_in_the_journal(host, canaries):
    word = canaries["gateway"].word
    host.check_output("logger %s", f"canary {word}")
    host.check_output(
        "journalctl --sync && mkdir -p /run/canary && journalctl --boot --output=cat --all > /run/canary/journal"
    )
    found = on_disk(host, [word, *PERSONAL], "/run/canary")
    host.check_output("rm -r /run/canary")
    assert found.pop(word), "the search does not see what is there"
    assert not {text for text, where in found.items() if where}
