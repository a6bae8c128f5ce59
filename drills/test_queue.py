"""A damaged queue must not keep the Collector from starting; what was in it is lost, and nothing else."""

import pytest

from drills.harness import say, unit_name
from watchpost.load_send import Signal

QUEUE = "/var/lib/watchpost/otel_collector/queue/exporter_otlp_http_loki_logs"
#: How the file is damaged: a shell command, `$file` being its name.
DAMAGE = {
    "garbage at its head": "head -c 8192 /dev/urandom | dd of=$file conv=notrunc bs=8192",
    "garbage behind its head": "head -c 65536 /dev/urandom | dd of=$file conv=notrunc bs=8192 seek=1",
    "garbage all over": "head -c $(stat -c %s $file) /dev/urandom | dd of=$file conv=notrunc bs=1M",
    "truncated to a half": "truncate -s $(($(stat -c %s $file) / 2)) $file",
    "emptied": "truncate -s 0 $file",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_queue_does_not_keep_the_collector_from_starting(drill, damage):
    appliance, unit = drill.appliance, unit_name("otel_collector")
    with appliance.stopped("loki"):
        with appliance.load(signals=(Signal.LOGS, Signal.TRACES), rate=500) as before:
            drill.pause(4, 5)
        command = (
            f"systemctl stop {unit}; file={QUEUE}; test -s $file; {DAMAGE[damage]} 2>/dev/null; systemctl start {unit}"
        )
        _, ready = appliance.breaking(command, "otel_collector")
        drill.outcome.ready.extend(ready.values())
    with appliance.load() as after:
        drill.pause(2, 3)
    appliance.read_back(before, timeout=15)
    say(
        f"{len(before.lost[Signal.LOGS])} of {before.counts[Signal.LOGS].acknowledged} lines that waited there are lost"
    )
    assert not before.lost[Signal.TRACES], "the queue of another signal was touched"
    drill.assert_nothing_lost(after)
