"""Prometheus deletes what is older than its retention, and what does not fit into its budget; nothing else."""

import time

import pytest
from conftest import unit_name, wait_until

pytestmark = pytest.mark.long  # Prometheus looks once a minute

STATE = "/var/lib/watchpost/prometheus"
CONFIGURATION = "/etc/watchpost/prometheus/current/prometheus.yml"
#: Ages of blocks, in days; the retention is 35.
OLD, YOUNG, NEW = 40, 20, 1
#: Runs on the host: one sample of many series, written as a block of its own. Prints the block's directory.
BACKFILL = """
import subprocess, sys, time
days, state = int(sys.argv[1]), sys.argv[2]
at = int(time.time()) - days * 86400
with open("/run/backfill.txt", "w") as file:
    print("# TYPE backfill gauge", file=file)
    for number in range(40000):
        print(f'backfill{{days="{days}",series="{number:0128}"}} 1 {at}', file=file)
    print("# EOF", file=file)
promtool = ["/opt/watchpost/prometheus/current/bin/promtool", "tsdb", "create-blocks-from", "openmetrics"]
said = subprocess.check_output([*promtool, "/run/backfill.txt", state], text=True)
print(said.split()[-8])
"""


@pytest.fixture
def blocks(host, ask):
    """Give Prometheus a block of each age and a configuration with some text replaced; tell which ages it keeps."""
    unit, before = unit_name("prometheus"), host.file(CONFIGURATION).content_string

    def blocks(text, replacement):
        host.check_output("systemctl stop %s", unit)
        made = {host.check_output("python3 -c %s %s %s", BACKFILL, str(age), STATE): age for age in (OLD, YOUNG, NEW)}
        host.check_output(f"chown --recursive watchpost-prometheus: {STATE}")
        used = int(host.check_output(f"du --summarize --block-size=1 {STATE}").split()[0])
        one = int(host.check_output(f"du --summarize --block-size=1 {STATE}/{next(iter(made))}").split()[0])
        assert text in before
        changed = before.replace(text, replacement.format(all_but_half_a_block=used - one // 2))
        host.check_output(f"printf %%s %s > {CONFIGURATION}", changed)
        host.check_output("systemctl start %s", unit)
        wait_until(lambda: ask("prometheus", "http", "/-/ready").status == 200, seconds=60)
        # It looks when it starts, with the size after that once a minute.
        deadline = time.monotonic() + 75
        while OLD in (kept := {made[name] for name in host.file(STATE).listdir() if name in made}):
            if time.monotonic() > deadline:
                break
            time.sleep(1)  # between two looks
        host.check_output(f"rm --recursive --force {' '.join(f'{STATE}/{name}' for name in made)}")
        return kept

    yield blocks
    host.check_output(f"printf %%s %s > {CONFIGURATION}", before)
    host.check_output("systemctl restart %s", unit)


def test_block_older_than_the_retention_is_deleted(blocks):
    assert blocks("time: 35d", "time: 35d") == {YOUNG, NEW}


def test_oldest_block_is_deleted_when_all_do_not_fit(blocks):
    """Its age is within the retention."""
    assert blocks("time: 35d\n      size: 3GB", "time: 99d\n      size: {all_but_half_a_block}B") == {YOUNG, NEW}


def test_with_room_and_time_enough_all_is_kept(blocks):
    """Otherwise the tests above might take away what they look for."""
    assert blocks("time: 35d", "time: 99d") == {OLD, YOUNG, NEW}
