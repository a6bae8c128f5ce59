"""Tempo and Loki delete what is older than they are told to keep: by the user, or by the keeper of the disk.

What they do in half an hour they do here in seconds: their intervals are shortened, nothing else.
"""

import base64
import functools
import json
import time

import pytest
from conftest import unit_name, wait_until
from otlp import JSON, Probe

pytestmark = pytest.mark.long  # the stores look once a minute at most, whatever they are told
STATE = "/var/lib/watchpost"
DAY = 86400
#: Until an engine has looked, marked and removed: Loki removes once a minute.
SECONDS = 240
wait_for = functools.partial(wait_until, seconds=SECONDS)
#: Until what is not to be deleted would have been deleted.
LONG_ENOUGH = 30


@pytest.fixture
def configured(host, ask):
    """Have an engine run with some texts of its configuration replaced, until the test's end."""
    before = {}

    def configured(engine, replacements):
        file = f"/etc/watchpost/{engine}/current/{engine}.yml"
        text = before.setdefault(engine, host.file(file).content_string)
        for old, new in replacements.items():
            assert old in text, f"{old} is not in {file}"
            text = text.replace(old, new)
        host.check_output(f"printf %%s %s > {file}", text)
        restart(engine)

    def restart(engine):
        host.check_output("systemctl restart %s", unit_name(engine))
        wait_for(lambda: ask(engine, "http", "/ready").status == 200)

    yield configured
    for engine, text in before.items():
        host.check_output(f"printf %%s %s > /etc/watchpost/{engine}/current/{engine}.yml", text)
        restart(engine)


@pytest.fixture
def keeper(host):
    """Have the keeper of the disk find a store too large, and keep so many days at least; undone at the test's end."""

    def keeper(days):
        settings = json.loads(host.file("/etc/watchpost/retention.json").content_string)
        for store in settings["stores"].values():
            store["bytes"] = 1
        host.check_output("printf %%s %s > /run/retention.json", json.dumps(settings | {"least": days * DAY}))
        host.check_output("/opt/watchpost/retention.py /run/retention.json")

    yield keeper
    host.check_output("systemctl start watchpost-retention.service")


#: Runs on the host: copies a block of Tempo's with another id, and so many days older.
COPY_BLOCK = """
import json, shutil, sys, uuid
from datetime import datetime, timedelta
from pathlib import Path
block, days, copy = Path(sys.argv[1]), int(sys.argv[2]), str(uuid.uuid4())
shutil.copytree(block, block.with_name(copy))
meta = block.with_name(copy) / "meta.json"
facts = json.loads(meta.read_text()) | {"blockID": copy}
for name in ("startTime", "endTime"):
    moment = datetime.fromisoformat(facts[name].replace("Z", "+00:00")) - timedelta(days=days)
    facts[name] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
meta.write_text(json.dumps(facts))
print(copy)
"""
FAST_TEMPO = {
    "    backend: local\n": "    backend: local\n    blocklist_poll: 3s\n",
    "block_retention: 15m": "block_retention: 1s",
}


@pytest.fixture
def blocks(host, ask):
    """Make a block of Tempo's and copies of it, 3 and 8 days old; tell which of these ages are on the disk.

    The block itself is not told of: Tempo may lay it together with others of its hour.
    """
    folder = f"{STATE}/tempo/blocks/single-tenant"
    before = set(host.run(f"ls {folder}").stdout.split())
    sent = ask("tempo", "otlp_http", "/v1/traces", method="POST", headers=JSON, body=Probe().span("kept"))
    assert sent.status == 200, sent
    time.sleep(2)  # until the trace counts as ended
    assert ask("tempo", "http", "/flush", method="POST").status == 204
    found = f"ls -d {folder}/*/meta.json | xargs --max-args=1 dirname | xargs --max-args=1 basename"
    fresh = wait_for(lambda: set(host.run(found).stdout.split()) - before)
    block = fresh.pop()
    copies = {
        days: host.check_output("python3 -c %s %s %s", COPY_BLOCK, f"{folder}/{block}", str(days)) for days in (3, 8)
    }
    host.check_output(f"chown --recursive watchpost-tempo: {folder}")
    yield lambda: {days for days, name in copies.items() if host.file(f"{folder}/{name}").exists}
    host.check_output(f"rm --recursive --force {' '.join(f'{folder}/{name}' for name in copies.values())}")


def test_tempo_deletes_blocks_older_than_its_retention(configured, blocks, keeper):
    configured("tempo", FAST_TEMPO)
    wait_for(lambda: blocks() == {3})
    keeper(days=2)
    wait_for(lambda: blocks() == set())


def test_tempo_keeps_all_when_told_to(configured, blocks):
    """Otherwise the test above might take away what it looks for."""
    configured("tempo", FAST_TEMPO | {"block_retention: 168h": "block_retention: 999h"})
    time.sleep(LONG_ENOUGH)  # in which the other test's block was gone
    assert blocks() == {3, 8}


FAST_LOKI = {
    "retention_delete_delay: 30m": "retention_delete_delay: 1s\n  compaction_interval: 5s",
    "limits_config:\n": "limits_config:\n  reject_old_samples: false\n",
}


@pytest.fixture
def lines(host, ask, configured):
    """Have Loki keep lines that are 0, 5 and 20 days old; tell which of the three ages are on the disk."""
    configured("loki", FAST_LOKI)
    ages = {days: Probe(nanoseconds=time.time_ns() - days * DAY * 10**9) for days in (0, 5, 20)}
    for probe in ages.values():
        sent = ask("loki", "http", "/otlp/v1/logs", method="POST", headers=JSON, body=probe.log("kept"))
        assert sent.status == 204, sent
    assert ask("loki", "http", "/flush", method="POST").status == 204

    def kept():
        # By the files, each named after its first moment: a query might be answered from a cache.
        files = host.check_output(f"find {STATE}/loki/chunks/fake -type f -printf '%f\n'").split()
        moments = {int(base64.b64decode(name).partition(b":")[0], 16) for name in files}  # milliseconds since 1970
        return {days for days, probe in ages.items() if probe.nanoseconds // 10**6 in moments}

    wait_for(lambda: kept() == {0, 5, 20})
    return kept


def test_loki_deletes_lines_older_than_its_retention(configured, lines, keeper):
    configured("loki", FAST_LOKI)  # started again, it writes its index, which the deletion goes by
    wait_for(lambda: lines() == {0, 5})
    keeper(days=2)
    wait_for(lambda: lines() == {0})


def test_loki_keeps_all_when_told_to(configured, lines):
    """Otherwise the test above might take away what it looks for."""
    configured("loki", FAST_LOKI | {"retention_period: 336h": "retention_period: 999h"})
    time.sleep(3 * LONG_ENOUGH)  # in which the other test's line was gone
    assert lines() == {0, 5, 20}
